//! Damaged, missing, foreign and half-made files: what is lost is told, what is not is delivered.

use crate::support::{Dice, cases};
use keepq::{CheckpointState, DamageKind, Durability, Error, Options, Queue};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// From format.md.
const PAGE: usize = 4096;
const RECORD_HEADER: usize = 24;

fn options() -> Options {
    Queue::options().segment_bytes(65_536).background(false).durability(Durability::Os)
}

/// A closed queue of `count` messages of 200 bytes: some five segments for a thousand.
fn closed(count: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = options().open(&path).unwrap();
    for number in 0..count {
        queue.push(message(number)).unwrap();
    }
    queue.close().unwrap();
    (dir, path)
}

fn message(number: usize) -> Vec<u8> {
    let mut message = (number as u64).to_le_bytes().to_vec();
    message.resize(200, u8::try_from(number % 251).unwrap());
    message
}

/// The numbers of all messages that are there, each checked.
fn drain(queue: &Queue) -> Vec<usize> {
    let all = queue.pop_batch(usize::MAX).unwrap();
    let number = |job: &keepq::Delivery| {
        let number = u64::from_le_bytes(job[..8].try_into().unwrap()) as usize;
        assert_eq!(&job[..], message(number));
        assert_eq!(u64::from(job.seq()), number as u64 + 1);
        number
    };
    let numbers = all.iter().map(number).collect();
    queue.ack_batch(all).unwrap();
    numbers
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<_> =
        files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Bytes from one record to the next: 24 + 200, a multiple of 8.
const RECORD: usize = RECORD_HEADER + 200;

#[test]
fn a_flipped_bit_costs_one_record() {
    for (part, at) in [("header", 5), ("length", 8), ("index", 16), ("payload", RECORD_HEADER + 9)]
    {
        for with_checkpoint in [true, false] {
            let (_dir, path) = closed(1000);
            let second = &segments(&path)[1];
            change(second, |bytes| bytes[PAGE + 10 * RECORD + at] ^= 4);
            if !with_checkpoint {
                fs::remove_file(path.join("CHECKPOINT")).unwrap();
            }
            let queue = options().open(&path).unwrap();
            let found = drain(&queue);
            assert_eq!(found.len(), 999, "{part}");
            let lost = (0..1000).find(|number| !found.contains(number)).unwrap() as u64 + 1;
            let damage = queue.damage();
            assert_eq!(damage.len(), 1, "{damage:?}");
            let first = u64::from(damage[0].first_seq());
            assert_eq!((first, damage[0].last_seq()), (lost, damage[0].first_seq()));
            assert_eq!((damage[0].path(), damage[0].kind()), (&**second, DamageKind::Corrupt));
            assert_eq!(damage[0].offset() as usize, PAGE + 10 * RECORD);
            assert_eq!((queue.len(), queue.stats().lost()), (0, 1));
            queue.maintain().unwrap();
            queue.push(message(1000)).unwrap();
        }
    }
}

/// Above the watermark a damaged record cannot be told from a torn one: the log ends there, and
/// what was behind it stays dropped, also when the next run has pushed.
#[test]
fn damage_in_the_unsynced_end_cuts_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (live, mut path) = (dir.path().join("live"), dir.path().join("killed"));
    let queue = options().open(&live).unwrap();
    (0..100).for_each(|number| assert!(queue.push(message(number)).is_ok()));
    // What a kill at this moment leaves.
    fs::create_dir(&path).unwrap();
    for file in fs::read_dir(&live).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, path.join(file.file_name().unwrap())).unwrap();
    }
    change(&segments(&path)[0], |bytes| bytes[PAGE + 50 * RECORD + 30] ^= 1);
    for open in 0..2 {
        let queue = options().open(&path).unwrap();
        let cut = queue.recovery().cut().unwrap_or_else(|| panic!("no cut at open {open}"));
        assert_eq!((u64::from(cut.first_seq()), cut.kind()), (51, DamageKind::Torn));
        assert_eq!((queue.recovery().dropped(), queue.len()), (49, 50));
        assert_eq!(cut.offset() as usize, PAGE + 50 * RECORD);
        std::mem::forget(queue.pop_batch(50).unwrap());
        if open == 0 {
            // Another kill, before anything was pushed: the same is found again.
            let copy = dir.path().join("again");
            fs::create_dir(&copy).unwrap();
            for file in fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
            path = copy;
        } else {
            let next = queue.push(b"next").unwrap();
            assert!(u64::from(next) > 100, "no dropped number is given again");
        }
    }
    let queue = options().open(&path).unwrap();
    assert!(queue.recovery().is_clean() && queue.len() == 51);
}

