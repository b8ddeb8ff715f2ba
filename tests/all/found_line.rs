//! Found faults: a producer that goes on to another segment while a batch fails in the last one,
//! and one that meets the failed sync itself.

use crate::found_hooks::{Gate, OpenAtEnd, by_hand, is_segment, large, until};
use crate::found_support::call;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage};
use keepq::{Durability, Error, Overflow};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

static LARGE: [u8; 63_000] = [b'A'; 63_000];

/// While one producer made a segment, the batch of another one failed in the last segment, and what
/// it left could not be erased, since the disk was full. The first one went on to its segment all
/// the same: after a crash, the half of a batch was the end of the log, in front of a message that
/// was confirmed, or it was taken for a batch whose numbers had been given out again.
#[test]
fn no_segment_begins_behind_what_a_failed_batch_left() {
    for (durability, more) in
        [(Durability::Always, false), (Durability::Always, true), (Durability::Os, false)]
    {
        let disk = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(disk.clone()));
        faults.stores_can_fail(true);
        let storage = Watched::around(faults.clone());
        let queue = by_hand(storage.clone()).durability(durability).open("queue").unwrap();
        queue.push("first").unwrap();
        let gate = Gate::closed();
        let _open = OpenAtEnd(gate.clone());
        let here = gate.clone();
        storage.rule(move |call| {
            if call.op == Op::Create && call.name.contains(".tmp") {
                here.pass();
            }
            Ok(())
        });
        let pushing = queue.clone();
        let pushing = call(move || pushing.push(&LARGE));
        until("it makes a segment", || gate.has_waiting());
        faults.plan(FaultPlan::FailAt { at: 2, error: ErrorKind::StorageFull, lasting: true });
        // Each takes some blocks.
        assert!(queue.push_batch([&[b'1'; 900], &[b'2'; 900]]).is_err());
        faults.plan(FaultPlan::None);
        gate.open();
        let pushed = pushing.result("push").is_ok();
        let mut confirmed = vec![b"first".to_vec()];
        confirmed.extend(pushed.then(|| LARGE.to_vec()));
        if more {
            queue.push("more").unwrap();
            confirmed.push(b"more".to_vec());
        }
        let image = CrashImage::Oldest;
        let is_synced = durability == Durability::Always;
        let after = if is_synced { disk.power_cut(image) } else { disk.killed() };
        let queue = by_hand(Arc::new(after)).open("queue").unwrap();
        let found: Vec<_> = queue.pop_batch(9).unwrap().iter().map(|job| job.to_vec()).collect();
        let lengths: Vec<_> = found.iter().map(Vec::len).collect();
        assert!(found == confirmed, "{durability:?}, {more}: lengths {lengths:?}");
        assert!(pushed, "nothing was in its way once the disk had room again");
    }
}

/// The first producer in line met the first failed sync in its own look. It was not woken, as the
/// thread that poisons the queue is the one that looks: it slept on, and all behind it.
#[test]
fn a_producer_that_meets_the_failed_sync_itself_hears_of_it() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let maps: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let (fails, syncs) = (AtomicBool::new(false), AtomicU64::new(0));
    storage.rule(move |call| {
        if call.op == Op::Map && is_segment(call.name) {
            let mut maps = maps.lock().unwrap();
            let times = maps.entry(call.name.to_string()).or_default();
            *times += 1;
            // So no seal can be stored, and there is always a segment to be synced.
            return if *times > 1 { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) };
        }
        if call.op == Op::Write && call.name.contains("CHECKPOINT") {
            fails.store(true, Ordering::SeqCst);
        }
        if call.op == Op::Sync && is_segment(call.name) && fails.load(Ordering::SeqCst) {
            // The first ones are those before its first look in line.
            let is_early = syncs.fetch_add(1, Ordering::SeqCst) < 2;
            return if is_early { Ok(()) } else { Err(ErrorKind::Other.into()) };
        }
        Ok(())
    });
    let options = by_hand(storage).durability(Durability::Os).open_segments(1);
    let options = options.dead_letters(false).max_bytes(1 << 20).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    let producing = queue.clone();
    let producer = call(move || (0..).find_map(|n| producing.push(large(n)).err()));
    let error = producer.result("push");
    assert!(matches!(error, Some(Error::Poisoned { .. })), "{error:?}");
}
