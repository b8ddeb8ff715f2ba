//! Times that no thread watched, slots and records that cannot be read, and looks that said
//! something else than `pop`. Each test is a story that once went wrong.

use crate::found_support::{alone, call, ms, on, soon};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{DeathCause, Delivery, Expired, Message, Options, Overflow, Queue, Result};
use std::mem::forget;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const HOUR: Duration = Duration::from_secs(3600);

// From format.md.
const PAGE: u64 = 4096;
const SLOT: u64 = 16;

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

/// A queue in memory, with a background thread.
fn watching() -> Options {
    alone().background(true)
}

/// Damages the first segment, at an offset that is told from its size.
fn damage(disk: &MemoryStorage, offset: impl FnOnce(u64) -> u64) {
    let names = disk.list().unwrap().into_iter().map(|entry| entry.name);
    let name =
        names.filter(|name| Path::new(name).extension().is_some_and(|e| e == "seg")).min().unwrap();
    let file = disk.open(&name).unwrap();
    file.write_at(offset(file.size()), &[0xA5; 8]).unwrap();
}

/// A closed queue with these messages, the slot of one of which cannot be read.
fn with_a_bad_slot(messages: Vec<Message<'_>>, index: u64) -> Arc<MemoryStorage> {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).clock(clock()).open("queue").unwrap();
    queue.push_batch(messages).unwrap();
    queue.close().unwrap();
    damage(&disk, |size| size - PAGE - SLOT * (index + 1));
    disk
}

/// The delay of a message could be read, its slot could not. The message was counted as ready and
/// handed out by no `pop`: it came back only after the next open.
#[test]
fn a_delayed_message_with_a_bad_slot_is_handed_out_when_it_is_due() {
    let later = Message::new("later").delay(Duration::from_secs(60));
    let disk = with_a_bad_slot(vec![Message::new("now"), later], 1);
    let clock = clock();
    let queue = on(disk).background(false).clock(clock.clone()).open("queue").unwrap();
    assert_eq!((queue.len(), queue.stats().delayed()), (1, 1));
    queue.pop().unwrap().unwrap().ack().unwrap();
    assert!(queue.pop().unwrap().is_none(), "it is not due");
    clock.advance(Duration::from_secs(120));
    let job = queue.pop().unwrap().expect("it is due");
    assert_eq!(&job[..], b"later");
    job.ack().unwrap();
    assert!(queue.is_empty());
}

/// `pop` handed out a message whose slot could not be read, and `len` counted it; `peek` and
/// `iter` left it out.
#[test]
fn peek_and_iter_show_a_message_with_a_bad_slot() {
    let disk = with_a_bad_slot(vec![Message::new("a"), Message::new("b")], 0);
    let queue = on(disk).background(false).open("queue").unwrap();
    assert_eq!(&queue.peek().unwrap().unwrap()[..], b"a");
    let shown: Vec<_> = queue.iter().map(|message| message.unwrap().to_vec()).collect();
    assert_eq!(shown, [b"a", b"b"]);
    assert_eq!(queue.len(), 2);
    assert_eq!(&queue.pop().unwrap().unwrap()[..], b"a");
}

/// Before the messages of an earlier run were counted, `peek` did not know which of them were due:
/// it showed one, and `pop` handed out another.
#[test]
fn peek_shows_the_message_that_pop_hands_out_after_an_open() {
    let (disk, clock) = (Arc::new(MemoryStorage::new()), clock());
    let options = || on(disk.clone()).background(false).clock(clock.clone());
    let queue = options().open("queue").unwrap();
    queue.push("now").unwrap();
    queue.push(Message::new("later").delay(Duration::from_secs(60))).unwrap();
    queue.close().unwrap();
    let queue = options().open("queue").unwrap();
    clock.advance(Duration::from_secs(120));
    let peeked = queue.peek().unwrap().unwrap();
    let job = queue.pop().unwrap().unwrap();
    assert_eq!(peeked.seq(), job.seq());
}

