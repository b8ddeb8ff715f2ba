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

use crate::time::{Anchor, KnownTime, Millis, Shift, Time};
use source::{Moment, NANOS};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "fault-injection")]
mod manual;
mod source;

#[cfg(feature = "fault-injection")]
pub use manual::ManualClock;
pub(crate) use source::{Source, now};

/// The most by which the coarse clock is behind: a tick of the kernel, at most 10 ms, where there
/// is such a clock, and 1 ms for rounding.
pub(crate) const TICK: Millis =
    if cfg!(any(target_os = "linux", target_os = "android")) { Millis(11) } else { Millis(1) };

/// The longest time for which a message can be put off: 8 years of 365 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(8 * 365 * 86_400);

/// The background, and a thread that waits for the time of a message, look at the clock at least
/// this often.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

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
    /// What the coarse clock showed at the last look at the others.
    looked_at: AtomicU64,
    /// How far the queue's time is ahead of UTC, in milliseconds.
    shift: AtomicI64,
    /// The shift that the disk has.
    noted: AtomicI64,
    /// The queue's time when that was noted.
    noted_at: AtomicU64,
    /// Whether the disk has the anchor, or there is none.
    is_anchored: AtomicBool,
}

impl Clock {
    /// Starts a clock where the last run's would be now.
    pub(crate) fn start(source: Source, known: KnownTime, anchor: Option<Anchor>) -> Self {
        let moment = source.moment();
        Self::start_at(source, moment, known, anchor)
    }

