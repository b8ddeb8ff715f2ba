#![doc = include_str!("../docs/format.md")]
//!
//! This module knows bytes only: no I/O, no locks, no clock. What it decodes it has checked.

pub(crate) mod address;
pub(crate) mod bytes;
pub(crate) mod checkpoint;
pub(crate) mod checksum;
pub(crate) mod extension;
pub(crate) mod limits;
pub(crate) mod name;
pub(crate) mod number;
pub(crate) mod ordinals;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod slot;
pub(crate) mod standing;

/// The version that this crate writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Size of the header page at either end of a segment.
pub(crate) const PAGE: u64 = 4096;
/// What a disk writes whole or not at all.
pub(crate) const SECTOR: u64 = 512;
