//! What keepq and the reader of the page say of the same directory.
//!
//! Both read the directory as it was left, before keepq has written to it: keepq gets a copy.

use super::reader::{self, File, Left, Ranges};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{DamageKind, Error, Options, Queue};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// It takes twice as long as the rest.
const SLOTS_LOOKED_AT: u64 = 16;

/// Longer than any delay.
const LONG: Duration = Duration::from_secs(3600 * 24 * 365);

/// Numbers beyond this many are not asked for one by one.
const MOST_ASKED: u64 = 30_000;

/// All files of a storage, directories left out.
pub(crate) fn files(storage: &dyn Storage) -> Vec<File> {
    let entries = storage.list().unwrap().into_iter().filter(|entry| entry.is_file);
    let read = |name: String| {
        let file = storage.open(&name).unwrap();
        let mut bytes = vec![0; file.size() as usize];
        file.read_at(0, &mut bytes).unwrap();
        (name, bytes)
    };
    entries.map(|entry| read(entry.name)).collect()
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Fails if the two do not agree on what is in this directory, opened now.
pub(crate) fn agree_in(directory: &Path, context: &str) {
    let disk = MemoryStorage::new();
    for (prefix, directory) in [("", directory), ("dead/", &directory.join("dead"))] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            disk.write(&format!("{prefix}{name}"), fs::read(&path).unwrap());
        }
    }
    agree(&disk, context);
}

/// Fails if the two do not agree on what is on this disk, opened now, or (looked at once in
/// [`SLOTS_LOOKED_AT`] times) if that is another without one of CHECKPOINT's slots.
pub(crate) fn agree(disk: &MemoryStorage, context: &str) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let now = millis(SystemTime::now());
    agree_at(disk, now, context);
    if CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(SLOTS_LOOKED_AT) {
        either_slot_serves(disk, now, context);
    }
}

/// Before anything is deleted, both slots of CHECKPOINT say so. So each of them may rot.
pub(crate) fn either_slot_serves(disk: &MemoryStorage, now: u64, context: &str) {
    let files = files(disk);
    let whole = reader::read(&files, now).unwrap();
    for slot in 0..2 {
        let mut files = files.clone();
        let Some((_, bytes)) = files.iter_mut().find(|(name, _)| name == "CHECKPOINT") else {
            return;
        };
        let half = bytes.len() / 2;
        bytes[slot * half..][..half].fill(0);
        let left = reader::read(&files, now).unwrap();
        let context = format!("{context}: without slot {slot}");
        let seqs = |left: &Left| left.owed.iter().map(|owed| owed.seq).collect::<Vec<_>>();
        assert_eq!(seqs(&left), seqs(&whole), "{context}: messages");
        let mut more = left.lost;
        whole.lost.iter().for_each(|(first, last)| more.remove(first, last));
        assert_eq!(more, Ranges::default(), "{context}: lost");
    }
}

/// The same, opened at a time, in milliseconds since 1970.
pub(crate) fn agree_at(disk: &MemoryStorage, now: u64, context: &str) {
    let files = files(disk);
    let read = reader::read(&files, now);
    let copy = Arc::new(disk.killed());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_millis(now)));
    let options = Queue::options().segment_bytes(65_536).background(false).max_attempts(0);
    let options: Options = options.storage(copy).clock(clock.clone());
    match (options.open("memory"), read) {
        (Ok(queue), Ok(left)) => {
            compare(&queue, &left, now, context);
            // A delayed message that is damaged is found when it is due.
            clock.advance(LONG);
            drop(queue.pop_batch(usize::MAX).unwrap());
            compare_numbers(&queue, &left, context);
            // So is one that is on its way to the dead letters, when it is moved.
            queue.maintain().unwrap();
            compare_lost(&queue, &left, context);
            let next: u64 = queue.push("next").unwrap().into();
            assert_eq!(next, left.next_seq, "{context}: the next number of keepq, the reader");
        }
        (Err(error), Err(refusal)) => {
            let is_same = match refusal {
                reader::Refusal::Newer => matches!(error, Error::UnsupportedVersion { .. }),
                reader::Refusal::Unreadable => matches!(error, Error::Corrupt { .. }),
            };
            assert!(is_same, "{context}: {error}, {refusal:?}");
        }
        (opened, read) => panic!("{context}: keepq {opened:?}, reader {read:?}"),
    }
}

