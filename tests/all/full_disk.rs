//! Real file systems that run full: growth is an error, never a signal, and all else goes on.
//!
//! Needs root, loop devices and the tools of each file system; skips, and says so, where not.

use crate::support::mount::{Mount, fill};
use keepq::{Delivery, Durability, Error, Queue};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

fn push_until_full(queue: &Queue, next: &mut u64, len: usize) -> Error {
    loop {
        let mut payload = next.to_le_bytes().to_vec();
        payload.resize(len, 9);
        match queue.push(payload) {
            Ok(_) => *next += 1,
            Err(error) => return error,
        }
    }
}

fn fill_and_drain(mnt: &Path, durability: Durability) {
    let path = mnt.join("q");
    let options = || Queue::options().segment_bytes(1 << 20).durability(durability);
    let queue = options().open(&path).unwrap();
    let (mut next, mut acked) = (0, 0);
    for round in 0..3u32 {
        let error = push_until_full(&queue, &mut next, 60_000);
        assert!(matches!(error, Error::StorageFull { .. }), "{error}");
        let filler = mnt.join("filler");
        fill(&filler);
        // Nothing is free now. Pop, nack and ack go on, into every page of the log.
        queue.pop().unwrap().unwrap().nack().unwrap();
        while let Some(job) = queue.pop().unwrap() {
            assert_eq!(u64::from_le_bytes(job[..8].try_into().unwrap()), acked, "round {round}");
            job.ack().unwrap();
            acked += 1;
        }
        assert_eq!(acked, next);
        fs::remove_file(filler).ok();
        queue.push((next).to_le_bytes().as_slice()).unwrap();
        next += 1;
    }
    queue.close().unwrap();
    let queue = options().open(&path).unwrap();
    assert_eq!((queue.len(), queue.recovery().is_clean()), (1, true), "{:?}", queue.recovery());
    assert!(queue.pop().unwrap().is_some());
    drop(queue);
    fs::remove_dir_all(path).unwrap();
}

/// Nothing is free, and most of what the queue has is settled: it gives that back by itself, and
/// goes on.
fn fill_and_compact(mnt: &Path) {
    let path = mnt.join("q");
    let options = || Queue::options().segment_bytes(1 << 20).durability(Durability::Os);
    let queue = options().open(&path).unwrap();
    let mut next = 0;
    let error = push_until_full(&queue, &mut next, 60_000);
    assert!(matches!(error, Error::StorageFull { .. }), "{error}");
    fill(&mnt.join("filler"));
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(jobs.len() as u64, next);
    let is_kept = |job: &Delivery| u64::from_le_bytes(job[..8].try_into().unwrap()) % 20 == 3;
    let (left, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_kept);
    queue.ack_batch(settled).unwrap();
    let before = queue.stats();
    queue.compact().unwrap();
    let after = queue.stats();
    assert!(after.segment_bytes() < before.segment_bytes() / 2, "{before:?} {after:?}");
    // There is room for as much again as was settled, but for what a file system keeps for itself.
    let kept = left.len() as u64;
    let first = next;
    let error = push_until_full(&queue, &mut next, 60_000);
    assert!(matches!(error, Error::StorageFull { .. }), "{error}");
    assert!(next - first > (first - kept) / 2, "{} again after {}", next - first, first - kept);
    assert_eq!(queue.in_flight(), kept);
    drop(left);
    queue.close().unwrap();
    let queue = options().open(&path).unwrap();
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    let found = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(found.len() as u64, kept + next - first);
    assert!(queue.damage().is_empty(), "{:?}", queue.damage());
    drop((found, queue));
    fs::remove_file(mnt.join("filler")).ok();
    fs::remove_dir_all(path).unwrap();
}

fn on(kind: &str, mib: u64, force: &str, options: &str) {
    if let Some(mount) = Mount::new(kind, mib, force, options) {
        fill_and_drain(&mount.path(), Durability::Os);
        fill_and_drain(&mount.path(), Durability::Always);
        fill_and_compact(&mount.path());
    }
}

#[test]
fn ext4() {
    on("ext4", 40, "-F", "");
}

#[test]
fn xfs() {
    on("xfs", 300, "-f", "");
}

#[test]
fn btrfs() {
    on("btrfs", 128, "-f", "");
}

/// Where files cannot be made to be rewritten in place, stores go by write.
#[test]
fn btrfs_that_compresses() {
    on("btrfs", 128, "-f", ",compress-force=zstd");
}

/// A file was cut by a byte, or a restore ended early, on a disk without room for a whole copy of
/// it. Nothing could be taken from the queue any more, since that file was the first.
#[test]
fn a_short_file_needs_no_room_for_a_copy() {
    for (kind, mib, force) in [("ext4", 40, "-F"), ("xfs", 300, "-f")] {
        let Some(mount) = Mount::new(kind, mib, force, "") else { continue };
        for is_half in [false, true] {
            let (path, filler) = (mount.path().join("queue"), mount.path().join("filler"));
            let open = || Queue::options().background(false).open(&path).unwrap();
            let queue = open();
            for _ in 0..1600 {
                queue.push(vec![1; 10_000]).unwrap();
            }
            let later = queue.pop_batch(800).unwrap();
            queue.ack_batch(later).unwrap();
            queue.close().unwrap();
            let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
            let largest = files.max_by_key(size).unwrap();
            let (whole, file) = (size(&largest), OpenOptions::new().write(true).open(&largest));
            file.unwrap().set_len(if is_half { whole / 2 } else { whole - 1 }).unwrap();
            fill(&filler);
            if is_half {
                let file = OpenOptions::new().write(true).open(&filler).unwrap();
                file.set_len(size(&filler) - (1 << 20)).unwrap();
            }
            let queue = open();
            assert!(!queue.recovery().is_clean());
            let mut found = 0;
            while let Some(job) = queue.pop().unwrap() {
                job.ack().unwrap();
                found += 1;
            }
            let lost: u64 = queue
                .damage()
                .iter()
                .map(|damage| u64::from(damage.last_seq()) - u64::from(damage.first_seq()) + 1)
                .sum();
            assert!(found > 100, "{kind}, {is_half}: {found}");
            assert_eq!(found + lost, 800, "{kind}, {is_half}: {:?}", queue.damage());
            queue.push("new").unwrap();
            queue.close().unwrap();
            fs::remove_file(filler).unwrap();
            fs::remove_dir_all(&path).unwrap();
        }
    }
}
