//! A disk in memory that forgets like a real one.
//!
//! Every sector remembers each version that it had since its file was last synced, and every name
//! each file that it stood for since the directory was last synced. [`MemoryStorage::power_cut`]
//! makes a disk on which each of them has any of those versions, independently of all others. That
//! is the weakest behaviour of a file system that keeps its promises about syncs.

use super::{Access, Entry, Region, Storage, StorageFile, check_bounds, check_words};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const SECTOR: usize = 512;
/// What a disk without a limit holds: more than any test fills.
const UNLIMITED: u64 = 1 << 40;

/// A directory in memory.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
    /// The directories that are locked.
    locked: Arc<Mutex<BTreeSet<String>>>,
    capacity: Option<u64>,
    /// Which directory of the disk this is: empty, or with a slash at its end.
    prefix: String,
}

/// What a power cut does to the sectors and names that were not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashImage {
    /// All are lost.
    Oldest,
    /// All are kept: as if only the process had been killed.
    Newest,
    /// Each has a version of its own, chosen by this seed.
    Mixed(u64),
}

#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<String, usize>,
    /// Directories that were made, each with a slash at its end.
    directories: BTreeSet<String>,
    /// What each changed name stood for since the directory was synced, oldest first.
    old_names: BTreeMap<String, Vec<Option<usize>>>,
    files: Vec<Inode>,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// What each changed sector held since the file was synced, oldest first.
    old_sectors: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    was_synced: bool,
}

impl MemoryStorage {
    /// An empty directory without a limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory on a disk of `bytes` bytes.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        Self { capacity: Some(bytes), ..Self::default() }
    }

    /// The disk that is found after the power was cut now. This one stays as it is.
    #[must_use]
    pub fn power_cut(&self, image: CrashImage) -> Self {
        let disk = self.disk.lock();
        let mut dice = Dice(image);
        let mut after = Disk::default();
        let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
        let names: Vec<&String> = disk.names.keys().chain(disk.old_names.keys()).collect();
        let mut chosen: BTreeMap<&String, Option<usize>> = BTreeMap::new();
        for name in names {
            let now = disk.names.get(name).copied();
            let old = disk.old_names.get(name).map_or(&[][..], Vec::as_slice);
            chosen.entry(name).or_insert_with(|| dice.choose(old, &now));
        }
        for (name, file) in chosen {
            let Some(file) = file else { continue };
            let number = *numbers.entry(file).or_insert_with(|| {
                after.files.push(disk.files[file].after_power_cut(&mut dice));
                after.files.len() - 1
            });
            after.names.insert(name.clone(), number);
        }
        if image == CrashImage::Newest {
            after.directories.clone_from(&disk.directories);
        }
        Self { disk: Arc::new(Mutex::new(after)), capacity: self.capacity, ..Self::default() }
    }

    /// The disk that another process finds after this one was killed: all that was stored is there;
    /// what was not synced still is not.
    #[must_use]
    pub fn killed(&self) -> Self {
        let disk = self.disk.lock();
        let copy = Disk {
            names: disk.names.clone(),
            directories: disk.directories.clone(),
            old_names: disk.old_names.clone(),
            files: disk.files.clone(),
        };
        Self { disk: Arc::new(Mutex::new(copy)), capacity: self.capacity, ..Self::default() }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The bytes of a file, for tests that damage them.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        disk.names.get(name).map(|&file| disk.files[file].bytes.clone())
    }

    /// Replaces or makes a file, durably.
    pub fn write(&self, name: &str, bytes: Vec<u8>) {
        let mut disk = self.disk.lock();
        disk.files.push(Inode { bytes, was_synced: true, ..Inode::default() });
        let number = disk.files.len() - 1;
        disk.names.insert(name.to_string(), number);
    }
}

impl Inode {
    fn after_power_cut(&self, dice: &mut Dice) -> Self {
        let mut bytes = self.bytes.clone();
        for (&sector, old) in &self.old_sectors {
            let now = sector_of(&bytes, sector);
            let chosen = dice.choose(old, &now);
            let place = &mut bytes[sector * SECTOR..];
            let len = place.len().min(SECTOR);
            place[..len].copy_from_slice(&chosen[..len]);
        }
        if !self.was_synced && dice.choose(&[true], &false) {
            bytes.clear();
        }
        Self { bytes, was_synced: true, ..Self::default() }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_bounds(offset, bytes.len(), self.size())?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        if bytes.is_empty() {
            return Ok(());
        }
        for sector in start / SECTOR..=(end - 1) / SECTOR {
            let old = sector_of(&self.bytes, sector);
            self.old_sectors.entry(sector).or_default().push(old);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }
}

/// A sector of a file; what lies behind the file's end is zero.
fn sector_of(bytes: &[u8], sector: usize) -> [u8; SECTOR] {
    let from = &bytes[sector * SECTOR..];
    let len = from.len().min(SECTOR);
    let mut held = [0; SECTOR];
    held[..len].copy_from_slice(&from[..len]);
    held
}

impl Disk {
    fn change(&mut self, name: &str, to: Option<usize>) {
        let now = self.names.get(name).copied();
        self.old_names.entry(name.to_string()).or_default().push(now);
        match to {
            Some(file) => self.names.insert(name.to_string(), file),
            None => self.names.remove(name),
        };
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&file| self.files[file].size()).sum()
    }

