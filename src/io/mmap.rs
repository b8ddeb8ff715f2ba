//! A mapped file, and the writing of its pages: the only `unsafe` code in keepq.
//!
//! Relies on: the file's size never changes and its blocks are allocated (`io/disk/mod.rs` makes
//! files so, `io/disk/file.rs` looks before it maps, and the directory's lock keeps other processes
//! away). Refuses to hand out references into the map: everything is copied, so no `&[u8]` can see
//! bytes change under it.
//!
//! # Races
//!
//! Words (slots, numbers of copies) may be loaded and stored to at the same time: they are atomic.
//! Of all other bytes, none is loaded while it is stored to, because the layers above see to this:
//!
//! * A push stores behind the tail of its segment, and so does what erases the remains of a failed
//!   one. Records are loaded, and searched for, before the tail only (`log/shared_tail.rs`), by an
//!   acquire that pairs with a release of the push.
//! * A copy is stored to before it is in the log, so before anybody looks for a record in it.
//! * Header pages are loaded by reads of the file, not through a map.
//! * A file is used again, and so stored to from its start, only once nobody has it mapped any more
//!   (`Maker::recycle`).
//!
//! Stores that are writes are no accesses of this program's memory: the system copies the bytes,
//! and a load may see some of the old ones and some of the new ones. So may a load beside another
//! program that stores to the file in spite of the lock; checksums find what is not whole.

#![expect(unsafe_code, reason = "the home of unsafe: raw copies in and out of a mapped file")]

use super::outside;
use crate::format::record::HEADER;
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

#[derive(Debug)]
pub(super) struct Map {
    raw: MmapRaw,
    size: u64,
}

