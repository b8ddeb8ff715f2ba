//! The calls that are `unsafe`: a mapped file, and LMDB, which maps one.

#![allow(unsafe_code, reason = "each call below has its proof")]

use heed::{Env, EnvFlags, EnvOpenOptions};
use memmap2::MmapMut;
use std::fs::File;
use std::path::Path;

/// The address space of one LMDB database; the file grows as it is written.
const LMDB_MAP: usize = 16 << 30;

/// Maps a file of this program's own.
pub(crate) fn map(file: &File) -> MmapMut {
    // SAFETY: the caller made the file in a fresh directory and keeps its size; no other process
    // has it.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

/// Opens an LMDB database in a directory of this program's own.
pub(crate) fn lmdb(path: &Path, is_synced: bool) -> Env {
    let mut options = EnvOpenOptions::new();
    options.map_size(LMDB_MAP).max_readers(128);
    if !is_synced {
        // SAFETY: WRITE_MAP lets a stray store damage the database, and NO_SYNC a power cut; the
        // directory is a scratch one.
        unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP) };
    }
    // SAFETY: nothing else changes the file, and this process opens it once at a time.
    unsafe { options.open(path) }.unwrap()
}
