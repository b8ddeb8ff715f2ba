//! What the promise of a queue allows to be found after a crash.
//!
//! The model knows every message that was ever tried, what each call returned, and so what must be
//! there, what may be there, and what must not.

use keepq::{Delivery, Error, Message, Queue};
use std::collections::{BTreeMap, BTreeSet};

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Closed in order.
    Closed,
    /// Killed: all that was stored is there.
    Killed,
    /// Power was cut: only what was synced is there for sure.
    PowerCut,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Known {
    No,
    /// The call was under way when the run ended.
    Perhaps,
    /// The call returned `Ok`; survives a kill.
    Yes,
    /// Survives a power cut.
    Durable,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) seq: Option<u64>,
    pub(crate) run: u32,
    pub(crate) batch: u64,
    pub(crate) is_transient: bool,
    pub(crate) len: usize,
    pub(crate) pushed: Known,
    pub(crate) acked: Known,
    /// How often it was handed out and counted; after a kill no less is found.
    pub(crate) attempts: u32,
    /// No more than this can be found, even if a power cut brings an older count back.
    pub(crate) most_attempts: u32,
    pub(crate) is_gone: bool,
}

/// All messages, by the number in their payload, in push order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) run: u32,
    next_id: u64,
    next_batch: u64,
    largest_seq: u64,
}

/// The payload of message `id`: its number, then bytes that follow from it.
pub(crate) fn payload(id: u64, len: usize) -> Vec<u8> {
    let mut payload = id.to_le_bytes().to_vec();
    payload.extend((0..len).map(|at| u8::try_from((id as usize * 31 + at * 7) % 251).unwrap()));
    payload
}

/// The headers of message `id`: every third one has some.
pub(crate) fn headers(id: u64) -> Vec<(String, Vec<u8>)> {
    let count = if id.is_multiple_of(3) { id % 4 } else { 0 };
    (0..count).map(|n| (format!("header {n}"), payload(id, (n * 40) as usize))).collect()
}

/// The message `id`, made anew.
pub(crate) fn message(id: u64, payload: &[u8]) -> Message<'_> {
    headers(id).iter().fold(Message::new(payload), |made, (name, value)| made.header(name, value))
}

impl Model {
    /// Notes a batch that is about to be pushed: the numbers and payloads of its messages.
    pub(crate) fn begin_push(&mut self, lens: &[usize], is_transient: bool) -> Vec<(u64, Vec<u8>)> {
        self.next_batch += 1;
        let mut begun = Vec::new();
        for &len in lens {
            let id = self.next_id;
            self.next_id += 1;
            let entry = Entry {
                seq: None,
                run: self.run,
                batch: self.next_batch,
                is_transient,
                len,
                pushed: Known::Perhaps,
                acked: Known::No,
                attempts: 0,
                most_attempts: 0,
                is_gone: false,
            };
            self.entries.insert(id, entry);
            begun.push((id, payload(id, len)));
        }
        begun
    }

    /// The push returned these Seqs.
    pub(crate) fn end_push(&mut self, ids: &[u64], seqs: &[u64], known: Known) {
        assert_eq!(ids.len(), seqs.len());
        for (id, &seq) in ids.iter().zip(seqs) {
            assert!(seq > self.largest_seq, "Seq {seq} given again, after {}", self.largest_seq);
            self.largest_seq = seq;
            let entry = self.entries.get_mut(id).unwrap();
            (entry.seq, entry.pushed) = (Some(seq), known);
        }
    }

