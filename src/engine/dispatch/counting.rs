//! Taking up what earlier runs left, as their slots are counted.
//!
//! Promises: what a counted slot says is taken up once, also if a store that it needs fails: that
//! is kept, and tried again by the next call.

use super::Dispatch;
use super::dying::Death;
use super::progress::Unfinished;
use crate::engine::backlog::Spot;
use crate::error::Result;
use crate::format::slot::State;
use crate::format::standing::Standing;

/// Such messages settled under one lock.
const STEP: usize = 256;

impl Dispatch {
    /// What could not be read may be readable now.
    pub(crate) fn count_again(&mut self) {
        self.backlog.tracks_mut().count_again();
    }

    /// Whether counting found what could not be stored.
    pub(crate) fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Counts some slots of earlier runs; false once all are counted.
    pub(crate) fn count_some(&mut self) -> Result<bool> {
        if !self.unfinished.is_empty() {
            self.finish_some()?;
            return Ok(true);
        }
        let Some(at) = self.backlog.tracks().first_uncounted() else { return Ok(false) };
        self.count_some_of(at)?;
        Ok(true)
    }

    /// Counts some slots of a segment, and takes up what they say.
    pub(super) fn count_some_of(&mut self, at: usize) -> Result<()> {
        let special = self.backlog.count_some(at)?;
        let ordinal = self.backlog.tracks()[at].ordinal();
        self.add_settled(special.settled.into());
        self.news.settled |= special.settled > 0;
        self.news.upkeep |= self.backlog.tracks()[at].is_done();
        for lost in special.lost {
            self.backlog.note_lost_numbers(lost, lost);
        }
        for (due, seq) in special.delayed {
            self.schedule.put(due, seq);
        }
        let unnumbered = special.unnumbered.into_iter();
        self.unfinished.extend(unnumbered.map(|index| Unfinished::Unnumbered { ordinal, index }));
        let bad_slots = special.bad_slots.into_iter();
        self.unfinished.extend(bad_slots.map(|index| Unfinished::BadSlot { ordinal, index }));
        for seq in special.dying {
            if self.policy.has_dead_letters {
                self.dying.insert(seq, Death { cause: None, reason: None });
                self.news.died = true;
            } else {
                self.unfinished.push(Unfinished::Dropped { seq });
            }
        }
        self.finish_some()
    }

    fn spot(&self, ordinal: u64, index: u32) -> Option<Spot> {
        let mut tracks = self.backlog.tracks().iter();
        tracks.position(|track| track.ordinal() == ordinal).map(|at| Spot { at, index })
    }

    /// Rebuilds a slot before any message of its segment is handed out in this run: if the delay
    /// beside it can be read, it is taken up.
    fn rebuild_counted(&mut self, spot: Spot) -> Result<()> {
        if self.status(spot)?.standing == Standing::Unreadable {
            self.backlog.rebuild_slot(spot)?;
            let status = self.status(spot)?;
            if let (Standing::Scheduled(due), Some(seq)) = (status.standing, status.seq) {
                self.schedule.put(due, seq);
            }
        }
        Ok(())
    }

    /// Settles some of what counting found.
    fn finish_some(&mut self) -> Result<()> {
        for _ in 0..STEP {
            let Some(&unfinished) = self.unfinished.last() else { return Ok(()) };
            match unfinished {
                Unfinished::Unnumbered { ordinal, index } => {
                    if let Some(spot) = self.spot(ordinal, index) {
                        self.lose(spot, 0)?;
                    }
                }
                Unfinished::BadSlot { ordinal, index } => {
                    if let Some(spot) = self.spot(ordinal, index) {
                        self.rebuild_counted(spot)?;
                    }
                }
                Unfinished::Dropped { seq } => {
                    if let Some(found) = self.look_up(seq)?
                        && self.settle(found.spot, &found.place, State::Dead)?
                    {
                        self.counts.dropped += 1;
                    }
                }
            }
            self.unfinished.pop();
        }
        Ok(())
    }
}