impl Map {
    #[expect(clippy::disallowed_types, reason = "mapping needs the file")]
    pub(super) fn new(file: &std::fs::File, size: u64, writable: bool) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let mut options = MmapOptions::new();
        options.len(len);
        let raw =
            if writable { options.map_raw(file)? } else { options.map_raw_read_only(file)? };
        Ok(Self { raw, size })
    }

    /// Copies `bytes` in. The map must be writable.
    pub(super) fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: `at` proved that `to..to + len` lies in the live map, which is writable (the
        // caller's duty, `MappedRegion` holds the switch) and does not overlap a Rust slice, since
        // none into the map exists. No other thread loads or stores these bytes meanwhile: see
        // Races.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    #[inline]
    pub(super) fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = self.at(offset, into.len())?;
        // SAFETY: `at` proved that `from..from + len` lies in the live map; `into` is a Rust slice
        // and so not part of it. No other thread stores to these bytes meanwhile: see Races.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    #[inline]
    pub(super) fn load_header(&self, offset: u64) -> io::Result<[u8; HEADER]> {
        let mut header = [0; HEADER];
        self.load(offset, &mut header).map(|()| header)
    }

    pub(super) fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let from = self.at(offset, len)?;
        into.reserve(len);
        let spare = into.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `at` proved the source, `reserve` the destination, and the two do not overlap. No
        // other thread stores to these bytes meanwhile: see Races.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), spare, len) };
        let filled = into.len() + len;
        // SAFETY: `reserve` made the capacity, and the copy above filled the `len` new bytes.
        unsafe { into.set_len(filled) };
        Ok(())
    }

    /// The pieces of a body behind the place of its header, and then the header. The map must be
    /// writable.
    pub(super) fn store_record(
        &self,
        offset: u64,
        header: &[u8; HEADER],
        body: [&[u8]; 2],
    ) -> io::Result<()> {
        let to = self.at(offset, HEADER + body[0].len() + body[1].len())?;
        let mut behind = to.wrapping_add(HEADER);
        for piece in body.into_iter().filter(|piece| !piece.is_empty()) {
            // SAFETY: `at` proved that the header and both pieces lie in the live map, one behind
            // the other; else as in `store`.
            unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), behind, piece.len()) };
            behind = behind.wrapping_add(piece.len());
        }
        // A kill finds what the processor was told to store: the compiler must not tell it of the
        // header first.
        compiler_fence(Ordering::Release);
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(header.as_ptr(), to, HEADER) };
        Ok(())
    }

    /// One store for each word. The map must be writable.
    #[inline]
    pub(super) fn store_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        let places = self.words(offset, words.len())?.iter();
        // Relaxed: the engine's locks order this with the loads; here each only has to be whole.
        places.zip(words).for_each(|(place, word)| place.store(word.to_le(), Ordering::Relaxed));
        Ok(())
    }

    /// One load for each word.
    #[inline]
    pub(super) fn load_words(&self, offset: u64, into: &mut [u64]) -> io::Result<()> {
        // Relaxed: as in `store_words`.
        let load = |(place, word): (&AtomicU64, &mut u64)| {
            *word = u64::from_le(place.load(Ordering::Relaxed));
        };
        // Eight at a time, and the rest: half of the instructions.
        let (places, last_places) = self.words(offset, into.len())?.as_chunks::<8>();
        let (words, last_words) = into.as_chunks_mut::<8>();
        places
            .iter()
            .zip(words)
            .for_each(|(places, words)| places.iter().zip(words).for_each(load));
        last_places.iter().zip(last_words).for_each(load);
        Ok(())
    }

    /// The same of one word.
    #[inline]
    pub(super) fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        if let Some(place) = self.words(offset, 1)?.first() {
            place.store(word.to_le(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Stores a word where another one is; false if that is not there. The map must be writable.
    #[inline]
    pub(super) fn replace_word(&self, offset: u64, said: u64, word: u64) -> bool {
        let Some([place]) = self.find_words(offset, 1) else { return false };
        // Relaxed, and in two steps: nobody else stores there meanwhile.
        let is_there = place.load(Ordering::Relaxed) == said.to_le();
        if is_there {
            place.store(word.to_le(), Ordering::Relaxed);
        }
        is_there
    }

    /// The same of one word.
    #[inline]
    pub(super) fn load_word(&self, offset: u64) -> io::Result<u64> {
        let place = self.words(offset, 1)?.first();
        Ok(place.map_or(0, |place| u64::from_le(place.load(Ordering::Relaxed))))
    }

    /// Words side by side, each at a multiple of 8.
    #[inline]
    fn words(&self, offset: u64, number: usize) -> io::Result<&[AtomicU64]> {
        let len = || number.saturating_mul(size_of::<u64>());
        self.find_words(offset, number).ok_or_else(|| self.outside(offset, len()))
    }

    /// The same; `None` if they do not lie in the map.
    #[inline]
    fn find_words(&self, offset: u64, number: usize) -> Option<&[AtomicU64]> {
        let len = number.saturating_mul(size_of::<u64>());
        #[expect(clippy::cast_ptr_alignment, reason = "checked in the next line")]
        let first = self.find(offset, len)?.cast::<AtomicU64>();
        // As atomics they have to be: a plain `u64` may have half of that on 32 bits.
        if !first.is_aligned() {
            return None;
        }
        // SAFETY: `find` proved that all of the words lie in the map, which lives as long as
        // `self`; they are aligned. Threads that reach them at the same time do so through here;
        // all other accesses to them are ordered with these: see Races.
        Some(unsafe { slice::from_raw_parts(first, number) })
    }

    /// Where `len` bytes at `offset` lie, if they lie in the map.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> io::Result<*mut u8> {
        match self.find(offset, len) {
            Some(place) => Ok(place),
            None => Err(self.outside(offset, len)),
        }
    }

    // Apart, so that those who find their place need no room on the stack for an error.
    #[cold]
    #[inline(never)]
    fn outside(&self, offset: u64, len: usize) -> io::Error {
        outside(offset, len, self.size)
    }

    /// The same; `None` if they do not.
    #[inline]
    fn find(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        match (end, usize::try_from(offset)) {
            (Some(end), Ok(start)) if end <= self.size => {
                Some(self.raw.as_mut_ptr().wrapping_add(start))
            }
            _ => None,
        }
    }

    /// One page at a time: no read-ahead, and no large folios that one store would dirty whole.
    #[cfg_attr(not(unix), expect(clippy::unused_self, reason = "there is no such advice"))]
    pub(super) fn advise_random(&self) {
        // Advice that is refused changes nothing but speed.
        #[cfg(unix)]
        self.raw.advise(memmap2::Advice::Random).ok();
    }

    /// Takes the pages of a part out of this process: they are faulted in again when they are
    /// needed. `offset`: a multiple of the size of a page.
    #[cfg_attr(not(target_os = "linux"), expect(clippy::unused_self, reason = "nothing is done"))]
    pub(super) fn evict(&self, offset: u64, len: u64) {
        #[cfg(target_os = "linux")]
        if let Ok(len) = usize::try_from(len)
            && let Some(start) = self.find(offset, len)
        {
            let advice = rustix::mm::Advice::LinuxDontNeed;
            // SAFETY: `find` proved that all of it lies in the live map, which is shared with its
            // file: the bytes are those of the file before and after, whoever loads or stores them.
            // Advice that is refused changes nothing but speed.
            unsafe { rustix::mm::madvise(start.cast(), len, advice) }.ok();
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len);
    }

    /// Faults the pages of a part in, writable: a store on the hot path then meets no page fault.
    #[cfg_attr(not(target_os = "linux"), expect(clippy::unused_self, reason = "nothing is stored"))]
    pub(super) fn populate(&self, offset: u64, len: u64) {
        // Kernels before 5.14 do not know this advice; then the stores fault the pages in.
        #[cfg(target_os = "linux")]
        if let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) {
            self.raw.advise_range(memmap2::Advice::PopulateWrite, offset, len).ok();
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len);
    }
}