/// What a clock shows at this time of the queue, opened at `now`. keepq takes a clock for right
/// that is wrong by less than half a second.
fn shown(time: u64, left: &Left, now: u64) -> u64 {
    let exact = left.start.cast_signed() - now.cast_signed();
    let is_right = exact.abs_diff(left.clock_shift) < 500;
    time.saturating_add_signed(-if is_right { left.clock_shift } else { exact })
}

fn compare(queue: &Queue, left: &Left, now: u64, context: &str) {
    let report = queue.recovery();
    let cut = report.cut().map(|cut| (u64::from(cut.first_seq()), report.dropped()));
    let cut_read = left.cut.map(|cut| (cut.first_seq, cut.dropped));
    assert_eq!(cut, cut_read, "{context}: the cut of keepq, and of the reader");
    let kept: Vec<_> = queue.iter().map(|message| message.unwrap()).collect();
    let seqs: Vec<u64> = kept.iter().map(|message| message.seq().into()).collect();
    let seqs_read: Vec<u64> = left.owed.iter().map(|owed| owed.seq).collect();
    assert_eq!(seqs, seqs_read, "{context}: messages of keepq, and of the reader");
    for (message, owed) in kept.iter().zip(&left.owed) {
        let headers: Vec<_> =
            message.headers().map(|(name, value)| (name.to_string(), value.to_vec())).collect();
        let seq = owed.seq;
        assert!(message[..] == owed.payload && headers == owed.headers, "{context}: {seq}");
        assert_eq!(u64::from(message.attempts()), owed.attempts, "{context}: attempts of {seq}");
        assert_eq!(millis(message.pushed_at()), owed.pushed_at, "{context}: push time of {seq}");
        let due = Some(owed.due).filter(|&due| due > 0).map(|due| shown(due, left, now));
        assert_eq!(message.not_before().map(millis), due, "{context}: when {seq} is due");
        let one = queue.get(seq.into()).unwrap().unwrap();
        assert_eq!(one.not_before(), message.not_before(), "{context}: get {seq}");
    }
    let found = queue.pop_batch(usize::MAX).unwrap();
    let ready: Vec<u64> = found.iter().map(|job| job.seq().into()).collect();
    let ready_read: Vec<u64> =
        left.owed.iter().filter(|owed| owed.due == 0).map(|owed| owed.seq).collect();
    assert_eq!(ready, ready_read, "{context}: ready messages of keepq, and of the reader");
}

/// All that the reader misses is told. keepq may name settled ones beside them: it tells the range
/// between two whole records.
fn compare_lost(queue: &Queue, left: &Left, context: &str) {
    let mut told = Ranges::default();
    for damage in queue.damage() {
        let is_lost = matches!(damage.kind(), DamageKind::Corrupt | DamageKind::Segment);
        if is_lost {
            told.add(damage.first_seq().into(), damage.last_seq().into());
        }
    }
    let mut untold = left.lost.clone();
    told.iter().for_each(|(first, last)| untold.remove(first, last));
    assert_eq!(untold, Ranges::default(), "{context}: lost, and keepq tells only {told:?}");
    let seqs = left.owed.iter().map(|owed| owed.seq);
    let kept: Vec<u64> = seqs.filter(|&seq| told.has(seq) && !left.overlapping.has(seq)).collect();
    assert!(kept.is_empty(), "{context}: lost for keepq, but there: {kept:?}");
}

fn compare_numbers(queue: &Queue, left: &Left, context: &str) {
    // Those on their way to the dead letters may have arrived.
    for seq in asked(left.next_seq).filter(|seq| !left.dying.contains(seq)) {
        let told = match queue.is_acked(seq.into()) {
            Err(Error::UnknownSeq { .. }) => None,
            told => Some(told.unwrap()),
        };
        assert_eq!(told, left.is_settled(seq), "{context}: is {seq} settled for keepq, the reader");
    }
}

/// The numbers that both are asked for.
fn asked(next: u64) -> impl Iterator<Item = u64> {
    let few = MOST_ASKED.min(next.saturating_add(10));
    (0..few).chain(next.saturating_sub(100).max(few)..=next)
}
