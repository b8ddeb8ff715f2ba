//! What the files have in common that pushes need: names, numbers, preparation, maps.

use super::supply::{Prepared, Supply};
use crate::engine::context::Context;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::format::limits::NUMBER_END;
use crate::format::name;
use crate::io::Access;
use crate::log::unnamed::{Preparation, Unnamed};
use crate::options::Durability;
use std::sync::Arc;

/// The names that a segment has while it is made, and then.
pub(super) fn new_names(ordinal: Ordinal) -> [String; 2] {
    [name::temporary(ordinal), name::segment(ordinal)]
}

/// Gives a segment its name, and maps it. If that fails, the caller removes what is left.
pub(super) fn name_and_map(
    context: &Context,
    supply: &mut Supply,
    unnamed: Unnamed,
) -> Result<Prepared> {
    let durability = context.options.durability;
    let segment = Arc::new(unnamed.finish(&*context.storage, &context.health)?);
    let region = segment.map(access(durability))?;
    let prepared = Prepared { segment, region };
    supply.warming = is_warmed(durability).then(|| (prepared.clone(), 0));
    Ok(prepared)
}

/// How it is mapped.
pub(super) fn access(durability: Durability) -> Access {
    match durability {
        Durability::Os => Access::Streams,
        Durability::Always | Durability::Interval(_) => Access::Commits,
    }
}

/// How a segment is prepared so that stores and writes to it are fast. `docs/design.md`, "Segments
/// that are made ahead", says why the pieces are as large as that.
pub(super) fn preparation(durability: Durability) -> Preparation {
    match durability {
        // Stored to through a map, from start to end.
        Durability::Os => Preparation { piece: 256 << 10, is_synced: false },
        // The same, and written back all the time; or written.
        Durability::Interval(_) | Durability::Always => {
            Preparation { piece: 64 << 10, is_synced: true }
        }
    }
}

/// The ordinal of a new file.
///
/// # Errors
///
/// [`Error::Corrupt`] if no segment can have it.
pub(super) fn take_ordinal(supply: &mut Supply, context: &Context) -> Result<Ordinal> {
    let ordinal = supply.next_ordinal;
    if ordinal.0 >= NUMBER_END {
        return Err(numbers_used_up(context));
    }
    supply.next_ordinal = ordinal.next();
    Ok(ordinal)
}

/// No queue gets there by itself: something in the directory has such a number.
pub(super) fn numbers_used_up(context: &Context) -> Error {
    let (operation, path) = ("prepare segment", context.directory());
    let reason = "a file in it has a number so large that the format has none behind it, so \
                  nothing more can be pushed here; move the messages to a new queue";
    Error::Corrupt { operation, path, offset: 0, reason }
}

/// Whether its pages are made resident. Where they are synced that is not worth it: each sync
/// protects them again, and what is made resident so counts as changed, and would be written.
fn is_warmed(durability: Durability) -> bool {
    durability == Durability::Os
}
