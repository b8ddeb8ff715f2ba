//! A message that is handed out: all that a consumer needs of it, copied.

use super::exchange::LeaseKey;
use crate::format::record::RecordHeader;
use crate::time::Time;
use std::ops::Deref;
use std::sync::Arc;

/// A message that is handed out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) key: LeaseKey,
    pub(crate) attempts: u32,
    /// In UTC.
    pub(crate) pushed_at: Time,
    pub(crate) body: TakenBody,
    /// Where the payload starts in the body.
    pub(crate) payload_start: u32,
}

/// The bytes of a message.
#[derive(Debug)]
pub(crate) enum TakenBody {
    Own(Vec<u8>),
    /// Among the bytes of several.
    Shared(Arc<Vec<u8>>, BodyPlace),
}

/// Where the bytes of a message are among those of several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyPlace {
    start: u32,
    len: u32,
}

impl BodyPlace {
    /// Where the body starts, and what its header says of its length.
    #[inline]
    pub(crate) fn of(start: usize, header: &RecordHeader) -> Self {
        Self { start: u32::try_from(start).unwrap_or(u32::MAX), len: header.body_len }
    }

    #[inline]
    pub(crate) fn of_bytes(self, bytes: &[u8]) -> Option<&[u8]> {
        let start = widen(self.start);
        bytes.get(start..start.saturating_add(widen(self.len)))
    }
}

impl TakenBody {
    /// What comes before the payload, which starts here.
    pub(crate) fn before(&self, payload_start: u32) -> &[u8] {
        self.get(..widen(payload_start)).unwrap_or_default()
    }

    /// The payload, which starts here.
    pub(crate) fn payload(&self, payload_start: u32) -> &[u8] {
        self.get(widen(payload_start)..).unwrap_or_default()
    }
}

fn widen(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Deref for TakenBody {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(body) => body,
            Self::Shared(bytes, place) => place.of_bytes(bytes).unwrap_or_default(),
        }
    }
}
