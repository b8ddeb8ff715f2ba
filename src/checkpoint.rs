//! The file that holds the checkpoint.
//!
//! Promises: a power cut during a write leaves the checkpoint before it, or none if there was none.
//! Open works without it, and with either of its slots: what must not be forgotten is stored in
//! both. Only a file that was read as a checkpoint is written to; anything else in its place is
//! replaced. Relies on its caller to sync each write: the next one goes to the older slot then, and
//! to the same slot if the sync could not begin.

use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::checkpoint::{Added, Checkpoint, DecodedCheckpoint};
use crate::format::limits::NUMBER_END;
use crate::format::{PAGE, name};
use crate::io::{Storage, StorageFile, is_unreadable};
use crate::report::CheckpointState;
use crate::time::Shift;
use std::io::ErrorKind;
use std::sync::Arc;

/// The largest checkpoint file that is read: one slot for some ten million segments.
const MAX_FILE: u64 = 256 << 20;

/// As many slots as there are: if one of them rots, the other says the same.
pub(crate) const SLOTS: usize = 2;

/// The file, once it exists.
#[derive(Debug, Default)]
pub(crate) struct CheckpointFile {
    file: Option<Arc<dyn StorageFile>>,
    generation: u64,
    /// Another file has the name, which is replaced, and may be read as a checkpoint until then.
    has_another: bool,
    /// Which slot the newest checkpoint is in.
    newer: usize,
    /// The newer slot was written to, and not synced since.
    has_unsynced: bool,
    /// The file was renamed to its name, and the directory was not synced since.
    has_new_name: bool,
    /// What was written to each slot and synced.
    slots: [Option<Arc<Checkpoint>>; SLOTS],
}

/// What was read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "made once an open")]
pub(crate) enum CheckpointRead {
    /// The file with its newest checkpoint, or without a valid one.
    Known(CheckpointFile, CheckpointState, Option<Checkpoint>),
    /// As before, and one of its slots could not be read or found.
    Partly(CheckpointFile, Checkpoint),
    /// Written by a newer keepq.
    Newer(u16),
}

