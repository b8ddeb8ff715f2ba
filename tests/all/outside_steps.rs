//! Clocks that are set again and again: at each boot, by years, by less than a second, just before
//! a close; and what that may cost.
//!
//! A board without a battery begins at the same time with each boot, and so does its clock; a clock
//! shows a year that nobody lives in. Delays never ended, or ended early, and disks filled up.

use crate::support::board::{Board, DAY, HOUR, MINUTE, SECOND, YEAR, bytes, pop, year};
use keepq::{Message, Queue};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MIB: u64 = 1 << 20;

/// A board begins at the same time with each boot, and runs for nine minutes. A delay of ten
/// minutes never ended, because each run forgot the time of those before it.
#[test]
fn a_delay_ends_where_each_boot_begins_at_the_same_time() {
    let boot = year(1970) + 20 * SECOND;
    let board = Board::at(boot);
    let queue = board.open();
    queue.push(Message::new("soon").delay(10 * MINUTE)).unwrap();
    let mut minutes = 0;
    let mut run = |queue: Queue| {
        for _ in 0..9 {
            if pop(&queue).is_some() {
                return Some(minutes);
            }
            board.clock.advance(MINUTE);
            minutes += 1;
        }
        queue.close().unwrap();
        board.clock.set_wall(boot);
        None
    };
    assert_eq!(run(queue), None);
    assert_eq!(run(board.open()), Some(10));
}

/// The clock is set back by a day while the queue is closed. The nine minutes of the run before
/// were forgotten, so ten minutes took nineteen.
#[test]
fn the_time_of_a_closed_run_counts() {
    let board = Board::at(year(2026));
    let queue = board.open();
    queue.push(Message::new("soon").delay(10 * MINUTE)).unwrap();
    board.clock.advance(9 * MINUTE);
    assert_eq!(pop(&queue), None);
    queue.close().unwrap();
    board.clock.set_wall(year(2026) - DAY);
    let queue = board.open();
    board.clock.advance(59 * SECOND);
    assert_eq!(pop(&queue), None);
    board.clock.advance(SECOND);
    assert_eq!(pop(&queue).as_deref(), Some("soon"));
}

/// The clock was set back and a segment made with that in its header; then it was set forth again,
/// to what CHECKPOINT said. That was taken for known, and after a kill a delay was over a month
/// early.
#[test]
fn a_step_back_to_what_the_disk_knew_is_a_step() {
    for syncs in [false, true] {
        let board = Board::at(year(2026));
        let queue = board.open();
        queue.push(Message::new("late").delay(30 * DAY)).unwrap();
        queue.push("soon").unwrap();
        queue.maintain().unwrap();
        board.clock.set_wall(year(2026) - 30 * DAY);
        queue.push("soon").unwrap();
        board.clock.set_wall(year(2026));
        if syncs {
            queue.sync().unwrap();
        } else {
            assert_eq!(pop(&queue).as_deref(), Some("soon"));
        }
        let board = board.killed();
        drop(queue);
        board.clock.advance(MINUTE);
        let queue = board.open();
        while let Some(text) = pop(&queue) {
            assert_eq!(text, "soon", "syncs {syncs}");
        }
        assert_eq!(queue.stats().delayed(), 1, "syncs {syncs}");
    }
}

/// Each boot begins in 1970, and gets the right time a minute later; five minutes lie between two
/// runs of five minutes. A message with a ttl of a day expired at the first boot, and the delay of
/// an hour was over at once.
#[test]
fn each_boot_begins_in_1970_and_gets_the_time_later() {
    let mut real = year(2026);
    let board = Board::at(real);
    let queue = board.open();
    queue.push(Message::new("delayed").delay(HOUR)).unwrap();
    queue.push(Message::new("lives").ttl(DAY)).unwrap();
    queue.close().unwrap();
    let (mut ran, mut is_over) = (Duration::ZERO, false);
    while !is_over {
        real += 6 * MINUTE;
        board.clock.set_wall(year(1970) + 20 * SECOND);
        let queue = board.open();
        board.clock.advance(MINUTE);
        assert!(queue.peek().unwrap().is_some(), "{ran:?}");
        board.clock.set_wall(real);
        assert!(queue.peek().unwrap().is_some(), "{ran:?}");
        board.clock.advance(4 * MINUTE);
        real += 4 * MINUTE;
        ran += 5 * MINUTE;
        let jobs = queue.pop_batch(9).unwrap();
        assert!(jobs.iter().any(|job| job[..] == *b"lives"), "{ran:?}");
        is_over = jobs.len() == 2;
        // As much time passed between the runs as in them.
        assert!(!is_over || ran >= HOUR / 2, "early, after {ran:?} of runs");
        assert!(is_over || ran < HOUR, "late, after {ran:?} of runs");
        for job in jobs {
            job.release().unwrap();
        }
        queue.close().unwrap();
    }
}