    /// A sync of everything returned `Ok`.
    pub(crate) fn synced(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| !entry.is_gone) {
            if entry.pushed == Known::Yes {
                entry.pushed = Known::Durable;
            }
            if entry.acked == Known::Yes {
                entry.acked = Known::Durable;
            }
        }
    }

    /// A delivery was handed out in the running queue; checks it, and gives its number.
    pub(crate) fn delivered(&mut self, delivery: &Delivery) -> u64 {
        let id = u64::from_le_bytes(delivery[..8].try_into().unwrap());
        let entry = self.entries.get_mut(&id).expect("a message that was never pushed");
        assert_eq!(&delivery[..], payload(id, entry.len), "message {id} was changed");
        assert!(delivery.headers().eq(headers(id).iter().map(|(n, v)| (n.as_str(), &v[..]))));
        assert!(!entry.is_gone, "message {id} came back after it was gone");
        assert!(entry.acked < Known::Yes, "message {id} came back after its ack");
        let seq = u64::from(delivery.seq());
        assert_eq!(*entry.seq.get_or_insert(seq), seq, "message {id} changed its Seq");
        self.largest_seq = self.largest_seq.max(seq);
        assert_eq!(delivery.attempts(), entry.attempts + 1, "attempts of message {id}");
        entry.attempts += 1;
        entry.most_attempts = entry.most_attempts.max(entry.attempts);
        id
    }

    /// A delivery is about to be released: the count falls, but a power cut may undo that.
    pub(crate) fn released(&mut self, id: u64) {
        self.entries.get_mut(&id).unwrap().attempts -= 1;
    }

    /// The run crashed: an attempt at any message may have been stored and not been told.
    pub(crate) fn crashed(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.most_attempts += 1);
    }

    pub(crate) fn acked(&mut self, id: u64, known: Known) {
        self.entries.get_mut(&id).unwrap().acked = known;
    }

    /// All that waits is about to be purged; gives what is.
    pub(crate) fn begin_purge(&mut self, in_flight: &[u64]) -> Vec<u64> {
        let waits = |(id, entry): &(&u64, &mut Entry)| {
            let is_there = entry.seq.is_some() && !entry.is_gone && entry.acked == Known::No;
            is_there && !in_flight.contains(id)
        };
        let purged = self.entries.iter_mut().filter(waits).map(|(id, entry)| {
            entry.acked = Known::Perhaps;
            *id
        });
        purged.collect()
    }

    /// Right after [`Model::recovered`]: what the queue says of each Seq that was told. What is
    /// settled for sure is, what is owed is not, and what a crash took is not told as settled.
    pub(crate) fn check_settled(&self, queue: &Queue) -> keepq::Result<()> {
        let lasting = self.entries.iter().filter(|(_, entry)| !entry.is_transient);
        for (id, entry) in lasting {
            let Some(seq) = entry.seq else { continue };
            let told = match queue.is_acked(seq.into()) {
                Err(Error::UnknownSeq { seq: named }) => {
                    assert_eq!(u64::from(named), seq);
                    None
                }
                told => Some(told?),
            };
            let right = match (entry.is_gone, entry.acked) {
                (_, Known::Durable) | (false, Known::Yes) => told == Some(true),
                (false, Known::No) => told == Some(false),
                (true, Known::No) => told.is_none(),
                (true, _) | (_, Known::Perhaps) => told != Some(false),
            };
            assert!(right, "is_acked of message {id} is {told:?}: {entry:?}");
        }
        Ok(())
    }

    /// Checks what a queue holds right after open against what the promise says about how the last
    /// run ended, and takes it over.
    pub(crate) fn recovered(&mut self, found: &[Delivery], end: End) {
        let mut seen = BTreeSet::new();
        let mut last_seq = 0;
        for delivery in found {
            let id = u64::from_le_bytes(delivery[..8].try_into().unwrap());
            assert!(seen.insert(id), "message {id} is there twice");
            let entry = self.entries.get(&id).expect("a message that was never pushed");
            assert!(!entry.is_transient, "transient message {id} survived");
            let seq = u64::from(delivery.seq());
            assert!(seq > last_seq, "out of order: {seq} after {last_seq}");
            last_seq = seq;
            let least = if end == End::PowerCut { 0 } else { entry.attempts } + 1;
            let most = entry.most_attempts + 1;
            assert!(
                (least..=most).contains(&delivery.attempts()),
                "message {id}: attempts {} are not in {least}..={most}",
                delivery.attempts()
            );
            let entry = self.entries.get_mut(&id).unwrap();
            entry.attempts = delivery.attempts() - 1;
            if end == End::PowerCut && entry.acked == Known::Yes {
                // The ack was not synced.
                entry.acked = Known::No;
            }
            self.delivered(delivery);
        }
        self.check_missing(&seen, end);
        for (id, entry) in &mut self.entries {
            // An ack that only a kill has tested can still be undone by a power cut.
            let is_unsynced_ack = end != End::PowerCut && entry.acked >= Known::Perhaps;
            if !seen.contains(id) && is_unsynced_ack {
                entry.acked = entry.acked.max(Known::Yes);
                continue;
            }
            entry.is_gone |= !seen.contains(id);
            if seen.contains(id) {
                // An ack that was not synced has been undone by the crash.
                entry.acked = Known::No;
                entry.pushed = entry.pushed.max(Known::Yes);
            }
        }
        self.run += 1;
    }

    fn check_missing(&self, seen: &BTreeSet<u64>, end: End) {
        let kept = if end == End::PowerCut { Known::Durable } else { Known::Yes };
        // Of each run: the newest message that is known to have survived.
        let mut survived: BTreeMap<u32, u64> = BTreeMap::new();
        let mut batches: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (&id, entry) in self.entries.iter().filter(|(_, entry)| !entry.is_gone) {
            if seen.contains(&id) {
                survived.insert(entry.run, id);
            }
            let may_be_settled = entry.acked >= Known::Perhaps || entry.is_transient;
            if !may_be_settled {
                let batch = batches.entry(entry.batch).or_default();
                batch.0 += usize::from(seen.contains(&id));
                batch.1 += 1;
                assert!(
                    seen.contains(&id) || entry.pushed < kept,
                    "message {id} was confirmed ({:?}) and is lost: {entry:?}",
                    entry.pushed
                );
            }
        }
        for (batch, (there, all)) in batches {
            assert!(there == 0 || there == all, "batch {batch}: {there} of {all} are there");
        }
        for (&id, entry) in self.entries.iter().filter(|(_, entry)| !entry.is_gone) {
            let may_be_settled = entry.acked >= Known::Perhaps || entry.is_transient;
            let newest = survived.get(&entry.run).copied();
            assert!(
                may_be_settled || seen.contains(&id) || newest.is_none_or(|newest| id > newest),
                "a hole: message {id} is missing, {newest:?} of the same run is there"
            );
        }
    }
}
