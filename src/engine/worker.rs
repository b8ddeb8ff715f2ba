//! The background thread: does ahead of need what a push or an ack would otherwise wait for.
//!
//! Promises: it sleeps until asked or due, and ends with the queue. It holds no handle, so it does
//! not keep the queue open. What fails here is tried again when next asked, and kept for `stats`.

use super::compact::RETRY;
use super::{Engine, commit::Scope};
use crate::clock;
use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// So many dying messages are moved in one step.
const BURIED_AT_ONCE: usize = 1024;

/// What the thread is to do next.
#[derive(Debug, Default)]
pub(super) struct Worker {
    asked: Mutex<Asked>,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Asked {
    stop: bool,
    now: bool,
    sync_records_at: Option<Instant>,
    sync_answers_at: Option<Instant>,
    tidy_at: Option<Instant>,
    look_at: Option<Instant>,
    /// How long answers may wait; `None` without a thread, or if they are not synced.
    answers_within: Option<Duration>,
    is_running: bool,
}

/// What is due.
#[derive(Debug)]
struct Due {
    upkeep: bool,
    /// Compaction may have something to do.
    look: bool,
    sync: Option<Scope>,
}

impl Worker {
    /// There is something to prepare or to tidy.
    pub(super) fn ask(&self) {
        let mut asked = self.asked.lock();
        if asked.is_running {
            asked.now = true;
            self.wake.notify_one();
        }
    }

    /// There is something to tidy in a while.
    pub(super) fn ask_within(&self, within: Duration) {
        let mut asked = self.asked.lock();
        if asked.is_running {
            let at = clock::now().checked_add(within);
            asked.tidy_at = [asked.tidy_at, at].into_iter().flatten().min();
            self.wake.notify_one();
        }
    }

    /// Compaction may have something to do in a while.
    pub(super) fn look_within(&self, within: Duration) {
        let mut asked = self.asked.lock();
        if asked.is_running {
            let at = clock::now().checked_add(within);
            asked.look_at = [asked.look_at, at].into_iter().flatten().min();
            self.wake.notify_one();
        }
    }

    /// Whether there is a thread.
    pub(super) fn is_running(&self) -> bool {
        self.asked.lock().is_running
    }

    /// There is a record to be synced within this time.
    pub(super) fn sync_within(&self, within: Duration) {
        let mut asked = self.asked.lock();
        if asked.is_running {
            let at = clock::now().checked_add(within);
            asked.sync_records_at = [asked.sync_records_at, at].into_iter().flatten().min();
            self.wake.notify_one();
        }
    }

    /// There is an answer to be synced.
    pub(super) fn sync_answers(&self) {
        let mut asked = self.asked.lock();
        if let Some(within) = asked.answers_within
            && asked.sync_answers_at.is_none()
        {
            asked.sync_answers_at = clock::now().checked_add(within);
            self.wake.notify_one();
        }
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&self) {
        {
            let mut asked = self.asked.lock();
            asked.stop = true;
            asked.is_running = false;
            asked.answers_within = None;
            self.wake.notify_one();
        }
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the thread has been printed; the queue can be closed all the same.
            thread.join().ok();
        }
    }

    /// Sleeps until something is due; `None` at the end.
    fn next(&self) -> Option<Due> {
        let mut asked = self.asked.lock();
        loop {
            if asked.stop {
                return None;
            }
            let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= clock::now());
            let records = is_due(asked.sync_records_at);
            let answers = is_due(asked.sync_answers_at);
            if is_due(asked.tidy_at) {
                asked.tidy_at = None;
                asked.now = true;
            }
            if records || answers {
                asked.sync_records_at = None;
            }
            if answers {
                asked.sync_answers_at = None;
            }
            let look = is_due(asked.look_at);
            if look {
                asked.look_at = None;
            }
            if asked.now || records || answers || look {
                let sync = match (records, answers) {
                    (_, true) => Some(Scope::Acks),
                    (true, false) => Some(Scope::Records),
                    (false, false) => None,
                };
                return Some(Due { upkeep: std::mem::take(&mut asked.now), look, sync });
            }
            let times =
                [asked.sync_records_at, asked.sync_answers_at, asked.tidy_at, asked.look_at];
            match times.into_iter().flatten().min() {
                Some(at) => {
                    self.wake.wait_until(&mut asked, at);
                }
                None => self.wake.wait(&mut asked),
            }
        }
    }
}

/// Starts the thread of an engine.
pub(super) fn start(engine: &Arc<Engine>) -> Result<()> {
    {
        let mut asked = engine.worker.asked.lock();
        asked.is_running = true;
        // What open found is counted and sealed first.
        asked.now = true;
        asked.answers_within = engine.options.ack_interval();
    }
    if engine.deliver.lock().asks_for_sync() {
        engine.worker.sync_answers();
    }
    let name = engine.directory().file_name().map(|name| name.to_string_lossy().into_owned());
    let for_thread = Arc::clone(engine);
    let thread = thread::Builder::new()
        .name(format!("keepq-{}", name.unwrap_or_default()))
        .spawn(move || run(&for_thread))
        .map_err(|error| Error::io("start thread", &engine.directory(), 0, error))?;
    *engine.worker.thread.lock() = Some(thread);
    Ok(())
}

fn run(engine: &Engine) {
    while let Some(due) = engine.worker.next() {
        engine.health.note_background(engine.run_due(&due));
        if let Some(dead) = engine.open_dead_letters() {
            dead.health.note_background(dead.run_due(&due));
        }
    }
}

impl Engine {
    /// Does what is due, one step of each kind; asks again for what is left, so that a deadline
    /// waits for a step at most. Letting go is one step: it syncs all segments that are done.
    fn run_due(&self, due: &Due) -> Result<()> {
        let synced = match due.sync {
            Some(Scope::Acks) => self.sync().inspect_err(|_| self.deliver.lock().ask_again()),
            Some(_) => {
                // Whoever pushes from here on asks again.
                self.append.lock().sync_within = None;
                self.wait_durable(self.newest_published())
            }
            None => Ok(()),
        };
        if !due.upkeep {
            let compacted = if due.look { self.compact_some() } else { Ok(()) };
            return synced.and(compacted);
        }
        // First what a push may soon wait for. If there is no room for it, or something that is to be let go will
        // serve, the rest of the work may make it.
        // Only an error that is met again then is worth telling.
        self.prepare_ahead().ok();
        let finished = self.finish_old_tail();
        self.drop_idle_maps();
        let has_more = self.sync_oldest_full();
        let can_count = self.deliver.lock().count_some();
        if matches!(can_count, Ok(false)) {
            // What could not be read is tried again the next time.
            self.deliver.lock().count_again();
        }
        if matches!(has_more, Ok(true)) || matches!(can_count, Ok(true)) {
            self.worker.ask();
        }
        let buried = self.bury_some(true, BURIED_AT_ONCE);
        let gone = self.let_segments_go();
        let prepared = self.prepare_ahead();
        // After everything that a push or an answer may wait for.
        let compacted = self.compact_some();
        synced
            .and(finished)
            .and(has_more.map(|_| ()))
            .and(can_count.map(|_| ()))
            .and(buried)
            .and(gone)
            .and(prepared)
            .and(compacted)
    }

    /// A step of compaction, if it is time for one.
    fn compact_some(&self) -> Result<()> {
        let compacted = self.compact_in_background();
        match &compacted {
            Ok(Some(again)) => self.worker.look_within(*again),
            Ok(None) => {}
            Err(_) => self.worker.look_within(RETRY),
        }
        compacted.map(|_| ())
    }
}
