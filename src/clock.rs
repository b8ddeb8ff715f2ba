//! The only place where clocks are read.
//!
//! A queue's time is in milliseconds since 1970 UTC. It never goes back, and goes on as time
//! passes, while the system is suspended, too. If the wall clock is set while the queue is open,
//! the queue's time goes on as before, and its [`Shift`] against UTC changes. That is noticed when
//! the coarse clock is read, and is noted on the disk by the rooms above.
//!
//! In the same boot of the system, the next run goes on by the boot clock, however the wall clock
//! was set meanwhile. Else it begins at the wall clock's time plus the shift that was noted last.
//! So the time in which nobody ran counts. If that would be earlier than the newest time in the
//! log, the clock was set back meanwhile: then the run begins at that newest time.

use crate::time::{Anchor, Boot, BootId, KnownTime, Millis, NANOS, Shift, Time};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "fault-injection")]
mod manual;
#[cfg(test)]
mod tests;

#[cfg(feature = "fault-injection")]
use std::sync::Arc;

#[cfg(feature = "fault-injection")]
pub use manual::ManualClock;

/// The most by which the coarse clock is behind: a tick of the kernel, at most 10 ms, where there
/// is such a clock, and 1 ms for rounding.
pub(crate) const TICK: Millis =
    if cfg!(any(target_os = "linux", target_os = "android")) { Millis(11) } else { Millis(1) };

/// The longest time for which a message can be put off: 8 years of 365 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(8 * 365 * 86_400);

/// The monotonic clock, for timeouts.
pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    Instant::now()
}

/// The background, and a thread that waits for the time of a message, look at the clock at least
/// this often.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// What a wall clock shows.
#[derive(Clone, Copy, Debug)]
struct Wall {
    time: Time,
    /// Nanoseconds since that millisecond began.
    fraction: u64,
}

impl Wall {
    /// In nanoseconds, which wrap.
    fn nanos(self) -> u64 {
        self.time.0.wrapping_mul(NANOS).wrapping_add(self.fraction)
    }
}

/// What the clocks of a source show at the same moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Moment {
    wall: Wall,
    /// Goes on while the system is suspended.
    boot: u64,
    /// The clock whose coarse form is cheap.
    coarse: u64,
}

/// A difference of two coarse clocks that a tick of the kernel does not explain: 5 ticks.
const UNUSUAL: u64 = 50 * NANOS;

/// After this time the precise clocks are looked at, too: the coarse ones do not tell of a boot
/// clock that went on by itself (`time_namespaces(7)`).
const LOOK_EVERY: u64 = 20 * NANOS;

/// The clock was set if its shift changed by more: 500 ms. Less is what NTP slews in 1,000 s at
/// most (500 ppm: ntpd(8)).
const STEP: Millis = Millis(500);

/// The time of one open queue.
#[derive(Debug)]
pub(crate) struct Clock {
    source: Source,
    /// The most by which its coarse clock is behind.
    tick: Millis,
    /// The boot whose clock it reads, if that is known.
    boot_id: Option<BootId>,
    /// The queue's time at open.
    start: Time,
    /// What the boot clock showed when the millisecond `start` began, in nanoseconds. Exact, so
    /// that the clocks of two runs agree to the millisecond: what one stores the next does not see
    /// too early.
    zero: u64,
    /// The same for the coarse clock, which stands still while the system is suspended.
    coarse_zero: AtomicU64,
    /// How far the coarse wall clock is ahead of the coarse clock, in nanoseconds, as it was last
    /// seen. All such numbers wrap: the year 2554 is the last that they tell from 1970.
    gap: AtomicU64,
    /// The last tick of the coarse clock that somebody saw, and the queue's time then.
    ticked_at: AtomicU64,
    tick_time: AtomicU64,
    /// What the coarse clock showed at the last look at the precise ones.
    looked_at: AtomicU64,
    /// How far the queue's time is ahead of UTC, in milliseconds.
    shift: AtomicI64,
    /// The shift that the disk has, or [`NONE_NOTED`].
    noted: AtomicI64,
    /// The queue's time when that was noted.
    noted_at: AtomicU64,
    /// Whether the disk has the anchor, or there is none.
    is_anchored: AtomicBool,
}

/// No shift is as large.
const NONE_NOTED: i64 = i64::MIN;

#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    #[default]
    System,
    #[cfg(feature = "fault-injection")]
    Manual(Arc<ManualClock>),
}