/// A large segment of an earlier run was counted in part. `iter` showed a message of the other
/// part as waiting while a consumer had it.
#[test]
fn iter_shows_no_message_in_flight_of_a_segment_that_is_counted_in_part() {
    let (disk, clock) = (Arc::new(MemoryStorage::new()), clock());
    let options = || {
        let options = on(disk.clone()).segment_bytes(1 << 20);
        options.background(false).clock(clock.clone())
    };
    let queue = options().open("queue").unwrap();
    queue.push_batch((0..6000).map(|_| Message::new("x").delay(ms(60_000)))).unwrap();
    queue.close().unwrap();
    let queue = options().open("queue").unwrap();
    clock.advance(Duration::from_secs(120));
    let held = queue.pop().unwrap().unwrap();
    let shown: Vec<_> = queue.iter().map(|message| message.unwrap().seq()).collect();
    assert_eq!((shown.len(), shown.contains(&held.seq())), (5999, false));
}

/// The first message lived for an hour, so the background was to look again in an hour. A consumer
/// took it; the message behind it expired, and the producer that waited for its room went on
/// waiting.
#[test]
fn a_message_expires_behind_one_that_was_taken() {
    let options = watching().max_messages(2).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    queue.push(Message::new("long").ttl(HOUR)).unwrap();
    queue.push(Message::new("short").ttl(ms(300))).unwrap();
    let producer = queue.clone();
    let producer = call(move || producer.push("third").map(drop));
    producer.asleep();
    // The next look is planned for the first message.
    queue.maintain().unwrap();
    let held = queue.pop().unwrap().unwrap();
    producer.result("a push beside a message that expired").unwrap();
    drop(held);
}

/// Nor did such a message become a dead letter.
#[test]
fn a_message_becomes_a_dead_letter_behind_one_that_was_taken() {
    let queue = watching().expired(Expired::DeadLetter).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push(Message::new("long").ttl(HOUR)).unwrap();
    let seq = queue.push(Message::new("short").ttl(ms(300))).unwrap();
    // The next look is planned for the first message.
    queue.maintain().unwrap();
    let held = queue.pop().unwrap().unwrap();
    let letter = call(move || dead.pop_wait()).result("a dead letter").unwrap();
    assert_eq!(letter.dead_letter().unwrap().seq(), seq);
    drop(held);
}

/// A message expired while a consumer had it. It came back to the front, and the background did
/// not look at it again: it never became a dead letter.
#[test]
fn a_message_that_comes_back_too_late_expires_by_itself() {
    let clock = clock();
    let options = watching().clock(clock.clone()).visibility_timeout(HOUR);
    let queue = options.expired(Expired::DeadLetter).open("queue").unwrap();
    let seq = queue.push(Message::new("short").ttl(ms(300))).unwrap();
    let held = queue.pop().unwrap().unwrap();
    let dead = queue.dead_letters().unwrap();
    // It expires, and a look that was planned for it finds the queue empty.
    clock.advance(ms(2000));
    queue.maintain().unwrap();
    held.nack().unwrap();
    clock.advance(ms(2000));
    let letter = call(move || dead.pop_wait()).result("the dead letter").unwrap();
    assert_eq!(letter.dead_letter().unwrap().seq(), seq);
}

/// Without a background, `wait_acked` watched no lease: when the last one of the message ran out,
/// it slept until its deadline.
#[test]
fn wait_acked_watches_leases_without_a_background() {
    let options = alone().dead_letters(false).max_attempts(1).visibility_timeout(ms(100));
    let queue = options.open("queue").unwrap();
    let seq = queue.push("a").unwrap();
    forget(queue.pop().unwrap());
    assert!(call(move || queue.wait_acked(seq, HOUR).unwrap()).result("wait_acked"));
}

/// `maintain` does "all that the background does, at once"; but it let go of 1,024 expired
/// messages and left the others.
#[test]
fn maintain_lets_go_of_all_that_has_expired() {
    let clock = clock();
    let queue = alone().clock(clock.clone()).open("queue").unwrap();
    let messages = (0..5000).map(|_| Message::new("x").ttl(Duration::from_secs(1)));
    queue.push_batch(messages).unwrap();
    clock.advance(Duration::from_secs(10));
    queue.maintain().unwrap();
    assert_eq!((queue.len(), queue.stats().expired()), (0, 5000));
}

