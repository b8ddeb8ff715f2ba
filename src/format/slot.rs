//! A slot: the state of one message, and the time before which it must not be handed out. It is two
//! words, each written with one store.

use super::address::{Index, Offset};
use super::checksum::Key;
use super::{PAGE, record};
use crate::time::{Millis, Time};

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
    /// Never handed out, or given back without counting the attempt.
    Ready,
    /// Handed out; after a crash it is handed out again.
    Delivered,
    /// On its way to the dead letters; not settled.
    Dying,
    /// Settled.
    Dead,
    /// Found damaged.
    Lost,
    /// Unsettled in the epoch that wrote it, settled in any later one.
    Transient,
}

/// The first word of a slot, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) attempts: u32,
    /// Offset of the record, if it is known.
    pub(crate) offset: Option<Offset>,
}

impl Slot {
    /// The meaning of a slot that was never written.
    pub(crate) const UNTOUCHED: Self = Self { state: State::Ready, attempts: 0, offset: None };

    #[inline]
    pub(crate) fn encode(self, key: Key, index: Index) -> u64 {
        let state: u64 = match self.state {
            State::Ready => 0,
            State::Delivered => 1,
            State::Dying => 2,
            State::Dead => 3,
            State::Lost => 4,
            State::Transient => 5,
        };
        let attempts = u64::from(self.attempts.min(MAX_ATTEMPTS));
        let offset = self.offset.map_or(0, |offset| offset.0 / record::ALIGN) & OFFSET_MASK;
        let value = offset | attempts << ATTEMPTS_SHIFT | state << STATE_SHIFT;
        if value == 0 { 0 } else { value | key.slot_check(u64::from(index), value) }
    }

    /// `None` if the word is not one that was written to this slot.
    pub(crate) fn decode(word: u64, key: Key, index: Index) -> Option<Self> {
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
        Some(Self { state, attempts, offset: (offset != 0).then_some(Offset(offset)) })
    }

    /// Whether its message is settled, seen from the run that wrote it or from a later one.
    pub(crate) fn is_settled(self, later_run: bool) -> bool {
        match self.state {
            State::Ready | State::Delivered | State::Dying => false,
            State::Dead | State::Lost => true,
            State::Transient => later_run,
        }
    }
}

/// The second word of a slot, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Delay {
    /// The message is not handed out before this time.
    pub(crate) due: Time,
    /// How long the delay was when it was given; decoding may make it longer by a 128th.
    pub(crate) given: Millis,
}

const DUE_MASK: u64 = (1 << 41) - 1;
const GIVEN_SHIFT: u32 = 41;
const GIVEN_MASK: u64 = (1 << 12) - 1;
const DELAY_MASK: u64 = (1 << 53) - 1;
const _: () = assert!(DUE_MASK | GIVEN_MASK << GIVEN_SHIFT == DELAY_MASK);
/// The longest delay that a slot can hold: 255 * 2^30 ms, more than 8 years.
pub(crate) const MAX_DELAY: Millis = Millis(255 << 30);

impl Delay {
    /// One that was over before the run that began at `start_time`, or is since then: in that run
    /// its message is not at the cursor, and no later run waits for it.
    pub(crate) fn over(start_time: Time) -> Self {
        Self { due: start_time + Millis(1), given: Millis(1) }
    }

    fn value(self, base_time: Time) -> u64 {
        let due = self.due.since(base_time).0.min(DUE_MASK);
        // Never 0, or else a delay that ends at the base time would look like none.
        let given = encode_given(self.given.clamp(Millis(1), MAX_DELAY));
        due | given << GIVEN_SHIFT
    }
}

/// What the second word of a slot says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StoredDelay {
    None,
    Until(Delay),
    /// It is not a word that was written to this slot.
    Unreadable,
}

impl StoredDelay {
    /// `base_time`: of the segment. What is unreadable stays so.
    pub(crate) fn encode(self, base_time: Time, key: Key, index: Index) -> u64 {
        let (value, spoiled) = match self {
            Self::None => return 0,
            Self::Until(delay) => (delay.value(base_time), 0),
            Self::Unreadable => (1, !DELAY_MASK),
        };
        value | delay_check(value, key, index) ^ spoiled
    }

    #[inline]
    pub(crate) fn decode(word: u64, base_time: Time, key: Key, index: Index) -> Self {
        if word == 0 {
            return Self::None;
        }
        let value = word & DELAY_MASK;
        if delay_check(value, key, index) != word & !DELAY_MASK {
            return Self::Unreadable;
        }
        let given = decode_given(value >> GIVEN_SHIFT);
        Self::Until(Delay { due: base_time + Millis(value & DUE_MASK), given })
    }

    /// The delay, if there is one that can be read.
    #[inline]
    pub(crate) fn readable(self) -> Option<Delay> {
        match self {
            Self::Until(delay) => Some(delay),
            Self::None | Self::Unreadable => None,
        }
    }
}

fn delay_check(value: u64, key: Key, index: Index) -> u64 {
    key.slot_check(DELAY_PLACE | u64::from(index), value) & !DELAY_MASK
}

/// Keeps the check of the second word apart from that of the first.
const DELAY_PLACE: u64 = 1 << 32;

