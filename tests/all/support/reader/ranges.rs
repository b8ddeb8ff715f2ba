//! Sets of numbers, as ranges with both ends included.

use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(crate) fn add(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        let near: Vec<u64> = self
            .0
            .range(..=last.saturating_add(1))
            .filter(|(_, end)| end.saturating_add(1) >= first)
            .map(|(&start, _)| start)
            .collect();
        for start in near {
            let end = self.0.remove(&start).unwrap_or(start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.0.insert(first, last);
    }

    pub(crate) fn remove(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let near: Vec<(u64, u64)> =
            self.0.range(..=last).map(|(&start, &end)| (start, end)).collect();
        for (start, end) in near.into_iter().filter(|&(_, end)| end >= first) {
            self.0.remove(&start);
            if start < first {
                self.0.insert(start, first - 1);
            }
            if end > last {
                self.0.insert(last + 1, end);
            }
        }
    }

    pub(crate) fn has(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, &last)| number <= last)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(&first, &last)| (first, last))
    }
}
