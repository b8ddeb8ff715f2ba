//! Found faults: times that no thread watched, threads that looked without a pause, and what was
//! counted and not taken up. Each test is a story that once went wrong.

use crate::found_hooks::{Part, find, flip, is_segment, large, spoil, until};
use crate::found_support::{alone, call, ms, on, ran_for, watched};
use crate::support::DEADLINE;
use crate::support::watched::{Op, Watched};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Backoff, Compaction, Error, Message, Overflow, Queue};
use std::io::ErrorKind;
use std::mem::forget;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

const HOUR: Duration = Duration::from_secs(3600);

/// How long the calling thread has run on a processor.
fn cpu() -> Duration {
    ran_for(Path::new("/proc/thread-self"))
}

/// Without a background, a producer that waited for bytes watched the next time, but its look ended
/// no leases: once a lease had run out, that time was past for ever, and the producer spun.
#[test]
fn a_producer_that_waits_for_bytes_sleeps_beside_a_lease_that_ran_out() {
    for what in ["a lease", "a delay"] {
        let (storage, _) = watched(Arc::new(MemoryStorage::new()));
        let options = on(storage).background(false).max_bytes(1 << 20).overflow(Overflow::Block);
        let options = options.visibility_timeout(ms(50)).push_timeout(ms(1500));
        let queue = options.open("queue").unwrap();
        if what == "a delay" {
            queue.push(Message::new("later").delay(ms(300))).unwrap();
        }
        while queue.try_push(large(0)).is_ok() {}
        if what == "a lease" {
            forget(queue.pop().unwrap().unwrap());
        }
        let pushing = queue.clone();
        let (pushed, used) = call(move || {
            let before = cpu();
            (pushing.push(large(1)), cpu().saturating_sub(before))
        })
        .result("push");
        assert!(matches!(pushed, Err(Error::Full { .. })), "{pushed:?}");
        assert!(used < ms(500), "{what}: it ran for {used:?} of 1.5 s");
    }
}

/// The same: it never got the room that the end of the leases made.
#[test]
fn a_producer_gets_the_bytes_that_last_leases_free() {
    let options = alone().max_bytes(1 << 20).overflow(Overflow::Block).dead_letters(false);
    let options = options.visibility_timeout(ms(100)).max_attempts(1).push_timeout(ms(5000));
    let queue = options.open("queue").unwrap();
    while queue.try_push(large(0)).is_ok() {}
    queue.pop_batch(usize::MAX).unwrap().into_iter().for_each(forget);
    let pushed = queue.push(large(1));
    assert!(pushed.is_ok(), "{pushed:?}, though all leases ran out after 0.1 s");
}

/// How long a consumer that finds nothing for this time runs meanwhile.
fn used_by_a_wait(queue: Queue, time: Duration) -> Duration {
    let wait = call(move || {
        let before = cpu();
        assert!(queue.pop_timeout(time).unwrap().is_none());
        cpu().saturating_sub(before)
    });
    wait.result("pop_timeout")
}

/// Without a background, a consumer that waited while `dead/` refused a letter spun: it found work,
/// tried none of it, and noted it again.
#[test]
fn a_consumer_sleeps_while_the_dead_letters_are_refused() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    queue.push("bad").unwrap();
    storage.rule(|call| {
        let is_refused = call.op == Op::Create && call.name.starts_with("dead/");
        if is_refused { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let used = used_by_a_wait(queue, ms(1500));
    assert!(used < ms(500), "it ran for {used:?} of 1.5 s");
}

/// A batch met a message again that it had, whose lease had run out. It gave it back, but with that
/// the first lease had ended: the consumer could not answer, though no other one had the message.
#[test]
fn a_message_of_a_batch_can_be_answered_late() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).background(false).visibility_timeout(ms(200));
    let queue = options.backoff(Backoff::none()).open("queue").unwrap();
    queue.push_batch((0..600).map(|_| "job")).unwrap();
    watch.slow_down(Op::StoreWord, ms(1));
    let jobs = queue.pop_batch(1200).unwrap();
    watch.slow_down(Op::StoreWord, ms(0));
    let mut failed = Vec::new();
    let all = jobs.len();
    for job in jobs {
        let seq = job.seq();
        if let Err(error) = job.ack() {
            failed.push((seq, error));
        }
    }
    assert!(failed.is_empty(), "of {all}, handed out once: {failed:?}");
}

