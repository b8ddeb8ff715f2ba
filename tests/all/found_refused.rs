//! Found faults: messages that the dead letters refuse, files that cannot be read, and batches of
//! what came back.

use crate::found_hooks::{Gate, OpenAtEnd, Part, by_hand, large, spoil, until};
use crate::found_support::{PATIENCE, alone, call, ms, on, soon};
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, ManualClock, MemoryStorage};
use keepq::{Backoff, Compaction, Message, Options, Overflow, Queue};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
const FIRST_SEGMENT: &str = "0000000000000001.seg";

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND))
}

/// A message of which one attempt failed dies.
fn dies_at_once(options: Options) -> Options {
    options.max_attempts(1).backoff(Backoff::none())
}

fn is_new_letter(op: Op, name: &str) -> bool {
    op == Op::Create && name.starts_with("dead/")
}

/// Dead letters that refuse all; counts how often they were asked.
fn refusing() -> (Arc<Watched>, Arc<AtomicU64>) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    storage.rule(move |call| {
        if is_new_letter(call.op, call.name) {
            count.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    });
    (storage, asked)
}

/// The dead letters wait at a gate before they make a segment.
fn hold_new_segment(storage: &Watched) -> (Arc<Gate>, OpenAtEnd) {
    let gate = Gate::closed();
    let here = gate.clone();
    storage.rule(move |call| {
        if is_new_letter(call.op, call.name) {
            here.pass();
        }
        Ok(())
    });
    (gate.clone(), OpenAtEnd(gate))
}

fn push_large(queue: &Queue, count: u64) {
    for n in 0..count {
        queue.push(large(n)).unwrap();
    }
}

fn pop_and_nack(queue: &Queue, count: usize) {
    for job in queue.pop_batch(count).unwrap() {
        job.nack().unwrap();
    }
}

/// What the dead letters refuse is tried again a second later. The background tried it with all its
/// other work, and where the messages were in more files than may be mapped, that work gave it more
/// work at once: it ran without a pause.
#[test]
fn the_background_tries_refused_messages_once_a_second() {
    const DYING: u64 = 30;
    for (open_segments, is_busy) in [(1, false), (64, true)] {
        let (storage, asked) = refusing();
        let options = dies_at_once(on(storage)).background(true).open_segments(open_segments);
        let queue = options.open("queue").unwrap();
        push_large(&queue, DYING);
        pop_and_nack(&queue, 99);
        assert!(soon(|| asked.load(Ordering::SeqCst) >= DYING), "each is tried");
        let start = Instant::now();
        while start.elapsed() < ms(1500) {
            if is_busy {
                queue.push(large(1)).unwrap();
                queue.pop().unwrap().unwrap().ack().unwrap();
            } else {
                thread::sleep(ms(10));
            }
        }
        let (times, tries) = (asked.load(Ordering::SeqCst) / DYING, start.elapsed().as_secs() + 3);
        assert!(times <= tries, "{times} tries of each in {:?}, busy: {is_busy}", start.elapsed());
    }
}

/// A batch ended one step of the leases and delays that were over: it gave fewer messages than were
/// ready, and fresh ones before those that had come back.
#[test]
fn a_batch_has_all_that_came_back_in_order() {
    let clock = clock();
    let options = || alone().segment_bytes(1 << 20).clock(clock.clone()).max_attempts(0);
    let queue = options().open("queue").unwrap();
    queue.push_batch((0..3000).map(|_| Message::new("due").delay(SECOND))).unwrap();
    queue.push("fresh").unwrap();
    clock.advance(2 * SECOND);
    let batch = queue.pop_batch(5000).unwrap();
    let at = batch.iter().position(|job| &job[..] == b"fresh");
    assert_eq!((batch.len(), at), (3001, Some(3000)));

    let options = options().visibility_timeout(SECOND).backoff(Backoff::none());
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..1000).map(|_| "back")).unwrap();
    let held = queue.pop_batch(1000).unwrap();
    queue.push("fresh").unwrap();
    clock.advance(2 * SECOND);
    let batch = queue.pop_batch(5000).unwrap();
    let at = batch.iter().position(|job| &job[..] == b"fresh");
    assert_eq!((batch.len(), at), (1001, Some(1000)));
    drop((held, batch));
}

