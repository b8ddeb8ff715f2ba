//! Clocks that are set, and clocks that stand still.
//!
//! A board without a battery boots in 1970, and NTP sets its clock while the queue is open; a clock
//! is set back while nobody runs; a laptop sleeps. All of it was met in public reports: delays were
//! over at once or never, messages expired that were new, and times were wrong for ever.

use crate::support::board::{Board, DAY, HOUR, MINUTE, SECOND, pop, year};
use keepq::fault::ManualClock;
use keepq::{Expired, Message};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// After the clock was set forward and a restart, an hour's delay was over at once, and what may
/// live a day was dropped: stored times were those of the run's own time line.
#[test]
fn a_clock_that_is_set_forward_ends_no_delay() {
    for is_killed in [false, true] {
        for pushes_after in [false, true] {
            let board = Board::at(year(1970) + 20 * SECOND);
            let queue = board.open();
            queue.push(Message::new("delayed").delay(HOUR)).unwrap();
            queue.push(Message::new("lives").ttl(DAY)).unwrap();
            queue.push("put off").unwrap();
            let job = queue.pop_batch(2).unwrap();
            for job in job {
                if &job[..] == b"put off" {
                    job.nack_after(HOUR).unwrap();
                } else {
                    job.release().unwrap();
                }
            }
            board.clock.advance(5 * SECOND);
            board.clock.set_wall(year(2026));
            if pushes_after {
                queue.push(Message::new("second").delay(2 * HOUR)).unwrap();
            } else {
                // A look is enough to notice.
                assert!(queue.pop().unwrap().is_some());
            }
            let board = if is_killed {
                std::mem::forget(queue);
                board.killed()
            } else {
                queue.close().unwrap();
                board
            };
            board.clock.advance(30 * MINUTE);
            let queue = board.open();
            let context = format!("killed {is_killed}, pushes {pushes_after}");
            assert_eq!(pop(&queue).as_deref(), Some("lives"), "{context}");
            assert_eq!(pop(&queue), None, "{context}");
            queue.close().unwrap();
            // The time in which nobody ran counts, too.
            board.clock.advance(30 * MINUTE);
            let queue = board.open();
            let mut due = [pop(&queue).unwrap(), pop(&queue).unwrap()];
            due.sort();
            assert_eq!(due, ["delayed", "put off"], "{context}");
            assert_eq!(pop(&queue), None);
            board.clock.advance(HOUR);
            assert_eq!(pop(&queue).as_deref(), pushes_after.then_some("second"), "{context}");
        }
    }
}

/// A clock that was set back while nobody ran: a delay of ten minutes took a day of short runs,
/// because the time in each of them was forgotten.
#[test]
fn a_clock_that_is_set_back_makes_no_delay_longer() {
    for is_killed in [false, true] {
        let mut board = Board::at(year(2026));
        let queue = board.open();
        queue.push(Message::new("soon").delay(10 * MINUTE)).unwrap();
        queue.close().unwrap();
        board.clock.set_wall(year(2026) - DAY);
        // Runs of a minute, without a push.
        let mut minutes = 0;
        loop {
            let queue = board.open();
            if pop(&queue).is_some() {
                break;
            }
            board.clock.advance(MINUTE);
            minutes += 1;
            assert!(minutes <= 10, "{is_killed}");
            if is_killed {
                std::mem::forget(queue);
                board = board.killed();
            } else {
                queue.close().unwrap();
            }
        }
        assert_eq!(minutes, 10, "{is_killed}");
    }
}

/// The same while the queue is open.
#[test]
fn a_clock_that_is_set_back_under_an_open_queue_makes_no_delay_longer() {
    let board = Board::at(year(2026));
    let queue = board.open();
    queue.push(Message::new("soon").delay(10 * MINUTE)).unwrap();
    board.clock.set_wall(year(2000));
    board.clock.advance(4 * MINUTE);
    assert_eq!(pop(&queue), None);
    queue.push(Message::new("later").delay(10 * MINUTE)).unwrap();
    queue.close().unwrap();
    // Nobody runs for five minutes, which counts.
    board.clock.advance(5 * MINUTE);
    let queue = board.open();
    assert_eq!(pop(&queue), None);
    board.clock.advance(MINUTE);
    assert_eq!(pop(&queue).as_deref(), Some("soon"));
    board.clock.advance(3 * MINUTE);
    assert_eq!(pop(&queue), None);
    board.clock.advance(MINUTE);
    assert_eq!(pop(&queue).as_deref(), Some("later"));
}

