//! Where a message stands: what its slot, its delay, its record and the run say together.
//!
//! Pure. Knows every rule of the section "What a slot means" of format.md, and is the only place
//! that does: delivery, walks, counting and compaction all ask here.

use super::record::Flags;
use super::slot::{Delay, Slot, State};
use crate::time::Time;

/// One open of the queue: when it began, and the first number that it gives out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) start_time: Time,
    pub(crate) first_seq: u64,
}

impl Run {
    /// Whether an earlier run pushed this message.
    #[inline]
    pub(crate) fn is_old(self, seq: u64) -> bool {
        seq < self.first_seq
    }
}

/// Where a message stands, as far as the disk says. Messages that this run has handed out stand
/// where the memory of this run says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Settled: never handed out again.
    Settled,
    /// Settled because it was found damaged.
    Lost,
    /// A transient message of an earlier run, which its slot does not say yet: to be settled.
    Outlived,
    /// On its way to the dead letters.
    Dying,
    /// Not to be handed out before this time.
    Scheduled(Time),
    /// To be handed out in push order.
    Ready,
    /// Its slot was never written to this place: it counts as handed out once.
    Unreadable,
}

impl Standing {
    /// Where a message stands, before its record is read.
    #[inline]
    pub(crate) fn of(slot: Option<Slot>, delay: Option<Delay>, is_old: bool, run: Run) -> Self {
        let Some(slot) = slot else { return Self::Unreadable };
        match slot.state {
            State::Lost => Self::Lost,
            State::Dead => Self::Settled,
            State::Transient if is_old => Self::Settled,
            State::Dying => Self::Dying,
            State::Ready | State::Delivered | State::Transient => {
                scheduled_for(delay, is_old, run.start_time).map_or(Self::Ready, Self::Scheduled)
            }
        }
    }

    /// The same, once its record is read.
    #[inline]
    pub(crate) fn with_record(self, flags: Flags, is_old: bool) -> Self {
        match self {
            // One that is dying is to be a dead letter, and no longer transient.
            Self::Ready | Self::Scheduled(_) | Self::Unreadable
                if is_old && flags.is_transient() =>
            {
                Self::Outlived
            }
            standing => standing,
        }
    }

    /// Whether the message will never be handed out again.
    pub(crate) fn is_settled(self) -> bool {
        matches!(self, Self::Settled | Self::Lost)
    }
}

/// The time for which a message that this run has not handed out is scheduled; `None` if it waits
/// in push order. Every delayed message of this run is scheduled. A delayed message of an earlier
/// run is scheduled if it was not due when this run began, and waits no longer than its whole
/// delay, even if the wall clock was set back.
fn scheduled_for(delay: Option<Delay>, is_old: bool, start_time: Time) -> Option<Time> {
    let Delay { due, given } = delay?;
    if !is_old {
        return Some(due);
    }
    let due = due.min(start_time.saturating_add(given));
    (due > start_time).then_some(due)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Millis;
    use proptest::prelude::*;

    const STATES: [State; 6] =
        [State::Ready, State::Delivered, State::Dying, State::Dead, State::Lost, State::Transient];

    /// The table of format.md, section "What a slot means", as a reader of that page would write it
    /// down: state, age, delay, record.
    fn by_the_page(
        state: State,
        is_old: bool,
        delay: Option<Delay>,
        start: Time,
        is_transient: bool,
    ) -> Standing {
        if state == State::Dead {
            return Standing::Settled;
        }
        if state == State::Lost {
            return Standing::Lost;
        }
        if state == State::Dying {
            return Standing::Dying;
        }
        if is_old && state == State::Transient {
            return Standing::Settled;
        }
        if is_old && is_transient {
            return Standing::Outlived;
        }
        match delay {
            None => Standing::Ready,
            Some(delay) if !is_old => Standing::Scheduled(delay.due),
            Some(delay) if delay.due <= start || delay.given == Millis(0) => Standing::Ready,
            Some(delay) if delay.due.since(start) > delay.given => {
                Standing::Scheduled(start + delay.given)
            }
            Some(delay) => Standing::Scheduled(delay.due),
        }
    }

    proptest! {
        #[test]
        fn says_what_the_format_page_says(
            state in 0usize..6,
            is_old: bool,
            is_transient: bool,
            delay in proptest::option::of((0u64..100, 0u64..100)),
            start in 0u64..100,
            attempts in 0u32..4,
        ) {
            let slot = Slot { state: STATES[state], attempts, offset: None };
            let delay = delay.map(|(due, given)| Delay { due: Time(due), given: Millis(given) });
            let start = Time(start);
            let run = Run { start_time: start, first_seq: 10 };
            let flags = Flags::default().transient(is_transient);
            let told = Standing::of(Some(slot), delay, is_old, run).with_record(flags, is_old);
            prop_assert_eq!(told, by_the_page(STATES[state], is_old, delay, start, is_transient));
            prop_assert_eq!(
                Standing::of(Some(slot), delay, is_old, run).is_settled(),
                slot.is_settled(is_old)
            );
        }
    }

    #[test]
    fn a_slot_that_cannot_be_read_is_not_settled() {
        let run = Run { start_time: Time(5), first_seq: 10 };
        let told = Standing::of(None, Some(Delay { due: Time(9), given: Millis(9) }), true, run);
        assert_eq!(told, Standing::Unreadable);
        assert!(!told.is_settled() && run.is_old(9) && !run.is_old(10));
    }
}
