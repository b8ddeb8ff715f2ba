//! When a full segment is synced: once its consumer has left it, or after a tenth of a second.

use crate::found_hooks::{LIMIT, files, is_segment, large, until};
use crate::found_support::on;
use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Delivery, Queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// For so long the sync is put off.
const PUT_OFF: Duration = Duration::from_millis(100);

/// A queue whose pushes have left the first segment, and whose consumer has not.
struct Filled {
    queue: Queue,
    first: Delivery,
    /// A moment before the push that left it.
    left_after: Instant,
    /// When it is synced.
    synced: Receiver<Instant>,
}

/// With a consumer that keeps up, or has the first message only.
fn filled(keeps_up: bool) -> Filled {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(storage.clone()).open("queue").unwrap();
    queue.push(large(0)).unwrap();
    let first = queue.pop().unwrap().unwrap();
    let segment = files(&disk).into_iter().find(|name| is_segment(name)).unwrap();
    let (tell, synced) = channel();
    let has_left = Arc::new(AtomicBool::new(false));
    let leaves = Arc::clone(&has_left);
    storage.rule(move |call| {
        if call.op == Op::Sync && call.name == segment {
            tell.send(Instant::now()).ok();
        }
        let is_next = call.op == Op::Store && is_segment(call.name) && call.name != segment;
        leaves.fetch_or(is_next, Ordering::SeqCst);
        Ok(())
    });
    let mut left_after = Instant::now();
    while !has_left.load(Ordering::SeqCst) {
        left_after = Instant::now();
        queue.push(large(1)).unwrap();
        if keeps_up && !has_left.load(Ordering::SeqCst) {
            queue.pop().unwrap().unwrap().ack().unwrap();
        }
    }
    Filled { queue, first, left_after, synced }
}

#[test]
fn a_full_segment_in_which_a_consumer_stays_is_synced_after_a_while() {
    let Filled { queue, first, left_after, synced } = filled(false);
    let after = synced.recv_timeout(LIMIT).unwrap() - left_after;
    assert!(after >= PUT_OFF, "it is synced after {after:?}");
    first.ack().unwrap();
    queue.close().unwrap();
}

/// On a busy machine the sync may come late: then once more.
#[test]
fn a_full_segment_is_synced_once_its_consumer_has_left_it() {
    until("it is synced before it would be for the time alone", || {
        let Filled { queue, first, left_after, synced } = filled(true);
        first.ack().unwrap();
        // It is in the next segment.
        queue.pop().unwrap().unwrap().ack().unwrap();
        synced.recv_timeout(LIMIT).unwrap() < left_after + PUT_OFF
    });
}