/// The clock goes by centuries, forward and back, between runs: every message is there, in order.
#[test]
fn years_back_and_forth_lose_no_message() {
    for years in [[9500, 2026], [2230, 1971], [1971, 9500]] {
        let board = Board::at(year(years[0]));
        for number in 0..40 {
            board.clock.set_wall(year(years[number % 2]));
            let queue = board.open();
            let context = format!("{years:?} {number}: {:?}", queue.recovery());
            assert!(queue.recovery().is_clean(), "{context}");
            assert_eq!(queue.len(), number as u64, "{context}");
            queue.push(format!("{number}")).unwrap();
            queue.close().unwrap();
        }
        let queue = board.open();
        for number in 0..40 {
            let message = queue.pop().unwrap().unwrap();
            assert_eq!(message[..], *number.to_string().as_bytes(), "{years:?}");
            assert_eq!(message.pushed_at(), year(years[number % 2]), "{years:?}");
            message.ack().unwrap();
        }
        assert_eq!(pop(&queue), None, "{years:?}");
    }
}

/// The clock shows a time near the end of all times, or behind it: what is confirmed is there.
#[test]
fn what_is_confirmed_at_the_end_of_times_is_there() {
    let end = UNIX_EPOCH + Duration::from_millis(1 << 48);
    for first in [end - 10 * SECOND, end, end + HOUR, year(11_000)] {
        for then in [end - 5 * SECOND, year(2026), year(11_000)] {
            let board = Board::at(first);
            let mut confirmed = Vec::new();
            for run in 0..3 {
                // A queue may refuse what has no time. It must not say that it has it.
                if let Ok(queue) = board.options().open("q") {
                    let context = format!("{first:?} {then:?} {run}: {:?}", queue.recovery());
                    assert_eq!(queue.len(), confirmed.len() as u64, "{context}");
                    for minute in 0..3 {
                        let text = format!("run {run}, minute {minute}");
                        confirmed.extend(queue.push(&text).is_ok().then_some(text));
                        board.clock.advance(MINUTE);
                    }
                    queue.close().unwrap();
                }
                board.clock.set_wall(then);
            }
            // Whatever the clock showed: a queue of today goes on.
            board.clock.set_wall(year(2026));
            let queue = board.open();
            let found: Vec<String> = std::iter::from_fn(|| pop(&queue)).collect();
            assert_eq!(found, confirmed, "{first:?} {then:?}");
        }
    }
}

/// A step of less than half a second was no step: a delay of a second ended 400 ms early.
#[test]
fn a_small_step_ends_no_delay_early() {
    let board = Board::at(year(2026));
    let queue = board.open();
    queue.push(Message::new("soon").delay(SECOND)).unwrap();
    board.clock.set_wall(year(2026) + Duration::from_millis(450));
    assert_eq!(pop(&queue), None);
    queue.close().unwrap();
    board.clock.advance(Duration::from_millis(600));
    let queue = board.open();
    assert_eq!(pop(&queue), None, "400 ms early");
    board.clock.advance(Duration::from_millis(400));
    assert_eq!(pop(&queue).as_deref(), Some("soon"));
}