#[test]
fn a_zeroed_sector_costs_the_records_in_it() {
    let (_dir, path) = closed(1000);
    change(&segments(&path)[0], |bytes| bytes[8192..8192 + 512].fill(0));
    let queue = options().open(&path).unwrap();
    let found = drain(&queue);
    // 4096 bytes are 18.3 records; a sector touches three or four.
    assert!((996..=997).contains(&found.len()), "{}", found.len());
    assert!(found.contains(&17) && found.contains(&999) && !found.contains(&19));
    assert_eq!(queue.damage().len(), 1000 - found.len());
}

#[test]
fn either_header_page_serves_and_both_gone_is_a_reported_loss() {
    let (_dir, path) = closed(1000);
    let all = segments(&path);
    change(&all[0], |bytes| bytes[..PAGE].fill(0));
    change(&all[1], |bytes| {
        let twin = bytes.len() - PAGE;
        bytes[twin..].fill(0xFF);
    });
    let queue = options().open(&path).unwrap();
    assert_eq!(drain(&queue), (0..1000).collect::<Vec<_>>());
    assert!(queue.recovery().is_clean());
    drop(queue);

    let (_dir, path) = closed(1000);
    let gone = segments(&path)[1].clone();
    change(&gone, |bytes| {
        let twin = bytes.len() - PAGE;
        bytes[..PAGE].fill(0);
        bytes[twin..].fill(0);
    });
    let queue = options().open(&path).unwrap();
    let found = drain(&queue);
    let damage = queue.recovery().damage().to_vec();
    assert_eq!((damage.len(), damage[0].kind()), (1, DamageKind::Segment), "{damage:?}");
    let (first, last) = (u64::from(damage[0].first_seq()), u64::from(damage[0].last_seq()));
    let missing: Vec<u64> =
        (1..=1000).filter(|seq| !found.contains(&(*seq as usize - 1))).collect();
    assert_eq!(missing, (first..=last).collect::<Vec<_>>());
    let ignored: Vec<_> = queue.recovery().ignored().collect();
    assert_eq!(ignored, [(&*gone, "no readable header")]);
    drop(queue);
    assert!(gone.exists(), "what cannot be read is left alone");
}

#[test]
fn a_missing_segment_is_reported_with_its_range() {
    let (_dir, path) = closed(1000);
    let gone = segments(&path)[2].clone();
    fs::remove_file(&gone).unwrap();
    let queue = options().open(&path).unwrap();
    let found = drain(&queue);
    let damage = &queue.recovery().damage()[0];
    assert_eq!((damage.path(), damage.kind()), (&*gone, DamageKind::Segment));
    let lost = u64::from(damage.last_seq()) - u64::from(damage.first_seq()) + 1;
    assert_eq!(found.len() as u64 + lost, 1000);
    let seq = queue.push(b"next").unwrap();
    assert_eq!(u64::from(seq), 1001);
}

