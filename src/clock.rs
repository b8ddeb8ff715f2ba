//! The only place where clocks are read.
//!
//! A queue's time is in milliseconds since 1970 UTC. It starts with the wall clock's time at open,
//! or with the newest time in the log if that is later, and then follows the monotonic clock. So it
//! never goes back, and it does not matter if the wall clock is set while the queue is open.

use crate::time::{Millis, Time};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "fault-injection")]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The most by which the coarse clock is behind: a tick of the kernel, at most 10 ms, and 1 ms for
/// rounding.
pub(crate) const TICK: Millis =
    if cfg!(any(target_os = "linux", target_os = "android")) { Millis(11) } else { Millis(0) };

/// The longest time for which a message can be put off: 8 years of 365 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(8 * 365 * 86_400);

/// The monotonic clock, for timeouts.
pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    Instant::now()
}

/// In a millisecond.
const NANOS: u64 = 1_000_000;

/// The time of one open queue.
#[derive(Debug)]
pub(crate) struct Clock {
    source: Source,
    /// The queue's time at open.
    start: Time,
    /// Nanoseconds from the monotonic clock's zero to that of the queue's time. Exact, so that the
    /// clocks of two runs agree to the millisecond: what one stores the next does not see too
    /// early.
    offset: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    #[default]
    System,
    #[cfg(feature = "fault-injection")]
    Manual(Arc<ManualClock>),
}

impl Clock {
    /// Starts a clock with the time of the wall clock, or with `newest_time` if that is later.
    pub(crate) fn start(source: Source, newest_time: Time) -> Self {
        let (wall, elapsed) = source.wall_and_elapsed();
        Self::start_at(source, wall, elapsed, newest_time)
    }

    /// A clock that starts when the source's two clocks show `wall` and `elapsed`, in nanoseconds.
    fn start_at(source: Source, wall: u64, elapsed: u64, newest_time: Time) -> Self {
        let start = wall.max(newest_time.0.saturating_mul(NANOS));
        // Wraps, if the system has been up for longer than the wall clock says that there was time.
        let offset = start.wrapping_sub(elapsed);
        Self { source, start: Time(start / NANOS), offset }
    }

    /// The queue's time when the monotonic clock shows `elapsed`, in nanoseconds.
    fn time(&self, elapsed: u64) -> Time {
        Time(elapsed.wrapping_add(self.offset) / NANOS).max(self.start)
    }

    /// The queue's time at open.
    pub(crate) fn start_time(&self) -> Time {
        self.start
    }

    /// The queue's time.
    pub(crate) fn now(&self) -> Time {
        self.time(self.source.elapsed_nanos())
    }

    /// The first millisecond of the queue's time that has not begun. Delays are counted from here,
    /// so that none is over too early.
    pub(crate) fn next(&self) -> Time {
        let now = self.now();
        if matches!(self.source, Source::System) { now + Millis(1) } else { now }
    }

    /// The queue's time, or up to [`TICK`] less. Takes 2 ns, where the precise clock takes 23.
    pub(crate) fn coarse(&self) -> Time {
        self.time(self.source.coarse_nanos())
    }

    /// A time that is at least `span` after the moment of a reading of the coarse clock, and up to
    /// 2 [`TICK`]s more.
    pub(crate) fn after(&self, coarse: Time, span: Millis) -> Time {
        let tick = if matches!(self.source, Source::System) { TICK } else { Millis(0) };
        coarse.saturating_add(tick).saturating_add(span)
    }

    /// Whether `time` has come.
    pub(crate) fn is_past(&self, time: Time) -> bool {
        self.is_past_at(self.coarse(), time)
    }

    /// Whether `time` has come, where the coarse clock has just been read.
    pub(crate) fn is_past_at(&self, coarse: Time, time: Time) -> bool {
        time <= coarse || time <= coarse + TICK && time <= self.now()
    }

    /// The instant at which `time` will come.
    pub(crate) fn instant(&self, time: Time) -> Option<Instant> {
        now().checked_add(time.since(self.now()).into())
    }

    /// The queue's time at the moment when the wall clock, as it is set now, shows `moment`.
    pub(crate) fn at(&self, moment: SystemTime) -> Time {
        let wall = Millis(self.source.wall_nanos() / NANOS);
        let moment = moment.duration_since(UNIX_EPOCH).map_or(Millis(0), Millis::from);
        self.next().saturating_add(moment).saturating_sub(wall)
    }
}

