//! A storage that shows each call to a rule, then passes it on.
//!
//! A rule may count a call, hold it up, slow it down or make it fail.

use keepq::fault::{Access, Entry, Region, Storage, StorageFile};
use std::any::Any;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

/// What a queue asks of its storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Op {
    List,
    /// Of a file of this length.
    Create,
    Open,
    /// To this name.
    Rename,
    Remove,
    SyncDirectory,
    SyncParents,
    Read,
    Write,
    Sync,
    Map,
    /// A map is given up: a rule can only count it.
    Unmap,
    /// A part of a map is evicted: a rule can count it and hold it up, but not make it fail.
    Evict,
    /// Bytes or a word of a mapped file.
    Load,
    /// The body of a record in a mapped file.
    LoadBody,
    /// Bytes to a mapped file: a rule can count it and hold it up, but not make it fail.
    Store,
    /// A word to a mapped file: the same.
    StoreWord,
    /// Whether a file still has its name: a rule can count it, and say by `NotFound` that it has
    /// none.
    HasName,
    /// A file may be closed until it is used again: a rule can only count it.
    Release,
}

impl Op {
    pub(crate) fn is_sync(self) -> bool {
        [Self::Sync, Self::SyncDirectory, Self::SyncParents].contains(&self)
    }

    pub(crate) fn is_store(self) -> bool {
        [Self::Store, Self::StoreWord].contains(&self)
    }

    /// Whether it is of memory, and no call of the system.
    pub(crate) fn is_of_memory(self) -> bool {
        [Self::Load, Self::LoadBody].contains(&self) || self.is_store()
    }

    /// Whether it changes what is on the disk, or makes it durable.
    pub(crate) fn is_change(self) -> bool {
        use Op::{Create, Remove, Rename, Write};
        [Create, Rename, Remove, Write].contains(&self) || self.is_store() || self.is_sync()
    }
}

/// A call. `name` is the name of the file, with `dead/` in front if it is a file of the dead
/// letters; where the call is of a whole directory, it is the empty name, or `dead/`. Offset and
/// length are 0 where a call has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'c> {
    pub(crate) op: Op,
    pub(crate) name: &'c str,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

type Rule = Arc<dyn Fn(Call<'_>) -> io::Result<()> + Send + Sync>;

/// A storage, a file or a region whose calls a rule sees first.
pub(crate) struct Watched<T: ?Sized = dyn Storage> {
    inner: Arc<T>,
    rule: Arc<RwLock<Rule>>,
    /// The name of a file, or the beginning of all names in a directory.
    name: String,
}

impl Watched {
    /// Around another storage, without a rule.
    pub(crate) fn around(inner: Arc<dyn Storage>) -> Arc<Self> {
        let nothing: Rule = Arc::new(|_| Ok(()));
        Arc::new(Self { inner, rule: Arc::new(RwLock::new(nothing)), name: String::new() })
    }

    /// From here on this rule sees each call.
    pub(crate) fn rule(&self, rule: impl Fn(Call<'_>) -> io::Result<()> + Send + Sync + 'static) {
        *self.rule.write().unwrap() = Arc::new(rule);
    }

    /// From here on every call passes.
    pub(crate) fn no_rule(&self) {
        self.rule(|_| Ok(()));
    }

    fn see(&self, op: Op, name: &str, len: u64) -> io::Result<()> {
        let name = format!("{}{name}", self.name);
        see(&self.rule, Call { op, name: &name, offset: 0, len })
    }
}

impl<T: ?Sized> Watched<T> {
    fn with<U: ?Sized>(&self, name: &str, inner: Arc<U>) -> Watched<U> {
        Watched { inner, rule: Arc::clone(&self.rule), name: format!("{}{name}", self.name) }
    }

    fn pass(&self, op: Op, offset: u64, len: usize) -> io::Result<()> {
        see(&self.rule, Call { op, name: &self.name, offset, len: len as u64 })
    }
}

fn see(rule: &RwLock<Rule>, call: Call<'_>) -> io::Result<()> {
    // The lock is given up before the rule runs: the rule may wait.
    let rule = Arc::clone(&rule.read().unwrap());
    rule(call)
}

impl<T: ?Sized> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Storage for Watched {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.inner.lock()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.see(Op::List, "", 0)?;
        self.inner.list()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.see(Op::Create, name, size)?;
        Ok(Arc::new(self.with(name, self.inner.create(name, size)?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.see(Op::Open, name, 0)?;
        Ok(Arc::new(self.with(name, self.inner.open(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.see(Op::Rename, to, 0)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.see(Op::Remove, name, 0)?;
        self.inner.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.see(Op::SyncDirectory, "", 0)?;
        self.inner.sync_directory()
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.with(&format!("{name}/"), self.inner.directory(name)?)))
    }

    fn sync_parents(&self) -> io::Result<()> {
        self.see(Op::SyncParents, "", 0)?;
        self.inner.sync_parents()
    }

    fn check_directory(&self) -> io::Result<()> {
        self.inner.check_directory()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
}

impl StorageFile for Watched<dyn StorageFile> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.pass(Op::Read, offset, into.len())?;
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.pass(Op::Write, offset, bytes.len())?;
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass(Op::Sync, 0, 0)?;
        self.inner.sync()
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        self.pass(Op::Map, 0, 0)?;
        Ok(Arc::new(WatchedRegion(self.with("", self.inner.map(access)?))))
    }

    fn release(&self) {
        self.pass(Op::Release, 0, 0).ok();
        self.inner.release();
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.inner.next_data(offset)
    }

    fn extend(&self, size: u64) -> io::Result<()> {
        self.pass(Op::Write, self.inner.size(), 0)?;
        self.inner.extend(size)
    }

    fn has_name(&self) -> io::Result<bool> {
        match self.pass(Op::HasName, 0, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            _ => self.inner.has_name(),
        }
    }

    fn has_other_names(&self) -> io::Result<bool> {
        self.inner.has_other_names()
    }
}

#[derive(Debug)]
struct WatchedRegion(Watched<dyn Region>);

impl Drop for WatchedRegion {
    fn drop(&mut self) {
        self.0.pass(Op::Unmap, 0, 0).ok();
    }
}

impl Region for WatchedRegion {
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.pass(Op::Store, offset, bytes.len()).ok();
        self.0.inner.store(offset, bytes)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.pass(Op::Load, offset, into.len())?;
        self.0.inner.load(offset, into)
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.0.pass(Op::LoadBody, offset, len)?;
        self.0.inner.load_into(offset, len, into)
    }

    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        self.0.pass(Op::StoreWord, offset, 8).ok();
        self.0.inner.store_word(offset, word)
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        self.0.pass(Op::Load, offset, 8)?;
        self.0.inner.load_word(offset)
    }

    fn populate(&self) {
        self.0.inner.populate();
    }

    fn evict(&self, offset: u64, len: u64) {
        self.0.pass(Op::Evict, offset, usize::try_from(len).unwrap()).ok();
        self.0.inner.evict(offset, len);
    }

    fn stores_are_writes(&self) -> bool {
        self.0.inner.stores_are_writes()
    }
}
