//! A set of numbers, kept as ranges.

use serde::{Deserialize, Serialize};

/// No more ranges than this are kept: beyond it, the oldest two become one that spans both.
const KEPT: usize = 1000;

/// A set of numbers as ranges, both ends included: in order, apart from each other.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
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

    /// Takes all numbers from `end` on out.
    pub(crate) fn cut(&mut self, end: u64) {
        self.0.retain(|&(start, _)| start < end);
        if let Some((_, last)) = self.0.last_mut() {
            *last = (*last).min(end.saturating_sub(1));
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
