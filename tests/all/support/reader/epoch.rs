//! Which records of one epoch count. From the page: "Reading a queue", 2 to 4, and "Predecessors".

use super::ranges::Ranges;
use super::record::{Record, Records, records};
use super::segment::{Activation, Segment};

/// A segment with its valid records that count.
pub(super) struct Part<'a> {
    pub(super) segment: Segment<'a>,
    pub(super) records: Vec<Record>,
    /// The indexes of transient records of which only the header is whole.
    pub(super) transient: Vec<u64>,
    /// The index of the first record behind the others of which only the header is whole.
    pub(super) broken: Option<u64>,
    /// Records that count, those included that are lost.
    pub(super) count: u64,
    /// Where it is a copy: the sources that are still there.
    pub(super) sources: Vec<Segment<'a>>,
    pub(super) first_seq: u64,
    /// The newest time that it is read for; of a sealed one that is the first.
    pub(super) newest_time: u64,
}

/// Where the log of the last epoch ends before its records do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// The first number that is not part of the log.
    pub(crate) first_seq: u64,
    /// Readable messages behind it.
    pub(crate) dropped: u64,
}

/// What is durable for sure.
#[derive(Clone, Copy)]
pub(super) struct Watermark {
    pub(super) seq: u64,
    /// The segment that was in use when CHECKPOINT noted it, 0 if it did not.
    pub(super) ordinal: u64,
}

pub(super) struct Epoch<'a> {
    pub(super) parts: Vec<Part<'a>>,
    pub(super) cut: Option<Cut>,
    /// Numbers that were durable and have no record.
    pub(super) lost: Ranges,
}

/// What a segment says of the one before it.
struct Link {
    ordinal: u64,
    predecessor: u64,
    first_seq: Option<u64>,
}

impl<'a> Part<'a> {
    /// None if it holds nothing: it was prepared and not used, or dropped.
    pub(super) fn read(segment: Segment<'a>) -> Option<Self> {
        let Activation { first_seq, base_time } = segment.activation?;
        if segment.seal.is_some_and(|seal| seal.count == 0 && !seal.is_end) {
            return None;
        }
        let Records { whole: records, transient, broken } = records(&segment);
        let last = records.last().map_or(0, |last| last.index + 1);
        let count = segment.seal.map_or(last, |seal| seal.count);
        let (sources, newest_time) = (Vec::new(), base_time);
        let mut part =
            Self { segment, records, transient, broken, count, sources, first_seq, newest_time };
        if part.segment.seal.is_none() {
            let times = part.records.iter().map(|record| part.pushed_at(record));
            part.newest_time = times.max().unwrap_or(base_time).max(base_time);
        }
        Some(part)
    }

    pub(super) fn pushed_at(&self, record: &Record) -> u64 {
        let base_time = self.segment.activation.map_or(0, |activation| activation.base_time);
        base_time.saturating_add(record.age)
    }

    /// The Seq behind its last.
    pub(super) fn end_seq(&self) -> u64 {
        let last = self.segment.sources.as_ref().map(|sources| sources.last_seq + 1);
        last.unwrap_or(self.first_seq.saturating_add(self.count))
    }

    /// Of an unsealed segment: the index of the first record that is not part of the log. The place
    /// of each record tells the place of the next.
    fn cut(&self, watermark: u64, witnessed: u64) -> Option<u64> {
        let seq = |index| self.first_seq.saturating_add(index);
        let (mut end, mut batch) = (0, None);
        for record in &self.records {
            if !record.is_next && seq(end) > watermark {
                return Some(batch.unwrap_or(end));
            }
            if !record.is_next {
                batch = None;
            }
            let start = batch.unwrap_or(record.index);
            batch = record.is_followed().then_some(start);
            end = record.index + 1;
        }
        batch.filter(|_| seq(end - 1) > witnessed)
    }

    /// Records up to this Seq were durable, and are missing: what became of them is in their slots,
    /// as far as it has room for those. Gives the Seq behind.
    fn extend(&mut self, last: u64) -> u64 {
        if self.segment.seal.is_none() {
            let most = (self.segment.bytes.len() as u64 - 8192) / 40;
            let count = last.saturating_add(1).saturating_sub(self.first_seq).min(most);
            self.count = self.count.max(count);
        }
        self.end_seq()
    }

    /// The same for one without a seal.
    fn lose_unsealed(&mut self, up_to: u64, lost: &mut Ranges) {
        if self.segment.seal.is_none() && up_to >= self.end_seq() {
            lost.add(self.extend(up_to), up_to);
        }
    }

    fn truncate(&mut self, count: u64) -> u64 {
        let all = self.records.len();
        self.records.retain(|record| record.index < count);
        self.count = count;
        (all - self.records.len()) as u64
    }
}

