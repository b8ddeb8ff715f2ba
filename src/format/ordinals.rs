//! Sets of ordinals.

use super::address::Ordinal;
use super::limits::is_number;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Ordinals, in rising order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Ordinals(Vec<Ordinal>);

impl Ordinals {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, ordinal: Ordinal) -> bool {
        self.0.binary_search(&ordinal).is_ok()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Ordinal> {
        self.0.iter().copied()
    }

    pub(crate) fn last(&self) -> Option<Ordinal> {
        self.0.last().copied()
    }
}

impl FromIterator<Ordinal> for Ordinals {
    fn from_iter<I: IntoIterator<Item = Ordinal>>(ordinals: I) -> Self {
        let mut all: Vec<Ordinal> = ordinals.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }
}

/// They have to rise, and each has to be one: so a list that is made of holes takes no memory.
impl<'de> Deserialize<'de> for Ordinals {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OrdinalsVisitor)
    }
}

struct OrdinalsVisitor;

impl<'de> Visitor<'de> for OrdinalsVisitor {
    type Value = Ordinals;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ordinals, in order")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ordinals, A::Error> {
        let mut ordinals = Vec::new();
        while let Some(ordinal) = list.next_element::<Ordinal>()? {
            if !is_number(ordinal.0) || ordinals.last().is_some_and(|&before| before >= ordinal) {
                return Err(A::Error::custom("the ordinals are not in order"));
            }
            ordinals.push(ordinal);
        }
        Ok(Ordinals(ordinals))
    }
}

/// This many ranges are kept; of more, the newest ones.
const KEPT: usize = 1000;

/// Ordinals as ranges, each the first and the last one, in rising order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct OrdinalRanges(Vec<(Ordinal, Ordinal)>);

impl OrdinalRanges {
    pub(crate) fn contains(&self, ordinal: Ordinal) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < ordinal);
        self.0.get(at).is_some_and(|&(first, _)| first <= ordinal)
    }

    pub(crate) fn last(&self) -> Option<Ordinal> {
        self.0.last().map(|&(_, last)| last)
    }

    /// These and more of them, but for those in `here`.
    pub(crate) fn with_all_but(
        &self,
        more: impl Iterator<Item = (Ordinal, Ordinal)>,
        here: &BTreeSet<Ordinal>,
    ) -> Self {
        let mut all: Vec<(Ordinal, Ordinal)> = self.0.iter().copied().chain(more).collect();
        all.sort_unstable();
        let (mut others, mut next) = (Self::default(), Ordinal::NONE);
        for (first, last) in all {
            next = next.max(first);
            if next > last {
                continue;
            }
            for &ordinal in here.range(next..=last) {
                if next < ordinal {
                    others.push(next, ordinal.before());
                }
                next = ordinal.next();
            }
            if next <= last {
                others.push(next, last);
                next = last.next();
            }
        }
        others.shorten(KEPT);
        others
    }

    fn push(&mut self, first: Ordinal, last: Ordinal) {
        self.0.push((first, last));
        self.shorten(2 * KEPT);
    }

    fn shorten(&mut self, most: usize) {
        if self.0.len() > most {
            self.0.drain(..self.0.len() - KEPT);
        }
    }
}

/// They have to rise, and each has to be one. However many there are, no more than a few are kept.
impl<'de> Deserialize<'de> for OrdinalRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OrdinalRangesVisitor)
    }
}

struct OrdinalRangesVisitor;

impl<'de> Visitor<'de> for OrdinalRangesVisitor {
    type Value = OrdinalRanges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ranges of ordinals, in order")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OrdinalRanges, A::Error> {
        let (mut ranges, mut before) = (OrdinalRanges::default(), Ordinal::NONE);
        while let Some((first, last)) = list.next_element::<(Ordinal, Ordinal)>()? {
            if first <= before || last < first || !is_number(last.0) {
                return Err(A::Error::custom("the ordinals are not in order"));
            }
            ranges.push(first, last);
            before = last;
        }
        ranges.shorten(KEPT);
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::limits::NUMBER_END;

    fn decoded(list: &[u64]) -> Option<Ordinals> {
        postcard::from_bytes(&postcard::to_stdvec(list).unwrap()).ok()
    }

    #[test]
    fn only_what_rises_is_decoded() {
        let ordinals: Ordinals = [Ordinal(7), Ordinal(2), Ordinal(7)].into_iter().collect();
        assert_eq!(decoded(&[2, 7]), Some(ordinals.clone()));
        assert_eq!(postcard::to_stdvec(&ordinals).unwrap(), [2, 2, 7]);
        assert!(ordinals.contains(Ordinal(2)) && !ordinals.contains(Ordinal(3)));
        assert_eq!(decoded(&[]), Some(Ordinals::default()));
        assert_eq!(
            decoded(&[NUMBER_END - 1]),
            Some([Ordinal(NUMBER_END - 1)].into_iter().collect())
        );
        for list in [&[7, 2][..], &[2, 2], &[0], &[0, 0], &[NUMBER_END]] {
            assert_eq!(decoded(list), None, "{list:?}");
        }
    }

    #[test]
    fn ranges_are_what_is_not_here() {
        let set = |ordinals: &[u64]| ordinals.iter().copied().map(Ordinal).collect();
        let range = |first, last| (Ordinal(first), Ordinal(last));
        let none = OrdinalRanges::default();
        let with = |ranges: &OrdinalRanges, more: &[(u64, u64)], here: &[u64]| {
            let more = more.iter().map(|&(first, last)| range(first, last));
            ranges.with_all_but(more, &set(here))
        };
        let all = with(&none, &[(1, 9)], &[1, 4, 5, 9, 12]);
        assert_eq!(all.0, [range(2, 3), range(6, 8)]);
        assert!(all.contains(Ordinal(2)) && !all.contains(Ordinal(4)) && !all.contains(Ordinal(9)));
        let fewer = with(&all, &[(10, 11)], &[3, 7]);
        assert_eq!(fewer.0, [range(2, 2), range(6, 6), range(8, 8), range(10, 11)]);
        assert_eq!(fewer.last(), Some(Ordinal(11)));
        assert_eq!(
            with(&all, &[(1, 4), (7, 12)], &[4, 9]).0,
            [range(1, 3), range(6, 8), range(10, 12)]
        );
        let even: Vec<u64> = (1..5000).map(|n| 2 * n).collect();
        let many = with(&none, &[(1, 9998)], &even);
        assert_eq!((many.0.len(), many.last()), (KEPT, Some(Ordinal(9997))));
        let decoded = |list: &[(u64, u64)]| {
            postcard::from_bytes::<OrdinalRanges>(&postcard::to_stdvec(list).unwrap()).ok()
        };
        assert_eq!(decoded(&[(2, 3), (6, 8)]), Some(all));
        for list in [&[(0, 1)][..], &[(2, 1)], &[(1, 2), (2, 3)], &[(1, NUMBER_END)]] {
            assert_eq!(decoded(list), None, "{list:?}");
        }
        let bytes = postcard::to_stdvec(&(1_u64..5000).map(|n| (2 * n, 2 * n)).collect::<Vec<_>>());
        let read: OrdinalRanges = postcard::from_bytes(&bytes.unwrap()).unwrap();
        assert_eq!((read.0.len(), read.last()), (KEPT, Some(Ordinal(9998))));
    }
}
