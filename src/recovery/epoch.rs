//! Which records of one epoch count.

use super::damaged::for_each_lost;
use super::part::Part;
use crate::error::Result;
use crate::format::PAGE;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::checkpoint::Checkpoint;
use crate::format::segment::{Activation, RECORDS_START, Seal, most_slots};
use crate::format::slot::SLOT;
use crate::log::Segment;
use crate::log::scan::{Scanned, scan_all};
use crate::report::{Damage, DamageKind, RecoveryReport};
use crate::time::Time;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Up to where the records of an epoch were durable.
#[derive(Clone, Copy, Debug)]
struct Durable {
    /// Every Seq up to here, and every one that is there: all of an epoch before the newest.
    until: u64,
    /// The same as it is witnessed. A batch that is open at the end is torn if it ends behind: the
    /// file was away when its end was looked for.
    witnessed: u64,
}

/// The parts of an epoch that count.
#[derive(Debug)]
pub(super) struct EpochRead {
    pub(super) parts: Vec<Part>,
    pub(super) newest_time: Time,
    /// The next Seq, if the run ended in order.
    pub(super) run_ended_at: Option<u64>,
}

/// A segment that was used, and what tells where its records end.
struct Member<'a> {
    segment: &'a Arc<Segment>,
    activation: Activation,
    content: Content,
}

enum Content {
    Sealed { tail: Offset, count: u32, run_ended: bool },
    Scanned(Scanned),
}

impl Member<'_> {
    fn part(&self, tail: Offset, count: u32, is_sealed: bool) -> Part {
        let segment = Arc::clone(self.segment);
        let Activation { first_seq, base_time } = self.activation;
        Part { segment, first_seq, base_time, count, tail, is_sealed }
    }

    fn damage(
        &self,
        first_index: Index,
        end_index: Index,
        offset: Offset,
        kind: DamageKind,
    ) -> Damage {
        let first_seq = self.activation.first_seq;
        Damage {
            first: first_seq + u64::from(first_index),
            last: first_seq + u64::from(end_index.max(first_index.next())) - 1,
            path: self.segment.path.clone(),
            offset: offset.0,
            kind,
        }
    }

    /// What is lost with the records from `first` to before `end`: from the first message on that
    /// was not settled, to the last one.
    fn loss(&self, first: Index, end: Index, offset: Offset) -> Option<Damage> {
        let mut lost: Option<(Index, Index)> = None;
        for_each_lost(self.segment, (first, end), self.activation.base_time, |from, to| {
            lost = Some((lost.map_or(from, |(first, _)| first), to));
        });
        let (first, end) = lost?;
        Some(self.damage(first, end, offset, DamageKind::Corrupt))
    }
}

/// Reads the segments of an epoch, in order. Only the newest epoch can have a torn end: before a
/// newer one began, all that counts of this one had been synced.
pub(super) fn read(
    segments: &[Arc<Segment>],
    is_newest: bool,
    checkpoint: Option<&Checkpoint>,
    report: &mut RecoveryReport,
) -> Result<EpochRead> {
    let members = members(segments, report)?;
    let end_of_listed = |ordinal| checkpoint.and_then(|known| known.durable_end_of(ordinal));
    let noted = if is_newest {
        checkpoint.map(|known| known.watermark)
    } else {
        // Its W was that of a CHECKPOINT which is gone, but the list has those that were away.
        members.iter().filter_map(|member| end_of_listed(member.segment.header.ordinal)).max()
    };
    let witnessed = witnessed(&members).max(noted.unwrap_or(0));
    let durable = Durable { until: if is_newest { witnessed } else { u64::MAX }, witnessed };
    let watermark = durable.until;
    let mut read = EpochRead { parts: Vec::new(), newest_time: Time::ZERO, run_ended_at: None };
    let mut previous: Option<PartEnd> = None;
    let mut is_cut = false;
    for member in &members {
        // Behind the cut nothing counts, and no gap is looked for.
        if !is_cut {
            let gap = gap_before(member, previous.as_ref(), segments, watermark)?;
            let before = (read.parts.last_mut(), member.activation.first_seq);
            is_cut = tell_missing(before, gap, checkpoint, watermark, report);
        }
        if is_cut {
            read.run_ended_at = None;
            report.dropped += member.records();
            read.parts.push(member.part(RECORDS_START, 0, false));
            continue;
        }
        let part = match &member.content {
            Content::Sealed { tail, count, run_ended } => {
                let next = member.activation.first_seq + u64::from(*count);
                read.run_ended_at = run_ended.then_some(next);
                member.part(*tail, *count, true)
            }
            Content::Scanned(scanned) => {
                read.run_ended_at = None;
                read.newest_time = read.newest_time.max(scanned.newest_time);
                let part = end_of(member, scanned, durable, report);
                is_cut = report.cut.is_some();
                part
            }
        };
        read.newest_time = read.newest_time.max(member.activation.base_time);
        previous = Some(PartEnd::of(&part));
        read.parts.push(part);
    }
    if let Some(part) = read.parts.last_mut().filter(|_| !is_cut) {
        let ordinal = part.segment.header.ordinal;
        let is_in_use = |known: &Checkpoint| is_newest && known.last_used_ordinal() == ordinal;
        let in_use = checkpoint.filter(|known| is_in_use(known)).map_or(0, |_| watermark);
        let last = listed_end(part, checkpoint).max(in_use);
        extend_up_to(part, last, report);
        if let Some(member) = members.last().filter(|_| is_newest) {
            tell_broken_end(member, part, last, report);
        }
    }
    // A segment that was prepared and not used holds nothing; but close removes what was prepared,
    // so the run did not end in order.
    let newest_used = members.last().map(|member| member.segment.header.ordinal);
    let is_newest_used = segments.last().map(|last| last.header.ordinal) == newest_used;
    read.run_ended_at = read.run_ended_at.filter(|_| is_newest_used);
    read.parts.extend(unused_parts(segments, &members));
    read.parts.sort_by_key(|part| part.segment.header.ordinal);
    Ok(read)
}

