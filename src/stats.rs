//! Numbers about an open queue.

use crate::distribution::Distribution;
use crate::seq::Seq;
use std::time::Duration;

/// What was done with messages since open. This one list is counted under the lock, and is shown as
/// it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) popped: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
    pub(crate) released: u64,
    pub(crate) rejected: u64,
    pub(crate) lease_expired: u64,
    pub(crate) purged: u64,
    pub(crate) expired: u64,
    pub(crate) dropped: u64,
    pub(crate) dead_lettered: u64,
    /// Settled messages that came up to be handed out, and were passed over.
    pub(crate) duplicated: u64,
    /// First deliveries of messages behind one that was pushed later.
    pub(crate) out_of_order: u64,
}

/// Numbers about an open queue, from [`Queue::stats`](crate::Queue::stats). All are of one moment,
/// except those of its dead letters, which are a moment older, and the age of the oldest message,
/// which is a moment younger. Numbers *since open* start at zero
/// with each open; all others describe the queue as it is, also right after a crash.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// queue.push(b"a")?;
/// assert_eq!(queue.stats().ready(), 1);
/// assert_eq!(queue.stats().reliability(), 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    pub(crate) ready: u64,
    pub(crate) in_flight: u64,
    pub(crate) delayed: u64,
    pub(crate) dying: u64,
    pub(crate) set_aside: u64,
    pub(crate) dead_letters: u64,
    pub(crate) pushed: u64,
    pub(crate) failed_pushes: u64,
    pub(crate) counts: Counts,
    pub(crate) lost: u64,
    pub(crate) floor: u64,
    pub(crate) cursor: u64,
    pub(crate) segments: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) live_bytes: u64,
    pub(crate) reclaimable_bytes: u64,
    pub(crate) taken_bytes: u64,
    pub(crate) compacted_bytes: u64,
    pub(crate) oldest: Option<Duration>,
    pub(crate) uptime: Duration,
    pub(crate) push_time: Distribution,
    pub(crate) waiting_time: Distribution,
    pub(crate) processing_time: Distribution,
    pub(crate) background_error: Option<String>,
}

/// Unsettled messages: each of them is counted in one of the first five numbers.
impl Stats {
    /// Messages that are ready. As in [`Queue::len`](crate::Queue::len), this includes some that
    /// will not be handed out.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// Messages that are handed out and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Messages that wait for their time: pushed with a delay, or given back with one.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.delayed
    }

    /// Messages on their way to the dead letters. They stay here for more than a moment only while
    /// the dead letters refuse them: see [`Stats::last_background_error`].
    #[must_use]
    pub fn dying(&self) -> u64 {
        self.dying
    }

    /// Messages that this version of keepq came to and that only a newer one can read
    /// ([`DamageKind::Newer`](crate::DamageKind::Newer)). They stay stored as they are, and no
    /// consumer gets them.
    #[must_use]
    pub fn set_aside(&self) -> u64 {
        self.set_aside
    }

    /// Messages that the queue of dead letters holds: ready, delayed or in flight. A message that
    /// has just been moved counts here and in [`Stats::dying`], until the move is durable.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// How long ago the oldest unsettled message was pushed; `None` if there is none, or if it is
    /// damaged.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        self.oldest
    }
}

/// What happened since open.
impl Stats {
    /// Messages pushed.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Messages whose push failed, or which [`Overflow::DropNewest`](crate::Overflow::DropNewest)
    /// dropped.
    #[must_use]
    pub fn failed_pushes(&self) -> u64 {
        self.failed_pushes
    }

    /// Deliveries handed out; a message that came back counts again.
    #[must_use]
    pub fn popped(&self) -> u64 {
        self.counts.popped
    }

    /// Deliveries in [`Stats::popped`] of messages that had been handed out before, in this run or
    /// an earlier one.
    #[must_use]
    pub fn redelivered(&self) -> u64 {
        self.counts.redelivered
    }

    /// Deliveries acked.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.counts.acked
    }

    /// Deliveries given back with their attempt counted: by `nack`, `nack_after` or drop.
    #[must_use]
    pub fn nacked(&self) -> u64 {
        self.counts.nacked
    }

    /// Deliveries given back as if they had not been handed out.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.counts.released
    }

    /// Deliveries rejected.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.counts.rejected
    }

    /// Deliveries whose lease ran out.
    #[must_use]
    pub fn lease_expired(&self) -> u64 {
        self.counts.lease_expired
    }

    /// Messages that [`Queue::purge`](crate::Queue::purge) settled.
    #[must_use]
    pub fn purged(&self) -> u64 {
        self.counts.purged
    }

    /// Messages that had expired when they were at the front of the queue: settled, or moved to the
    /// dead letters, by `pop`, by the background, or by a push that found no room.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.counts.expired
    }

    /// Messages dropped for lack of room ([`Overflow`](crate::Overflow)), or instead of becoming
    /// dead letters ([`Options::dead_letters`](crate::Options::dead_letters)).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped
    }

    /// Messages that moved to the dead letters.
    #[must_use]
    pub fn dead_lettered(&self) -> u64 {
        self.counts.dead_lettered
    }

    /// Messages that were found damaged and passed over.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Every message below this number is settled or lost, as far as keepq has looked: how far
    /// consumers are. It may be behind, and never ahead. CHECKPOINT notes it, and a reopen begins
    /// there, so it is known from the open on.
    ///
    /// It does not say how many messages are left: one that is delayed or in flight holds it where
    /// it is, numbers have gaps, and after a kill it may lie above [`Queue::last_seq`]. For that
    /// there are [`Stats::ready`], [`Stats::in_flight`] and [`Stats::delayed`].
    ///
    /// [`Queue::last_seq`]: crate::Queue::last_seq
    #[must_use]
    pub fn floor(&self) -> Seq {
        Seq(self.floor)
    }

    /// No message from this number on was handed out in this run. It is not below the floor.
    #[must_use]
    pub fn cursor(&self) -> Seq {
        Seq(self.cursor)
    }

    /// Messages that were about to be handed out although their state said that they were settled,
    /// and were passed over. Always zero, unless keepq has a bug or another program writes to its
    /// files: each delivery checks the state.
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.counts.duplicated
    }

    /// First deliveries, of messages without a delay, that came after the delivery of a message
    /// that was pushed later. Always zero, unless keepq has a bug: each delivery checks the order.
    #[must_use]
    pub fn out_of_order(&self) -> u64 {
        self.counts.out_of_order
    }

    /// The time since open.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.uptime
    }

    /// The last error that the background thread met, such as a full disk while it prepared a file
    /// ahead of need: its text, followed by the texts of its sources.
    #[must_use]
    pub fn last_background_error(&self) -> Option<&str> {
        self.background_error.as_deref()
    }
}

