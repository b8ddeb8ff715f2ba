//! The engine: one for each open queue, shared by all its handles.
//!
//! It owns the rooms that `docs/design.md` draws, and delegates. A message is **published** (`pop`
//! sees it) when it is placed, and **durable** when a sync has covered it: two words in memory.
//!
//! # Locks
//!
//! They are taken in this order, and each guards what its struct holds. None is held while user
//! code runs. Only those before `unsealed` are held over syncs, and while wakers are called.
//!
//! | | lock | guards |
//! | --- | --- | --- |
//! | 0 | `closing`; `dropping` | the end of the queue, once; that one producer drops the oldest |
//! | 0 | `mover`, `open`, its `closing` | (`dead_letters`) moving; the dead letters; their end |
//! | 0 | `compaction` | the copy that is made at the moment |
//! | 1 | `upkeep` | the checkpoint file, what is to be removed |
//! | 1 | `resting` | the map that is evicted, in steps that may wait for a disk |
//! | 2 | `supply` | the ready segment, ordinals, the old tail; rotation |
//! | 3 | `writing`, `unsealed` | what is being written; the active and the unsynced full segments |
//! | 4 | an unmap turn (`context`; others wait for its end) | maps that go, or are worked at |
//! | 5 | gate, dispatch | the backlog, the cursor, leases, what came back, is delayed or dying |
//! | 6 | the crew, `health`, all that holds a lock and is not named here | themselves |
//!
//! The thread that leads a commit holds no lock while it syncs, and takes the lead after `upkeep`
//! and `supply` and before `writing`, if at all. A push whose write failed syncs without it.

mod append;
mod backlog;
mod commit;
mod consumers;
mod context;
mod crew;
mod dispatch;
#[cfg(all(test, feature = "fault-injection"))]
mod futures;
mod gate;
mod health;
mod inspect;
#[cfg(all(test, feature = "fault-injection"))]
mod interleavings;
mod letters;
mod line;
mod opening;
mod producers;
mod published;
mod reclaim;
mod settled_total;
mod signal;
mod space;
mod wait;
mod waiters;
mod worker;

pub(crate) use append::{Need, Placed, Promise};
pub(crate) use commit::Commit;
pub(crate) use consumers::Consumers;
pub(crate) use context::{Context, RETRY_AFTER};
pub(crate) use dispatch::{Answer, Answerable, Cause, DyingMessage, LeaseKey, Taken, start_push};
pub(crate) use inspect::{Ahead, Front, Inspect, Viewed, Walk};
pub(crate) use letters::{DyingMessages, Identity};
pub(crate) use opening::Setting;
pub(crate) use producers::{Producers, WhenFull};
pub(crate) use published::Published;
pub(crate) use reclaim::Reclaim;
pub(crate) use space::{DEAD_LETTERS_ROOM, Share, Space};
pub(crate) use worker::{Due, Task, Worker};

use crate::clock::{self, Clock};
use crate::distribution::Histogram;
use crate::error::{Error, Result};
use crate::format::name;
use crate::format::standing::Run;
use crate::io::Storage;
use crate::options::Options;
use crate::recovery::{Found, Reconciled};
use crate::report::{Compacted, Damage, RecoveryReport};
use crate::seq::QueueId;
use crate::stats::Stats;
use append::Appender;
use context::Hint;
use dispatch::Dispatch;
use health::Health;
use inspect::Others;
use opening::{check_presence, merge_replaced};
use parking_lot::Mutex;
use signal::DispatchLock;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wait::{Look, Soon};
use waiters::Waiters;
use worker::Scope;

/// One open queue.
#[derive(Debug)]
pub(crate) struct Engine {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    published: Arc<Published>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
    reclaim: Arc<Reclaim>,
    consumers: Arc<Consumers>,
    producers: Producers,
    inspect: Inspect,
    dying: DyingMessages,
    recovery: RecoveryReport,
    /// There was a directory for dead letters.
    had_dead_letters: bool,
    push_times: Mutex<Histogram>,
    /// Pushes that failed for want of room, of disk, or of size.
    failed_pushes: AtomicU64,
    /// Taken before all other locks, and held while the queue is closed.
    closing: Mutex<Closing>,
    /// The operating system's lock on the directory.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

/// How long the background lets go of files before it looks again at what is due.
const RETIRING_TIME: Duration = Duration::from_millis(20);

/// How far `close` has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    Open,
    Done,
    Failed,
}

