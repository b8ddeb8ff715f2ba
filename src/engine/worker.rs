//! The background thread: does ahead of need what a push or an ack would otherwise wait for.
//!
//! Promises: it sleeps until asked or due, and ends with the queue. It holds no handle, so it does
//! not keep the queue open. A thread that panicked is not taken for running, and `stats` says so.
//! Does not know what the work is: the caller that starts it says that.

use crate::clock;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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

/// The thread of a queue, and what it is to do next.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    agenda: Mutex<Agenda>,
    /// The same as in the agenda; kept here because it is asked all the time.
    is_running: AtomicBool,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Agenda {
    stop: bool,
    upkeep_now: bool,
    upkeep_at: Option<Instant>,
    /// The rest of whoever makes a segment is over.
    make_at: Option<Instant>,
    sync_records_at: Option<Instant>,
    sync_answers_at: Option<Instant>,
    /// Compaction may have something to do then.
    compact_at: Option<Instant>,
    /// The next time of a message: of a lease, a delay, or an expiry.
    watch_at: Option<Instant>,
    /// How long answers may wait; `None` without a thread, or if they are not synced.
    answers_within: Option<Duration>,
    has_panicked: bool,
}

/// A kind of work that may be due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// Something is to be prepared or tidied.
    Upkeep,
    /// A segment that is made ahead is to be gone on with.
    Making,
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

    /// A segment that is made ahead is to be gone on with in a while.
    pub(super) fn make_within(&self, within: Duration) {
        self.change(|agenda| sooner(&mut agenda.make_at, within));
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

    /// Whether there is a thread.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        // Relaxed: a hint; what is asked of a thread that has ended is not done.
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
        if self.is_running() {
            change(&mut self.agenda.lock());
            self.wake.notify_one();
        }
    }

    /// Starts the thread, which does `work` whenever something is due; upkeep is due at once.
    /// `answers_within`: how long answers may wait for a sync. `when_panicked` is called if the
    /// thread ends by a panic, once it no longer counts as running.
    pub(crate) fn start(
        self: &Arc<Self>,
        name: String,
        answers_within: Option<Duration>,
        work: impl Fn(&Due) + Send + 'static,
        when_panicked: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let when_panicked = Box::new(when_panicked);
        let running = Running { worker: Arc::clone(self), when_panicked };
        {
            let mut agenda = self.agenda.lock();
            self.is_running.store(true, Ordering::Relaxed);
            // What open found is counted and sealed first.
            agenda.upkeep_now = true;
            agenda.answers_within = answers_within;
        }
        let run = move || {
            while let Some(due) = running.worker.next() {
                work(&due);
            }
        };
        *self.thread.lock() = Some(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        {
            let mut agenda = self.agenda.lock();
            agenda.stop = true;
            self.is_running.store(false, Ordering::Relaxed);
            self.wake.notify_one();
        }
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the thread has been printed; the queue can be closed all the same.
            thread.join().ok();
        }
    }

    /// Sleeps until something is due; `None` at the end.
    fn next(&self) -> Option<Due> {
        let mut agenda = self.agenda.lock();
        loop {
            if agenda.stop {
                return None;
            }
            if let Some(due) = agenda.take_due(clock::now()) {
                return Some(due);
            }
            match agenda.next_time() {
                Some(at) => {
                    self.wake.wait_until(&mut agenda, at);
                }
                None => self.wake.wait(&mut agenda),
            }
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
            (Task::Making, take(&mut self.make_at)),
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
            self.upkeep_at,
            self.make_at,
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

/// As long as the thread runs.
struct Running {
    worker: Arc<Worker>,
    when_panicked: Box<dyn Fn() + Send>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let has_panicked = thread::panicking();
        let mut agenda = self.worker.agenda.lock();
        agenda.has_panicked = has_panicked;
        self.worker.is_running.store(false, Ordering::Relaxed);
        drop(agenda);
        if has_panicked {
            (self.when_panicked)();
        }
    }
}
