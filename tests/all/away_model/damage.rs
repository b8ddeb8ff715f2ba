//! What happens to files while no queue has them open.

use super::History;
use super::model::{State, number};
use crate::found_hooks::{RECORD_HEADER, is_segment};
use crate::support::agree::files;
use crate::support::craft::{ACTIVATION, PAGE, SEAL, SOURCES};
use crate::support::reader::{Place, Used, checkpoint_slots, places};
use keepq::fault::Storage;

/// How long a mark is, if there is one source.
const MARK: usize = 20;

/// A segment of the queue.
struct SegmentFile {
    name: String,
    bytes: Vec<u8>,
    used: Used,
    /// Each message whose record is whole.
    messages: Vec<(usize, Place)>,
}

impl SegmentFile {
    fn numbers(&self) -> Vec<usize> {
        self.messages.iter().map(|(number, _)| *number).collect()
    }

    fn flip(&mut self, offset: u64) {
        self.bytes[offset as usize] ^= 0x55;
    }
}

impl History {
    pub(super) fn damage(&mut self, is_closed: bool) {
        let Some(segment) = self.some_segment() else { return };
        match self.dice.below(8) {
            0..=2 => self.damage_record(segment),
            3 => self.damage_slot(segment),
            4 | 5 => self.move_away(segment, is_closed),
            6 => self.break_mark(segment),
            _ => self.rot_checkpoint(),
        }
    }

    fn some_segment(&mut self) -> Option<SegmentFile> {
        let segments: Vec<_> =
            files(&*self.disk).into_iter().filter(|(name, _)| is_segment(name)).collect();
        let chosen = self.dice.below(segments.len().max(1) as u64) as usize;
        let (name, bytes) = segments.into_iter().nth(chosen)?;
        let (used, placed) = places(&bytes)?;
        let own = placed.into_iter().map(|(payload, place)| (number(&payload), payload, place));
        let own = own.filter(|(number, payload, _)| self.model.is_payload(*number, payload));
        let messages = own.map(|(number, _, place)| (number, place)).collect();
        Some(SegmentFile { name, bytes, used, messages })
    }