impl Clock {
    /// Starts a clock where the last run's would be now.
    pub(crate) fn start(source: Source, known: KnownTime, boot: Boot) -> Self {
        let moment = source.moment();
        Self::start_at(source, moment, known, boot)
    }

    /// A clock that starts when the source's clocks show this.
    fn start_at(source: Source, moment: Moment, known: KnownTime, of_system: Boot) -> Self {
        let (boot_id, anchor) = (source.boot_id(of_system.id), of_system.anchor);
        let Moment { wall, boot, coarse } = moment;
        let is_of_this_boot = |anchor: &Anchor| boot_id == Some(anchor.boot);
        let by_boot = anchor.filter(is_of_this_boot).and_then(|anchor| anchor.time_at(boot));
        let shifted = wall.time.of_utc(known.shift);
        let (start, fraction) = match by_boot {
            // The newest time may be a little ahead of the moment at which it was stored.
            Some((time, fraction)) if time.saturating_add(STEP) > known.time => {
                if time < known.time { (known.time, 0) } else { (time, fraction) }
            }
            _ if shifted < known.time => (known.time, 0),
            _ => (shifted, wall.fraction),
        };
        let start = start.min(Time::LATEST_START);
        let exact = Shift::between(start, wall.time);
        let shift = if exact.distance(known.shift) < STEP { known.shift } else { exact };
        let zero = boot.wrapping_sub(fraction);
        let is_anchored = boot_id.is_none_or(|id| {
            // It says the same of every moment.
            anchor.is_some_and(|anchor| anchor.boot == id && anchor.has(start, zero))
        });
        Self {
            tick: if source.is_manual() { Millis(0) } else { TICK },
            source,
            boot_id,
            start,
            zero,
            coarse_zero: AtomicU64::new(zero.wrapping_sub(boot).wrapping_add(coarse)),
            gap: AtomicU64::new(wall.nanos().wrapping_sub(coarse)),
            ticked_at: AtomicU64::new(0),
            tick_time: AtomicU64::new(start.0),
            // The first tick looks.
            looked_at: AtomicU64::new(0),
            shift: AtomicI64::new(shift.0),
            noted_at: AtomicU64::new(known.time.0),
            noted: AtomicI64::new(known.shift.0),
            is_anchored: AtomicBool::new(is_anchored),
        }
    }

    /// The queue's time when a clock that started at `zero` shows `nanos`.
    #[inline]
    fn time(&self, nanos: u64, zero: u64) -> Time {
        // A coarse clock may be behind the precise one, by which the queue's time started.
        let elapsed = nanos.wrapping_sub(zero).cast_signed().max(0).cast_unsigned();
        // After some decades near the end of all times, it stands still.
        self.start.saturating_add(Millis(elapsed / NANOS)).min(Time::LATEST)
    }

    /// The queue's time at open.
    pub(crate) fn start_time(&self) -> Time {
        self.start
    }

    /// The queue's time.
    pub(crate) fn now(&self) -> Time {
        self.time(self.source.boot_nanos(), self.zero)
    }

    /// The first millisecond of the queue's time that has not begun. Delays are counted from here,
    /// so that none is over too early.
    pub(crate) fn next(&self) -> Time {
        let now = self.now();
        if matches!(self.source, Source::System) { now + Millis(1) } else { now }
    }

    /// The queue's time, or up to [`TICK`] less, for a fraction of what the precise clock takes.
    #[inline]
    pub(crate) fn coarse(&self) -> Time {
        let coarse = self.source.coarse_nanos();
        // Acquire: pairs with the store in `tick`.
        if coarse == self.ticked_at.load(Ordering::Acquire) && !self.source.is_manual() {
            return Time(self.tick_time.load(Ordering::Relaxed));
        }
        self.tick(coarse)
    }

    /// The coarse clocks have gone on: looks whether they went together.
    #[inline(never)]
    fn tick(&self, coarse: u64) -> Time {
        let wall = self.source.coarse_wall_nanos();
        // Relaxed, here and below: each of them is a number by itself, and steps are rare.
        let gap = wall.wrapping_sub(coarse).wrapping_sub(self.gap.load(Ordering::Relaxed));
        let since = coarse.wrapping_sub(self.looked_at.load(Ordering::Relaxed));
        if gap.wrapping_add(UNUSUAL) > 2 * UNUSUAL || since > LOOK_EVERY {
            self.looked_at.store(coarse, Ordering::Relaxed);
            self.notice();
        }
        let time = self.time(coarse, self.coarse_zero.load(Ordering::Relaxed));
        // Two threads may be here: the later time stays.
        self.tick_time.fetch_max(time.0, Ordering::Relaxed);
        // Release: whoever sees this tick sees its time, or that of a later one.
        self.ticked_at.store(coarse, Ordering::Release);
        time
    }

