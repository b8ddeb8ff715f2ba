//! Found faults: a push gets the room that dead letters no longer need, and hears of it if there is
//! none to come.

use super::found_hooks::by_hand;
use super::found_support::{alone, call, on, watched};
use crate::support::watched::{Op, Watched};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Durability, Options, Overflow, Queue};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const LARGE: &[u8] = &[1; 50_000];

/// Dead letters that take all the room that they can have.
fn full_of_letters(options: Options) -> (Queue, Queue) {
    let queue = options.max_bytes(1 << 20).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    while dead.push(LARGE).is_ok() {}
    (queue, dead)
}

/// A producer waits for room beside dead letters. They are purged, and their handle is closed or
/// dropped.
fn producer_beside_purged_letters(background: bool, closes: bool) {
    let options = alone().background(background).overflow(Overflow::Block);
    let (queue, dead) = full_of_letters(options);
    let pushing = queue.clone();
    let pushing = call(move || pushing.push(LARGE));
    pushing.asleep();
    dead.purge().unwrap();
    if closes {
        dead.close().unwrap();
    } else {
        drop(dead);
    }
    let pushed = pushing.result("a push beside dead letters that were purged");
    pushed.unwrap_or_else(|error| panic!("background {background}: {error}"));
}

/// The push needed the room of several files. It got one of them, and then slept. Nothing woke it,
/// because no more dead letters were settled.
#[test]
fn a_producer_gets_as_many_files_of_settled_dead_letters_as_it_needs() {
    producer_beside_purged_letters(false, false);
    producer_beside_purged_letters(true, false);
}

/// Dead letters were purged, and then their handle was closed. Their files stayed as they were
/// until somebody asked for the dead letters again, and a producer slept beside them for ever.
#[test]
fn a_producer_gets_the_room_of_dead_letters_that_were_purged_and_closed() {
    producer_beside_purged_letters(false, true);
    producer_beside_purged_letters(true, true);
}

/// A push that finds no room and does not wait: it was refused beside such files.
#[test]
fn a_push_is_not_refused_beside_dead_letters_that_were_purged_and_closed() {
    let (queue, dead) = full_of_letters(alone());
    assert!(queue.push(LARGE).is_err());
    dead.purge().unwrap();
    dead.close().unwrap();
    for _ in 0..8 {
        queue.push(LARGE).unwrap();
    }
}

/// Where the oldest messages are dropped for room, live ones were dropped, and the push failed all
/// the same, while the files of settled dead letters were still there.
#[test]
fn no_message_is_dropped_while_settled_dead_letters_hold_room() {
    let queue = alone().max_bytes(1 << 20).overflow(Overflow::DropOldest).open("queue").unwrap();
    queue.push("old").unwrap();
    queue.push(vec![2; 60_000]).unwrap();
    let dead = queue.dead_letters().unwrap();
    while dead.push(LARGE).is_ok() {}
    dead.purge().unwrap();
    for _ in 0..4 {
        queue.push(LARGE).unwrap();
    }
    assert_eq!((queue.stats().dropped(), queue.len()), (0, 6));
}

/// The dead letters of an earlier run were settled, and their files were not sealed, or not counted
/// yet. A push gave none of them back, however often it was tried.
#[test]
fn a_push_gets_the_room_of_dead_letters_of_an_earlier_run() {
    for is_killed in [false, true] {
        for is_purged_before in [false, true] {
            let disk = Arc::new(MemoryStorage::new());
            let options = |disk| on(disk).background(false);
            let (queue, dead) = full_of_letters(options(disk.clone()));
            if is_purged_before {
                dead.purge().unwrap();
            }
            let disk = if is_killed {
                Arc::new(disk.killed())
            } else {
                queue.close().unwrap();
                disk
            };
            let queue = options(disk).max_bytes(1 << 20).open("queue").unwrap();
            if !is_purged_before {
                assert!(queue.dead_letters().unwrap().purge().unwrap() > 5);
            }
            for number in 0..8 {
                let pushed = queue.push(LARGE).map(|_| ());
                let context = format!("killed {is_killed}, purged before {is_purged_before}");
                assert!(pushed.is_ok(), "{context}, push {number}: {pushed:?}");
            }
        }
    }
}

/// While the dead letters refused messages for want of room, each try to move them went over all of
/// them: once a second, and in a call of a consumer where there was no background. Now a try ends
/// after some of them, and the next one goes on from there. So a small message behind many large
/// ones is still moved.
#[test]
fn a_try_to_move_many_refused_messages_is_bounded_and_holds_up_none() {
    const MANY: u64 = 4_000;
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_000_000)));
    let options = on(storage).background(false).clock(clock.clone()).max_bytes(4 << 20);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..MANY).map(|_| &[1; 250])).unwrap();
    queue.push_batch(["small", "last"]).unwrap();
    let dead = queue.dead_letters().unwrap();
    for len in [50_000, 5_000, 200] {
        while dead.push(&LARGE[..len]).is_ok() {}
    }
    let others = dead.len();
    let mut jobs = queue.pop_batch(usize::MAX).unwrap();
    jobs.pop().unwrap().release().unwrap();
    for job in jobs {
        job.reject("no").unwrap();
    }
    assert_eq!((queue.stats().dying(), dead.len()), (MANY + 1, others));
    let mut tries = 0;
    while dead.len() == others {
        clock.advance(Duration::from_secs(2));
        let before = watch.count(Op::Load);
        queue.pop().unwrap().unwrap().release().unwrap();
        // Each that is looked up takes a few.
        assert!(watch.count(Op::Load) - before < 2 * MANY, "it goes over all of them");
        tries += 1;
        assert!(tries < 10, "the small one is held up");
    }
    assert_eq!(queue.stats().dying(), MANY);
}

