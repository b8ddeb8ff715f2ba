//! queue-file: a ring in one file.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use queue_file::{OffsetCacheKind, QueueFile};
use std::path::Path;
use std::sync::Mutex;

/// What the file is made with, so that it seldom grows: growing copies the ring.
const CAPACITY: u64 = 64 << 20;

const BASE: Kind = Kind {
    name: "queue-file",
    package: "queue-file",
    keeps: Keeps::Kill,
    acks: Acks::InOrder,
    many_processes: false,
    open: |path| open(path, false),
    longest: i32::MAX as usize,
    cannot: &[],
    remarks: "sync_writes(false), overwrite_on_remove(false), 64 MiB of capacity, each 100th \
              offset cached; acks in order \
              only; no lock against a second process; the file doubles and never shrinks below \
              its capacity (lib.rs: expand_if_necessary, clear)",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "queue-file, synced",
        keeps: Keeps::Power,
        open: |path| open(path, true),
        remarks: "sync_writes(true): two syncs a push, one for the data, one for the header",
        ..BASE
    },
];

struct Ring(Mutex<QueueFile>);

fn open(path: &Path, is_synced: bool) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    let mut file = QueueFile::with_capacity(path.join("queue"), CAPACITY).unwrap();
    file.set_sync_writes(is_synced);
    file.set_overwrite_on_remove(false);
    // A removal of many finds its end without a walk.
    file.set_cache_offset_policy(OffsetCacheKind::Linear { offset: 100 });
    Box::new(Ring(Mutex::new(file)))
}

impl Contender for Ring {
    fn push(&self, payload: &[u8]) {
        self.0.lock().unwrap().add(payload).unwrap();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        self.0.lock().unwrap().add_n(payloads).unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut file = self.0.lock().unwrap();
        if limit == 1 {
            let Some(message) = file.peek().unwrap() else { return 0 };
            answer(&message);
            file.remove().unwrap();
            return 1;
        }
        let mut count = 0;
        let mut messages = file.iter();
        while count < limit
            && let Some(message) = messages.borrowed_next()
        {
            answer(message);
            count += 1;
        }
        drop(messages);
        file.remove_n(count).unwrap();
        count
    }

    fn sync(&self) {
        self.0.lock().unwrap().sync_all().unwrap();
    }

    fn close(self: Box<Self>) {}
}