/// Has the system begin to write what was stored to a part of a file, which makes nothing durable:
/// a sync has less to write then.
#[expect(clippy::disallowed_types, reason = "writing needs the file")]
pub(super) fn begin_to_write(file: &std::fs::File, offset: u64, len: u64) {
    #[cfg(all(target_os = "linux", not(miri)))]
    if let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(file);
        // SAFETY: the descriptor is open for as long as `file` is there, and the call is given no
        // memory of this process. It takes no error of writing away from a later sync; its own are
        // of no use: that tells.
        unsafe { libc::sync_file_range(descriptor, offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (file, offset, len);
}

/// A word in a page that a forked child finds empty.
#[derive(Debug)]
pub(super) struct ForkMark(MmapRaw);

impl ForkMark {
    /// `None` where the system does not empty pages for children.
    pub(super) fn new() -> Option<Self> {
        let page = MmapOptions::new().len(size_of::<AtomicU64>()).map_anon().ok()?;
        let mark = MmapRaw::from(page);
        is_wiped_by_forks(&mark).then_some(Self(mark))
    }

    pub(super) fn word(&self) -> &AtomicU64 {
        #[expect(clippy::cast_ptr_alignment, reason = "a map begins at a page")]
        let at = self.0.as_mut_ptr().cast::<u64>();
        // SAFETY: the map is as long as the word, and begins at a page, so it is aligned. It lives
        // as long as `self`, and nothing else loads or stores its bytes.
        unsafe { AtomicU64::from_ptr(at) }
    }
}

/// Has the system empty a private, anonymous map for forked children; false if it does not.
#[cfg(all(any(target_os = "linux", target_os = "android"), not(miri)))]
fn is_wiped_by_forks(map: &MmapRaw) -> bool {
    let advice = rustix::mm::Advice::LinuxWipeOnFork;
    // SAFETY: the map is live. This process sees no change; in a child its bytes are 0, which is a
    // value of each word in it. The system refuses maps of other kinds.
    unsafe { rustix::mm::madvise(map.as_mut_ptr().cast(), map.len(), advice) }.is_ok()
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(miri))))]
fn is_wiped_by_forks(_map: &MmapRaw) -> bool {
    false
}