#[test]
fn the_checkpoint_may_be_missing_torn_or_older() {
    for state in ["missing", "torn", "garbage", "empty", "old", "directory"] {
        let (_dir, path) = closed(500);
        let file = path.join("CHECKPOINT");
        let old = fs::read(&file).unwrap();
        {
            let queue = options().open(&path).unwrap();
            queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
            for number in 500..1000 {
                queue.push(message(number)).unwrap();
            }
            queue.maintain().unwrap();
        }
        match state {
            "missing" => fs::remove_file(&file).unwrap(),
            "torn" => change(&file, |bytes| {
                let half = bytes.len() / 2;
                bytes[20..60].fill(1);
                bytes[half + 20..half + 60].fill(2);
            }),
            "garbage" => fs::write(&file, vec![0xFF; 8192]).unwrap(),
            "empty" => fs::write(&file, b"").unwrap(),
            "directory" => {
                fs::remove_file(&file).unwrap();
                fs::create_dir(&file).unwrap();
            }
            _ => fs::write(&file, &old).unwrap(),
        }
        let queue = options().open(&path).unwrap();
        assert_eq!(drain(&queue), (100..1000).collect::<Vec<_>>(), "{state}");
        let expected = match state {
            "missing" => CheckpointState::Missing,
            "old" => CheckpointState::Used,
            _ => CheckpointState::Damaged,
        };
        assert_eq!(queue.recovery().checkpoint(), expected, "{state}");
        if state != "directory" {
            queue.close().unwrap();
            assert!(options().open(&path).unwrap().recovery().is_clean());
        }
    }
}

#[test]
fn a_checkpoint_newer_than_the_data_hides_nothing_that_it_lists() {
    let (_dir, path) = closed(500);
    let copies: Vec<_> =
        segments(&path).iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    let queue = options().open(&path).unwrap();
    queue.ack_batch(queue.pop_batch(5).unwrap()).unwrap();
    queue.push(message(500)).unwrap();
    queue.close().unwrap();
    for newer in segments(&path) {
        fs::remove_file(newer).unwrap();
    }
    for (path, bytes) in &copies {
        fs::write(path, bytes).unwrap();
    }
    let queue = options().open(&path).unwrap();
    assert_eq!(drain(&queue), (0..500).collect::<Vec<_>>());
    assert_eq!(queue.recovery().damage().len(), 1, "the newest segment is gone");
    assert!(u64::from(queue.push(b"x").unwrap()) > 501, "its number is not given again");
}

#[test]
fn renamed_copied_and_foreign_files() {
    let (_dir, path) = closed(1000);
    let (_other_dir, other) = closed(10);
    let all = segments(&path);
    let misnamed = path.join("00000000000000ff.seg");
    fs::rename(&all[1], &misnamed).unwrap();
    fs::copy(&all[0], path.join("copy of 1.seg")).unwrap();
    fs::copy(&all[2], path.join("0000000000000007.seg")).unwrap();
    fs::copy(&segments(&other)[0], path.join("0000000000000100.seg")).unwrap();
    fs::write(path.join("0000000000000101.seg"), b"").unwrap();
    fs::write(path.join("0000000000000102.seg"), b"x").unwrap();
    fs::write(path.join("notes.txt"), b"mine").unwrap();
    fs::write(path.join("0000000000000103.tmp"), b"half-made").unwrap();
    fs::create_dir(path.join("0000000000000104.seg")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&all[0], path.join("0000000000000105.seg")).unwrap();
    let queue = options().open(&path).unwrap();
    let ignored = queue.recovery().ignored().count();
    assert_eq!(ignored, 7 + usize::from(cfg!(unix)), "{:?}", queue.recovery());
    assert_eq!(drain(&queue), (0..1000).collect::<Vec<_>>(), "each once, in order");
    queue.push(b"no name of a file is taken for a new one").unwrap();
    queue.maintain().unwrap();
    assert!(path.join("notes.txt").exists() && path.join("0000000000000100.seg").exists());
    assert!(!path.join("0000000000000103.tmp").exists() && !misnamed.exists());
}

#[test]
fn nothing_readable_is_refused_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("0000000000000001.seg"), vec![1; 65_536]).unwrap();
    let error = options().open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Corrupt { operation: "open", .. }), "{error}");
    assert_eq!(fs::read(dir.path().join("0000000000000001.seg")).unwrap(), vec![1; 65_536]);
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(options().open(&file), Err(Error::Io { .. })));
}

