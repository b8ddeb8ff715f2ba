//! Physical limits to compare keepq with, and other things that the benchmarks share.

#![allow(dead_code, reason = "each benchmark uses a part of it")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a benchmark, not keepq")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) fn directory() -> tempfile::TempDir {
    match std::env::var_os("KEEPQ_BENCH_DIR") {
        Some(path) => tempfile::tempdir_in(path).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

pub(crate) fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// Copies a payload with its checksum into resident memory under a mutex.
pub(crate) fn resident_copy(bytes: u64) -> impl FnMut(&[u8]) {
    let memory = vec![1u8; usize::try_from(bytes).unwrap()];
    let state = Mutex::new((memory, 0usize));
    move |payload| {
        let check = crc32fast::hash(payload);
        let mut state = state.lock().unwrap();
        let (memory, tail) = &mut *state;
        let end = (*tail + 24 + payload.len()).next_multiple_of(8);
        if end + 24 + payload.len() > memory.len() {
            *tail = 0;
        }
        let at = *tail;
        memory[at..at + 4].copy_from_slice(&check.to_le_bytes());
        memory[at + 24..at + 24 + payload.len()].copy_from_slice(payload);
        *tail = (at + 24 + payload.len()).next_multiple_of(8);
    }
}

/// Copies payloads with their checksums into a mapped file that is allocated and was never stored
/// to, under a mutex.
pub(crate) fn fresh_copy(directory: &Path, bytes: u64) -> impl FnMut(&[u8]) + use<> {
    let path = directory.join("fresh");
    let file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    let size = bytes.next_multiple_of(4096) + 4096;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    #[allow(unsafe_code, reason = "no other code has this file")]
    // SAFETY: the file was made above, and keeps its size.
    let map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    let state = Mutex::new((map, 0usize));
    move |payload| {
        let check = crc32fast::hash(payload);
        let mut state = state.lock().unwrap();
        let (map, tail) = &mut *state;
        let end = (*tail + 24 + payload.len()).next_multiple_of(8);
        map[*tail..*tail + 4].copy_from_slice(&check.to_le_bytes());
        map[*tail + 24..*tail + 24 + payload.len()].copy_from_slice(payload);
        *tail = end;
    }
}

/// Writes and syncs payloads one after the other into a file whose blocks are all written.
pub(crate) fn synced_writes(directory: &Path, bytes: u64) -> impl FnMut(&[u8]) + use<> {
    let path = directory.join("limit");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    for offset in (0..bytes).step_by(4096) {
        file.write_all_at(&[0; 4096], offset).unwrap();
    }
    file.sync_all().unwrap();
    let mut tail = 0;
    move |payload| {
        file.write_all_at(payload, tail).unwrap();
        file.sync_data().unwrap();
        tail = (tail + payload.len() as u64 + 24) % (bytes - 4096);
    }
}

/// KiB that the block device below `directory` writes for each call, by its own counter.
pub(crate) fn written_kib_per(directory: &Path, calls: u32, mut call: impl FnMut()) -> f64 {
    let before = sectors_written(directory);
    (0..calls).for_each(|_| call());
    let after = sectors_written(directory);
    after
        .zip(before)
        .map_or(f64::NAN, |(after, before)| (after - before) as f64 / 2.0 / f64::from(calls))
}

/// Field 7 of the device's `stat` file (Documentation/block/stat.rst of the Linux kernel).
fn sectors_written(directory: &Path) -> Option<u64> {
    let device = File::open(directory).ok()?.metadata().ok()?.dev();
    let (major, minor) = (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00);
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    stat.split_whitespace().nth(6)?.parse().ok()
}

/// The value that `percent` of 100 `values` do not exceed. Sorts them.
pub(crate) fn percentile(values: &mut [Duration], percent: f64) -> Duration {
    values.sort_unstable();
    let is_within = |at: &usize| (*at as f64) < values.len() as f64 * percent / 100.0;
    let at = (0..values.len()).take_while(is_within).last().unwrap_or(0);
    values.get(at).copied().unwrap_or_default()
}
