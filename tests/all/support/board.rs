//! A board: a disk that outlives its runs, and its clocks, which a test sets.

use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Durability, Options, Queue};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(crate) fn year(year: u32) -> SystemTime {
    UNIX_EPOCH + (year - 1970) * YEAR
}

/// A disk that outlives its runs, and its clocks.
pub(crate) struct Board {
    pub(crate) storage: MemoryStorage,
    pub(crate) clock: Arc<ManualClock>,
}

impl Board {
    pub(crate) fn at(wall: SystemTime) -> Self {
        Self { storage: MemoryStorage::new(), clock: Arc::new(ManualClock::new(wall)) }
    }

    /// The same, and its system is up all the time.
    pub(crate) fn in_boot(self, boot: u128) -> Self {
        let clock = Arc::into_inner(self.clock).expect("no queue has it");
        Self { clock: Arc::new(clock.in_boot(boot)), ..self }
    }

    /// What the queue has on the disk.
    pub(crate) fn directory(&self) -> Arc<dyn Storage> {
        self.storage.directory("q").unwrap()
    }

    pub(crate) fn options(&self) -> Options {
        let options = Queue::options().storage(self.directory()).clock(self.clock.clone());
        options.background(false).segment_bytes(65_536).durability(Durability::Os)
    }

    pub(crate) fn open(&self) -> Queue {
        self.options().open("q").unwrap()
    }

    /// The same disk after a kill, and the same clocks.
    pub(crate) fn killed(self) -> Self {
        Self { storage: self.storage.killed(), clock: self.clock }
    }
}

/// Pops a text, and acks it.
pub(crate) fn pop(queue: &Queue) -> Option<String> {
    let job = queue.pop().unwrap()?;
    let payload = String::from_utf8(job.to_vec()).unwrap();
    job.ack().unwrap();
    Some(payload)
}

/// The bytes of all files in this storage. What the background removes meanwhile has none.
pub(crate) fn bytes(storage: &dyn Storage) -> u64 {
    let entries = storage.list().unwrap().into_iter();
    let size = |entry: keepq::fault::Entry| {
        if entry.is_file {
            match storage.open(&entry.name) {
                Ok(file) => file.size(),
                Err(error) if error.kind() == ErrorKind::NotFound => 0,
                Err(error) => panic!("{}: {error}", entry.name),
            }
        } else {
            bytes(&*storage.directory(&entry.name).unwrap())
        }
    };
    entries.map(size).sum()
}
