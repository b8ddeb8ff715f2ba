//! What a kill in full flow left, in segments that open reads beside each other.

use crate::found_hooks::{Gate, OpenAtEnd, files, is_segment, until};
use crate::support::DEADLINE;
use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Durability, Error, Options, Queue};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{available_parallelism, current};

const MESSAGES: u64 = 640;
const BYTES: usize = 64 << 10;
/// Bytes of the header of a record; see the format page.
const RECORD_HEADER: usize = 24;

fn options() -> Options {
    Queue::options().durability(Durability::Os).segment_bytes(8 << 20)
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(BYTES, 7);
    payload
}

/// Forty MiB, of which nothing is synced.
fn killed_in_full_flow() -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let gate = Gate::closed();
    let here = gate.clone();
    storage.rule(move |call| {
        if call.op == Op::Sync && is_segment(call.name) {
            here.pass();
        }
        Ok(())
    });
    let queue = options().storage(storage).open("queue").unwrap();
    let _open = OpenAtEnd(gate.clone());
    for number in 1..=MESSAGES {
        assert_eq!(u64::from(queue.push(payload(number)).unwrap()), number);
    }
    until("the background is held up", || gate.has_waiting());
    disk.killed()
}

/// The segments, in order, and the first message that each of them has.
fn segments(disk: &Arc<MemoryStorage>) -> Vec<(String, u64)> {
    let names = files(disk).into_iter();
    let first = |name: String| {
        let file = disk.read(&name)?;
        let at = file.windows(8).step_by(8).position(|word| word == [7; 8])? * 8;
        Some((name, u64::from_le_bytes(file[at - 8..at].try_into().unwrap())))
    };
    names.filter_map(first).collect()
}

/// Damages the body of the first message of a segment.
fn damage(disk: &MemoryStorage, name: &str) {
    let mut file = disk.read(name).unwrap();
    let at = file.windows(8).step_by(8).position(|word| word == [7; 8]).unwrap() * 8;
    file[at] ^= 1;
    disk.write(name, file);
}

#[test]
fn all_of_it_is_there_in_order() {
    let disk = Arc::new(killed_in_full_flow());
    let queue = options().storage(disk).open("queue").unwrap();
    assert!(queue.recovery().scanned_bytes() >= MESSAGES * (BYTES + RECORD_HEADER) as u64);
    for number in 1..=MESSAGES {
        let delivery = queue.pop().unwrap().unwrap();
        assert!(*delivery == payload(number), "message {number}");
        delivery.ack().unwrap();
    }
}

#[test]
fn the_log_ends_at_the_first_damage() {
    let disk = Arc::new(killed_in_full_flow());
    let segments = segments(&disk);
    let [.., (early, first), _, (late, _), _] = &*segments else { panic!("{segments:?}") };
    damage(&disk, early);
    damage(&disk, late);
    let queue = options().storage(disk).open("queue").unwrap();
    let cut = queue.recovery().cut().unwrap();
    assert_eq!(u64::from(cut.first_seq()), *first);
    assert!(cut.path().ends_with(early), "{cut:?}");
    // All behind it but the two.
    assert_eq!(queue.recovery().dropped(), MESSAGES - first + 1 - 2);
    assert_eq!(queue.len(), first - 1);
}

/// Open fails with the first error, whichever thread finds it; and they do read beside each other.
#[test]
fn the_first_error_is_told() {
    let disk = Arc::new(killed_in_full_flow());
    let segments = segments(&disk);
    let [.., (early, _), _, (late, _), _] = &*segments else { panic!("{segments:?}") };
    let storage = Watched::around(disk.clone());
    let at_least = available_parallelism().map_or(1, usize::from).min(2);
    let readers = Arc::new((Mutex::new(BTreeSet::new()), Condvar::new()));
    let (early, late, seen) = (early.clone(), late.clone(), readers.clone());
    let is_early = early.clone();
    storage.rule(move |call| {
        // A window of records.
        if call.op != Op::Read || call.len < 128 << 10 {
            return Ok(());
        }
        let mut threads = seen.0.lock().unwrap();
        threads.insert(format!("{:?}", current().id()));
        seen.1.notify_all();
        let alone = |threads: &mut BTreeSet<String>| threads.len() < at_least;
        drop(seen.1.wait_timeout_while(threads, DEADLINE, alone).unwrap());
        if call.name == is_early || call.name == late {
            return Err(std::io::Error::other("no reading here"));
        }
        Ok(())
    });
    let opened = options().storage(storage).open("queue");
    let Err(Error::Io { path, .. }) = &opened else { panic!("{opened:?}") };
    assert!(path.ends_with(&early), "{path:?}");
    assert!(readers.0.lock().unwrap().len() >= at_least);
}
