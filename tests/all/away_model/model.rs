//! What the queue has confirmed, and what has to be so at each open.

use keepq::{Damage, DamageKind, Delivery, Error, Queue};
use std::collections::{BTreeMap, BTreeSet};

/// Where the number of a message stands in its payload.
const NUMBER: std::ops::Range<usize> = 8..16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Unsettled,
    Settled,
    /// A crash came before the answer of a call.
    Unknown,
}

/// A message that was pushed.
#[derive(Clone, Debug)]
struct Known {
    /// None if the push failed: it may be there all the same.
    seq: Option<u64>,
    payload_len: usize,
    /// In which it was pushed.
    run: u32,
    state: State,
    /// Its record went bad.
    may_be_lost: bool,
    /// Its slot went bad.
    may_come_again: bool,
    /// What says whether it is settled went bad or was away.
    may_be_unknown: bool,
}

impl Known {
    fn is_in(&self, range: &[u64; 2]) -> bool {
        self.seq.is_some_and(|seq| (range[0]..=range[1]).contains(&seq))
    }

    /// Nothing holds for it any more.
    fn excuse(&mut self) {
        (self.may_be_lost, self.may_come_again, self.may_be_unknown) = (true, true, true);
    }
}

/// All messages, by their numbers: the first one has 0.
#[derive(Debug, Default)]
pub(super) struct Model {
    messages: Vec<Known>,
    run: u32,
    /// The messages of each file that is away.
    away: BTreeMap<String, Vec<usize>>,
    /// Each Seq that was told as damage.
    told: BTreeSet<u64>,
    /// Whether a backup was copied over the directory, and no queue has told what it has found.
    is_overlaid: bool,
}

fn payload(number: usize, len: usize) -> Vec<u8> {
    let mut payload = format!("message {number:08} ").into_bytes();
    payload.resize(len, b'.');
    payload
}

/// The number in a payload.
pub(super) fn number(payload: &[u8]) -> usize {
    std::str::from_utf8(&payload[NUMBER]).unwrap().parse().unwrap()
}

impl Model {
    pub(super) fn begin_run(&mut self) {
        self.run += 1;
    }

    /// The payload of the next message.
    pub(super) fn next_payload(&self, len: usize) -> Vec<u8> {
        payload(self.messages.len(), len)
    }

    /// The next message was pushed.
    pub(super) fn pushed(&mut self, payload_len: usize, seq: Option<u64>) -> usize {
        let (is_known, run) = (seq.is_some(), self.run);
        let state = if is_known { State::Unsettled } else { State::Unknown };
        let (may_be_lost, may_come_again, may_be_unknown) = (!is_known, !is_known, !is_known);
        self.messages.push(Known {
            seq,
            payload_len,
            run,
            state,
            may_be_lost,
            may_come_again,
            may_be_unknown,
        });
        self.messages.len() - 1
    }

    /// A message was handed out; tells which.
    pub(super) fn came(&self, job: &Delivery) -> usize {
        let number = number(job);
        let known = &self.messages[number];
        assert_eq!(job[..], payload(number, known.payload_len), "{known:?}");
        assert!(known.seq.is_none_or(|seq| seq == job.seq().into()), "{:?}: {known:?}", job.seq());
        assert!(
            known.state != State::Settled || known.may_come_again,
            "{number} was settled, and comes again: {known:?}"
        );
        number
    }

    /// A message that came with this Seq was acked.
    pub(super) fn acked(&mut self, number: usize, seq: u64, is_confirmed: bool) {
        let known = &mut self.messages[number];
        if is_confirmed {
            known.seq = Some(seq);
            (known.state, known.may_come_again) = (State::Settled, false);
        } else {
            (known.state, known.may_be_lost) = (State::Unknown, true);
        }
    }

    pub(super) fn state(&self, number: usize) -> State {
        self.messages[number].state
    }

    /// Whether the message is the last confirmed one, at all or in the newest run: it tells how
    /// much was durable.
    pub(super) fn is_witness(&self, number: usize) -> bool {
        let newest = |known: &Known| known.run == self.run && known.state != State::Unknown;
        let confirmed = |known: &Known| known.seq.is_some();
        let mut last =
            [self.messages.iter().rposition(newest), self.messages.iter().rposition(confirmed)]
                .into_iter()
                .flatten();
        last.any(|last| last == number)
    }

    /// Whether it was pushed in the newest run.
    pub(super) fn is_fresh(&self, number: usize) -> bool {
        self.messages[number].run == self.run
    }

    pub(super) fn is_payload(&self, number: usize, bytes: &[u8]) -> bool {
        self.messages.get(number).is_some_and(|known| payload(number, known.payload_len) == bytes)
    }

    /// The first and the last Seq of these messages.
    pub(super) fn range(&self, numbers: &[usize]) -> Option<[u64; 2]> {
        let seqs = numbers.iter().filter_map(|&number| self.messages[number].seq);
        Some([seqs.clone().min()?, seqs.max()?])
    }

    /// The record of a message goes bad.
    pub(super) fn spoil_record(&mut self, number: usize) {
        self.messages[number].may_be_lost = true;
    }

    /// The slot of a message goes bad.
    pub(super) fn spoil_slot(&mut self, number: usize) {
        let known = &mut self.messages[number];
        (known.may_come_again, known.may_be_unknown) = (true, true);
    }

    /// A file goes bad that has Seqs of this range, and no other ones.
    pub(super) fn spoil_range(&mut self, range: &[u64; 2]) {
        self.messages.iter_mut().filter(|known| known.is_in(range)).for_each(Known::excuse);
    }

