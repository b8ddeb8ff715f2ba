//! A set of numbers, kept as ranges.

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// No more ranges than this are kept: beyond it, the oldest two become one that spans both.
const KEPT: usize = 1000;

/// A set of numbers as ranges, both ends included, in order; no two touch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts `first..=last` in, if that holds anything.
    pub(crate) fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // Those that touch it lie side by side.
        let from = self.0.partition_point(|&(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|&(start, _)| start <= last.saturating_add(1));
        let old = self.0.get(from..to).unwrap_or_default();
        let first = old.first().map_or(first, |&(start, _)| first.min(start));
        let last = old.last().map_or(last, |&(_, end)| last.max(end));
        self.0.splice(from..to, [(first, last)]);
        self.shorten();
    }

    /// Keeps no more ranges than are kept.
    fn shorten(&mut self) {
        if self.0.len() > KEPT {
            let (_, end) = self.0.remove(1);
            self.0[0].1 = end;
        }
    }

    /// Takes out all numbers from `end` on.
    pub(crate) fn cut(&mut self, end: u64) {
        self.remove(end, u64::MAX);
    }

    /// Takes out `first..=last`, if that holds anything.
    pub(crate) fn remove(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let from = self.0.partition_point(|&(_, end)| end < first);
        let to = self.0.partition_point(|&(start, _)| start <= last);
        let old = self.0.get(from..to).unwrap_or_default();
        // What is left of the first and the last one.
        let before = old.first().filter(|&&(start, _)| start < first);
        let before = before.map(|&(start, _)| (start, first - 1));
        let behind = old.last().filter(|&&(_, end)| end > last);
        let behind = behind.map(|&(_, end)| (last + 1, end));
        self.0.splice(from..to, before.into_iter().chain(behind));
        self.shorten();
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|&(_, end)| end < number);
        self.0.get(at).is_some_and(|&(start, _)| start <= number)
    }

    /// Each range, with both ends, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// The largest number in it.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|&(_, end)| end)
    }
}

/// However long the list says that it is, it takes no more memory than the ranges that are kept.
/// They have to be in order, and without 0, which is no number: a list made of holes has many.
impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RangesVisitor)
    }
}

struct RangesVisitor;

impl<'de> Visitor<'de> for RangesVisitor {
    type Value = Ranges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ranges of numbers, in order")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ranges, A::Error> {
        let (mut ranges, mut before) = (Ranges::default(), 0);
        while let Some((first, last)) = list.next_element::<(u64, u64)>()? {
            if first <= before || last < first {
                return Err(A::Error::custom("the ranges are not in order"));
            }
            ranges.insert(first, last);
            before = last;
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(inserted in prop::collection::vec((1u64..60, 0u64..6), 0..20)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (first, len) in inserted {
                ranges.insert(first, first + len);
                set.extend(first..=first + len);
                prop_assert!(ranges.0.is_sorted_by(|a, b| a.1 + 1 < b.0), "{ranges:?}");
                (0..70).for_each(|n| assert_eq!(ranges.contains(n), set.contains(&n), "{n}"));
                let mut cut = ranges.clone();
                cut.cut(first);
                let is_in = |n| set.contains(&n) && n < first;
                (0..70).for_each(|n| assert_eq!(cut.contains(n), is_in(n), "{n} below {first}"));
                let mut less = ranges.clone();
                less.remove(first + 1, first + 3);
                let is_in = |n| set.contains(&n) && !(first + 1..=first + 3).contains(&n);
                (0..70).for_each(|n| assert_eq!(less.contains(n), is_in(n), "{n} without {first}"));
                prop_assert!(less.0.is_sorted_by(|a, b| a.1 + 1 < b.0), "{less:?}");
            }
        }
    }

    #[test]
    fn is_bounded_and_then_holds_more_than_it_was_given() {
        let mut ranges = Ranges::default();
        ranges.insert(9, 8);
        assert_eq!(ranges, Ranges::default());
        (0..2000).for_each(|n| ranges.insert(10 * n, 10 * n + 3));
        assert_eq!(ranges.0.len(), KEPT);
        (0..2000).for_each(|n| assert!(ranges.contains(10 * n + 3)));
        assert!(ranges.contains(5) && !ranges.contains(19_995));
        ranges.insert(u64::MAX - 1, u64::MAX);
        assert!(ranges.contains(u64::MAX));
        (0..500).for_each(|n| ranges.remove(12_001 + 10 * n, 12_001 + 10 * n));
        assert_eq!((ranges.0.len(), ranges.last()), (KEPT, Some(u64::MAX)));
    }

    /// A list that says that it has 2^32 ranges and has none, one of zeros, one that falls.
    #[test]
    fn a_list_takes_no_more_memory_than_what_is_kept() {
        let read = |bytes: &[u8]| postcard::from_bytes::<Ranges>(bytes);
        assert!(read(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).is_err());
        assert!(read(&[2, 0, 0, 0, 0]).is_err() && read(&[2, 5, 6, 6, 7]).is_err());
        assert!(read(&[1, 5, 4]).is_err());
        let many: Vec<(u64, u64)> = (1..3000).map(|n| (10 * n, 10 * n + 3)).collect();
        let many: Ranges = read(&postcard::to_stdvec(&many).unwrap()).unwrap();
        assert_eq!((many.0.len(), many.last()), (KEPT, Some(29_993)));
        assert_eq!(read(&postcard::to_stdvec(&many).unwrap()), Ok(many));
    }
}
