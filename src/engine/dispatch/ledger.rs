//! The ledger: what is stored of each message, and where it is. The two change together.
//!
//! Promises: [`Ledger::settle`] is the only way to settle a message, and [`Ledger::lose`] to settle
//! one that is damaged: they look at the slot first, so no message is settled twice, and take the
//! message out of wherever it is. What others have to hear of is noted with the change. Waits for
//! no I/O.

use super::dying::Death;
use super::exchange::unsettled_state;
use super::expiry::Expiry;
use super::news::{Event, News};
use super::places::{Places, TakenOut, Whereabouts};
use super::policy::Policy;
use crate::clock::Clock;
use crate::engine::backlog::cursor::Cursor;
use crate::engine::backlog::settled_count::Recount;
use crate::engine::backlog::track::Stored;
use crate::engine::backlog::{Backlog, FoundMessage, Spot};
use crate::engine::context::Context;
use crate::engine::published::Published;
use crate::engine::settled_total::SettledTotal;
use crate::engine::waiters::Waiters;
use crate::error::{Error, Result};
use crate::format::address::{Index, Offset};
use crate::format::extension::Verified;
use crate::format::slot::{Delay, Slot, State};
use crate::format::standing::{Run, Standing};
use crate::leases::Place;
use crate::log::sealed::Status;
use crate::recovery::Log;
use crate::report::DamageKind;
use crate::stats::Counts;
use crate::time::Time;
use std::ops::Range;
use std::sync::Arc;

/// The stored messages, and their places.
#[derive(Debug)]
pub(crate) struct Ledger {
    backlog: Backlog,
    places: Places,
    expiry: Expiry,
    counts: Counts,
    policy: Policy,
    clock: Arc<Clock>,
    waiters: Arc<Waiters>,
    /// What others have to be told once the lock is given up.
    news: News,
    /// How many slots were found or made settled in this run: for producers.
    settled_total: SettledTotal,
    published: Arc<Published>,
    is_closed: bool,
}

impl Ledger {
    pub(super) fn new(log: &Log, context: &Context, published: &Arc<Published>) -> Self {
        let Context { options, run, clock, waiters, .. } = context;
        let most_maps = most_maps(options.open_segments, options.segment_limit(), ADDRESS_SPACE);
        let backlog = Backlog::new(log, *run, most_maps);
        Self {
            places: Places::new(Cursor::hinted(backlog.tracks(), log.offset)),
            backlog,
            expiry: Expiry::new(options, !log.parts.is_empty()),
            counts: Counts::default(),
            policy: Policy::of(options),
            clock: Arc::clone(clock),
            waiters: Arc::clone(waiters),
            news: News::default(),
            settled_total: SettledTotal::default(),
            published: Arc::clone(published),
            is_closed: false,
        }
    }

    /// From here on no message is handed out or answered.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Gives up maps and all that is known of messages.
    pub(super) fn clear(&mut self) {
        self.backlog.clear();
        self.places = Places::new(Cursor::START);
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        !self.is_closed
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// The newest message.
    pub(super) fn newest(&self) -> u64 {
        self.published.newest()
    }

    #[inline]
    pub(crate) fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    #[inline]
    pub(crate) fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    #[inline]
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    #[inline]
    pub(crate) fn places_mut(&mut self) -> &mut Places {
        &mut self.places
    }

    pub(crate) fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    pub(crate) fn expiry_mut(&mut self) -> &mut Expiry {
        &mut self.expiry
    }

    #[inline]
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    #[inline]
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    #[inline]
    pub(crate) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    #[inline]
    pub(super) fn news(&self) -> &News {
        &self.news
    }

    #[inline]
    pub(super) fn news_mut(&mut self) -> &mut News {
        &mut self.news
    }

    /// How many slots were found or made settled in this run, for producers.
    pub(crate) fn settled_total(&self) -> &SettledTotal {
        &self.settled_total
    }

    /// Messages that can be handed out, and those that wait for their time, of one moment.
    pub(crate) fn ready_and_delayed(&self, published: &Published) -> (u64, u64) {
        let now = self.clock.now();
        let (delayed, visible) = (self.places.delayed_at(now), published.visible());
        // Those that are held back are not ready, delayed or not.
        let is_all = visible == published.newest();
        let shown = if is_all { delayed } else { self.places.delayed_up_to(visible, now) };
        let elsewhere = shown + self.places.elsewhere();
        (self.backlog.unsettled(visible).saturating_sub(elsewhere), delayed)
    }

    /// Settles a message, wherever it is; false if it was settled already.
    pub(crate) fn settle(&mut self, spot: Spot, place: &Place, state: State) -> Result<bool> {
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (state, place.attempts), record)?;
        self.take_out(spot, place.seq);
        Ok(self.note_settled(spot, Some(place.seq), stored))
    }