impl Source {
    /// What both clocks show at the same moment. A thread that is interrupted between the two
    /// readings reads them again: a clock that is behind by the interruption would store times that
    /// are early for the next run.
    fn wall_and_elapsed(&self) -> (u64, u64) {
        const SOON: u64 = 10_000;
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..10 {
            let before = self.elapsed_nanos();
            let wall = self.wall_nanos();
            let elapsed = self.elapsed_nanos();
            best = best.min((elapsed.saturating_sub(before), wall, elapsed));
            if best.0 <= SOON {
                break;
            }
        }
        (best.1, best.2)
    }

    fn wall_nanos(&self) -> u64 {
        match self {
            Self::System => {
                #[expect(clippy::disallowed_methods, reason = "this is the clock")]
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
            }
            // Relaxed here and below: a test that sets the clock orders its own steps.
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.wall.load(Ordering::Relaxed).saturating_mul(NANOS),
        }
    }

    fn elapsed_nanos(&self) -> u64 {
        match self {
            Self::System => monotonic(false),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed.load(Ordering::Relaxed) * NANOS,
        }
    }

    fn coarse_nanos(&self) -> u64 {
        match self {
            Self::System => monotonic(true),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed.load(Ordering::Relaxed) * NANOS,
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn monotonic(is_coarse: bool) -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let clock = if is_coarse { ClockId::MonotonicCoarse } else { ClockId::Monotonic };
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 * NANOS + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn monotonic(_is_coarse: bool) -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = now().saturating_duration_since(*START.get_or_init(now));
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

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
#[cfg(feature = "fault-injection")]
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicU64,
    elapsed: AtomicU64,
}

#[cfg(feature = "fault-injection")]
impl ManualClock {
    /// A clock that shows `wall` until it is advanced or set.
    #[must_use]
    pub fn new(wall: SystemTime) -> Self {
        let clock = Self { wall: AtomicU64::new(0), elapsed: AtomicU64::new(1) };
        clock.set_wall(wall);
        clock
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each run starts at another part of a millisecond, and perhaps after a reboot. With clocks
    /// that were rounded on their own, a message could come a millisecond before its time then.
    #[test]
    fn no_run_is_ahead_of_the_one_that_stored_a_time() {
        let start = |wall, elapsed| Clock::start_at(Source::System, wall, elapsed, Time::ZERO);
        let parts = || (0..NANOS).step_by(111_111);
        let walls = parts().map(|part| 1_700_000_000 * 1000 * NANOS + part);
        for (wall, part) in walls.flat_map(|wall| parts().map(move |part| (wall, part))) {
            let first = start(wall, part);
            for later in parts().map(|part| 3 * NANOS + part) {
                // What `next` and `at` make of it: not before 5 ms from here.
                let moment = (wall + later) / NANOS + 5;
                let due = first.time(part + later).0 + 1 + moment - (wall + later) / NANOS;
                assert!(due == moment || due == moment + 1, "{due} {moment}");
                let due = Time(due);
                for again in parts() {
                    let (wall, elapsed) = (wall + later + again, 7 * NANOS + part / 2);
                    let second = start(wall, elapsed);
                    for now in (0..7 * NANOS).step_by(99_999) {
                        let is_early = (wall + now) / NANOS < moment;
                        assert!(!is_early || second.time(elapsed + now) < due, "{wall} {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_coarse_clock_is_behind_by_a_tick_at_most() {
        let clock = Clock::start(Source::System, Time::ZERO);
        for _ in 0..2000 {
            let (coarse, now) = (clock.coarse(), clock.now());
            assert!(coarse <= now && now <= clock.coarse() + TICK, "{coarse:?} {now:?}");
        }
        assert!(clock.is_past(clock.start_time()));
        assert!(!clock.is_past(clock.now() + Millis(3_600_000)));
    }

    #[cfg(feature = "fault-injection")]
    #[test]
    fn a_wall_clock_that_is_set_does_not_matter() {
        let day = Duration::from_secs(86_400);
        let days = |days: u32| Time::ZERO + (days * day).into();
        let manual = Arc::new(ManualClock::new(UNIX_EPOCH + 10 * day));
        let start = || Clock::start(Source::Manual(Arc::clone(&manual)), Time::ZERO);
        let clock = start();
        assert_eq!(clock.now(), days(10));
        manual.advance(day);
        manual.set_wall(UNIX_EPOCH + 2 * day);
        assert_eq!(clock.now(), days(11));
        assert_eq!(clock.at(UNIX_EPOCH + 3 * day), days(12), "a day from now");
        assert_eq!(clock.at(UNIX_EPOCH), days(9));
        assert_eq!(start().now(), days(2));
        let source = Source::Manual(Arc::clone(&manual));
        assert_eq!(Clock::start(source, Time(5)).now(), days(2));
        let source = Source::Manual(manual);
        assert_eq!(Clock::start(source, days(7)).now(), days(7), "never goes back");
    }
}
