//! Calls that cost too much, or kept other threads waiting for too long. Each test is a story
//! that once went wrong. Most tests count operations, so that a busy machine does not matter.

use crate::found_support::{call, ms, on, takes_less_than, watched};
use crate::support::watched::Op;
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Expired, Message, Queue};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

const HOUR: Duration = Duration::from_secs(3600);

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

/// Messages with this delay.
fn delayed(count: u64, delay: Duration) -> impl Iterator<Item = Message<'static>> {
    (0..count).map(move |_| Message::new("later").delay(delay))
}

/// How long it takes to purge delayed messages. During the first step of the purge, as many
/// others are pushed that are due sooner, if `has_others`.
fn purge(count: u64, has_others: bool) -> Duration {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).segment_bytes(8 << 20).background(false);
    let queue = options.open("queue").unwrap();
    // Files grow: the last one has room for the others, too.
    for batch in [1, count, count] {
        queue.purge().unwrap();
        queue.push_batch(delayed(batch, 2 * HOUR)).unwrap();
    }
    let purging = queue.clone();
    let (hold, purging) = watch.hold(Op::StoreWord, "", move || {
        let purged = purging.purge().unwrap();
        (purged, Instant::now())
    });
    let pushing = queue.clone();
    let pushing = call(move || {
        let others = if has_others { count } else { 0 };
        pushing.push_batch(delayed(others, HOUR)).unwrap().len() as u64
    });
    pushing.asleep();
    let start = Instant::now();
    drop(hold);
    let (purged, end) = purging.result("purge");
    let others = pushing.result("push");
    assert_eq!((purged, queue.delayed()), (count, others));
    end - start
}

/// To find each delayed message, `purge` went over all newer messages that were due sooner:
/// 40,000 messages beside 40,000 took 8.7 s, most of it under the lock that every pop and ack
/// needs.
#[test]
fn a_purge_of_delayed_messages_is_not_slowed_down_by_others() {
    const COUNT: u64 = 20_000;
    // About as long; to go over all others takes some twenty times as long.
    takes_less_than(6, || purge(COUNT, false), || purge(COUNT, true));
}

/// Leases that ran out together were ended under one lock. For a million leases no other thread
/// could take or answer a message for 2 s.
#[test]
fn leases_that_run_out_together_let_others_in() {
    const COUNT: u64 = 20_000;
    let ways: [fn(&Queue); 2] =
        [|queue| queue.maintain().unwrap(), |queue| assert!(queue.pop().unwrap().is_none())];
    let ended_before_others = ways.map(|end_leases| {
        let clock = clock();
        let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
        let options = on(storage).segment_bytes(8 << 20).background(false).clock(clock.clone());
        let options = options.visibility_timeout(ms(50)).backoff(Backoff::exponential(HOUR));
        let queue = options.open("queue").unwrap();
        let first = queue.push_batch((0..COUNT).map(|_| "job")).unwrap()[0];
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        assert_eq!(jobs.len() as u64, COUNT);
        clock.advance(ms(50));
        let before = watch.count(Op::StoreWord);
        let ending = queue.clone();
        let (hold, ending) = watch.hold(Op::StoreWord, "", move || end_leases(&ending));
        let (other, other_watch) = (queue.clone(), Arc::clone(&watch));
        let other = call(move || {
            assert!(!other.is_acked(first).unwrap());
            other_watch.stores_at_load()
        });
        other.asleep();
        drop(hold);
        // How many leases were ended before the other thread could look at the message.
        let done = other.result("is_acked").map_or(0, |stores| stores - before);
        ending.result("the end of the leases");
        queue.maintain().unwrap();
        assert_eq!((queue.in_flight(), queue.delayed()), (0, COUNT));
        done
    });
    let is_let_in = ended_before_others.iter().all(|&done| done < COUNT / 2);
    assert!(is_let_in, "leases that were ended under one lock: {ended_before_others:?}");
}

