//! What a rotten slot, a damaged record and a file that is away for a moment cost: no more than
//! what they are.

use crate::found_support::on;
use crate::support::agree::agree;
use crate::support::craft::{PAGE, Segment, u64_at};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{CheckpointState, Durability, Error, Message, Options, Queue};
use std::path::PathBuf;
use std::sync::Arc;

fn small(options: Options) -> Options {
    options.segment_bytes(65_536).durability(Durability::Os).background(false)
}

const FIRST: &str = "0000000000000001.seg";

/// Where slot `index` is: see the format page.
fn slot(bytes: &[u8], index: usize) -> usize {
    bytes.len() - PAGE - 16 * (index + 1)
}

fn numbers(queue: &Queue) -> Vec<u64> {
    let mut jobs = Vec::new();
    while let Some(job) = queue.pop().unwrap() {
        jobs.push(job);
    }
    jobs.iter().map(|job| job.seq().into()).collect()
}

/// The slot of a settled message rotted, its check held by chance, and it named a place at the end
/// of the file. The search for the next record began there, and all behind it were lost for good.
#[test]
fn a_slot_that_names_a_wrong_place_costs_no_other_message() {
    for place in [8, 24_000, 60_000, (1 << 29) - 1] {
        let disk = Arc::new(MemoryStorage::new());
        let queue = small(on(disk.clone())).open("queue").unwrap();
        for number in 1..=60 {
            queue.push(format!("message {number}")).unwrap();
        }
        let mut jobs = queue.pop_batch(30).unwrap();
        jobs.pop().unwrap().ack().unwrap();
        drop(jobs);
        queue.close().unwrap();
        let mut segment = Segment::read(disk.read(FIRST).unwrap()).unwrap();
        let at = slot(&segment.bytes, 29);
        let word = u64_at(&segment.bytes, at) >> 29 << 29 | (place / 8).max(1);
        segment.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        segment.mend();
        disk.write(FIRST, segment.bytes);
        let queue = small(on(disk)).open("queue").unwrap();
        let expected: Vec<u64> = (1..=60).filter(|&number| number != 30).collect();
        assert_eq!(numbers(&queue), expected, "place {place}");
        assert_eq!((queue.stats().lost(), queue.damage()), (0, Vec::new()), "place {place}");
    }
}

/// A message was settled, and its record was damaged before the segment was sealed. It counted as
/// lost with those beside it: `is_acked` said so, at the next open at the latest.
#[test]
fn a_settled_message_needs_no_record() {
    let disk = Arc::new(MemoryStorage::new());
    let options = small(on(disk.clone())).durability(Durability::Always);
    let queue = options.open("queue").unwrap();
    let (mut seqs, mut places) = (Vec::new(), Vec::new());
    for number in 0..10 {
        let payload = format!("message {number} {}", "x".repeat(100));
        seqs.push(queue.push(payload.as_bytes()).unwrap());
        places.push(payload);
    }
    let jobs = queue.pop_batch(7).unwrap();
    queue.ack_batch(jobs.into_iter().skip(2)).unwrap();
    queue.sync().unwrap();
    for (damaged, lost) in [(3..6, 0), (1..6, 1), (4..9, 2)] {
        let disk = Arc::new(disk.killed());
        let mut bytes = disk.read(FIRST).unwrap();
        for payload in &places[damaged.clone()] {
            let found = bytes.windows(payload.len()).position(|part| part == payload.as_bytes());
            // The header, too.
            let at = found.unwrap() - 24;
            bytes[at..at + 60].fill(0);
        }
        disk.write(FIRST, bytes);
        for open in 0..3 {
            let queue = small(on(disk.clone())).open("queue").unwrap();
            let context = format!("{damaged:?}, open {open}");
            for (n, &seq) in seqs.iter().enumerate() {
                let is_lost = damaged.contains(&n) && !(2..7).contains(&n);
                match queue.is_acked(seq) {
                    Err(Error::UnknownSeq { .. }) => assert!(is_lost, "{n}, {context}"),
                    acked => assert_eq!(acked.unwrap(), (2..7).contains(&n), "{n}, {context}"),
                }
            }
            assert_eq!(numbers(&queue).len(), 5 - lost, "{context}");
            assert_eq!(queue.damage().is_empty(), lost == 0 || open > 0, "{context}");
            queue.close().unwrap();
        }
    }
}