impl<'a> Epoch<'a> {
    /// `noted`: by CHECKPOINT, of the last one. What counts of any other was durable before a later
    /// one began. `listed`: the last number that CHECKPOINT lists of a segment, and that was
    /// durable.
    pub(super) fn read(
        segments: Vec<Segment<'a>>,
        noted: Option<Watermark>,
        listed: impl Fn(u64) -> u64,
    ) -> Self {
        let link = |segment: &Segment| Link {
            ordinal: segment.ordinal,
            predecessor: segment.predecessor,
            first_seq: segment.activation.map(|activation| activation.first_seq),
        };
        let links: Vec<Link> = segments.iter().map(link).collect();
        let parts: Vec<Part> = segments.into_iter().filter_map(Part::read).collect();
        let of_parts = parts.iter().map(|part| part.witnessed().max(listed(part.segment.ordinal)));
        let witnessed = of_parts.chain(noted.map(|noted| noted.seq)).max().unwrap_or(0);
        let watermark = if noted.is_some() { witnessed } else { u64::MAX };
        let mut epoch = Self { parts: Vec::new(), cut: None, lost: Ranges::default() };
        for mut part in parts {
            let missing = missing_before(&part, epoch.parts.last(), &links, watermark);
            if let (None, Some(before)) = (epoch.cut, epoch.parts.last_mut()) {
                let end = missing.map_or(part.first_seq, |(first, _)| first);
                let last = listed(before.segment.ordinal).min(end.saturating_sub(1));
                before.lose_unsealed(last, &mut epoch.lost);
            }
            if let (None, Some((first, last))) = (epoch.cut, missing) {
                if first > watermark {
                    epoch.cut = Some(Cut { first_seq: first, dropped: 0 });
                } else {
                    let before = epoch.parts.last_mut();
                    let before =
                        before.filter(|one| one.segment.ordinal == part.segment.predecessor);
                    let first = before.map_or(first, |before| before.extend(last));
                    epoch.lost.add(first, last);
                }
            }
            if let Some(cut) = &mut epoch.cut {
                cut.dropped += part.records.len() as u64;
                continue;
            }
            if part.segment.seal.is_none()
                && let Some(count) = part.cut(watermark, witnessed)
            {
                let dropped = part.truncate(count);
                let cut = Cut { first_seq: part.end_seq(), dropped };
                epoch.cut = noted.map(|_| cut);
            }
            epoch.parts.push(part);
        }
        if let Some(last) = epoch.parts.last_mut()
            && epoch.cut.is_none()
        {
            let is_in_use = |noted: &Watermark| noted.ordinal == last.segment.ordinal;
            if noted.as_ref().is_some_and(is_in_use) && watermark >= last.end_seq() {
                let first = last.extend(watermark);
                epoch.lost.add(first, watermark);
            }
            last.lose_unsealed(listed(last.segment.ordinal), &mut epoch.lost);
            let is_broken = last.segment.seal.is_none() && last.broken >= Some(last.count);
            if noted.is_some() && is_broken {
                epoch.cut = Some(Cut { first_seq: last.end_seq(), dropped: 0 });
            }
        }
        epoch
    }
}

impl Part<'_> {
    /// The largest Seq that it witnesses as durable.
    fn witnessed(&self) -> u64 {
        if self.segment.seal.is_some() {
            return self.end_seq().saturating_sub(1);
        }
        let of_records = self.records.iter().filter_map(|record| {
            let before = self.first_seq.saturating_add(record.index).saturating_sub(1);
            Some(before.saturating_sub(record.unsynced()?))
        });
        of_records.max().unwrap_or(0)
    }
}

/// The first and the last of the numbers that are missing between a segment and those before it.
fn missing_before(
    part: &Part,
    previous: Option<&Part>,
    links: &[Link],
    watermark: u64,
) -> Option<(u64, u64)> {
    let last = part.first_seq.checked_sub(1)?;
    let mut before = (part.segment.ordinal, part.segment.predecessor);
    // One that was used was passed, and the smallest first Seq that such a one has.
    let (mut has_passed, mut smallest): (bool, Option<u64>) = (false, None);
    // Ordinals increase in the order in which segments are made, and what is before the last one
    // with records is not followed.
    let stop = previous.map_or(1, |previous| previous.segment.ordinal);
    while (stop..before.0).contains(&before.1) {
        if let Some(previous) = previous.filter(|previous| previous.segment.ordinal == before.1) {
            return (previous.end_seq() <= last).then(|| (previous.end_seq(), last));
        }
        // One that is not here was retired.
        let Some(link) = links.iter().find(|link| link.ordinal == before.1) else { break };
        // One in which nothing was placed begins where the next one does.
        if link.first_seq != Some(part.first_seq) {
            has_passed = true;
            smallest = smallest.into_iter().chain(link.first_seq).min();
        }
        before = (link.ordinal, link.predecessor);
    }
    let first = match smallest {
        Some(first) => first.max(previous.map_or(0, Part::end_seq)),
        None if !has_passed || last <= watermark => return None,
        None => last,
    };
    (first <= last).then_some((first, last))
}
