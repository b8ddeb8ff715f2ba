//! A clock that a test sets and advances.

use crate::time::{BootId, Millis, Time};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that stands still until a test advances it, for tests of delays, leases and expiry. Give
/// it to [`Options::clock`](crate::Options::clock). Calls that wait still wait by the real clock.
///
/// ```
/// use keepq::{Message, Queue, fault::ManualClock};
/// use std::{sync::Arc, time::{Duration, UNIX_EPOCH}};
/// # let dir = tempfile::tempdir()?;
/// let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
/// let queue = Queue::options().clock(clock.clone()).open(dir.path().join("orders"))?;
/// queue.push(Message::new("later").delay(Duration::from_secs(60)))?;
/// clock.advance(Duration::from_millis(59_999));
/// assert!(queue.pop()?.is_none());
/// clock.advance(Duration::from_millis(1));
/// assert!(queue.pop()?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicU64,
    elapsed: AtomicU64,
    boot: Option<BootId>,
}

impl ManualClock {
    /// A clock that shows `wall` until it is advanced or set.
    #[must_use]
    pub fn new(wall: SystemTime) -> Self {
        let clock = Self { wall: AtomicU64::new(0), elapsed: AtomicU64::new(1), boot: None };
        clock.set_wall(wall);
        clock
    }

    /// The clock of a system that is up all the time: two runs of a queue whose clocks have the
    /// same `boot` tell the time between them by what the clock was advanced, however its wall
    /// clock was set, as they do on Linux by the boot clock. Without it, or with 0, each run is the
    /// first one after a boot.
    ///
    /// ```
    /// use keepq::{Message, Queue, fault::ManualClock};
    /// use std::{sync::Arc, time::{Duration, UNIX_EPOCH}};
    /// # let dir = tempfile::tempdir()?;
    /// let clock = Arc::new(ManualClock::new(UNIX_EPOCH).in_boot(1));
    /// let options = Queue::options().clock(clock.clone());
    /// let queue = options.clone().open(dir.path().join("orders"))?;
    /// queue.push(Message::new("later").delay(Duration::from_secs(60)))?;
    /// queue.close()?;
    /// clock.set_wall(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    /// let queue = options.open(dir.path().join("orders"))?;
    /// assert!(queue.pop()?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn in_boot(self, boot: u128) -> Self {
        Self { boot: BootId::new(boot), ..self }
    }

    pub(super) fn boot_id(&self) -> Option<BootId> {
        self.boot
    }

    /// What the wall clock shows.
    pub(super) fn wall(&self) -> Time {
        // Relaxed here and below: a test that sets the clock orders its own steps.
        Time(self.wall.load(Ordering::Relaxed))
    }

    /// The time that has passed.
    pub(super) fn elapsed(&self) -> Millis {
        Millis(self.elapsed.load(Ordering::Relaxed))
    }

    /// Lets time pass, in whole milliseconds.
    pub fn advance(&self, time: Duration) {
        let span = Millis::from(time);
        self.wall.fetch_add(span.0, Ordering::Relaxed);
        self.elapsed.fetch_add(span.0, Ordering::Relaxed);
    }

    /// Sets the wall clock, as an administrator would: no time passes.
    pub fn set_wall(&self, wall: SystemTime) {
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.wall.store(Millis::from(since).0, Ordering::Relaxed);
    }
}
