//! How a case differs from another.

use crate::support::Dice;
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Backoff, Compaction, Durability, Expired, Options, Overflow, Queue};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub(crate) struct Settings {
    /// Milliseconds.
    pub(crate) visibility: Option<u64>,
    pub(crate) max_attempts: u32,
    /// Milliseconds; 0 for none.
    pub(crate) backoff: u64,
    pub(crate) dead_letters: bool,
    pub(crate) expired: Expired,
    pub(crate) max_messages: Option<u64>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) overflow: Overflow,
    pub(crate) max_in_flight: Option<u64>,
    pub(crate) durability: Durability,
    pub(crate) sync_acks: bool,
    pub(crate) background: bool,
    pub(crate) open_segments: u64,
    pub(crate) compaction: Compaction,
    /// Whether a thread purges, and whether messages expire, are delayed or transient.
    pub(crate) purges: bool,
    pub(crate) expires: bool,
    pub(crate) delays: bool,
    pub(crate) transients: bool,
    /// Messages are up to so long.
    pub(crate) longest: u64,
    pub(crate) is_on_disk: bool,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Settings {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let dead_letters = !dice.one_in(5);
        // Dead letters often share what `max_bytes` leaves.
        let limit = if dead_letters && dice.one_in(2) { 1 } else { dice.below(6) };
        let overflow = [
            Overflow::Block,
            Overflow::Reject,
            Overflow::DropNewest,
            Overflow::DropOldest,
            Overflow::Block,
        ][dice.below(5) as usize];
        // Producers would wait for ever beside dead letters that fill the limit.
        let waits_for_ever = limit == 1 && dead_letters && overflow == Overflow::Block;
        let overflow = if waits_for_ever { Overflow::DropOldest } else { overflow };
        Self {
            visibility: dice.one_in(2).then(|| 15 + dice.below(45)),
            max_attempts: [0, 2, 5, 20][dice.below(4) as usize],
            backoff: if dice.one_in(3) { 1 + dice.below(8) } else { 0 },
            dead_letters,
            expired: if dice.one_in(2) { Expired::Drop } else { Expired::DeadLetter },
            max_messages: (limit == 0).then(|| 4 + dice.below(30)),
            max_bytes: (limit == 1).then_some(1 << 20),
            overflow,
            max_in_flight: dice.one_in(4).then(|| 2 + dice.below(5)),
            durability: match dice.below(3) {
                0 => Durability::Always,
                1 => Durability::Interval(ms(2)),
                _ => Durability::Os,
            },
            sync_acks: dice.one_in(3),
            background: !dice.one_in(3),
            open_segments: 1 + dice.below(4),
            compaction: match dice.below(4) {
                0 => Compaction::off(),
                1 => Compaction::default(),
                _ => Compaction::default().idle(ms(1)),
            },
            purges: dice.one_in(6),
            expires: dice.one_in(4),
            delays: dice.one_in(3),
            transients: dice.one_in(4),
            longest: if dice.one_in(2) { 20_000 } else { 1_500 },
            is_on_disk: dice.one_in(6),
        }
    }

    pub(crate) fn options(&self) -> Options {
        let backoff = match self.backoff {
            0 => Backoff::none(),
            time => Backoff::exponential(ms(time)).ceiling(ms(4 * time)),
        };
        Queue::options()
            .segment_bytes(65_536)
            .visibility_timeout(self.visibility.map(ms))
            .max_attempts(self.max_attempts)
            .backoff(backoff)
            .dead_letters(self.dead_letters)
            .expired(self.expired)
            .max_messages(self.max_messages)
            .max_bytes(self.max_bytes)
            .overflow(self.overflow)
            .max_in_flight(self.max_in_flight)
            .durability(self.durability)
            .sync_acks(self.sync_acks)
            .ack_sync(ms(2))
            .background(self.background)
            .open_segments(self.open_segments)
            .compaction(self.compaction)
    }

    /// For looking at what is there: no limit, and no other thread.
    pub(crate) fn to_drain(&self) -> Self {
        let (max_messages, max_bytes, max_in_flight) = (None, None, None);
        let (visibility, background) = (None, false);
        Self { visibility, max_messages, max_bytes, max_in_flight, background, ..self.clone() }
    }
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Memory(Arc<MemoryStorage>),
    Disk(PathBuf),
}

impl Place {
    pub(crate) fn open(&self, options: Options) -> keepq::Result<Queue> {
        match self {
            Self::Memory(memory) => options.storage(memory.clone()).open("memory"),
            Self::Disk(path) => options.open(path),
        }
    }

    /// The files, with those of the dead letters.
    pub(crate) fn names(&self) -> Vec<String> {
        let below = |path: &Path, prefix: &str| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.map(|name| format!("{prefix}{name}")).collect()
        };
        let list = |storage: &dyn Storage, prefix: &str| -> Vec<String> {
            let entries = storage.list().unwrap_or_default().into_iter();
            entries.map(|entry| format!("{prefix}{}", entry.name)).collect()
        };
        match self {
            Self::Disk(path) => [below(path, ""), below(&path.join("dead"), "dead/")].concat(),
            Self::Memory(memory) => {
                let dead = memory.directory("dead").unwrap();
                [list(&**memory, ""), list(&*dead, "dead/")].concat()
            }
        }
    }
}
