//! The bytes of a message, on their way out of the log.

use super::found::FoundMessage;
use super::track::Track;
use crate::error::Result;
use crate::format::address::Offset;
use crate::format::record::RecordHeader;
use crate::log::sealed::Mapped;
use crate::time::PushTime;
use std::sync::Arc;

/// Bodies up to this size are copied under the lock.
const COPY_UNDER_LOCK: u32 = 1024;

/// Where the bytes of a message are. A short copy is cheaper than a reference count.
#[derive(Debug)]
pub(crate) enum Body {
    Copied(Vec<u8>),
    In(Arc<Mapped>),
}

impl Body {
    #[inline]
    pub(crate) fn of(mapped: &Arc<Mapped>, header: &RecordHeader, offset: Offset) -> Self {
        if header.body_len <= COPY_UNDER_LOCK {
            Self::Copied(mapped.body(header, offset))
        } else {
            Self::In(Arc::clone(mapped))
        }
    }

    /// When a message that was found in this segment was pushed, and where its bytes are.
    pub(crate) fn of_found(track: &Track, found: &FoundMessage) -> Result<(PushTime, Self)> {
        let pushed_at = track.segment().push_time(&found.header, track.base_time());
        Ok((pushed_at, Self::of(track.map()?, &found.header, found.place.offset)))
    }

    /// The bytes, not yet verified.
    #[inline]
    pub(crate) fn take(&mut self, header: &RecordHeader, offset: Offset) -> Vec<u8> {
        match self {
            Self::Copied(body) => std::mem::take(body),
            Self::In(mapped) => mapped.body(header, offset),
        }
    }
}
