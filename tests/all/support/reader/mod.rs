//! A reader of format 1, written from `src/docs/format.md` alone: it shares no code with keepq, so
//! where the two agree, the page is enough to read a queue by. It never fails on any bytes.
//!
//! | here | in the page |
//! | --- | --- |
//! | `bytes` | "Fold and key" |
//! | `segment` | "A segment", "A compacted segment", "A slot" |
//! | `record` | "A record", and the search of "Reading a queue", 2 |
//! | `checkpoint` | "CHECKPOINT" |
//! | `directory` | "Reading a queue", 1: which files are the queue |
//! | `epoch` | 2 to 4, and "Predecessors": which records of a run count |
//! | `log` | 1 to 4, and 7: which records are the log, and what is lost |
//! | `left` | "What a slot means", and 5 to 7: what is left to do, and what is known |

mod bytes;
mod checkpoint;
mod directory;
mod epoch;
mod left;
mod log;
mod place;
mod ranges;
mod record;
mod segment;

pub(crate) use checkpoint::{Added, Anchor, Listed};
pub(crate) use directory::File;
pub(crate) use left::Left;
pub(crate) use place::{Place, Used, checkpoint_slots, place, places, read_checkpoint};
pub(crate) use ranges::Ranges;

/// Why a directory is not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// A later version wrote it, or it needs a feature that is not known.
    Newer,
    /// There are segments, and none of them can be read.
    Unreadable,
}

/// What these files hold, opened at `now`, in milliseconds since 1970.
pub(crate) fn read(files: &[File], now: u64) -> Result<Left, Refusal> {
    let mut directory = directory::Directory::read(files)?;
    let log = log::Log::read(&mut directory);
    Ok(Left::new(&directory, log, now))
}
