//! Leases that are extended, and messages that expire while no consumer takes any. Each test is a
//! story that once went wrong.

use crate::found_support::{alone, call, ms, on, soon};
use keepq::fault::{CrashImage, ManualClock, MemoryStorage};
use keepq::{Backoff, DeathCause, Durability, Expired, Message, Options, Overflow, Queue};
use std::mem::forget;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

static PAYLOAD: [u8; 5000] = [7; 5000];
static FRESH: [u8; 5000] = [8; 5000];
const HOUR: Duration = Duration::from_secs(3600);

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

/// A lease ran out, another message was handed out in its place, and then the first consumer
/// extended its lease: more messages were in flight than `max_in_flight`.
#[test]
fn an_extended_lease_does_not_pass_max_in_flight() {
    for most in [1, 3] {
        let clock = clock();
        let options = alone().clock(clock.clone()).visibility_timeout(ms(50));
        let options = options.backoff(Backoff::exponential(HOUR)).max_in_flight(most);
        let queue = options.open("queue").unwrap();
        queue.push_batch((0..2 * most).map(|n| n.to_string())).unwrap();
        let late = queue.pop_batch(9).unwrap();
        clock.advance(ms(50));
        let others = queue.pop_batch(9).unwrap();
        assert_eq!((late.len() as u64, others.len() as u64), (most, most));
        for job in &late {
            // It may be refused.
            job.extend(HOUR).ok();
            assert!(queue.in_flight() <= most, "{} in flight of {most}", queue.in_flight());
        }
        queue.ack_batch(others).unwrap();
        // Now there is room for them, and no other consumer has them.
        for job in &late {
            job.extend(HOUR).unwrap();
        }
        assert_eq!((queue.in_flight(), queue.stats().in_flight()), (most, most));
        queue.ack_batch(late).unwrap();
        assert_eq!((queue.in_flight(), queue.stats().acked()), (0, 2 * most));
    }
}

/// After `extend(0)` a lease "has run out", says its page; but the message was not handed out for
/// another 25 ms.
#[test]
fn a_lease_that_is_extended_by_nothing_is_over_at_once() {
    let options = || alone().visibility_timeout(HOUR).backoff(Backoff::none());
    let queue = options().open("queue").unwrap();
    queue.push("a").unwrap();
    for attempt in 1..10 {
        let job = queue.pop().unwrap().expect("the lease before is over");
        assert_eq!(job.attempts(), attempt);
        job.extend(Duration::ZERO).unwrap();
        // Its consumer never answers.
        forget(job);
    }
    let queue = options().max_attempts(1).open("queue").unwrap();
    queue.push("last").unwrap();
    let job = queue.pop().unwrap().unwrap();
    job.extend(Duration::ZERO).unwrap();
    queue.maintain().unwrap();
    let letter = queue.dead_letters().unwrap().pop().unwrap().expect("a dead letter");
    assert_eq!(letter.dead_letter().unwrap().cause(), DeathCause::Attempts);
}

/// Pushes messages with this time to live until there is no room left. It gives up after more
/// messages than there is room for, in case the first ones expire meanwhile.
fn fill(queue: &Queue, ttl: Duration) {
    for _ in 0..300 {
        if !queue.try_push(Message::new(&PAYLOAD).ttl(ttl)).is_ok_and(|seq| !seq.is_dropped()) {
            return;
        }
    }
}

const LIMITS: [fn(Options) -> Options; 2] =
    [|options| options.max_messages(4), |options| options.max_bytes(1 << 20)];

/// A sensor pushed readings with a short time to live, and the consumer was down. The queue was
/// full of readings that had expired. Since only a consumer dropped those, fresh readings were
/// refused, dropped, or waited for ever.
#[test]
fn expired_messages_make_room_by_themselves() {
    for limit in LIMITS {
        let open = |overflow| limit(alone()).background(true).overflow(overflow).open("queue");
        let queue = open(Overflow::Block).unwrap();
        fill(&queue, ms(50));
        let push = call({
            let queue = queue.clone();
            move || queue.push(&FRESH)
        });
        push.result("a push that waits beside expired messages").unwrap();
        let queue = open(Overflow::Reject).unwrap();
        fill(&queue, ms(50));
        assert!(soon(|| queue.push(&FRESH).is_ok()), "refused for expired messages");
        assert!(queue.stats().expired() > 0);
        let queue = open(Overflow::DropNewest).unwrap();
        fill(&queue, ms(50));
        assert!(soon(|| !queue.push(&FRESH).unwrap().is_dropped()), "dropped for expired ones");
    }
}

/// Without a background, `maintain` did not drop expired messages either.
#[test]
fn maintain_lets_go_of_expired_messages() {
    for limit in LIMITS {
        let clock = clock();
        let options = limit(alone()).clock(clock.clone()).backoff(Backoff::none());
        let queue = options.open("queue").unwrap();
        fill(&queue, HOUR);
        let count = queue.len();
        // One message is in flight, and one was given back.
        let held = queue.pop().unwrap().unwrap();
        queue.pop().unwrap().unwrap().nack().unwrap();
        assert!(queue.push(&FRESH).is_err());
        clock.advance(HOUR);
        queue.maintain().unwrap();
        queue.push(&FRESH).unwrap();
        assert_eq!(queue.stats().expired(), count - 1);
        assert_eq!(&queue.pop().unwrap().unwrap()[..], &FRESH);
        held.ack().unwrap();
    }
}

