//! What keepq did that the format page does not say. Each test is a story that the reader of the
//! page found.

use crate::found_hooks::is_segment;
use crate::support::agree::{agree, files};
use crate::support::sparse::{number, on, payload};
use keepq::fault::{FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Options, Result};
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
