//! redb as a queue: a table with ascending keys, a cursor, a delete for each ack.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use std::sync::Mutex;

const TABLE: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("queue");

const BASE: Kind = Kind {
    name: "redb",
    package: "redb",
    keeps: Keeps::Nothing,
    acks: Acks::AnyOrder,
    many_processes: false,
    open: |path| open(path, Durability::None),
    longest: 1 << 30,
    cannot: &[],
    remarks: "Durability::None: not persisted until a commit with Durability::Immediate follows \
              (transactions.rs: Durability)",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "redb, synced",
        keeps: Keeps::Power,
        open: |path| open(path, Durability::Immediate),
        remarks: "Durability::Immediate: one writer at a time, so threads share no sync",
        ..BASE
    },
];

struct Redb {
    database: Database,
    durability: Durability,
    /// The next key of a push. Held while it is written, as there is one writer at a time anyway.
    next: Mutex<u64>,
    /// The first key that was not popped yet.
    cursor: Mutex<u64>,
}

fn open(path: &Path, durability: Durability) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    let database = Database::create(path.join("queue")).unwrap();
    let write = database.begin_write().unwrap();
    let table = write.open_table(TABLE).unwrap();
    let next = table.last().unwrap().map_or(0, |(key, _)| key.value() + 1);
    drop(table);
    write.commit().unwrap();
    Box::new(Redb { database, durability, next: Mutex::new(next), cursor: Mutex::new(0) })
}

impl Contender for Redb {
    fn push(&self, payload: &[u8]) {
        self.push_batch(&[payload]);
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let mut next = self.next.lock().unwrap();
        let mut write = self.database.begin_write().unwrap();
        write.set_durability(self.durability).unwrap();
        let mut table = write.open_table(TABLE).unwrap();
        for payload in payloads {
            table.insert(*next, *payload).unwrap();
            *next += 1;
        }
        drop(table);
        write.commit().unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut cursor = self.cursor.lock().unwrap();
        let mut acked = Vec::with_capacity(limit);
        let mut count = 0;
        let read = self.database.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        for found in table.range(*cursor..).unwrap().take(limit) {
            let (key, value) = found.unwrap();
            if answer(value.value()) == Answer::Ack {
                acked.push(key.value());
            }
            *cursor = key.value() + 1;
            count += 1;
        }
        drop((table, read));
        if !acked.is_empty() {
            let mut write = self.database.begin_write().unwrap();
            write.set_durability(self.durability).unwrap();
            let mut table = write.open_table(TABLE).unwrap();
            for key in acked {
                table.remove(key).unwrap();
            }
            drop(table);
            write.commit().unwrap();
        }
        count
    }

    fn sync(&self) {
        self.database.begin_write().unwrap().commit().unwrap();
    }

    fn close(self: Box<Self>) {}
}
