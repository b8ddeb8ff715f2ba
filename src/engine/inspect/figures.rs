//! Numbers about a queue, of one moment.
//!
//! Promises: events are counted where they happen, under the lock that is held there anyway. The
//! numbers here come from those counts and from the log, so they are right after a crash, and never
//! below zero.

use super::{Inspect, Others};
use crate::engine::backlog::records::Search;
use crate::engine::backlog::track::Track;
use crate::engine::dispatch::Dispatch;
use crate::format::bytes::to_u64;
use crate::stats::Stats;
use crate::time::Time;

impl Inspect {
    pub(crate) fn stats(&self, others: &Others) -> Stats {
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        let ledger = dispatch.ledger();
        let (ready, delayed) = ledger.ready_and_delayed(&self.published);
        let in_flight = ledger.places().in_flight();
        let published = self.published.newest();
        let (used, pushed) = (unsealed.active_record_bytes(), unsealed.pushed());
        // What follows may take a while: pushes go on.
        drop(unsealed);
        let (live_bytes, dead_bytes) = live_and_dead_bytes(&dispatch, published, used);
        let now = self.context.clock.now();
        let offset = dispatch.consumer_offset();
        let tracks = dispatch.backlog().tracks();
        let Others { dead_letters, failed_pushes, push_time } = *others;
        let space = &self.context.space;
        let stats = Stats {
            ready,
            in_flight,
            delayed,
            dying: dispatch.ledger().places().dying().count(),
            set_aside: dispatch.ledger().places().count_set_aside(),
            dead_letters,
            pushed,
            failed_pushes,
            counts: *dispatch.ledger().counts(),
            lost: dispatch.backlog().losses().count(),
            floor: offset.floor,
            cursor: offset.cursor,
            segments: to_u64(tracks.len()),
            segment_bytes: tracks.iter().map(Track::size).sum(),
            disk_bytes: space.used(),
            max_bytes: space.max(),
            live_bytes,
            reclaimable_bytes: dead_bytes,
            taken_bytes: self.appender.taken_bytes(),
            compacted_bytes: self.reclaim.compactor().compacted_bytes(),
            oldest: None,
            uptime: now.since(self.context.clock.start_time()).into(),
            push_time,
            waiting_time: dispatch.deliveries().measure().waiting(),
            processing_time: dispatch.deliveries().measure().processing(),
            background_error: self.background_error(),
        };
        drop(dispatch);
        let oldest = self.oldest(published).map(|time| now.since(time).into());
        Stats { oldest, ..stats }
    }

    /// When the oldest message that is not settled was pushed, if it can be read.
    fn oldest(&self, published: u64) -> Option<Time> {
        loop {
            match self.look_for_oldest(published)? {
                (_, Search::More) => {}
                (_, Search::Nothing) => return None,
                (base_time, Search::Found(oldest)) => {
                    return Some(oldest.header()?.pushed_at(base_time));
                }
            }
        }
    }

    /// A step of that, and the base time of its segment.
    fn look_for_oldest(&self, published: u64) -> Option<(Time, Search)> {
        let dispatch = self.dispatch.lock();
        let mut tracks = dispatch.backlog().tracks().iter();
        let track = tracks.find(|track| track.unsettled(published) > 0)?;
        Some((track.base_time(), track.records().oldest(published)))
    }

    fn background_error(&self) -> Option<String> {
        if self.context.worker.has_panicked() {
            let text = "the background thread panicked: its work is done by `maintain` only";
            return Some(text.to_string());
        }
        self.context.health.last_background_error()
    }
}

/// Bytes that records and slots of unsettled messages take, and all others. `used`: of the records
/// in the active segment.
fn live_and_dead_bytes(dispatch: &Dispatch, published: u64, used: u64) -> (u64, u64) {
    let tracks = dispatch.backlog().tracks().iter();
    tracks
        .map(|track| track.live_and_dead_bytes(published, used))
        .fold((0, 0), |(live, dead), (more_live, more_dead)| (live + more_live, dead + more_dead))
}
