//! Golden directories of a clock that was set, and of consumers that are halfway: the times and the
//! offset in them are read as ever, by keepq and from the page.

use crate::golden::{CASES, copy, golden, options, text};
use crate::support::reader::{self, Added, Anchor};
use keepq::fault::ManualClock;
use keepq::{Message, Queue};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When the clock of `stepped` was first read.
const FIRST: u64 = 1_600_000_000;
const DAY: u64 = 86_400;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The clock was set forward by a thousand days, then back to before the first push, while the
/// queue was open; between two messages at a time a second passed.
pub(crate) fn stepped(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(at(FIRST)));
    let queue = options().clock(clock.clone()).open(dir.path()).unwrap();
    let day = Duration::from_secs(DAY);
    let push = |message: Message| {
        queue.push(message).unwrap();
        clock.advance(Duration::from_secs(1));
    };
    push(Message::new("first"));
    push(Message::new("delayed by 3 days").delay(3 * day));
    clock.set_wall(at(FIRST + 1000 * DAY));
    push(Message::new("after the step forward"));
    push(Message::new("delayed by 5 days").delay(5 * day));
    clock.set_wall(at(FIRST - 2000 * DAY));
    push(Message::new("after the step back"));
    push(Message::new("delayed by a day").delay(day));
    queue.pop().unwrap().unwrap().nack_after(2 * day).unwrap();
    queue.close().unwrap();
    copy(dir.path(), into);
}

/// Consumers are some way into the second segment; one message before that is still with one.
pub(crate) fn offset(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch((1..=30).map(|number| text(number).repeat(60))).unwrap();
    queue.push_batch((31..=60).map(|number| text(number).repeat(60))).unwrap();
    let mut jobs = queue.pop_batch(45).unwrap();
    let held = jobs.remove(39);
    queue.ack_batch(jobs).unwrap();
    queue.maintain().unwrap();
    drop(held);
    queue.close().unwrap();
    copy(dir.path(), into);
}

/// The boot of `anchored`.
const BOOT: u128 = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;

/// One boot, in which the wall clock was set between two runs and after them.
pub(crate) fn anchored(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(at(20)).in_boot(BOOT));
    let day = Duration::from_secs(DAY);
    for (message, wall) in [
        (Message::new("delayed by 3 days").delay(3 * day), at(FIRST)),
        (Message::new("ready"), at(FIRST + 1000 * DAY)),
    ] {
        let queue = options().clock(clock.clone()).open(dir.path()).unwrap();
        queue.push(message).unwrap();
        clock.advance(Duration::from_secs(1));
        queue.close().unwrap();
        clock.set_wall(wall);
    }
    copy(dir.path(), into);
}

/// All texts, with the times at which they were pushed.
fn times(queue: &Queue) -> Vec<(String, SystemTime)> {
    let messages = queue.iter().map(Result::unwrap);
    messages.map(|one| (String::from_utf8_lossy(&one).into_owned(), one.pushed_at())).collect()
}

/// What would be handed out now.
fn ready(queue: &Queue) -> Vec<String> {
    let jobs = queue.pop_batch(9).unwrap();
    let texts = jobs.iter().map(|job| String::from_utf8_lossy(job).into_owned()).collect();
    for job in jobs {
        job.release().unwrap();
    }
    texts
}

/// Messages that were pushed under a clock that was set have the times that it showed, and their
/// delays end when they were to.
#[test]
fn times_and_delays_are_read_as_ever() {
    let today = tempfile::tempdir().unwrap();
    stepped(today.path());
    for directory in [&golden().join("stepped"), today.path()] {
        let work = tempfile::tempdir().unwrap();
        copy(directory, work.path());
        // A minute after the end.
        let (forward, back) = (FIRST + 1000 * DAY, FIRST - 2000 * DAY);
        let clock = Arc::new(ManualClock::new(at(back + 62)));
        let queue = options().clock(clock.clone()).open(work.path()).unwrap();
        let expected = [
            ("first", FIRST),
            ("delayed by 3 days", FIRST + 1),
            ("after the step forward", forward),
            ("delayed by 5 days", forward + 1),
            ("after the step back", back),
            ("delayed by a day", back + 1),
        ];
        assert_eq!(times(&queue), expected.map(|(text, time)| (text.to_string(), at(time))));
        assert_eq!(ready(&queue), ["after the step forward", "after the step back"]);
        let (mut there, mut passed) = (2, 0);
        for (days, text) in [(1, 5), (2, 0), (3, 1), (5, 3)] {
            // Some seconds had passed before.
            clock.advance(Duration::from_secs(days * DAY - 120 - passed));
            assert_eq!(ready(&queue).len(), there, "early after {days} days");
            clock.advance(Duration::from_secs(120));
            passed = days * DAY;
            there += 1;
            let ready = ready(&queue);
            let is_there = ready.iter().any(|ready| ready == expected[text].0);
            assert!(is_there && ready.len() == there, "late after {days} days: {ready:?}");
        }
    }
}