    /// The wall clock was set, or the system was suspended; or nobody has looked for a while.
    #[cold]
    fn notice(&self) {
        let Moment { wall, boot, coarse } = self.source.moment();
        let zero = self.zero.wrapping_sub(boot).wrapping_add(coarse);
        self.coarse_zero.store(zero, Ordering::Relaxed);
        self.gap.store(wall.nanos().wrapping_sub(coarse), Ordering::Relaxed);
        let now = self.time(boot, self.zero);
        let shift = Shift::between(now, wall.time);
        if shift.distance(self.shift()) >= STEP {
            self.shift.store(shift.0, Ordering::Relaxed);
        }
    }

    /// How far the queue's time is ahead of UTC.
    #[inline]
    pub(crate) fn shift(&self) -> Shift {
        Shift(self.shift.load(Ordering::Relaxed))
    }

    /// What the wall clock, as it is set now, shows at this time of the queue.
    pub(crate) fn utc(&self, time: Time) -> Time {
        // It may have been set since the last look.
        self.coarse();
        time.utc(self.shift())
    }

    /// Where the queue's time lies on the boot clock, if the boot has an id.
    pub(crate) fn anchor(&self) -> Option<Anchor> {
        let boot = self.boot_id?;
        Some(Anchor { boot, time: self.start, nanos: self.zero })
    }

    /// What the disk has to know of it.
    pub(crate) fn known(&self) -> KnownTime {
        KnownTime { time: self.now(), shift: self.shift() }
    }

    /// Looks whether the clock was set, and tells whether the disk has to know more. Where it was
    /// set once, it may be set back while nobody runs: then the time of this run counts only as far
    /// as the disk knows it.
    pub(crate) fn has_step(&self) -> bool {
        // This looks.
        let now = self.coarse();
        let noted_at = Time(self.noted_at.load(Ordering::Relaxed));
        let is_long = |since| now.since(since) >= Millis::from(LONGEST_SLEEP);
        let is_anchored = self.is_anchored.load(Ordering::Relaxed);
        // A run in a new boot that is so short notes its anchor when it ends.
        !self.is_noted()
            || self.shift() != Shift::default() && is_long(noted_at)
            || !is_anchored && is_long(noted_at.max(self.start))
    }

    /// Takes the shift as it is, also if it changed by less than a step.
    pub(crate) fn settle_shift(&self) {
        let Moment { wall, boot, .. } = self.source.moment();
        let exact = Shift::between(self.time(boot, self.zero), wall.time);
        self.shift.store(exact.0, Ordering::Relaxed);
    }

    /// Whether the disk knows how far the queue's time is ahead of UTC, as it was last seen.
    #[inline]
    pub(crate) fn is_noted(&self) -> bool {
        self.shift.load(Ordering::Relaxed) == self.noted.load(Ordering::Relaxed)
    }

    /// The disk knows this now, and the anchor.
    pub(crate) fn note_known(&self, known: KnownTime) {
        self.noted.store(known.shift.0, Ordering::Relaxed);
        self.noted_at.store(known.time.0, Ordering::Relaxed);
        self.is_anchored.store(true, Ordering::Relaxed);
    }

    /// A segment is made with this shift in its header. If the disk knew another one, it knows none
    /// until CHECKPOINT tells it: should the clock be set back to that other one, that is a step.
    pub(crate) fn note_header(&self, shift: Shift) {
        if self.noted.load(Ordering::Relaxed) != shift.0 {
            self.noted.store(NONE_NOTED, Ordering::Relaxed);
        }
    }

    /// A time that is at least `span` after the moment of a reading of the coarse clock, and up to
    /// 2 [`TICK`]s more.
    pub(crate) fn after(&self, coarse: Time, span: Millis) -> Time {
        coarse.saturating_add(self.tick).saturating_add(span)
    }