    /// Fails if a directory has this name.
    fn check_no_directory(&self, name: &str) -> io::Result<()> {
        let directory = format!("{name}/");
        if self.is_directory(&directory) { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
    }

    /// Whether there is a directory of this name, with a slash at its end.
    fn is_directory(&self, name: &str) -> bool {
        let first = self.names.range(name.to_string()..).next();
        self.directories.contains(name) || first.is_some_and(|(first, _)| first.starts_with(name))
    }

    fn number(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for MemoryStorage {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        if !self.locked.lock().insert(self.prefix.clone()) {
            return Ok(None);
        }
        Ok(Some(Box::new(Unlock(Arc::clone(&self.locked), self.prefix.clone()))))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let disk = self.disk.lock();
        let mut entries = BTreeMap::new();
        let all = disk.names.keys().chain(&disk.directories);
        for name in all.filter_map(|name| name.strip_prefix(&self.prefix)) {
            let (first, is_file) =
                name.split_once('/').map_or((name, true), |(dir, _)| (dir, false));
            entries.insert(first.to_string(), is_file);
        }
        // The directory itself.
        entries.remove("");
        Ok(entries.into_iter().map(|(name, is_file)| Entry::new(name, is_file)).collect())
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.remove(name)?;
        let mut disk = self.disk.lock();
        let capacity = self.capacity.unwrap_or(UNLIMITED);
        if disk.used().saturating_add(size) > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        disk.files.push(Inode { bytes, ..Inode::default() });
        let number = disk.files.len() - 1;
        disk.change(&self.full(name), Some(number));
        drop(disk);
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let disk = self.disk.lock();
        disk.check_no_directory(&self.full(name))?;
        let number = disk.number(&self.full(name))?;
        Ok(Arc::new(MemoryFile { disk: Arc::clone(&self.disk), number }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let number = disk.number(&self.full(from))?;
        disk.check_no_directory(&self.full(to))?;
        disk.change(&self.full(from), None);
        disk.change(&self.full(to), Some(number));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let name = self.full(name);
        disk.check_no_directory(&name)?;
        if disk.names.contains_key(&name) {
            disk.change(&name, None);
        }
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let is_here =
            |name: &str| name.strip_prefix(&self.prefix).is_some_and(|name| !name.contains('/'));
        self.disk.lock().old_names.retain(|name, _| !is_here(name));
        Ok(())
    }

    fn sync_parents(&self) -> io::Result<()> {
        Ok(())
    }

    /// Directories are durable as soon as something in them is.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let prefix = format!("{}/", self.full(name));
        let mut disk = self.disk.lock();
        if disk.names.contains_key(&self.full(name)) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        disk.directories.insert(prefix.clone());
        let (inner, locked) = (Arc::clone(&self.disk), Arc::clone(&self.locked));
        Ok(Arc::new(Self { disk: inner, locked, capacity: self.capacity, prefix }))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(self.full(name))
    }
}

struct Unlock(Arc<Mutex<BTreeSet<String>>>, String);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    number: usize,
}

impl StorageFile for MemoryFile {
    fn size(&self) -> u64 {
        self.disk.lock().files[self.number].size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock();
        let file = &disk.files[self.number];
        check_bounds(offset, into.len(), file.size())?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        into.copy_from_slice(&file.bytes[start..start + into.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.lock().files[self.number].write(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let file = &mut disk.files[self.number];
        file.old_sectors.clear();
        file.was_synced = true;
        Ok(())
    }

    fn map(&self, _access: Access) -> io::Result<Arc<dyn Region>> {
        Ok(Arc::new(Self { disk: Arc::clone(&self.disk), number: self.number }))
    }
}

impl Region for MemoryFile {
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, into)
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        // Before any memory is taken for it.
        check_bounds(offset, len, self.size())?;
        let start = into.len();
        into.resize(start + len, 0);
        self.read_at(offset, &mut into[start..])
    }

    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        check_words(offset, 8, self.size())?;
        self.write_at(offset, &word.to_le_bytes())
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        check_words(offset, 8, self.size())?;
        let mut word = [0; 8];
        self.read_at(offset, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn populate(&self) {}
}

/// Chooses what a power cut leaves of each sector and name.
struct Dice(CrashImage);

impl Dice {
    fn choose<T: Copy>(&mut self, old: &[T], now: &T) -> T {
        match &mut self.0 {
            CrashImage::Newest => *now,
            CrashImage::Oldest => *old.first().unwrap_or(now),
            CrashImage::Mixed(state) => {
                // splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut mixed = *state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                mixed ^= mixed >> 31;
                // Half of the time the newest, else any: long histories must not drown it.
                let versions = u64::try_from(old.len()).unwrap_or(0).max(1);
                let place = usize::try_from((mixed >> 8) % versions).unwrap_or(0);
                if mixed & 1 == 0 { *now } else { *old.get(place).unwrap_or(now) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sector_of_a_file_may_be_a_part_of_one() {
        let storage = MemoryStorage::new();
        let file = storage.create("file", 1000).unwrap();
        file.write_at(510, b"old").unwrap();
        file.sync().unwrap();
        storage.sync_directory().unwrap();
        file.write_at(510, b"new!").unwrap();
        file.write_at(999, b"!").unwrap();
        for (image, start, end) in
            [(CrashImage::Oldest, &b"old\0"[..], 0), (CrashImage::Newest, b"new!", b'!')]
        {
            let bytes = storage.power_cut(image).read("file").unwrap();
            assert_eq!((&bytes[510..514], bytes[999], bytes.len()), (start, end, 1000));
        }
    }

    #[test]
    fn an_empty_directory_outlives_the_process() {
        let storage = MemoryStorage::new();
        storage.directory("empty").unwrap();
        let names = |storage: MemoryStorage| storage.list().unwrap().len();
        assert_eq!(names(storage.killed()), 1);
        assert_eq!(names(storage.power_cut(CrashImage::Newest)), 1);
        assert_eq!(names(storage.power_cut(CrashImage::Oldest)), 0);
    }
}
