//! persistent-queue on its redb store.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use persistent_queue::{Builder, Consumer, Durability, Producer, RedbStore, Reserved};
use std::path::Path;
use std::sync::Mutex;

const SLOW: &str = "no batch call, and a synced push for each message takes too long";

const BASE: Kind = Kind {
    name: "persistent-queue",
    package: "persistent-queue",
    keeps: Keeps::Nothing,
    acks: Acks::AnyOrder,
    many_processes: false,
    open: |path| open(path, Durability::None),
    longest: 1 << 30,
    cannot: &[("P2", "no batch call")],
    remarks: "on redb, Durability::None: a commit lies in memory until a durable one \
              (redb's Durability::None); open reads the whole backlog (queue.rs: open)",
};

pub(super) const KINDS: [Kind; 2] = [
    BASE,
    Kind {
        name: "persistent-queue, synced",
        keeps: Keeps::Power,
        open: |path| open(path, Durability::Group),
        cannot: &[("P2", "no batch call"), ("P10", SLOW), ("P12", SLOW)],
        remarks: "on redb, Durability::Group: threads share one sync",
        ..BASE
    },
];

struct Both {
    producer: Producer<RedbStore>,
    consumer: Consumer<RedbStore>,
    kept: Mutex<Vec<Reserved<RedbStore>>>,
}

fn open(path: &Path, durability: Durability) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    let store = RedbStore::open(path.join("queue")).unwrap();
    let builder = Builder::new(store).capacity(usize::MAX).durability(durability);
    let (producer, consumer) = builder.open().unwrap();
    Box::new(Both { producer, consumer, kept: Mutex::default() })
}

impl Contender for Both {
    fn push(&self, payload: &[u8]) {
        self.producer.push(payload).unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(job) = self.consumer.reserve().unwrap() else { break };
            count += 1;
            match answer(&job) {
                Answer::Ack => job.ack().unwrap(),
                Answer::Keep => self.kept.lock().unwrap().push(job),
            }
        }
        count
    }

    fn sync(&self) {}

    fn close(self: Box<Self>) {
        self.producer.close();
    }
}
