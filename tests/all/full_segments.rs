//! When a full segment is synced: once its consumer has left it, or after a tenth of a second.

use crate::found_hooks::{LIMIT, files, is_segment, large, until};
use crate::found_support::on;
use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Delivery, Queue};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// For so long the sync is put off.
const PUT_OFF: Duration = Duration::from_millis(100);

/// A queue whose pushes have left the first segment, and whose consumer has not.
struct Filled {
    queue: Queue,
    first: Delivery,
    /// A moment before pushes left it.
    left_after: Instant,
    /// When it is synced.
    synced: Receiver<Instant>,
}

fn filled() -> Filled {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(storage.clone()).open("queue").unwrap();
    queue.push(large(0)).unwrap();
    let first = queue.pop().unwrap().unwrap();
    let segment = files(&disk).into_iter().find(|name| is_segment(name)).unwrap();
    let (tell, synced) = channel();
    storage.rule(move |call| {
        if call.op == Op::Sync && call.name == segment {
            tell.send(Instant::now()).ok();
        }
        Ok(())
    });
    let left_after = Instant::now();
    (1..9).for_each(|number| assert!(queue.push(large(number)).is_ok()));
    Filled { queue, first, left_after, synced }
}

/// Answers are synced once a second. On a busy machine that may come in between: then once more.
#[test]
fn a_full_segment_in_which_a_consumer_stays_is_synced_after_a_while() {
    until("its sync is put off", || {
        let Filled { queue, first, left_after, synced } = filled();
        let after = synced.recv_timeout(LIMIT).unwrap() - left_after;
        first.ack().unwrap();
        queue.close().unwrap();
        after >= PUT_OFF
    });
}

/// On a busy machine the sync may come late: then once more.
#[test]
fn a_full_segment_is_synced_once_its_consumer_has_left_it() {
    until("it is synced before it would be for the time alone", || {
        let Filled { queue, first, left_after, synced } = filled();
        first.ack().unwrap();
        while let Some(job) = queue.pop().unwrap() {
            job.ack().unwrap();
        }
        synced.recv_timeout(LIMIT).unwrap() < left_after + PUT_OFF
    });
}
