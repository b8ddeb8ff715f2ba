//! What the promise of a queue allows to be found after a crash.
//!
//! The model knows every message that was ever tried, what each call returned, and so what must be
//! there, what may be there, and what must not.

use keepq::Delivery;
use std::collections::{BTreeMap, BTreeSet};

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Closed in order.
    Closed,
    /// Killed: all that was stored is there.
    Killed,
    /// Power was cut: only what was synced is there for sure.
    PowerCut,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Known {
    No,
    /// The call was under way when the run ended.
    Perhaps,
    /// The call returned `Ok`; survives a kill.
    Yes,
    /// Survives a power cut.
    Durable,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub seq: Option<u64>,
    pub run: u32,
    pub batch: u64,
    pub is_transient: bool,
    pub len: usize,
    pub pushed: Known,
    pub acked: Known,
    /// At most, and at least after a kill.
    pub attempts: u32,
    pub attempts_after_kill: u32,
    /// Whether an attempt was under way when the run ended.
    pub is_attempt_open: bool,
    pub is_gone: bool,
}

/// All messages, by the number in their payload, in push order.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub entries: BTreeMap<u64, Entry>,
    pub run: u32,
    next_id: u64,
    next_batch: u64,
    largest_seq: u64,
}

/// The payload of message `id`: its number, then bytes that follow from it.
pub fn payload(id: u64, len: usize) -> Vec<u8> {
    let mut payload = id.to_le_bytes().to_vec();
    payload.extend((0..len).map(|at| u8::try_from((id as usize * 31 + at * 7) % 251).unwrap()));
    payload
}

impl Model {
    /// Notes a batch that is about to be pushed: the numbers and payloads of its messages.
    pub fn begin_push(&mut self, lens: &[usize], is_transient: bool) -> Vec<(u64, Vec<u8>)> {
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
                attempts_after_kill: 0,
                is_attempt_open: false,
                is_gone: false,
            };
            self.entries.insert(id, entry);
            begun.push((id, payload(id, len)));
        }
        begun
    }

    /// The push returned these Seqs.
    pub fn end_push(&mut self, ids: &[u64], seqs: &[u64], known: Known) {
        assert_eq!(ids.len(), seqs.len());
        for (id, &seq) in ids.iter().zip(seqs) {
            assert!(seq > self.largest_seq, "Seq {seq} given again, after {}", self.largest_seq);
            self.largest_seq = seq;
            let entry = self.entries.get_mut(id).unwrap();
            (entry.seq, entry.pushed) = (Some(seq), known);
        }
    }

    /// A push failed without a crash: none of it must ever be seen.
    pub fn refuse_push(&mut self, ids: &[u64]) {
        for id in ids {
            self.entries.get_mut(id).unwrap().is_gone = true;
        }
    }

    /// A sync of everything returned `Ok`.
    pub fn synced(&mut self) {
        for entry in self.entries.values_mut() {
            if entry.pushed == Known::Yes {
                entry.pushed = Known::Durable;
            }
            if entry.acked == Known::Yes {
                entry.acked = Known::Durable;
            }
        }
    }

    /// A delivery was handed out in the running queue; checks it, and gives its number.
    pub fn delivered(&mut self, delivery: &Delivery) -> u64 {
        let id = u64::from_le_bytes(delivery[..8].try_into().unwrap());
        let entry = self.entries.get_mut(&id).expect("a message that was never pushed");
        assert_eq!(&delivery[..], payload(id, entry.len), "message {id} was changed");
        assert!(!entry.is_gone, "message {id} came back after it was gone");
        assert!(entry.acked < Known::Yes, "message {id} came back after its ack");
        let seq = u64::from(delivery.seq());
        assert_eq!(*entry.seq.get_or_insert(seq), seq, "message {id} changed its Seq");
        self.largest_seq = self.largest_seq.max(seq);
        entry.attempts += 1;
        entry.attempts_after_kill += 1;
        assert!(delivery.attempts() <= entry.attempts + u32::from(entry.is_attempt_open));
        // The count may have been lost in a power cut; from here on it is known again.
        entry.attempts = delivery.attempts();
        entry.attempts_after_kill = delivery.attempts();
        entry.is_attempt_open = false;
        id
    }

    pub fn released(&mut self, id: u64) {
        let entry = self.entries.get_mut(&id).unwrap();
        entry.attempts_after_kill -= 1;
        // Stored, but a power cut may bring the larger count back.
    }

    pub fn acked(&mut self, id: u64, known: Known) {
        self.entries.get_mut(&id).unwrap().acked = known;
    }

    /// Checks what a queue holds right after open against what the promise says about how the last
    /// run ended, and takes it over.
    pub fn recovered(&mut self, found: &[Delivery], end: End) {
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
            let least = match end {
                End::PowerCut => 1,
                End::Killed | End::Closed => entry.attempts_after_kill + 1,
            };
            let most = entry.attempts.max(entry.attempts_after_kill) + 2;
            assert!(
                (least..=most).contains(&delivery.attempts()),
                "message {id}: attempts {} are not in {least}..={most}",
                delivery.attempts()
            );
            self.delivered(delivery);
        }
        self.check_missing(&seen, end);
        for (id, entry) in &mut self.entries {
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
            let newest = survived.get(&entry.run).copied().unwrap_or(0);
            assert!(
                may_be_settled || seen.contains(&id) || id > newest,
                "a hole: message {id} is missing, {newest} of the same run is there"
            );
        }
    }
}
