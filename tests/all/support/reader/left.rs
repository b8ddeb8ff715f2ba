//! What is left to do, and what is known of each number. From the page: "What a slot means", and
//! "Reading a queue", 5 to 7.

use super::directory::Directory;
use super::epoch::{Cut, Part};
use super::log::Log;
use super::ranges::Ranges;
use super::record::{Content, MessageHeader, Record};
use super::segment::{Slot, State};
use std::collections::BTreeMap;

/// A message that is unsettled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Owed {
    pub(crate) seq: u64,
    /// In UTC.
    pub(crate) pushed_at: u64,
    /// How often it was handed out.
    pub(crate) attempts: u64,
    /// When it may be handed out; 0 if at once.
    pub(crate) due: u64,
    /// From when on it must not be.
    pub(crate) until: Option<u64>,
    pub(crate) headers: Vec<MessageHeader>,
    pub(crate) payload: Vec<u8>,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Owed,
    /// On its way to the dead letters.
    Dying,
    Settled,
    Lost,
    /// Only a later version can read it.
    Newer,
}

#[derive(Debug)]
pub(crate) struct Left {
    /// Messages that will be handed out, in order.
    pub(crate) owed: Vec<Owed>,
    /// Numbers of messages on their way to the dead letters, in order.
    pub(crate) dying: Vec<u64>,
    /// The number that is given out next.
    pub(crate) next_seq: u64,
    /// The queue's time when it is opened.
    pub(crate) start: u64,
    /// How far the queue's time was ahead of UTC at the end.
    pub(crate) clock_shift: i64,
    pub(crate) cut: Option<Cut>,
    /// Numbers of messages that were promised and are lost.
    pub(crate) lost: Ranges,
    /// Those of segments that do not count, since others have the same numbers.
    pub(crate) overlapping: Ranges,
    fates: BTreeMap<u64, Fate>,
    /// Numbers below the next of which nothing is known, unless a segment holds them.
    unknown: Ranges,
}

impl Left {
    pub(super) fn new(directory: &Directory, log: Log, now: u64) -> Self {
        let start = log.start(now);
        let mut left = Self {
            owed: Vec::new(),
            dying: Vec::new(),
            next_seq: log.next_seq,
            start,
            clock_shift: log.clock_shift,
            cut: log.cut,
            unknown: unknown(directory, &log),
            lost: log.lost,
            overlapping: log.overlapping,
            fates: BTreeMap::new(),
        };
        for part in &log.parts {
            let mut records = part.records.iter().peekable();
            for index in 0..part.count {
                while records.next_if(|record| record.index < index).is_some() {}
                // Without its number it is lost.
                let Some(seq) = part.segment.seq(index) else { continue };
                let slot = merged(part, seq, index);
                match records.next_if(|record| record.index == index) {
                    Some(record) => left.add(seq, slot, record, part),
                    None => left.add_damaged(seq, slot, part.transient.contains(&index)),
                }
            }
        }
        left
    }

    /// A record that is invalid: its message is lost, unless it was settled, or is since its run
    /// ended.
    fn add_damaged(&mut self, seq: u64, slot: Slot, is_transient: bool) {
        let fate = match slot.state {
            State::Dead | State::Transient => Fate::Settled,
            // It may be there already: a dead letter says where it comes from.
            State::Dying => Fate::Dying,
            State::Lost => Fate::Lost,
            _ if is_transient => Fate::Settled,
            _ => Fate::Lost,
        };
        self.fates.insert(seq, fate);
        match fate {
            Fate::Lost => self.lost.add(seq, seq),
            Fate::Dying => self.dying.push(seq),
            _ => {}
        }
    }

    fn add(&mut self, seq: u64, slot: Slot, record: &Record, part: &Part) {
        let (pushed_at, start) = (part.pushed_at(record), self.start);
        let content = record.content();
        let fate = match slot.state {
            // Each message was pushed by an earlier run than that of the reader.
            State::Dead | State::Transient => Fate::Settled,
            State::Lost => Fate::Lost,
            State::Dying => Fate::Dying,
            _ if record.is_transient() => Fate::Settled,
            _ if content.is_none() => Fate::Newer,
            State::Ready | State::Delivered | State::Unreadable => Fate::Owed,
        };
        self.fates.insert(seq, fate);
        match fate {
            Fate::Owed => {}
            Fate::Dying => return self.dying.push(seq),
            _ => return,
        }
        let Some(Content { headers, from, until, payload }) = content else { return };
        // No later than its whole delay from the start.
        let undue = |end: u64, length: u64| {
            Some(end.min(start.saturating_add(length))).filter(|&due| due > start)
        };
        let by_slot = slot.delay.and_then(|delay| undue(delay.end, delay.length));
        // The slot says the same, but may have lost it.
        let counts = slot.attempts == 0 || slot.has_lost_delay;
        let by_record =
            from.filter(|_| counts).and_then(|from| undue(from, from.saturating_sub(pushed_at)));
        let (attempts, due) = (slot.attempts, by_slot.or(by_record).unwrap_or(0));
        let pushed_at = pushed_at.saturating_add_signed(-part.segment.clock_shift);
        self.owed.push(Owed { seq, pushed_at, attempts, due, until, headers, payload });
    }

