//! A set of ordinals.

use super::address::Ordinal;
use super::limits::is_number;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
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
}