/// The disk of a queue whose twelve messages are dying; its process was killed.
fn twelve_dying() -> Arc<MemoryStorage> {
    let disk = Arc::new(MemoryStorage::new());
    let queue = dies_at_once(by_hand(disk.clone())).open("queue").unwrap();
    push_large(&queue, 12);
    pop_and_nack(&queue, 12);
    Arc::new(disk.killed())
}

/// One dying message that could not be read held up all others, in each try.
#[test]
fn a_dying_message_that_cannot_be_read_holds_up_no_other() {
    let storage = Watched::around(twelve_dying());
    storage.rule(|call| match call.op {
        Op::Map if call.name == FIRST_SEGMENT => Err(ErrorKind::Other.into()),
        _ => Ok(()),
    });
    let queue = dies_at_once(by_hand(storage.clone())).clock(clock()).open("queue").unwrap();
    assert!(queue.maintain().is_err(), "what cannot be read is told");
    let stats = queue.stats();
    assert!(stats.dead_letters() > 0, "{stats:?}");
    assert_eq!(stats.dead_letters() + stats.dying(), 12);
    storage.no_rule();
    queue.maintain().unwrap();
    assert_eq!(queue.stats().dead_letters(), 12);
}

/// After a power cut the letter was there and its message waited here again. The letter was acked,
/// and the message, which a consumer had at the time, failed again: it was taken for a letter that
/// is there, and left none.
#[test]
fn a_message_that_dies_after_its_letter_was_acked_leaves_another() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = by_hand(storage.clone()).backoff(Backoff::none()).open("queue").unwrap();
    queue.push("job").unwrap();
    queue.sync().unwrap();
    queue.pop().unwrap().unwrap().reject("first").unwrap();
    let (image, is_letter_synced) = (Arc::new(Mutex::new(None)), AtomicBool::new(false));
    let (slot, there) = (Arc::clone(&image), disk.clone());
    storage.rule(move |call| {
        if call.op == Op::Sync && call.name.starts_with("dead/") {
            is_letter_synced.store(true, Ordering::SeqCst);
        } else if call.op == Op::Sync && is_letter_synced.load(Ordering::SeqCst) {
            slot.lock().unwrap().get_or_insert_with(|| there.power_cut(CrashImage::Oldest));
        }
        Ok(())
    });
    queue.maintain().unwrap();
    let after: MemoryStorage = image.lock().unwrap().take().unwrap();
    let queue = by_hand(Arc::new(after)).backoff(Backoff::none()).open("queue").unwrap();
    let job = queue.pop().unwrap().expect("its death is undone");
    let dead = queue.dead_letters().unwrap();
    dead.pop().unwrap().expect("the letter").ack().unwrap();
    job.reject("second").unwrap();
    queue.maintain().unwrap();
    let letter = dead.pop().unwrap().expect("another letter");
    assert_eq!((&letter[..], letter.dead_letter().unwrap().reason()), (&b"job"[..], "second"));
}

