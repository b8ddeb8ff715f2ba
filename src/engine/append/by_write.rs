//! Segments that are written: pushes collect their records, and one thread writes those of all.
//!
//! Promises: records are written in the order of their Seqs, by one thread at a time, and published
//! once they are in the file. Where a write fails, none of its records is in the queue, nor is one
//! that was collected meanwhile: each of their pushes fails, and others get their numbers. What is
//! collected is bounded. Whoever waits for a sync leaves its records to the thread that syncs; a
//! push that is to return without one writes them itself, and first what others have collected.

use super::{Appender, Need, Placed, Promise, Unsealed};
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::log::active::When;
use crate::log::draft::Draft;
use crate::log::stage::{MOST_STAGED, Stage};
use parking_lot::MutexGuard;
use std::io;
use std::sync::atomic::Ordering;

impl Appender {
    /// As [`Appender::append`], to a segment that is written. Gives up the lock first.
    #[cold]
    #[inline(never)]
    pub(super) fn append_by_write(
        &self,
        unsealed: MutexGuard<'_, Unsealed>,
        drafts: &[Draft<'_>],
        need: Need,
        (promise, durable): (Promise, u64),
    ) -> Result<Option<Placed>> {
        drop(unsealed);
        // What has a time or a slot is published at once: others look for it from then on.
        let is_for_later = promise == Promise::Durable
            && need.bytes <= to_u64(MOST_STAGED)
            && self.context.options.message_ttl.is_none()
            && drafts.iter().all(Draft::can_wait);
        if is_for_later {
            loop {
                let mut unsealed = self.unsealed.lock();
                if unsealed.can_collect(need.bytes) {
                    let how = (need, When::Later);
                    let placed = self.place::<true>(&mut unsealed, drafts, how, durable);
                    let has_unwritten = unsealed.next_seq() > unsealed.written_end();
                    if has_unwritten && matches!(placed, Err(Error::Full { .. })) {
                        // What is collected counts, and can be dropped only once it is published.
                        drop(unsealed);
                        self.write_staged().ok();
                        continue;
                    }
                    if let Ok(Some(_)) = placed {
                        // Relaxed, here and below: a hint for `collected`.
                        self.collected.fetch_add(need.records, Ordering::Relaxed);
                    }
                    let asks = unsealed.takes_to_ask();
                    drop(unsealed);
                    if asks {
                        self.context.worker.ask();
                    }
                    return placed;
                }
                drop(unsealed);
                // Those whose records they are hear of a failure.
                self.write_staged().ok();
            }
        }
        let mut staged = self.writing.lock();
        let mut unsealed = self.unsealed.lock();
        let (written, consumers) = self.write_out(&mut unsealed, &mut staged);
        let has_failed = written.is_err();
        let how = (need, When::Now);
        let placed = written.and_then(|()| self.place::<true>(&mut unsealed, drafts, how, durable));
        match &placed {
            Ok(Some(placed)) if placed.refused().is_none() => {
                self.publish_placed(unsealed, staged, drafts, promise);
            }
            _ => drop((unsealed, staged)),
        }
        self.context.waiters.tell_written(has_failed, consumers);
        let placed = placed?;
        match placed.as_ref().and_then(Placed::refused) {
            Some(refused) => Err(self.context.health.refuse(refused)),
            None => Ok(placed),
        }
    }

    /// About how many records wait to be written.
    pub(crate) fn collected(&self) -> u64 {
        self.collected.load(Ordering::Relaxed)
    }

    /// Writes what is collected, and publishes it.
    ///
    /// # Errors
    ///
    /// If that fails: then all whose records it was hear of it.
    pub(crate) fn write_staged(&self) -> Result<()> {
        let mut staged = self.writing.lock();
        let begun = {
            let mut unsealed = self.unsealed.lock();
            self.collected.store(0, Ordering::Relaxed);
            unsealed.begin_write(&mut staged)
        };
        let Some(region) = begun else { return Ok(()) };
        // Without the lock: others are collected meanwhile.
        let written = staged.write_to(&*region);
        let mut unsealed = self.unsealed.lock();
        let (written, consumers) = self.end_write(&mut unsealed, &mut staged, written);
        drop((unsealed, staged));
        self.context.waiters.tell_written(written.is_err(), consumers);
        written
    }

    /// The same under the locks. Gives also how many consumers are to be woken.
    pub(super) fn write_out(
        &self,
        unsealed: &mut Unsealed,
        staged: &mut Stage,
    ) -> (Result<()>, u64) {
        let Some(region) = unsealed.begin_write(staged) else { return (Ok(()), 0) };
        self.collected.store(0, Ordering::Relaxed);
        let written = staged.write_to(&*region);
        self.end_write(unsealed, staged, written)
    }

    fn end_write(
        &self,
        unsealed: &mut Unsealed,
        staged: &mut Stage,
        written: io::Result<()>,
    ) -> (Result<()>, u64) {
        let ended = unsealed.end_write(staged, written);
        let last_seq = unsealed.written_end() - 1;
        let records = last_seq - self.published.newest();
        (ended, self.publish(last_seq, records))
    }
}
