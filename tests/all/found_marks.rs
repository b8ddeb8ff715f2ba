//! A segment whose marks are damaged: each test is a story that once went wrong.

use crate::found_hooks::{by_hand, files, flip, is_segment, large};
use crate::found_support::call;
use keepq::fault::{MemoryStorage, Storage};
use keepq::{DamageKind, Durability, Error, Message, Overflow};
use std::sync::Arc;
use std::time::Duration;

// From format.md.
const PAGE: usize = 4096;
const ACTIVATION: usize = 512;
const SOURCES: usize = 1536;

/// Six messages fill a segment.
const A_SEGMENT: u64 = 6;

/// Three segments, the last of which is full as well.
fn three_segments() -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    for n in 0..3 * A_SEGMENT {
        queue.push(large(n)).unwrap();
    }
    queue.close().unwrap();
    disk.killed()
}

/// Damages both activations of segment `number`, counted from 0; gives its name.
fn damage_activation(disk: &MemoryStorage, number: usize) -> String {
    let name = files(disk).into_iter().filter(|name| is_segment(name)).nth(number).unwrap();
    let mut bytes = disk.read(&name).unwrap();
    for page in [0, bytes.len() - PAGE] {
        bytes[page + ACTIVATION] ^= 1;
    }
    disk.write(&name, bytes);
    name
}

/// A segment that had lost both of its activations was taken for one that had never been used. Its
/// messages were gone without a word, counted as acked, and its file was deleted.
#[test]
fn a_segment_without_activation_is_told_and_stays() {
    for (number, has_checkpoint) in [0, 1, 2].into_iter().flat_map(|n| [(n, true), (n, false)]) {
        let disk = three_segments();
        let name = damage_activation(&disk, number);
        if !has_checkpoint {
            disk.remove("CHECKPOINT").unwrap();
        }
        let disk = Arc::new(disk);
        // The second run finds what the first one wrote of it.
        for run in 0..3 {
            let case = format!("segment {number}, run {run}, checkpoint: {has_checkpoint}");
            let queue = by_hand(disk.clone()).open("queue").unwrap();
            let report = queue.recovery();
            assert_eq!(report.ignored().count(), 1, "{case}: {report:?}");
            assert_eq!(report.damage().len(), 1, "{case}: {report:?}");
            let (first, damage) = (A_SEGMENT * number as u64 + 1, &report.damage()[0]);
            let last = first + A_SEGMENT - 1;
            let told = (damage.first_seq(), damage.last_seq(), damage.kind());
            assert_eq!(told, (first.into(), last.into(), DamageKind::Segment), "{case}");
            assert!(damage.path().ends_with(&name), "{case}: {damage:?}");
            assert!(report.cut().is_none() && report.dropped() == 0, "{case}: {report:?}");
            assert_eq!(queue.len(), 2 * A_SEGMENT + run, "{case}");
            for seq in first..=last {
                let told = queue.is_acked(seq.into());
                assert!(matches!(told, Err(Error::UnknownSeq { .. })), "{case}: {seq} {told:?}");
            }
            let seq = queue.push("of a later run").unwrap();
            assert!(u64::from(seq) > 3 * A_SEGMENT, "{case}: no number is given out twice");
            queue.maintain().unwrap();
            queue.close().unwrap();
            assert!(disk.read(&name).is_some(), "{case}: the file is gone");
        }
    }
}

/// What is prepared and not used yet has no activation either.
#[test]
fn a_segment_that_was_never_used_is_no_damage() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    for n in 0..A_SEGMENT - 1 {
        queue.push(large(n)).unwrap();
    }
    queue.maintain().unwrap();
    let disk = Arc::new(disk.killed());
    assert_eq!(files(&disk).into_iter().filter(|name| is_segment(name)).count(), 2);
    for _ in 0..2 {
        let queue = by_hand(disk.clone()).open("queue").unwrap();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        assert_eq!(queue.len(), A_SEGMENT - 1);
    }
}

