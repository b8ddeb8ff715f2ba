//! Numbers about a queue, of one moment.
//!
//! Promises: what is counted is counted where it happens, under the lock that is held there anyway; what is
//! told here is derived from that and from the log, so it is right after a crash, and never below zero.

use super::Engine;
use super::deliver::{Counts, Deliver};
use super::track::Track;
use crate::format::bytes::wide;
use crate::format::record;
use crate::format::slot::{SLOT, Slot};
use crate::log::active::Active;
use crate::stats::Stats;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Engine {
    pub(crate) fn stats(&self) -> Stats {
        self.health.note_background(self.count_old_tracks());
        // Those of earlier runs, too, if there are any.
        // Relaxed: whoever makes them the first time comes before or after.
        let has_dead = self.has_dead.load(Ordering::Relaxed);
        let dead = if has_dead { self.dead_letters().ok() } else { None };
        let dead_letters = dead.map_or(0, |dead| {
            dead.health.note_background(dead.count_old_tracks());
            dead.deliver.lock().owed(dead.newest_published())
        });
        let append = self.append.lock();
        let mut deliver = self.deliver.lock();
        let ready = deliver.ready(|| self.newest_visible());
        // Not asked for again below: what becomes due meanwhile would be in neither.
        let (in_flight, delayed) = (deliver.in_flight(), wide(deliver.schedule.delayed()));
        let published = self.newest_published();
        let used = append.active.as_ref().map_or(0, Active::record_bytes);
        let (live_bytes, dead_bytes) = deliver.live_and_dead_bytes(published, used);
        let pushed = append.pushed();
        // What follows may take a while: pushes go on.
        drop(append);
        let oldest = deliver.oldest(published);
        let now = self.clock.now();
        let Counts { popped, redelivered, acked, nacked, released, rejected, .. } = deliver.counts;
        let Counts { lease_expired, purged, expired, dropped, dead_lettered, .. } = deliver.counts;
        let Counts { duplicated, out_of_order, .. } = deliver.counts;
        let stats = Stats {
            ready,
            in_flight,
            delayed,
            dying: deliver.dying.count(),
            dead_letters,
            pushed,
            // Relaxed: a number by itself.
            failed_pushes: self.failed_pushes.load(Ordering::Relaxed),
            popped,
            redelivered,
            acked,
            nacked,
            released,
            rejected,
            lease_expired,
            purged,
            expired,
            dropped,
            dead_lettered,
            lost: deliver.losses.count,
            duplicated,
            out_of_order,
            segments: deliver.segments(),
            segment_bytes: deliver.segment_bytes(),
            disk_bytes: self.space.used(),
            max_bytes: self.space.max(),
            live_bytes,
            reclaimable_bytes: dead_bytes,
            // Relaxed: numbers by themselves.
            taken_bytes: self.taken_bytes.load(Ordering::Relaxed),
            compacted_bytes: self.compacted_bytes.load(Ordering::Relaxed),
            oldest: oldest.map(|time| Duration::from_millis(now.saturating_sub(time))),
            uptime: Duration::from_millis(now - self.clock.start_time()),
            push_time: self.push_times.lock().distribution(),
            waiting_time: deliver.measure.waiting(),
            processing_time: deliver.measure.processing(),
            background_error: self.health.last_background_error(),
        };
        self.unlock(deliver);
        stats
    }

    /// Counts messages whose push failed.
    pub(crate) fn note_failed_pushes(&self, messages: usize) {
        // Relaxed: a number by itself.
        self.failed_pushes.fetch_add(wide(messages), Ordering::Relaxed);
    }
}

impl Deliver {
    /// Bytes that records and slots of owed messages take, and all others. `used`: of the records in the active segment.
    fn live_and_dead_bytes(&self, published: u64, used: u64) -> (u64, u64) {
        let (mut live, mut dead) = (0, 0);
        for track in &self.tracks {
            let owed = track.owed(published);
            let bytes = track.live_record_bytes(used) + owed * SLOT;
            let bytes = if owed == 0 { 0 } else { bytes };
            live += bytes;
            // What is behind the records of a segment that is no longer pushed to is of no use either.
            let slots = u64::from(track.end_index(published)) * SLOT;
            let all = if track.tail.is_some() { track.segment.header.size } else { used + slots };
            dead += all.saturating_sub(bytes);
        }
        (live, dead)
    }

    /// When the oldest message that is owed was pushed, if it can be read.
    fn oldest(&mut self, published: u64) -> Option<u64> {
        let track = self.tracks.iter_mut().find(|track| track.owed(published) > 0)?;
        let base_time = track.base_time;
        let (_, _, header) = track.oldest(published)?;
        Some(base_time + u64::from(header.age))
    }
}

impl Track {
    /// The oldest message that is owed: its index and slot, and its record's header. Goes on from where it last was.
    pub(super) fn oldest(&mut self, published: u64) -> Option<(u32, Slot, record::Header)> {
        let is_old = self.is_old;
        let (end_index, mut floor) = (self.end_index(published), self.floor);
        let mapped = self.map().ok()?.clone();
        let mut previous = None;
        while floor < end_index {
            let slot = mapped.slot(floor).ok()?;
            let Some(settled) = slot.filter(|slot| slot.is_settled(is_old)) else { break };
            previous = settled.offset.map(|offset| (floor, offset)).or(previous);
            floor += 1;
        }
        // One step back, so that the next call knows where it is.
        self.floor = floor.saturating_sub(1);
        let slot = mapped.slot(floor).ok()??;
        let known = slot.offset.and_then(|offset| mapped.header(offset, floor));
        let header = known.or_else(|| {
            let behind = previous.and_then(|(index, offset)| {
                let before = mapped.header(offset, index).filter(|_| index + 1 == floor)?;
                mapped.header(offset + before.record_len(), floor)
            });
            behind.or_else(|| mapped.walk_to(floor).map(|(_, header)| header))
        })?;
        Some((floor, slot, header))
    }
}