/// So that there are files for more.
fn has_one_dead_letter(queue: &Queue) {
    queue.push("dead").unwrap();
    queue.pop().unwrap().unwrap().reject("of it").unwrap();
    queue.maintain().unwrap();
}

/// A sync of the dead letters failed, so that no message could be moved there any more, and all
/// that were not settled were dying. A producer slept beside them until the queue was closed,
/// whether it came before the failed sync or after it.
#[test]
fn a_producer_is_told_that_nothing_can_be_moved_to_the_dead_letters() {
    for (has_background, comes_first) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let options = by_hand(storage.clone()).background(has_background).overflow(Overflow::Block);
        let queue = options.max_messages(10).open("queue").unwrap();
        has_one_dead_letter(&queue);
        queue.push_batch(["dies"; 10]).unwrap();
        let jobs = queue.pop_batch(10).unwrap();
        storage.rule(|call| {
            let is_refused = call.op == Op::Sync && call.name.starts_with("dead/");
            if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
        });
        let pushing = || {
            let queue = queue.clone();
            call(move || queue.push("next"))
        };
        let first = comes_first.then(pushing);
        if let Some(first) = &first {
            first.asleep();
        }
        for job in jobs {
            job.reject("bad").unwrap();
        }
        queue.maintain().ok();
        let told = first.unwrap_or_else(pushing).result("the push");
        let is_told = matches!(&told, Err(keepq::Error::Poisoned { path, .. })
            if path.to_string_lossy().contains("dead"));
        assert!(is_told, "{told:?}");
        assert_eq!(queue.stats().dying(), 10);
    }
}

/// While another message may be settled, a producer waits for that.
#[test]
fn a_producer_waits_for_others_where_nothing_can_be_moved_to_the_dead_letters() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue =
        by_hand(storage.clone()).overflow(Overflow::Block).max_messages(2).open("queue").unwrap();
    has_one_dead_letter(&queue);
    queue.push_batch(["dies", "stays"]).unwrap();
    let mut jobs = queue.pop_batch(2).unwrap();
    storage.rule(|call| {
        let is_refused = call.op == Op::Sync && call.name.starts_with("dead/");
        if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    jobs.remove(0).reject("bad").unwrap();
    queue.maintain().ok();
    let pushing = queue.clone();
    let producer = call(move || pushing.push("next"));
    producer.asleep();
    assert!(!producer.is_over());
    jobs.remove(0).ack().unwrap();
    producer.result("the push").unwrap();
}

/// Where `max_bytes` left no room for another file of dead letters, messages that were to be moved
/// there stayed for ever, and kept the queue full: nobody could take them, here or there.
#[test]
fn rejected_messages_keep_no_queue_full() {
    let cases = [
        (1 << 20, 1 << 20, 60_000),
        (1_500_000, 1_500_000, 100_000),
        (16 << 20, 16 << 20, 1 << 20),
        // The limit is lower than what is there.
        (16 << 20, 1 << 20, 1 << 20),
        (64 << 20, 1 << 20, 60_000),
        (8 << 20, 1 << 20, 2_000),
    ];
    for (limit, lowered, len) in cases {
        let disk = MemoryStorage::new();
        let open = |limit| {
            let options = Queue::options().storage(disk.directory("q").unwrap());
            let options = options.background(false).durability(Durability::Os);
            options.max_bytes(limit).open("q").unwrap()
        };
        let queue = open(limit);
        let mut pushed = 0;
        while queue.push(vec![1; len]).is_ok() {
            pushed += 1;
        }
        queue.close().unwrap();
        let queue = open(lowered);
        let (found, mut most, mut dead) = (queue.stats().disk_bytes(), 0, 0);
        let context = format!("{limit}, then {lowered}: {len} bytes");
        for _ in 0..10 {
            while let Some(job) = queue.pop().unwrap() {
                job.reject("no").unwrap();
            }
            queue.maintain().ok();
            most = queue.stats().disk_bytes().max(most);
            let letters = queue.dead_letters().unwrap();
            let jobs = letters.pop_batch(usize::MAX).unwrap();
            dead += jobs.len();
            letters.ack_batch(jobs).unwrap();
            letters.maintain().unwrap();
            queue.maintain().ok();
        }
        assert_eq!((dead, queue.stats().dying()), (pushed, 0), "{context}");
        queue.push(vec![1; 1000]).unwrap_or_else(|error| panic!("{context}: {error}"));
        // Twice the largest segment.
        let above = 2 * (limit / 8).max(2 * len as u64 + 65_536);
        assert!(most <= found.max(lowered) + above, "{context}: {most} of {found}");
    }
}

/// On a full disk, `maintain` of a queue that was settled but for a message on its way to the dead
/// letters moved that first, for which there was no room yet.
#[test]
fn maintain_moves_again_what_found_no_room_before() {
    let storage = Arc::new(MemoryStorage::with_capacity(16 << 20));
    let options = Queue::options().storage(storage).background(false).segment_bytes(1 << 20);
    let queue = options.durability(Durability::Os).open("q").unwrap();
    while queue.push(vec![1; 50_000]).is_ok() {}
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
    queue.maintain().unwrap();
    assert_eq!(queue.stats().dying(), 0);
    assert_eq!(queue.dead_letters().unwrap().len(), 1);
}
