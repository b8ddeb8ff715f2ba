//! A slot: the state of one message, in two words that are each written with one store.

use super::checksum::Key;
use super::{PAGE, record};

/// Bytes of a slot.
pub(crate) const SLOT: u64 = 16;
/// Attempts are counted up to this.
pub(crate) const MAX_ATTEMPTS: u32 = (1 << 15) - 1;
/// The largest segment whose offsets fit.
pub(crate) const MAX_SEGMENT: u64 = OFFSET_MASK * record::ALIGN;

const OFFSET_MASK: u64 = (1 << 29) - 1;
const ATTEMPTS_SHIFT: u32 = 29;
const STATE_SHIFT: u32 = 44;
const CHECK_SHIFT: u32 = 48;
const VALUE_MASK: u64 = (1 << CHECK_SHIFT) - 1;
const _: () = assert!(ATTEMPTS_SHIFT + 15 == STATE_SHIFT && STATE_SHIFT + 4 == CHECK_SHIFT);

/// Where a message stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Never handed out, or given back uncounted.
    Ready,
    /// Handed out; owed again after a crash.
    Delivered,
    /// On its way to the dead letters (not written by this version; owed).
    Dying,
    /// Settled.
    Dead,
    /// Found damaged.
    Lost,
    /// Owed in the epoch that wrote it, settled in any later one.
    Transient,
}

/// The first word of a slot, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) attempts: u32,
    /// Offset of the record, where it is known.
    pub(crate) offset: Option<u64>,
}

impl Slot {
    /// What a slot says that was never written.
    pub(crate) const UNTOUCHED: Self = Self { state: State::Ready, attempts: 0, offset: None };

    pub(crate) fn encode(self, key: Key, index: u32) -> u64 {
        let state: u64 = match self.state {
            State::Ready => 0,
            State::Delivered => 1,
            State::Dying => 2,
            State::Dead => 3,
            State::Lost => 4,
            State::Transient => 5,
        };
        let attempts = u64::from(self.attempts.min(MAX_ATTEMPTS));
        let offset = (self.offset.unwrap_or(0) / record::ALIGN) & OFFSET_MASK;
        let value = offset | attempts << ATTEMPTS_SHIFT | state << STATE_SHIFT;
        if value == 0 { 0 } else { value | key.slot_check(u64::from(index), value) }
    }

    /// `None` if the word is not one that was written to this slot.
    pub(crate) fn decode(word: u64, key: Key, index: u32) -> Option<Self> {
        if word == 0 {
            return Some(Self::UNTOUCHED);
        }
        let value = word & VALUE_MASK;
        if key.slot_check(u64::from(index), value) != word & !VALUE_MASK {
            return None;
        }
        let state = match value >> STATE_SHIFT {
            0 => State::Ready,
            1 => State::Delivered,
            2 => State::Dying,
            3 => State::Dead,
            4 => State::Lost,
            5 => State::Transient,
            _ => return None,
        };
        let attempts = u32::try_from(value >> ATTEMPTS_SHIFT & u64::from(MAX_ATTEMPTS)).ok()?;
        let offset = (value & OFFSET_MASK) * record::ALIGN;
        Some(Self { state, attempts, offset: (offset != 0).then_some(offset) })
    }

    /// Whether nothing is owed for it, seen from the run that wrote it or from a later one.
    pub(crate) fn is_settled(self, later_run: bool) -> bool {
        match self.state {
            State::Ready | State::Delivered | State::Dying => false,
            State::Dead | State::Lost => true,
            State::Transient => later_run,
        }
    }
}

/// Offset of the slot with this index in a segment of this size.
pub(crate) fn offset(segment_size: u64, index: u32) -> u64 {
    (segment_size - PAGE).saturating_sub(SLOT * (u64::from(index) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [State; 6] =
        [State::Ready, State::Delivered, State::Dying, State::Dead, State::Lost, State::Transient];

    proptest! {
        #[test]
        fn comes_back(state in 0usize..6, attempts in 0..=MAX_ATTEMPTS, offset in 1..=OFFSET_MASK, index: u32) {
            let key = Key::new(&[3; 48]);
            let slot = Slot { state: STATES[state], attempts, offset: Some(offset * record::ALIGN) };
            let word = slot.encode(key, index);
            prop_assert_eq!(Slot::decode(word, key, index), Some(slot));
            for bit in 0..64 {
                prop_assert_ne!(Slot::decode(word ^ 1 << bit, key, index), Some(slot));
            }
        }
    }

    #[test]
    fn zero_is_ready_and_attempts_saturate() {
        let key = Key::new(&[3; 48]);
        assert_eq!(Slot::decode(0, key, 5), Some(Slot::UNTOUCHED));
        assert_eq!(Slot::UNTOUCHED.encode(key, 5), 0);
        let many = Slot { state: State::Delivered, attempts: u32::MAX, offset: Some(4096) };
        let told = Slot::decode(many.encode(key, 5), key, 5).map(|slot| slot.attempts);
        assert_eq!(told, Some(MAX_ATTEMPTS));
        assert_eq!(offset(1 << 20, 0), (1 << 20) - 4096 - 16);
    }
}