/// Where the records of a segment end.
struct PartEnd {
    ordinal: Ordinal,
    next_seq: u64,
    path: std::path::PathBuf,
    tail: Offset,
}

impl PartEnd {
    fn of(part: &Part) -> Self {
        let Part { segment, first_seq, count, tail, .. } = part;
        let next_seq = first_seq + u64::from(*count);
        Self { ordinal: segment.header.ordinal, next_seq, path: segment.path.clone(), tail: *tail }
    }

    fn damage(&self, end_seq: u64, kind: DamageKind) -> Damage {
        let path = self.path.clone();
        Damage { first: self.next_seq, last: end_seq - 1, path, offset: self.tail.0, kind }
    }
}

/// Records are missing at the end of a part that were there: they are part of it, so that their
/// slots tell which of them were settled. Gives what is beyond all that it can have.
fn extend(part: &mut Part, gap: Damage, report: &mut RecoveryReport) -> Option<Damage> {
    if part.is_sealed {
        return Some(gap);
    }
    let size = part.segment.header.size;
    let room = (size - PAGE).saturating_sub(part.tail.0) / SLOT;
    let most = room.min(u64::from(most_slots(size)));
    let old = Index(part.count);
    let count = (gap.last + 1).saturating_sub(part.first_seq).min(most).max(u64::from(old));
    let new = Index::saturating_from(count);
    let (mut lost, mut lost_count): (Option<(Index, Index)>, u32) = (None, 0);
    for_each_lost(&part.segment, (old, new), part.base_time, |from, to| {
        lost = Some((lost.map_or(from, |(first, _)| first), to));
        lost_count += to.since(from);
    });
    // None of them was settled: then none need be counted.
    if lost_count == new.since(old) {
        return Some(gap);
    }
    part.count = new.0;
    let seq = |index: Index| part.first_seq + u64::from(index);
    let kind = DamageKind::Corrupt;
    report.damage.extend(lost.map(|(from, to)| Damage {
        first: seq(from),
        last: seq(to) - 1,
        path: gap.path.clone(),
        offset: gap.offset,
        kind,
    }));
    (seq(new) <= gap.last).then(|| Damage { first: seq(new), ..gap })
}

/// A record behind the end of the log was not stored as a whole, or has rotted since, and nothing
/// says that it was durable: Seqs up to `last` were.
fn tell_broken_end(member: &Member<'_>, part: &Part, last: u64, report: &mut RecoveryReport) {
    if let Content::Scanned(Scanned { broken_end: Some((offset, index)), .. }) = &member.content
        && index.0 >= part.count
        && part.first_seq + u64::from(*index) > last
    {
        let durable = Index::saturating_from((last + 1).saturating_sub(part.first_seq));
        let from = durable.max(Index(part.count));
        report.cut = Some(member.damage(from, index.next(), *offset, DamageKind::Torn));
    }
}

/// Tells what is missing at the end of a part, and in the gap between it and the next one, which
/// has this first Seq. Returns true if the log is cut there.
fn tell_missing(
    (part, next_seq): (Option<&mut Part>, u64),
    gap: Option<Damage>,
    checkpoint: Option<&Checkpoint>,
    watermark: u64,
    report: &mut RecoveryReport,
) -> bool {
    let Some(part) = part else { return gap.is_some_and(|gap| !accept(gap, watermark, report)) };
    let end_seq = gap.as_ref().map_or(next_seq, |gap| gap.first);
    extend_up_to(part, listed_end(part, checkpoint).min(end_seq.saturating_sub(1)), report);
    let gap = gap.and_then(|gap| {
        let is_its = gap.first <= watermark && part.segment.path == gap.path;
        if is_its { extend(part, gap, report) } else { Some(gap) }
    });
    gap.is_some_and(|gap| !accept(gap, watermark, report))
}

