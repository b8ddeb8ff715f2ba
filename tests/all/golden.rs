//! Directories of format 1 as they were written once: this and every later keepq reads them alike,
//! and so does a reader that knows nothing but `src/docs/format.md`.
//!
//! `KEEPQ_GOLDEN=make cargo test --test all golden::make` writes them anew, with the texts that say
//! what is in them: for a new case, which `KEEPQ_GOLDEN=<its name>` makes alone, or before format 1
//! is released, never to make a failing test pass.

use crate::golden_apart;
use crate::golden_times;
use crate::support::agree::agree_in;
use crate::support::reader::{self, Added, Listed};
use keepq::fault::ManualClock;
use keepq::{Durability, Message, Options, Queue};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(86_400);

/// A name, and what makes the directory.
pub(crate) type Case = (&'static str, fn(&Path));

pub(crate) const CASES: [Case; 10] = [
    ("closed", closed),
    ("killed", killed),
    ("torn", torn),
    ("damaged", damaged),
    ("compacted", compacted),
    ("shifted", shifted),
    ("stepped", golden_times::stepped),
    ("offset", golden_times::offset),
    ("anchored", golden_times::anchored),
    ("apart", golden_apart::apart),
];

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub(crate) fn options() -> Options {
    Queue::options().segment_bytes(65_536).background(false)
}

/// Copies the files of a queue, without its lock.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

pub(crate) fn text(number: u64) -> String {
    format!("message {number}").repeat(1 + number as usize % 5)
}

/// Everything a message and its state can be, in one run that was closed.
fn closed(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push("first").unwrap();
    queue.push("").unwrap();
    queue.push(&[0, 255, 10, 13]).unwrap();
    queue.push(Message::new("pay 42").header("kind", b"refund").header("empty", "")).unwrap();
    queue.push_batch(["batch 1", "batch 2", "batch 3"]).unwrap();
    queue.push(Message::new("transient").transient()).unwrap();
    queue.push(Message::new("").header("only", [1, 2, 3])).unwrap();
    queue.push("x".repeat(40_000)).unwrap();
    queue.push("in the next segment".repeat(2000)).unwrap();
    let mut jobs = queue.pop_batch(6).unwrap();
    jobs.remove(5).nack().unwrap();
    jobs.remove(4).ack().unwrap();
    jobs.remove(2).release().unwrap();
    jobs.remove(0).ack().unwrap();
    drop(jobs);
    queue.pop().unwrap().unwrap().nack().unwrap();
    queue.close().unwrap();
    copy(dir.path(), into);
}

/// Three runs. The first two are killed, the last as well; a file was recycled for smaller messages
/// than it had, numbers were skipped, a segment was let go, a message was handed out twice.
fn killed(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let run = |first: u64, act: &dyn Fn(&Queue)| {
        let work = tempfile::tempdir().unwrap();
        copy(dir.path(), work.path());
        let queue = options().open(work.path()).unwrap();
        queue.push_batch((first..first + 40).map(text)).unwrap();
        act(&queue);
        fs::remove_dir_all(dir.path()).unwrap();
        copy(work.path(), dir.path());
    };
    run(1, &|queue| {
        queue.push_batch((0..3).map(|_| vec![0xAA; 15_000])).unwrap();
        queue.push_batch((0..3).map(|_| vec![0xBB; 15_000])).unwrap();
        queue.ack_batch(queue.pop_batch(44).unwrap()).unwrap();
        queue.maintain().unwrap();
        drop(queue.pop().unwrap());
    });
    run(100, &|queue| {
        queue.push_batch((0..100).map(text)).unwrap();
        drop(queue.pop().unwrap());
        let jobs = queue.pop_batch(9).unwrap();
        let kept = jobs.into_iter().enumerate().filter(|(place, _)| place % 3 == 0);
        queue.ack_batch(kept.map(|(_, job)| job)).unwrap();
    });
    run(300, &|queue| {
        queue.push(Message::new("last").header("where", "at the end")).unwrap();
        queue.sync().unwrap();
    });
    copy(dir.path(), into);
}

/// Few messages are left of many, with gaps between their numbers, in a compacted segment.
fn compacted(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    for number in 1..=100 {
        let message = Message::new(text(number).repeat(30));
        queue.push(message.header("number", number.to_le_bytes())).unwrap();
    }
    queue.push("in the newest segment, which stays".repeat(1000)).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) = queue
        .pop_batch(100)
        .unwrap()
        .into_iter()
        .partition(|job| u64::from(job.seq()).is_multiple_of(17));
    queue.ack_batch(settled).unwrap();
    drop(left);
    drop(queue.pop().unwrap());
    assert_eq!(queue.compact().unwrap().copies(), 1);
    queue.close().unwrap();
    copy(dir.path(), into);
}