/// The same of the last messages of a segment that has no seal: they counted as lost, although
/// their slots said that they were settled.
#[test]
fn a_settled_message_needs_no_record_at_the_end() {
    let disk = Arc::new(MemoryStorage::new());
    let options = || small(on(disk.clone())).durability(Durability::Always).sync_acks(true);
    let queue = options().open("queue").unwrap();
    let payload = |number: u64| format!("message {number:03} {}", "x".repeat(100));
    (1..=10).for_each(|number| assert_eq!(queue.push(payload(number)).unwrap(), number.into()));
    let jobs = queue.pop_batch(10).unwrap();
    queue.ack_batch(jobs.into_iter().filter(|job| u64::from(job.seq()) != 9)).unwrap();
    queue.maintain().unwrap();
    for lost in [8..=8, 10..=10, 7..=10] {
        let disk = Arc::new(disk.killed());
        let mut bytes = disk.read(FIRST).unwrap();
        for number in lost.clone() {
            let payload = payload(number);
            let found = bytes.windows(payload.len()).position(|part| part == payload.as_bytes());
            let at = found.unwrap() - 24;
            bytes[at..at + 24 + payload.len()].fill(0);
        }
        disk.write(FIRST, bytes);
        agree(&disk, "records at the end");
        for open in 0..2 {
            let queue = small(on(disk.clone())).open("queue").unwrap();
            let context = format!("{lost:?}, open {open}: {:?}", queue.recovery());
            let is_lost = lost.contains(&9);
            assert_eq!(
                queue.recovery().damage().len(),
                usize::from(is_lost && open == 0),
                "{context}"
            );
            assert_eq!(numbers(&queue).len(), usize::from(!is_lost), "{context}");
            for number in (1..=10).filter(|&number| number != 9) {
                assert!(queue.is_acked(number.into()).unwrap(), "{number}, {context}");
            }
            assert_eq!(queue.is_acked(9.into()).is_err(), is_lost, "{context}");
            queue.close().unwrap();
        }
    }
}

/// The slot of a transient message was damaged: `get` showed it to the next run, which never hands
/// it out.
#[test]
fn a_transient_message_ends_with_its_run() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = small(Queue::options()).storage(disk.clone()).open("queue").unwrap();
    let seq = queue.push(Message::new("transient").transient()).unwrap();
    queue.push("another").unwrap();
    let disk = Arc::new(disk.killed());
    let mut bytes = disk.read(FIRST).unwrap();
    let at = slot(&bytes, 0);
    bytes[at + 7] ^= 0x55;
    disk.write(FIRST, bytes);
    drop(queue);
    let queue = small(Queue::options()).storage(disk).open("queue").unwrap();
    assert!(queue.get(seq).unwrap().is_none());
    assert_eq!(queue.iter().count(), 1);
    assert_eq!(numbers(&queue), [2]);
    assert!(queue.get(seq).unwrap().is_none());
    assert!(queue.is_acked(seq).unwrap());
}

/// A transient message was rejected, and the process was killed before it was among the dead
/// letters, where the next run takes it: `get` said that it was settled.
#[test]
fn a_transient_message_that_dies_outlasts_its_run() {
    let disk = Arc::new(MemoryStorage::new());
    let options = || small(Queue::options()).storage(disk.clone());
    let queue = options().open("queue").unwrap();
    let seq = queue.push(Message::new("transient").transient()).unwrap();
    queue.pop().unwrap().unwrap().reject("bad").unwrap();
    let disk = Arc::new(disk.killed());
    let queue = small(Queue::options()).storage(disk).open("queue").unwrap();
    assert!(!queue.is_acked(seq).unwrap());
    assert_eq!(&queue.get(seq).unwrap().unwrap()[..], b"transient");
    queue.maintain().unwrap();
    assert!(queue.get(seq).unwrap().is_none() && queue.is_acked(seq).unwrap());
    let letter = queue.dead_letters().unwrap().pop().unwrap().unwrap();
    assert_eq!(&letter[..], b"transient");
}

/// Somebody moved a file away, and back again: in the same run, or after an open without it. What
/// it held had counted as lost, so the next run took the file for one that was let go, and removed
/// it.
#[test]
fn a_file_that_was_away_for_a_moment_is_not_lost() {
    for is_open in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let aside = tempfile::tempdir().unwrap();
        let open = || small(Queue::options()).open_segments(2).open(dir.path()).unwrap();
        let queue = open();
        for number in 0..40_u8 {
            queue.push(vec![number; 30_000]).unwrap();
        }
        queue.close().unwrap();
        let file: PathBuf = dir.path().join("000000000000000a.seg");
        let away = aside.path().join("file");
        let move_away = || std::fs::rename(&file, &away).unwrap();
        if !is_open {
            move_away();
        }
        let queue = open();
        let first = queue.pop().unwrap().unwrap();
        if is_open {
            move_away();
        }
        let found = numbers(&queue);
        assert!(found.len() < 39, "{found:?}");
        first.release().unwrap();
        assert_eq!(queue.damage().len(), 1, "{:?}", queue.damage());
        queue.push("another").unwrap();
        queue.maintain().unwrap();
        queue.close().unwrap();
        std::fs::rename(&away, &file).unwrap();
        let queue = open();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        let all = numbers(&queue);
        assert_eq!(all.len(), 41, "open {is_open}: {all:?}");
        queue.close().unwrap();
        let queue = open();
        queue.purge().unwrap();
        queue.maintain().unwrap();
        queue.close().unwrap();
        assert!(!file.exists(), "it is let go once all of it is settled");
    }
}

