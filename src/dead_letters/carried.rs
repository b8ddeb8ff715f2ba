//! The parts of a message that go with it from one queue to another.

use crate::error::{Error, Result};
use crate::format::extension::{self, Notes};
use crate::format::record;
use crate::log::draft::Draft;

/// The message for the other queue: with all that it had except its times and its origin, and with
/// `notes`.
pub(super) fn carried_over<'p>(
    start: &[u8],
    notes: &Notes<'_>,
    payload: &'p [u8],
) -> Result<Draft<'p>> {
    let max = record::MAX_BODY;
    let extensions = extension::carry_over(start, notes);
    let draft = extensions.and_then(|extensions| Draft::new(extensions, payload.into()));
    draft.ok_or(Error::TooLarge { len: max, max })
}
