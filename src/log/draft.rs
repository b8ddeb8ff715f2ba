//! A message on its way into the log.

use super::stage::LARGE;
use crate::format::bytes::to_u64;
use crate::format::checksum::{crc32, crc32_of_both};
use crate::format::record;
use crate::time::Time;
use std::borrow::Cow;

/// A message on its way into the log: its checksum is known, its place is not.
#[derive(Clone, Debug)]
pub(crate) struct Draft<'a> {
    pub(super) payload: Cow<'a, [u8]>,
    pub(super) body_check: u32,
    pub(super) body_len: u32,
    /// What most messages have not: so they need one look for all of it.
    extras: Option<Box<DraftExtras>>,
}

/// What is special about a draft.
#[derive(Clone, Debug, Default)]
struct DraftExtras {
    /// The start of the body, as `format::extension` encodes it.
    extensions: Vec<u8>,
    is_transient: bool,
    /// It is not handed out before this time.
    due: Option<Time>,
    /// Not to be handed out from then on.
    expires: Option<Time>,
}

impl<'a> Draft<'a> {
    /// A payload and nothing else. `None` if no record can hold it.
    #[inline]
    pub(crate) fn plain(payload: Cow<'a, [u8]>) -> Option<Self> {
        let body_len = body_len(payload.len())?;
        Some(Self { body_check: crc32(&payload), payload, body_len, extras: None })
    }

    /// `None` if no record can hold it.
    pub(crate) fn new(extensions: Vec<u8>, payload: Cow<'a, [u8]>) -> Option<Self> {
        if extensions.is_empty() {
            return Self::plain(payload);
        }
        let body_len = body_len(extensions.len() + payload.len())?;
        let body_check = crc32_of_both(&extensions, &payload);
        let extras = Some(Box::new(DraftExtras { extensions, ..DraftExtras::default() }));
        Some(Self { payload, body_check, body_len, extras })
    }

    /// Says whether it is dropped at the next open, from when on it may be handed out, and until
    /// when.
    pub(crate) fn with(
        mut self,
        is_transient: bool,
        due: Option<Time>,
        expires: Option<Time>,
    ) -> Self {
        let extras = self.extras.get_or_insert_default();
        (extras.is_transient, extras.due, extras.expires) = (is_transient, due, expires);
        self
    }

    /// A payload and nothing else.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.extras.is_none()
    }

    #[inline]
    pub(crate) fn expires(&self) -> Option<Time> {
        self.extras.as_ref().and_then(|extras| extras.expires)
    }

    #[inline]
    pub(crate) fn due(&self) -> Option<Time> {
        self.extras.as_ref().and_then(|extras| extras.due)
    }

    #[inline]
    pub(super) fn is_transient(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.is_transient)
    }

    #[inline]
    pub(super) fn extensions(&self) -> &[u8] {
        self.extras.as_ref().map_or(&[], |extras| &extras.extensions)
    }

    /// Whether its slot is stored with it.
    #[inline]
    pub(super) fn has_slot(&self) -> bool {
        self.is_transient() || self.due().is_some()
    }

    /// Whether it may be written some time after it was placed: nobody looks for it by a time or a
    /// slot, and it is not so large that a copy of it takes longer than a write.
    pub(crate) fn can_wait(&self) -> bool {
        !self.has_slot() && self.expires().is_none() && u64::from(self.body_len) < to_u64(LARGE)
    }

    /// Bytes that it takes in the log.
    #[inline]
    pub(crate) fn record_len(&self) -> u64 {
        record::len(u64::from(self.body_len))
    }
}

/// The length of a body in a header; `None` if no record can hold it.
#[inline]
fn body_len(len: usize) -> Option<u32> {
    u32::try_from(len).ok().filter(|&len| u64::from(len) <= record::MAX_BODY)
}