/// The last Seq that was durable in this part, as far as CHECKPOINT lists it. A seal says more.
fn listed_end(part: &Part, checkpoint: Option<&Checkpoint>) -> u64 {
    let known = checkpoint.filter(|_| !part.is_sealed);
    known.and_then(|known| known.durable_end_of(part.segment.header.ordinal)).unwrap_or(0)
}

/// Seqs up to `last` were durable in this part.
fn extend_up_to(part: &mut Part, last: u64, report: &mut RecoveryReport) {
    let end = PartEnd::of(part);
    if last >= end.next_seq {
        let gap = end.damage(last + 1, DamageKind::Corrupt);
        let rest = extend(part, gap, report);
        report.damage.extend(rest);
    }
}

/// The records that are missing between `previous` and `next`. A segment that is here and holds no
/// record was used all the same if a later one names it as its predecessor. If a predecessor is not
/// here, it was let go, and nothing is missing of it. `segments`: in the order of ordinals.
/// Predecessors are followed as long as each is older than the one before, and no further than to
/// `previous`: so no segment is passed for two members.
fn gap_before(
    next: &Member<'_>,
    previous: Option<&PartEnd>,
    segments: &[Arc<Segment>],
    watermark: u64,
) -> Result<Option<Damage>> {
    let end_seq = next.activation.first_seq;
    let mut before = next.segment.header.older_predecessor().unwrap_or(Ordinal::NONE);
    let mut passed = PassedSegments::default();
    loop {
        if let Some(end) = previous.filter(|end| end.ordinal == before) {
            let is_missing = end.next_seq < end_seq;
            return Ok(is_missing.then(|| end.damage(end_seq, DamageKind::Torn)));
        }
        let at = segments.binary_search_by_key(&before, |segment| segment.header.ordinal);
        let found = at.ok().and_then(|at| segments.get(at));
        let found = found.filter(|_| previous.is_none_or(|end| before > end.ordinal));
        let Some(empty) = found else {
            let from_seq = previous.map_or(0, |end| end.next_seq);
            let end = passed.end(end_seq, watermark);
            let end = end.map(|end| PartEnd { next_seq: end.next_seq.max(from_seq), ..end });
            let missing = end.filter(|end| end.next_seq < end_seq);
            return Ok(missing.map(|end| end.damage(end_seq, DamageKind::Torn)));
        };
        passed.pass(empty, empty.activation()?, end_seq);
        before = empty.header.older_predecessor().unwrap_or(Ordinal::NONE);
    }
}

/// The segments between two parts that are here, were used, and hold no record.
#[derive(Default)]
struct PassedSegments<'a> {
    oldest: Option<&'a Arc<Segment>>,
    /// The smallest Seq with which one of them begins, as far as they still say so.
    first: Option<(u64, &'a Arc<Segment>)>,
}

impl<'a> PassedSegments<'a> {
    /// `end_seq`: the first Seq of what follows. Where nothing was ever placed in a segment, it
    /// begins with that, and has lost nothing.
    fn pass(&mut self, segment: &'a Arc<Segment>, activation: Option<Activation>, end_seq: u64) {
        let first_seq = activation.map(|activation| activation.first_seq);
        if first_seq == Some(end_seq) {
            return;
        }
        self.oldest = Some(segment);
        if let Some(first_seq) = first_seq
            && self.first.is_none_or(|(first, _)| first_seq < first)
        {
            self.first = Some((first_seq, segment));
        }
    }

    /// Where the records before them end: all from the first Seq on that one of them says was in
    /// them. If none says so, what came right before the next segment was in them; but if that was
    /// durable, they held nothing.
    fn end(&self, end_seq: u64, watermark: u64) -> Option<PartEnd> {
        let (next_seq, segment) = match self.first {
            Some(first) => first,
            None if end_seq - 1 <= watermark => return None,
            None => (end_seq - 1, self.oldest?),
        };
        let path = segment.path.clone();
        Some(PartEnd { ordinal: segment.header.ordinal, next_seq, path, tail: Offset::START })
    }
}

/// Returns true if the log goes on behind a gap, because a sync had promised what is missing. Puts
/// the gap into the report.
fn accept(gap: Damage, watermark: u64, report: &mut RecoveryReport) -> bool {
    if gap.first > watermark {
        report.cut = Some(gap);
        return false;
    }
    report.damage.push(Damage { kind: DamageKind::Corrupt, ..gap });
    true
}

