//! Where a record lies. Each number that is part of an address has a type of its own, so that the
//! compiler notices when one is taken for another.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// The number of a segment file, counted from 1: a larger one is a newer file, and no two files of
/// a queue have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ordinal(pub(crate) u64);

impl Ordinal {
    /// No segment has it.
    pub(crate) const NONE: Self = Self(0);

    /// That of the file that is made next.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// That of the file that was made before; of none, none.
    pub(crate) fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Bytes from the start of a segment file, counted from 0 and up to
/// [`MAX_SEGMENT`](super::slot::MAX_SEGMENT).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Offset(pub(crate) u64);

impl Offset {
    /// Of the first byte. It also stands for a file as a whole, and for a place that is not known.
    pub(crate) const START: Self = Self(0);

    /// How many bytes lie between `before` and here; 0 if that is not before.
    #[inline]
    pub(crate) fn since(self, before: Self) -> u64 {
        self.0.saturating_sub(before.0)
    }

    /// The same; `None` if `before` is behind.
    #[inline]
    pub(crate) fn checked_since(self, before: Self) -> Option<u64> {
        self.0.checked_sub(before.0)
    }
}

impl Add<u64> for Offset {
    type Output = Self;

    #[inline]
    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// How many bytes lie between the two.
impl Sub for Offset {
    type Output = u64;

    #[inline]
    fn sub(self, before: Self) -> u64 {
        self.0 - before.0
    }
}

/// The position of a record among those of its segment, counted from 0 in the order in which they
/// were placed, up to 2^32 - 1. An end index, which is one behind, is how many there are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Index(pub(crate) u32);

impl Index {
    pub(crate) const FIRST: Self = Self(0);
    /// A segment has fewer records.
    pub(crate) const MAX: Self = Self(u32::MAX);

    /// The `number`th behind the first one, or [`Index::MAX`] if a segment cannot have it.
    #[inline]
    pub(crate) fn saturating_from(number: u64) -> Self {
        u32::try_from(number).map_or(Self::MAX, Self)
    }

    /// Of the record behind this one.
    #[inline]
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Of the record before this one, if there is one.
    #[inline]
    pub(crate) fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// How many records lie between `before` and here; 0 if that is not before.
    #[inline]
    pub(crate) fn since(self, before: Self) -> u32 {
        self.0.saturating_sub(before.0)
    }

    /// The same; `None` if `before` is behind.
    #[inline]
    pub(crate) fn checked_since(self, before: Self) -> Option<u32> {
        self.0.checked_sub(before.0)
    }

    /// The index that many records further, or [`Index::MAX`].
    #[inline]
    pub(crate) fn saturating_add(self, records: u32) -> Self {
        Self(self.0.saturating_add(records))
    }

    /// This one and those behind it, up to but without `end`.
    #[inline]
    pub(crate) fn until(self, end: Self) -> impl DoubleEndedIterator<Item = Self> + use<> {
        (self.0..end.0).map(Self)
    }
}

impl Add<u32> for Index {
    type Output = Self;

    #[inline]
    fn add(self, records: u32) -> Self {
        Self(self.0 + records)
    }
}

/// How many records lie between the two.
impl Sub for Index {
    type Output = u32;

    #[inline]
    fn sub(self, before: Self) -> u32 {
        self.0 - before.0
    }
}

impl From<Index> for u64 {
    #[inline]
    fn from(index: Index) -> Self {
        index.0.into()
    }
}