/// What CHECKPOINT has that was added to the end of its body; none in those of before.
fn added(directory: &Path) -> Option<Added> {
    let (checkpoint, ..) = reader::read_checkpoint(directory);
    Some(checkpoint.added).filter(|added| added.time > 0)
}

/// The page is enough to tell how far consumers are.
#[test]
fn the_page_is_enough_to_read_how_far_consumers_are_by() {
    for (name, case) in CASES.into_iter().filter(|(name, _)| *name != "damaged") {
        let today = tempfile::tempdir().unwrap();
        case(today.path());
        for directory in [&golden().join(name), today.path()] {
            if !directory.join("CHECKPOINT").exists() {
                continue;
            }
            let Some(added) = added(directory) else {
                assert!(directory != today.path(), "{name}");
                continue;
            };
            let work = tempfile::tempdir().unwrap();
            copy(directory, work.path());
            let queue = options().open(work.path()).unwrap();
            let first = queue.iter().next().map_or(u64::MAX, |one| one.unwrap().seq().into());
            assert!(added.floor <= first, "{name}: {added:?}, {first} is the first");
            let (_, _, segments) = reader::read_checkpoint(directory);
            if let Some(used) = segments.iter().find(|used| used.ordinal == added.floor_ordinal) {
                let place = used.first_seq.map(|first| first + u64::from(added.floor_index));
                assert_eq!(place, Some(added.floor), "{name}: {added:?}");
            }
        }
    }
}

#[test]
fn the_offset_is_read_as_ever() {
    let today = tempfile::tempdir().unwrap();
    offset(today.path());
    for directory in [&golden().join("offset"), today.path()] {
        let added = added(directory).unwrap();
        // The floor may be one behind.
        assert!((39..=40).contains(&added.floor) && added.cursor == 46, "{added:?}");
        let work = tempfile::tempdir().unwrap();
        copy(directory, work.path());
        let queue = options().open(work.path()).unwrap();
        let job = queue.pop().unwrap().unwrap();
        assert_eq!((job.seq(), job.attempts()), (40.into(), 2));
        let floor = u64::from(queue.stats().floor());
        assert!((39..=40).contains(&floor), "{floor}");
        assert_eq!(queue.pop().unwrap().unwrap().seq(), 46.into());
    }
    // The step is in CHECKPOINT, too.
    let added = added(&golden().join("stepped")).unwrap();
    let utc = added.time.cast_signed() - added.clock_shift;
    assert_eq!(utc, (FIRST - 2000 * DAY + 2).cast_signed() * 1000, "{added:?}");
}

/// In the same boot, the time between two runs is what its clock says; else what the wall clock
/// does.
#[test]
fn a_boot_is_known_again() {
    let today = tempfile::tempdir().unwrap();
    anchored(today.path());
    for directory in [&golden().join("anchored"), today.path()] {
        let (checkpoint, ..) = reader::read_checkpoint(directory);
        // That of the second run. The boot clock began with 1 ms.
        let expected = Anchor { boot: BOOT.to_le_bytes(), time: 21_000, nanos: 1_001_000_000 };
        assert_eq!(checkpoint.anchor, Some(expected));
        // A second had passed in each of two runs, and since then an hour.
        for boot in [BOOT, 1] {
            let work = tempfile::tempdir().unwrap();
            copy(directory, work.path());
            let clock = Arc::new(ManualClock::new(at(FIRST)).in_boot(boot));
            clock.advance(Duration::from_secs(3602));
            clock.set_wall(at(FIRST + 1000 * DAY + 3600));
            let queue = options().clock(clock.clone()).open(work.path()).unwrap();
            if boot == BOOT {
                assert_eq!(ready(&queue), ["ready"]);
                clock.advance(Duration::from_secs(3 * DAY - 3603));
                assert_eq!(ready(&queue), ["ready"]);
                clock.advance(Duration::from_secs(1));
            }
            let mut ready = ready(&queue);
            ready.sort();
            assert_eq!(ready, ["delayed by 3 days", "ready"]);
        }
    }
}
