//! Files that are back at a time when they do not fit any more, and what a run says of others while
//! they are away.

use crate::found_hooks::RECORD_HEADER;
use crate::outside_away::{
    copied, on, payload, push_others, run, segment_with, segments, sixty, take_away, unsettled,
    work,
};
use crate::support::agree::agree;
use crate::support::reader;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Queue};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A copy had its name, and failed before it counted. It was removed, and the process killed. The
/// next run settled everything and let the sources go; the power failed, and the copy was back, as
/// it had been when it was made: what is in it was handed out again.
#[test]
fn a_copy_that_was_given_up_is_back_after_its_sources_went() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let storage = Watched::around(disk.clone());
    let queue = on(storage.clone()).open("queue").unwrap();
    work(&queue, 50, |number| number.is_multiple_of(5));
    let (named, killed) = (AtomicBool::new(false), Arc::new(Mutex::new(None)));
    let image = Arc::clone(&killed);
    storage.rule(move |call| {
        let is_named = named.fetch_or(call.op == Op::Rename, Ordering::SeqCst);
        match call.op {
            Op::Map if is_named => return Err(ErrorKind::OutOfMemory.into()),
            Op::Remove if is_named => {
                disk.remove(call.name)?;
                *image.lock().unwrap() = Some(disk.killed());
            }
            _ => {}
        }
        Ok(())
    });
    queue.compact().unwrap_err();
    let disk = Arc::new(killed.lock().unwrap().take().unwrap());
    let queue = on(disk.clone()).open("queue").unwrap();
    work(&queue, usize::MAX, |_| false);
    queue.maintain().unwrap();
    for seed in 0..100 {
        let disk = Arc::new(disk.power_cut(CrashImage::Mixed(seed)));
        agree(&disk, &format!("seed {seed}"));
        let queue = on(disk).open("queue").unwrap();
        assert_eq!(unsettled(&queue), BTreeSet::new(), "seed {seed}");
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    }
}

/// A file with a confirmed batch at its end was away for a run, and the last record of the batch
/// rotted. The others of the batch were sound, and were dropped, and nobody was told.
#[test]
fn a_batch_at_the_end_of_a_file_that_was_away_loses_one_record() {
    for is_away in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        let queue = on(disk.clone()).open("queue").unwrap();
        for number in 1..=40 {
            queue.push(payload(number)).unwrap();
        }
        queue.push_batch((41..=46).map(payload)).unwrap();
        queue.maintain().unwrap();
        let disk = Arc::new(disk.killed());
        let name = segment_with(&disk, 46);
        let mut bytes = take_away(&disk, &name);
        if is_away {
            run(&disk).close().unwrap();
        }
        let place = reader::place(&bytes, &payload(46)).unwrap();
        bytes[place.header as usize + 8] ^= 0x55;
        disk.write(&name, bytes);
        agree(&disk, &format!("away {is_away}"));
        let queue = on(disk).open("queue").unwrap();
        let is_sound = |number: u64| unsettled(&queue).contains(&number);
        assert_eq!((41..=46).filter(|&number| is_sound(number)).count(), 5, "away {is_away}");
        let damage = queue.damage();
        let told: Vec<u64> = damage.iter().map(|damage| damage.first_seq().into()).collect();
        assert_eq!(told, [46], "away {is_away}: {:?}", queue.recovery());
    }
}

/// A process was killed before a batch of it was synced; a backup was copied over the directory,
/// and the next run wrote into CHECKPOINT what counts. That also said that the batch was durable:
/// after a power cut a part of it was handed out, and the rest told as damaged.
#[test]
fn what_counts_is_written_once_all_of_it_is_durable() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let backup = copied(&disk);
    for step in [2, 5] {
        let queue = on(disk.clone()).open("queue").unwrap();
        work(&queue, 60, |number| number.is_multiple_of(step));
        queue.compact().unwrap();
        push_others(&queue, 10);
        queue.close().unwrap();
    }
    let queue = on(disk.clone()).durability(Durability::Os).sync_acks(false).open("q").unwrap();
    let first = u64::from(queue.push("first").unwrap());
    queue.sync().unwrap();
    let batch: BTreeSet<u64> =
        queue.push_batch((0..6).map(payload)).unwrap().into_iter().map(u64::from).collect();
    let disk = Arc::new(disk.killed());
    for (name, bytes) in backup {
        disk.write(&name, bytes);
    }
    let queue = on(disk.clone()).open("queue").unwrap();
    assert!(queue.recovery().ignored().count() > 0, "{:?}", queue.recovery());
    for seed in 0..100 {
        let queue = on(Arc::new(disk.power_cut(CrashImage::Mixed(seed)))).open("queue").unwrap();
        let (found, damage) = (unsettled(&queue), queue.damage());
        assert!(found.contains(&first), "seed {seed}");
        assert!(found.is_superset(&batch) || found.is_disjoint(&batch), "seed {seed}: {found:?}");
        let is_false = damage.iter().any(|damage| u64::from(damage.last_seq()) > first);
        assert!(!is_false, "seed {seed}: {damage:?}");
    }
}

