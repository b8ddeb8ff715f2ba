//! A set of numbers, kept as ranges.

use serde::{Deserialize, Serialize};

/// No more ranges than this are kept: beyond it, the oldest two become one that spans both.
const KEPT: usize = 1000;

/// A set of numbers as ranges, both ends included, in order; no two touch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
        let touches = |&(start, end): &(u64, u64)| {
            start <= last.saturating_add(1) && first <= end.saturating_add(1)
        };
        let from = self.0.iter().position(touches);
        let from = from.unwrap_or_else(|| self.0.partition_point(|&(start, _)| start < first));
        let joined = self.0.iter().skip(from).take_while(|range| touches(range)).count();
        let old = self.0.get(from..from + joined).unwrap_or_default();
        let first = old.first().map_or(first, |&(start, _)| first.min(start));
        let last = old.last().map_or(last, |&(_, end)| last.max(end));
        self.0.splice(from..from + joined, [(first, last)]);
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
        let old = std::mem::take(&mut self.0);
        for (start, end) in old {
            // What is left of this range on either side.
            let before = first.checked_sub(1).map(|below| (start, end.min(below)));
            let behind = last.checked_add(1).map(|above| (start.max(above), end));
            let parts = [before, behind].into_iter().flatten();
            self.0.extend(parts.filter(|(start, end)| start <= end));
        }
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|&(_, end)| end < number);
        self.0.get(at).is_some_and(|&(start, _)| start <= number)
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
    }
}