/// What the disk holds.
impl Stats {
    /// Segment files in use, without the one that is kept ready.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.segments
    }

    /// Bytes that those files take on the disk, whatever they hold.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Bytes of all files: segments, the one that is kept ready, CHECKPOINT (or the room that is
    /// kept for it), and those of the dead letters once these are open.
    /// [`Options::max_bytes`](crate::Options::max_bytes) limits this number.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes that unsettled messages take in the segment files, with their states.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Bytes of segment files that settled messages take, or that can no longer be used.
    #[must_use]
    pub fn reclaimable_bytes(&self) -> u64 {
        self.reclaimable_bytes
    }
}

/// What was written to the disk since open.
impl Stats {
    /// Bytes of the segment files that pushes took. A file that is used again counts again.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Bytes that compaction wrote, including copies that were given up. With p for
    /// [`Compaction::live_percent`](crate::Compaction::live_percent), copies that free disk space
    /// are never more than p / (100 - p) times the bytes that pushes took in this run and earlier
    /// ones (at 50, no more than these bytes). Copies that gather small files are never more than
    /// seven times that, and as a rule next to nothing.
    #[must_use]
    pub fn compacted_bytes(&self) -> u64 {
        self.compacted_bytes
    }
}

/// How long things take, since open.
impl Stats {
    /// How long pushes took. All pushes that wait for the disk are measured; of the others, one in
    /// 64 of each thread.
    #[must_use]
    pub fn push_time(&self) -> Distribution {
        self.push_time
    }

    /// How long messages waited, from their push to each time they were handed out. One delivery in
    /// 64 is measured, to within about 10 ms.
    #[must_use]
    pub fn waiting_time(&self) -> Distribution {
        self.waiting_time
    }

    /// How long consumers took to answer a delivery. The same deliveries are measured as in
    /// [`Stats::waiting_time`].
    #[must_use]
    pub fn processing_time(&self) -> Distribution {
        self.processing_time
    }
}

/// The usual figures of message queues.
impl Stats {
    /// Messages acked in a second: [`Stats::acked`] / [`Stats::uptime`].
    #[must_use]
    pub fn throughput(&self) -> f64 {
        ratio(self.counts.acked, 1) / self.uptime.as_secs_f64().max(0.001)
    }

    /// Time consumed less time produced: the mean of [`Stats::waiting_time`].
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.waiting_time.mean()
    }

    /// Used / allowed: [`Stats::disk_bytes`] / [`Options::max_bytes`](crate::Options::max_bytes);
    /// `None` without that option.
    #[must_use]
    pub fn storage_use(&self) -> Option<f64> {
        self.max_bytes.map(|max| ratio(self.disk_bytes, max))
    }

    /// Failed / tried: [`Stats::failed_pushes`] / ([`Stats::failed_pushes`] + [`Stats::pushed`]); 0
    /// if none was tried.
    #[must_use]
    pub fn push_loss_rate(&self) -> f64 {
        ratio(self.failed_pushes, self.failed_pushes + self.pushed)
    }

    /// Time to push + waiting + processing: the sum of the means of [`Stats::push_time`],
    /// [`Stats::waiting_time`] and [`Stats::processing_time`].
    #[must_use]
    pub fn processing_delay(&self) -> Duration {
        self.push_time.mean() + self.waiting_time.mean() + self.processing_time.mean()
    }

    /// R = 1 - L - F - O. Of the messages that were due to be handed out, L is the part that was
    /// lost ([`Stats::lost`]), F the part that came up although it was settled
    /// ([`Stats::duplicated`]), and O the part that came out of order ([`Stats::out_of_order`]).
    /// Each part is its count / ([`Stats::popped`] + [`Stats::lost`]). R is 1 if there were none,
    /// and never below 0.
    #[must_use]
    pub fn reliability(&self) -> f64 {
        let wrong = self.lost + self.counts.duplicated + self.counts.out_of_order;
        (1.0 - ratio(wrong, self.counts.popped + self.lost)).max(0.0)
    }
}

/// 0 of nothing is 0.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
