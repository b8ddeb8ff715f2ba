//! What the tests of found faults share: a storage that shows each call to a rule before it passes
//! the call on, a gate at which calls wait, and damage to files that a queue has open.
//!
//! A rule may count a call, hold it up, or make it fail. A test waits for something that it names,
//! not for a time; [`LIMIT`] is reached only where keepq is wrong.

use crate::support::DEADLINE;
use keepq::fault::{Access, Entry, MemoryStorage, Region, Storage, StorageFile};
use keepq::{Error, Options, Queue};
use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a test waits for something that right code does at once.
pub(crate) const LIMIT: Duration = DEADLINE;

/// Bytes of the header of a record, and of the extension that a delay takes: see the format page.
pub(crate) const RECORD_HEADER: u64 = 24;
pub(crate) const DELAY_EXTENSION: u64 = 2 + 3 + 8;

/// Something that a test does with a queue, and its name.
pub(crate) type Way = (&'static str, fn(&Queue));

/// What a queue asks of its storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Create,
    Open,
    Read,
    Write,
    Map,
    /// To a mapped file: a rule can count it and hold it up, but not make it fail.
    Store,
    Sync,
    SyncDirectory,
    SyncParents,
    /// To this name.
    Rename,
    Remove,
}

impl Op {
    pub(crate) fn is_sync(self) -> bool {
        [Self::Sync, Self::SyncDirectory, Self::SyncParents].contains(&self)
    }
}

/// A call. `name` is the name of the file, with `dead/` in front if it is a file of the dead
/// letters; where the call is of a whole directory, it is the empty name, or `dead/`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'c> {
    pub(crate) op: Op,
    pub(crate) name: &'c str,
}

