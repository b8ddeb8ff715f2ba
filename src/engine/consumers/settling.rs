//! Answers, and what settles messages that nobody holds.
//!
//! Promises: many answers are stored in steps, between which other threads have their turn and
//! files are closed: a step maps no more segments than the options allow to be open.

use super::{Answer, Consumers, MESSAGES_A_STEP};
use crate::engine::dispatch::purge::Purge;
use crate::engine::dispatch::{Answerable, Dispatch, LeaseKey, ShortWay, answer_map};
use crate::error::{Error, Result};
use std::slice;

impl Consumers {
    /// Settles a delivery, as [`Self::ack`].
    #[inline]
    pub(crate) fn ack_one(&self, delivery: &LeaseKey, between: impl Fn()) -> Result<()> {
        let deliveries = slice::from_ref(delivery);
        let short = |way: &mut ShortWay<'_>| (way.ack_side_by_side(deliveries) > 0).then_some(());
        if self.context.options.sync_acks || self.dispatch.go_short(short).is_err() {
            return self.ack(deliveries, between);
        }
        between();
        Ok(())
    }

    /// Settles deliveries. With `sync_acks`, returns once that is on the disk. `between`: called
    /// after each step and each sync, to close files.
    #[inline]
    pub(crate) fn ack(&self, deliveries: &[impl Answerable], between: impl Fn()) -> Result<()> {
        self.answer(deliveries, &Answer::Ack, between)
    }

    /// Ends deliveries as their holder says. With `sync_acks`, an ack or a reject returns once it
    /// is on the disk. `between` is that of [`Self::ack`].
    pub(crate) fn answer(
        &self,
        deliveries: &[impl Answerable],
        answer: &Answer,
        between: impl Fn(),
    ) -> Result<()> {
        let (mut first_error, mut left, mut number) = (None, deliveries, 0);
        // The drop of a delivery waits for nobody, and its error is not told.
        let first = if matches!(answer, Answer::Drop) { Room::IsNotThere } else { Room::CanBeMade };
        let (mut room, mut tries) = (first, self.context.unmapping.tries());
        while !left.is_empty() {
            let mut dispatch = self.dispatch.lock();
            let is_ack = matches!(answer, Answer::Ack);
            let mut answered = if is_ack { dispatch.short_way().ack_side_by_side(left) } else { 0 };
            if answered == 0 {
                answered = answer_step(&mut dispatch, left, answer, room, &mut first_error);
            }
            number = dispatch.backlog().changes().newest();
            drop(dispatch);
            left = &left[answered..];
            room = match answered {
                0 if self.dispatch.make_room_for_map(&mut tries) => Room::CanBeMade,
                0 => Room::IsNotThere,
                _ => first,
            };
            if answered > 0 {
                tries.note_progress();
            }
            between();
        }
        match answer {
            Answer::Ack if first_error.is_none() && !self.context.options.sync_acks => Ok(()),
            Answer::Ack | Answer::Reject(_) => {
                let answered = self.end_answers(number, first_error);
                between();
                answered
            }
            Answer::Nack | Answer::Drop | Answer::NackAfter(_) | Answer::Release => {
                first_error.map_or(Ok(()), Err)
            }
        }
    }

    /// With `sync_acks`: returns when change number `number`, and all before it, are on the disk,
    /// also if some answers failed: the others are as durable as any.
    #[cold]
    fn end_answers(&self, number: u64, first_error: Option<Error>) -> Result<()> {
        let is_synced = self.context.options.sync_acks;
        let synced = if is_synced { self.commit.wait_answers(number) } else { Ok(()) };
        first_error.map_or(synced, Err)
    }

    /// Settles all messages that wait, ready or delayed; tells how many there were. `between` is
    /// that of [`Self::ack`].
    pub(crate) fn purge(&self, between: impl Fn()) -> Result<u64> {
        // What is over waits.
        self.end_due();
        let mut purge = Purge::up_to(self.published.visible());
        let mut steps = self.dispatch.steps();
        let mut step = || steps.next(|dispatch| purge.settle_some(dispatch));
        while self.dispatch.with_room(&mut step)? {
            between();
        }
        let number = self.dispatch.lock().backlog().changes().newest();
        self.end_answers(number, None)?;
        Ok(purge.purged())
    }

    /// Returns true if unsynced answers hold too many segments open: more than the limit of open
    /// files, or twice that limit with a background. Then the caller syncs them.
    pub(crate) fn holds_too_many_open(&self) -> bool {
        let factor = if self.context.worker.is_running() { 2 } else { 1 };
        self.dispatch.lock().backlog().holds_too_many(factor)
    }
}

/// What is done for an answer that finds no room for a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// It waits until others have given maps up.
    CanBeMade,
    /// It fails.
    IsNotThere,
}

/// Answers some of these deliveries the long way, and tells how many: none if there is no room for
/// a map that the first of them needs. Ends early if they lie in more segments than may be mapped.
fn answer_step(
    dispatch: &mut Dispatch,
    deliveries: &[impl Answerable],
    answer: &Answer,
    room: Room,
    first_error: &mut Option<Error>,
) -> usize {
    let maps_before = dispatch.backlog().activity().maps_made();
    let mut answered = 0;
    // What the first one settles may make room for the next.
    let most = if room == Room::IsNotThere { 1 } else { MESSAGES_A_STEP };
    for delivery in deliveries.iter().take(most) {
        let LeaseKey { ticket, is_sample } = *delivery.key();
        if room == Room::CanBeMade && answer_map::lacks_room(dispatch, ticket, answer) {
            break;
        }
        if is_sample {
            dispatch.deliveries_mut().measure_mut().answered(ticket, 1);
        }
        if let Err(error) = dispatch.deliveries_mut().answer(ticket, answer) {
            *first_error = first_error.take().or(Some(error));
        }
        answered += 1;
        if dispatch.backlog().activity().has_made_most(maps_before) {
            break;
        }
    }
    answered
}