/// After one run in the year 9500, every later message was pushed in the year 9500.
#[test]
fn the_time_of_a_push_is_what_the_clock_showed() {
    let board = Board::at(year(9500));
    let queue = board.open();
    queue.push("far away").unwrap();
    queue.push("dies there").unwrap();
    queue.close().unwrap();
    board.clock.set_wall(year(2026));
    for number in 0..5 {
        let queue = board.open();
        queue.push(format!("push {number}")).unwrap();
        board.clock.advance(HOUR);
        if number == 2 {
            queue.compact().unwrap();
        }
        queue.close().unwrap();
    }
    let queue = board.open();
    let times: Vec<SystemTime> =
        (&queue).into_iter().map(|message| message.unwrap().pushed_at()).collect();
    let mut expected = vec![year(9500), year(9500)];
    expected.extend((0..5).map(|number| year(2026) + number * HOUR));
    assert_eq!(times, expected);
    // Dead letters tell it, too, and are matched by it.
    let jobs = queue.pop_batch(7).unwrap();
    assert_eq!(jobs[0].pushed_at(), year(9500));
    for job in jobs {
        job.reject("no").unwrap();
    }
    queue.close().unwrap();
    let queue = board.open();
    let dead = queue.dead_letters().unwrap();
    let letters = dead.pop_batch(9).unwrap();
    let told: Vec<SystemTime> =
        letters.iter().map(|letter| letter.dead_letter().unwrap().pushed_at()).collect();
    assert_eq!(told, expected);
    assert_eq!(queue.len(), 0);
}

/// Nothing expires early, and nothing that is over is handed out, whatever the clock is set to.
#[test]
fn what_expires_does_so_by_the_time_that_passed() {
    for (before, after) in [(1970, 2026), (2026, 1999), (9500, 2026), (2026, 2027)] {
        for restarts in [false, true] {
            let board = Board::at(year(before) + DAY);
            let open = || {
                let options = board.options().message_ttl(2 * HOUR).expired(Expired::Drop);
                options.open("q").unwrap()
            };
            let mut queue = open();
            queue.push("by the option").unwrap();
            queue.push(Message::new("by itself").ttl(HOUR)).unwrap();
            board.clock.set_wall(year(after));
            assert!(queue.peek().unwrap().is_some());
            board.clock.advance(30 * MINUTE);
            if restarts {
                queue.close().unwrap();
                board.clock.advance(29 * MINUTE);
                queue = open();
            } else {
                board.clock.advance(29 * MINUTE);
            }
            let both = queue.pop_batch(9).unwrap();
            assert_eq!(both.len(), 2, "{before} {after} {restarts}");
            for job in both {
                job.release().unwrap();
            }
            board.clock.advance(2 * MINUTE);
            let one = queue.pop_batch(9).unwrap();
            assert_eq!(one.len(), 1, "{before} {after} {restarts}");
            assert_eq!(&one[0][..], b"by the option");
            for job in one {
                job.release().unwrap();
            }
            board.clock.advance(HOUR);
            assert_eq!(queue.pop_batch(9).unwrap().len(), 0, "{before} {after} {restarts}");
        }
    }
}

/// A time of the wall clock is the time at which it shows that, as it was set at the push.
#[test]
fn a_moment_is_one_of_the_clock_as_it_is_set() {
    let board = Board::at(year(1970) + DAY);
    let queue = board.open();
    queue.push("first").unwrap();
    board.clock.set_wall(year(2026));
    queue.push(Message::new("at noon").deliver_at(year(2026) + 12 * HOUR)).unwrap();
    assert_eq!(pop(&queue).as_deref(), Some("first"));
    board.clock.advance(11 * HOUR + 59 * MINUTE + 59 * SECOND);
    assert_eq!(pop(&queue), None);
    queue.close().unwrap();
    let queue = board.open();
    assert_eq!(pop(&queue), None);
    board.clock.advance(SECOND + Duration::from_millis(1));
    assert_eq!(pop(&queue).as_deref(), Some("at noon"));
}