/// The front could not be read: `maintain` did nothing else, and a push at the limit failed with
/// the error of that read.
#[test]
fn an_unreadable_front_stops_no_other_work() {
    let disk = Arc::new(MemoryStorage::new());
    let options = |storage| {
        let options = dies_at_once(by_hand(storage)).max_messages(60);
        options.compaction(Compaction::off()).overflow(Overflow::Block).push_timeout(ms(1))
    };
    let queue = options(disk.clone()).open("queue").unwrap();
    push_large(&queue, 60);
    let mut jobs = queue.pop_batch(60).unwrap().into_iter();
    let kept: Vec<_> = jobs.by_ref().take(6).collect();
    for job in jobs.by_ref().take(12) {
        job.nack().unwrap();
    }
    queue.ack_batch(jobs).unwrap();
    for job in kept {
        job.release().unwrap();
    }
    let storage = Watched::around(Arc::new(disk.killed()));
    storage.rule(|call| match call.op {
        Op::Map if call.name == FIRST_SEGMENT => Err(ErrorKind::Other.into()),
        _ => Ok(()),
    });
    let queue = options(storage.clone()).open("queue").unwrap();
    assert!(queue.maintain().is_err(), "what cannot be read is told");
    let stats = queue.stats();
    assert!(stats.dead_letters() > 0 && stats.segments() < 6, "{stats:?}");
    while queue.len() + queue.stats().dying() < 60 {
        queue.push(large(1)).unwrap();
    }
    let refused = queue.push("one too many");
    assert!(matches!(refused, Err(keepq::Error::Full { .. })), "{refused:?}");
}

/// Without a background, a consumer that waited while another thread moved messages spun: it found
/// a time that was past, and nothing to do.
#[test]
fn a_consumer_sleeps_beside_a_slow_move() {
    let (storage, _) = refusing();
    let clock = clock();
    let options = dies_at_once(by_hand(storage.clone())).clock(clock.clone());
    let queue = options.open("queue").unwrap();
    queue.push("bad").unwrap();
    pop_and_nack(&queue, 1);
    assert!(queue.pop().unwrap().is_none(), "refused");
    clock.advance(2 * SECOND);
    let (gate, _open) = hold_new_segment(&storage);
    let moving = queue.clone();
    let moving = call(move || moving.pop().unwrap().is_none());
    until("it moves a message", || gate.has_waiting());
    let waiting = queue.clone();
    let waiting = call(move || waiting.pop_timeout(PATIENCE).unwrap().map(|job| job.to_vec()));
    waiting.asleep();
    assert!(waiting.sleeps().is_none_or(|sleeps| sleeps > 0) && !waiting.is_over());
    gate.open();
    assert!(moving.result("pop"));
    queue.push("job").unwrap();
    assert_eq!(waiting.result("pop_timeout").unwrap(), b"job");
    assert_eq!(queue.stats().dead_letters(), 1);
}

/// Without a background, the consumer that watched when a refused message was to be tried again
/// stopped waiting, and no other one watched.
#[test]
fn another_consumer_watches_refused_messages() {
    let (storage, asked) = refusing();
    let queue = dies_at_once(by_hand(storage.clone())).open("queue").unwrap();
    queue.push("bad").unwrap();
    let job = queue.pop().unwrap().unwrap();
    let (first, second) = (queue.clone(), queue.clone());
    let first = call(move || first.pop_timeout(ms(500)).unwrap().is_none());
    first.asleep();
    let second = call(move || second.pop_wait().is_err());
    second.asleep();
    job.nack().unwrap();
    assert!(first.result("pop_timeout"));
    assert!(asked.load(Ordering::SeqCst) > 0);
    storage.no_rule();
    assert!(soon(|| queue.stats().dead_letters() == 1), "{:?}", queue.stats());
    queue.close().unwrap();
    assert!(second.result("pop_wait"));
}

/// The dead letters were closed twice while a redrive was under way: it forgot which letters it had
/// pushed, and pushed them again.
#[test]
fn a_redrive_pushes_no_letter_twice_beside_two_closes() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = by_hand(storage.clone()).open("queue").unwrap();
    queue.push_batch((0_u64..200).map(|n| n.to_le_bytes().to_vec())).unwrap();
    for job in queue.pop_batch(200).unwrap() {
        job.reject("no").unwrap();
    }
    queue.maintain().unwrap();
    let dead = Mutex::new(Some(queue.dead_letters().unwrap()));
    let (handle, is_closed) = (queue.clone(), AtomicBool::new(false));
    storage.rule(move |asked| {
        if asked.op == Op::Sync && !asked.name.starts_with("dead/") {
            let first = dead.lock().unwrap().take();
            if let Some(dead) = first {
                dead.close().unwrap();
            }
        }
        if asked.op == Op::Map
            && asked.name.starts_with("dead/")
            && !is_closed.swap(true, Ordering::SeqCst)
        {
            let queue = handle.clone();
            let closing = call(move || queue.dead_letters().unwrap().close());
            closing.asleep();
        }
        Ok(())
    });
    let redriven = queue.redrive(200);
    storage.no_rule();
    let mut payloads: Vec<_> =
        queue.pop_batch(1000).unwrap().iter().map(|job| job.to_vec()).collect();
    let all = payloads.len();
    payloads.sort();
    payloads.dedup();
    assert_eq!(payloads.len(), all, "{redriven:?}");
}