/// A clock that was set while the queue was open, and consumers that are halfway: times are not
/// UTC, and CHECKPOINT says how far consumers are.
fn shifted(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 20_000 * DAY));
    let queue = options().clock(clock.clone()).open(dir.path()).unwrap();
    queue.push_batch((1..20).map(text)).unwrap();
    queue.push(Message::new("put off").delay(2 * DAY)).unwrap();
    clock.advance(DAY);
    clock.set_wall(UNIX_EPOCH + 20_100 * DAY);
    queue.push(Message::new("after the step").delay(DAY)).unwrap();
    queue.ack_batch(queue.pop_batch(8).unwrap()).unwrap();
    drop(queue.pop().unwrap());
    queue.close().unwrap();
    copy(dir.path(), into);
}

/// The end of an unconfirmed tail did not reach the disk.
fn torn(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().durability(Durability::Os).open(dir.path()).unwrap();
    queue.push_batch((1..6).map(text)).unwrap();
    queue.sync().unwrap();
    queue.push(text(6)).unwrap();
    queue.push_batch(["torn 1", "torn 2", "torn 3"]).unwrap();
    queue.push("behind").unwrap();
    copy(dir.path(), into);
    change(into, b"torn 2", |bytes| bytes.fill(0));
}

/// A flipped bit in a message that a sync had promised, and in the slot of another.
fn damaged(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch((1..9).map(text)).unwrap();
    queue.push("struck").unwrap();
    queue.push("untouched").unwrap();
    drop(queue.pop_batch(2).unwrap());
    queue.close().unwrap();
    copy(dir.path(), into);
    change(into, b"struck", |bytes| bytes[0] ^= 4);
    let segment = into.join("0000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let slot = bytes.len() - 4096 - 16 * 2;
    bytes[slot] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

/// Changes the only place in a segment that holds this.
fn change(directory: &Path, what: &[u8], change: impl Fn(&mut [u8])) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(what.len()).position(|window| window == what) {
            change(&mut bytes[at..at + what.len()]);
            fs::write(&path, bytes).unwrap();
        }
    }
}

/// What keepq says of a directory: what open found, then every message.
fn told(directory: &Path) -> String {
    let work = tempfile::tempdir().unwrap();
    copy(directory, work.path());
    let queue = options().open(work.path()).unwrap();
    let mut told = String::new();
    let report = queue.recovery();
    writeln!(told, "closed in order: {}", report.was_closed()).unwrap();
    writeln!(told, "checkpoint: {:?}", report.checkpoint()).unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let cut = report.cut().into_iter();
    for damage in cut.chain(&queue.damage()) {
        let (first, last) = (damage.first_seq(), damage.last_seq());
        let name = damage.path().file_name().unwrap().to_str().unwrap();
        let (offset, kind) = (damage.offset(), damage.kind());
        writeln!(told, "{kind:?}: messages {first} to {last}, {name} at {offset}").unwrap();
    }
    writeln!(told, "readable behind the cut: {}", report.dropped()).unwrap();
    let last = queue.last_seq().map_or(0, u64::from);
    let acked = (1..=last).filter(|&seq| matches!(queue.is_acked(seq.into()), Ok(true)));
    writeln!(told, "settled: {:?}", acked.collect::<Vec<u64>>()).unwrap();
    let unknown = (1..=last).filter(|&seq| queue.is_acked(seq.into()).is_err());
    writeln!(told, "unknown: {:?}", ranges(unknown)).unwrap();
    let next = queue.push("next").unwrap();
    writeln!(told, "the next message is {next}").unwrap();
    for job in &jobs {
        let headers = job.headers().map(|(name, value)| (name.to_string(), value.to_vec()));
        tell(&mut told, job.seq().into(), (job.attempts() - 1).into(), headers, job);
    }
    told
}

