//! SQLite as a queue: a table with an ascending key, a cursor, a delete for each ack.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use rusqlite::{Connection, params};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const BASE: Kind = Kind {
    name: "SQLite, NORMAL",
    package: "rusqlite",
    keeps: Keeps::Kill,
    acks: Acks::AnyOrder,
    many_processes: true,
    open: |path| open(path, "NORMAL"),
    longest: 1 << 30,
    cannot: &[],
    remarks: "journal_mode=WAL, synchronous=NORMAL: syncs at checkpoints only; one connection \
              that pushes and one that pops; the file never shrinks without VACUUM",
};

pub(super) const KINDS: [Kind; 3] = [
    BASE,
    Kind {
        name: "SQLite, OFF",
        open: |path| open(path, "OFF"),
        cannot: &[("P10", "like NORMAL"), ("P12", "like NORMAL"), ("P14", "like NORMAL")],
        remarks: "journal_mode=WAL, synchronous=OFF: a power cut may corrupt the database",
        ..BASE
    },
    Kind {
        name: "SQLite, FULL",
        keeps: Keeps::Power,
        open: |path| open(path, "FULL"),
        remarks: "journal_mode=WAL, synchronous=FULL: one writer at a time, so threads share no \
                  sync",
        ..BASE
    },
];

const PUSH: &str = "INSERT INTO queue (payload) VALUES (?1)";
const POP: &str = "SELECT id, payload FROM queue WHERE id > ?1 ORDER BY id LIMIT ?2";
const ACK: &str = "DELETE FROM queue WHERE id = ?1";

struct Sqlite {
    producer: Mutex<Connection>,
    consumer: Mutex<(Connection, i64)>,
}

fn connect(path: &Path, synchronous: &str) -> Connection {
    let connection = Connection::open(path.join("queue")).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", synchronous).unwrap();
    // AUTOINCREMENT: a key is not used again after the last row was deleted.
    let table = "CREATE TABLE IF NOT EXISTS queue \
                 (id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL)";
    connection.execute(table, ()).unwrap();
    connection
}

fn open(path: &Path, synchronous: &str) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    let producer = Mutex::new(connect(path, synchronous));
    let consumer = Mutex::new((connect(path, synchronous), 0));
    Box::new(Sqlite { producer, consumer })
}

impl Contender for Sqlite {
    fn push(&self, payload: &[u8]) {
        let producer = self.producer.lock().unwrap();
        producer.prepare_cached(PUSH).unwrap().execute([payload]).unwrap();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let mut producer = self.producer.lock().unwrap();
        let transaction = producer.transaction().unwrap();
        let mut push = transaction.prepare_cached(PUSH).unwrap();
        for payload in payloads {
            push.execute([payload]).unwrap();
        }
        drop(push);
        transaction.commit().unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut consumer = self.consumer.lock().unwrap();
        let (connection, cursor) = &mut *consumer;
        let mut acked: Vec<i64> = Vec::with_capacity(limit);
        let mut count = 0;
        let mut pop = connection.prepare_cached(POP).unwrap();
        let mut rows = pop.query(params![*cursor, limit as u32]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let key = row.get(0).unwrap();
            if answer(row.get_ref(1).unwrap().as_blob().unwrap()) == Answer::Ack {
                acked.push(key);
            }
            *cursor = key;
            count += 1;
        }
        drop(rows);
        drop(pop);
        if let [key] = acked[..] {
            connection.prepare_cached(ACK).unwrap().execute([key]).unwrap();
        } else if !acked.is_empty() {
            let transaction = connection.transaction().unwrap();
            let mut ack = transaction.prepare_cached(ACK).unwrap();
            for key in acked {
                ack.execute([key]).unwrap();
            }
            drop(ack);
            transaction.commit().unwrap();
        }
        count
    }

    fn sync(&self) {
        let producer = self.producer.lock().unwrap();
        producer.query_row("PRAGMA wal_checkpoint(FULL)", (), |_| Ok(())).unwrap();
    }

    fn close(self: Box<Self>) {}
}
