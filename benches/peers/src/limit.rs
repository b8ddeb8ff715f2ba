//! The physical limits: what the machine can do at most for the same promise.

use crate::mapped;
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

/// The bytes that stand before each payload.
const HEADER: usize = 24;

/// A checksum and a copy into a map, under a mutex.
pub(crate) struct Copy {
    state: Mutex<(MmapMut, usize)>,
}

impl Copy {
    /// Into anonymous memory whose pages were all touched before. Starts over at its end.
    pub(crate) fn resident(bytes: usize) -> Self {
        let mut map = MmapMut::map_anon(bytes).unwrap();
        map.fill(1);
        Self { state: Mutex::new((map, 0)) }
    }

    /// Into a file whose blocks are allocated and whose pages are touched for the first time.
    pub(crate) fn fresh(directory: &Path, bytes: u64) -> Self {
        let file = made(&directory.join("fresh"));
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        Self { state: Mutex::new((mapped::map(&file), 0)) }
    }

    pub(crate) fn push(&self, payload: &[u8]) {
        let check = crc32fast::hash(payload);
        put(&mut self.state.lock().unwrap(), payload, check);
    }

    /// Takes the mutex once for all of them.
    pub(crate) fn push_batch(&self, payloads: &[&[u8]]) {
        let mut state = self.state.lock().unwrap();
        for payload in payloads {
            put(&mut state, payload, crc32fast::hash(payload));
        }
    }

    /// Copies a payload out of resident memory and checks it, under the mutex.
    pub(crate) fn take(&self, len: usize) -> usize {
        let mut state = self.state.lock().unwrap();
        let (map, tail) = &mut *state;
        if *tail + HEADER + len > map.len() {
            *tail = 0;
        }
        let start = *tail + HEADER;
        let check = u32::from_le_bytes(map[*tail..*tail + 4].try_into().unwrap());
        let payload = map[start..start + len].to_vec();
        *tail = (start + len).next_multiple_of(8);
        drop(state);
        assert_eq!(check, crc32fast::hash(&payload));
        std::hint::black_box(payload).len()
    }

    /// Starts reading what was pushed.
    pub(crate) fn rewind(&self) {
        self.state.lock().unwrap().1 = 0;
    }
}

fn put(state: &mut (MmapMut, usize), payload: &[u8], check: u32) {
    let (map, tail) = state;
    if *tail + HEADER + payload.len() > map.len() {
        *tail = 0;
    }
    let start = *tail + HEADER;
    map[*tail..*tail + 4].copy_from_slice(&check.to_le_bytes());
    map[start..start + payload.len()].copy_from_slice(payload);
    *tail = (start + payload.len()).next_multiple_of(8);
}

/// `pwrite` into a file whose blocks are all written, with a `fdatasync` after each or none.
pub(crate) struct Writes {
    file: File,
    bytes: u64,
    tail: u64,
}

impl Writes {
    pub(crate) fn new(directory: &Path, bytes: u64) -> Self {
        let file = made(&directory.join("limit"));
        // In pieces of a page, so that the page cache keeps single pages.
        for offset in (0..bytes).step_by(4096) {
            file.write_all_at(&[0; 4096], offset).unwrap();
        }
        file.sync_all().unwrap();
        Self { file, bytes, tail: 0 }
    }

    pub(crate) fn write(&mut self, payload: &[u8]) {
        let taken = payload.len() + HEADER;
        if self.tail + taken as u64 > self.bytes {
            self.tail = 0;
        }
        self.file.write_all_at(payload, self.tail).unwrap();
        self.tail += taken as u64;
    }

    pub(crate) fn write_synced(&mut self, payload: &[u8]) {
        self.write(payload);
        self.file.sync_data().unwrap();
    }
}

/// Reads bytes of a file by one thread, as a recovery that scans one segment does.
pub(crate) fn read_all(file: &File, bytes: u64) {
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < bytes {
        file.read_exact_at(&mut buffer, offset).unwrap();
        offset += buffer.len() as u64;
    }
    std::hint::black_box(buffer);
}

pub(crate) fn made(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).unwrap()
}
