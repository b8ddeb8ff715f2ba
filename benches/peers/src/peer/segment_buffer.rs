//! segment-buffer: batches in compressed files. A message is in a file once it was flushed.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use segment_buffer::{DurabilityPolicy, FlushPolicy, SegmentBuffer, SegmentConfig};
use serde_bytes::ByteBuf;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

const BASE: Kind = Kind {
    name: "segment-buffer",
    package: "segment-buffer",
    keeps: Keeps::Nothing,
    acks: Acks::InOrder,
    many_processes: false,
    open: |path| open(path, None),
    longest: usize::MAX,
    cannot: &[],
    remarks: "the default: a file for each 256 messages or 5 s, until then in memory (lib.rs, \
              Limitations); acks in order only, and by file: delete_acked; compressed, so equal \
              payloads take next to no disk",
};

const NO_ROOM: &str = "a file for each push: a deep backlog is as many files";

pub(super) const KINDS: [Kind; 3] = [
    BASE,
    Kind {
        name: "segment-buffer, flushed",
        keeps: Keeps::Kill,
        open: |path| open(path, Some(DurabilityPolicy::Throughput)),
        remarks: "flush after each push or batch: one file for each; not synced",
        cannot: &[("P11", NO_ROOM)],
        ..BASE
    },
    Kind {
        name: "segment-buffer, synced",
        keeps: Keeps::Power,
        open: |path| open(path, Some(DurabilityPolicy::Maximal)),
        remarks: "flush after each push or batch, DurabilityPolicy::Maximal: one file for each, \
                  synced with its directory",
        ..BASE
    },
];

/// How many messages one read fetches: as many as a file holds by default.
const AHEAD: usize = 256;

struct Buffer {
    segments: SegmentBuffer<ByteBuf>,
    is_flushed: bool,
    reader: Mutex<Reader>,
}

/// Where the consumer is. A read decodes a whole file, so it is asked for many messages at once.
struct Reader {
    next: u64,
    ahead: VecDeque<ByteBuf>,
}

fn open(path: &Path, flushed: Option<DurabilityPolicy>) -> Box<dyn Contender> {
    let policy = if flushed.is_some() { FlushPolicy::Manual } else { FlushPolicy::default() };
    let config = SegmentConfig::builder()
        .flush_policy(policy)
        .durability(flushed.unwrap_or_default())
        .max_size_bytes(1 << 40)
        .build();
    let segments: SegmentBuffer<ByteBuf> = SegmentBuffer::open(path, config).unwrap();
    let next = segments.stats().head_sequence;
    let reader = Mutex::new(Reader { next, ahead: VecDeque::new() });
    Box::new(Buffer { segments, is_flushed: flushed.is_some(), reader })
}

impl Contender for Buffer {
    fn push(&self, payload: &[u8]) {
        self.segments.append(ByteBuf::from(payload)).unwrap();
        if self.is_flushed {
            self.segments.flush().unwrap();
        }
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let messages = payloads.iter().map(|payload| ByteBuf::from(*payload));
        self.segments.append_all(messages).unwrap();
        if self.is_flushed {
            self.segments.flush().unwrap();
        }
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut reader = self.reader.lock().unwrap();
        let mut count = 0;
        while count < limit {
            if reader.ahead.is_empty() {
                let read = self.segments.read_from(reader.next, AHEAD.max(limit)).unwrap();
                if read.is_empty() {
                    break;
                }
                reader.ahead = read.into();
            }
            let Some(message) = reader.ahead.pop_front() else { break };
            answer(&message);
            reader.next += 1;
            count += 1;
            // The loop that the crate recommends: read, handle, delete.
            if reader.ahead.is_empty() {
                self.segments.delete_acked(reader.next - 1).unwrap();
            }
        }
        count
    }

    fn sync(&self) {
        self.segments.flush().unwrap();
    }

    fn close(self: Box<Self>) {
        self.segments.flush().unwrap();
    }
}
