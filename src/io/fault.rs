//! A [`Storage`] that fails or stops at a chosen operation, around any other.

use super::latch::SyncLatch;
use super::{Access, Entry, Region, Storage, StorageFile};
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What goes wrong, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FaultPlan {
    /// Nothing.
    None,
    /// From operation number `at` on, every call fails and nothing reaches the storage any more:
    /// what is in it then is what a crash at this moment leaves.
    CrashAt {
        /// Counted from 0.
        at: u64,
    },
    /// Operation number `at` fails.
    FailAt {
        /// Counted from 0.
        at: u64,
        /// How it fails.
        error: io::ErrorKind,
        /// Whether all later ones fail, too.
        lasting: bool,
    },
    /// Every sync of a file fails.
    FailSyncs {
        /// How it fails.
        error: io::ErrorKind,
    },
    /// Every call that changes nothing fails: listing and locking the directory, and opening,
    /// reading and mapping a file. A file that is mapped already can be read. These calls are not
    /// counted as operations.
    FailReads {
        /// How it fails.
        error: io::ErrorKind,
    },
}

/// Counts the operations on another storage that change something, and makes some of them fail.
///
/// Stores through a [`Region`] count, but fail only in a crash: a store into mapped memory has no
/// way to fail. With [`FaultStorage::stores_can_fail`] they can fail, as they can where stores are
/// writes. A file whose sync failed fails every later one, too, whatever is planned then; those do
/// not count.
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    state: Mutex<FaultState>,
}

#[derive(Debug)]
struct FaultState {
    plan: FaultPlan,
    operations: u64,
    stores_can_fail: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Sync,
    Store,
    Other,
}

impl FaultStorage {
    /// A storage without faults, around another.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        let state = FaultState { plan: FaultPlan::None, operations: 0, stores_can_fail: false };
        Self { inner, faults: Arc::new(Faults { state: Mutex::new(state) }) }
    }

    /// What goes wrong from now on. Operations are counted from 0 again.
    pub fn plan(&self, plan: FaultPlan) {
        let mut state = self.faults.state.lock();
        (state.plan, state.operations) = (plan, 0);
    }

    /// Whether stores can fail like writes.
    pub fn stores_can_fail(&self, on: bool) {
        self.faults.state.lock().stores_can_fail = on;
    }

    /// How many operations there have been since the last plan.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.faults.state.lock().operations
    }
}

impl Faults {
    /// Before an operation that changes nothing; fails if the plan says so.
    fn before_read(&self) -> io::Result<()> {
        match self.state.lock().plan {
            FaultPlan::FailReads { error } => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Before an operation that changes something: counts it, and fails if the plan says so.
    fn before(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.state.lock();
        let number = state.operations;
        state.operations += 1;
        let can_fail = operation != Operation::Store || state.stores_can_fail;
        match state.plan {
            FaultPlan::CrashAt { at } if number >= at => Err(io::Error::other("crashed")),
            FaultPlan::FailAt { at, error, lasting }
                if can_fail && (number == at || lasting && number > at) =>
            {
                Err(error.into())
            }
            FaultPlan::FailSyncs { error } if operation == Operation::Sync => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Storage for FaultStorage {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.faults.before_read()?;
        self.inner.lock()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.faults.before_read()?;
        self.inner.list()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.faults.before(Operation::Other)?;
        let inner = self.inner.create(name, size)?;
        Ok(Arc::new(FaultFile::new(inner, &self.faults)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.faults.before_read()?;
        let inner = self.inner.open(name)?;
        Ok(Arc::new(FaultFile::new(inner, &self.faults)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.sync_directory()
    }

    fn sync_parents(&self) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.sync_parents()
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        self.faults.before(Operation::Other)?;
        let inner = self.inner.directory(name)?;
        Ok(Arc::new(Self { inner, faults: Arc::clone(&self.faults) }))
    }

    fn check_directory(&self) -> io::Result<()> {
        self.inner.check_directory()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
}

#[derive(Debug)]
struct FaultFile {
    inner: Arc<dyn StorageFile>,
    faults: Arc<Faults>,
    latch: SyncLatch,
}

impl FaultFile {
    fn new(inner: Arc<dyn StorageFile>, faults: &Arc<Faults>) -> Self {
        Self { inner, faults: Arc::clone(faults), latch: SyncLatch::default() }
    }
}

impl StorageFile for FaultFile {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.faults.before_read()?;
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let sync = |()| {
            self.faults.before(Operation::Sync)?;
            self.inner.sync()
        };
        self.latch.sync(|| Ok(()), sync)
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        self.faults.before_read()?;
        let inner = self.inner.map(access)?;
        Ok(Arc::new(FaultRegion { inner, faults: Arc::clone(&self.faults) }))
    }

    fn release(&self) {
        self.inner.release();
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.inner.next_data(offset)
    }

    fn extend(&self, size: u64) -> io::Result<()> {
        self.faults.before(Operation::Other)?;
        self.inner.extend(size)
    }

    fn has_name(&self) -> io::Result<bool> {
        self.inner.has_name()
    }

    fn has_other_names(&self) -> io::Result<bool> {
        self.inner.has_other_names()
    }
}

#[derive(Debug)]
struct FaultRegion {
    inner: Arc<dyn Region>,
    faults: Arc<Faults>,
}

impl Region for FaultRegion {
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.faults.before(Operation::Store)?;
        self.inner.store(offset, bytes)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.load(offset, into)
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.inner.load_into(offset, len, into)
    }

    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        self.faults.before(Operation::Store)?;
        self.inner.store_word(offset, word)
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        self.inner.load_word(offset)
    }

    fn load_words(&self, offset: u64, into: &mut [u64]) -> io::Result<()> {
        self.inner.load_words(offset, into)
    }

    fn populate(&self) {
        self.inner.populate();
    }

    fn evict(&self, offset: u64, len: u64) {
        self.inner.evict(offset, len);
    }

    fn stores_are_writes(&self) -> bool {
        self.inner.stores_are_writes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStorage;
    use super::*;

    #[test]
    fn the_first_failed_sync_is_the_last() {
        let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
        let [file, other] = ["file", "other"].map(|name| storage.create(name, 4096).unwrap());
        for plan in [
            FaultPlan::FailSyncs { error: io::ErrorKind::TimedOut },
            FaultPlan::FailAt { at: 0, error: io::ErrorKind::TimedOut, lasting: false },
        ] {
            let file = storage.open("file").unwrap();
            storage.plan(plan);
            assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::TimedOut);
            storage.plan(FaultPlan::None);
            assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::TimedOut);
            file.write_at(0, b"more").unwrap();
            assert!(file.sync().is_err());
        }
        file.sync().expect("another object knows nothing of it");
        other.sync().unwrap();
    }
}
