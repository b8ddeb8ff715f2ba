//! Found faults: what an error costs after the call that met it, and what a slow copy costs.

use super::found_hooks::{
    Gate, OpenAtEnd, Way, Work, by_hand, files, find, flip, is_segment, is_temporary, until,
};
use crate::support::watched::{Call, Op, Watched};
use keepq::fault::{CrashImage, ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Compaction, Delivery, Durability, Error, Message, Options, Queue};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

const HOUR: Duration = Duration::from_secs(3600);

/// A kilobyte with the number in front: some fifty fill a segment.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(1000, 7);
    payload
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

fn numbers(jobs: &[Delivery]) -> Vec<u64> {
    jobs.iter().map(|job| number(job)).collect()
}

fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

fn on(storage: Arc<dyn Storage>) -> Options {
    let options = by_hand(storage).durability(Durability::Os).backoff(Backoff::none());
    options.compaction(Compaction::default().idle(Duration::ZERO)).max_attempts(0)
}

/// The dead letters get no file, so dying messages stay where they are.
fn refuse_dead_letters(call: Call<'_>) -> std::io::Result<()> {
    let is_it = call.op == Op::Create && call.name.starts_with("dead/");
    if is_it { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// No segment can be mapped: the process has too many files open, or too little memory.
fn refuse_maps(call: Call<'_>) -> std::io::Result<()> {
    let is_it = call.op == Op::Map && is_segment(call.name);
    if is_it { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
}

/// A closed queue that was compacted. Of its hundred messages ten are delayed and ten are ready,
/// and number 1 is on its way to the dead letters.
fn compacted(clock: &Arc<ManualClock>) -> Arc<MemoryStorage> {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    storage.rule(refuse_dead_letters);
    let queue = on(storage).clock(clock.clone()).open("queue").unwrap();
    for number in 0..100 {
        let message = Message::new(payload(number));
        queue.push(if number % 10 == 3 { message.delay(HOUR) } else { message }).unwrap();
    }
    queue.push(vec![0; 50_000]).unwrap();
    queue.push(vec![0; 50_000]).unwrap();
    let (kept, settled): (Vec<_>, Vec<_>) = queue
        .pop_batch(usize::MAX)
        .unwrap()
        .into_iter()
        .partition(|job| job.len() == 1000 && (number(job) == 1 || number(job) % 10 == 5));
    queue.ack_batch(settled).unwrap();
    for job in kept {
        if number(&job) == 1 { job.reject("no").unwrap() } else { job.release().unwrap() }
    }
    assert!(queue.compact().unwrap().copies() > 0);
    queue.close().unwrap();
    disk
}

/// Damages the number of the record with this index in the copy: see the format page.
fn spoil_number(disk: &MemoryStorage, index: usize) {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let is_copy = |name: &String| is_segment(name) && disk.read(name).unwrap()[96..100] != [0; 4];
    let name = files(disk).into_iter().find(is_copy).expect("a copy");
    let mut bytes = disk.read(&name).unwrap();
    let table = word(&bytes, 1536 + 8) as usize;
    bytes[table + 8 * index] ^= 1;
    disk.write(&name, bytes);
}

/// When keepq counted the messages of a queue after open, the process had no memory for a map.
/// keepq told of the error, took the slots that it had read for counted, and dropped what they
/// said. Delayed messages were not handed out any more until the next open, and a dying message
/// stayed where it was.
#[test]
fn an_error_while_a_queue_is_counted_costs_no_message() {
    let clock = manual_clock();
    let disk = compacted(&clock);
    // The first records of the copy are numbers 1, 3 and 5. To count number 5, keepq has to store.
    spoil_number(&disk, 2);
    let counts: [Way; 6] = [
        ("len", |queue| assert!(!queue.is_empty())),
        ("stats", |queue| drop(queue.stats())),
        ("maintain", |queue| drop(queue.maintain())),
        ("pop", |queue| drop(queue.pop())),
        ("iter", |queue| assert!(queue.iter().count() < 100)),
        ("dead_letters", |queue| drop(queue.dead_letters())),
    ];
    let mut wrong = Vec::new();
    for (name, count) in counts {
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        let storage = Watched::around(Arc::new(disk.killed()));
        let queue = on(storage.clone()).clock(clock.clone()).open("queue").unwrap();
        storage.rule(refuse_maps);
        count(&queue);
        storage.no_rule();
        queue.maintain().unwrap();
        let delayed = queue.delayed();
        clock.advance(2 * HOUR);
        let found = numbers(&queue.pop_batch(usize::MAX).unwrap());
        let expected = (0..100).filter(|n| n % 10 == 3 || n % 10 == 5 && *n > 5);
        let missing: Vec<u64> = expected.filter(|number| !found.contains(number)).collect();
        let letters = queue.stats().dead_letters();
        if delayed != 10 || !missing.is_empty() || letters != 1 {
            wrong.push(format!("{name}: {delayed} delayed, {letters} letters, lost: {missing:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The same with dying messages in a queue that is opened without dead letters. The first one met
/// the error, and keepq forgot the others: they counted as ready and were never handed out.
#[test]
fn an_error_while_a_queue_is_counted_leaves_nothing_dying() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    storage.rule(refuse_dead_letters);
    let queue = on(storage).open("queue").unwrap();
    let seqs: Vec<_> = (0..5).map(|number| queue.push(payload(number)).unwrap()).collect();
    for job in queue.pop_batch(3).unwrap() {
        job.reject("no").unwrap();
    }
    queue.close().unwrap();
    let storage = Watched::around(disk);
    let queue = on(storage.clone()).dead_letters(false).open("queue").unwrap();
    storage.rule(refuse_maps);
    queue.maintain().ok();
    assert!(queue.len() <= 5);
    storage.no_rule();
    queue.maintain().unwrap();
    assert_eq!((queue.len(), queue.stats().dropped()), (2, 3));
    for (n, seq) in seqs.into_iter().enumerate() {
        assert_eq!(queue.is_acked(seq).unwrap(), n < 3);
    }
    assert_eq!(numbers(&queue.pop_batch(9).unwrap()), [3, 4]);
}

/// The first push counted the messages of earlier runs for `max_messages`, and could not read a
/// file. So all messages of that file counted as unsettled, which is right as long as the file
/// cannot be read. But keepq kept the number for the whole run: pushes were `Full` in a queue that
/// was nearly empty.
#[test]
fn a_limit_counts_again_what_could_not_be_read() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).open("queue").unwrap();
    (0..100).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
    queue.ack_batch(queue.pop_batch(90).unwrap()).unwrap();
    queue.close().unwrap();
    for counts_first in [false, true] {
        let storage = Watched::around(Arc::new(disk.killed()));
        let queue = on(storage.clone()).max_messages(50).open("queue").unwrap();
        storage.rule(|call| {
            let is_it = call.op == Op::Read && is_segment(call.name);
            if is_it { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
        });
        // It may be refused.
        queue.push("too early").ok();
        storage.no_rule();
        let before = if counts_first { queue.len() } else { 10 };
        assert!((10..=11).contains(&before));
        let mut pushed = 0;
        let refused = loop {
            match queue.push("in time") {
                Ok(_) if pushed < 60 => pushed += 1,
                pushed => break pushed,
            }
        };
        assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        assert!((39..=40).contains(&pushed), "{pushed} found room, counted before: {counts_first}");
        assert_eq!(queue.len(), 50);
    }
}

/// A queue with sparse files in which everything is durable.
fn sparse() -> (Arc<MemoryStorage>, Arc<Watched>, Queue) {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(storage.clone()).open("queue").unwrap();
    (0..400).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
    let (kept, settled): (Vec<_>, Vec<_>) =
        queue.pop_batch(390).unwrap().into_iter().partition(|job| number(job).is_multiple_of(9));
    queue.ack_batch(settled).unwrap();
    drop(kept);
    queue.sync().unwrap();
    (disk, storage, queue)
}

fn segments(disk: &MemoryStorage) -> Vec<String> {
    files(disk).into_iter().filter(|name| is_segment(name)).collect()
}

fn is_copy_in_the_making(name: &str) -> bool {
    is_temporary(name) && !name.contains("CHECKPOINT")
}

/// Another thread compacts up to its call number `at` of this kind and waits there. Then a sync of
/// a push fails, and the other thread goes on. Gives the name of the file that the call was of, how
/// many syncs compaction made afterwards, and what it said; `None` if it made fewer calls.
fn poisoned_at(
    storage: &Arc<Watched>,
    queue: &Queue,
    is_it: fn(Op) -> bool,
    at: u64,
) -> Option<(String, u64, keepq::Result<()>)> {
    let (gate, test) = (Gate::closed(), std::thread::current().id());
    let _open = OpenAtEnd(Arc::clone(&gate));
    let (calls, syncs) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let (stop, made) = (Arc::clone(&gate), Arc::clone(&syncs));
    let held: Arc<Mutex<Option<String>>> = Arc::default();
    let told = Arc::clone(&held);
    storage.rule(move |call| {
        if std::thread::current().id() == test {
            return if call.op == Op::Sync { Err(ErrorKind::Other.into()) } else { Ok(()) };
        }
        if is_it(call.op) && calls.fetch_add(1, Ordering::SeqCst) == at {
            *told.lock().unwrap() = Some(call.name.to_string());
            stop.pass();
            made.store(0, Ordering::SeqCst);
        } else if call.op.is_sync() {
            made.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let (result, compacting) = (Arc::new(Mutex::new(None)), queue.clone());
    let said = Arc::clone(&result);
    let mut work = Work::start(move |_| {
        let compacted = compacting.compact().map(|_| ());
        *said.lock().unwrap() = Some(compacted);
    });
    until("compaction is at the gate, or over", || work.is_over() || gate.has_waiting());
    if !gate.has_waiting() {
        return None;
    }
    let failed = queue.push(Message::new("x").durability(Durability::Always));
    assert!(matches!(failed, Err(Error::Poisoned { .. })), "{failed:?}");
    gate.open();
    work.finish("compaction");
    let name = held.lock().unwrap().take().unwrap();
    let said = result.lock().unwrap().take().unwrap();
    Some((name, syncs.load(Ordering::SeqCst), said))
}

/// Compaction went on for seconds in a poisoned queue: it read all files that it had begun with,
/// made its copy and synced it, although no sync counts any more.
#[test]
fn compaction_ends_with_the_first_failed_sync() {
    for at in [0, 2, 5] {
        let (disk, storage, queue) = sparse();
        let before = segments(&disk);
        let (name, syncs, said) = poisoned_at(&storage, &queue, |op| op == Op::Read, at).unwrap();
        assert!(before.contains(&name), "read {at} is one of a file that is copied: {name}");
        assert!(matches!(said, Err(Error::Poisoned { .. })), "{said:?}");
        assert_eq!(syncs, 0, "syncs that compaction made in a poisoned queue");
        assert_eq!(segments(&disk), before);
    }
}

/// Compaction waited for a sync of its copy when another sync failed, and so the queue was
/// poisoned. The copy took the place of the files that it was made from all the same.
#[test]
fn no_copy_is_put_in_place_after_a_failed_sync() {
    let mut was_in_the_making = 0;
    for at in 0.. {
        let (disk, storage, queue) = sparse();
        let waiting: BTreeSet<u64> =
            queue.iter().map(|message| number(&message.unwrap())).collect();
        let before = (segments(&disk), queue.stats().segments());
        let held = poisoned_at(&storage, &queue, Op::is_sync, at);
        let Some((name, _, said)) = held else { break };
        let context = format!("sync {at} of compaction, of {name:?}");
        assert!(matches!(said, Err(Error::Poisoned { .. })), "{context}: {said:?}");
        if is_copy_in_the_making(&name) {
            was_in_the_making += 1;
            let after = (segments(&disk), queue.stats().segments());
            assert_eq!(after, before, "{context}: the files, and how many are in use");
        }
        // Wherever it ended, everything that was durable still is.
        for image in [CrashImage::Oldest, CrashImage::Newest, CrashImage::Mixed(at)] {
            let queue = on(Arc::new(disk.power_cut(image))).open("queue").unwrap();
            let found: BTreeSet<u64> = queue
                .pop_batch(usize::MAX)
                .unwrap()
                .iter()
                .filter(|job| job.len() > 1)
                .map(|job| number(job))
                .collect();
            assert_eq!(found, waiting, "{context}, {image:?}");
        }
    }
    assert!(was_in_the_making >= 2, "{was_in_the_making}");
}

/// A queue whose compaction waits at a gate with its copy.
fn resting() -> (Arc<MemoryStorage>, Arc<Watched>, Queue, Arc<Gate>, Work) {
    let (disk, storage, queue) = sparse();
    let gate = Gate::closed();
    let at = Arc::clone(&gate);
    storage.rule(move |call| {
        if call.op == Op::Sync && is_copy_in_the_making(call.name) {
            at.pass();
        }
        Ok(())
    });
    let compacting = queue.clone();
    let mut work = Work::start(move |_| assert!(compacting.compact().unwrap().copies() > 0));
    until("a copy waits for its sync", || work.is_over() || gate.has_waiting());
    assert!(gate.has_waiting());
    (disk, storage, queue, gate, work)
}

/// While a copy rested, a consumer took one message and gave it back again and again. keepq noted
/// each of these changes, and at the end stored all of them in the copy, one after the other.
#[test]
fn a_message_that_changes_often_is_brought_over_to_a_copy_once() {
    let (_disk, storage, queue, gate, mut work) = resting();
    let _open = OpenAtEnd(Arc::clone(&gate));
    for _ in 0..3000 {
        queue.pop().unwrap().unwrap().nack().unwrap();
    }
    let stores = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&stores);
    storage.rule(move |call| {
        counted.fetch_add(u64::from(call.op.is_store()), Ordering::SeqCst);
        Ok(())
    });
    gate.open();
    work.finish("compaction");
    let stores = stores.load(Ordering::SeqCst);
    assert!(stores < 2000, "{stores} stores to the copy for one message that changed");
}

/// The memory of this process that is no file's.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// By how much memory grows while one message is delivered this number of times beside a copy that
/// rests.
#[cfg(target_os = "linux")]
fn memory_beside_a_copy(deliveries: u64) -> u64 {
    let (disk, _storage, queue, gate, mut work) = resting();
    let _open = OpenAtEnd(Arc::clone(&gate));
    // This storage keeps each version of a sector until the next sync.
    let file = disk.open(&find(&disk, &payload(0)).0).unwrap();
    let deliver = |times: u64| {
        for time in 0..times {
            queue.pop().unwrap().unwrap().nack().unwrap();
            if time % 64 == 0 {
                file.sync().unwrap();
            }
        }
    };
    deliver(10_000);
    let before = memory();
    deliver(deliveries);
    let grown = memory().saturating_sub(before);
    gate.open();
    work.finish("compaction");
    grown
}

/// While a copy rested, memory grew by a few bytes with each delivery and each answer in the files
/// that were copied: from 71 to 184 MB in 40 s. It may grow with the number of messages that
/// change, but not with the number of changes. (The test measures a process of its own, so that
/// other tests do not matter.)
#[cfg(target_os = "linux")]
#[test]
fn a_copy_that_rests_takes_no_memory_for_each_answer() {
    const CHILD: &str = "KEEPQ_FOUND_RESTING_COPY";
    const DELIVERIES: u64 = 250_000;
    if std::env::var_os(CHILD).is_some() {
        println!("\n@{}", memory_beside_a_copy(DELIVERIES));
        return;
    }
    let module = module_path!().split_once("::").unwrap().1;
    let name = format!("{module}::a_copy_that_rests_takes_no_memory_for_each_answer");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let grown = said.lines().find_map(|line| line.strip_prefix('@')?.parse::<u64>().ok());
    let grown = grown.unwrap_or_else(|| panic!("{child:?}"));
    assert!(grown < 1 << 20, "memory grew by {} KiB with {DELIVERIES} deliveries", grown >> 10);
}

/// A damaged slot could not be rebuilt, since its file could not be mapped: no later segment was
/// counted, so what was settled there was taken for unsettled.
#[test]
fn what_cannot_be_rebuilt_stops_no_other_segment_from_being_counted() {
    let disk = Arc::new(MemoryStorage::new());
    let open = || by_hand(disk.clone()).segment_bytes(1 << 20).open("queue").unwrap();
    let queue = open();
    queue.push_batch(["damaged slot", "waits"]).unwrap();
    queue.close().unwrap();
    let queue = open();
    queue.push_batch(["acked", "acked", "waits"]).unwrap();
    let jobs = queue.pop_batch(4).unwrap();
    for job in jobs.into_iter().skip(2) {
        job.ack().unwrap();
    }
    queue.close().unwrap();
    let (damaged, _) = find(&disk, b"damaged slot");
    let end = disk.read(&damaged).unwrap().len() as u64;
    flip(&disk, &damaged, end - 4096 - 16);
    let storage = Watched::around(disk.clone());
    let name = damaged.clone();
    storage.rule(move |call| match call.op {
        Op::Map if call.name == name => Err(ErrorKind::OutOfMemory.into()),
        _ => Ok(()),
    });
    let options = by_hand(disk.clone()).segment_bytes(1 << 20).storage(storage.clone());
    let queue = options.open("queue").unwrap();
    assert_eq!((queue.len(), queue.stats().ready()), (3, 3));
    assert!(queue.stats().last_background_error().is_some(), "the failure is told");
    storage.no_rule();
    assert_eq!(queue.pop_batch(9).unwrap().len(), 3, "and what failed is tried again");
    assert_eq!(queue.stats().lost(), 0);
}
