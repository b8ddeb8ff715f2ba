//! fjall as a queue: ascending keys, a cursor, a delete for each ack.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const BASE: Kind = Kind {
    name: "fjall",
    package: "fjall",
    keeps: Keeps::Kill,
    acks: Acks::AnyOrder,
    many_processes: false,
    open: |path| open(path, false),
    longest: u32::MAX as usize,
    cannot: &[],
    remarks: "the default: each write is flushed to the system (PersistMode::Buffer); the cursor \
              keeps a pop from walking over tombstones",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "fjall, synced",
        keeps: Keeps::Power,
        open: |path| open(path, true),
        remarks: "persist(SyncData) after each push or batch: a sync for each thread",
        ..BASE
    },
];

struct Fjall {
    database: Database,
    keyspace: Keyspace,
    is_synced: bool,
    next: AtomicU64,
    cursor: Mutex<u64>,
}

fn open(path: &Path, is_synced: bool) -> Box<dyn Contender> {
    let database = Database::builder(path).open().unwrap();
    let keyspace = database.keyspace("queue", KeyspaceCreateOptions::default).unwrap();
    let last = keyspace.last_key_value().map(|last| number(&last.key().unwrap()));
    let next = AtomicU64::new(last.map_or(0, |last| last + 1));
    Box::new(Fjall { database, keyspace, is_synced, next, cursor: Mutex::new(0) })
}

fn number(key: &[u8]) -> u64 {
    u64::from_be_bytes(key.try_into().unwrap())
}

impl Fjall {
    fn persist(&self) {
        if self.is_synced {
            self.database.persist(PersistMode::SyncData).unwrap();
        }
    }
}

impl Contender for Fjall {
    fn push(&self, payload: &[u8]) {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.keyspace.insert(key.to_be_bytes(), payload).unwrap();
        self.persist();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let first = self.next.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        let mut batch = self.database.batch();
        for (key, payload) in (first..).zip(payloads) {
            batch.insert(&self.keyspace, key.to_be_bytes(), *payload);
        }
        batch.commit().unwrap();
        self.persist();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut cursor = self.cursor.lock().unwrap();
        let mut acked = Vec::with_capacity(limit);
        let mut count = 0;
        for found in self.keyspace.range(cursor.to_be_bytes()..).take(limit) {
            let (key, value) = found.into_inner().unwrap();
            *cursor = number(&key) + 1;
            count += 1;
            if answer(&value) == Answer::Ack {
                acked.push(key);
            }
        }
        if let [key] = &acked[..] {
            self.keyspace.remove(key.clone()).unwrap();
        } else {
            let mut batch = self.database.batch();
            for key in acked {
                batch.remove(&self.keyspace, key);
            }
            batch.commit().unwrap();
        }
        self.persist();
        count
    }

    fn sync(&self) {
        self.database.persist(PersistMode::SyncData).unwrap();
    }

    fn close(self: Box<Self>) {}
}