/// The same batch ended there, though other messages were ready.
#[test]
fn a_batch_has_all_that_are_ready() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).background(false).visibility_timeout(ms(200));
    let queue = options.backoff(Backoff::none()).open("queue").unwrap();
    queue.push_batch((0..1000).map(|_| "job")).unwrap();
    watch.slow_down(Op::StoreWord, ms(1));
    let jobs = queue.pop_batch(1000).unwrap();
    watch.slow_down(Op::StoreWord, ms(0));
    let all = jobs.len();
    jobs.into_iter().for_each(forget);
    assert_eq!(all, 1000);
}

/// A damaged message at the front made room by being lost; one more was dropped all the same.
#[test]
fn drop_oldest_drops_nothing_beside_a_lost_message() {
    let mut found = Vec::new();
    for part in [Part::Header, Part::Payload] {
        let disk = Arc::new(MemoryStorage::new());
        let options = on(disk.clone()).background(false).max_messages(3);
        let queue = options.overflow(Overflow::DropOldest).open("queue").unwrap();
        for payload in ["first message", "second message", "third message"] {
            queue.push(payload).unwrap();
        }
        spoil(&disk, b"first message", part);
        queue.push("fourth message").unwrap();
        let stats = queue.stats();
        found.push((part, queue.len(), stats.lost(), stats.dropped()));
    }
    // A damaged payload is not read: the message is dropped as any other.
    assert!(found.iter().all(|found| found.1 == 3), "(part, ready, lost, dropped): {found:?}");
}

/// There were more damaged slots of delayed messages than one step takes up, in a small segment.
/// The first push of a run merged it with others: the rest was known by the number of the old
/// segment, and forgotten.
#[test]
fn delayed_messages_with_damaged_slots_come_all_after_tidying() {
    const COUNT: u64 = 1500;
    let disk = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = || {
        let options = on(disk.clone()).segment_bytes(1 << 20).background(false);
        options.clock(clock.clone())
    };
    let open = || options().compaction(Compaction::off()).open("queue").unwrap();
    let delay = Duration::from_secs(60);
    for run in 0..4 {
        let queue = open();
        if run == 2 {
            let jobs = (0..COUNT).map(|_| Message::new("the job").delay(delay));
            queue.push_batch(jobs).unwrap();
        } else {
            queue.push("other").unwrap();
        }
        queue.close().unwrap();
    }
    let (name, _) = find(&disk, b"the job");
    let content = disk.read(&name).unwrap();
    let mut damaged = 0;
    for index in 0..COUNT {
        let at = content.len() as u64 - 4096 - 16 * (index + 1);
        if content[at as usize..at as usize + 8] != [0; 8] {
            flip(&disk, &name, at);
            damaged += 1;
        }
    }
    assert_eq!(damaged, COUNT);
    let queue = options().open("queue").unwrap();
    queue.push("other").unwrap();
    let compacted = queue.stats().compacted_bytes();
    clock.advance(delay * 2);
    let mut came = 0;
    while let Some(job) = queue.pop().unwrap() {
        came += u64::from(&job[..] == b"the job");
        job.ack().unwrap();
    }
    let stats = queue.stats();
    assert_eq!(
        (came, stats.ready(), stats.delayed(), stats.in_flight()),
        (COUNT, 0, 0, 0),
        "(came, ready, delayed, in flight); lost {}, compacted {compacted}",
        stats.lost()
    );
}

