//! The engine: one for each open queue, shared by all its handles.
//!
//! "Durable, then visible, then tidy" is not this order here: a message is **published** (visible to
//! `pop`) when it is placed, and **durable** when a sync has covered it; the two are separate words
//! in memory and in this code.
//!
//! # Locks
//!
//! Taken in this order, each guarding what its struct holds; none is held while user code runs,
//! and only those before `append` are held over slow I/O; besides, `append` at the end of a run,
//! and `deliver` while a segment of an earlier run is mapped, or some of its slots are read, or more segments were
//! mapped than may be, and one of them is synced and unmapped.
//!
//! | | lock | guards |
//! | --- | --- | --- |
//! | 0 | `closing` | that the queue is closed once |
//! | 0 | `dropping` | who drops the oldest to make room |
//! | 0 | `burial` | who moves what is dying; all locks of the dead letters' engine come behind it |
//! | 0 | `dead` | the engine of the dead letters, while it is opened |
//! | 0 | `compaction` | what is copied at the moment |
//! | 1 | `upkeep` | the checkpoint file, what is to be removed |
//! | 2 | `supply` | the ready segment, ordinals, the old tail; rotation |
//! | 3 | `append` | the active segment, the next Seq, full segments that are not synced |
//! | 4 | `deliver` | tracks, cursor, leases, what was returned, is delayed or dying |
//! | 5 | leaves: `worker`, wait lists, `health` | themselves |
//!
//! Whoever leads a commit holds no lock while it syncs; `Commit::leading` makes it the only one. The
//! lead is taken after `upkeep` and `supply` and before `append`, if at all.

mod answer;
mod append;
mod commit;
mod compact;
mod consume;
mod cursor;
mod deliver;
mod dying;
mod figures;
#[cfg(all(test, feature = "fault-injection"))]
mod futures;
mod health;
mod limits;
mod look;
mod loss;
mod maps;
mod measure;
mod next;
mod purge;
mod replace;
mod settled;
mod space;
mod stuck;
mod supply;
mod track;
mod upkeep;
mod wait;
mod worker;

pub(crate) use answer::Answer;
pub(crate) use consume::{Given, Taken};
pub(crate) use dying::Cause;
pub(crate) use look::{Viewed, Walk};
pub(crate) use measure::start_push;

use crate::clock::Clock;
use crate::distribution::Histogram;
use crate::error::{Error, Result};
use crate::format::name;
use crate::io::{Access, Storage};
use crate::log::merge::merge;
use crate::log::sealed::Mapped;
use crate::options::Options;
use crate::recovery::{Found, Log, Replaced};
use crate::report::{Damage, RecoveryReport};
use append::Append;
use commit::Commit;
use compact::Compaction;
use cursor::Run;
use deliver::Deliver;
use dying::Burial;
use health::Health;
use parking_lot::Mutex;
use space::{Share, Space};
use std::any::Any;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use supply::Supply;
use upkeep::Upkeep;
use wait::WaitList;
use worker::Worker;

