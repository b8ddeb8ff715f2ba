//! Tests of the clock.

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
        Clock::start_at(Source::System, moment(wall, boot), KnownTime::default(), Boot::default())
    };
    let parts = || (0..NANOS).step_by(111_111);
    let walls = parts().map(|part| 1_700_000_000 * 1000 * NANOS + part);
    for (wall, part) in walls.flat_map(|wall| parts().map(move |part| (wall, part))) {
        let first = start(wall, part);
        for later in parts().map(|part| 3 * NANOS + part) {
            // What `next` and `at` make of it: not before 5 ms from here.
            let moment = (wall + later) / NANOS + 5;
            let due = first.time(part + later, first.zero).0 + 1 + moment - (wall + later) / NANOS;
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
    let clock = Clock::start(Source::System, KnownTime::default(), Boot::default());
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
    let clock = Clock::start_at(Source::System, moment, KnownTime::default(), Boot::default());
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
    let clock = Clock::start(Source::System, KnownTime::default(), Boot::default());
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
    let start = |known| Clock::start(Source::Manual(Arc::clone(&manual)), known, Boot::default());
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
    let start = |known, anchor| {
        let boot = Boot { id: None, anchor };
        Clock::start(Source::Manual(Arc::clone(&clock)), known, boot)
    };
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
        let next = Clock::start(Source::Manual(other), known, Boot { id: None, anchor });
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
    let clock =
        Clock::start(Source::Manual(Arc::clone(&manual)), KnownTime::default(), Boot::default());
    for (span, is_due) in [(29, false), (1, true), (60, true)] {
        manual.advance(Duration::from_secs(span));
        assert_eq!(clock.has_step(), is_due);
    }
    clock.note_known(clock.known());
    manual.advance(Duration::from_secs(60));
    assert!(!clock.has_step());
}