    /// A file is moved away that has these messages, and Seqs of this range.
    pub(super) fn move_away(&mut self, name: &str, numbers: Vec<usize>, range: Option<[u64; 2]>) {
        for known in &mut self.messages {
            known.may_be_unknown |= range.is_some_and(|range| known.is_in(&range));
        }
        for &number in &numbers {
            self.messages[number].may_be_unknown = true;
        }
        self.away.insert(name.to_string(), numbers);
    }

    /// What is settled by now may come again.
    pub(super) fn forget_settled(&mut self) {
        for known in &mut self.messages {
            known.may_come_again |= known.state == State::Settled;
        }
    }

    pub(super) fn put_back(&mut self, name: &str) {
        self.away.remove(name);
    }

    /// Files of another state are copied over those that are there. So messages may be lost or come
    /// back, until a queue has told what it has found.
    pub(super) fn overlay(&mut self) {
        self.is_overlaid = true;
        self.messages.iter_mut().for_each(Known::excuse);
    }

    pub(super) fn is_overlaid(&self) -> bool {
        self.is_overlaid
    }

    fn is_away(&self, number: usize) -> bool {
        self.away.values().any(|numbers| numbers.contains(&number))
    }

    /// What the queue has to tell right after it was opened.
    pub(super) fn check(&mut self, queue: &Queue) {
        let mut seen: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for message in queue {
            let message = message.unwrap();
            let other = seen.insert(message.seq().into(), message.to_vec());
            assert!(other.is_none(), "{:?} is there twice", message.seq());
        }
        if std::mem::take(&mut self.is_overlaid) {
            self.adopt(queue, &seen);
        }
        self.check_damage(queue);
        for (number, known) in self.messages.iter().enumerate() {
            let Some(seq) = known.seq else { continue };
            let told = match queue.is_acked(seq.into()) {
                Ok(told) => Some(told),
                Err(Error::UnknownSeq { .. }) => None,
                Err(error) => panic!("{error}"),
            };
            if let Some(bytes) = seen.get(&seq) {
                assert_eq!(*bytes, payload(number, known.payload_len), "{number}: {known:?}");
            }
            self.check_one(number, seen.contains_key(&seq), told);
        }
    }

    /// `told`: whether it is settled, if the queue knows.
    fn check_one(&self, number: usize, is_seen: bool, told: Option<bool>) {
        let known = &self.messages[number];
        let context = || format!("{number}: {known:?}, told {told:?}");
        match known.state {
            State::Unsettled => {
                if !known.may_be_lost && !self.is_away(number) {
                    assert!(is_seen, "not there: {}", context());
                    assert_eq!(told, Some(false), "{}", context());
                }
                assert_ne!(told, Some(true), "a loss that is hidden: {}", context());
                let must_be_told = !is_seen && told.is_none() && !known.may_be_unknown;
                assert!(!must_be_told || self.is_told(known), "not told: {}", context());
            }
            State::Settled if !known.may_come_again => {
                assert!(!is_seen, "settled, and there: {}", context());
                assert_ne!(told, Some(false), "settled, and told as not: {}", context());
                let is_right = told == Some(true) || known.may_be_unknown;
                assert!(is_right, "settled, and not known as that: {}", context());
            }
            State::Settled | State::Unknown => {}
        }
    }

    fn is_told(&self, known: &Known) -> bool {
        known.seq.is_some_and(|seq| self.told.contains(&seq))
    }

    /// No message that is sound is told as lost.
    pub(super) fn check_damage(&mut self, queue: &Queue) {
        let is_loss =
            |damage: &Damage| matches!(damage.kind(), DamageKind::Corrupt | DamageKind::Segment);
        for damage in queue.damage().into_iter().filter(is_loss) {
            let range = [damage.first_seq().into(), damage.last_seq().into()];
            for (number, known) in self.messages.iter().enumerate() {
                if !known.is_in(&range) {
                    continue;
                }
                self.told.extend(known.seq);
                let may_be = known.state != State::Unsettled || known.may_be_lost;
                assert!(
                    may_be || self.is_away(number),
                    "{number} is sound, and told as lost: {known:?}, {damage:?}"
                );
            }
        }
    }

    /// Takes over what the first open after an overlay has found: that counts from now on.
    fn adopt(&mut self, queue: &Queue, seen: &BTreeMap<u64, Vec<u8>>) {
        for (number, known) in self.messages.iter_mut().enumerate() {
            known.excuse();
            let found = known.seq.and_then(|seq| seen.get(&seq));
            let is_own = found.map(|bytes| *bytes == payload(number, known.payload_len));
            let told = known.seq.and_then(|seq| queue.is_acked(seq.into()).ok());
            known.state = match is_own {
                Some(true) => State::Unsettled,
                None if known.seq.is_some() && told != Some(false) => State::Settled,
                None | Some(false) => State::Unknown,
            };
            if is_own == Some(false) {
                // Another message has its Seq now.
                known.seq = None;
            }
            if known.state != State::Unknown {
                (known.may_be_lost, known.may_come_again) = (false, false);
            }
        }
    }

    /// All that was handed out in the end, and settled, is all that had to be.
    pub(super) fn check_popped(&self, popped: &BTreeSet<usize>) {
        for (number, known) in self.messages.iter().enumerate() {
            if known.state == State::Unsettled && !popped.contains(&number) {
                let may_be = known.may_be_lost || self.is_away(number);
                assert!(may_be, "{number} was not handed out: {known:?}");
                let is_told = known.may_be_unknown || self.is_told(known);
                assert!(is_told, "{number} is lost, and that was not told: {known:?}");
            }
        }
    }
}
