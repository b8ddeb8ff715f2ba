//! The parts of a directory that count, and the log that goes on from them.
//!
//! Promises: a [`Log`] comes from a [`Reconciled`] alone, and that from a [`Found`] alone, so no
//! record is appended behind a part that was not decided. Relies on the report for what was lost:
//! numbers that are not here and were not settled are never taken for settled.

use super::compacted::{CompactedSegment, Replaced};
use super::damaged::for_each_lost;
use super::epoch;
use super::found::{Found, LEFT_OUT};
use super::leftover::{Kept, Leftover};
use super::lost_numbers::Lost;
use super::order;
use super::part::Part;
use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::format::address::{Index, Ordinal};
use crate::format::checkpoint::{Checkpoint, ConsumerOffset, Listed};
use crate::format::limits::TIME_END;
use crate::format::name;
use crate::format::ordinals::{OrdinalRanges, Ordinals};
use crate::io::boot_id;
use crate::log::Segment;
use crate::ranges::Ranges;
use crate::report::{Damage, DamageKind, Ignored, RecoveryReport};
use crate::time::{Boot, KnownTime, Shift, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// This many lost segments are told of one by one.
const MOST_TOLD: usize = 1000;

/// What counts of a directory.
#[derive(Debug)]
pub(crate) struct Reconciled {
    found: Found,
    parts: Vec<Part>,
    next_seq: u64,
    newest_time: Time,
    report: RecoveryReport,
}

/// The log from which the engine goes on.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) queue_id: [u8; 16],
    /// The newest epoch on disk.
    pub(crate) epoch: u64,
    pub(crate) next_seq: u64,
    pub(crate) last_seq: Option<u64>,
    pub(crate) seq_limit: u64,
    pub(crate) next_ordinal: Ordinal,
    pub(crate) newest_time: Time,
    /// Where the clock of this run begins.
    pub(crate) known_time: KnownTime,
    /// Where that line lies on a boot clock.
    pub(crate) boot: Boot,
    /// How far consumers were: a hint.
    pub(crate) offset: ConsumerOffset,
    /// In the order of the log.
    pub(crate) parts: Vec<Part>,
    /// Copies that have to be merged with their sources before anything else is done.
    pub(crate) replaced: Vec<Replaced>,
    /// Files to remove: half-made ones, and segments that were let go.
    pub(crate) leftovers: Vec<Leftover>,
    /// Segments that are lost: every CHECKPOINT lists them, so that their files stay, or count
    /// again when they are back.
    pub(crate) lost: Vec<Listed>,
    /// Segments that do not count, and never will: every CHECKPOINT says so.
    pub(crate) left_out: Ordinals,
    /// Some of those counted, as far as CHECKPOINT knows.
    pub(crate) leaves_out_more: bool,
    /// Ordinals of segments that may be back: those that no open has seen.
    pub(crate) unseen: OrdinalRanges,
    /// What files that are lost, left out, or what a lost one was made from, take on the disk.
    pub(crate) unusable_bytes: u64,
    pub(crate) checkpoint: CheckpointFile,
    pub(crate) is_new: bool,
    /// There is a directory for dead letters.
    pub(crate) has_dead_letters: bool,
    /// Numbers below `next_seq` that no part has and that were not settled.
    pub(crate) unaccounted: Ranges,
    pub(crate) report: RecoveryReport,
    /// Private, so that nothing but a [`Reconciled`] becomes a log.
    _reconciled: (),
}

impl Reconciled {
    /// Decides what counts.
    pub(crate) fn of(mut found: Found) -> Result<Self> {
        let mut report = std::mem::take(&mut found.report);
        let mut lost = found.to_tell();
        let newest_epoch = found.segments.last().map_or(0, |segment| segment.header.epoch);
        let mut parts: Vec<Part> = Vec::new();
        // Sealed segments tell only their first time.
        let mut newest_time =
            found.checkpoint.as_ref().map_or(Time::ZERO, |known| known.newest_time);
        let mut run_ended = None;
        for group in found.segments.chunk_by(|a, b| a.header.epoch == b.header.epoch) {
            let is_last = group.iter().any(|segment| segment.header.epoch == newest_epoch);
            let read = epoch::read(group, is_last, found.checkpoint.as_ref(), &mut report)?;
            newest_time = newest_time.max(read.newest_time);
            run_ended = read.run_ended_at;
            parts.extend(read.parts);
        }
        let copies = found.compacted.iter().map(CompactedSegment::part).collect::<Vec<_>>();
        let base_times = copies.iter().map(|copy| copy.base_time);
        let newest_time = base_times.fold(newest_time, Time::max).min(Time(TIME_END - 1));
        let (parts, overlapping) = order::by_seq(parts, copies);
        let overlapping_end = overlapping.iter().map(Part::end_seq).max().unwrap_or(0);
        lost.extend(leave_out(&overlapping, &mut found, &mut report));
        report.damage.extend(damage_of(lost, &parts, &found.directory));
        let has_newest = found.unreadable == 0 && !found.lacks_newest();
        let is_empty = found.segments.is_empty() && found.compacted.is_empty();
        report.was_closed = (run_ended.is_some() || is_empty) && has_newest;
        let next_seq = run_ended.filter(|_| has_newest).unwrap_or_else(|| found.seq_limit());
        // Whatever else is said: numbers that are here were given out.
        let here = parts.iter().filter(|part| part.count > 0).map(Part::end_seq).max();
        let next_seq = next_seq.max(here.unwrap_or(0)).max(overlapping_end);
        Ok(Self { found, parts, next_seq, newest_time, report })
    }