    /// Whether a message is settled; None if that is unknown.
    pub(crate) fn is_settled(&self, seq: u64) -> Option<bool> {
        match self.fates.get(&seq) {
            Some(Fate::Owed | Fate::Dying | Fate::Newer) => Some(false),
            Some(Fate::Settled) => Some(true),
            Some(Fate::Lost) => None,
            None => {
                let is_known =
                    seq > 0 && seq < self.next_seq && !self.unknown.has(seq) && !self.lost.has(seq);
                is_known.then_some(true)
            }
        }
    }
}

/// The later of what the slots of a copy and of its sources say. One whose check fails says
/// nothing.
fn merged(part: &Part, seq: u64, index: u64) -> Slot {
    let own = part.segment.slot(index);
    let of_sources = part.sources.iter().filter_map(|source| {
        Some(source.slot(source.index(seq, source.most_records(&part.sources))?))
    });
    of_sources.fold(own, |one, other| if rank(&other) > rank(&one) { other } else { one })
}

fn rank(slot: &Slot) -> impl Ord + use<> {
    let state = match slot.state {
        State::Dead | State::Lost => 3,
        State::Dying => 2,
        State::Ready | State::Delivered | State::Transient => 1,
        State::Unreadable => 0,
    };
    (state, slot.attempts, slot.delay)
}

/// Numbers that no segment holds, and that were perhaps not settled.
fn unknown(directory: &Directory, log: &Log) -> Ranges {
    let mut unknown = Ranges::default();
    unknown.add(directory.accounted().saturating_add(1), u64::MAX);
    let Some(hints) = &directory.checkpoint else { return unknown };
    let copies = || log.parts.iter().filter(|part| part.segment.is_compacted());
    copies().for_each(|copy| unknown.remove(copy.first_seq, copy.end_seq() - 1));
    copies().for_each(|copy| add_numberless(&mut unknown, copy));
    let is_back = |copy: &&Part| directory.awaits(copy.segment.ordinal);
    copies().filter(is_back).for_each(|copy| add_gaps(&mut unknown, copy));
    let mut gone = Ranges::default();
    for listed in hints.segments.iter().filter(|listed| listed.first_seq > 0) {
        // What a copy does not have was settled before it was made.
        let is_copied = directory.replaced.contains_key(&listed.ordinal)
            || directory.is_left_out(listed.ordinal);
        let part = log.parts.iter().find(|part| part.segment.ordinal == listed.ordinal);
        let is_copy = part.is_some_and(|part| part.segment.is_compacted());
        if !is_copied && !is_copy {
            let (first, last) = directory.range_of(listed);
            gone.add(first, last);
        }
    }
    copies().for_each(|copy| gone.remove(copy.first_seq, copy.end_seq() - 1));
    gone.iter().for_each(|(first, last)| unknown.add(first, last));
    hints.unaccounted.iter().for_each(|&(first, last)| unknown.add(first, last));
    unknown
}

/// The numbers between those that a copy has.
fn add_gaps(unknown: &mut Ranges, part: &Part) {
    let mut next = part.first_seq;
    for seq in (0..part.count).filter_map(|index| part.segment.seq(index)) {
        unknown.add(next, seq.saturating_sub(1));
        next = seq.saturating_add(1);
    }
}

/// Where a copy has records without a number: all numbers between their neighbours.
fn add_numberless(unknown: &mut Ranges, part: &Part) {
    let (mut next, mut has_lost) = (part.first_seq, false);
    for index in 0..part.count {
        let seq = part.segment.seq(index);
        if let Some(seq) = seq.filter(|_| has_lost) {
            unknown.add(next, seq.saturating_sub(1));
        }
        has_lost = seq.is_none();
        next = seq.map_or(next, |seq| seq.saturating_add(1));
    }
    let last = part.segment.span().map_or(0, |(_, last)| last);
    if has_lost {
        unknown.add(next, last);
    }
}
