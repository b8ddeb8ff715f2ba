//! What a push has done, and what is left to wait for.

use crate::log::stage::{Refused, Written};
use std::sync::Arc;
use std::time::Duration;

/// What a push promises when it returns to the user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promise {
    /// The messages survive the process. If a time is given, the background syncs them within it.
    Placed { sync_within: Option<Duration> },
    /// They are durable: the caller waits for that next.
    Durable,
}

impl Promise {
    /// They survive the process, and are synced with whatever is.
    pub(crate) const PLACED: Self = Self::Placed { sync_within: None };

    /// How soon the background has to sync, if nobody else waits for that.
    #[inline]
    pub(super) fn sync_within(self) -> Option<Duration> {
        match self {
            Self::Placed { sync_within } => sync_within,
            Self::Durable => None,
        }
    }
}

/// Messages that have their numbers, side by side.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(super) first_seq: u64,
    /// What becomes of the write that they wait for; `None` if they are in the file.
    written: Option<Arc<Written>>,
}

impl Placed {
    /// No message: all were dropped.
    pub(crate) const NONE: Self = Self { first_seq: 0, written: None };

    #[inline]
    pub(super) fn new(first_seq: u64, written: Option<Arc<Written>>) -> Self {
        Self { first_seq, written }
    }

    /// Whether all messages were dropped.
    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        self.first_seq == 0
    }

    /// The Seq of the first message; 0 if they were dropped.
    #[inline]
    pub(crate) fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// Whether they are in the file, or why they are not in the queue; `None` as long as neither is
    /// known.
    pub(crate) fn outcome(&self) -> Option<Result<(), &Refused>> {
        self.written.as_ref().map_or(Some(Ok(())), |written| written.outcome())
    }

    /// Why they are not in the queue, if a write of them failed.
    pub(crate) fn refused(&self) -> Option<&Refused> {
        self.outcome().and_then(Result::err)
    }
}