/// Without a background, a `pop` moved the expired messages before the next one to the dead
/// letters one by one, with a sync for each: with 10,000 of them it took 33 s.
#[test]
fn a_pop_over_expired_messages_does_not_sync_for_each() {
    const COUNT: u64 = 500;
    let ways: [fn(&Queue) -> bool; 4] = [
        |queue| queue.pop().unwrap().is_some(),
        |queue| queue.pop_timeout(HOUR).unwrap().is_some(),
        |queue| queue.pop_batch(9).unwrap().len() == 1,
        |queue| queue.peek().unwrap().is_some(),
    ];
    let syncs = ways.map(|look| {
        let clock = clock();
        let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
        let options = on(storage).background(false).clock(clock.clone());
        let options = options.expired(Expired::DeadLetter).backoff(Backoff::none());
        let queue = options.open("queue").unwrap();
        queue.push_batch((0..COUNT).map(|_| Message::new("over").ttl(HOUR))).unwrap();
        queue.push("fresh").unwrap();
        clock.advance(HOUR);
        let before = watch.count(Op::Sync);
        assert!(look(&queue), "the fresh one is there");
        let syncs = watch.count(Op::Sync) - before;
        queue.maintain().unwrap();
        assert_eq!((queue.stats().dead_letters(), queue.len()), (COUNT, 1));
        syncs
    });
    let is_cheap = syncs.iter().all(|&syncs| syncs < COUNT / 4);
    assert!(is_cheap, "syncs over {COUNT} expired messages: {syncs:?}");
}

/// `get` of a message that was never handed out read all records before it in its file, at each
/// call: 143 ms in a large file.
#[test]
fn get_does_not_read_all_that_lies_before() {
    const COUNT: u64 = 20_000;
    const GETS: u64 = 200;
    let disk = Arc::new(MemoryStorage::new());
    let open = |disk: Arc<MemoryStorage>| {
        let (storage, watch) = watched(disk);
        let options = on(storage).segment_bytes(8 << 20).background(false);
        (options.open("queue").unwrap(), watch)
    };
    let (queue, watch) = open(disk.clone());
    queue.push_batch((1..=COUNT).map(|n| n.to_string())).unwrap();
    let runs = [(queue, watch), open(Arc::new(disk.killed()))];
    let loads_each = runs.map(|(queue, watch)| {
        let before = watch.count(Op::Load);
        for seq in (1..=COUNT).rev().step_by((COUNT / GETS) as usize) {
            let message = queue.get(seq.into()).unwrap().expect("it waits");
            assert_eq!(message[..], *seq.to_string().as_bytes());
        }
        (watch.count(Op::Load) - before) / GETS
    });
    // Of messages of this run, and of an earlier one.
    let is_cheap = loads_each.iter().all(|&loads| loads < COUNT / 8);
    assert!(is_cheap, "loads to get one of {COUNT} messages: {loads_each:?}");
}

/// In a compacted file part of the Seq table was damaged. For each message in that part, the
/// range of lost numbers was looked for over the whole part: one `len` took 105 s.
#[test]
fn a_damaged_table_of_numbers_is_gone_over_once() {
    const LOST: u64 = 1500;
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).segment_bytes(262_144).background(false).open("queue").unwrap();
    for n in 0..8000u32 {
        queue.push(&n.to_le_bytes()).unwrap();
    }
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (kept, acked): (Vec<_>, _) =
        jobs.into_iter().partition(|job| u64::from(job.seq()) % 3 == 0);
    queue.ack_batch(acked).unwrap();
    drop(kept);
    assert!(queue.compact().unwrap().copies() > 0);
    let owed = queue.len();
    queue.close().unwrap();
    // As the page of the format says: the number of sources, and the offset of the table.
    let number =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let names = disk.list().unwrap().into_iter().map(|entry| entry.name);
    let copies = names.filter_map(|name| {
        let bytes = disk.read(&name)?;
        let is_copy = bytes.starts_with(b"keepqseg") && bytes[96..100] != [0; 4];
        is_copy.then_some((name, bytes))
    });
    let (name, mut bytes) = copies.max_by_key(|copy| copy.1.len()).expect("a compacted segment");
    let table = number(&bytes, 1536 + 8) as usize;
    bytes[table + 80..table + 80 + 8 * LOST as usize].fill(0);
    disk.write(&name, bytes);
    let (storage, watch) = watched(disk);
    let queue = on(storage).segment_bytes(262_144).background(false).open("queue").unwrap();
    assert_eq!(queue.len(), owed - LOST);
    let loads = watch.count(Op::Load);
    assert_eq!(queue.stats().lost(), LOST);
    assert!(loads < 100 * owed, "{loads} loads to count {owed} messages");
}
