//! Files that are moved, linked or replaced while a queue is open, and what stands in their place.
//!
//! Variants of what `outside_files` has: all of them lost messages that were confirmed, or told
//! messages as lost that were there.

use crate::found_hooks::is_segment;
use crate::support::watched::{Op, Watched};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Error, Options, Queue};
use std::fs;
use std::io::ErrorKind;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::tempdir;

fn small() -> Options {
    Queue::options().segment_bytes(65_536).background(false)
}

fn push(queue: &Queue, count: u8) {
    (0..count).for_each(|n| assert!(queue.push(vec![n; 1000]).is_ok()));
}

/// Takes and acks all; tells how many.
fn drain(queue: &Queue) -> usize {
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let count = jobs.len();
    queue.ack_batch(jobs).unwrap();
    count
}

#[cfg(unix)]
fn files(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).collect()
}

/// Gives all files of a directory another name in another one, as `cp -al` does.
#[cfg(unix)]
fn link_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for path in files(from) {
        fs::hard_link(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The file that is pushed to had a name, but not that of the segment: all was confirmed, and the
/// next open found nothing of it.
#[cfg(unix)]
#[test]
fn what_is_stored_to_a_file_that_was_moved_away_is_not_confirmed() {
    let away: fn(&Path, &Path) = |queue, other| {
        fs::create_dir(other).unwrap();
        for path in files(queue) {
            fs::rename(&path, other.join(path.file_name().unwrap())).unwrap();
        }
    };
    let linked_and_removed: fn(&Path, &Path) = |queue, other| {
        link_all(queue, other);
        for path in files(queue) {
            fs::remove_file(path).unwrap();
        }
    };
    // As a program that restores files and keeps what was there under another name.
    let replaced: fn(&Path, &Path) = |queue, other| {
        fs::create_dir(other).unwrap();
        for path in files(queue) {
            let aside = other.join(path.file_name().unwrap());
            fs::rename(&path, &aside).unwrap();
            fs::copy(&aside, &path).unwrap();
        }
    };
    for (case, change) in [away, linked_and_removed, replaced].into_iter().enumerate() {
        let dir = tempdir().unwrap();
        let (here, other) = (dir.path().join("q"), dir.path().join("other"));
        let queue = small().open(&here).unwrap();
        push(&queue, 10);
        change(&here, &other);
        let is_told = |error: &Error| matches!(error, Error::Poisoned { .. });
        assert!(queue.push("lost").is_err_and(|error| is_told(&error)), "case {case}");
        assert!(queue.sync().is_err_and(|error| is_told(&error)), "case {case}");
        assert!(queue.close().is_err(), "case {case}");
    }
}

/// A copy by hard links was made of a queue that was open and had not been stored to yet: the links
/// were counted at its open only, and to drain it emptied the copy.
#[cfg(unix)]
#[test]
fn a_copy_by_hard_links_of_an_open_queue_is_one_of_its_own() {
    let dir = tempdir().unwrap();
    let (here, copy) = (dir.path().join("q"), dir.path().join("copy"));
    let queue = small().open(&here).unwrap();
    push(&queue, 200);
    queue.close().unwrap();
    let queue = small().open(&here).unwrap();
    link_all(&here, &copy);
    assert_eq!(drain(&queue), 200);
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = small().open(&copy).unwrap();
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    assert_eq!(drain(&queue), 200);
}

/// A private copy of a segment had got its name, and could not be opened for a moment: from then on
/// the file was taken for one that had vanished, and all its messages for lost.
#[test]
fn a_private_copy_that_cannot_be_opened_is_opened_later() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let options = || small().storage(storage.clone());
    let queue = options().open("q").unwrap();
    push(&queue, 200);
    queue.close().unwrap();
    // Files that are too short are copied, too.
    for name in disk.list().unwrap().into_iter().map(|entry| entry.name) {
        if is_segment(&name) {
            let mut bytes = disk.read(&name).unwrap();
            bytes.truncate(bytes.len() - 4096);
            disk.write(&name, bytes);
        }
    }
    let queue = options().open("q").unwrap();
    let has_name = AtomicBool::new(false);
    storage.rule(move |call| {
        let is_copy = call.op == Op::Rename && is_segment(call.name);
        has_name.fetch_or(is_copy, Ordering::SeqCst);
        let is_refused = call.op == Op::Open && has_name.load(Ordering::SeqCst);
        if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    assert!(queue.pop().is_err());
    assert!(queue.peek().is_err());
    storage.no_rule();
    assert_eq!(drain(&queue), 200);
    assert!(queue.damage().is_empty(), "{:?}", queue.damage());
    queue.close().unwrap();
    assert_eq!(options().open("q").unwrap().len(), 0);
}

/// A directory stood where the next CHECKPOINT is written: the error named the file that was to be
/// made of it.
#[test]
fn what_stands_in_the_place_of_the_next_checkpoint_is_told() {
    let dir = tempdir().unwrap();
    let here = dir.path().join("q");
    fs::create_dir_all(here.join("CHECKPOINT.tmp")).unwrap();
    let queue = small().open(&here).unwrap();
    push(&queue, 200);
    assert_eq!(drain(&queue), 200);
    let told = queue.maintain();
    let Err(Error::Io { operation, path, .. }) = told else { panic!("{told:?}") };
    assert_eq!((operation, path), ("write checkpoint", here.join("CHECKPOINT.tmp")));
    fs::remove_dir(here.join("CHECKPOINT.tmp")).unwrap();
    queue.maintain().unwrap();
}

/// A CHECKPOINT that somebody had linked is replaced, by a smaller one where the list has become
/// shorter. Its bytes counted on, so that `max_bytes` shrank by each nightly copy.
#[cfg(unix)]
#[test]
fn a_linked_checkpoint_that_is_replaced_by_a_smaller_one_gives_its_bytes_back() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("queue");
    let options = Queue::options().segment_bytes(65_536).durability(keepq::Durability::Os);
    let options = options.background(false).dead_letters(false).max_bytes(512 << 20);
    let queue = options.open(&path).unwrap();
    for round in 0..2 {
        for _ in 0..1200 {
            queue.push(vec![1; 60_000]).unwrap();
        }
        queue.maintain().unwrap();
        queue.ack_batch(queue.pop_batch(2000).unwrap()).unwrap();
        let link = dir.path().join(round.to_string());
        let large = fs::metadata(path.join("CHECKPOINT")).unwrap().len();
        fs::hard_link(path.join("CHECKPOINT"), link).unwrap();
        for _ in 0..3 {
            queue.push("x").unwrap();
            queue.pop().unwrap().unwrap().ack().unwrap();
            queue.maintain().unwrap();
        }
        let small = fs::metadata(path.join("CHECKPOINT")).unwrap().len();
        assert!(small < large, "{small} of {large}");
        let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let there: u64 = files.map(|file| file.len()).sum();
        assert_eq!(queue.stats().disk_bytes(), there.max(8192), "round {round}");
    }
}
