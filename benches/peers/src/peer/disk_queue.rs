//! disk-queue: pages of 4 KiB in one file, of which two are mapped.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use disk_queue::DiskQueue;
use std::path::Path;

pub(super) const KINDS: [Kind; 1] = [Kind {
    name: "disk-queue",
    package: "disk-queue",
    keeps: Keeps::Kill,
    acks: Acks::AtPop,
    many_processes: false,
    open,
    longest: 4089,
    cannot: &[],
    remarks: "never syncs; no checksum; no ack, a message is gone when it is popped; payloads up \
              to 4,089 bytes (README.md, Limitations); the file never shrinks; no lock against a \
              second process",
}];

struct Pages(DiskQueue);

fn open(path: &Path) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    Box::new(Pages(DiskQueue::open(path.join("queue").to_str().unwrap())))
}

impl Contender for Pages {
    fn push(&self, payload: &[u8]) {
        self.0.enqueue(payload.to_vec());
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let popped = std::iter::from_fn(|| self.0.dequeue()).take(limit);
        popped.map(|message| answer(&message)).count()
    }

    fn sync(&self) {}

    fn close(self: Box<Self>) {}
}
