//! What the tests of found faults share: a gate at which calls wait, work on threads of its own,
//! and damage to files that a queue has open.
//!
//! A test waits for something that it names, not for a time; [`LIMIT`] is reached only where keepq
//! is wrong.

use crate::support::DEADLINE;
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Error, Options, Queue};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a test waits for something that right code does at once.
pub(crate) const LIMIT: Duration = DEADLINE;

/// Bytes of the header of a record, and of the extension that a delay takes: see the format page.
pub(crate) const RECORD_HEADER: u64 = 24;
pub(crate) const DELAY_EXTENSION: u64 = 2 + 3 + 8;

/// Something that a test does with a queue, and its name.
pub(crate) type Way = (&'static str, fn(&Queue));

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
