//! What `is_acked` says of messages that were lost, when the loss was told to nobody who lived on.
//!
//! Each story was found by reading the code against the promise: a lost message must never count as
//! settled, however many kills lie between the damage and the question.

use keepq::{Error, Options, Queue};
use std::fs;
use std::path::{Path, PathBuf};

fn options() -> Options {
    Queue::options().segment_bytes(65_536).background(false)
}

/// The directory as a kill would leave it now.
fn killed(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn segment(directory: &Path, ordinal: u64) -> PathBuf {
    directory.join(format!("{ordinal:016x}.seg"))
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn is_unknown(queue: &Queue, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let told = queue.is_acked(seq.into());
        assert!(matches!(told, Err(Error::UnknownSeq { .. })), "message {seq}: {told:?}");
    }
}

/// The newest segment goes missing after a checkpoint that lists it as in use, count unknown.
#[test]
fn the_segment_in_use_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch((0..100).map(|n| format!("message {n}"))).unwrap();
    queue.maintain().unwrap();
    let after = killed(dir.path());
    fs::remove_file(segment(after.path(), 1)).unwrap();
    let queue = options().open(after.path()).unwrap();
    is_unknown(&queue, 1..=100);
    let damage = queue.damage();
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].first_seq(), damage[0].last_seq()), (1.into(), 100.into()));
}

/// The end of the log rots; the run that tells of it seals what is left, and is killed before it
/// writes a checkpoint. The next run sees a sealed segment and an old checkpoint.
#[test]
fn the_end_is_shorter_than_the_checkpoint_says() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch((0..100).map(|n| format!("message {n:03}"))).unwrap();
    queue.maintain().unwrap();
    let damaged = killed(dir.path());
    change(&segment(damaged.path(), 1), |bytes| {
        let at = bytes.windows(11).position(|window| window == b"message 080").unwrap();
        let end = bytes.windows(11).position(|window| window == b"message 099").unwrap();
        bytes[at - 24..end + 11].fill(0);
    });
    let queue = options().open(damaged.path()).unwrap();
    assert_eq!(queue.damage()[0].first_seq(), 81.into());
    queue.push("a new epoch").unwrap();
    let after = killed(damaged.path());
    drop(queue);
    let queue = options().open(after.path()).unwrap();
    assert_eq!(queue.len(), 81);
    is_unknown(&queue, 81..=100);
    queue.ack_batch(queue.pop_batch(80).unwrap()).unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = options().open(after.path()).unwrap();
    is_unknown(&queue, 81..=100);
    assert!((1..=80).all(|seq| queue.is_acked(seq.into()).unwrap()));
}

/// A message is found damaged, and the run that found it is killed before it writes a checkpoint.
/// The slot says that it is lost; then its segment is let go.
#[test]
fn a_lost_slot_goes_with_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch(["first", "struck", "third"]).unwrap();
    queue.close().unwrap();
    change(&segment(dir.path(), 1), |bytes| {
        let at = bytes.windows(6).position(|window| window == b"struck").unwrap();
        bytes[at] ^= 1;
    });
    let queue = options().open(dir.path()).unwrap();
    let jobs = queue.pop_batch(9).unwrap();
    assert_eq!(jobs.len(), 2);
    queue.ack_batch(jobs).unwrap();
    let after = killed(dir.path());
    drop(queue);
    let queue = options().open(after.path()).unwrap();
    queue.push("a newer segment").unwrap();
    queue.maintain().unwrap();
    assert!(!segment(after.path(), 1).exists(), "it was let go");
    is_unknown(&queue, 2..=2);
    queue.close().unwrap();
    let queue = options().open(after.path()).unwrap();
    is_unknown(&queue, 2..=2);
    assert!(queue.is_acked(1.into()).unwrap() && queue.is_acked(3.into()).unwrap());
}
