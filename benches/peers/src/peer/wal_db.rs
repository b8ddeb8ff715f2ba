//! wal-db: a log in segments. The queue on top of it is a cursor, and the log is cut behind it
//! whenever the cursor has passed a segment.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use std::path::Path;
use std::sync::{Mutex, RwLock};
use wal_db::{Lsn, SegmentedStore, Wal};

const SEGMENT: u64 = 64 << 20;

const BASE: Kind = Kind {
    name: "wal-db",
    package: "wal-db",
    keeps: Keeps::Kill,
    acks: Acks::InOrder,
    many_processes: false,
    open: |path| open(path, false),
    longest: 64 << 20,
    cannot: &[],
    remarks: "a log: a cursor in memory stands for the acks, and is kept by truncate_before once \
              a segment (64 MiB) is passed, so all acks since come again after a kill; no batch \
              call; open reads all of the log (wal.rs: recover); no lock against a second \
              process",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "wal-db, synced",
        keeps: Keeps::Power,
        open: |path| open(path, true),
        remarks: "append_and_sync: threads share one sync; a batch is appends and one sync",
        ..BASE
    },
];

struct Log {
    /// `truncate_before` must have the log to itself, and takes this for writing.
    wal: RwLock<Wal<SegmentedStore>>,
    is_synced: bool,
    cursor: Mutex<Cursor>,
}

struct Cursor {
    next: Lsn,
    cut_at: u64,
}

fn open(path: &Path, is_synced: bool) -> Box<dyn Contender> {
    let wal = Wal::open_segmented(path, SEGMENT).unwrap();
    let first = wal.iter().unwrap().next().map(|record| record.unwrap().lsn());
    let next = first.unwrap_or(Lsn::new(wal.len()));
    let cut_at = next.get() / SEGMENT;
    Box::new(Log { wal: RwLock::new(wal), is_synced, cursor: Mutex::new(Cursor { next, cut_at }) })
}

impl Contender for Log {
    fn push(&self, payload: &[u8]) {
        let wal = self.wal.read().unwrap();
        let pushed =
            if self.is_synced { wal.append_and_sync(payload) } else { wal.append(payload) };
        assert!(pushed.is_ok());
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let wal = self.wal.read().unwrap();
        for payload in payloads {
            assert!(wal.append(payload).is_ok());
        }
        if self.is_synced {
            wal.sync().unwrap();
        }
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut cursor = self.cursor.lock().unwrap();
        let wal = self.wal.read().unwrap();
        let mut count = 0;
        let mut next = cursor.next.get();
        for record in wal.iter_from(cursor.next).unwrap().take(limit) {
            let record = record.unwrap();
            answer(record.data());
            // A header of 8 bytes stands before each record (record.rs).
            next = record.lsn().get() + 8 + record.len() as u64;
            count += 1;
        }
        drop(wal);
        cursor.next = Lsn::new(next);
        if next / SEGMENT > cursor.cut_at {
            cursor.cut_at = next / SEGMENT;
            assert!(self.wal.write().unwrap().truncate_before(cursor.next).is_ok());
        }
        count
    }

    fn sync(&self) {
        self.wal.read().unwrap().sync().unwrap();
    }

    fn close(self: Box<Self>) {
        let cursor = self.cursor.lock().unwrap();
        assert!(self.wal.write().unwrap().truncate_before(cursor.next).is_ok());
    }
}