/// Where consumers are is noted beside the segments, and shown.
#[test]
fn how_far_consumers_are_outlives_the_run() {
    let board = Board::at(year(2026));
    let queue = board.open();
    for number in 0..300 {
        queue.push(format!("{number:0>300}")).unwrap();
    }
    assert_eq!((queue.stats().floor(), queue.stats().cursor()), (1.into(), 1.into()));
    let mut jobs = queue.pop_batch(100).unwrap();
    let held = jobs.split_off(90);
    queue.ack_batch(jobs).unwrap();
    assert_eq!(queue.stats().cursor(), 101.into());
    // It may be one behind.
    let floor = u64::from(queue.stats().floor());
    assert!((90..=91).contains(&floor), "{floor}");
    drop(held);
    queue.close().unwrap();
    let queue = board.open();
    let floor = u64::from(queue.stats().floor());
    assert!(floor <= 91, "{floor}");
    // What a consumer had and did not answer comes first.
    let next = queue.pop_batch(20).unwrap();
    let seqs: Vec<u64> = next.iter().map(|job| u64::from(job.seq())).collect();
    assert_eq!(seqs, (91..=110).collect::<Vec<u64>>());
    assert_eq!(next.iter().filter(|job| job.attempts() == 2).count(), 10);
}

/// A program that runs for a second each minute: the clock was set by decades while it did not run,
/// and every message with a time to live was taken for outlived, every delay for over.
#[test]
fn a_clock_that_is_set_between_short_runs_of_one_boot() {
    for is_back in [false, true] {
        let board = Board::at(year(if is_back { 2026 } else { 1970 }) + 20 * SECOND).in_boot(1);
        let mut passed = Duration::ZERO;
        for run in 0..6 {
            let queue = board.open();
            if run == 0 {
                queue.push(Message::new("delayed").delay(10 * MINUTE)).unwrap();
                queue.push(Message::new("lives").ttl(HOUR)).unwrap();
            }
            let job = queue.pop().unwrap().expect("it lives");
            assert_eq!(&job[..], b"lives", "{run}, {is_back}");
            job.release().unwrap();
            assert_eq!(queue.stats().expired(), 0);
            board.clock.advance(SECOND);
            queue.close().unwrap();
            if run == 1 {
                board.clock.set_wall(year(if is_back { 1980 } else { 2026 }));
            }
            board.clock.advance(MINUTE);
            passed += SECOND + MINUTE;
        }
        board.clock.advance((10 * MINUTE).saturating_sub(passed));
        let queue = board.open();
        assert_eq!(pop(&queue).as_deref(), Some("delayed"), "{is_back}");
        assert_eq!(pop(&queue).as_deref(), Some("lives"));
        // After another boot, only the wall clock is left.
        queue.push(Message::new("lives").ttl(HOUR)).unwrap();
        queue.close().unwrap();
        let board = board.in_boot(2);
        board.clock.advance(HOUR);
        assert_eq!(pop(&board.open()), None);
    }
}

/// A run that is killed may have noted the boot; and a boot is known by its id alone.
#[test]
fn a_boot_is_noted_by_a_run_that_is_killed() {
    for (lasts, boot, is_known) in [(31, 1, true), (31, 2, false)] {
        let board = Board::at(year(1970) + 20 * SECOND).in_boot(1);
        let queue = board.open();
        queue.push(Message::new("lives").ttl(HOUR)).unwrap();
        board.clock.advance(lasts * SECOND);
        queue.maintain().unwrap();
        std::mem::forget(queue);
        let storage = board.storage.killed();
        let clock = ManualClock::new(year(1970)).in_boot(boot);
        clock.advance(lasts * SECOND + MINUTE);
        clock.set_wall(year(2026));
        let board = Board { storage, clock: Arc::new(clock) };
        let came = pop(&board.open());
        assert_eq!(came.as_deref(), is_known.then_some("lives"), "{lasts} s, boot {boot}");
    }
}

/// A run near the end of all times lasted for decades, and stored times behind that end: the next
/// open took the segment for an impossible one, and what was confirmed was lost.
#[test]
fn a_run_that_reaches_the_end_of_times_loses_nothing() {
    let board = Board::at(year(1970) + Duration::from_secs(290_000_000_000));
    let queue = board.open();
    queue.push("before").unwrap();
    board.clock.advance(35 * 365 * DAY);
    queue.push(vec![1; 100_000]).unwrap();
    queue.push(Message::new("delayed").delay(HOUR)).unwrap();
    queue.close().unwrap();
    let queue = board.open();
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    assert_eq!(queue.len() + queue.delayed(), 3);
    assert_eq!(queue.pop_batch(3).unwrap().len(), 2);
}
