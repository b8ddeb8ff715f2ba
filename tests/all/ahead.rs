//! Segments that are made ahead of need, by the background, in steps with rests between them.

use crate::found_hooks::{Gate, OpenAtEnd, by_hand, is_segment, large, until};
use crate::found_support::call;
use crate::support::watched::{Op, Watched};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Durability, Options, Queue};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

const KIB: usize = 1 << 10;

/// A queue whose first segment fills so fast that the next one has 2 MiB, and so slowly that the
/// background rests between two steps. A quarter of it is used with the next push.
fn filling(storage: &Arc<Watched>) -> Queue {
    filling_with(storage, |options| options)
}

fn filling_with(storage: &Arc<Watched>, set: impl FnOnce(Options) -> Options) -> Queue {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = Queue::options().storage(storage.clone()).clock(clock.clone());
    let queue = set(options).open("queue").unwrap();
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

/// A push asked for the next segment while the background rested between two steps. Nobody asked
/// again.
#[test]
fn what_is_asked_for_during_a_rest_is_made_after_it() {
    for round in 0..48 {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let queue = filling_with(&storage, |options| {
            // Or else it asks when the queue has been idle.
            options.durability(Durability::Os).shrink_after(None)
        });
        let (made, named) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = [made.clone(), named.clone()];
        storage.rule(move |call| {
            let is_it = call.op == Op::Create && is_made(call.name);
            counted[0].fetch_add(u64::from(is_it), Ordering::SeqCst);
            let is_it = call.op == Op::Rename && is_segment(call.name);
            counted[1].fetch_add(u64::from(is_it), Ordering::SeqCst);
            Ok(())
        });
        queue.push(vec![0; 20 * KIB]).unwrap();
        until("the next one is begun", || made.load(Ordering::SeqCst) == 1);
        if round % 2 == 1 {
            // Now its pages are made resident, with rests, too.
            until("it has its name", || named.load(Ordering::SeqCst) == 1);
        }
        // On to it, and past a quarter of it.
        (0..90).for_each(|_| assert!(queue.push(vec![0; 16 * KIB]).is_ok()));
        until("the one behind it is begun", || made.load(Ordering::SeqCst) >= 2);
    }
}

/// A segment that could not be prepared was to be twice as large the next time.
#[test]
fn what_fails_is_not_made_larger_the_next_time() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = filling_with(&storage, |options| options.background(false));
    queue.push(vec![0; 20 * KIB]).unwrap();
    let (sizes, syncs) = (Arc::new(Mutex::new(Vec::new())), AtomicU64::new(0));
    let seen = sizes.clone();
    storage.rule(move |call| {
        if is_made(call.name) && call.op == Op::Create {
            seen.lock().unwrap().push(call.len >> 20);
        }
        // Not the sync of the headers, but that of the first step.
        let is_sync = is_made(call.name) && call.op == Op::Sync;
        if is_sync && syncs.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    });
    for _ in 0..4 {
        queue.maintain().unwrap_err();
    }
    assert_eq!(*sizes.lock().unwrap(), [2; 4]);
}

/// A recycled file is zeroed and synced without the lock of the supply. A sync takes that lock, and
/// needs no segment.
#[test]
fn a_sync_does_not_wait_for_a_file_that_is_recycled() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = by_hand(storage.clone()).durability(Durability::Os).open("queue").unwrap();
    // In two segments, of which the first one is not needed any more.
    (0..9).for_each(|number| assert!(queue.push(large(number)).is_ok()));
    queue.ack_batch(queue.pop_batch(9).unwrap()).unwrap();
    let (gate, created) = (Gate::closed(), Arc::new(AtomicU64::new(0)));
    let (here, counted) = (gate.clone(), created.clone());
    storage.rule(move |call| {
        if is_made(call.name) && call.op == Op::Sync {
            here.pass();
        }
        counted.fetch_add(u64::from(call.op == Op::Create && is_made(call.name)), Ordering::SeqCst);
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    let [maintaining, syncing] = [queue.clone(), queue.clone()];
    let maintained = call(move || maintaining.maintain());
    until("a file is synced before it gets its name", || gate.has_waiting());
    assert_eq!(created.load(Ordering::SeqCst), 0, "it was there before");
    call(move || syncing.sync()).result("sync").unwrap();
    assert!(!maintained.is_over());
    gate.open();
    maintained.result("maintain").unwrap();
}
