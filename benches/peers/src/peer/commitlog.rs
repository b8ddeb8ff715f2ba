//! commitlog: a log with an index. A reader has a place in it, which the crate does not keep.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use commitlog::message::{MessageBuf, MessageSet};
use commitlog::{CommitLog, LogOptions, ReadLimit};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

const LONGEST: usize = 64 << 20;

pub(super) const KINDS: [Kind; 1] = [Kind {
    name: "commitlog",
    package: "commitlog",
    keeps: Keeps::Kill,
    acks: Acks::Unkept,
    many_processes: false,
    open,
    longest: LONGEST - 1024,
    cannot: &[],
    remarks: "a log: never syncs its messages (segment.rs: flush_sync is File::flush, which does \
              nothing); no ack, a place in memory stands for it; nothing is ever removed from \
              the front; no lock against a second process",
}];

/// How many bytes one read fetches: more than the longest message of any job.
const AHEAD: usize = 128 << 10;

struct Log {
    log: Mutex<CommitLog>,
    reader: Mutex<Reader>,
}

/// Where the consumer is. A read of one message costs as much as one of many.
struct Reader {
    next: u64,
    ahead: VecDeque<Vec<u8>>,
}

fn open(path: &Path) -> Box<dyn Contender> {
    let mut options = LogOptions::new(path);
    // The default is 1 MB, for a batch as for a message.
    options.message_max_bytes(LONGEST);
    let log = CommitLog::new(options).unwrap();
    let reader = Mutex::new(Reader { next: 0, ahead: VecDeque::new() });
    Box::new(Log { log: Mutex::new(log), reader })
}

impl Contender for Log {
    fn push(&self, payload: &[u8]) {
        self.log.lock().unwrap().append_msg(payload).unwrap();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let mut batch: MessageBuf = payloads.iter().collect();
        self.log.lock().unwrap().append(&mut batch).unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut reader = self.reader.lock().unwrap();
        let mut count = 0;
        while count < limit {
            if reader.ahead.is_empty() {
                let log = self.log.lock().unwrap();
                let read = log.read(reader.next, ReadLimit::max_bytes(AHEAD)).unwrap();
                drop(log);
                reader.next += read.len() as u64;
                reader.ahead.extend(read.iter().map(|message| message.payload().to_vec()));
            }
            let Some(message) = reader.ahead.pop_front() else { break };
            answer(&message);
            count += 1;
        }
        count
    }

    fn sync(&self) {
        self.log.lock().unwrap().flush().unwrap();
    }

    fn close(self: Box<Self>) {
        self.sync();
    }
}