#[test]
fn a_newer_version_is_refused_and_nothing_is_written() {
    let version = |bytes: &mut Vec<u8>| {
        let twin = bytes.len() - PAGE;
        bytes[8] = 2;
        bytes[twin + 8] = 2;
    };
    let (_dir, path) = closed(1000);
    change(&segments(&path)[1], version);
    fs::write(path.join("0000000000000103.tmp"), b"left alone").unwrap();
    let snapshot = || {
        let files = fs::read_dir(&path).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    };
    let before = snapshot();
    let error = options().open(&path).unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { found: 2, supported: 1 }), "{error}");
    assert!(before == snapshot());
    // One copy alone is a flipped bit.
    let (_dir, path) = closed(100);
    change(&segments(&path)[0], |bytes| bytes[8] = 2);
    assert_eq!(drain(&options().open(&path).unwrap()).len(), 100);
}

#[test]
fn a_damaged_slot_costs_a_redelivery() {
    let (_dir, path) = closed(100);
    let queue = options().open(&path).unwrap();
    queue.ack_batch(queue.pop_batch(50).unwrap()).unwrap();
    queue.close().unwrap();
    change(&segments(&path)[0], |bytes| {
        let slot_of_10 = bytes.len() - PAGE - 16 * 11;
        bytes[slot_of_10 + 2] ^= 1;
    });
    let queue = options().open(&path).unwrap();
    assert_eq!(queue.len(), 51);
    let again = queue.pop().unwrap().unwrap();
    assert_eq!((u64::from(again.seq()), again.attempts()), (11, 2));
    assert_eq!(queue.damage()[0].kind(), DamageKind::Slot);
    again.ack().unwrap();
    assert_eq!(drain(&queue), (50..100).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.stats().lost()), (0, 0));
}

#[test]
fn lying_lengths_are_not_believed() {
    for lie in [[0xFF; 4], [0, 0, 0, 0x80], [0, 0xFF, 0, 0]] {
        let (_dir, path) = closed(300);
        change(&segments(&path)[0], |bytes| {
            bytes[PAGE + 5 * RECORD + 8..][..4].copy_from_slice(&lie);
        });
        assert_eq!(drain(&options().open(&path).unwrap()).len(), 299);
    }
}

/// Bytes changed anywhere in any file: never a panic, a hang or a changed message; what is lost is
/// told. `KEEPQ_DAMAGE_CASES` sets how often (default 300).
#[test]
fn random_damage_never_panics_and_never_changes_a_message() {
    let (_dir, clean) = closed(400);
    let queue = options().open(&clean).unwrap();
    queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
    queue.close().unwrap();
    let files: Vec<_> = fs::read_dir(&clean).unwrap().map(|file| file.unwrap().path()).collect();
    for seed in 0..cases("KEEPQ_DAMAGE_CASES", 300) {
        let mut dice = Dice(seed);
        let dir = tempfile::tempdir().unwrap();
        for file in &files {
            fs::copy(file, dir.path().join(file.file_name().unwrap())).unwrap();
        }
        let mut changed = Vec::new();
        for _ in 0..=dice.below(4) {
            let file = &files[dice.below(files.len() as u64) as usize];
            let file = dir.path().join(file.file_name().unwrap());
            change(&file, |bytes| {
                if bytes.is_empty() {
                    return;
                }
                let at = dice.below(bytes.len() as u64) as usize;
                let len = 1 << dice.below(12);
                let end = bytes.len().min(at + len);
                match dice.below(3) {
                    0 => bytes[at] ^= 1 << dice.below(8),
                    1 => bytes[at..end].fill(dice.next() as u8),
                    _ => bytes[at..end].iter_mut().for_each(|byte| *byte = dice.next() as u8),
                }
                changed.push((at, end));
            });
        }
        match options().open(dir.path()) {
            Ok(queue) => {
                let found = drain(&queue).into_iter().filter(|&number| number >= 100).count();
                let told = queue.damage();
                assert!(found == 300 || !told.is_empty(), "{found} of 300, seed {seed}");
                queue.push(b"goes on").unwrap();
                queue.close().unwrap();
            }
            Err(error) => assert!(
                matches!(error, Error::UnsupportedVersion { .. } | Error::Corrupt { .. }),
                "seed {seed}: {error}"
            ),
        }
    }
}