/// One open queue.
#[derive(Debug)]
pub(crate) struct Engine {
    storage: Arc<dyn Storage>,
    options: Options,
    recovery: RecoveryReport,
    /// The newest Seq that `pop` may see.
    published: Padded<AtomicU64>,
    /// Every Seq up to here is on the disk.
    durable: Padded<AtomicU64>,
    /// This run: when it began, and with which number.
    run: Run,
    compaction: Mutex<Compaction>,
    /// Segments that are no longer in the log, and not yet removed or used again.
    letting_go: AtomicU64,
    /// Bytes of files that compaction wrote.
    compacted_bytes: AtomicU64,
    /// Bytes of files that pushes took.
    taken_bytes: AtomicU64,
    upkeep: Mutex<Upkeep>,
    supply: Mutex<Supply>,
    append: Padded<Mutex<Append>>,
    deliver: Padded<Mutex<Deliver>>,
    commit: Commit,
    health: Health,
    /// Consumers that wait for a message.
    readers: WaitList,
    /// Those who wait for a message to be settled, by its Seq.
    settled: WaitList,
    clock: Arc<Clock>,
    /// How long after its push a message is worth anything.
    ttl_millis: Option<u64>,
    /// What files take.
    space: Arc<Share>,
    /// What those of the dead letters take.
    dead_space: Arc<Share>,
    /// When what `dead/` refused is tried again by whoever pops.
    bury_again_at: AtomicU64,
    /// The first message that consumers may not see yet.
    held_back: AtomicU64,
    /// Whether there are dead letters, open or not.
    has_dead: AtomicBool,
    /// How many messages were settled in this run.
    settled_count: Arc<AtomicU64>,
    /// How many messages earlier runs left, once somebody has to know.
    owed_before: OnceLock<u64>,
    push_times: Mutex<Histogram>,
    /// Pushes that failed for want of room, of disk, or of size.
    failed_pushes: AtomicU64,
    /// Taken by who drops the oldest, before all other locks.
    dropping: Mutex<()>,
    dead: Mutex<Option<Arc<Self>>>,
    burial: Mutex<Burial>,
    role: Role,
    worker: Arc<Worker>,
    /// Taken before all other locks, and held while the queue is closed.
    closing: Mutex<Closing>,
    /// The operating system's lock on the directory.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

/// What a CHECKPOINT of a few hundred segments takes.
const CHECKPOINT_ROOM: u64 = 2 * crate::format::PAGE;

/// What is left for the dead letters: two segments of the smallest size, so that there is room for a new one
/// while the old one is not let go.
const DEAD_ROOM: u64 = 2 * supply::SMALLEST_SEGMENT;

/// What an engine is for.
#[derive(Debug)]
enum Role {
    Queue,
    /// The dead letters of another, whose background thread does the work here, too.
    DeadLetters(Arc<Worker>),
}

impl Role {
    /// What the files of a log take. Each CHECKPOINT has its room from the start, that of the dead letters before
    /// they are opened.
    fn bytes_of(&self, log: &Log, options: &Options) -> u64 {
        let replaced = log.replaced.iter().flat_map(|replaced| &replaced.sources);
        let replaced = replaced.map(|source| &source.segment);
        let all = log.parts.iter().map(|part| &part.segment).chain(replaced);
        let segments: u64 = all.map(|segment| segment.header.size).sum();
        let segments = segments + log.leftovers.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let others = if options.dead_letters { CHECKPOINT_ROOM } else { 0 };
        segments
            + match self {
                Self::Queue => log.checkpoint.size().max(CHECKPOINT_ROOM) + others,
                Self::DeadLetters(_) => log.checkpoint.size().saturating_sub(CHECKPOINT_ROOM),
            }
    }
}

/// What a push does when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhenFull {
    /// As [`Options::overflow`] says.
    AsOptions,
    /// The same, but nothing is waited for.
    NoWait,
    /// It fails.
    Fail,
}

/// How far `close` has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    Open,
    Done,
    Failed,
}

