//! Files that are moved away and put back between runs, and a backup that is copied over a queue.

use crate::found_hooks::is_segment;
use crate::support::agree::agree;
use crate::support::craft::u64_at;
use crate::support::reader;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Options, Queue};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn on(storage: Arc<dyn Storage>) -> Options {
    Queue::options()
        .segment_bytes(65_536)
        .background(false)
        .durability(Durability::Always)
        .sync_acks(true)
        .compaction(Compaction::default().idle(Duration::ZERO))
        .storage(storage)
}

pub(crate) fn payload(number: u64) -> Vec<u8> {
    format!("message {number:06} {}", "x".repeat(3000)).into_bytes()
}

/// A queue with the messages 1 to 60, in several segments.
pub(crate) fn sixty(disk: &Arc<MemoryStorage>) -> Queue {
    let queue = on(disk.clone()).open("queue").unwrap();
    for number in 1..=60 {
        assert_eq!(u64::from(queue.push(payload(number)).unwrap()), number);
    }
    queue
}

/// Pushes this many more; gives their numbers.
pub(crate) fn push_others(queue: &Queue, count: u32) -> BTreeSet<u64> {
    (0..count).map(|_| queue.push(payload(0)).unwrap().into()).collect()
}

/// Takes this many, and acks all but those that `stays` says.
pub(crate) fn work(queue: &Queue, number: usize, stays: impl Fn(u64) -> bool) {
    let jobs = queue.pop_batch(number).unwrap();
    let (left, done): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| stays(job.seq().into()));
    queue.ack_batch(done).unwrap();
    for job in left {
        job.release().unwrap();
    }
}

pub(crate) fn unsettled(queue: &Queue) -> BTreeSet<u64> {
    queue.iter().map(|message| message.unwrap().seq().into()).collect()
}

pub(crate) fn segments(disk: &MemoryStorage) -> Vec<String> {
    let entries = disk.list().unwrap().into_iter().map(|entry| entry.name);
    entries.filter(|name| is_segment(name)).collect()
}

/// The files of the queue, with what is in them.
pub(crate) fn copied(disk: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
    let names = segments(disk).into_iter().chain(["CHECKPOINT".to_string()]);
    names.map(|name| (name.clone(), disk.read(&name).unwrap())).collect()
}

/// The segment that has this message.
pub(crate) fn segment_with(disk: &MemoryStorage, number: u64) -> String {
    let has = |name: &String| reader::place(&disk.read(name).unwrap(), &payload(number)).is_some();
    segments(disk).into_iter().find(has).unwrap()
}

fn is_copy(disk: &MemoryStorage, name: &str) -> bool {
    disk.read(name).unwrap()[96] > 0
}

/// Moves a file away; gives its bytes.
pub(crate) fn take_away(disk: &MemoryStorage, name: &str) -> Vec<u8> {
    let bytes = disk.read(name).unwrap();
    disk.remove(name).unwrap();
    disk.sync_directory().unwrap();
    bytes
}

/// A segment without its activation, in both pages.
fn without_activation(whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for page in [0, bytes.len() - 4096] {
        bytes[page + 512..page + 532].fill(0);
    }
    bytes
}

/// A run that can remove no segment.
fn without_removals(disk: &Arc<MemoryStorage>) -> Queue {
    let storage = Watched::around(disk.clone());
    storage.rule(|call| match call.op {
        Op::Remove if is_segment(call.name) => Err(ErrorKind::PermissionDenied.into()),
        _ => Ok(()),
    });
    on(storage).open("queue").unwrap()
}

/// A run that does nothing but push one message.
pub(crate) fn run(disk: &Arc<MemoryStorage>) -> Queue {
    let queue = on(disk.clone()).open("queue").unwrap();
    queue.push("another").unwrap();
    queue.maintain().unwrap();
    queue
}

/// A backup of the directory was copied over it. Of the files that had the same numbers another one
/// counted at each open: what the run in between had pushed was lost, and what it had acked was
/// handed out again.
#[test]
fn a_backup_is_copied_over_a_queue() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let backup = copied(&disk);
    // A copy of a copy: nothing says any more what that was made from.
    for step in [2, 5] {
        let queue = on(disk.clone()).open("queue").unwrap();
        work(&queue, 60, |number| number % step == 0);
        queue.compact().unwrap();
        queue.maintain().unwrap();
        push_others(&queue, 10);
        queue.close().unwrap();
    }
    for (name, bytes) in backup {
        disk.write(&name, bytes);
    }
    agree(&disk, "copied over");
    let queue = on(disk.clone()).open("queue").unwrap();
    assert!(queue.recovery().ignored().count() > 2, "{:?}", queue.recovery());
    let found = unsettled(&queue);
    let pushed = push_others(&queue, 40);
    let stays = |number| number % 7 == 0;
    work(&queue, usize::MAX, stays);
    queue.compact().unwrap();
    queue.maintain().unwrap();
    let left: BTreeSet<u64> = found.union(&pushed).copied().filter(|&seq| stays(seq)).collect();
    assert_eq!(unsettled(&queue), left);
    queue.close().unwrap();
    for number in 0..2 {
        agree(&disk, "a run later");
        let queue = on(disk.clone()).open("queue").unwrap();
        assert_eq!(unsettled(&queue), left, "open {number}: {:?}", queue.recovery());
        assert!(queue.recovery().damage().is_empty(), "{:?}", queue.recovery());
        queue.maintain().unwrap();
        queue.close().unwrap();
    }
    // What took the place of the old files is let go, and they stay out.
    let queue = on(disk.clone()).open("queue").unwrap();
    work(&queue, usize::MAX, |_| false);
    push_others(&queue, 40);
    work(&queue, usize::MAX, |_| false);
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = on(disk.clone()).open("queue").unwrap();
    assert!(queue.is_empty(), "{:?}: {:?}", unsettled(&queue), queue.recovery());
    assert!(
        disk.read("0000000000000001.seg").is_some(),
        "a file that does not count is not deleted"
    );
}