impl Engine {
    /// Opens the queue that `storage` holds.
    pub(crate) fn open(
        options: Options,
        storage: Arc<dyn Storage>,
        setting: Setting,
    ) -> Result<Arc<Self>> {
        check_presence(&*storage, &options, name::is_of_a_queue)?;
        let path = storage.path(name::LOCK);
        let lock = storage.lock().map_err(|error| Error::io("lock", &path, 0, error))?;
        let lock = Mutex::new(Some(lock.ok_or(Error::Locked { path })?));
        // Once more: another process may have made, used and closed it before the lock was ours.
        if options.create_new {
            check_presence(&*storage, &options, name::is_of_a_used_queue)?;
        }
        let log = Reconciled::of(Found::read(&storage)?)?.into_log()?;
        let log = log.beginning_at(options.first_seq);
        let had_dead_letters = log.has_dead_letters && options.dead_letters;
        merge_replaced(&*storage, &log)?;
        setting.space.set(setting.bytes_of(&log, &options), log.unusable_bytes);
        let clock = Clock::start(options.clock.clone(), log.known_time, log.boot);
        let run = Run { start_time: clock.start_time(), first_seq: log.next_seq };
        let waiters = Arc::new(Waiters::beside(setting.space.room()));
        let health = Health::new(Arc::clone(&waiters));
        let Setting { worker, space, .. } = setting;
        let context = Arc::new(Context {
            id: QueueId(log.queue_id),
            storage,
            options,
            clock: Arc::new(clock),
            run,
            health,
            waiters,
            worker,
            space,
            surplus: Hint::default(),
            died: Hint::default(),
            move_again: context::TimeHint::default(),
            unmapping: context::Unmapping::default(),
        });
        let (recovery, durable) = (log.report.clone(), log.next_seq - 1);
        let published = Arc::new(Published::new(durable));
        let dispatch = Dispatch::new(&log, &context, &published);
        let dispatch = Arc::new(DispatchLock::new(Arc::clone(&context), dispatch));
        let appender = Arc::new(Appender::new(&context, &dispatch, &published, &log));
        let commit = Arc::new(Commit::new(&context, &appender, &dispatch, durable));
        let reclaim = Arc::new(Reclaim::new(&context, &dispatch, &appender, &commit, log));
        let consumers = Consumers::new(&context, &dispatch, &published, &appender, &commit);
        let consumers = Arc::new(consumers);
        let rooms = (&appender, &commit, &reclaim);
        let producers = Producers::new(&context, &dispatch, &published, rooms, &consumers);
        let inspect = Inspect::new(&context, &dispatch, &published, &appender, &reclaim);
        let dying = DyingMessages::new(&context, &dispatch);
        Ok(Arc::new(Self {
            context,
            dispatch,
            published,
            appender,
            commit,
            reclaim,
            consumers,
            producers,
            inspect,
            dying,
            recovery,
            had_dead_letters,
            push_times: Mutex::default(),
            failed_pushes: AtomicU64::new(0),
            closing: Mutex::new(Closing::Open),
            lock,
        }))
    }

    /// Ends the queue for every handle; a caller that comes while it is under way waits for the
    /// end. `stop_others`: called once nothing is pushed, taken or answered any more.
    pub(crate) fn close(&self, stop_others: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut closing = self.closing.lock();
        match *closing {
            Closing::Open => {}
            Closing::Done => return Ok(()),
            Closing::Failed => return Err(Error::Closed),
        }
        // While segments can be made. The last CHECKPOINT tells it, too.
        self.context.health.note_background(self.reclaim.note_clock());
        self.appender.close();
        self.dispatch.lock().close();
        self.context.waiters.wake_all();
        self.reclaim.compactor().stop();
        let others = stop_others();
        let synced = self.sync();
        // Whatever the result: nothing is stored from here on, and the directory is free.
        let finished = self.reclaim.retirer().finish_run(synced.is_ok());
        self.appender.clear();
        // No round of syncs begins any more; one that is under way may have seals to store.
        drop(self.commit.lead_when_free());
        self.dispatch.lock().clear();
        self.context.waiters.wake_all();
        *self.lock.lock() = None;
        let result = synced.and(finished).and(others);
        *closing = if result.is_ok() { Closing::Done } else { Closing::Failed };
        result
    }

    /// Makes durable all that was pushed and answered before the call. Does what it can, and tells
    /// the first error.
    pub(crate) fn sync(&self) -> Result<()> {
        self.context.health.check(true)?;
        self.appender.unsealed().check_files(&self.context)?;
        let tail = self.appender.finish_old_tail();
        let changes = self.dispatch.lock().backlog().changes().newest();
        let records = self.commit.wait_durable(self.published.newest());
        tail.and(records).and(self.commit.wait_answers(changes))
    }

