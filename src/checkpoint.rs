//! The file that holds the checkpoint.
//!
//! Promises: a power cut during a write leaves the checkpoint before it, or none if there was none.
//! Relies on its caller to sync each write before the next one, so that a write always goes to the
//! older slot. Open works without it.

use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::checkpoint::{Checkpoint, DecodedCheckpoint};
use crate::format::{PAGE, name};
use crate::io::{Storage, StorageFile};
use crate::report::CheckpointState;
use std::io::ErrorKind;
use std::sync::Arc;

/// The largest checkpoint file that is read: one slot for some ten million segments.
const MAX_FILE: u64 = 256 << 20;

/// The file, once it exists.
#[derive(Debug, Default)]
pub(crate) struct CheckpointFile {
    file: Option<Arc<dyn StorageFile>>,
    generation: u64,
    /// Which slot the newest checkpoint is in.
    slot: u64,
    /// The file was renamed to its name, and the directory was not synced since.
    has_new_name: bool,
    written: Option<Checkpoint>,
}

/// What was read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "made once an open")]
pub(crate) enum CheckpointRead {
    /// The file with its newest checkpoint, or without a valid one.
    Known(CheckpointFile, CheckpointState, Option<Checkpoint>),
    /// Written by a newer keepq.
    Newer(u16),
}

impl CheckpointFile {
    /// Reads the newest checkpoint. A damaged file is replaced by the next write. Something else in
    /// its place counts as damaged, too; a directory there makes each write fail. `is_file`: what
    /// the directory has under its name.
    pub(crate) fn read(storage: &dyn Storage, is_file: Option<bool>) -> Result<CheckpointRead> {
        let missing = |state| Ok(CheckpointRead::Known(Self::default(), state, None));
        match is_file {
            None => return missing(CheckpointState::Missing),
            Some(false) => return missing(CheckpointState::Damaged),
            Some(true) => {}
        }
        let wrap = |offset, error| {
            Error::io("read checkpoint", &storage.path(name::CHECKPOINT), offset, error)
        };
        let file = match storage.open(name::CHECKPOINT) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return missing(CheckpointState::Missing);
            }
            result => result.map_err(|error| wrap(0, error))?,
        };
        let half = file.size() / 2;
        if half == 0 || half % PAGE != 0 || file.size() > MAX_FILE {
            return missing(CheckpointState::Damaged);
        }
        let mut this = Self::default();
        let mut newest = None;
        for slot in 0..2 {
            let mut bytes = vec![0; usize::try_from(half).unwrap_or(0)];
            let offset = slot * half;
            file.read_at(offset, &mut bytes).map_err(|error| wrap(offset, error))?;
            match Checkpoint::decode(&bytes) {
                DecodedCheckpoint::Newer(version) => return Ok(CheckpointRead::Newer(version)),
                DecodedCheckpoint::Valid { generation, checkpoint }
                    if generation >= this.generation =>
                {
                    (this.generation, this.slot, newest) = (generation, slot, Some(checkpoint));
                }
                DecodedCheckpoint::Valid { .. } | DecodedCheckpoint::Invalid => {}
            }
        }
        this.file = Some(file);
        let state = if newest.is_some() { CheckpointState::Used } else { CheckpointState::Damaged };
        Ok(CheckpointRead::Known(this, state, newest))
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.size())
    }

    /// Whether there is a file that may name segments.
    pub(crate) fn exists(&self) -> bool {
        self.file.is_some()
    }

    /// Whether this is what was written last.
    pub(crate) fn is_current(&self, checkpoint: &Checkpoint) -> bool {
        self.written.as_ref() == Some(checkpoint)
    }

    /// Writes a checkpoint; it is durable after [`CheckpointFile::sync`].
    pub(crate) fn write(&mut self, storage: &dyn Storage, checkpoint: &Checkpoint) -> Result<()> {
        let wrap = |error| Error::io("write checkpoint", &storage.path(name::CHECKPOINT), 0, error);
        self.written = None;
        let bytes = checkpoint.encode(self.generation + 1);
        match &self.file {
            Some(file) if to_u64(bytes.len()) <= file.size() / 2 => {
                let slot = 1 - self.slot;
                file.write_at(slot * (file.size() / 2), &bytes).map_err(wrap)?;
                self.slot = slot;
            }
            _ => {
                self.file = Some(Self::replace(storage, &bytes).map_err(wrap)?);
                self.has_new_name = true;
                self.slot = 0;
            }
        }
        self.generation += 1;
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(
        &mut self,
        storage: &dyn Storage,
        checkpoint: Checkpoint,
    ) -> std::io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.sync())?;
        if self.has_new_name {
            storage.sync_directory()?;
            self.has_new_name = false;
        }
        self.written = Some(checkpoint);
        Ok(())
    }

    fn replace(storage: &dyn Storage, bytes: &[u8]) -> std::io::Result<Arc<dyn StorageFile>> {
        let half = to_u64(bytes.len()).next_power_of_two().max(PAGE);
        let file = storage.create(name::CHECKPOINT_TMP, 2 * half)?;
        let written = file
            .write_at(0, bytes)
            .and_then(|()| file.sync())
            .and_then(|()| storage.rename(name::CHECKPOINT_TMP, name::CHECKPOINT));
        // The first error is the one to tell; the next open removes a file that stays.
        written.inspect_err(|_| drop(storage.remove(name::CHECKPOINT_TMP)))?;
        Ok(file)
    }
}