    /// The same for one whose lease has just ended, before its time: it is in no other place.
    #[inline]
    pub(super) fn settle_answered(&mut self, spot: Spot, place: &Place) -> Result<bool> {
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (State::Dead, place.attempts), record)?;
        Ok(self.note_settled(spot, Some(place.seq), stored))
    }

    /// Settles a message that is damaged, wherever it is; false if it was settled already.
    /// `offset`: where its record is, or was sought. Where its slot may be damaged, too:
    /// `repair::lose`.
    pub(crate) fn lose(&mut self, spot: Spot, offset: Offset) -> Result<bool> {
        let track = self.backlog.track_at(spot.at);
        let seq = track.records().seq(spot.index)?;
        let header = track.map()?.header(offset, spot.index);
        let record = header.map(|header| (offset, header.bytes()));
        let stored = self.backlog.store(spot, (State::Lost, 0), record)?;
        match seq {
            Some(seq) => self.take_out(spot, seq),
            None => self.note_head_changed(),
        }
        let is_new = self.note_settled(spot, seq, stored);
        if is_new {
            self.backlog.note_loss(spot, offset);
        }
        Ok(is_new)
    }

    /// Settles a message that waits and whose body was not verified; false if only a newer version
    /// of keepq can read it: it is set aside.
    pub(super) fn settle_unread(&mut self, found: &FoundMessage) -> Result<bool> {
        let FoundMessage { spot, ref place, ref header, .. } = *found;
        let mapped = self.backlog.track_at(spot.at).map()?;
        if mapped.may_be_newer(header, place.offset) {
            match header.verify(&mapped.body(header, place.offset)) {
                Verified::Newer => {
                    self.set_aside(spot, place);
                    return Ok(false);
                }
                Verified::Damaged => return self.lose(spot, place.offset).map(|_| false),
                Verified::Payload(_) => {}
            }
        }
        self.settle(spot, place, State::Dead)
    }

    /// Messages side by side, up to the end of whose records it is so many bytes, were settled by
    /// their holders, in their time: counts them, and has others told.
    #[inline(always)]
    pub(super) fn note_acked(
        &mut self,
        at: usize,
        indexes: Range<Index>,
        first_seq: u64,
        bytes: u64,
    ) {
        let number = indexes.end - indexes.start;
        let track = self.backlog.note_changes(at, indexes.clone());
        track.note_answered(number);
        self.news.note_if(track.note_settled(indexes, bytes), Event::Reclaims);
        self.news.note_if(track.is_done(), Event::Upkeep);
        let number = u64::from(number);
        self.settled_total.add(number);
        self.counts.acked += number;
        self.news.note_room(&self.waiters);
        if self.waiters.settled.has_waiters() {
            self.news.note_settled(first_seq..first_seq + number);
        }
    }

    /// Counts what a store settled, and has others told of it.
    #[inline]
    fn note_settled(&mut self, spot: Spot, seq: Option<u64>, stored: Stored) -> bool {
        let Stored::Settled { wakes_compaction } = stored else { return false };
        self.news.note_if(wakes_compaction, Event::Reclaims);
        self.settled_total.add(1);
        self.news.note_room(&self.waiters);
        self.news.note_if(self.backlog.track_at(spot.at).is_done(), Event::Upkeep);
        if self.waiters.settled.has_waiters() {
            match seq {
                Some(seq) => self.news.note_settled(seq..seq + 1),
                None => self.news.note(Event::SettledUnknown),
            }
        }
        true
    }

    /// Counts all slots of a segment again that were counted, because some went bad.
    pub(super) fn recount(&mut self, at: usize) -> Result<Recount> {
        let recount = self.backlog.recount(at, self.published.newest())?;
        self.settled_total.take_back(recount.fewer.into());
        Ok(recount)
    }

    /// This many slots of a segment were found settled.
    pub(super) fn note_found_settled(&mut self, at: usize, slots: u32) {
        self.settled_total.add(slots.into());
        if slots > 0 {
            self.news.note_room(&self.waiters);
        }
        self.news.note_if(self.backlog.tracks()[at].is_done(), Event::Upkeep);
    }

    /// Takes a message out of wherever it is: perhaps from the front.
    pub(super) fn take_out(&mut self, spot: Spot, seq: u64) {
        self.note_head_changed();
        if self.places.take_out(seq) == TakenOut::Everywhere {
            return;
        }
        let status = self.status(spot);
        let times =
            status.as_ref().map_or([None; 2], |status| times_of(self.backlog.run(), seq, status));
        // A time that cannot be read is sought by the number; that is slow, and damage is rare.
        if !self.places.unschedule(seq, times) && self.backlog.has_unreadable_delay(spot) {
            self.places.schedule_mut().remove_seq(seq);
        }
    }

    /// What the slot of a message says.
    pub(crate) fn status(&self, spot: Spot) -> Result<Status> {
        let run = self.backlog.run();
        self.backlog.track_at(spot.at).status(spot.index, run)
    }

    /// Where message `seq` is, as far as memory knows: its slot, or the delay in it, is damaged.
    #[cold]
    pub(super) fn find_in_places(&self, spot: Spot, seq: u64) -> Option<Whereabouts> {
        let status =
            if self.backlog.has_unreadable_delay(spot) { None } else { self.status(spot).ok() };
        let times = status.map(|status| times_of(self.backlog.run(), seq, &status));
        self.places.find(seq, times, self.backlog.track_at(spot.at).leased() > 0)
    }

    /// Where message `seq` is, of which `status` is said.
    pub(crate) fn whereabouts(&self, spot: Spot, seq: u64, status: &Status) -> Whereabouts {
        // A damaged slot does not tell. What is in no place is ready, or will be.
        let is_lost = status.standing == Standing::Unreadable;
        if is_lost || self.backlog.has_unreadable_delay(spot) {
            let known = self.find_in_places(spot, seq);
            if let Some(known) = known.or_else(|| is_lost.then_some(Whereabouts::Ready)) {
                return known;
            }
        }
        let is_counted = self.backlog.track_at(spot.at).is_counted_at(spot.index);
        let times = times_of(self.backlog.run(), seq, status);
        match self.places.of(seq, status.standing, times, is_counted) {
            Whereabouts::Delayed(due) if self.clock.is_past(due) => Whereabouts::Ready,
            whereabouts => whereabouts,
        }
    }

    /// Where a message is that was found.
    pub(crate) fn whereabouts_of(&self, found: &FoundMessage) -> Result<Whereabouts> {
        let status = self.status(found.spot)?;
        let status = Status { standing: found.standing, ..status };
        Ok(self.whereabouts(found.spot, found.place.seq, &status))
    }

    /// Whether a message may be in flight: its segment has deliveries, and its slot does not say
    /// where it waits.
    pub(crate) fn may_be_in_flight(&self, spot: Spot) -> Result<bool> {
        if self.backlog.track_at(spot.at).leased() == 0 {
            return Ok(false);
        }
        let status = self.status(spot)?;
        let Some(seq) = status.seq else {
            let ordinal = self.backlog.track_at(spot.at).ordinal();
            return Ok(self.places.leases().has_at(ordinal, spot.index));
        };
        Ok(self.whereabouts(spot, seq, &status) == Whereabouts::InFlight)
    }

    /// At the front again.
    pub(super) fn give_back(&mut self, place: Place) {
        self.places.put_back(place);
        self.note_head_changed();
        self.news.note(Event::Returned);
    }

    /// Another message is at the front now, or may be: it is looked at soon.
    #[inline(always)]
    pub(crate) fn note_head_changed(&mut self) {
        self.expiry.note_head_changed(&self.clock);
    }

    /// A message that is in no place, or waits, dies; without dead letters it is settled.
    pub(crate) fn die(&mut self, spot: Spot, place: &Place, death: Death) -> Result<()> {
        if !self.policy.has_dead_letters {
            let is_new = self.settle(spot, place, State::Dead)?;
            self.counts.dropped += u64::from(is_new);
            return Ok(());
        }
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (State::Dying, place.attempts), record)?;
        self.take_out(spot, place.seq);
        if stored == Stored::WasSettled {
            return Ok(());
        }
        self.note_dying(place.seq, death);
        Ok(())
    }

    /// Its slot says that it is dying.
    pub(super) fn note_dying(&mut self, seq: u64, death: Death) {
        self.places.dying_mut().insert(seq, death);
        self.news.note(Event::Died);
    }

    /// Takes a message out of wherever it is whose record only a newer version of keepq can read:
    /// it is not handed out, and stays stored as it is.
    pub(crate) fn set_aside(&mut self, spot: Spot, place: &Place) {
        self.take_out(spot, place.seq);
        self.places.set_aside(place.seq);
        self.backlog.list_damage(spot, place.offset, DamageKind::Newer);
    }

    /// Stores a delay; if that fails, it holds in this run all the same.
    pub(super) fn store_delay(&mut self, spot: Spot, seq: u64, delay: Delay) -> Result<()> {
        let stored = self.backlog.store_delay(spot, delay);
        if stored.is_err() {
            self.places.note_untold(seq, delay.due);
        }
        stored
    }

    /// Stores that a message waits. False if it is settled: then nothing is stored.
    pub(super) fn store_unsettled(&mut self, spot: Spot, place: &Place) -> Result<bool> {
        let (state, attempts) = (unsettled_state(place), place.attempts);
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (state, attempts), record)?;
        Ok(stored != Stored::WasSettled)
    }
}