/// The clock is set just before an orderly close, and nobody looks at it in between: what was
/// delayed came at once, and what may live a day had expired.
#[test]
fn a_step_just_before_an_orderly_close_counts() {
    type Look = (&'static str, fn(&Queue));
    let looks: [Look; 5] = [
        ("none", |_| {}),
        ("peek", |queue| assert!(queue.peek().unwrap().is_some())),
        ("maintain", |queue| queue.maintain().unwrap()),
        ("sync", |queue| queue.sync().unwrap()),
        ("get", |queue| assert!(queue.get(2.into()).unwrap().is_some())),
    ];
    for (look, act) in looks {
        for is_running in [false, true] {
            for (before, after) in [(1970, 2026), (2026, 1970)] {
                let board = Board::at(year(before) + DAY);
                let queue = board.options().background(is_running).open("q").unwrap();
                queue.push(Message::new("soon").delay(HOUR)).unwrap();
                queue.push(Message::new("lives").ttl(DAY)).unwrap();
                board.clock.set_wall(year(after));
                act(&queue);
                queue.close().unwrap();
                let queue = board.open();
                let context = format!("{look}, background {is_running}, {before} to {after}");
                assert_eq!(pop(&queue).as_deref(), Some("lives"), "{context}");
                assert_eq!(pop(&queue), None, "{context}");
                board.clock.advance(HOUR);
                assert_eq!(pop(&queue).as_deref(), Some("soon"), "{context}");
            }
        }
    }
}

/// CHECKPOINT is lost, and the newest segment, which has the step in its header, was made by an
/// idle queue that shrank: nothing was pushed to it yet.
#[test]
fn an_empty_newest_segment_tells_the_step() {
    let board = Board::at(year(1970) + DAY);
    let options = || board.options().segment_bytes(4 << 20);
    let queue = options().open("q").unwrap();
    for _ in 0..12 {
        queue.push(Message::new("delayed".repeat(15_000)).delay(HOUR)).unwrap();
    }
    board.clock.set_wall(year(2026));
    queue.push("x".repeat(1_000_000)).unwrap();
    assert!(pop(&queue).is_some());
    assert_eq!(queue.delayed(), 12);
    board.clock.advance(MINUTE);
    queue.maintain().unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
    board.directory().remove("CHECKPOINT").unwrap();
    let queue = options().open("q").unwrap();
    assert!(queue.pop().unwrap().is_none(), "an hour was over after a minute");
    board.clock.advance(HOUR);
    assert_eq!(queue.pop_batch(20).unwrap().len(), 12);
}

/// A clock that is set with each message made a file of full size for each: 40 short messages took
/// more than 2 GB.
#[test]
fn steps_cost_little_disk() {
    let board = Board::at(year(2026));
    let queue = board.options().segment_bytes(64 << 20).open("q").unwrap();
    for number in 0..40 {
        let wall = year(2026) + number * Duration::from_millis(3) + number % 2 * SECOND;
        board.clock.set_wall(wall);
        queue.push(format!("{number}")).unwrap();
    }
    let disk = bytes(&*board.directory());
    // 64 MiB are ready, as they are without a step.
    assert!(disk < 100 * MIB, "{} MiB for 40 short messages", disk / MIB);
}

/// The same under a limit: the queue was full after some messages of a few bytes.
#[test]
fn steps_fill_no_queue() {
    let board = Board::at(year(2026));
    let options = board.options().segment_bytes(64 << 20).max_bytes(16 * MIB);
    let queue = options.open("q").unwrap();
    for number in 0..300_u32 {
        let wall = year(2026) + number % 7 * SECOND + number * Duration::from_millis(1);
        board.clock.set_wall(wall);
        if let Err(error) = queue.push(format!("{number}")) {
            panic!("{number}: {error:?}, {} segments", queue.stats().segments());
        }
    }
    assert_eq!(queue.len(), 300);
}

/// Only CHECKPOINT knew of the step, and it was lost, which is to cost time and no more: an hour's
/// delay was over at once, and what may live a day had expired.
#[test]
fn a_lost_checkpoint_ends_no_delay() {
    let board = Board::at(year(1970) + DAY);
    let queue = board.open();
    queue.push(Message::new("soon").delay(HOUR)).unwrap();
    queue.push(Message::new("lives").ttl(DAY)).unwrap();
    board.clock.set_wall(year(2026));
    assert!(queue.peek().unwrap().is_some());
    queue.close().unwrap();
    board.directory().remove("CHECKPOINT").unwrap();
    let queue = board.open();
    assert_eq!(pop(&queue).as_deref(), Some("lives"));
    assert_eq!(pop(&queue), None);
    board.clock.advance(HOUR);
    assert_eq!(pop(&queue).as_deref(), Some("soon"));
}

/// A byte of either slot of CHECKPOINT rots after a step: where the other slot was older than the
/// step, the delay was over at once.
#[test]
fn a_rotten_slot_of_checkpoint_ends_no_delay() {
    for (slot, is_orderly) in [(0, true), (1, true), (0, false), (1, false)] {
        let board = Board::at(year(1970) + DAY);
        let queue = board.open();
        queue.push(Message::new("soon").delay(HOUR)).unwrap();
        queue.push(Message::new("lives").ttl(DAY)).unwrap();
        queue.close().unwrap();
        let queue = board.open();
        queue.maintain().unwrap();
        board.clock.set_wall(year(2026));
        // Without a background, a pop notes the step, also one that finds nothing.
        queue.pop().unwrap().unwrap().release().unwrap();
        let board = if is_orderly {
            queue.close().unwrap();
            board
        } else {
            board.killed()
        };
        let mut bytes = board.storage.read("q/CHECKPOINT").unwrap();
        let half = bytes.len() / 2;
        bytes[slot * half + 40] ^= 1;
        board.storage.write("q/CHECKPOINT", bytes);
        let queue = board.open();
        let context = format!("slot {slot}, orderly {is_orderly}");
        assert_eq!(queue.delayed(), 1, "{context}");
        assert_eq!(pop(&queue).as_deref(), Some("lives"), "{context}");
        assert_eq!(pop(&queue), None, "{context}");
    }
}

/// A segment is begun for a step where messages wait. There is no room for it: the step is noted in
/// CHECKPOINT, nothing fails, and nothing of a segment stays behind.
#[test]
fn a_step_needs_no_room() {
    let board = Board::at(year(2026));
    let options = || board.options().max_bytes(MIB);
    let queue = options().open("q").unwrap();
    queue.push(Message::new("soon").delay(HOUR)).unwrap();
    while queue.push(vec![7; 20_000]).is_ok() {}
    let before = bytes(&board.storage);
    for step in 1..=20 {
        board.clock.set_wall(year(2026 + step));
        queue.pop().unwrap().unwrap().release().unwrap();
    }
    assert_eq!(queue.stats().last_background_error(), None);
    assert!(bytes(&board.storage) <= before.max(MIB) + 16_384);
    queue.close().unwrap();
    let queue = options().open("q").unwrap();
    assert_eq!(queue.delayed(), 1);
}

/// Nothing waits: a step makes no file.
#[test]
fn a_step_makes_no_file_in_an_empty_queue() {
    let board = Board::at(year(2026));
    let queue = board.open();
    queue.push("x").unwrap();
    assert_eq!(pop(&queue).as_deref(), Some("x"));
    queue.maintain().unwrap();
    let names = || board.directory().list().unwrap().into_iter().map(|entry| entry.name);
    let before: Vec<String> = names().collect();
    board.clock.set_wall(year(2027));
    assert_eq!(pop(&queue), None);
    queue.maintain().unwrap();
    assert_eq!(names().collect::<Vec<_>>(), before);
}

/// A segment was ready when the clock was set. The small one that was begun for that came first;
/// then the clock was set back to the millisecond, and the one that was ready was used behind it.
/// After a kill all that was pushed since was cut off, and after a close it was told as lost.
#[test]
fn a_step_and_a_step_back_lose_nothing() {
    let numbered = |number: u32| {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(30_000, 7);
        payload
    };
    for (looks, is_killed) in [(true, true), (true, false), (false, true), (false, false)] {
        let board = Board::at(year(2026));
        let options = || board.options().segment_bytes(MIB);
        let queue = options().open("q").unwrap();
        let push = |numbers: std::ops::RangeInclusive<u32>| {
            for number in numbers {
                queue.push(numbered(number)).unwrap();
            }
        };
        push(1..=15);
        // The next segment is ready.
        queue.maintain().unwrap();
        let look = || queue.pop().unwrap().unwrap().release().unwrap();
        board.clock.set_wall(year(2027));
        look();
        push(16..=16);
        board.clock.set_wall(year(2026));
        if looks {
            look();
        }
        push(17..=76);
        let disk = if is_killed {
            board.storage.killed()
        } else {
            queue.close().unwrap();
            board.storage.killed()
        };
        let board = Board { storage: disk, clock: board.clock.clone() };
        let queue = board.options().segment_bytes(MIB).open("q").unwrap();
        let context = format!("looks: {looks}, killed: {is_killed}");
        assert_eq!(queue.damage(), [], "{context}");
        let jobs = queue.pop_batch(100).unwrap();
        let numbers = jobs.iter().map(|job| u32::from_le_bytes(job[..4].try_into().unwrap()));
        assert_eq!(numbers.collect::<Vec<_>>(), (1..=76).collect::<Vec<_>>(), "{context}");
    }
}

/// `not_before` was a time of the queue's own time line, and so was the time that the refusal of a
/// push named: both were off by the whole step.
#[test]
fn every_time_that_is_told_is_what_a_clock_shows() {
    for (before, after) in [(1980, 2026), (2026, 1980)] {
        let board = Board::at(year(before));
        let options = || board.options().max_attempts(3).dead_letters(true);
        let queue = options().open("q").unwrap();
        queue.push("rejected").unwrap();
        queue.push("first").unwrap();
        queue.push(Message::new("pushed before").delay(3 * DAY)).unwrap();
        board.clock.advance(HOUR);
        board.clock.set_wall(year(after));
        queue.push(Message::new("in an hour").delay(HOUR)).unwrap();
        queue.push(Message::new("at a time").deliver_at(year(after) + DAY)).unwrap();
        board.clock.advance(MINUTE);
        let job = queue.pop().unwrap().unwrap();
        assert_eq!(job.pushed_at(), year(before));
        job.reject("no").unwrap();
        queue.maintain().unwrap();
        let refused = queue.push(Message::new("no").deliver_at(year(after) + 9 * YEAR));
        let named = format!("{:?}", year(after) + 9 * YEAR);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(&named), "{refused}, not {named}");
        let all = [
            ("first", year(before), None),
            // An hour of it was over at the step.
            ("pushed before", year(before), Some(year(after) + 3 * DAY - HOUR)),
            ("in an hour", year(after), Some(year(after) + HOUR)),
            ("at a time", year(after), Some(year(after) + DAY)),
        ];
        check_times(&queue, &all, before);
        queue.close().unwrap();
        board.clock.advance(MINUTE);
        let queue = options().open("q").unwrap();
        assert_eq!(queue.stats().uptime(), Duration::ZERO);
        check_times(&queue, &all, before);
        // Set again, and nobody has looked since then.
        board.clock.set_wall(year(2030));
        for (seq, (text, _, due)) in [(3, all[1]), (5, all[3])] {
            // Two minutes have passed since the step.
            let left = due.unwrap().duration_since(year(after) + 2 * MINUTE).unwrap();
            let shown = queue.get(seq.into()).unwrap().unwrap();
            assert_eq!(shown.not_before(), Some(year(2030) + left), "{text}");
        }
    }
}