/// The background looked at the front while its file could not be mapped, and never again.
#[test]
fn the_front_expires_after_a_look_that_failed() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    let seq = queue.push(Message::new("short").ttl(ms(2500))).unwrap();
    queue.close().unwrap();
    let storage = Watched::around(disk);
    let failed = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&failed);
    let here = thread::current().id();
    storage.rule(move |call| {
        if call.op == Op::Map && is_segment(call.name) {
            let is_background = thread::current().id() != here;
            seen.fetch_add(u64::from(is_background), Ordering::SeqCst);
            return Err(ErrorKind::OutOfMemory.into());
        }
        Ok(())
    });
    let queue = on(storage.clone()).background(true).open("queue").unwrap();
    // The look is the first thing that the background does.
    until("a map failed", || failed.load(Ordering::SeqCst) > 0);
    storage.no_rule();
    let is_settled = queue.wait_acked(seq, DEADLINE).unwrap();
    assert!(is_settled, "{:?}", queue.stats());
}

/// With `sync_acks`, what a batch acked beside a delivery whose lease ran out was not synced.
#[test]
fn a_batch_of_acks_with_an_error_is_synced() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = on(storage).background(false).clock(clock.clone()).sync_acks(true);
    let options = options.visibility_timeout(ms(100)).backoff(Backoff::none());
    let queue = options.open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.sync().unwrap();
    let late = queue.pop().unwrap().unwrap();
    clock.advance(ms(200));
    let again = queue.pop().unwrap().unwrap();
    let good = queue.pop().unwrap().unwrap();
    assert_eq!((&again[..], &good[..]), (&b"a"[..], &b"b"[..]));
    queue.sync().unwrap();
    let (seq, before) = (good.seq(), watch.count(Op::Sync));
    let result = queue.ack_batch([late, good]);
    assert!(matches!(result, Err(Error::LeaseExpired { .. })), "{result:?}");
    assert!(queue.is_acked(seq).unwrap());
    assert!(watch.count(Op::Sync) > before, "the ack of b is not on the disk");
    forget(again);
}

/// The file of an earlier run with this many delayed messages, all of whose slots are damaged.
fn damaged_delays(count: u64) -> (Arc<MemoryStorage>, Arc<ManualClock>) {
    let disk = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = on(disk.clone()).segment_bytes(1 << 20).background(false);
    let queue = options.clock(clock.clone()).open("queue").unwrap();
    let jobs = (0..count).map(|_| Message::new("the job").delay(Duration::from_secs(60)));
    queue.push_batch(jobs).unwrap();
    queue.close().unwrap();
    let (name, _) = find(&disk, b"the job");
    let bytes = disk.read(&name).unwrap().len() as u64;
    for index in 0..count {
        flip(&disk, &name, bytes - 4096 - 16 * (index + 1));
    }
    (disk, clock)
}

/// `peek` counted a segment, took up one step of what was bad in it, and showed the rest as ready.
#[test]
fn peek_shows_no_message_before_its_time() {
    let (disk, clock) = damaged_delays(600);
    let options = on(disk).segment_bytes(1 << 20).background(false).clock(clock);
    let queue = options.open("queue").unwrap();
    let peeked = queue.peek().unwrap().map(|message| message.seq());
    let popped = queue.pop().unwrap().map(|job| job.seq());
    assert_eq!(peeked, popped, "peeked, popped");
}

/// A lease that was over took room in flight, though `in_flight` did not count it.
#[test]
fn extend_has_the_room_of_a_lease_that_is_over() {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = alone().clock(clock.clone()).visibility_timeout(ms(100)).max_in_flight(1);
    let backoff = Backoff::exponential(HOUR).jitter(0.0);
    let queue = options.backoff(backoff).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let first = queue.pop().unwrap().unwrap();
    clock.advance(ms(101));
    let second = queue.pop().unwrap().unwrap();
    assert_eq!((&first[..], &second[..]), (&b"a"[..], &b"b"[..]));
    clock.advance(ms(101));
    let extended = first.extend(ms(1000));
    let in_flight = queue.in_flight();
    assert!(extended.is_ok(), "{extended:?} while {in_flight} are in flight");
    forget((first, second));
}

