//! Found from reading: loads of bytes that another thread stores to. On paper such a race may do
//! anything; each of these loads is impossible now.

use crate::found_hooks::{Gate, LIMIT, OpenAtEnd, Part, RECORD_HEADER, find, is_temporary, spoil};
use crate::found_support::{call, on, soon};
use crate::support::watched::{Call, Op, Watched};
use keepq::Queue;
use keepq::fault::{MemoryStorage, Storage};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A queue with a job in the first, the second and the last record.
fn with_three_jobs() -> (Arc<MemoryStorage>, Arc<Watched>, Queue) {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    for job in ["the first job", "the second job", "the last job"] {
        queue.push(job).unwrap();
    }
    (disk, storage, queue)
}

/// How far bytes are read from here on that are not loaded whole or not at all, as words of slots
/// are.
fn end_of_reads(storage: &Watched) -> Arc<AtomicU64> {
    let read = Arc::new(AtomicU64::new(0));
    let note = Arc::clone(&read);
    storage.rule(move |Call { op, offset, len, .. }| {
        if [Op::Load, Op::LoadBody].contains(&op) && len > 8 {
            note.fetch_max(offset + len, Ordering::SeqCst);
        }
        Ok(())
    });
    read
}

/// Behind a damaged record a consumer searches for the next one, by many bytes at once. In the
/// segment that is pushed to, the search went on into bytes that a push was about to store.
#[test]
fn a_search_ends_where_pushes_go_on() {
    let (disk, storage, queue) = with_three_jobs();
    let (_, last) = find(&disk, b"the last job");
    let tail = (last + "the last job".len() as u64).next_multiple_of(8);
    let read = end_of_reads(&storage);
    spoil(&disk, b"the first job", Part::Header);
    spoil(&disk, b"the last job", Part::Header);
    let jobs = queue.pop_batch(9).unwrap();
    let jobs: Vec<&[u8]> = jobs.iter().map(|job| &**job).collect();
    assert_eq!(jobs, [b"the second job"]);
    assert_eq!(queue.stats().lost(), 2);
    let read = read.load(Ordering::SeqCst);
    assert!(read > last - RECORD_HEADER, "the search did not come to the last record: {read}");
    assert!(read <= tail, "the search read up to {read}, and pushes store from {tail} on");
}

/// A slot may go bad so that its check still holds, and name a place behind the tail, where a push
/// may store at that moment.
#[test]
fn a_rotten_slot_leads_nobody_behind_the_tail() {
    const BEHIND: u64 = 40_000;
    let (disk, storage, queue) = with_three_jobs();
    let (name, last) = find(&disk, b"the last job");
    let tail = (last + "the last job".len() as u64).next_multiple_of(8);
    let read = end_of_reads(&storage);
    let file = disk.open(&name).unwrap();
    let slot = file.size() - 4096 - 16;
    // Handed out once, and the offset in units of 8, in front of a check of 16 bits.
    let state = (BEHIND / 8) | (1 << 29) | (1 << 44);
    for check in 0..=u16::MAX {
        file.write_at(slot, &(state | u64::from(check) << 48).to_le_bytes()).unwrap();
        assert!(queue.get(1.into()).unwrap().is_some());
        let read = read.load(Ordering::SeqCst);
        assert!(read <= tail, "check {check}: read up to {read}, pushes store from {tail} on");
    }
}

/// `get` reads the body of a message outside of all locks. Meanwhile the message was settled, and
/// its segment let go. Its file was made the next segment under the eyes of the reader. (Before
/// that, `get` even said that no message had ever had this number.)
#[test]
fn a_file_is_not_used_again_while_it_is_read() {
    const NAME: &str = "0000000000000001.seg";
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk);
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    let payload = |n: u8| vec![n; 9000];
    for n in 0..13 {
        queue.push(payload(n)).unwrap();
    }
    queue.sync().unwrap();
    let (gate, is_held) = (Gate::closed(), Arc::new(AtomicBool::new(false)));
    let open = OpenAtEnd(Arc::clone(&gate));
    let gone = Arc::new(Mutex::new(Vec::new()));
    let (hold, note) = (Arc::clone(&is_held), Arc::clone(&gone));
    storage.rule(move |Call { op, name, .. }| {
        // Only a file that is used again takes a temporary name from another one.
        if op == Op::Remove || op == Op::Rename && is_temporary(name) {
            note.lock().unwrap().push((op, name.to_owned()));
        }
        if op == Op::LoadBody && name == NAME && !hold.swap(true, Ordering::SeqCst) {
            gate.pass();
        }
        Ok(())
    });
    let looking = queue.clone();
    let got = call(move || looking.get(1.into()));
    assert!(soon(|| is_held.load(Ordering::SeqCst)), "nothing was read after {LIMIT:?}");
    queue.ack_batch(queue.pop_batch(6).unwrap()).unwrap();
    queue.maintain().unwrap();
    assert_eq!(*gone.lock().unwrap(), [(Op::Remove, NAME.to_owned())]);
    // A segment that nobody reads is used again.
    queue.ack_batch(queue.pop_batch(6).unwrap()).unwrap();
    queue.maintain().unwrap();
    let gone = gone.lock().unwrap().clone();
    assert!(matches!(gone[..], [_, (Op::Rename, _)]), "{gone:?}");
    drop(open);
    let got = got.result("get").unwrap().expect("it was not settled when it was looked for");
    assert_eq!(*got, payload(0));
}