fn members<'a>(
    segments: &'a [Arc<Segment>],
    report: &mut RecoveryReport,
) -> Result<Vec<Member<'a>>> {
    let mut used = Vec::new();
    for segment in segments {
        let Some(activation) = segment.activation()? else { continue };
        match segment.seal()? {
            // Dropped by an earlier recovery.
            Some(Seal { count: 0, run_ended: false, .. }) => {}
            seal => used.push((segment, activation, seal)),
        }
    }
    let unsealed = used.iter().filter(|(_, _, seal)| seal.is_none());
    let unsealed: Vec<_> =
        unsealed.map(|&(segment, activation, _)| (segment, activation)).collect();
    let scanned = scan_all(&unsealed)?;
    report.scanned_bytes += scanned.iter().map(|scanned| scanned.read_bytes).sum::<u64>();
    let mut scanned = scanned.into_iter();
    let member = |(segment, activation, seal)| {
        let content = match seal {
            Some(Seal { tail, count, run_ended }) => Content::Sealed { tail, count, run_ended },
            None => Content::Scanned(scanned.next().expect("each unsealed one was scanned")),
        };
        Member { segment, activation, content }
    };
    Ok(used.into_iter().map(member).collect())
}

/// The parts of segments that were never used or were dropped as a whole: they hold nothing.
fn unused_parts(segments: &[Arc<Segment>], members: &[Member<'_>]) -> Vec<Part> {
    let used = members.iter().map(|member| member.segment.header.ordinal);
    let used: BTreeSet<Ordinal> = used.collect();
    let unused = segments.iter().filter(|segment| !used.contains(&segment.header.ordinal));
    let part = |segment: &Arc<Segment>| Part {
        segment: Arc::clone(segment),
        first_seq: 0,
        base_time: Time::ZERO,
        count: 0,
        tail: RECORDS_START,
        is_sealed: true,
    };
    unused.map(part).collect()
}

/// The largest Seq of this epoch that seals and records witness as durable.
fn witnessed(members: &[Member<'_>]) -> u64 {
    let witnessed = members.iter().map(|member| match &member.content {
        Content::Sealed { count, .. } => {
            (member.activation.first_seq + u64::from(*count)).saturating_sub(1)
        }
        Content::Scanned(scanned) => scanned.watermark,
    });
    witnessed.max().unwrap_or(0)
}

impl Member<'_> {
    /// How many readable records it has.
    fn records(&self) -> u64 {
        match &self.content {
            Content::Sealed { count, .. } => (*count).into(),
            Content::Scanned(scanned) => readable(scanned, Index::FIRST),
        }
    }
}

/// How many readable records with at least this index there are.
fn readable(scanned: &Scanned, from_index: Index) -> u64 {
    let lens = scanned
        .stretches
        .iter()
        .map(|stretch| stretch.end_index.since(stretch.first_index.max(from_index)));
    lens.map(u64::from).sum()
}

/// The part of a scanned segment that counts: it ends at the first place above the watermark that
/// has no whole record.
fn end_of(
    member: &Member<'_>,
    scanned: &Scanned,
    durable: Durable,
    report: &mut RecoveryReport,
) -> Part {
    let first_seq = member.activation.first_seq;
    let (mut end, mut end_index) = (RECORDS_START, Index::FIRST);
    let mut open_batch = None;
    for stretch in &scanned.stretches {
        let is_missing = stretch.first_index > end_index;
        // Also if the index is right and the place is not: bytes of a write that failed.
        let is_broken = is_missing || stretch.start != end;
        if is_broken && first_seq + u64::from(end_index) > durable.until {
            let damage = member.damage(end_index, stretch.first_index, end, DamageKind::Torn);
            return finish(member, scanned, (end, end_index), open_batch, damage, report);
        }
        if is_missing {
            report.damage.extend(member.loss(end_index, stretch.first_index, end));
        }
        (end, end_index) = (stretch.end, stretch.end_index);
        let last_seq = first_seq + u64::from(end_index) - 1;
        open_batch = stretch.open_batch.filter(|_| last_seq > durable.witnessed);
    }
    if let Some((offset, index)) = open_batch {
        if durable.until == u64::MAX {
            report.dropped += readable(scanned, index);
            return member.part(offset, index.0, false);
        }
        let damage = member.damage(index, end_index, offset, DamageKind::Torn);
        return finish(member, scanned, (end, end_index), open_batch, damage, report);
    }
    member.part(end, end_index.0, false)
}

fn finish(
    member: &Member<'_>,
    scanned: &Scanned,
    whole: (Offset, Index),
    open_batch: Option<(Offset, Index)>,
    damage: Damage,
    report: &mut RecoveryReport,
) -> Part {
    let (tail, end_index) = open_batch.unwrap_or(whole);
    let first = damage.first.min(member.activation.first_seq + u64::from(end_index));
    report.dropped += readable(scanned, end_index);
    report.cut = Some(Damage { first, offset: tail.0.min(damage.offset), ..damage });
    member.part(tail, end_index.0, false)
}