/// The directory of the dead letters was moved away, and later letters went along: confirmed, and
/// neither in the queue nor among its dead letters.
#[cfg(unix)]
#[test]
fn dead_letters_do_not_follow_their_directory() {
    for durability in [Durability::Os, Durability::Always] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue");
        let open = || small(Queue::options()).durability(durability).open(&path).unwrap();
        let queue = open();
        let reject = |queue: &Queue, count: u8| {
            for number in 0..count {
                queue.push(&[number][..]).unwrap();
                queue.pop().unwrap().unwrap().reject("no").unwrap();
            }
        };
        reject(&queue, 2);
        assert_eq!(queue.dead_letters().unwrap().len(), 2);
        std::fs::rename(path.join("dead"), dir.path().join("dead")).unwrap();
        reject(&queue, 3);
        queue.maintain().ok();
        assert!(queue.stats().last_background_error().is_some());
        queue.close().ok();
        let queue = open();
        assert_eq!(queue.dead_letters().unwrap().len(), 3, "{durability:?}");
    }
}

/// Other parts of the program held every descriptor: the sync of a push could not begin, and the
/// error said that the message was not in the queue.
#[cfg(unix)]
#[test]
fn a_push_that_may_be_there_says_so() {
    use crate::outside_files::{take_all_descriptors, with_few_descriptors};

    if std::env::var("KEEPQ_FEW_DESCRIPTORS").is_err() {
        return with_few_descriptors("outside_variants::a_push_that_may_be_there_says_so", 128);
    }
    let message = |number: u64| [number.to_le_bytes().to_vec(), vec![b'x'; 9000]].concat();
    for before in 0..16 {
        let dir = tempfile::tempdir().unwrap();
        let options = Queue::options().segment_bytes(65_536).background(false);
        let queue = options.open(dir.path().join("q")).unwrap();
        for number in 0..before {
            queue.push(message(number)).unwrap();
        }
        // There is a segment for the messages behind those.
        queue.maintain().unwrap();
        let all = take_all_descriptors();
        let refused: Vec<_> = (before..before + 9)
            .filter_map(|number| Some((number, queue.push(message(number)).err()?)))
            .collect();
        drop(all);
        queue.sync().unwrap();
        let there = queue.iter().map(|one| u64_at(&one.unwrap(), 0)).collect::<Vec<_>>();
        for (number, error) in refused {
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            assert_eq!(error.is_indeterminate(), there.contains(&number), "{number}: {error:?}");
        }
    }
}

/// Something was appended to CHECKPOINT, or it was cut. Then it counted as none, though its first
/// slot was whole: that a segment was gone was not told.
#[test]
fn a_checkpoint_of_another_length_is_read() {
    for len in [4096, 5000, 8191, 8193, 12_288, 16_384] {
        let disk = Arc::new(MemoryStorage::new());
        let options = || small(on(disk.clone()));
        let queue = options().open("queue").unwrap();
        for _ in 0..60 {
            queue.push(vec![1; 3000]).unwrap();
        }
        queue.close().unwrap();
        let mut checkpoint = disk.read("CHECKPOINT").unwrap();
        assert_eq!(checkpoint.len(), 8192);
        checkpoint.resize(len, 0xFF);
        disk.write("CHECKPOINT", checkpoint);
        disk.remove(FIRST).unwrap();
        disk.sync_directory().unwrap();
        agree(&disk, &format!("{len} bytes"));
        let queue = options().open("queue").unwrap();
        let report = queue.recovery();
        assert_eq!(report.checkpoint(), CheckpointState::Used, "{len} bytes");
        assert!(!report.is_clean(), "{len} bytes");
        let told: Vec<u64> = report.damage().iter().map(|one| one.first_seq().into()).collect();
        assert_eq!(told, [1], "{len} bytes");
        queue.close().unwrap();
        let queue = options().open("queue").unwrap();
        assert!(queue.recovery().is_clean(), "{len} bytes: {:?}", queue.recovery());
    }
}

/// The last record of a killed run rotted. Nothing said that it had been there: it was lost, and
/// the report was clean.
#[test]
fn a_rotten_record_at_the_end_is_told() {
    for place in [0, 500, 2999] {
        let disk = Arc::new(MemoryStorage::new());
        let options = || small(on(disk.clone())).durability(Durability::Always);
        let queue = options().open("queue").unwrap();
        for number in 1..=5 {
            queue.push(vec![number; 3000]).unwrap();
        }
        let killed = disk.killed();
        drop(queue);
        let mut bytes = killed.read(FIRST).unwrap();
        let at = bytes.windows(3000).position(|part| part == [5; 3000]).unwrap();
        bytes[at + place] ^= 1;
        killed.write(FIRST, bytes);
        agree(&killed, &format!("place {place}"));
        let queue = small(on(Arc::new(killed))).open("queue").unwrap();
        let report = queue.recovery();
        let cut = report.cut().map(|cut| u64::from(cut.first_seq()));
        assert_eq!((cut, report.is_clean()), (Some(5), false), "{report:?}");
        assert_eq!(numbers(&queue), [1, 2, 3, 4]);
        assert!(queue.is_acked(5.into()).is_err());
    }
}