    /// Does at once all that the background does except compaction, whether it is due or not.
    pub(crate) fn maintain(&self) -> Result<()> {
        self.consumers.end_due();
        let swept = self.consumers.sweep_all();
        let counted = swept.and(self.consumers.count_all());
        let shrunk = self.reclaim.shrink_if_idle();
        self.sync()?;
        // What is synced and could not be sealed then, is now.
        while self.commit.sync_oldest_full()? {}
        self.reclaim.release_idle_maps();
        let gone = self.reclaim.retirer().let_go_of_all();
        counted.and(gone).and(self.reclaim.prepare_ahead()).and(shrunk)
    }

    /// Gives back files that are no longer needed, and makes all copies that are worth it.
    pub(crate) fn compact(&self) -> Result<Compacted> {
        self.check_open()?;
        self.consumers.count_all()?;
        self.reclaim.compact_all()
    }

    /// A rest of the background between two steps is over.
    pub(crate) fn go_on(&self) {
        self.reclaim.go_on();
    }

    /// Does what is due, one step of each kind; asks again for what is left, so that a deadline
    /// waits for a step at most. Once the queue is closed, nothing is due.
    pub(crate) fn run_due(&self, due: &Due) -> Result<()> {
        if self.check_open().is_err() {
            return Ok(());
        }
        // What the next look has to be for is told again.
        self.dispatch.lock().forget_watch();
        let timed = self.reclaim.note_clock().and(self.look_at_times());
        if due.sync().is_some() {
            // The time that the worker watched is over: a push from here on asks again, also if
            // all is durable by now, and no round of syncs begins.
            self.appender.unsealed().forget_interval();
        }
        let synced = match due.sync() {
            Some(Scope::Answers) => self.sync().inspect_err(|_| self.sync_answers_again()),
            Some(_) => self.commit.wait_durable(self.published.newest()),
            None => Ok(()),
        };
        let tidied = if due.has(Task::Upkeep) { self.run_upkeep() } else { Ok(()) };
        // After everything that a push or an answer may wait for.
        let compacts = due.has(Task::Upkeep) || due.has(Task::Compaction);
        let compactor = self.reclaim.compactor();
        let compacted = if compacts { compactor.run_in_background() } else { Ok(()) };
        timed.and(synced).and(tidied).and(compacted)
    }

    /// A sync of answers failed, or could not begin.
    fn sync_answers_again(&self) {
        self.dispatch.lock().ask_for_sync_again();
        if self.check_health().is_ok() {
            self.context.worker.sync_answers();
        }
    }

    fn run_upkeep(&self) -> Result<()> {
        // First the segment that a push may soon wait for. An error is told if it is met again at
        // the end: the work in between may make room, or let go of a segment that serves.
        self.reclaim.prepare_ahead().ok();
        let finished = self.appender.finish_old_tail();
        let has_unsealed = self.reclaim.unmap_and_sync();
        let mut tries = self.context.unmapping.tries();
        let counted = self.dispatch.lock().count_some();
        let clear = |error| self.consumers.clear_the_way(error, &mut tries).map(|()| true);
        let can_count = counted.or_else(clear);
        if matches!(can_count, Ok(false)) {
            // What could not be read or stored is tried again the next time.
            self.dispatch.lock().count_again();
        }
        let can_let_go = self.reclaim.retirer().let_go_for(RETIRING_TIME).map(|gone| gone.has_more);
        let has_more = [&has_unsealed, &can_count, &can_let_go];
        // What failed to be counted stops no other slot from being counted.
        if can_count.is_err() {
            self.context.retry_upkeep();
        }
        if can_count.is_err() || has_more.iter().any(|more| matches!(more, Ok(true))) {
            self.context.worker.ask();
        }
        self.reclaim.look_again();
        let prepared = self.reclaim.prepare_ahead().and(self.reclaim.shrink_if_idle());
        let done = [has_unsealed, can_count, can_let_go].into_iter().map(|done| done.map(|_| ()));
        done.fold(finished, Result::and).and(prepared)
    }

    /// Ends leases and delays that are over, lets go of messages that have expired at the front,
    /// and tells the background the next time to watch.
    pub(crate) fn look_at_times(&self) -> Result<()> {
        self.consumers.end_due();
        self.consumers.sweep_in_time()
    }

