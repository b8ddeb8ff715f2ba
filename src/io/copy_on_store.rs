//! A file of an earlier run, which is stored to only once nobody else knows it.
//!
//! Promises: until the first store nothing is written, and what is missing reads as zeros. Before
//! that store, a file that is shorter than it has to be is made longer: it reads the same before
//! and after, so a crash in between does no harm. But one that has other names (hard links) by
//! then, or that the storage cannot make longer, is copied. The copy takes the name once it is
//! durable, and stores begin once the name is. Links that are made later are not seen. Relies on
//! the queue's lock for the temporary name.

use super::latch::Unopened;
use super::{Access, Region, Storage, StorageFile, check_bounds};
use crate::format::bytes::to_u64;
use crate::format::name;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Bytes that are copied at a time.
const STEP: u64 = 1 << 20;

/// The file, or the copy in its place.
#[derive(Debug)]
pub(crate) struct CopyOnStore {
    storage: Arc<dyn Storage>,
    name: String,
    size: u64,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    /// `None`: the copy, which has the name, could not be opened yet.
    file: Option<Arc<dyn StorageFile>>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nothing was stored.
    Original,
    /// It can be stored to.
    Own,
    /// The copy has the name, and perhaps not durably: nothing can be stored for good.
    Failed(io::ErrorKind),
}

impl CopyOnStore {
    /// `file` has this name in `storage`; what is stored to has `size` bytes.
    pub(crate) fn new(
        storage: &Arc<dyn Storage>,
        name: &str,
        file: Arc<dyn StorageFile>,
        size: u64,
    ) -> Self {
        let used = Mutex::new(Used { file: Some(file), phase: Phase::Original });
        Self { storage: Arc::clone(storage), name: name.to_string(), size, used }
    }

    fn file(&self) -> io::Result<Arc<dyn StorageFile>> {
        self.open(&mut self.used.lock())
    }

    /// The file as it is, or the copy that has its name.
    fn open(&self, used: &mut Used) -> io::Result<Arc<dyn StorageFile>> {
        if let Some(file) = &used.file {
            return Ok(Arc::clone(file));
        }
        let file = self.storage.open(&self.name)?;
        used.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// The file that can be stored to.
    fn own(&self) -> io::Result<Arc<dyn StorageFile>> {
        let mut used = self.used.lock();
        match used.phase {
            Phase::Own => return self.open(&mut used),
            Phase::Failed(kind) => {
                return Err(io::Error::new(kind, "an earlier sync of the directory failed"));
            }
            Phase::Original => {}
        }
        let original = self.open(&mut used)?;
        if !original.has_other_names()? {
            if original.size() >= self.size {
                used.phase = Phase::Own;
                return Ok(original);
            }
            if self.extend_file(&*original)? {
                // What is open has the old size.
                *used = Used { file: None, phase: Phase::Own };
                return self.open(&mut used);
            }
        }
        let temporary = name::copy_of(&self.name);
        let renamed = self
            .copy_to(&temporary, &*original)
            .and_then(|()| self.storage.rename(&temporary, &self.name));
        renamed.inspect_err(|_| {
            // The first error is the one to tell; the next open removes a file that stays.
            self.storage.remove(&temporary).ok();
        })?;
        // From here on the copy is the file, whatever fails: the original has lost its name.
        *used = Used { file: None, phase: Phase::Own };
        let synced = self.storage.sync_directory();
        synced.inspect_err(|error| used.phase = Phase::Failed(error.kind()))?;
        self.open(&mut used)
    }

    /// Makes the file as long as it has to be; false if the storage cannot do that.
    fn extend_file(&self, file: &dyn StorageFile) -> io::Result<bool> {
        match file.extend(self.size) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn copy_to(&self, temporary: &str, from: &dyn StorageFile) -> io::Result<()> {
        let to = self.storage.create(temporary, self.size)?;
        let end = self.size.min(from.size());
        let mut bytes = Vec::new();
        let mut offset = 0;
        while offset < end {
            let len = STEP.min(end - offset);
            bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            from.read_at(offset, &mut bytes)?;
            to.write_at(offset, &bytes)?;
            offset += len;
        }
        to.sync()
    }
}

impl StorageFile for CopyOnStore {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check_bounds(offset, into.len(), self.size)?;
        let file = self.file()?;
        let there = file.size().saturating_sub(offset).min(to_u64(into.len()));
        let (there, missing) = into.split_at_mut(usize::try_from(there).unwrap_or(0));
        missing.fill(0);
        if there.is_empty() { Ok(()) } else { file.read_at(offset, there) }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.own()?.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        // Nothing is lost by a copy that could not be opened to be synced.
        self.file().map_err(Unopened::wrap)?.sync()
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        self.own()?.map(access)
    }

    fn release(&self) {
        if let Some(file) = &self.used.lock().file {
            file.release();
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let file = self.file()?;
        if offset >= file.size() { Ok(self.size) } else { file.next_data(offset) }
    }

    fn has_name(&self) -> io::Result<bool> {
        self.file()?.has_name()
    }

    fn has_other_names(&self) -> io::Result<bool> {
        self.file()?.has_other_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::fault::{FaultPlan, FaultStorage};
    use crate::io::memory::MemoryStorage;

    const SIZE: u64 = (1 << 20) + 8192;
    const SHORT: u64 = (1 << 20) + 5;

    fn short(storage: &Arc<dyn Storage>) -> CopyOnStore {
        let file = storage.create("1.seg", SHORT).unwrap();
        file.write_at(SHORT - 3, b"end").unwrap();
        CopyOnStore::new(storage, "1.seg", file, SIZE)
    }

    fn end(file: &dyn StorageFile) -> Vec<u8> {
        let mut bytes = vec![9; 8];
        file.read_at(SHORT - 4, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_missing_is_zero_and_the_copy_is_whole() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let file = short(&storage);
        assert_eq!(end(&file), b"\0end\0\0\0\0");
        assert_eq!(storage.open("1.seg").unwrap().size(), SHORT, "nothing is written by a read");
        assert!(file.read_at(SIZE - 7, &mut [0; 8]).is_err());
        let original = storage.open("1.seg").unwrap();
        let region = file.map(Access::Commits).unwrap();
        region.store(SIZE - 4, b"last").unwrap();
        file.sync().unwrap();
        let copy = storage.open("1.seg").unwrap();
        let mut last = [0; 4];
        copy.read_at(SIZE - 4, &mut last).unwrap();
        assert_eq!((copy.size(), end(&*copy), &last), (SIZE, end(&file), b"last"));
        assert_eq!(original.size(), SHORT);
        assert_eq!(storage.list().unwrap().len(), 1);
    }

    #[test]
    fn a_copy_that_fails_leaves_the_file_and_a_name_that_is_not_durable_is_not_stored_to() {
        let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
        let storage: Arc<dyn Storage> = faults.clone();
        let file = short(&storage);
        let error = io::ErrorKind::TimedOut;
        let mut failures = 0;
        loop {
            let at = faults.operations() + failures;
            faults.plan(FaultPlan::FailAt { at, error, lasting: false });
            let result = file.map(Access::Commits).map(drop);
            faults.plan(FaultPlan::None);
            if result.is_ok() {
                break;
            }
            failures += 1;
            if storage.open("1.seg").unwrap().size() == SIZE {
                // That was the sync of the directory.
                assert!(file.map(Access::Commits).is_err());
                break;
            }
            assert_eq!(storage.list().unwrap().len(), 1, "failure {failures}");
        }
        assert!(failures >= 4, "{failures}");
    }
}
