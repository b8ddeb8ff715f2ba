//! Queues of which little is left: what the tests of compaction share.

use keepq::fault::Storage;
use keepq::{Compaction, Delivery, Options, Queue};
use std::sync::Arc;
use std::time::Duration;

/// Small segments, no background, and nothing that compaction waits for.
pub(crate) fn on(storage: Arc<dyn Storage>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).storage(storage);
    options.compaction(Compaction::default().idle(Duration::ZERO))
}

/// One to one and a half kilobytes, with the number in front.
pub(crate) fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(1000 + number as usize % 7 * 100, number as u8);
    payload
}

pub(crate) fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

/// Pops `count` messages, and acks all but those whose number is a multiple of `kept`; gives those.
pub(crate) fn ack_most(queue: &Queue, count: usize, kept: u64) -> Vec<Delivery> {
    let jobs = queue.pop_batch(count).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| number(job).is_multiple_of(kept));
    queue.ack_batch(settled).unwrap();
    left
}
