//! Waits for a message that counting settles, and for a lease that runs out while no consumer
//! takes messages. Each test is a story that once went wrong.

use crate::found_support::{PATIENCE, alone, call, ms, on, soon, watched};
use crate::support::watched::Op;
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Backoff, DeathCause, Options, Overflow, Queue, Seq};
use std::mem::forget;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The disk after a kill. Its first segment is a compacted one, with a rejected message that is
/// on its way to the dead letters.
fn left_dying() -> (MemoryStorage, Seq) {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    for _ in 0..100 {
        queue.push(&[7; 2000]).unwrap();
    }
    let jobs = queue.pop_batch(80).unwrap();
    let (kept, acked): (Vec<_>, _) =
        jobs.into_iter().partition(|job| u64::from(job.seq()) % 9 == 4);
    queue.ack_batch(acked).unwrap();
    drop(kept);
    assert!(queue.compact().unwrap().copies() > 0);
    let job = queue.pop().unwrap().unwrap();
    let seq = job.seq();
    job.reject("no").unwrap();
    (disk.killed(), seq)
}

/// A process was killed with a message on its way to the dead letters, and the next run had
/// switched those off: the call that counted the message dropped it. That call woke no thread, so
/// `wait_acked` slept until its deadline, although `is_acked` said true.
#[test]
fn wait_acked_returns_when_any_call_settles_the_message() {
    type Way = (&'static str, fn(&Queue));
    const WAYS: [Way; 12] = [
        ("maintain", |queue| queue.maintain().unwrap()),
        ("get of another", |queue| drop(queue.get(13.into()).unwrap())),
        ("is_acked of one that is gone", |queue| assert!(queue.is_acked(5.into()).unwrap())),
        ("compact", |queue| assert!(queue.compact().is_ok())),
        ("stuck", |queue| drop(queue.stuck(0).unwrap())),
        ("a push with a limit", |queue| assert!(queue.push("x").is_ok())),
        ("len", |queue| assert_ne!(queue.len(), 0)),
        ("stats", |queue| assert!(queue.stats().ready() > 0)),
        ("peek", |queue| assert!(queue.peek().unwrap().is_some())),
        ("iter", |queue| assert!(queue.iter().next().is_some())),
        ("pop", |queue| assert!(queue.pop().unwrap().is_some())),
        ("purge", |queue| assert!(queue.purge().unwrap() > 0)),
    ];
    let start = |(way, settle): Way| {
        let (disk, seq) = left_dying();
        let options = on(Arc::new(disk)).background(false).dead_letters(false);
        let queue = options.max_messages(1000).open("queue").unwrap();
        let waiting = queue.clone();
        let waiting = call(move || waiting.wait_acked(seq, Duration::from_secs(3600)).unwrap());
        waiting.asleep();
        settle(&queue);
        if !queue.is_acked(seq).unwrap() {
            // A call that only looks may leave the message as it is.
            queue.maintain().unwrap();
        }
        assert!(queue.is_acked(seq).unwrap(), "{way}");
        (way, waiting)
    };
    let started = WAYS.map(start);
    let (mut not_told, end) = (Vec::new(), Instant::now() + PATIENCE);
    for (way, waiting) in started {
        if waiting.result_by(end) != Some(true) {
            not_told.push(way);
        }
    }
    assert!(not_told.is_empty(), "wait_acked slept on after {not_told:?}");
}

/// The background dropped such a message without waking `wait_acked`, too.
#[test]
fn wait_acked_returns_when_the_background_settles_the_message() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    for _ in 0..300 {
        queue.push(&[7; 2000]).unwrap();
    }
    let job = queue.pop_batch(300).unwrap().pop().unwrap();
    let seq = job.seq();
    job.reject("no").unwrap();
    // The wait begins before the background comes to the last file.
    let (storage, watch) = watched(Arc::new(disk.killed()));
    watch.slow_down(Op::Read, ms(10));
    let queue = on(storage).dead_letters(false).open("queue").unwrap();
    let waiting = call(move || queue.wait_acked(seq, Duration::from_secs(3600)).unwrap());
    assert!(waiting.result("wait_acked of a message that the background drops"));
}