    /// The log from which the engine goes on.
    pub(crate) fn into_log(self) -> Result<Log> {
        let Self { found, parts, next_seq, newest_time, report } = self;
        let is_empty = parts.is_empty() && found.unusable.is_empty() && found.checkpoint.is_none();
        if is_empty && found.unreadable > 0 {
            return Err(Error::Corrupt {
                operation: "open",
                path: found.directory.clone(),
                offset: 0,
                reason: "there are segments, but neither a readable header nor a checkpoint says \
                         how far their numbers went; restore one of them, or move them away",
            });
        }
        let seq_limit = found.seq_limit().max(next_seq);
        // The first checkpoint comes after the first segment, and that after the directory is
        // durable in its parents.
        let is_new = found.checkpoint.is_none();
        let noted_time =
            found.checkpoint.as_ref().map_or(Time::ZERO, |known| known.added.clock.time);
        let newest = parts.iter().rev().find(|part| part.count > 0);
        let unaccounted = unaccounted(&found, &parts, next_seq, &report)?;
        let lost = found.lost().collect();
        let unusable_bytes = found.unusable.iter().map(|unusable| unusable.bytes).sum::<u64>();
        let unusable_bytes = unusable_bytes + found.set_aside.bytes();
        let (left_out, unseen) = (found.set_aside.left_out().collect(), found.unseen());
        Ok(Log {
            unaccounted,
            queue_id: found.queue_id,
            epoch: found.newest_epoch(),
            next_seq,
            last_seq: newest.map(|part| part.end_seq() - 1),
            seq_limit,
            next_ordinal: found.next_ordinal(),
            newest_time,
            known_time: KnownTime {
                time: newest_time.max(noted_time),
                shift: newest_shift(&found),
            },
            boot: Boot {
                id: boot_id(),
                anchor: found.checkpoint.as_ref().and_then(|known| known.added.anchor),
            },
            offset: found.checkpoint.as_ref().map(|known| known.added.offset).unwrap_or_default(),
            parts,
            replaced: found.replaced.found,
            leftovers: found.leftovers,
            lost,
            left_out,
            leaves_out_more: found.set_aside.has_more(),
            unseen,
            unusable_bytes,
            checkpoint: found.checkpoint_file,
            is_new,
            has_dead_letters: found.has_dead_letters,
            report,
            _reconciled: (),
        })
    }
}

impl Log {
    /// Leaves numbers out, so that the next one is not below this one.
    pub(crate) fn beginning_at(mut self, first_seq: u64) -> Self {
        if first_seq > self.next_seq {
            self.unaccounted.insert(self.next_seq, first_seq - 1);
            self.next_seq = first_seq;
            self.seq_limit = self.seq_limit.max(first_seq);
        }
        self
    }

    /// The segments that stay while others may come back that have some of their messages: all
    /// copies, since an earlier run may have ended before the removal of their sources was durable;
    /// and those of which there is a copy that was given up.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let mut copies: BTreeMap<Ordinal, Vec<&String>> = BTreeMap::new();
        for Leftover { name, sources, .. } in &self.leftovers {
            for source in sources {
                copies.entry(*source).or_default().push(name);
            }
        }
        let kept = self.parts.iter().map(|part| {
            let Segment { header, sources, .. } = &*part.segment;
            let sources = sources.iter().flat_map(|sources| &sources.ordinals);
            let copies = copies.get(&header.ordinal).into_iter().flatten().copied().cloned();
            let files = sources.map(|source| name::segment(*source)).chain(copies).collect();
            Kept { ordinal: header.ordinal, files }
        });
        kept.filter(|kept| !kept.files.is_empty()).collect()
    }
}