    fn some_message<'a>(&mut self, segment: &'a SegmentFile) -> Option<&'a (usize, Place)> {
        let chosen = self.dice.below(segment.messages.len().max(1) as u64) as usize;
        segment.messages.get(chosen)
    }

    fn write(&mut self, what: &str, segment: SegmentFile) {
        let copy = if segment.used.is_compacted { "copy " } else { "" };
        let (name, numbers) = (&segment.name, segment.numbers());
        self.note(format!("{what} {copy}{name} with {numbers:?}, {:?}", segment.used));
        self.disk.write(&segment.name, segment.bytes);
    }

    fn damage_record(&mut self, mut segment: SegmentFile) {
        let Some((number, place)) = self.some_message(&segment) else { return };
        let (number, at, body) = (*number, place.header, place.header + RECORD_HEADER);
        let end = body + place.body_len;
        if self.model.is_witness(number) || self.model.state(number) == State::Unknown {
            return;
        }
        match self.dice.below(3) {
            0 => segment.bytes[at as usize..end as usize].fill(0),
            1 => segment.flip(body + 3),
            _ => segment.flip(at + 8),
        }
        self.spoiled.entry(segment.name.clone()).or_default().push(number);
        self.write(&format!("damage the record of {number} in"), segment);
        self.model.spoil_record(number);
    }

    fn damage_slot(&mut self, mut segment: SegmentFile) {
        let Some((number, place)) = self.some_message(&segment) else { return };
        let (number, slot) = (*number, place.slot);
        segment.flip(slot + 7);
        self.write(&format!("damage the slot of {number} in"), segment);
        self.model.spoil_slot(number);
    }

    /// Only a file that each valid slot of CHECKPOINT lists, or a copy of files that are all there.
    /// Another one that was made after CHECKPOINT was written, by a run that crashed, is missed by
    /// nobody while it is away. Then the files beside it may be copied across its numbers, and it
    /// may be left out for ever once it is back.
    fn move_away(&mut self, segment: SegmentFile, is_closed: bool) {
        let mut numbers = segment.numbers();
        let stays = |&number: &usize| {
            self.model.is_witness(number) || !is_closed && self.model.is_fresh(number)
        };
        let is_listed = self.is_listed(segment.used.ordinal);
        let may_go = self.is_decided && (is_listed || self.has_all_sources(&segment));
        if numbers.is_empty() || numbers.iter().any(stays) || !may_go {
            return;
        }
        self.note(format!("away: {} with {numbers:?}, {:?}", segment.name, segment.used));
        self.disk.remove(&segment.name).unwrap();
        self.disk.sync_directory().unwrap();
        let range = self.range(&segment);
        numbers.extend(self.spoiled.get(&segment.name).into_iter().flatten());
        self.model.move_away(&segment.name, numbers, range);
        // That something is settled may be said by it alone; or a copy that never counted stands
        // for it, with older states.
        if !is_listed || self.has_unlisted_copy_of(segment.used.ordinal) {
            self.model.forget_settled();
        }
        self.away.insert(segment.name, segment.bytes);
    }

    fn has_all_sources(&self, segment: &SegmentFile) -> bool {
        let used = &segment.used;
        used.is_compacted && !used.sources.is_empty() && !self.lacks_a_source(used)
    }

    fn has_unlisted_copy_of(&self, ordinal: u64) -> bool {
        let all = files(&*self.disk).into_iter().filter(|(name, _)| is_segment(name));
        let mut copies = all.filter_map(|(_, bytes)| places(&bytes).map(|(used, _)| used));
        copies.any(|used| used.sources.contains(&ordinal) && !self.is_listed(used.ordinal))
    }

    fn lacks_a_source(&self, used: &Used) -> bool {
        let has = |source: &u64| self.disk.read(&format!("{source:016x}.seg")).is_some();
        !used.sources.iter().all(has)
    }

    fn is_listed(&self, ordinal: u64) -> bool {
        let Some(checkpoint) = self.disk.read("CHECKPOINT") else { return false };
        let mut valid = checkpoint_slots(&checkpoint).into_iter().flatten().peekable();
        valid.peek().is_some()
            && valid.all(|slot| {
                let mut held = slot.segments.iter().filter(|listed| listed.first_seq > 0);
                held.any(|listed| listed.ordinal == ordinal)
            })
    }

    /// The first and the last Seq of a segment.
    fn range(&self, segment: &SegmentFile) -> Option<[u64; 2]> {
        let used = &segment.used;
        let marks = used.first_seq.zip(used.span).map(|(first, span)| [first, first + span - 1]);
        let held = self.model.range(&segment.numbers());
        let all = marks.into_iter().chain(held);
        all.reduce(|one, other| [one[0].min(other[0]), one[1].max(other[1])])
    }

    pub(super) fn put_some_back(&mut self) {
        let away: Vec<String> = self.away.keys().cloned().collect();
        let some = away.into_iter().filter(|_| self.dice.one_in(2)).collect();
        self.put_back(some);
    }

    /// Those of these files whose names nothing has.
    pub(super) fn put_back(&mut self, names: Vec<String>) {
        for name in names.into_iter().filter(|name| self.disk.read(name).is_none()) {
            let Some(bytes) = self.away.remove(&name) else { continue };
            if places(&bytes).is_some_and(|(used, _)| self.lacks_a_source(&used)) {
                // It stands for what that had, with older states.
                self.model.forget_settled();
            }
            self.disk.write(&name, bytes);
            self.model.put_back(&name);
            self.story.push(format!("back: {name}"));
        }
    }

    /// Breaks a mark of a copy, in both of its pages.
    fn break_mark(&mut self, mut segment: SegmentFile) {
        if !segment.used.is_compacted || !self.is_decided {
            return;
        }
        let mark = [ACTIVATION, SEAL, SOURCES][self.dice.below(3) as usize];
        for page in [0, segment.bytes.len() - PAGE] {
            segment.bytes[page + mark..][..MARK].fill(0);
        }
        let range = self.range(&segment);
        self.write(&format!("break the mark at {mark} of"), segment);
        if let Some(range) = range {
            self.model.spoil_range(&range);
        }
    }

    /// One slot of CHECKPOINT goes bad, if the other one is valid.
    fn rot_checkpoint(&mut self) {
        if !self.is_decided {
            return;
        }
        let Some(mut bytes) = self.disk.read("CHECKPOINT") else { return };
        if checkpoint_slots(&bytes).iter().any(Option::is_none) {
            return;
        }
        let (slot, half) = (self.dice.below(2) as usize, bytes.len() / 2);
        bytes[slot * half..][..half].fill(0);
        self.note(format!("slot {slot} of CHECKPOINT rots"));
        self.disk.write("CHECKPOINT", bytes);
    }

    /// Copies all files aside, or those of the last time over those that are there.
    pub(super) fn back_up_or_overlay(&mut self) {
        match self.dice.below(4) {
            0 if self.backup.is_none() => {
                self.note(format!("a backup of {:?}", self.names()));
                self.backup = Some(files(&*self.disk));
            }
            1 => {
                let Some(mut backup) = self.backup.take() else { return };
                let skips_checkpoint = self.dice.one_in(3);
                backup.retain(|(name, _)| {
                    name != "LOCK" && !(skips_checkpoint && name == "CHECKPOINT")
                });
                self.note(format!("the backup over {:?}", self.names()));
                self.note(format!("without CHECKPOINT: {skips_checkpoint}"));
                for (name, bytes) in backup {
                    self.disk.write(&name, bytes);
                }
                self.model.overlay();
            }
            _ => {}
        }
    }
}