/// Runs of numbers, both ends included.
fn ranges(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

fn tell(
    told: &mut String,
    seq: u64,
    attempts: u64,
    headers: impl Iterator<Item = (String, Vec<u8>)>,
    payload: &[u8],
) {
    let start = payload.get(..40).unwrap_or(payload).escape_ascii();
    write!(told, "{seq}: attempts {attempts}, {} bytes \"{start}\"", payload.len()).unwrap();
    for (name, value) in headers {
        write!(told, ", {name} = \"{}\"", value.escape_ascii()).unwrap();
    }
    told.push('\n');
}

#[test]
fn make() {
    let Ok(what) = std::env::var("KEEPQ_GOLDEN") else { return };
    for (name, case) in CASES.into_iter().filter(|(name, _)| what == "make" || what == *name) {
        let directory = golden().join(name);
        fs::remove_dir_all(&directory).ok();
        case(&directory);
        fs::write(golden().join(format!("{name}.txt")), told(&directory)).unwrap();
    }
}

#[test]
fn golden_directories_are_read_as_ever() {
    for (name, _) in CASES {
        let expected = fs::read_to_string(golden().join(format!("{name}.txt"))).unwrap();
        let told = told(&golden().join(name));
        assert_eq!(
            told.lines().collect::<Vec<_>>(),
            expected.lines().collect::<Vec<_>>(),
            "{name}"
        );
    }
}

/// For what was written then, and for what is written today.
#[test]
fn the_page_is_enough_to_read_a_queue_by() {
    for (name, case) in CASES {
        let today = tempfile::tempdir().unwrap();
        case(today.path());
        for directory in [&golden().join(name), today.path()] {
            agree_in(directory, name);
            let told = told(directory);
            let expected = told.lines().skip_while(|line| !line.starts_with("the next")).skip(1);
            let mut read = String::new();
            for owed in reader::read(&files_of(directory), u64::MAX / 2).unwrap().owed {
                tell(&mut read, owed.seq, owed.attempts, owed.headers.into_iter(), &owed.payload);
            }
            let read: Vec<&str> = read.lines().collect();
            assert_eq!(read, expected.collect::<Vec<_>>(), "{name}");
        }
    }
}

/// What was added to the end of its body.
#[test]
fn the_page_is_enough_to_read_an_offset_by() {
    for name in ["closed", "shifted"] {
        let (checkpoint, _, segments) = reader::read_checkpoint(&golden().join(name));
        let Added { time, clock_shift, floor, cursor, floor_ordinal, floor_index } =
            checkpoint.added;
        if name == "closed" {
            assert_eq!((time, clock_shift, floor, cursor, floor_ordinal), (0, 0, 0, 0, 0));
            continue;
        }
        let day = 86_400_000_u64;
        assert_eq!((time, clock_shift), (20_001 * day, -99 * day.cast_signed()));
        assert!((8..=9).contains(&floor) && cursor == 10, "{checkpoint:?}");
        let used = segments.iter().find(|used| used.ordinal == floor_ordinal).unwrap();
        assert_eq!(used.first_seq, Some(floor - u64::from(floor_index)));
    }
}

#[test]
fn the_page_is_enough_to_read_a_checkpoint_by() {
    for name in ["closed", "killed"] {
        let (checkpoint, queue_id, segments) = reader::read_checkpoint(&golden().join(name));
        assert_eq!(checkpoint.queue_id, queue_id, "{name}");
        assert!(!checkpoint.segments.is_empty(), "{name}");
        for &Listed { ordinal, first_seq, span } in &checkpoint.segments {
            let used = segments.iter().find(|used| used.ordinal == ordinal);
            let used = used.unwrap_or_else(|| panic!("{name}: {ordinal} is not there"));
            if first_seq > 0 {
                assert_eq!(used.first_seq, Some(first_seq), "{name}: {ordinal}");
            }
            if span > 0 {
                assert_eq!(used.span, Some(span), "{name}: {ordinal}");
            }
            assert!(first_seq <= checkpoint.accounted, "{name}: {ordinal}");
            assert!(ordinal < checkpoint.next_ordinal, "{name}: {ordinal}");
        }
        let last = checkpoint.segments.iter().rev().find(|listed| listed.first_seq > 0);
        assert!(last.is_some_and(|last| last.first_seq <= checkpoint.watermark), "{name}");
        assert!(checkpoint.watermark <= checkpoint.accounted, "{name}: {checkpoint:?}");
        assert!(checkpoint.newest_time > 1_600_000_000_000, "{name}: {checkpoint:?}");
        assert!(checkpoint.accounted < checkpoint.seq_limit, "{name}: {checkpoint:?}");
        assert!(checkpoint.epoch >= 1 && checkpoint.unaccounted.is_sorted(), "{checkpoint:?}");
    }
}

fn files_of(directory: &Path) -> Vec<reader::File> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    paths
        .filter(|path| path.is_file())
        .map(|path| (name(&path), fs::read(&path).unwrap()))
        .collect()
}
