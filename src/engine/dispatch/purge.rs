//! Settling all messages that wait.
//!
//! A walk from the first message to the last one that was there at the beginning, in steps under
//! the lock: what is pushed meanwhile stays, and so does what is in flight or dying.

use super::Dispatch;
use crate::engine::backlog::cursor::Cursor;
use crate::error::Result;

/// Messages settled under one lock.
const MESSAGES_A_STEP: usize = 256;

/// How far a purge has got.
#[derive(Debug)]
pub(crate) struct Purge {
    cursor: Cursor,
    last_seq: u64,
    purged: u64,
}

impl Purge {
    /// Of all that wait up to this message.
    pub(crate) fn up_to(last_seq: u64) -> Self {
        Self { cursor: Cursor::START, last_seq, purged: 0 }
    }

    /// Settles some of the messages that wait; false once none is left.
    pub(crate) fn settle_some(&mut self, dispatch: &mut Dispatch) -> Result<bool> {
        let Self { cursor, last_seq, purged } = self;
        dispatch.settle_on_walk(cursor, *last_seq, MESSAGES_A_STEP, |counts| {
            counts.purged += 1;
            *purged += 1;
        })
    }

    /// How many messages it has settled.
    pub(crate) fn purged(&self) -> u64 {
        self.purged
    }
}
