//! The background of a queue: does ahead of need what a push or an ack would otherwise wait for.
//!
//! Promises: it does nothing until asked or due, and ends with the queue. It holds no handle, so it
//! does not keep the queue open. One that panicked is not taken for running, and `stats` says so.
//! Does not know what the work is: the caller that starts it says that. Its threads are those of
//! the [`Crew`].

use super::crew::{Client, ClientId, Crew};
use crate::clock;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(test)]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// What a round of syncs covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// The oldest segment that is no longer pushed to.
    OldestFull,
    /// All records.
    Records,
    /// All records and all answers.
    Answers,
}

/// The background of a queue, and what it is to do next.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    agenda: Mutex<Agenda>,
    /// Somebody does what is in the agenda; kept here because it is asked all the time.
    is_running: AtomicBool,
    /// Who does it.
    crew: OnceLock<(Arc<Crew>, ClientId)>,
    /// How often something was due.
    #[cfg(test)]
    rounds: AtomicU64,
}

#[derive(Debug, Default)]
struct Agenda {
    stop: bool,
    upkeep_now: bool,
    upkeep_at: Option<Instant>,
    /// A rest between two steps is over.
    step_at: Option<Instant>,
    sync_records_at: Option<Instant>,
    sync_answers_at: Option<Instant>,
    /// Compaction may have something to do then.
    compact_at: Option<Instant>,
    /// The next time of a message: of a lease, a delay, or an expiry.
    watch_at: Option<Instant>,
    /// How long answers may wait; `None` without a background, or if they are not synced.
    answers_within: Option<Duration>,
    has_panicked: bool,
}

/// A kind of work that may be due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// Something is to be prepared or tidied.
    Upkeep,
    /// What is done in steps is to be gone on with.
    Steps,
    /// Compaction may have something to do.
    Compaction,
    /// The time of a message has come.
    Times,
}

/// What is due.
#[derive(Debug)]
pub(crate) struct Due {
    tasks: Vec<Task>,
    sync: Option<Scope>,
}

impl Due {
    /// What is to be synced.
    pub(crate) fn sync(&self) -> Option<Scope> {
        self.sync
    }

    pub(crate) fn has(&self, task: Task) -> bool {
        self.tasks.contains(&task)
    }

    /// Whether nothing else is due.
    pub(crate) fn is_only(&self, task: Task) -> bool {
        self.sync.is_none() && self.tasks == [task]
    }
}

impl Worker {
    /// There is something to prepare or to tidy.
    pub(crate) fn ask(&self) {
        self.change(|agenda| agenda.upkeep_now = true);
    }

    /// The same in a while.
    pub(crate) fn ask_within(&self, within: Duration) {
        self.change(|agenda| sooner(&mut agenda.upkeep_at, within));
    }

    /// What is done in steps is to be gone on with in a while.
    pub(super) fn step_within(&self, within: Duration) {
        self.change(|agenda| sooner(&mut agenda.step_at, within));
    }

    /// Compaction may have something to do in a while.
    pub(super) fn compact_within(&self, within: Duration) {
        self.change(|agenda| sooner(&mut agenda.compact_at, within));
    }

    /// The time of a message comes at `at`.
    pub(super) fn watch(&self, at: Instant) {
        self.change(|agenda| {
            agenda.watch_at = Some(agenda.watch_at.map_or(at, |known| known.min(at)));
        });
    }