impl CheckpointFile {
    /// Reads the newest checkpoint. A damaged or unreadable file, or something else in its place,
    /// is replaced by the next write; a directory there makes each write fail. `is_file`: what
    /// the directory has under its name.
    pub(crate) fn read(storage: &dyn Storage, is_file: Option<bool>) -> Result<CheckpointRead> {
        let has_another = is_file == Some(true);
        let without = |state| {
            let this = Self { has_another, ..Self::default() };
            Ok(CheckpointRead::Known(this, state, None))
        };
        match is_file {
            None => return without(CheckpointState::Missing),
            Some(false) => return without(CheckpointState::Damaged),
            Some(true) => {}
        }
        let wrap = |operation, offset, error| {
            Error::io(operation, &storage.path(name::CHECKPOINT), offset, error)
        };
        let file = match storage.open(name::CHECKPOINT) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return without(CheckpointState::Missing);
            }
            Err(error) if is_unreadable(&error) => return without(CheckpointState::Unreadable),
            Err(error) => return Err(wrap("open checkpoint", 0, error)),
        };
        let size = file.size();
        if size > MAX_FILE {
            return without(CheckpointState::Damaged);
        }
        // Of a file that was cut or made longer only the place of the first slot is known.
        let (slots, len) = if (size / 2) % PAGE == 0 { (SLOTS, size / 2) } else { (1, size) };
        let mut this = Self::default();
        let (mut newest, mut unreadable) = (None, 0);
        for slot in 0..slots {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            let offset = to_u64(slot) * len;
            match file.read_at(offset, &mut bytes) {
                Err(error) if is_unreadable(&error) => {
                    unreadable += 1;
                    continue;
                }
                result => result.map_err(|error| wrap("read checkpoint", offset, error))?,
            }
            match Checkpoint::decode(&bytes) {
                DecodedCheckpoint::Newer(version) => return Ok(CheckpointRead::Newer(version)),
                DecodedCheckpoint::Valid { generation, checkpoint }
                    if generation >= this.generation =>
                {
                    (this.generation, this.newer, newest) = (generation, slot, Some(checkpoint));
                }
                DecodedCheckpoint::Valid { .. } | DecodedCheckpoint::Invalid => {}
            }
        }
        file.release();
        match newest {
            None if unreadable > 0 => without(CheckpointState::Unreadable),
            None => without(CheckpointState::Damaged),
            Some(checkpoint) if unreadable > 0 || slots < SLOTS => {
                let generation = this.generation;
                let this = Self { generation, has_another, ..Self::default() };
                Ok(CheckpointRead::Partly(this, checkpoint))
            }
            Some(checkpoint) => {
                // What has another name may be known by that, and is replaced.
                let is_own = !file.has_other_names().unwrap_or(true);
                this.file = is_own.then_some(file);
                this.has_another = !is_own;
                Ok(CheckpointRead::Known(this, CheckpointState::Used, Some(checkpoint)))
            }
        }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.size())
    }

    /// Whether there is a file that may name segments.
    pub(crate) fn exists(&self) -> bool {
        self.file.is_some() || self.has_another
    }

    /// In how many slots this checkpoint is, the newer one among them, written by this run and
    /// synced. How far consumers are does not count: that is a hint, and changes all the time.
    pub(crate) fn slots_with(&self, checkpoint: &Checkpoint) -> usize {
        let says_the_same = |known: &Arc<Checkpoint>| known.says_the_same(checkpoint);
        let has = |slot: usize| self.slots[slot].as_ref().is_some_and(says_the_same);
        if has(self.newer) { 1 + usize::from(has(1 - self.newer)) } else { 0 }
    }

    /// Whether a slot may not say which numbers this checkpoint says are missing, which segments
    /// are left out, or how the clock was set.
    pub(crate) fn may_lack_facts_of(&self, checkpoint: &Checkpoint) -> bool {
        let Checkpoint { unaccounted, added: Added { clock, apart, .. }, .. } = checkpoint;
        let has = |slot: &Option<Arc<Checkpoint>>| {
            slot.as_ref().is_some_and(|known| {
                let added = &known.added;
                (&known.unaccounted, &added.apart.left_out) == (unaccounted, &apart.left_out)
                    && added.clock.shift == clock.shift
            })
        };
        let has_any = !unaccounted.is_empty()
            || !apart.left_out.is_empty()
            || clock.shift != Shift::default();
        has_any && !self.slots.iter().all(has)
    }

    /// Writes a checkpoint; it is durable after [`CheckpointFile::sync`].
    pub(crate) fn write(&mut self, storage: &dyn Storage, checkpoint: &Checkpoint) -> Result<()> {
        let wrap = |error| Error::io("write checkpoint", &storage.path(name::CHECKPOINT), 0, error);
        // At the end of generations, they begin again in a file of their own.
        let is_last = self.generation + 1 >= NUMBER_END;
        let generation = if is_last { 1 } else { self.generation + 1 };
        let bytes = checkpoint.encode(generation);
        match &self.file {
            Some(file)
                if !is_last
                    && to_u64(bytes.len()) <= file.size() / 2
                    // What others know by another name is not written to.
                    && !file.has_other_names().unwrap_or(true) =>
            {
                // A write that could not be synced is written again: the other slot is durable.
                let slot = if self.has_unsynced { self.newer } else { 1 - self.newer };
                self.slots[slot] = None;
                file.write_at(to_u64(slot) * (file.size() / 2), &bytes).map_err(wrap)?;
                self.newer = slot;
            }
            _ => {
                self.file = Some(Self::replace(storage, &bytes)?);
                self.has_another = false;
                self.has_new_name = true;
                self.slots = [None, None];
                self.newer = 0;
            }
        }
        self.has_unsynced = true;
        self.generation = generation;
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(
        &mut self,
        storage: &dyn Storage,
        checkpoint: &Arc<Checkpoint>,
    ) -> std::io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.sync())?;
        if self.has_new_name {
            storage.sync_directory()?;
            self.has_new_name = false;
        }
        self.has_unsynced = false;
        self.slots[self.newer] = Some(Arc::clone(checkpoint));
        Ok(())
    }

    /// The next one is written whatever it says.
    pub(crate) fn forget(&mut self) {
        self.slots = [None, None];
    }

    /// Closes it: nothing is written any more.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    fn replace(storage: &dyn Storage, bytes: &[u8]) -> Result<Arc<dyn StorageFile>> {
        let wrap = |name| {
            let path = storage.path(name);
            move |error| Error::io("write checkpoint", &path, 0, error)
        };
        let half = to_u64(bytes.len()).next_power_of_two().max(PAGE);
        let created = storage.create(name::CHECKPOINT_TMP, 2 * half);
        // Something else may be in its place.
        let file = created.map_err(wrap(name::CHECKPOINT_TMP))?;
        let written = file
            .write_at(0, bytes)
            .and_then(|()| file.sync())
            .and_then(|()| storage.rename(name::CHECKPOINT_TMP, name::CHECKPOINT));
        // The first error is the one to tell; the next open removes a file that stays.
        let written = written.inspect_err(|_| drop(storage.remove(name::CHECKPOINT_TMP)));
        written.map_err(wrap(name::CHECKPOINT))?;
        Ok(file)
    }
}
