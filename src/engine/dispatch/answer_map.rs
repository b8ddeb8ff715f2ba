//! The map that an answer needs.
//!
//! An answer that fails ends its lease all the same. So the map is made first, and while there is
//! no room for it, nothing has changed.

use super::{Answer, Dispatch};
use crate::error::Result;
use crate::leases::{Place, Ticket};

/// Whether there is no room for the map that this answer needs; if there is, it is mapped now.
pub(crate) fn lacks_room(dispatch: &Dispatch, ticket: Ticket, answer: &Answer) -> bool {
    let ledger = dispatch.ledger();
    let Some((place, _)) = ledger.places().leases().place(ticket) else { return false };
    let may_store_nothing = matches!(answer, Answer::Nack | Answer::Drop);
    let stores = !may_store_nothing || ledger.policy().stores_failure(place.attempts);
    stores && map(dispatch, place).is_err_and(|error| error.lacks_room_for_map())
}

fn map(dispatch: &Dispatch, place: Place) -> Result<()> {
    let Some((spot, _)) = dispatch.backlog().find_place(place)? else { return Ok(()) };
    dispatch.backlog().track_at(spot.at).map().map(|_| ())
}