/// A transient message of this run waited in a copy, and its number there could not be read any
/// more. Compaction took it for settled and a walk for lost, so `compact` made a copy of nothing,
/// gave it up, and began anew for ever.
#[test]
fn a_transient_message_without_its_number_is_lost_and_told_of() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).durability(Durability::Os).open("queue").unwrap();
    let later = Message::new("later").transient().delay(Duration::from_secs(3600));
    queue.push(later).unwrap();
    for n in 0..30 {
        queue.push(large(n)).unwrap();
    }
    queue.sync().unwrap();
    let jobs = queue.pop_batch(18).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| u64::from(job.seq()) % A_SEGMENT == 3);
    queue.ack_batch(settled).unwrap();
    assert_eq!(queue.compact().unwrap().copies(), 1);
    // It is the first one in the copy.
    let copy = files(&disk).into_iter().filter(|name| is_segment(name)).max().unwrap();
    let bytes = disk.read(&copy).unwrap();
    let table = u64::from_le_bytes(bytes[SOURCES + 8..SOURCES + 16].try_into().unwrap());
    flip(&disk, &copy, table);
    queue.ack_batch(left).unwrap();
    assert_eq!(queue.compact().unwrap().copies(), 0);
    assert_eq!((queue.stats().lost(), queue.damage().len()), (1, 1));
    queue.maintain().unwrap();
    assert_eq!(disk.read(&copy), None, "nothing is left in it");
}

/// The newest segment did not say what it holds, CHECKPOINT was lost, and a copy of older segments
/// had a larger ordinal: the numbers of the newest one were given out again.
#[test]
fn numbers_of_an_unusable_newest_segment_are_not_given_out_again() {
    let disk = Arc::new(MemoryStorage::new());
    let open = || by_hand(disk.clone()).open("queue").unwrap();
    let queue = open();
    for n in 0..3 * A_SEGMENT {
        queue.push(large(n)).unwrap();
    }
    queue.close().unwrap();
    let queue = open();
    let mut last = queue.push("first").unwrap();
    for n in 0..2 {
        last = queue.push(large(n)).unwrap();
    }
    let newest = files(&disk).iter().filter(|name| is_segment(name)).count() - 1;
    for (n, job) in queue.pop_batch(12).unwrap().into_iter().enumerate() {
        if n % 6 == 3 { job.release().unwrap() } else { job.ack().unwrap() }
    }
    damage_activation(&disk, newest);
    assert!(queue.compact().unwrap().copies() > 0);
    queue.close().unwrap();
    disk.remove("CHECKPOINT").unwrap();
    let queue = open();
    assert!(!queue.recovery().was_closed(), "that of an older run");
    let next = queue.push("new").unwrap();
    assert!(next > last, "{next} was given out before, as was {last}");
}

/// A segment without a readable header was beside one whose header says how far the numbers went,
/// but not what it holds: open failed.
#[test]
fn the_header_of_an_unusable_segment_says_how_far_the_numbers_went() {
    let disk = Arc::new(three_segments());
    let last = 3 * A_SEGMENT;
    for number in 1..3 {
        damage_activation(&disk, number);
    }
    let first = files(&disk).into_iter().find(|name| is_segment(name)).unwrap();
    let end = disk.read(&first).unwrap().len() - PAGE;
    for page in [0, end] {
        flip(&disk, &first, page as u64 + 40);
    }
    disk.remove("CHECKPOINT").unwrap();
    let queue = by_hand(disk).open("queue").unwrap();
    assert!(u64::from(queue.push("new").unwrap()) > last);
}

/// The files of segments that do not say what they hold stay, and did not count.
#[test]
fn unusable_segments_count_as_used() {
    let disk = Arc::new(three_segments());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    let before = queue.stats().disk_bytes();
    queue.close().unwrap();
    for number in 0..2 {
        damage_activation(&disk, number);
    }
    let queue = by_hand(disk).open("queue").unwrap();
    assert_eq!(queue.stats().disk_bytes(), before);
}

/// A producer waited for bytes of such files, which are never given back.
#[test]
fn no_producer_waits_for_the_bytes_of_unusable_segments() {
    let disk = Arc::new(three_segments());
    for number in 0..2 {
        damage_activation(&disk, number);
    }
    let options = by_hand(disk).max_bytes(1 << 20).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    queue.ack_batch(queue.pop_batch(99).unwrap()).unwrap();
    queue.maintain().unwrap();
    // 752 KiB are left beside what keepq needs itself, and 128 less beside those two.
    let pushing = queue.clone();
    let pushed = call(move || pushing.push(vec![7; 700_000])).result("push");
    assert!(matches!(pushed, Err(Error::Full { .. })), "{pushed:?}");
    queue.push(vec![7; 600_000]).unwrap();
}
