//! A few bits.

/// Bits of a word.
const WORD: usize = 64;
const WORDS: usize = 4;

/// As many bits as there are, each set or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bits([u64; WORDS]);

impl Bits {
    /// How many there are.
    pub(super) const NUMBER: usize = WORDS * WORD;

    /// The first few are set.
    pub(super) fn first(number: usize) -> Self {
        Self(std::array::from_fn(|at| ones(number.saturating_sub(at * WORD))))
    }

    /// How many are set.
    #[inline]
    pub(super) fn count(&self) -> usize {
        let ones = self.0.iter().map(|word| word.count_ones());
        usize::try_from(ones.sum::<u32>()).unwrap_or(Self::NUMBER)
    }

    #[inline]
    pub(super) fn has(&self, nth: usize) -> bool {
        self.0.get(nth / WORD).is_some_and(|word| word >> (nth % WORD) & 1 == 1)
    }

    /// The first one that is set.
    pub(super) fn first_set(&self) -> Option<usize> {
        (0..Self::NUMBER).find(|&nth| self.has(nth))
    }

    /// How many from this one on are set, without a gap, as far as its word goes.
    #[inline]
    pub(super) fn set_from(&self, nth: usize) -> usize {
        let word = self.0.get(nth / WORD).copied().unwrap_or(0);
        usize::try_from((word >> (nth % WORD)).trailing_ones()).unwrap_or(0)
    }

    /// So many from this one on are not set any more.
    #[inline]
    pub(super) fn clear(&mut self, nth: usize, number: usize) {
        let end = nth.saturating_add(number);
        for (at, word) in self.0.iter_mut().enumerate() {
            let upto = |place: usize| ones(place.saturating_sub(at * WORD));
            *word &= !(upto(end) & !upto(nth));
        }
    }
}

/// A word of which the first few bits are set.
#[inline]
fn ones(number: usize) -> u64 {
    if number < WORD { (1 << number) - 1 } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_are_those_of_a_list(
            number in 0..=Bits::NUMBER,
            cleared in prop::collection::vec((0..Bits::NUMBER, 0..80usize), 0..6),
        ) {
            let (mut bits, mut list) = (Bits::first(number), vec![true; number]);
            list.resize(Bits::NUMBER, false);
            for (nth, number) in cleared {
                bits.clear(nth, number);
                list.iter_mut().skip(nth).take(number).for_each(|bit| *bit = false);
            }
            prop_assert_eq!(bits.count(), list.iter().filter(|bit| **bit).count());
            prop_assert_eq!(bits.first_set(), list.iter().position(|bit| *bit));
            for nth in 0..Bits::NUMBER {
                prop_assert_eq!(bits.has(nth), list[nth]);
                let word = list[nth..].iter().take(WORD - nth % WORD);
                prop_assert_eq!(bits.set_from(nth), word.take_while(|bit| **bit).count());
            }
            prop_assert!(!bits.has(Bits::NUMBER));
        }
    }
}
