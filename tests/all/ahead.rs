//! Segments that are made ahead of need, by the background, in steps with rests between them.

use crate::found_hooks::{Gate, OpenAtEnd, until};
use crate::found_support::call;
use crate::support::watched::{Op, Watched};
use keepq::Queue;
use keepq::fault::{ManualClock, MemoryStorage};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

const KIB: usize = 1 << 10;

/// A queue whose first segment fills so fast that the next one has 2 MiB, and so slowly that the
/// background rests between two steps. A quarter of it is used with the next push.
fn filling(storage: &Arc<Watched>) -> Queue {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = Queue::options().storage(storage.clone()).clock(clock.clone());
    let queue = options.open("queue").unwrap();
    queue.push(vec![0; 240 * KIB]).unwrap();
    clock.advance(Duration::from_millis(450));
    queue
}

fn is_made(name: &str) -> bool {
    name.contains(".tmp") && !name.starts_with("CHECKPOINT")
}

/// A close that comes while a segment is made waits for the step, not for the segment, and no other
/// one is begun.
#[test]
fn a_close_waits_for_one_step() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = filling(&storage);
    let (gate, syncs) = (Gate::closed(), Arc::new(AtomicU64::new(0)));
    let (here, counted) = (gate.clone(), syncs.clone());
    storage.rule(move |call| {
        if is_made(call.name) && call.op == Op::Sync {
            // The first one is that of the headers.
            if counted.fetch_add(1, Ordering::SeqCst) == 1 {
                here.pass();
            }
        }
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    queue.push(vec![0; 20 * KIB]).unwrap();
    until("a step syncs", || gate.has_waiting());
    let closing = call(move || queue.close());
    closing.asleep();
    gate.open();
    closing.result("close").unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 2, "no step follows");
}