/// What each message that waits tells, in order: when it was pushed, and when it is due.
fn check_times(queue: &Queue, all: &[(&str, SystemTime, Option<SystemTime>)], before: u32) {
    let age = queue.stats().oldest().unwrap();
    let (least, most) = (HOUR + MINUTE, HOUR + 2 * MINUTE);
    assert!((least..=most).contains(&age), "{age:?}");
    let stuck = &queue.stuck(9).unwrap()[0];
    assert_eq!((stuck.pushed_at(), stuck.age()), (year(before), age));
    assert_eq!(queue.peek().unwrap().unwrap().pushed_at(), year(before));
    let shown: Vec<_> = queue.iter().map(Result::unwrap).collect();
    assert_eq!(shown.len(), all.len());
    for (message, (text, pushed_at, due)) in shown.iter().zip(all) {
        assert_eq!(message[..], *text.as_bytes());
        assert_eq!((message.pushed_at(), message.not_before()), (*pushed_at, *due), "{text}");
        let one = queue.get(message.seq()).unwrap().unwrap();
        assert_eq!((one.pushed_at(), one.not_before()), (*pushed_at, *due), "{text}");
    }
    let dead = queue.dead_letters().unwrap();
    let letter = dead.iter().next().unwrap().unwrap();
    assert_eq!(letter.dead_letter().unwrap().pushed_at(), year(before));
    let waited = queue.stats().waiting_time().max();
    assert!(waited == Duration::ZERO || (least..=most).contains(&waited), "{waited:?}");
}
