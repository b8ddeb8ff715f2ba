//! LMDB (by heed) as a queue: ascending keys, a cursor, a delete for each ack.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use crate::mapped;
use heed::types::{Bytes, U64};
use heed::{CommitOrAbort, Database, Env, PutFlags, byteorder::BigEndian};
use std::path::Path;
use std::sync::Mutex;

const BASE: Kind = Kind {
    name: "LMDB, NO_SYNC",
    package: "heed",
    keeps: Keeps::Kill,
    acks: Acks::AnyOrder,
    many_processes: true,
    open: |path| open(path, false),
    longest: u32::MAX as usize,
    cannot: &[],
    remarks: "NO_SYNC and WRITE_MAP; a power cut may leave a database that cannot be read \
              (lmdb.h: MDB_NOSYNC); the file never shrinks",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "LMDB, synced",
        keeps: Keeps::Power,
        open: |path| open(path, true),
        remarks: "no flags: one writer at a time, so threads share no sync",
        ..BASE
    },
];

type Table = Database<'static, U64<BigEndian>, Bytes>;

struct Lmdb {
    env: Env,
    table: Table,
    /// The next key of a push; taken within a write transaction.
    next: Mutex<u64>,
    /// The first key that was not popped yet.
    cursor: Mutex<u64>,
}

fn open(path: &Path, is_synced: bool) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    let env = mapped::lmdb(path, is_synced);
    let write = env.write_txn().unwrap();
    let made: heed::Result<CommitOrAbort<Table, ()>> =
        env.create_databases_and_commit(write, |opener, write| {
            let table = opener.create_database(write, None)?;
            Ok(CommitOrAbort::Commit(table))
        });
    let CommitOrAbort::Commit(table) = made.unwrap() else { unreachable!("it commits") };
    let read = env.read_txn().unwrap();
    let next = table.last(&read).unwrap().map_or(0, |(key, _)| key + 1);
    drop(read);
    Box::new(Lmdb { env, table, next: Mutex::new(next), cursor: Mutex::new(0) })
}

impl Contender for Lmdb {
    fn push(&self, payload: &[u8]) {
        self.push_batch(&[payload]);
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let mut write = self.env.write_txn().unwrap();
        let mut next = self.next.lock().unwrap();
        for payload in payloads {
            self.table.put_with_flags(&mut write, PutFlags::APPEND, &next, payload).unwrap();
            *next += 1;
        }
        drop(next);
        write.commit().unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut cursor = self.cursor.lock().unwrap();
        let mut acked = Vec::with_capacity(limit);
        let mut count = 0;
        let read = self.env.read_txn().unwrap();
        for found in self.table.range(&read, &(*cursor..)).unwrap().take(limit) {
            let (key, value) = found.unwrap();
            if answer(value) == Answer::Ack {
                acked.push(key);
            }
            *cursor = key + 1;
            count += 1;
        }
        drop(read);
        if !acked.is_empty() {
            let mut write = self.env.write_txn().unwrap();
            for key in acked {
                self.table.delete(&mut write, &key).unwrap();
            }
            write.commit().unwrap();
        }
        count
    }

    fn sync(&self) {
        self.env.force_sync().unwrap();
    }

    fn close(self: Box<Self>) {
        self.env.prepare_for_closing().wait();
    }
}
