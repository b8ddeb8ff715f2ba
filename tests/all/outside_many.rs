//! Backlogs of thousands of segments.
//!
//! With 20,000 segments, each new one took 21 ms: CHECKPOINT, which lists all of them, was written
//! for each, and each map, each sync and each file that went looked at all others.

use crate::found_hooks::is_segment;
use crate::found_support::{on, soon, takes_less_than};
use crate::held_open::OpenFiles;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Message, Queue};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Of which a segment has one.
static PAYLOAD: [u8; 50_000] = [7; 50_000];

/// As many messages as this wait, and as many segments.
fn filled(count: u64, is_running: bool) -> (Queue, Arc<AtomicU64>) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let written = Arc::new(AtomicU64::new(0));
    let count_written = Arc::clone(&written);
    storage.rule(move |call| {
        // Under the name that it had when it was made.
        if call.op == Op::Write && call.name.starts_with("CHECKPOINT") {
            count_written.fetch_add(call.len, Ordering::Relaxed);
        }
        Ok(())
    });
    let options = on(storage).segment_bytes(65_536).background(is_running);
    let queue = options.compaction(Compaction::off()).open("queue").unwrap();
    for _ in 0..count {
        queue.push(&PAYLOAD).unwrap();
    }
    assert!(queue.stats().segments() >= count);
    (queue, written)
}

/// One comes and one goes, this often.
fn pass_on(queue: &Queue, count: u64) {
    for _ in 0..count {
        queue.push(&PAYLOAD).unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
}

#[test]
fn the_list_of_segments_is_written_once_for_many() {
    const SEGMENTS: u64 = 1000;
    const PASSED: u64 = 320;
    // A slot lists each segment with 24 bytes, and a file that goes must be in neither slot.
    const LIST: u64 = 2 * 24 * SEGMENTS;
    for is_running in [false, true] {
        let (queue, written) = filled(SEGMENTS, is_running);
        pass_on(&queue, 3);
        let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
        pass_on(&queue, PASSED);
        // One part in 64 of them; and it is written each second, whatever comes or goes.
        let lists = PASSED / (SEGMENTS / 64) + began.elapsed().as_secs() + 2;
        let written = written.load(Ordering::Relaxed) - before;
        assert!(written < lists * LIST * 3 / 2, "{written} bytes of lists, {is_running}");
        // What is done does not pile up, and goes without another push.
        let segments = || queue.stats().segments();
        assert!(segments() < SEGMENTS + SEGMENTS / 10, "{} segments", segments());
        if !is_running {
            queue.maintain().unwrap();
        }
        assert!(soon(|| segments() <= SEGMENTS + 2), "{} segments", segments());
        queue.close().unwrap();
    }
}

/// How long it takes to pass some on.
fn cost(queue: &Queue) -> Duration {
    let start = Instant::now();
    pass_on(queue, 400);
    start.elapsed()
}

#[test]
fn a_segment_among_many_costs_no_more() {
    let (few, many) = (filled(300, false).0, filled(3600, false).0);
    // About as long.
    takes_less_than(2, || cost(&few), || cost(&many));
}

/// A power cut left segments without a record, in which there was nothing to count. They stayed
/// until somebody called `maintain`.
#[test]
fn segments_without_a_message_go() {
    for is_running in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        let options = || on(disk.clone()).durability(Durability::Os).segment_bytes(65_536);
        let queue = options().background(false).open("queue").unwrap();
        queue.push(Message::new(&PAYLOAD[..]).durability(Durability::Always)).unwrap();
        for _ in 1..20 {
            queue.push(&PAYLOAD).unwrap();
        }
        let disk = Arc::new(disk.power_cut(CrashImage::Oldest));
        drop(queue);
        let options = on(disk).durability(Durability::Os).segment_bytes(65_536);
        let queue = options.background(is_running).open("queue").unwrap();
        assert_eq!(queue.len(), 1);
        if !is_running {
            assert_eq!(queue.stats().segments(), 20);
        }
        queue.push("next").unwrap();
        for _ in 0..2 {
            queue.pop().unwrap().unwrap().ack().unwrap();
        }
        let are_gone = || {
            if !is_running {
                // Each push does as much for it as for one file.
                queue.push(&PAYLOAD).unwrap();
                queue.pop().unwrap().unwrap().ack().unwrap();
            }
            queue.stats().segments() <= 4
        };
        assert!(soon(are_gone), "{} segments, {is_running}", queue.stats().segments());
    }
}

/// A purge, and a batch of acks, stored to hundreds of segments before any was closed: they failed
/// for want of descriptors, and took time that was squared in their number.
#[test]
fn a_purge_and_a_batch_hold_few_files_open() {
    const LIMIT: u64 = 8;
    for has_batch in [false, true] {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let options = || {
            let options = on(storage.clone()).segment_bytes(65_536).open_segments(LIMIT);
            options.background(false).compaction(Compaction::off())
        };
        let queue = options().open("queue").unwrap();
        for _ in 0..200 {
            queue.push(&PAYLOAD).unwrap();
        }
        queue.close().unwrap();
        let (files, most) = (OpenFiles::default(), Arc::new(AtomicU64::new(0)));
        let seen = Arc::clone(&most);
        storage.rule(move |call| {
            if is_segment(call.name) {
                seen.fetch_max(files.see(call) as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        let queue = options().open("queue").unwrap();
        let jobs = if has_batch { queue.pop_batch(200).unwrap() } else { Vec::new() };
        most.store(0, Ordering::Relaxed);
        if has_batch {
            queue.ack_batch(jobs).unwrap();
        } else {
            assert_eq!(queue.purge().unwrap(), 200);
        }
        queue.maintain().unwrap();
        let most = most.load(Ordering::Relaxed);
        // Those of a step, those before it, and the newest.
        assert!((1..=3 * LIMIT).contains(&most), "{most} files are open, {has_batch}");
        assert_eq!(queue.len(), 0);
        assert!(queue.stats().segments() < 4, "{} segments", queue.stats().segments());
    }
}

/// Every other file of many was away. Beyond the first thousand they were told together: with what
/// was there between them.
#[test]
fn nothing_that_is_there_is_told_as_lost() {
    let disk = Arc::new(MemoryStorage::new());
    let options = || Queue::options().storage(disk.clone()).durability(Durability::Os);
    let options = || options().segment_bytes(65_536).background(false);
    let queue = options().open("q").unwrap();
    for _ in 0..4600 {
        queue.push(vec![1; 30_000]).unwrap();
    }
    queue.close().unwrap();
    let entries = disk.list().unwrap().into_iter().map(|entry| entry.name);
    let segments: Vec<String> = entries.filter(|name| is_segment(name)).collect();
    let others = segments[..segments.len() - 1].iter().step_by(2);
    others.clone().for_each(|name| disk.remove(name).unwrap());
    let queue = options().open("q").unwrap();
    let found: BTreeSet<u64> = queue.iter().map(|found| found.unwrap().seq().into()).collect();
    let damage = queue.recovery().damage();
    let lost = damage.iter().flat_map(|one| one.first_seq().into()..=one.last_seq().into());
    let lost: BTreeSet<u64> = lost.collect();
    assert!(others.len() > 1100 && found.is_disjoint(&lost), "{} files away", others.len());
    assert_eq!(found.len() + lost.len(), 4600);
    let by_name = damage.iter().filter(|damage| damage.path().extension().is_some());
    assert_eq!(by_name.count(), 1000);
}
