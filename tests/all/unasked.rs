//! Work that is left when the background has looked for it, and that nobody asks for any more.

use crate::found_hooks::{Gate, OpenAtEnd, files, is_segment, until};
use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Compaction, Durability, Queue};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// A segment that its consumer left while the background was at work at another one stayed in
/// memory until something asked for upkeep.
#[test]
fn a_segment_that_is_left_during_upkeep_goes_out_of_memory_after_it() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let options = || {
        let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
        let options = options.segment_bytes(MIB).shrink_after(None);
        options.compaction(Compaction::off()).ack_sync(None)
    };
    let queue = options().open("queue").unwrap();
    (0..300).for_each(|_| assert!(queue.push(vec![7; 16 << 10]).is_ok()));
    queue.close().unwrap();
    let mut segments: Vec<_> = files(&disk).into_iter().filter(|name| is_segment(name)).collect();
    segments.sort();
    let (first, second) = (segments[0].clone(), segments[1].clone());
    let (gate, evicted) = (Gate::closed(), Arc::new(AtomicU64::new(0)));
    let (here, counted, is_held) = (gate.clone(), evicted.clone(), Arc::new(AtomicBool::new(true)));
    let (holds, unmapped) = (is_held.clone(), Arc::new(Mutex::new(Vec::new())));
    let gone = unmapped.clone();
    storage.rule(move |call| {
        match call.op {
            Op::Evict if call.name == second => _ = counted.fetch_add(1, SeqCst),
            Op::Unmap => gone.lock().unwrap().push(call.name.to_string()),
            // The first segment is settled, and synced before it is let go.
            Op::Sync if call.name == first && holds.load(SeqCst) => here.pass(),
            _ => {}
        }
        Ok(())
    });
    let queue = options().open("queue").unwrap();
    let _open = OpenAtEnd(gate.clone());
    queue.ack_batch(queue.pop_batch(70).unwrap()).unwrap();
    until("upkeep is held up", || gate.has_waiting());
    let mut jobs = queue.pop_batch(100).unwrap();
    jobs.remove(0).nack_after(HOUR).unwrap();
    queue.ack_batch(jobs).unwrap();
    assert_eq!(evicted.load(SeqCst), 0);
    is_held.store(false, SeqCst);
    gate.open();
    until("the second segment is evicted", || evicted.load(SeqCst) > 0);
    until("it is unmapped", || unmapped.lock().unwrap().contains(&segments[1]));
}