/// A queue whose only message is in flight, in its last attempt, and whose lease runs out. No
/// consumer takes messages.
fn last_lease(options: Options) -> (Queue, Seq) {
    let options = options.background(true).visibility_timeout(ms(50)).max_attempts(1);
    let queue = options.open("queue").unwrap();
    let seq = queue.push("a").unwrap();
    let hung = queue.pop().unwrap().unwrap();
    // On a busy machine it may be over already.
    hung.extend(ms(60)).ok();
    forget(hung);
    (queue, seq)
}

/// Only consumers that waited watched the leases. Without one, a push that needed the room of a
/// message whose last lease was over waited, or was refused, for ever.
#[test]
fn a_push_gets_the_room_of_a_message_whose_last_lease_ran_out() {
    for has_dead_letters in [true, false] {
        let options = || alone().max_messages(1).dead_letters(has_dead_letters);
        let (queue, _) = last_lease(options().overflow(Overflow::Block));
        let push = call(move || queue.push("b"));
        push.result("a push that waits").unwrap();
        let (queue, _) = last_lease(options().overflow(Overflow::Reject));
        assert!(soon(|| queue.push("b").is_ok()), "a push that is refused");
    }
}

/// A consumer of the dead letters never got such a message.
#[test]
fn a_message_whose_last_lease_ran_out_becomes_a_dead_letter_by_itself() {
    let (queue, seq) = last_lease(alone());
    let dead = queue.dead_letters().unwrap();
    let letter = call(move || dead.pop_wait()).result("pop_wait of the dead letters").unwrap();
    let death = letter.dead_letter().unwrap();
    assert_eq!((death.seq(), death.cause()), (seq, DeathCause::Attempts));
    letter.ack().unwrap();
}

/// For such a message `is_acked` said false for ever, and `wait_acked` slept until its deadline.
#[test]
fn a_message_whose_last_lease_ran_out_is_settled_by_itself() {
    for has_dead_letters in [true, false] {
        let options = || alone().dead_letters(has_dead_letters);
        let (queue, seq) = last_lease(options());
        assert!(soon(|| queue.is_acked(seq).unwrap()), "is_acked");
        let (queue, seq) = last_lease(options());
        let waiting = call(move || queue.wait_acked(seq, Duration::from_secs(3600)).unwrap());
        assert!(waiting.result("wait_acked"));
    }
}

/// `in_flight` counted leases that were over, until another call took them back: it said 1, and
/// `stats`, asked right after it, said 0.
#[test]
fn in_flight_counts_no_lease_that_is_over() {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = alone().clock(clock.clone()).visibility_timeout(ms(50));
    let queue = options.backoff(Backoff::none()).max_attempts(2).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let jobs = queue.pop_batch(2).unwrap();
    clock.advance(ms(49));
    assert_eq!((queue.in_flight(), queue.stats().in_flight()), (2, 2));
    jobs[1].extend(ms(1000)).unwrap();
    clock.advance(ms(1));
    assert_eq!(queue.in_flight(), 1, "one lease is over, one was extended");
    clock.advance(ms(1000));
    assert_eq!((queue.in_flight(), queue.len(), queue.stats().in_flight()), (0, 2, 0));
    forget(jobs);
    // The dead letters have the same timeout.
    forget(queue.pop_batch(2).unwrap());
    clock.advance(ms(50));
    queue.maintain().unwrap();
    forget(dead.pop_batch(2).unwrap());
    assert_eq!(dead.in_flight(), 2);
    clock.advance(ms(50));
    assert_eq!(dead.in_flight(), 0);
}

/// Without a background, `wait_acked` watches the next time itself, but nobody told it of a time
/// that came up while it waited, such as the end of a lease that began after it had parked. It
/// slept until its own deadline, though the message was settled when that lease ended.
#[test]
fn without_a_background_wait_acked_hears_of_a_lease_that_ends() {
    let options = on(Arc::new(MemoryStorage::new())).background(false);
    let options = options.visibility_timeout(ms(50)).max_attempts(1).dead_letters(false);
    let queue = options.open("queue").unwrap();
    let seq = queue.push("job").unwrap();
    let waiting = queue.clone();
    let wait = call(move || waiting.wait_acked(seq, PATIENCE).unwrap());
    wait.asleep();
    let job = queue.pop().unwrap().unwrap();
    forget(job);
    assert!(wait.result("wait_acked"));
}