type Rule = Arc<dyn Fn(Call<'_>) -> io::Result<()> + Send + Sync>;

/// A storage whose calls a rule sees first.
#[derive(Clone)]
pub(crate) struct Watched {
    inner: Arc<dyn Storage>,
    rule: Arc<RwLock<Rule>>,
    prefix: String,
}

impl Watched {
    /// Around another storage, without a rule.
    pub(crate) fn around(inner: Arc<dyn Storage>) -> Arc<Self> {
        let nothing: Rule = Arc::new(|_| Ok(()));
        Arc::new(Self { inner, rule: Arc::new(RwLock::new(nothing)), prefix: String::new() })
    }

    /// From here on this rule sees each call.
    pub(crate) fn rule(&self, rule: impl Fn(Call<'_>) -> io::Result<()> + Send + Sync + 'static) {
        *self.rule.write().unwrap() = Arc::new(rule);
    }

    /// From here on every call passes.
    pub(crate) fn no_rule(&self) {
        self.rule(|_| Ok(()));
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn see(&self, op: Op, name: &str) -> io::Result<()> {
        see(&self.rule, op, &self.full(name))
    }

    fn file(&self, inner: Arc<dyn StorageFile>, name: &str) -> Arc<dyn StorageFile> {
        let (rule, name) = (Arc::clone(&self.rule), self.full(name));
        Arc::new(WatchedFile { inner, rule, name: name.into() })
    }
}

fn see(rule: &RwLock<Rule>, op: Op, name: &str) -> io::Result<()> {
    // The lock is given up before the rule runs: the rule may wait.
    let rule = Arc::clone(&rule.read().unwrap());
    rule(Call { op, name })
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Storage for Watched {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.inner.lock()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.inner.list()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.see(Op::Create, name)?;
        Ok(self.file(self.inner.create(name, size)?, name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.see(Op::Open, name)?;
        Ok(self.file(self.inner.open(name)?, name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.see(Op::Rename, to)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.see(Op::Remove, name)?;
        self.inner.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.see(Op::SyncDirectory, "")?;
        self.inner.sync_directory()
    }

    fn sync_parents(&self) -> io::Result<()> {
        self.see(Op::SyncParents, "")?;
        self.inner.sync_parents()
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let inner = self.inner.directory(name)?;
        let prefix = format!("{}/", self.full(name));
        Ok(Arc::new(Self { inner, rule: Arc::clone(&self.rule), prefix }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
}

struct WatchedFile {
    inner: Arc<dyn StorageFile>,
    rule: Arc<RwLock<Rule>>,
    name: Arc<str>,
}

impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl StorageFile for WatchedFile {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        see(&self.rule, Op::Read, &self.name)?;
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        see(&self.rule, Op::Write, &self.name)?;
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        see(&self.rule, Op::Sync, &self.name)?;
        self.inner.sync()
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        see(&self.rule, Op::Map, &self.name)?;
        let inner = self.inner.map(access)?;
        let (rule, name) = (Arc::clone(&self.rule), Arc::clone(&self.name));
        Ok(Arc::new(WatchedRegion { inner, rule, name }))
    }

    fn release(&self) {
        self.inner.release();
    }
}

struct WatchedRegion {
    inner: Arc<dyn Region>,
    rule: Arc<RwLock<Rule>>,
    name: Arc<str>,
}

impl fmt::Debug for WatchedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedRegion").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Region for WatchedRegion {
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        see(&self.rule, Op::Store, &self.name).ok();
        self.inner.store(offset, bytes)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.load(offset, into)
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.inner.load_into(offset, len, into)
    }

    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        see(&self.rule, Op::Store, &self.name).ok();
        self.inner.store_word(offset, word)
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        self.inner.load_word(offset)
    }

    fn populate(&self) {
        self.inner.populate();
    }
}

/// A place where calls wait until somebody opens it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<Passage>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Passage {
    is_open: bool,
    /// How many calls may pass although it is closed.
    tickets: u64,
    waiting: u64,
    passed: u64,
}

impl Gate {
    /// A closed one.
    pub(crate) fn closed() -> Arc<Self> {
        Arc::default()
    }

    /// Returns once the gate is open, or somebody has given a ticket.
    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.is_open && state.tickets == 0 {
            state = self.changed.wait(state).unwrap();
        }
        state.tickets = state.tickets.saturating_sub(1);
        state.waiting -= 1;
        state.passed += 1;
        self.changed.notify_all();
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.changed.notify_all();
    }

    /// One may pass.
    pub(crate) fn give_ticket(&self) {
        self.state.lock().unwrap().tickets += 1;
        self.changed.notify_all();
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.state.lock().unwrap().waiting > 0
    }

    /// How many have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.state.lock().unwrap().passed
    }
}

/// Opens a gate when a test ends, also if it fails, so that no thread waits there for ever.
pub(crate) struct OpenAtEnd(pub(crate) Arc<Gate>);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Waits until something is so; fails the test if it is not so in time.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "not so after {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Work on a thread of its own, which names each of its steps.
pub(crate) struct Work {
    told: Receiver<&'static str>,
    last: &'static str,
    thread: Option<JoinHandle<()>>,
}

impl Work {
    pub(crate) fn start(work: impl FnOnce(&Sender<&'static str>) + Send + 'static) -> Self {
        let (tell, told) = channel();
        let thread = Some(thread::spawn(move || work(&tell)));
        Self { told, last: "the start", thread }
    }

    /// Whether it is over by now. A panic of the work is one of the test.
    pub(crate) fn is_over(&mut self) -> bool {
        self.last = self.told.try_iter().last().unwrap_or(self.last);
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished())
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
        self.thread.is_none()
    }

    /// Waits for its end; gives the step at which it is still after this time.
    pub(crate) fn stuck_at(&mut self, limit: Duration) -> Option<&'static str> {
        let end = Instant::now() + limit;
        while !self.is_over() {
            if Instant::now() >= end {
                return Some(self.last);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Waits for its end; fails the test if that does not come.
    pub(crate) fn finish(&mut self, what: &str) {
        let stuck = self.stuck_at(LIMIT);
        assert!(stuck.is_none(), "{what}: not over after {LIMIT:?}, but at {stuck:?}");
    }
}

/// Small segments, and no background: nothing happens but what the test does.
pub(crate) fn by_hand(storage: Arc<dyn Storage>) -> Options {
    Queue::options().segment_bytes(65_536).background(false).storage(storage)
}

/// After a failed sync no push and no sync may be confirmed. Tells what was confirmed all the same.
pub(crate) fn confirmed_after_failure(queue: &Queue) -> Option<String> {
    let is_poisoned = |error: &Error| matches!(error, Error::Poisoned { .. });
    for _ in 0..2 {
        let pushed = queue.push("pushed after a sync failed");
        if !pushed.as_ref().is_err_and(is_poisoned) {
            return Some(format!("push said {pushed:?}"));
        }
        let synced = queue.sync();
        if !synced.as_ref().is_err_and(is_poisoned) {
            return Some(format!("sync said {synced:?}"));
        }
    }
    None
}

/// A message that takes a sixth of a segment.
pub(crate) fn large(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(9000, 7);
    payload
}

/// Whether a file is a segment, by its name.
pub(crate) fn is_segment(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "seg")
}

/// Whether a file is half made, by its name.
pub(crate) fn is_temporary(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "tmp")
}

/// Every file of a queue and of its dead letters.
pub(crate) fn files(disk: &MemoryStorage) -> Vec<String> {
    let here = disk.list().unwrap().into_iter().filter(|entry| entry.is_file);
    let here = here.map(|entry| entry.name);
    let dead = disk.directory("dead").unwrap().list().unwrap().into_iter();
    here.chain(dead.map(|entry| format!("dead/{}", entry.name))).collect()
}

/// The file that holds these bytes, and where in it they start.
pub(crate) fn find(disk: &MemoryStorage, bytes: &[u8]) -> (String, u64) {
    let place = |name: String| {
        let content = disk.read(&name)?;
        let at = content.windows(bytes.len()).position(|window| window == bytes)?;
        Some((name, at as u64))
    };
    files(disk).into_iter().find_map(place).expect("the bytes are in a file")
}

/// Flips a bit of a file where it is, as a disk does: a queue that has the file open sees the
/// change.
pub(crate) fn flip(disk: &MemoryStorage, name: &str, offset: u64) {
    let file = disk.open(name).unwrap();
    let mut byte = [0];
    file.read_at(offset, &mut byte).unwrap();
    file.write_at(offset, &[byte[0] ^ 1]).unwrap();
}

/// Which part of a record is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Header,
    /// The header of a record that has a delay.
    HeaderBeforeDelay,
    Payload,
}

/// Damages the record with this payload.
pub(crate) fn spoil(disk: &MemoryStorage, payload: &[u8], part: Part) {
    let (name, at) = find(disk, payload);
    let offset = match part {
        Part::Header => at - RECORD_HEADER,
        Part::HeaderBeforeDelay => at - DELAY_EXTENSION - RECORD_HEADER,
        Part::Payload => at,
    };
    flip(disk, &name, offset);
}