/// How far the time line was ahead of UTC at the end: as CHECKPOINT says, or the newest segment if
/// that was made later.
fn newest_shift(found: &Found) -> Shift {
    let newest = found.segments.last().map(|segment| &segment.header);
    let known = found.checkpoint.as_ref();
    match (newest, known) {
        (Some(newest), Some(known)) if newest.ordinal < known.next_ordinal => {
            known.added.clock.shift
        }
        (Some(newest), _) => newest.clock_shift,
        (None, known) => known.map_or(Shift::default(), |known| known.added.clock.shift),
    }
}

/// Leaves segments out whose numbers others have, for ever. Their files stay; so do those of which
/// they are copies. What no other one has is lost.
fn leave_out(parts: &[Part], found: &mut Found, report: &mut RecoveryReport) -> Vec<Lost> {
    let left_out: BTreeSet<Ordinal> =
        parts.iter().map(|part| part.segment.header.ordinal).collect();
    let is_theirs =
        |replaced: &mut Replaced| left_out.contains(&replaced.copy.segment.header.ordinal);
    for replaced in found.replaced.found.extract_if(.., is_theirs) {
        replaced.sources.iter().for_each(|source| found.set_aside.leave_out(&source.segment));
    }
    found.replaced.by_copy.retain(|_, copy| !left_out.contains(copy));
    let ordinal_of: BTreeMap<&Path, Ordinal> =
        parts.iter().map(|part| (&*part.segment.path, part.segment.header.ordinal)).collect();
    // What was damaged in them is lost with them; and so is what was missing behind them.
    let damaged = report.damage.extract_if(.., |damage| ordinal_of.contains_key(&*damage.path));
    let damaged = damaged.filter(|damage| damage.kind == DamageKind::Corrupt);
    let mut lost: Vec<Lost> = damaged
        .filter_map(|damage| Some((damage.first, damage.last, *ordinal_of.get(&*damage.path)?)))
        .collect();
    lost.extend(parts.iter().map(|part| {
        let (path, reason) = (part.segment.path.clone(), LEFT_OUT);
        report.ignored.push(Ignored { path, reason, is_foreign: false });
        found.set_aside.leave_out(&part.segment);
        (part.first_seq, part.end_seq() - 1, part.segment.header.ordinal)
    }));
    lost
}

/// What is lost of segments that do not count: the numbers that no segment has that does, each told
/// once. The first ones each with its file; of the others those together that no part lies between,
/// so that a list takes no more memory than its bytes on the disk. `kept`: those that count, in
/// order.
fn damage_of(mut lost: Vec<Lost>, kept: &[Part], directory: &Path) -> Vec<Damage> {
    lost.sort_unstable();
    let kept: Vec<&Part> = kept.iter().filter(|part| part.count > 0).collect();
    let (mut told, mut damage) = (0, Vec::<Damage>::new());
    // The place among those that count of what was told last.
    let mut told_at = None;
    for (first, last, ordinal) in lost {
        for_each_gap(&kept, (first.max(told), last), |at, first, last| {
            if damage.len() > MOST_TOLD && told_at == Some(at) {
                damage.last_mut().into_iter().for_each(|others| others.last = last);
                return;
            }
            let is_one = damage.len() < MOST_TOLD;
            let file = is_one.then(|| directory.join(name::segment(ordinal)));
            let path = file.unwrap_or_else(|| directory.to_path_buf());
            damage.push(Damage { first, last, path, offset: 0, kind: DamageKind::Segment });
            told_at = Some(at);
        });
        told = told.max(last + 1);
    }
    damage
}

/// Calls `each` with those of the numbers `first..=last` that no part has, as ranges, and how many
/// parts are before each. `kept`: in order.
fn for_each_gap(kept: &[&Part], (first, last): (u64, u64), mut each: impl FnMut(usize, u64, u64)) {
    let mut from = first;
    let before = kept.partition_point(|part| part.end_seq() <= first);
    for (at, part) in kept.iter().enumerate().skip(before) {
        if part.first_seq > last {
            break;
        }
        if from < part.first_seq {
            each(at, from, part.first_seq - 1);
        }
        from = part.end_seq();
    }
    if from <= last {
        let behind = kept.partition_point(|part| part.first_seq <= last);
        each(behind, from, last);
    }
}

