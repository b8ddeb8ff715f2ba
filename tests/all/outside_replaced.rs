//! What others put in the place of the queue's own files.

use crate::found_hooks::is_segment;
use crate::outside_away::{on, sixty, unsettled, work};
use crate::support::watched::{Op, Watched};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Durability, Error, Options, Queue};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn small() -> Options {
    Queue::options().segment_bytes(65_536).background(false)
}

/// An editor or a restore put an equal file in the place of an older segment, by a rename. What was
/// acked from then on was stored to a file without a name: `sync` and `close` said `Ok`, and the
/// next open handed it out again. What was only removed needs no acks.
#[cfg(unix)]
#[test]
fn acks_in_a_file_that_was_replaced_are_not_confirmed() {
    for (is_replaced, durability) in
        [(true, Durability::Os), (true, Durability::Always), (false, Durability::Always)]
    {
        let dir = tempfile::tempdir().unwrap();
        let options = || small().durability(durability);
        let queue = options().open(dir.path()).unwrap();
        for _ in 0..200 {
            queue.push(vec![7; 1000]).unwrap();
        }
        let jobs = queue.pop_batch(100).unwrap();
        queue.sync().unwrap();
        let first = dir.path().join("0000000000000001.seg");
        if is_replaced {
            let other = dir.path().join("other");
            fs::copy(&first, &other).unwrap();
            fs::rename(&other, &first).unwrap();
        } else {
            fs::remove_file(&first).unwrap();
        }
        queue.ack_batch(jobs).unwrap();
        let synced = queue.sync();
        if is_replaced {
            let error = synced.unwrap_err();
            let is_told = matches!(&error, Error::Poisoned { path, .. } if *path == first);
            assert!(is_told, "{durability:?}: {error:?}");
            queue.close().unwrap_err();
        } else {
            synced.unwrap();
            queue.close().unwrap();
        }
        let queue = options().open(dir.path()).unwrap();
        assert!(queue.len() >= 100, "{durability:?}");
    }
}

/// Somebody removed the file of a copy before the segments that it was made from were let go. They
/// still had its messages, and were let go all the same.
#[test]
fn the_sources_of_a_copy_that_was_removed_stay() {
    for is_closed in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        sixty(&disk).close().unwrap();
        let storage = Watched::around(disk.clone());
        let queue = on(storage.clone()).open("queue").unwrap();
        let stays = |number: u64| number.is_multiple_of(5);
        work(&queue, 60, stays);
        let (from, is_named) = (disk.clone(), AtomicBool::new(false));
        storage.rule(move |call| {
            let is_named = is_named.fetch_or(call.op == Op::Rename, Ordering::SeqCst);
            match call.op {
                Op::Sync if is_named && is_segment(call.name) => from.remove(call.name),
                Op::HasName if from.read(call.name).is_none() => Err(ErrorKind::NotFound.into()),
                _ => Ok(()),
            }
        });
        let error = queue.compact().unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
        if is_closed {
            queue.close().unwrap_err();
        } else {
            drop(queue);
        }
        let queue = on(Arc::new(disk.killed())).open("queue").unwrap();
        let left: BTreeSet<u64> = (1..=60).filter(|&number| stays(number)).collect();
        assert_eq!(unsettled(&queue), left);
        assert!(queue.damage().is_empty(), "{:?}", queue.damage());
    }
}

/// A directory has the name of CHECKPOINT. Nothing was told at open.
#[test]
fn a_directory_in_place_of_checkpoint_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("CHECKPOINT");
    fs::create_dir(&checkpoint).unwrap();
    let queue = small().open(dir.path()).unwrap();
    let ignored: Vec<_> = queue.recovery().ignored().collect();
    assert!(matches!(ignored[..], [(path, _)] if path == checkpoint), "{ignored:?}");
    queue.push("new").unwrap();
    fs::remove_dir(&checkpoint).unwrap();
    queue.close().unwrap();
    assert!(checkpoint.is_file());
}