/// A backup was opened, used and closed, then copied over the original, which had gone on. Its end
/// was taken for that of the queue, and numbers were given out again that files in it had.
#[test]
fn a_branch_that_was_closed_is_copied_over_a_queue_that_went_on() {
    let disk = Arc::new(MemoryStorage::new());
    drop(sixty(&disk));
    let disk = Arc::new(disk.killed());
    let branch = Arc::new(disk.killed());
    let queue = on(branch.clone()).open("queue").unwrap();
    push_others(&queue, 15);
    queue.close().unwrap();
    // Nothing says that what it lacks then was durable.
    let queue = on(disk.clone()).durability(Durability::Os).sync_acks(false).open("q").unwrap();
    let given_out = push_others(&queue, 118);
    let disk = Arc::new(disk.killed());
    for (name, bytes) in copied(&branch) {
        disk.write(&name, bytes);
    }
    agree(&disk, "a branch over the queue");
    let queue = on(disk).open("queue").unwrap();
    assert!(!queue.recovery().was_closed(), "{:?}", queue.recovery());
    let next = u64::from(queue.push("next").unwrap());
    assert!(given_out.last().is_some_and(|&last| next > last), "{next}");
}

/// A disk after a power cut, with twelve or more confirmed messages, eight in a file. None of the
/// files has a seal that was durable.
fn unsealed(count: u8, acked: std::ops::Range<u64>) -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let options = on(disk.clone()).sync_acks(false).compaction(Compaction::off());
    let queue = options.open("queue").unwrap();
    for number in 1..=count {
        queue.push(vec![number; 6500]).unwrap();
        queue.maintain().unwrap();
    }
    work(&queue, usize::MAX, |number| !acked.contains(&number));
    queue.compact().unwrap();
    disk.power_cut(CrashImage::Oldest)
}

/// All that is told as lost.
fn told(queue: &Queue) -> BTreeSet<u64> {
    let ranges = queue.damage().into_iter();
    ranges.flat_map(|damage| damage.first_seq().into()..=damage.last_seq().into()).collect()
}

/// The power failed before a full file got its seal for good, and the file behind it was copied, or
/// had gone. Then the last record of the full one rotted: nobody was told.
#[test]
fn a_rotten_end_before_a_file_that_went_is_told() {
    for acked in [9..15, 9..17] {
        let disk = Arc::new(unsealed(24, acked.clone()));
        let name = "0000000000000001.seg";
        let mut bytes = disk.read(name).unwrap();
        assert!(bytes[1024..1044].iter().all(|&byte| byte == 0), "it has no seal");
        let place = reader::place(&bytes, &[8; 6500]).unwrap();
        bytes[place.header as usize + RECORD_HEADER as usize + 6000] ^= 64;
        disk.write(name, bytes);
        agree(&disk, &format!("{acked:?}"));
        let queue = on(disk).open("queue").unwrap();
        let left: BTreeSet<u64> = (1..=24).filter(|at| *at != 8 && !acked.contains(at)).collect();
        assert_eq!(unsettled(&queue), left);
        assert_eq!(told(&queue), BTreeSet::from([8]), "{:?}", queue.recovery());
        assert!(!queue.recovery().is_clean());
    }
}

/// The same, and the file behind it was lost: only that was told.
#[test]
fn a_rotten_end_before_a_lost_file_is_told() {
    let disk = Arc::new(unsealed(12, 0..0));
    let name = "0000000000000001.seg";
    let mut bytes = disk.read(name).unwrap();
    let place = reader::place(&bytes, &[8; 6500]).unwrap();
    bytes[place.header as usize] ^= 1;
    disk.write(name, bytes);
    take_away(&disk, "0000000000000002.seg");
    agree(&disk, "a lost file");
    let queue = on(disk).open("queue").unwrap();
    assert_eq!(unsettled(&queue), (1..=7).collect());
    assert_eq!(told(&queue), (8..=12).collect(), "{:?}", queue.recovery());
}

/// A process without the background thread was killed, and one of its files removed. No list had
/// it, so it was taken for one that had gone because all in it was settled.
#[test]
fn a_file_that_is_gone_after_a_kill_is_told_without_a_background() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = sixty(&disk);
    let names = segments(&disk);
    for name in &names[..names.len() - 1] {
        let disk = Arc::new(disk.killed());
        take_away(&disk, name);
        agree(&disk, name);
        let queue = on(disk).open("queue").unwrap();
        let (found, told) = (unsettled(&queue), told(&queue));
        assert!(found.len() < 60 && found.is_disjoint(&told), "{name}");
        assert_eq!(found.len() + told.len(), 60, "{name}: {:?}", queue.recovery());
    }
    drop(queue);
}