/// Numbers below `next_seq` that no part has and that were not settled: those that CHECKPOINT
/// lists, all that came after it and are not here, and those that are damaged. Without CHECKPOINT,
/// all that are not here.
fn unaccounted(
    found: &Found,
    parts: &[Part],
    next_seq: u64,
    report: &RecoveryReport,
) -> Result<Ranges> {
    let checkpoint = found.checkpoint.as_ref();
    let (mut ranges, accounted) = match checkpoint {
        Some(Checkpoint { unaccounted, accounted, .. }) => (unaccounted.clone(), *accounted),
        None => (Ranges::default(), 0),
    };
    // An open may have decided to skip numbers, and noted them as missing, but ended before it gave
    // out any number behind them. If the reason to skip them was gone later, they were given out
    // after all. A number that is in a segment is not missing.
    for part in parts.iter().filter(|part| part.count > 0 && part.segment.sources.is_none()) {
        ranges.remove(part.first_seq, part.end_seq() - 1);
    }
    // A copy that is back has its numbers again. Of those that it does not have nothing is known
    // any more.
    let is_back = |part: &&Part| {
        let ordinal = part.segment.header.ordinal;
        part.segment.sources.is_some() && checkpoint.is_some_and(|known| known.awaits(ordinal))
    };
    for part in parts.iter().filter(is_back) {
        // What an earlier list noted of those between them may be forgotten: a source had them.
        insert_gaps(&mut ranges, part)?;
        for_each_seq(part, |seq| ranges.remove(seq, seq))?;
    }
    let mut end = accounted + 1;
    for part in parts.iter().filter(|part| part.count > 0) {
        ranges.insert(end, part.first_seq - 1);
        end = end.max(part.end_seq());
        if checkpoint.is_none() && part.segment.sources.is_some() {
            insert_gaps(&mut ranges, part)?;
        }
    }
    ranges.insert(end, next_seq - 1);
    // A segment that has fewer records than when it was listed, or is gone, was damaged since then.
    // An earlier open may have reported that, and ended before it could note it. Of the segments
    // that a copy replaces, all that the copy does not have was settled, or noted as lost, before
    // the copy got its name.
    let used: Vec<&Part> = parts.iter().filter(|part| part.count > 0).collect();
    let listed = checkpoint.iter().flat_map(|checkpoint| checkpoint.used());
    // Of one that is left out, too: its file may be another one than was listed.
    let is_copied = |ordinal| found.replaced.by_copy.contains_key(&ordinal);
    let mut gone = Ranges::default();
    for listed in listed.filter(|listed| !is_copied(listed.ordinal)) {
        let last = checkpoint.map_or(0, |checkpoint| checkpoint.last_seq_of(listed));
        gone.insert(listed.first_seq, last);
    }
    for &Damage { first, last, kind, .. } in &report.damage {
        match kind {
            DamageKind::Segment => gone.insert(first, last),
            DamageKind::Corrupt => insert_lost(&mut ranges, (first, last), &used),
            DamageKind::Torn | DamageKind::Slot | DamageKind::Newer => {}
        }
    }
    // What another segment says of a number counts.
    for part in &used {
        gone.remove(part.first_seq, part.end_seq() - 1);
    }
    gone.iter().for_each(|(first, last)| ranges.insert(first, last));
    // Numbers from `next_seq` on are given out from now on.
    ranges.cut(next_seq);
    Ok(ranges)
}

/// Adds the numbers of a damaged place, without those that were settled.
fn insert_lost(ranges: &mut Ranges, (first, last): (u64, u64), parts: &[&Part]) {
    let before = parts.partition_point(|part| part.first_seq <= first);
    let part = before.checked_sub(1).and_then(|at| parts.get(at));
    let is_in = |part: &&&Part| part.segment.sources.is_none() && last < part.end_seq();
    let Some(part) = part.filter(is_in) else { return ranges.insert(first, last) };
    let index = |seq: u64| Index::saturating_from(seq - part.first_seq);
    for_each_lost(&part.segment, (index(first), index(last + 1)), part.base_time, |from, to| {
        ranges.insert(part.first_seq + u64::from(from), part.first_seq + u64::from(to) - 1);
    });
}

/// Adds the numbers between those that a compacted segment has: they were settled or lost, and
/// nothing says which.
fn insert_gaps(ranges: &mut Ranges, part: &Part) -> Result<()> {
    let mut next = part.first_seq;
    for_each_seq(part, |seq| {
        ranges.insert(next, seq.saturating_sub(1));
        next = seq + 1;
    })
}

/// Calls `each` with the Seqs that a compacted segment has, in order.
fn for_each_seq(part: &Part, mut each: impl FnMut(u64)) -> Result<()> {
    const SLOTS_A_STEP: usize = 4096;
    let step = u32::try_from(SLOTS_A_STEP).unwrap_or(u32::MAX);
    for from in (0..part.count).step_by(SLOTS_A_STEP) {
        let number = step.min(part.count - from);
        let seqs = part.segment.read_seqs(Index(from), number, part.first_seq)?;
        seqs.into_iter().flatten().for_each(&mut each);
    }
    Ok(())
}
