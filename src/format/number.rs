//! The Seq table of a compacted segment: one word for each record, in order.
//!
//! The low 48 bits are the difference between the record's Seq and that of the first record, plus
//! one; the high 16 bits are a check. In a segment that is not compacted, the Seq follows from the
//! index.

use super::address::{Index, Offset};
use super::checksum::Key;

/// Bytes of an entry.
pub(crate) const NUMBER: u64 = 8;
/// Seqs that are further apart do not fit into one segment.
pub(crate) const MAX_SPAN: u64 = (1 << 48) - 2;

const VALUE_MASK: u64 = (1 << 48) - 1;
/// Keeps the check apart from those of slots.
const PLACE: u64 = 1 << 33;

/// The entry of record `index`, whose Seq is that of the first record plus `after_first`.
pub(crate) fn encode(after_first: u64, key: Key, index: Index) -> u64 {
    let value = (after_first + 1) & VALUE_MASK;
    value | key.slot_check(PLACE | u64::from(index), value)
}

/// The difference between the Seq of record `index` and that of the first record; `None` if the
/// word was not written to this place.
pub(crate) fn decode(word: u64, key: Key, index: Index) -> Option<u64> {
    let value = word & VALUE_MASK;
    let is_valid = key.slot_check(PLACE | u64::from(index), value) == word & !VALUE_MASK;
    value.checked_sub(1).filter(|_| is_valid)
}

/// Where the entry of record `index` lies in a segment whose table starts at `table`.
pub(crate) fn offset(table: Offset, index: Index) -> Offset {
    table + NUMBER * u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn comes_back(after in 0..=MAX_SPAN, index: u32) {
            let (key, index) = (Key::new(&[3; 48]), Index(index));
            let word = encode(after, key, index);
            prop_assert_eq!(decode(word, key, index), Some(after));
            prop_assert_eq!(decode(0, key, index), None);
            for bit in 0..64 {
                prop_assert_ne!(decode(word ^ 1 << bit, key, index), Some(after));
            }
        }
    }
}