/// 5 bits of exponent and 7 of fraction, rounded up: exact below 256.
fn encode_given(Millis(millis): Millis) -> u64 {
    let exponent = u64::BITS.saturating_sub(millis.leading_zeros()).saturating_sub(8);
    let rounded = millis.div_ceil(1 << exponent);
    // Rounding up may take one bit more.
    let (rounded, exponent) = if rounded > 255 { (128, exponent + 1) } else { (rounded, exponent) };
    if rounded < 128 { rounded } else { (u64::from(exponent) + 1) << 7 | (rounded - 128) }
}

fn decode_given(encoded: u64) -> Millis {
    Millis(match encoded >> 7 {
        0 => encoded,
        exponent => (128 + (encoded & 127)) << (exponent - 1),
    })
}

/// Returns true if `one` is later than `other`, where a crash left two versions of a message's
/// state. Settled is later than dying, and dying is later than any other state; then more attempts
/// decide, then the later time.
pub(crate) fn is_later(one: (Slot, Option<Delay>), other: (Slot, Option<Delay>)) -> bool {
    let rank = |(slot, delay): (Slot, Option<Delay>)| {
        let state = match slot.state {
            State::Dead | State::Lost => 2,
            State::Dying => 1,
            State::Ready | State::Delivered | State::Transient => 0,
        };
        (state, slot.attempts, delay.map_or(Time::ZERO, |delay| delay.due))
    };
    rank(one) > rank(other)
}

/// Offset of the slot with this index in a segment of this size.
pub(crate) fn offset(segment_size: u64, index: Index) -> Offset {
    Offset((segment_size - PAGE).saturating_sub(SLOT * (u64::from(index) + 1)))
}

/// Offset of the second word of that slot.
pub(crate) fn delay_offset(segment_size: u64, index: Index) -> Offset {
    offset(segment_size, index) + SLOT / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INDEX: Index = Index(5);
    const STATES: [State; 6] =
        [State::Ready, State::Delivered, State::Dying, State::Dead, State::Lost, State::Transient];

    proptest! {
        #[test]
        fn comes_back(
            state in 0usize..6,
            attempts in 0..=MAX_ATTEMPTS,
            offset in 1..=OFFSET_MASK,
            index: u32,
        ) {
            let (key, index) = (Key::new(&[3; 48]), Index(index));
            let offset = Some(Offset(offset * record::ALIGN));
            let slot = Slot { state: STATES[state], attempts, offset };
            let word = slot.encode(key, index);
            prop_assert_eq!(Slot::decode(word, key, index), Some(slot));
            for bit in 0..64 {
                prop_assert_ne!(Slot::decode(word ^ 1 << bit, key, index), Some(slot));
            }
        }
    }

    proptest! {
        #[test]
        fn a_delay_comes_back(
            base in 0u64..1 << 50,
            after in 0..=DUE_MASK,
            given in 1..=MAX_DELAY.0,
            index: u32,
        ) {
            let (key, index) = (Key::new(&[3; 48]), Index(index));
            let base = Time(base);
            let delay = Delay { due: base + Millis(after), given: Millis(given) };
            let word = StoredDelay::Until(delay).encode(base, key, index);
            let read = |word, key| StoredDelay::decode(word, base, key, index);
            let told = read(word, key).readable().unwrap();
            prop_assert_eq!(told.due, delay.due);
            let longest = given + given / 128 + 1;
            prop_assert!((given..=longest).contains(&told.given.0), "{} {:?}", given, told);
            prop_assert!(given >= 256 || told.given == delay.given);
            // The check has 11 bits: one in 2,048 other keys takes it for its own.
            let takes = |key: &u8| read(word, Key::new(&[*key; 48])).readable().is_some();
            prop_assert!((4..44).filter(takes).count() < 4);
            for bit in 0..64 {
                prop_assert_ne!(read(word ^ 1 << bit, key), StoredDelay::Until(told));
            }
            // What could not be read can not be read anywhere it is copied to.
            let unreadable = StoredDelay::Unreadable.encode(base, key, index);
            prop_assert_eq!(read(unreadable, key), StoredDelay::Unreadable);
        }
    }

    #[test]
    fn no_delay_is_zero_and_none_is_shorter_than_given() {
        let key = Key::new(&[3; 48]);
        assert_eq!(StoredDelay::decode(0, Time(7), key, INDEX), StoredDelay::None);
        let delay = StoredDelay::Until(Delay { due: Time(7), given: Millis(0) });
        assert_ne!(delay.encode(Time(7), key, INDEX), 0);
        for given in (1..4096).chain((0..8000).map(|n| MAX_DELAY.0 - n * 33_333_333)) {
            let Millis(told) = decode_given(encode_given(Millis(given)));
            assert!((given..=given + given / 128 + 1).contains(&told), "{given} {told}");
        }
        assert_eq!(decode_given(encode_given(MAX_DELAY)), MAX_DELAY);
    }

    #[test]
    fn zero_is_ready_and_attempts_saturate() {
        let key = Key::new(&[3; 48]);
        assert_eq!(Slot::decode(0, key, INDEX), Some(Slot::UNTOUCHED));
        assert_eq!(Slot::UNTOUCHED.encode(key, INDEX), 0);
        let many = Slot { state: State::Delivered, attempts: u32::MAX, offset: Some(Offset(4096)) };
        let told = Slot::decode(many.encode(key, INDEX), key, INDEX).map(|slot| slot.attempts);
        assert_eq!(told, Some(MAX_ATTEMPTS));
        assert_eq!(offset(1 << 20, Index::FIRST), Offset((1 << 20) - 4096 - 16));
    }
}