/// On cache lines of its own, so that producers and consumers do not slow each other down.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl Engine {
    /// Opens the queue that `storage` holds.
    pub(crate) fn open(options: Options, storage: Arc<dyn Storage>) -> Result<Arc<Self>> {
        let reserve =
            if options.dead_letters && options.max_bytes.is_some() { DEAD_ROOM } else { 0 };
        let space =
            Share::of_queue(Arc::new(Space::new(options.max_bytes)), reserve, options.scratch());
        let engine = Self::open_as(options, storage, Role::Queue, space)?;
        if engine.options.background {
            worker::start(&engine)?;
        }
        Ok(engine)
    }

    fn open_as(
        options: Options,
        storage: Arc<dyn Storage>,
        role: Role,
        space: Arc<Share>,
    ) -> Result<Arc<Self>> {
        check_presence(&*storage, &options, name::is_of_a_queue)?;
        let path = storage.path(name::LOCK);
        let lock = storage.lock().map_err(|error| Error::io("lock", &path, 0, error))?;
        let lock = Some(lock.ok_or(Error::Locked { path })?);
        // Once more: somebody may have made, used and closed it before the lock was ours.
        if options.create_new {
            check_presence(&*storage, &options, name::is_of_a_used_queue)?;
        }
        let log = Found::read(&*storage)?.reconcile()?.into_log()?;
        let clock = Arc::new(Clock::start(options.clock.clone(), log.newest_time));
        let had_dead_letters = log.has_dead_letters && options.dead_letters;
        merge_replaced(&log)?;
        let settled_count = Arc::new(AtomicU64::new(0));
        let (for_deliver, counter) = (Arc::clone(&clock), Arc::clone(&settled_count));
        let deliver = Deliver::new(&log, &options, for_deliver, counter);
        space.set(role.bytes_of(&log, &options));
        let worker = match &role {
            Role::Queue => Arc::default(),
            Role::DeadLetters(worker) => Arc::clone(worker),
        };
        let engine = Arc::new(Self {
            recovery: log.report.clone(),
            run: Run { start_time: clock.start_time(), first_seq: log.next_seq },
            compaction: Mutex::default(),
            letting_go: AtomicU64::new(0),
            compacted_bytes: AtomicU64::new(0),
            taken_bytes: AtomicU64::new(0),
            published: Padded(AtomicU64::new(log.next_seq - 1)),
            durable: Padded(AtomicU64::new(log.next_seq - 1)),
            append: Padded(Mutex::new(Append::new(&log))),
            deliver: Padded(Mutex::new(deliver)),
            supply: Mutex::new(Supply::new(&log, &options)),
            upkeep: Mutex::new(Upkeep::new(log)),
            commit: Commit::default(),
            health: Health::default(),
            readers: WaitList::default(),
            settled: WaitList::default(),
            clock,
            ttl_millis: options.message_ttl.map(crate::clock::millis),
            dead_space: Share::of_dead_letters(&space),
            space,
            bury_again_at: AtomicU64::new(0),
            held_back: AtomicU64::new(u64::MAX),
            has_dead: AtomicBool::new(had_dead_letters),
            settled_count,
            owed_before: OnceLock::new(),
            push_times: Mutex::default(),
            failed_pushes: AtomicU64::new(0),
            dropping: Mutex::default(),
            dead: Mutex::default(),
            burial: Mutex::default(),
            role,
            worker,
            closing: Mutex::new(Closing::Open),
            lock: Mutex::new(lock),
            storage,
            options,
        });
        // What the dead letters take counts from the start.
        if engine.options.max_bytes.is_some() && had_dead_letters {
            engine.dead_letters()?;
        }
        Ok(engine)
    }

    /// Ends the queue for every handle. Whoever calls it while it is under way waits for the end.
    pub(crate) fn close(&self) -> Result<()> {
        let mut closing = self.closing.lock();
        match *closing {
            Closing::Open => {}
            Closing::Done => return Ok(()),
            Closing::Failed => return Err(Error::Closed),
        }
        // What cannot be moved now is moved by the next run: its slots say so.
        self.health.note_background(self.bury(true));
        self.append.lock().is_closed = true;
        self.deliver.lock().close();
        self.readers.wake_all();
        self.settled.wake_all();
        self.space.room.wake_all();
        if let Role::Queue = self.role {
            self.worker.stop();
        }
        self.stop_compaction();
        let dead = self.open_dead_letters();
        let dead = dead.map_or(Ok(()), |dead| match dead.close() {
            // By its own handle, which was told.
            Err(Error::Closed) => Ok(()),
            result => result,
        });
        let synced = self.sync();
        // Whatever the result: nothing is stored from here on, and the directory is free.
        let finished = self.finish_run(synced.is_ok());
        self.append.lock().let_go();
        self.deliver.lock().let_go();
        self.commit.wake_all();
        *self.lock.lock() = None;
        let result = synced.and(finished).and(dead);
        *closing = if result.is_ok() { Closing::Done } else { Closing::Failed };
        result
    }

    /// Makes durable all that was pushed and answered before the call. Does what it can, and tells
    /// the first error.
    pub(crate) fn sync(&self) -> Result<()> {
        let tail = self.finish_old_tail();
        let changes = self.deliver.lock().change_count();
        let records = self.wait_durable(self.newest_published());
        tail.and(records).and(self.wait_acks(changes))
    }

    /// What the background does, at once and whether it is due or not.
    pub(crate) fn maintain(&self) -> Result<()> {
        self.check_open()?;
        let mut deliver = self.deliver.lock();
        deliver.take_back_due();
        self.unlock(deliver);
        // What earlier runs left dying is known then.
        let counted = self.count_old_tracks();
        let buried = counted.and(self.bury(true));
        self.sync()?;
        self.run_upkeep()?;
        let compacted = self.compact_by_hand();
        let dead = self.open_dead_letters().map_or(Ok(()), |dead| dead.maintain());
        // Its own handle may have closed it.
        let dead = if matches!(dead, Err(Error::Closed)) { Ok(()) } else { dead };
        buried.and(compacted).and(dead)
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.append.lock().check_open()
    }

    pub(crate) fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.deliver.lock().losses.damage()
    }

    pub(crate) fn last_seq(&self) -> Option<u64> {
        self.append.lock().last_seq()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.deliver.lock().in_flight()
    }

    pub(crate) fn delayed(&self) -> u64 {
        let mut deliver = self.deliver.lock();
        let delayed = deliver.delayed();
        self.unlock(deliver);
        delayed
    }

    /// The number of the newest published message.
    fn newest_published(&self) -> u64 {
        // Acquire: pairs with the store in `try_append`.
        self.published.load(Ordering::Acquire)
    }

    /// The number of the newest message that consumers may see.
    fn newest_visible(&self) -> u64 {
        // Acquire: pairs with the stores of whoever moves dead letters.
        let held_back = self.held_back.load(Ordering::Acquire);
        self.newest_published().min(held_back - 1)
    }

    /// Ready messages. Counts the slots of earlier runs first, if nobody has; where they cannot be
    /// read, as far as they can.
    pub(crate) fn ready(&self) -> u64 {
        self.health.note_background(self.count_old_tracks());
        let mut deliver = self.deliver.lock();
        let ready = deliver.ready(|| self.newest_visible());
        self.unlock(deliver);
        ready
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.storage.path("")
    }
}

/// Gives messages in copies the latest states, where a crash left what they were made from.
fn merge_replaced(log: &Log) -> Result<()> {
    for Replaced { copy, sources } in &log.replaced {
        let segment = Arc::clone(&copy.segment);
        let region = segment.map(Access::Commits)?;
        merge(&Mapped { segment, region }, copy.first_seq, copy.base_time, copy.count, sources)?;
    }
    Ok(())
}

/// Whether a queue is, or is not, there as the options want it.
fn check_presence(
    storage: &dyn Storage,
    options: &Options,
    is_sign: impl Fn(&str) -> bool,
) -> Result<()> {
    if options.create && !options.create_new {
        return Ok(());
    }
    let directory = storage.path("");
    let entries =
        storage.list().map_err(|error| Error::io("list directory", &directory, 0, error))?;
    let is_there = entries.iter().any(|entry| is_sign(&entry.name));
    let kind = match (is_there, options.create_new) {
        (true, true) => ErrorKind::AlreadyExists,
        (false, false) => ErrorKind::NotFound,
        _ => return Ok(()),
    };
    let what = if is_there { "a queue is there (create_new)" } else { "no queue (create(false))" };
    Err(Error::io("open", &directory, 0, std::io::Error::new(kind, what)))
}
