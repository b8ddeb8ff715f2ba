//! What the options say of deliveries.

use crate::backoff::Backoff;
use crate::format::extension::{self, Notes};
use crate::format::record;
use crate::options::{Expired, Options};
use crate::time::{Millis, Time};

/// What the options say of deliveries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(super) visibility: Option<Millis>,
    pub(super) max_attempts: u32,
    pub(super) max_in_flight: usize,
    pub(super) backoff: Backoff,
    pub(super) has_dead_letters: bool,
    pub(super) expired: Expired,
    /// How long after its push a message is worth anything.
    pub(super) message_ttl: Option<Millis>,
    /// The clock is needed for each delivery.
    pub(super) has_times: bool,
}

impl Policy {
    pub(super) fn of(options: &Options) -> Self {
        let max_in_flight = options.max_in_flight.unwrap_or(u64::MAX);
        Self {
            visibility: options.visibility_timeout.map(Millis::from),
            max_attempts: options.max_attempts,
            max_in_flight: usize::try_from(max_in_flight).unwrap_or(usize::MAX),
            backoff: options.backoff,
            has_dead_letters: options.dead_letters,
            expired: options.expired,
            message_ttl: options.message_ttl.map(Millis::from),
            has_times: options.visibility_timeout.is_some() || options.message_ttl.is_some(),
        }
    }

    /// When a message expires, if ever. `body`: verified.
    pub(crate) fn expires_at(
        &self,
        header: &record::RecordHeader,
        body: &[u8],
        pushed_at: Time,
    ) -> Option<Time> {
        let own = header.flags.has_extensions().then(|| extension::notes(body).expires).flatten();
        let ttl = self.message_ttl.map(|ttl| pushed_at.saturating_add(ttl));
        Time::earlier(own, ttl)
    }

    /// Whether the time in a message's record counts, before which it is not handed out. Its slot
    /// says the same. If the slot says that the message was handed out, that time had come, as the
    /// clock was set then; but a slot that cannot be read is rebuilt, and says one attempt where
    /// there may have been none. Then its delay is damaged as well, unless it still says the time.
    pub(crate) fn counts_time_in_record(
        attempts: u32,
        has_unreadable_delay: impl FnOnce() -> bool,
    ) -> bool {
        attempts == 0 || has_unreadable_delay()
    }

    /// When a message is due, as its record says, if that counts.
    /// `start_time`: of this run, if an earlier run pushed the message; then it waits no longer
    /// than its whole delay from there.
    pub(crate) fn due_by_record(
        notes: &Notes<'_>,
        pushed_at: Time,
        start_time: Option<Time>,
    ) -> Option<Time> {
        let due = notes.due?;
        Some(start_time.map_or(due, |start| due.min(start + due.since(pushed_at))))
    }

    /// Whether something is stored when a message that was handed out this often has failed.
    pub(crate) fn stores_failure(&self, attempts: u32) -> bool {
        self.is_last(attempts) || !self.backoff.after(attempts, 0).is_zero()
    }

    /// Whether a message that was handed out this often, and failed, dies.
    pub(crate) fn is_last(&self, attempts: u32) -> bool {
        self.max_attempts > 0 && attempts >= self.max_attempts
    }
}