    /// Waits until message `seq` will never be handed out again; false once `deadline` has passed.
    pub(crate) fn wait_settled(&self, seq: u64, deadline: Option<Instant>) -> Result<bool> {
        loop {
            // Not in the look: it tells of the next time, and would wake this thread for ever.
            if !self.context.worker.is_running() {
                self.look_at_times()?;
            }
            // A thread that settles asks for waiters under the dispatch lock, which looking takes.
            let look = || self.look_for_settled(seq);
            let settled = &self.context.waiters.settled;
            match settled.wait_until(seq, Soon::Perhaps, deadline, || (), look).transpose()? {
                Some(Some(is_settled)) => return Ok(is_settled),
                Some(None) => {}
                None => return Ok(false),
            }
        }
    }

    /// Whether message `seq` will never be handed out again; `None` if a time has come that the
    /// thread that waits has to see to, because there is no background.
    fn look_for_settled(&self, seq: u64) -> Look<Result<Option<bool>>> {
        match self.look(|inspect| inspect.is_settled(seq)) {
            Ok(true) => Look::Found(Ok(Some(true))),
            Err(error) => Look::Found(Err(error)),
            Ok(false) if self.context.worker.is_running() => Look::NotYet,
            Ok(false) => match self.consumers.next_time() {
                None => Look::NotYet,
                Some(time) if time <= clock::now() => Look::Found(Ok(None)),
                Some(time) => Look::NotBefore(time),
            },
        }
    }

    /// All who wait look again.
    pub(crate) fn wake_all(&self) {
        self.context.waiters.wake_all();
    }

    /// Syncs segments that unsynced answers hold open, if no background keeps up. May wait.
    #[inline]
    pub(crate) fn sync_surplus(&self) {
        if self.context.surplus.take() {
            self.sync_surplus_now();
        }
    }

    #[cold]
    fn sync_surplus_now(&self) {
        if self.consumers.holds_too_many_open() {
            // It is poisoned, if that fails, which the next sync says.
            self.context.health.note_background(self.reclaim.sync_held_open());
        }
        self.reclaim.release_clean();
    }

    /// Closes files that are no longer needed, and waits for no disk.
    #[inline]
    pub(crate) fn release_surplus(&self) {
        if self.context.surplus.is_noted() {
            self.reclaim.release_clean();
        }
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.appender.unsealed().check_open()
    }

    /// # Errors
    ///
    /// [`Error::Poisoned`] once a sync has failed.
    pub(crate) fn check_health(&self) -> Result<()> {
        self.context.health.check(false)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    pub(crate) fn commit(&self) -> &Commit {
        &self.commit
    }

    pub(crate) fn reclaim(&self) -> &Reclaim {
        &self.reclaim
    }

    pub(crate) fn consumers(&self) -> &Consumers {
        &self.consumers
    }

    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }

    pub(crate) fn inspect(&self) -> &Inspect {
        &self.inspect
    }

    /// A look, which makes room for the maps that it needs.
    pub(crate) fn look<T>(&self, mut look: impl FnMut(&Inspect) -> Result<T>) -> Result<T> {
        self.dispatch.with_room(|| look(&self.inspect))
    }

    /// The messages on their way to the dead letters.
    pub(crate) fn dying(&self) -> &DyingMessages {
        &self.dying
    }

    pub(crate) fn options(&self) -> &Options {
        &self.context.options
    }

    /// Whether there was a directory for dead letters at open.
    pub(crate) fn had_dead_letters(&self) -> bool {
        self.had_dead_letters
    }

    pub(crate) fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.dispatch.lock().backlog().losses().damage()
    }

    pub(crate) fn last_seq(&self) -> Option<u64> {
        self.appender.unsealed().last_seq()
    }

    /// Numbers of one moment. `dead_letters`: how many messages are among them.
    pub(crate) fn stats(&self, dead_letters: u64) -> Stats {
        self.context.health.note_background(self.consumers.count_all());
        self.consumers.end_due();
        // Relaxed, here and below: a number by itself.
        let failed_pushes = self.failed_pushes.load(Ordering::Relaxed);
        let push_time = self.push_times.lock().distribution();
        self.inspect.stats(&Others { dead_letters, failed_pushes, push_time })
    }

    /// Counts messages whose push failed.
    pub(crate) fn note_failed_pushes(&self, messages: u64) {
        self.failed_pushes.fetch_add(messages, Ordering::Relaxed);
    }

    /// Ends what `start_push` started.
    #[inline]
    pub(crate) fn end_push(&self, start: Option<Instant>) {
        if let Some(start) = start {
            self.push_times.lock().record(clock::now().saturating_duration_since(start));
        }
    }
}