/// A file was away for a run, which copied its neighbours into one. Its numbers were between those
/// of that copy, so it did not count once it was back.
#[test]
fn no_copy_goes_across_a_file_that_is_away() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let name = segment_with(&disk, 30);
    let bytes = take_away(&disk, &name);
    let queue = on(disk.clone()).open("queue").unwrap();
    assert_eq!(queue.recovery().damage().len(), 1, "{:?}", queue.recovery());
    let away: BTreeSet<u64> = (1..=60).filter(|seq| !unsettled(&queue).contains(seq)).collect();
    assert!(away.len() > 10 && away.contains(&30));
    work(&queue, 60, |number| number % 8 == 0);
    assert!(queue.compact().unwrap().copies() > 0);
    queue.maintain().unwrap();
    let left = unsettled(&queue);
    queue.close().unwrap();
    // It was told of once.
    let queue = run(&disk);
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    let others: BTreeSet<u64> = unsettled(&queue).difference(&left).copied().collect();
    queue.close().unwrap();
    disk.write(&name, bytes);
    agree(&disk, "back");
    let queue = on(disk.clone()).open("queue").unwrap();
    let all: BTreeSet<u64> = left.iter().chain(&away).chain(&others).copied().collect();
    assert_eq!(unsettled(&queue), all, "{:?}", queue.recovery());
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    work(&queue, usize::MAX, |_| false);
    assert!(away.iter().all(|&seq| queue.is_acked(seq.into()).unwrap()));
    queue.push("so that its segment can go").unwrap();
    queue.maintain().unwrap();
    assert!(disk.read(&name).is_none());
    assert!(away.iter().all(|&seq| queue.is_acked(seq.into()).unwrap()));
}

/// A copy that was away counted when it was back, but what was settled in it was never known as
/// settled once it was let go; and it counted a second time.
#[test]
fn a_copy_that_is_back_has_its_numbers_again() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = sixty(&disk);
    work(&queue, 50, |number| number % 10 == 0);
    queue.compact().unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
    let name = segment_with(&disk, 10);
    assert!(is_copy(&disk, &name));
    let bytes = take_away(&disk, &name);
    run(&disk).close().unwrap();
    disk.write(&name, bytes.clone());
    agree(&disk, "back");
    let queue = on(disk.clone()).open("queue").unwrap();
    work(&queue, usize::MAX, |_| false);
    queue.push("so that its segment can go").unwrap();
    queue.maintain().unwrap();
    assert!(disk.read(&name).is_none());
    assert!(queue.is_acked(10.into()).unwrap());
    queue.close().unwrap();
    // It was let go: that is for ever.
    disk.write(&name, bytes);
    let queue = on(disk.clone()).open("queue").unwrap();
    assert_eq!(queue.len(), 1, "{:?}", queue.recovery());
    queue.maintain().unwrap();
    assert!(disk.read(&name).is_none());
}

/// The sources of a copy were still there when that was moved away. They counted, with states older
/// than those of the copy; or they were deleted, and with them the last that was left of the
/// messages.
#[test]
fn what_a_lost_copy_was_made_from_stays_and_does_not_count() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let queue = without_removals(&disk);
    work(&queue, 50, |number| number % 5 == 0);
    assert!(queue.compact().is_err(), "its sources cannot be removed");
    // Settled in the copy, durably.
    work(&queue, 10, |number| number == 50);
    drop(queue);
    let copies: Vec<String> =
        segments(&disk).into_iter().filter(|name| is_copy(&disk, name)).collect();
    let sources: Vec<String> =
        segments(&disk).into_iter().filter(|name| !copies.contains(name)).collect();
    let away: Vec<_> = copies.iter().map(|name| (name.clone(), take_away(&disk, name))).collect();
    let first_source = sources.first().unwrap();
    // The loss is noted by a run that cannot remove anything, then by one that can.
    drop(without_removals(&disk));
    for number in 0..2 {
        agree(&disk, "without the copy");
        let queue = run(&disk);
        let found = unsettled(&queue);
        assert!(found.iter().all(|&seq| seq > 50), "run {number}: {found:?}");
        assert!(disk.read(first_source).is_some(), "run {number}");
        queue.close().unwrap();
    }
    for (name, bytes) in away {
        disk.write(&name, bytes);
    }
    agree(&disk, "back");
    let queue = run(&disk);
    let found: Vec<u64> = unsettled(&queue).into_iter().filter(|&seq| seq <= 50).collect();
    assert_eq!(found, [50], "{:?}", queue.recovery());
    queue.maintain().unwrap();
    assert!(disk.read(first_source).is_none(), "the copy is back, so it means nothing");
}