    /// When the next time comes.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> Option<Instant> {
        self.agenda.lock().watch_at
    }

    /// How often something was due.
    #[cfg(test)]
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// There is a record to be synced within this time.
    pub(super) fn sync_within(&self, within: Duration) {
        self.change(|agenda| sooner(&mut agenda.sync_records_at, within));
    }

    /// There is an answer to be synced.
    pub(super) fn sync_answers(&self) {
        self.change(|agenda| {
            if let Some(within) = agenda.answers_within
                && agenda.sync_answers_at.is_none()
            {
                sooner(&mut agenda.sync_answers_at, within);
            }
        });
    }

    /// Whether there is a background.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        // Relaxed: a hint; what is asked of one that has ended is not done.
        self.is_running.load(Ordering::Relaxed)
    }

    /// Whether it is to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.agenda.lock().stop
    }

    /// Whether there was one, until it panicked.
    pub(super) fn has_panicked(&self) -> bool {
        self.agenda.lock().has_panicked
    }

    fn change(&self, change: impl FnOnce(&mut Agenda)) {
        if !self.is_running() {
            return;
        }
        let is_sooner = {
            let mut agenda = self.agenda.lock();
            let before = agenda.next_time();
            change(&mut agenda);
            let after = agenda.next_time();
            after.is_some_and(|after| before.is_none_or(|before| after < before))
        };
        // Without the lock of the agenda, which the crew takes under its own.
        if is_sooner && let Some((crew, id)) = self.crew.get() {
            crew.hurry(*id);
        }
    }

    /// Starts the background, which does `work` whenever something is due; upkeep is due at once.
    /// `answers_within`: how long answers may wait for a sync. `when_panicked` is called if the
    /// work panics, once the background no longer counts as running.
    pub(crate) fn start(
        self: &Arc<Self>,
        answers_within: Option<Duration>,
        work: impl Fn(&Due) + Send + Sync + 'static,
        when_panicked: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<()> {
        {
            let mut agenda = self.agenda.lock();
            // What open found is counted and sealed first.
            agenda.upkeep_now = true;
            agenda.answers_within = answers_within;
        }
        self.is_running.store(true, Ordering::Relaxed);
        let (work, when_panicked) = (Box::new(work), Box::new(when_panicked));
        let background = Background { worker: Arc::clone(self), work, when_panicked };
        let crew = Crew::of_process();
        let enrolled = crew.enroll(Arc::new(background));
        let id = enrolled.inspect_err(|_| self.is_running.store(false, Ordering::Relaxed))?;
        let (crew, id) = self.crew.get_or_init(|| (crew, id));
        // For what was asked before the crew was known here.
        crew.hurry(*id);
        Ok(())
    }

    /// Ends the background, and waits until its work has ended.
    pub(crate) fn stop(&self) {
        self.agenda.lock().stop = true;
        self.is_running.store(false, Ordering::Relaxed);
        if let Some((crew, id)) = self.crew.get() {
            crew.dismiss(*id);
        }
    }
}

/// What the crew knows of a queue.
struct Background {
    worker: Arc<Worker>,
    work: Box<dyn Fn(&Due) + Send + Sync>,
    when_panicked: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Client for Background {
    fn next_time(&self) -> Option<Instant> {
        // One that panicked, or is to end, has none.
        self.worker.is_running().then(|| self.worker.agenda.lock().next_time()).flatten()
    }

    fn work(&self) {
        let Some(due) = self.worker.agenda.lock().take_due(clock::now()) else { return };
        #[cfg(test)]
        self.worker.rounds.fetch_add(1, Ordering::Relaxed);
        // What it was at work on is as whole as after any panic of a user's thread.
        if catch_unwind(AssertUnwindSafe(|| (self.work)(&due))).is_err() {
            self.worker.agenda.lock().has_panicked = true;
            self.worker.is_running.store(false, Ordering::Relaxed);
            (self.when_panicked)();
        }
    }
}

impl Agenda {
    fn take_due(&mut self, now: Instant) -> Option<Due> {
        let take = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let answers = take(&mut self.sync_answers_at);
        let records = take(&mut self.sync_records_at);
        if answers {
            self.sync_records_at = None;
        }
        let sync = match (records, answers) {
            (_, true) => Some(Scope::Answers),
            (true, false) => Some(Scope::Records),
            (false, false) => None,
        };
        let tasks = [
            (Task::Upkeep, take(&mut self.upkeep_at) | std::mem::take(&mut self.upkeep_now)),
            (Task::Steps, take(&mut self.step_at)),
            (Task::Compaction, take(&mut self.compact_at)),
            (Task::Times, take(&mut self.watch_at)),
        ];
        let tasks: Vec<_> =
            tasks.into_iter().filter(|&(_, is_due)| is_due).map(|(task, _)| task).collect();
        let is_due = sync.is_some() || !tasks.is_empty();
        is_due.then_some(Due { tasks, sync })
    }

    fn next_time(&self) -> Option<Instant> {
        let times = [
            self.upkeep_now.then(clock::now),
            self.upkeep_at,
            self.step_at,
            self.sync_records_at,
            self.sync_answers_at,
            self.compact_at,
            self.watch_at,
        ];
        times.into_iter().flatten().min()
    }
}

fn sooner(at: &mut Option<Instant>, within: Duration) {
    let new = clock::now().checked_add(within);
    *at = [*at, new].into_iter().flatten().min();
}