/// Without a background, a consumer that waited ended the last lease of a message, and waited on.
/// The message did not become a dead letter: a consumer of those waited for ever.
#[test]
fn a_consumer_that_waits_moves_a_message_whose_last_lease_ran_out() {
    type Wait = fn(&Queue) -> Result<Option<Delivery>>;
    const WAITS: [Wait; 2] = [|queue| queue.pop_wait().map(Some), |queue| queue.pop_timeout(HOUR)];
    for wait in WAITS {
        let queue = alone().max_attempts(1).visibility_timeout(ms(200)).open("queue").unwrap();
        let dead = queue.dead_letters().unwrap();
        queue.push("a").unwrap();
        forget(queue.pop().unwrap());
        let consumer = queue.clone();
        let consumer = call(move || wait(&consumer).map(|job| job.is_some()));
        let letter = call(move || dead.pop_wait()).result("a dead letter").unwrap();
        assert_eq!(letter.dead_letter().unwrap().cause(), DeathCause::Attempts);
        drop(letter);
        assert!(!consumer.is_over(), "it goes on waiting");
        queue.push("b").unwrap();
        assert!(consumer.result("the consumer that waits").unwrap());
    }
}

/// Two messages, the first of which is in flight and can no longer be read.
fn damaged_in_flight() -> (Queue, Delivery) {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let held = queue.pop().unwrap().unwrap();
    damage(&disk, |_| PAGE);
    (queue, held)
}

/// A purge settled a message that a consumer had, because its record was damaged meanwhile. When
/// the consumer put it off, the settled message was delayed for an hour, and `is_empty` said that
/// no message was there while one was ready.
#[test]
fn a_purge_leaves_a_damaged_message_to_its_consumer() {
    let (queue, held) = damaged_in_flight();
    assert_eq!(queue.purge().unwrap(), 1);
    queue.push("d").unwrap();
    assert!(!queue.is_acked(held.seq()).unwrap());
    assert_eq!((queue.len(), queue.in_flight(), queue.stats().lost()), (1, 1, 0));
    held.nack_after(HOUR).unwrap();
    assert_eq!((queue.len(), queue.is_empty(), queue.stats().delayed()), (1, false, 1));
}

/// The ack of that consumer returned `Ok`, and was counted as none.
#[test]
fn the_ack_of_a_damaged_message_is_counted_after_a_purge() {
    let (queue, held) = damaged_in_flight();
    assert_eq!(queue.purge().unwrap(), 1);
    held.ack().unwrap();
    assert_eq!((queue.stats().acked(), queue.stats().lost()), (1, 0));
    assert!(queue.is_empty());
}

/// Without a background, the time of a message that had been purged was still watched. A later
/// time that appeared while a consumer slept was hidden by it, and the consumer slept on.
#[test]
fn a_time_that_is_no_more_hides_no_message_that_becomes_due() {
    let queue = alone().visibility_timeout(HOUR).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let (first, second) = (queue.pop().unwrap().unwrap(), queue.pop().unwrap().unwrap());
    first.nack_after(ms(1000)).unwrap();
    queue.purge().unwrap();
    let consumer = queue.clone();
    let consumer = call(move || consumer.pop_wait().map(|job| job.to_vec()));
    consumer.asleep();
    second.nack_after(ms(1000)).unwrap();
    assert_eq!(consumer.result("pop_wait").unwrap(), b"b");
}

/// In the same way the lease of an acked message hid one that began later: a producer slept on
/// when that was over, although there was room.
#[test]
fn a_time_that_is_no_more_hides_no_lease_that_runs_out() {
    let options = alone().max_messages(1).overflow(Overflow::Block).dead_letters(false);
    let queue = options.visibility_timeout(ms(1000)).max_attempts(1).open("queue").unwrap();
    queue.push("a").unwrap();
    // On a busy machine the lease may be over; then the message is gone, too.
    queue.pop().unwrap().unwrap().ack().ok();
    assert!(soon(|| queue.try_push("b").is_ok()));
    let producer = queue.clone();
    let producer = call(move || producer.push("c").map(drop));
    producer.asleep();
    forget(queue.pop().unwrap());
    producer.result("a push beside a lease that ran out").unwrap();
}