    /// Whether `time` has come.
    pub(crate) fn is_past(&self, time: Time) -> bool {
        self.is_past_at(self.coarse(), time)
    }

    /// Whether `time` has come, where the coarse clock has just been read.
    pub(crate) fn is_past_at(&self, coarse: Time, time: Time) -> bool {
        time <= coarse || time <= coarse + TICK && time <= self.now()
    }

    /// The instant at which `time` will come, or an earlier one at which to look again: the clock
    /// of instants stands still while the system is suspended.
    pub(crate) fn instant(&self, time: Time) -> Option<Instant> {
        let span = Duration::from(time.since(self.now()));
        now().checked_add(span.min(LONGEST_SLEEP))
    }

    /// The queue's time at the moment when the wall clock, as it is set now, shows `moment`.
    pub(crate) fn at(&self, moment: SystemTime) -> Time {
        let wall = Millis(self.source.wall().time.0);
        let moment = moment.duration_since(UNIX_EPOCH).map_or(Millis(0), Millis::from);
        self.next().saturating_add(moment).saturating_sub(wall)
    }
}

impl Source {
    /// Which boot its boot clock counts from, if that is known. `of_system`: that of the system's.
    fn boot_id(&self, of_system: Option<BootId>) -> Option<BootId> {
        match self {
            Self::System => of_system,
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.boot_id(),
        }
    }

    /// What all clocks show at the same moment. A thread that is interrupted between two readings
    /// reads them again: a clock that is behind by the interruption would store times that are
    /// early for the next run.
    fn moment(&self) -> Moment {
        const SOON: u64 = 10_000;
        let mut best: Option<(u64, Moment)> = None;
        for _ in 0..10 {
            let before = self.boot_nanos();
            let (wall, coarse) = (self.wall(), self.monotonic_nanos());
            let boot = self.boot_nanos();
            let took = boot.saturating_sub(before);
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, Moment { wall, boot, coarse }));
            }
            if took <= SOON {
                break;
            }
        }
        best.expect("there was at least one").1
    }

    fn wall(&self) -> Wall {
        match self {
            Self::System => {
                #[expect(clippy::disallowed_methods, reason = "this is the clock")]
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let time = Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
                Wall { time, fraction: u64::from(since.subsec_nanos()) % NANOS }
            }
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => Wall { time: clock.wall(), fraction: 0 },
        }
    }

    fn boot_nanos(&self) -> u64 {
        match self {
            Self::System => system::boot(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed().0.saturating_mul(NANOS),
        }
    }

    fn monotonic_nanos(&self) -> u64 {
        match self {
            Self::System => system::monotonic(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed().0.saturating_mul(NANOS),
        }
    }

    /// The monotonic clock, up to a tick behind.
    #[inline]
    fn coarse_nanos(&self) -> u64 {
        match self {
            Self::System => system::coarse(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(_) => self.monotonic_nanos(),
        }
    }

    /// The wall clock, up to a tick behind.
    fn coarse_wall_nanos(&self) -> u64 {
        match self {
            Self::System => system::coarse_wall(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(_) => self.wall().nanos(),
        }
    }

    /// Whether its clocks have no ticks.
    #[inline]
    fn is_manual(&self) -> bool {
        !matches!(self, Self::System)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use super::NANOS;
    use rustix::time::{ClockId, clock_gettime};

    #[inline]
    fn read(clock: ClockId) -> u64 {
        let now = clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        seconds.wrapping_mul(1000 * NANOS).wrapping_add(u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    pub(super) fn boot() -> u64 {
        read(ClockId::Boottime)
    }

    pub(super) fn monotonic() -> u64 {
        read(ClockId::Monotonic)
    }

    #[inline]
    pub(super) fn coarse() -> u64 {
        read(ClockId::MonotonicCoarse)
    }

    pub(super) fn coarse_wall() -> u64 {
        read(ClockId::RealtimeCoarse)
    }
}

/// Systems whose clock of instants is the only one that the standard library has; there the coarse
/// clocks are the precise ones.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use super::{Instant, Source, now};
    use std::sync::OnceLock;

    pub(super) fn boot() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        let since = now().saturating_duration_since(*START.get_or_init(now));
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn monotonic() -> u64 {
        boot()
    }

    pub(super) fn coarse() -> u64 {
        boot()
    }

    pub(super) fn coarse_wall() -> u64 {
        Source::System.wall().nanos()
    }
}