/// Another handle closed the dead letters while `maintain` moved a message there: `maintain` said
/// that the queue was closed.
#[test]
fn maintain_moves_messages_though_the_dead_letters_are_closed_meanwhile() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = dies_at_once(by_hand(storage.clone())).open("queue").unwrap();
    queue.push("dies").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.pop().unwrap().unwrap().nack().unwrap();
    let (gate, _open) = hold_new_segment(&storage);
    let maintaining = queue.clone();
    let maintaining = call(move || maintaining.maintain());
    until("it makes a segment", || gate.has_waiting());
    let closing = call(move || dead.close());
    closing.asleep();
    gate.open();
    closing.result("close").unwrap();
    maintaining.result("maintain").unwrap();
    assert_eq!((queue.stats().dying(), queue.stats().dead_letters()), (0, 1));
}

/// Without a background, `pop` moved a step of the dying messages. For the rest it woke no thread,
/// though a consumer had parked meanwhile, which had seen that another thread was at it.
#[test]
fn a_consumer_that_waits_moves_what_another_one_left() {
    const DYING: u64 = 3000;
    let (storage, _) = refusing();
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    queue.push_batch((0..DYING).map(|n| n.to_le_bytes().to_vec())).unwrap();
    for job in queue.pop_batch(usize::MAX).unwrap() {
        job.reject("no").unwrap();
    }
    queue.close().unwrap();
    let (gate, _open) = hold_new_segment(&storage);
    let queue = on(storage).background(false).open("queue").unwrap();
    let popping = queue.clone();
    let popping = call(move || popping.pop().unwrap().is_none());
    until("it moves messages", || gate.has_waiting());
    let waiting = queue.clone();
    let waiting = call(move || waiting.pop_wait().is_err());
    waiting.asleep();
    gate.open();
    assert!(popping.result("pop"));
    assert!(soon(|| queue.stats().dying() == 0), "{:?}", queue.stats());
    queue.close().unwrap();
    assert!(waiting.result("pop_wait"));
}

/// A dying message was found damaged while its letter was being pushed. The letter, and all behind
/// it, stayed hidden.
#[test]
fn letters_are_shown_behind_one_whose_message_was_lost_meanwhile() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = by_hand(storage.clone()).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    let seq = queue.push("the message").unwrap();
    push_large(&queue, 30);
    let mut jobs = queue.pop_batch(30).unwrap();
    let job = jobs.remove(0);
    queue.ack_batch(jobs).unwrap();
    let (gate, _open) = hold_new_segment(&storage);
    let rejecting = call(move || job.reject("no"));
    until("it pushes the letter", || gate.has_waiting());
    spoil(&disk, b"the message", Part::Header);
    // It copies here first, and then waits for the dead letters.
    let compacting = queue.clone();
    let compacting = call(move || compacting.compact().unwrap());
    let is_lost = || queue.damage().iter().any(|damage| damage.first_seq() == seq);
    assert!(soon(is_lost), "the copy finds the damage");
    gate.open();
    rejecting.result("reject").unwrap();
    compacting.result("compact");
    dead.push("another").unwrap();
    assert!(dead.pop_batch(9).unwrap().iter().any(|letter| &letter[..] == b"another"));
}
