//! okaywal: a write-ahead log that hands its entries over at a checkpoint.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

pub(super) const KINDS: [Kind; 1] = [Kind {
    name: "okaywal",
    package: "okaywal",
    keeps: Keeps::Power,
    acks: Acks::NoPop,
    many_processes: false,
    open,
    longest: u32::MAX as usize,
    cannot: &[("P14 many", "16 MiB of zeros are written for each")],
    remarks: "a log without a reader: no pop, no ack; threads share one sync; a batch is one \
              entry of many chunks; files of 16 MiB are written with zeros ahead, and none is \
              checkpointed, as the messages still wait; open reads all of the log; no lock \
              against a second process",
}];

const FILE: u32 = 16 << 20;
/// How many of the messages that are found at open are kept in memory, for `check`.
const KEPT: usize = 20_000;

struct Log {
    entries: WriteAheadLog,
    is_over: Arc<Over>,
    /// Entries that were there at open, and were not taken yet.
    found: Mutex<Vec<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct Over {
    is_over: Mutex<bool>,
    changed: Condvar,
}

/// Holds each checkpoint back, as it would discard messages that wait.
#[derive(Debug)]
struct Manager {
    is_over: Arc<Over>,
    found: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl LogManager for Manager {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        if let Some(chunks) = entry.read_all_chunks()? {
            let mut found = self.found.lock().unwrap();
            let room = KEPT - found.len();
            found.extend(chunks.into_iter().take(room));
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: EntryId,
        _: &mut SegmentReader,
        _: &WriteAheadLog,
    ) -> io::Result<()> {
        let is_over = self.is_over.is_over.lock().unwrap();
        drop(self.is_over.changed.wait_while(is_over, |is_over| !*is_over).unwrap());
        Err(io::Error::other("the messages still wait"))
    }
}

fn open(path: &Path) -> Box<dyn Contender> {
    let (is_over, found) = (Arc::new(Over::default()), Arc::default());
    let manager = Manager { is_over: Arc::clone(&is_over), found: Arc::clone(&found) };
    let configuration = Configuration::default_for(path)
        .preallocate_bytes(FILE)
        .checkpoint_after_bytes(u64::from(FILE) * 3 / 4);
    let entries = configuration.open(manager).unwrap();
    let found = Mutex::new(std::mem::take(&mut *found.lock().unwrap()));
    Box::new(Log { entries, is_over, found })
}

impl Contender for Log {
    fn push(&self, payload: &[u8]) {
        self.push_batch(&[payload]);
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let mut entry = self.entries.begin_entry().unwrap();
        for payload in payloads {
            entry.write_chunk(payload).unwrap();
        }
        entry.commit().unwrap();
    }

    /// Only `check` calls this: it counts what recovery found.
    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut found = self.found.lock().unwrap();
        let count = limit.min(found.len());
        for message in found.drain(..count) {
            answer(&message);
        }
        count
    }

    fn sync(&self) {}

    fn close(self: Box<Self>) {
        *self.is_over.is_over.lock().unwrap() = true;
        self.is_over.changed.notify_all();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        *self.is_over.is_over.lock().unwrap() = true;
        self.is_over.changed.notify_all();
    }
}