/// The marks of a copy rotted while the sources were still there. At the second open they counted,
/// with states older than those of the copy, and the copy was deleted once it was whole again.
#[test]
fn what_a_broken_copy_was_made_from_stays_and_does_not_count() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let queue = without_removals(&disk);
    work(&queue, 50, |number| number % 4 == 0);
    assert!(queue.compact().is_err(), "its sources cannot be removed");
    work(&queue, 12, |number| number % 8 == 0);
    let left = unsettled(&queue);
    drop(queue);
    let copies = segments(&disk).into_iter().filter(|name| is_copy(&disk, name));
    let copies: Vec<_> = copies.map(|name| (name.clone(), disk.read(&name).unwrap())).collect();
    for (name, whole) in &copies {
        disk.write(name, without_activation(whole));
    }
    for number in 0..3 {
        agree(&disk, "broken");
        let queue = run(&disk);
        let found = unsettled(&queue);
        assert!(found.iter().all(|&seq| seq > 48), "open {number}: {found:?}");
        queue.compact().unwrap();
        queue.close().unwrap();
    }
    for (name, whole) in copies {
        disk.write(&name, whole);
    }
    agree(&disk, "whole again");
    let queue = run(&disk);
    let found: BTreeSet<u64> = unsettled(&queue).into_iter().filter(|&seq| seq <= 60).collect();
    assert_eq!(found, left, "{:?}", queue.recovery());
}

/// A copy lost the number of a message. A run found it lost, and was killed; the next one took it
/// for settled once the copy was gone.
#[test]
fn a_lost_message_without_a_number_is_not_taken_for_settled() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = sixty(&disk);
    work(&queue, 50, |number| number % 5 == 0);
    queue.compact().unwrap();
    queue.close().unwrap();
    let name = segment_with(&disk, 15);
    assert!(is_copy(&disk, &name));
    let mut bytes = disk.read(&name).unwrap();
    // The third word of its table of Seqs: see the format page.
    let table = usize::try_from(u64_at(&bytes, 1544)).unwrap();
    bytes[table + 16] ^= 64;
    disk.write(&name, bytes);
    let queue = on(disk.clone()).open("queue").unwrap();
    assert_eq!(queue.pop_batch(3).unwrap().len(), 3);
    let disk = Arc::new(disk.killed());
    let queue = on(disk.clone()).open("queue").unwrap();
    work(&queue, usize::MAX, |_| false);
    push_others(&queue, 40);
    queue.maintain().unwrap();
    assert!(disk.read(&name).is_none());
    for _ in 0..2 {
        assert!(queue.is_acked(15.into()).is_err() && queue.is_acked(20.into()).unwrap());
    }
}

/// A file that was away was put back with damage, and was deleted.
#[test]
fn a_file_that_is_back_with_damage_stays() {
    let disk = Arc::new(MemoryStorage::new());
    sixty(&disk).close().unwrap();
    let name = segment_with(&disk, 30);
    let whole = take_away(&disk, &name);
    run(&disk).close().unwrap();
    disk.write(&name, without_activation(&whole));
    run(&disk).close().unwrap();
    disk.write(&name, whole);
    let queue = run(&disk);
    assert!(unsettled(&queue).contains(&30), "{:?}", queue.recovery());
}

/// The end of a run was looked for while a file was away that had a torn batch at its end. Once it
/// was back, a part of that batch was handed out.
#[test]
fn a_torn_batch_in_a_file_that_was_away() {
    let mut torn = 0;
    for seed in 0..40 {
        let disk = Arc::new(MemoryStorage::new());
        let queue = on(disk.clone()).durability(Durability::Os).open("queue").unwrap();
        for number in 1..=40 {
            queue.push(payload(number)).unwrap();
        }
        queue.sync().unwrap();
        queue.maintain().unwrap();
        queue.push_batch((41..=46).map(payload)).unwrap();
        let disk = Arc::new(disk.power_cut(CrashImage::Mixed(seed)));
        drop(queue);
        let name = segment_with(&disk, 40);
        let bytes = take_away(&disk, &name);
        let has = |number: &u64| reader::place(&bytes, &payload(*number)).is_some();
        torn += u64::from((1..6).contains(&(41..=46).filter(has).count()));
        run(&disk).close().unwrap();
        disk.write(&name, bytes);
        agree(&disk, "back");
        let queue = run(&disk);
        let found = unsettled(&queue);
        assert!(found.contains(&40), "seed {seed}: {:?}", queue.recovery());
        let count = (41..=46).filter(|seq| found.contains(seq)).count();
        assert!(count == 0 || count == 6, "seed {seed}: {count} of a batch of six");
    }
    assert!(torn > 0, "no batch was torn");
}