/// The times for which a message may be in the schedule, as its slot says.
fn times_of(run: Run, seq: u64, status: &Status) -> [Option<Time>; 2] {
    let as_if_ready = Some(Slot::UNTOUCHED);
    let first = match Standing::of(as_if_ready, status.delay, run.is_old(seq), run) {
        Standing::Scheduled(due) => Some(due),
        _ => None,
    };
    [status.delay.map(|delay| delay.due), first]
}

/// The bytes that the maps of a queue, and those of its dead letters, may take each: 512 MiB where
/// addresses have 32 bits, of which a process has 2 to 4 GiB for all that it does.
const ADDRESS_SPACE: u64 = if cfg!(target_pointer_width = "32") { 512 << 20 } else { u64::MAX };

/// How many segments of this size may be mapped at a time: as the options say, but no more than
/// there are addresses for.
fn most_maps(open_segments: u64, segment_bytes: u64, address_space: u64) -> usize {
    let most = open_segments.min(address_space / segment_bytes.max(1)).max(1);
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::most_maps;

    #[test]
    fn maps_take_no_more_addresses_than_there_are() {
        assert_eq!(most_maps(64, 64 << 20, u64::MAX), 64);
        assert_eq!(most_maps(64, 64 << 20, 512 << 20), 8);
        assert_eq!(most_maps(64, 4 << 30, 512 << 20), 1);
        assert_eq!(most_maps(4, 64 << 10, 512 << 20), 4);
    }
}