/// With `Expired::DeadLetter`, no expired message became a dead letter while no consumer took
/// messages.
#[test]
fn expired_messages_become_dead_letters_by_themselves() {
    let options = alone().background(true).expired(Expired::DeadLetter);
    let queue = options.message_ttl(ms(50)).open("queue").unwrap();
    let seqs = queue.push_batch(["a", "b"]).unwrap();
    let dead = queue.dead_letters().unwrap();
    for seq in seqs {
        let dead = dead.clone();
        let letter = call(move || dead.pop_wait()).result("pop_wait of the dead letters").unwrap();
        let death = letter.dead_letter().unwrap();
        assert_eq!((death.seq(), death.cause()), (seq, DeathCause::Expired));
        letter.ack().unwrap();
    }
}

/// The room of a message that expired and becomes a dead letter was not given back either.
#[test]
fn expired_messages_that_become_dead_letters_make_room() {
    let options = alone().background(true).expired(Expired::DeadLetter).max_messages(4);
    let queue = options.open("queue").unwrap();
    fill(&queue, ms(50));
    assert!(soon(|| queue.push(&FRESH).is_ok()), "refused for expired messages");
    assert!(queue.stats().expired() > 0);
}

/// Without a background, `maintain` did not move expired messages to the dead letters either.
#[test]
fn maintain_makes_dead_letters_of_expired_messages() {
    let clock = clock();
    let options = alone().clock(clock.clone()).expired(Expired::DeadLetter);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..100).map(|_| Message::new("over").ttl(HOUR))).unwrap();
    queue.push("kept").unwrap();
    clock.advance(HOUR);
    queue.maintain().unwrap();
    let stats = queue.stats();
    let counts = (stats.expired(), stats.dying(), stats.dead_letters(), stats.ready());
    assert_eq!(counts, (100, 0, 100, 1));
}

/// Expired messages kept their files until a consumer came by, also those that expired while no
/// process had the queue open.
#[test]
fn the_disk_of_expired_messages_is_given_back_by_itself() {
    let push_all = |queue: &Queue| {
        for _ in 0..200 {
            queue.push(Message::new(&PAYLOAD).ttl(ms(50))).unwrap();
        }
    };
    let is_given_back = |queue: &Queue| {
        soon(|| {
            let stats = queue.stats();
            stats.ready() == 0 && stats.segments() <= 2
        })
    };
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    push_all(&queue);
    let killed = Arc::new(disk.killed());
    let queue = alone().background(true).open("queue").unwrap();
    push_all(&queue);
    assert!(is_given_back(&queue), "{:?}", queue.stats());
    assert_eq!(queue.stats().expired(), 200);
    thread::sleep(ms(60));
    let queue = on(killed).open("queue").unwrap();
    assert!(is_given_back(&queue), "{:?}", queue.stats());
}

/// `wait_acked` of an expired message slept until its deadline.
#[test]
fn an_expired_message_is_settled_by_itself() {
    let queue = alone().background(true).open("queue").unwrap();
    let seq = queue.push(Message::new("over").ttl(ms(50))).unwrap();
    let waiting = queue.clone();
    let waiting = call(move || waiting.wait_acked(seq, HOUR).unwrap());
    assert!(waiting.result("wait_acked of an expired message"));
    assert!(queue.is_acked(seq).unwrap());
}

/// A power cut kept the delay of a message, in the second word of its slot, and lost the first
/// word. Such a slot has no delay, but a copy of it had: the message was known nowhere, and no pop
/// of that run gave it.
#[test]
fn a_delayed_message_that_a_power_cut_left_half_comes_out_of_a_copy() {
    let mut copied = 0;
    for seed in 0..60 {
        let (clock, disk) = (clock(), Arc::new(MemoryStorage::new()));
        let options = |disk| on(disk).background(false).clock(clock.clone());
        let queue = options(disk.clone()).open("queue").unwrap();
        for _ in 0..20 {
            queue.push(Message::new(&PAYLOAD[..1000]).durability(Durability::Always)).unwrap();
        }
        let later = queue.push(Message::new("later").delay(ms(50))).unwrap();
        let cut = Arc::new(disk.power_cut(CrashImage::Mixed(seed)));
        let queue = options(cut).open("queue").unwrap();
        if queue.iter().all(|message| message.unwrap().seq() != later) {
            continue;
        }
        queue.push("new").unwrap();
        queue.ack_batch(queue.pop_batch(15).unwrap()).unwrap();
        queue.sync().unwrap();
        copied += queue.compact().unwrap().copies();
        clock.advance(ms(80));
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        assert!(jobs.iter().any(|job| job.seq() == later), "seed {seed}");
        queue.ack_batch(jobs).unwrap();
        assert_eq!((queue.len(), queue.in_flight()), (0, 0), "seed {seed}");
    }
    assert!(copied > 0, "some images have it");
}