/// Right after open, `delayed` said 0 of what earlier runs had left.
#[test]
fn delayed_counts_what_earlier_runs_left() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).background(false).open("queue").unwrap();
    queue.push(Message::new("later").delay(HOUR)).unwrap();
    queue.close().unwrap();
    let queue = on(disk).background(false).open("queue").unwrap();
    let (delayed, told) = (queue.delayed(), queue.stats().delayed());
    assert_eq!((delayed, told), (1, 1), "delayed, Stats::delayed");
}

/// The front changed when a delay was over while as many were in flight as may be, and a call that
/// came by noted that it was over: no look at the front was planned.
#[test]
fn a_delayed_message_expires_at_the_front_at_the_limit_in_flight() {
    for is_asked in [false, true] {
        let options = alone().background(true).max_in_flight(1).max_messages(2);
        let queue = options.overflow(Overflow::Block).open("queue").unwrap();
        queue.push(Message::new("long").ttl(HOUR)).unwrap();
        let job = queue.pop().unwrap().unwrap();
        let seq = queue.push(Message::new("b").delay(ms(1500)).ttl(ms(3000))).unwrap();
        let pushing = queue.clone();
        let pushing = call(move || pushing.push("c"));
        thread::sleep(ms(2000));
        if is_asked {
            assert!(queue.pop().unwrap().is_none());
        }
        let is_settled = queue.wait_acked(seq, ms(15_000)).unwrap();
        let has_pushed = pushing.result_by(Instant::now() + ms(1000)).is_some();
        assert!(
            is_settled,
            "asked {is_asked}: not settled; the push that waits is over: {has_pushed}"
        );
        forget(job);
    }
}

/// A refused move is tried again a second later. It was not where a producer waited without a
/// background.
#[test]
fn a_producer_gets_the_room_of_a_letter_that_was_refused() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = on(storage.clone()).background(false).max_messages(1).push_timeout(HOUR);
    let queue = options.overflow(Overflow::Block).open("queue").unwrap();
    queue.push("bad").unwrap();
    storage.rule(|call| {
        let is_refused = call.op == Op::Create && call.name.starts_with("dead/");
        if is_refused { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let pushing = call(move || queue.push("next"));
    pushing.asleep();
    assert!(!pushing.is_over(), "there is no room");
    storage.no_rule();
    pushing.result("push").unwrap();
}

/// The other half of `a_producer_that_waits_for_bytes_sleeps_beside_a_lease_that_ran_out`.
#[test]
fn a_producer_that_waits_for_bytes_sleeps_beside_a_delay_that_is_over() {
    let options = alone().max_bytes(1 << 20).overflow(Overflow::Block).push_timeout(ms(1500));
    let queue = options.open("queue").unwrap();
    queue.push(Message::new("later").delay(ms(300))).unwrap();
    while queue.try_push(large(0)).is_ok() {}
    let (pushed, used) = call(move || {
        let before = cpu();
        (queue.push(large(1)), cpu().saturating_sub(before))
    })
    .result("push");
    assert!(matches!(pushed, Err(Error::Full { .. })), "{pushed:?}");
    assert!(used < ms(500), "it ran for {used:?} of 1.5 s");
}

/// The same consumer spun once a sync of the dead letters had failed, since they stay refused.
#[test]
fn a_consumer_sleeps_beside_poisoned_dead_letters() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    queue.push("bad").unwrap();
    storage.rule(|call| {
        let is_refused = call.op == Op::Sync && call.name.starts_with("dead/");
        if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let used = used_by_a_wait(queue, ms(3000));
    assert!(used < ms(500), "it ran for {used:?} of 3 s");
}
