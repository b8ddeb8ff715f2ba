//! What keepq did that the format page does not say. Each test is a story that the reader of the
//! page found.

use crate::craft::{disk_of, files_of, name_of, options};
use crate::found_hooks::is_segment;
use crate::support::agree::{agree, agree_at, files};
use crate::support::craft::{Checkpoint, Segment};
use crate::support::sparse::{number, on, payload};
use keepq::fault::{FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Compaction, Options, Result};
use std::sync::Arc;

/// A copy of a few messages out of many.
fn work(options: Options) -> Result<()> {
    let queue = options.sync_acks(true).open("memory")?;
    for n in 0..130 {
        queue.push(payload(n))?;
    }
    let (_left, settled): (Vec<_>, Vec<_>) =
        queue.pop_batch(120)?.into_iter().partition(|job| number(job).is_multiple_of(12));
    queue.ack_batch(settled)?;
    queue.compact().map(drop)
}

/// The sources of a copy with all of its marks; of anything else none.
fn sources(bytes: &[u8]) -> Vec<u64> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    if bytes.len() < 12_288 || !bytes.starts_with(b"keepqseg") {
        return Vec::new();
    }
    (0..(word(96) & 0xFFFF_FFFF) as usize).map(|n| word(1536 + 16 + 8 * n)).collect()
}

/// A crash between a copy and the removal of its sources; then one of the sources is gone that
/// CHECKPOINT still lists. The copy has all that it had. But all numbers of the source were
/// reported as lost, and the settled ones as unknown.
#[test]
fn an_absent_source_of_a_copy_is_no_loss() {
    let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    work(on(faults.clone())).unwrap();
    let mut tried = 0;
    for at in 0..=faults.operations() {
        let memory = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::CrashAt { at });
        work(on(faults)).ok();
        let segments = files(&memory.killed());
        let named = segments.iter().filter(|(name, _)| is_segment(name));
        for ordinal in named.flat_map(|(_, bytes)| sources(bytes)) {
            let name = format!("{ordinal:016x}.seg");
            let disk = memory.killed();
            if disk.read(&name).is_none() {
                continue;
            }
            tried += 1;
            disk.remove(&name).unwrap();
            disk.sync_directory().unwrap();
            agree(&disk, &format!("operation {at}, without {name}"));
            let queue = on(Arc::new(disk)).open("memory").unwrap();
            let damage = queue.recovery().damage();
            assert!(damage.is_empty(), "operation {at}, without {name}: {damage:?}");
        }
    }
    assert!(tried > 0);
}

/// A whole record that does not lie right behind the one before, at a place that was durable. It
/// counts; but it was reported as lost besides.
#[test]
fn a_record_behind_a_hole_is_not_lost() {
    let memory = Arc::new(MemoryStorage::new());
    let queue = options(memory.clone()).compaction(Compaction::off()).open("queue").unwrap();
    let messages: Vec<String> = (1..=4).map(|n| format!("message {n}")).collect();
    for message in &messages {
        queue.push(message.as_str()).unwrap();
    }
    queue.maintain().unwrap();
    let mut files = files_of(&memory);
    let mut segment = Segment::read(files[&name_of(1)].clone()).unwrap();
    segment.move_last_record(8);
    segment.mend();
    files.insert(name_of(1), segment.bytes);
    let mut checkpoint = Checkpoint::read(&files["CHECKPOINT"]).unwrap();
    // The watermark, behind the epoch.
    checkpoint.numbers[1] = 4;
    files.insert("CHECKPOINT".into(), checkpoint.file());
    let disk = disk_of(&files);
    agree_at(&disk, 1_700_000_000_000, "a hole");
    let queue = options(disk).open("queue").unwrap();
    assert_eq!(queue.recovery().damage().len(), 0, "{:?}", queue.recovery());
    let found: Vec<_> = queue.pop_batch(9).unwrap().iter().map(|job| job.to_vec()).collect();
    assert_eq!(found, messages.iter().map(String::as_bytes).collect::<Vec<_>>());
}