    /// A clock that starts when the source's clocks show this.
    fn start_at(source: Source, moment: Moment, known: KnownTime, anchor: Option<Anchor>) -> Self {
        let Moment { wall, boot, coarse } = moment;
        let is_of_this_boot = |anchor: &Anchor| source.boot_id() == Some(anchor.boot);
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
        let is_anchored = source.boot_id().is_none_or(|id| {
            // It says the same of every moment.
            anchor.is_some_and(|anchor| anchor.boot == id && anchor.has(start, zero))
        });
        Self {
            source,
            start,
            zero,
            coarse_zero: AtomicU64::new(zero.wrapping_sub(boot).wrapping_add(coarse)),
            gap: AtomicU64::new(wall.nanos().wrapping_sub(coarse)),
            // The first reading looks.
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
        self.start.saturating_add(Millis(elapsed / NANOS))
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

    /// The queue's time, or up to [`TICK`] less. Takes 7 ns, where the precise clock takes 24.
    #[inline]
    pub(crate) fn coarse(&self) -> Time {
        let (wall, coarse) = self.source.coarse_nanos();
        // Relaxed, here and below: each of them is a number by itself, and steps are rare.
        let gap = wall.wrapping_sub(coarse).wrapping_sub(self.gap.load(Ordering::Relaxed));
        let since = coarse.wrapping_sub(self.looked_at.load(Ordering::Relaxed));
        if gap.wrapping_add(UNUSUAL) > 2 * UNUSUAL || since > LOOK_EVERY {
            self.looked_at.store(coarse, Ordering::Relaxed);
            self.notice();
        }
        self.time(coarse, self.coarse_zero.load(Ordering::Relaxed))
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
        let boot = self.source.boot_id()?;
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

#[cfg(test)]
mod tests {
    use super::source::Wall;
    use super::*;

    #[cfg(feature = "fault-injection")]
    use std::sync::Arc;

    fn moment(wall: u64, boot: u64) -> Moment {
        let wall = Wall { time: Time(wall / NANOS), fraction: wall % NANOS };
        Moment { wall, boot, coarse: boot }
    }

    /// Each run starts at another part of a millisecond, and perhaps after a reboot. With clocks
    /// that were rounded on their own, a message could come a millisecond before its time then.
    #[test]
    fn no_run_is_ahead_of_the_one_that_stored_a_time() {
        let start = |wall, boot| {
            Clock::start_at(Source::System, moment(wall, boot), KnownTime::default(), None)
        };
        let parts = || (0..NANOS).step_by(111_111);
        let walls = parts().map(|part| 1_700_000_000 * 1000 * NANOS + part);
        for (wall, part) in walls.flat_map(|wall| parts().map(move |part| (wall, part))) {
            let first = start(wall, part);
            for later in parts().map(|part| 3 * NANOS + part) {
                // What `next` and `at` make of it: not before 5 ms from here.
                let moment = (wall + later) / NANOS + 5;
                let due =
                    first.time(part + later, first.zero).0 + 1 + moment - (wall + later) / NANOS;
                assert!(due == moment || due == moment + 1, "{due} {moment}");
                let due = Time(due);
                for again in parts() {
                    let (wall, elapsed) = (wall + later + again, 7 * NANOS + part / 2);
                    let second = start(wall, elapsed);
                    for now in (0..7 * NANOS).step_by(99_999) {
                        let is_early = (wall + now) / NANOS < moment;
                        assert!(
                            !is_early || second.time(elapsed + now, second.zero) < due,
                            "{wall} {now}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_coarse_clock_is_behind_by_a_tick_at_most() {
        let clock = Clock::start(Source::System, KnownTime::default(), None);
        for _ in 0..2000 {
            let (coarse, now) = (clock.coarse(), clock.now());
            assert!(coarse <= now && now <= clock.coarse() + TICK, "{coarse:?} {now:?}");
        }
        assert!(clock.is_past(clock.start_time()));
        assert!(!clock.is_past(clock.now() + Millis(3_600_000)));
        assert!(!clock.has_step());
    }

    /// While the system is suspended, the coarse clock stands still and the others go on.
    #[test]
    fn time_goes_on_while_the_system_is_suspended() {
        let hours = |hours: u64| hours * 3_600_000 * NANOS;
        let moment = Moment { coarse: hours(5), ..moment(hours(100), hours(9)) };
        let clock = Clock::start_at(Source::System, moment, KnownTime::default(), None);
        let time = |boot| clock.time(boot, clock.zero);
        assert_eq!((time(hours(9)), time(hours(17))), (Time(360_000_000), Time(388_800_000)));
        let coarse_zero = clock.coarse_zero.load(Ordering::Relaxed);
        assert_eq!(clock.time(hours(5), coarse_zero), Time(360_000_000));
        assert_eq!(clock.time(hours(4), coarse_zero), Time(360_000_000), "not before the start");
    }

    /// Where there is no coarse clock, a lease was over up to a millisecond early: its start had
    /// been rounded down.
    #[test]
    fn no_span_is_over_early() {
        let clock = Clock::start(Source::System, KnownTime::default(), None);
        for _ in 0..2000 {
            let began = clock.source.boot_nanos().wrapping_sub(clock.zero);
            let end = clock.after(clock.coarse(), Millis(5)).since(clock.start);
            let lasts = end.0 * NANOS - began;
            assert!(lasts >= 5 * NANOS, "{lasts} ns");
        }
    }

    #[cfg(feature = "fault-injection")]
    #[test]
    fn a_wall_clock_that_is_set_changes_the_shift_alone() {
        let day = Duration::from_secs(86_400);
        let days = |days: u32| Time::ZERO + (days * day).into();
        let manual = Arc::new(ManualClock::new(UNIX_EPOCH + 10 * day));
        let start = |known| Clock::start(Source::Manual(Arc::clone(&manual)), known, None);
        let clock = start(KnownTime::default());
        assert_eq!((clock.now(), clock.shift()), (days(10), Shift(0)));
        manual.advance(day);
        assert!(!clock.has_step());
        manual.set_wall(UNIX_EPOCH + 2 * day);
        assert!(clock.has_step());
        assert_eq!((clock.now(), clock.coarse()), (days(11), days(11)));
        assert_eq!(clock.now().utc(clock.shift()), days(2));
        assert_eq!(clock.at(UNIX_EPOCH + 3 * day), days(12), "a day from now");
        assert_eq!(clock.at(UNIX_EPOCH), days(9));
        clock.note_known(clock.known());
        assert!(!clock.has_step());
        // The next run goes on from there, and the time in between counts.
        let known = KnownTime { time: clock.now(), shift: clock.shift() };
        manual.advance(2 * day);
        let next = start(known);
        assert_eq!((next.now(), next.shift(), next.is_noted()), (days(13), known.shift, true));
        // Nothing is known: it is the wall clock's time.
        assert_eq!(start(KnownTime::default()).now(), days(4));
        // Set back while nobody ran: not before the newest time.
        manual.set_wall(UNIX_EPOCH + day);
        let set_back = start(known);
        assert_eq!((set_back.now(), set_back.has_step()), (days(11), true));
        assert_eq!(set_back.now().utc(set_back.shift()), days(1));
    }

    /// The wall clock was set while nobody ran, and the system was up all the time.
    #[cfg(feature = "fault-injection")]
    #[test]
    fn a_boot_clock_tells_of_the_time_between_two_runs() {
        let second = Duration::from_secs(1);
        let seconds = |count: u32| Time::ZERO + (count * second).into();
        let manual = |boot| ManualClock::new(UNIX_EPOCH + 20 * second).in_boot(boot);
        let clock = Arc::new(manual(1));
        let start = |known, anchor| Clock::start(Source::Manual(Arc::clone(&clock)), known, anchor);
        let first = start(KnownTime::default(), None);
        assert_eq!((first.now(), first.has_step()), (seconds(20), false));
        let (mut known, mut anchor) = (first.known(), first.anchor());
        for (run, set) in (1..5).zip([1_000_000_000, 0, 500, 2_000_000_000]) {
            clock.set_wall(UNIX_EPOCH + set * second);
            clock.advance(10 * second);
            let next = start(known, anchor);
            assert_eq!(next.now(), seconds(20 + 10 * run), "run {run}");
            assert_eq!(next.utc(next.now()), seconds(set + 10), "run {run}");
            assert!(next.has_step() && next.is_anchored.load(Ordering::Relaxed));
            (known, anchor) = (next.known(), next.anchor());
        }
        // Another boot, or a boot clock that shows less than it did: only the wall clock is left.
        for (boot, shows) in [(2, 100), (1, 0)] {
            let other = Arc::new(manual(boot));
            other.advance(shows * second);
            other.set_wall(clock.wall().into());
            other.advance(10 * second);
            let next = Clock::start(Source::Manual(other), known, anchor);
            assert_eq!(next.now(), seconds(70), "boot {boot}");
            assert!(!next.is_anchored.load(Ordering::Relaxed));
        }
        // A little ahead of the line: no step. Far ahead: another system went on with the queue.
        for ahead in [Millis(1), Millis(9_000_000)] {
            let next = start(KnownTime { time: known.time + ahead, ..known }, anchor);
            assert_eq!(next.now(), known.time + ahead);
            assert!(!next.is_anchored.load(Ordering::Relaxed));
        }
    }

    /// Or else a run that is killed, and the clock set after it, would end delays early.
    #[cfg(feature = "fault-injection")]
    #[test]
    fn a_run_that_lasts_notes_its_boot() {
        let manual = Arc::new(ManualClock::new(UNIX_EPOCH).in_boot(1));
        let clock = Clock::start(Source::Manual(Arc::clone(&manual)), KnownTime::default(), None);
        for (span, is_due) in [(29, false), (1, true), (60, true)] {
            manual.advance(Duration::from_secs(span));
            assert_eq!(clock.has_step(), is_due);
        }
        clock.note_known(clock.known());
        manual.advance(Duration::from_secs(60));
        assert!(!clock.has_step());
    }
}
