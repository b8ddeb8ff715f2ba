//! An error while open reads a directory is that error, and nothing else.
//!
//! Open once took an activation that could not be read for one that is not there. Whatever fails to
//! be read is told with operation, path and offset; nothing was written or removed; and once the
//! disk answers again, open finds everything. Compaction, too, loses nothing to a failed read.

use crate::support::watched::{Call, Op, Watched};
use keepq::fault::{Entry, MemoryStorage, Storage};
use keepq::{CheckpointState, Compaction, Durability, Error, Options, Queue};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

// From format.md.
const PAGE: u64 = 4096;
const ACTIVATION: u64 = 512;
const SEAL: u64 = 1024;
const SOURCES: u64 = 1536;

/// How reads fail: like those of bytes that lie outside of a file, which damage can ask for.
const FAILURE: ErrorKind = ErrorKind::InvalidInput;
/// How reads of bytes fail that a disk has and cannot read: `EIO`, or `ERROR_CRC`.
const UNREADABLE: i32 = if cfg!(windows) { 23 } else { 5 };

/// Which reads fail.
#[derive(Clone, Debug, Default)]
enum Plan {
    #[default]
    None,
    /// The one with this number, counted from 0.
    Number(u64),
    /// All of these bytes of this file.
    Place(String, Range<u64>),
    /// The disk cannot read any of these bytes of this file.
    Sectors(String, Range<u64>),
}

/// The reads of a storage, and which of them fail.
#[derive(Debug, Default)]
struct Reads {
    plan: Plan,
    count: u64,
    /// What failed: path and offset.
    failed: Option<(PathBuf, u64)>,
}

impl Reads {
    /// Counts a read; fails if the plan says so.
    fn before(&mut self, call: Call<'_>, path: PathBuf) -> io::Result<()> {
        let Call { name, offset, len, .. } = call;
        let number = self.count;
        self.count += 1;
        let fails = match &self.plan {
            Plan::None => false,
            Plan::Number(at) => number == *at,
            Plan::Place(file, bytes) | Plan::Sectors(file, bytes) => {
                file == name && offset < bytes.end && bytes.start < offset + len
            }
        };
        if !fails {
            return Ok(());
        }
        self.failed.get_or_insert((path, offset));
        match self.plan {
            Plan::Sectors(..) => Err(io::Error::from_raw_os_error(UNREADABLE)),
            _ => Err(FAILURE.into()),
        }
    }
}

/// A storage some of whose reads fail: lists, opens and reads of files. Maps are not reads.
struct Unreadable {
    storage: Arc<Watched>,
    reads: Arc<Mutex<Reads>>,
}

impl Unreadable {
    fn new(inner: Arc<dyn Storage>) -> Self {
        let (storage, reads) =
            (Watched::around(Arc::clone(&inner)), Arc::<Mutex<Reads>>::default());
        let seen = Arc::clone(&reads);
        storage.rule(move |call| {
            let is_read = [Op::List, Op::Open, Op::Read].contains(&call.op);
            if !is_read || call.name.starts_with("dead/") {
                return Ok(());
            }
            seen.lock().unwrap().before(call, inner.path(call.name))
        });
        Self { storage, reads }
    }

    fn plan(&self, plan: Plan) {
        *self.reads.lock().unwrap() = Reads { plan, ..Reads::default() };
    }
}

fn options(storage: Arc<dyn Storage>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).storage(storage);
    options.durability(Durability::Os).compaction(Compaction::default().idle(Duration::ZERO))
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(1000, 7);
    payload
}

/// A queue of 300 messages in six segments, or so.
fn pushed() -> (MemoryStorage, Queue) {
    let storage = MemoryStorage::new();
    // What is stored here is what `killed` copies of it find.
    let queue = options(storage.directory("q").unwrap()).open("q").unwrap();
    (0..300).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
    (storage, queue)
}

/// The queue in `storage`, as it is found after a kill.
fn killed(storage: &MemoryStorage) -> Arc<dyn Storage> {
    storage.killed().directory("q").unwrap()
}

/// Its segments, in order.
fn segments(storage: &dyn Storage) -> Vec<String> {
    let names = storage.list().unwrap().into_iter().map(|entry| entry.name);
    let is_segment = |name: &String| PathBuf::from(name).extension().is_some_and(|e| e == "seg");
    let mut names: Vec<_> = names.filter(is_segment).collect();
    names.sort();
    names
}

/// All names, with what is in the files.
fn content(storage: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: Entry| {
        let file = storage.open(&entry.name).unwrap();
        let mut bytes = vec![0; file.size() as usize];
        file.read_at(0, &mut bytes).unwrap();
        (entry.name, bytes)
    };
    storage.list().unwrap().into_iter().map(read).collect()
}

/// One of the two header pages of a segment.
#[derive(Clone, Copy)]
enum Page {
    First,
    Last,
}

impl Page {
    /// Where it starts in a file of this size.
    fn start(self, size: u64) -> u64 {
        match self {
            Self::First => 0,
            Self::Last => size - PAGE,
        }
    }
}

/// Overwrites what stands at a place of these header pages.
fn overwrite(storage: &dyn Storage, name: &str, place: u64, pages: &[Page]) {
    let file = storage.open(name).unwrap();
    for page in pages {
        file.write_at(page.start(file.size()) + place, &[0xA5; 20]).unwrap();
    }
    file.sync().unwrap();
}

/// What open finds: all messages, what was lost, what was cut, how many were dropped.
fn found(storage: Arc<dyn Storage>) -> impl PartialEq + std::fmt::Debug {
    let queue = options(storage).open("q").unwrap();
    let report = queue.recovery();
    let reported = (report.cut().cloned(), report.dropped(), report.damage().to_vec());
    let ignored: Vec<_> = report.ignored().map(|(path, _)| path.to_path_buf()).collect();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let jobs: Vec<_> = jobs.iter().map(|job| (u64::from(job.seq()), job.to_vec())).collect();
    (reported, ignored, jobs, queue.damage())
}

/// Opens what `make` makes with this plan: the error is told and nothing changed, and after it
/// everything is found. False if nothing failed.
fn fails_and_is_found(make: &dyn Fn() -> Arc<dyn Storage>, plan: Plan) -> bool {
    let context = format!("{plan:?}");
    let inner = make();
    let before = content(&*inner);
    let unreadable = Unreadable::new(Arc::clone(&inner));
    unreadable.plan(plan);
    let opened = options(unreadable.storage.clone()).open("q");
    let Some((failed_path, failed_at)) = unreadable.reads.lock().unwrap().failed.clone() else {
        assert!(opened.is_ok(), "{context}: {opened:?}");
        return false;
    };
    match opened {
        Err(Error::Io { operation, path, offset, source }) => {
            let told = (path, offset, source.kind());
            assert_eq!(told, (failed_path, failed_at, FAILURE), "{context}");
            let words = ["list directory", "open ", "read "];
            assert!(words.iter().any(|word| operation.starts_with(word)), "{operation}");
        }
        other => panic!("{context}: at {failed_at} it could not be read: {other:?}"),
    }
    assert!(content(&*inner) == before, "{context}: something was changed");
    unreadable.plan(Plan::None);
    assert!(
        found(unreadable.storage.clone()) == found(make()),
        "{context}: another open finds something else"
    );
    true
}

/// Makes each read of an open fail in turn, and tells how many there are.
fn each_read_fails(make: &dyn Fn() -> Arc<dyn Storage>) -> u64 {
    let mut number = 0;
    while fails_and_is_found(make, Plan::Number(number)) {
        number += 1;
    }
    number
}

#[test]
fn a_closed_queue_with_leftovers() {
    let (storage, queue) = pushed();
    queue.close().unwrap();
    let directory = storage.directory("q").unwrap();
    directory.create("00000000000000ff.tmp", 4096).unwrap();
    let reads = each_read_fails(&|| killed(&storage));
    let least = 2 * segments(&*directory).len() as u64;
    assert!(reads > least + 3, "the list, the leftover and CHECKPOINT, too: {reads}");
}

#[test]
fn a_killed_queue() {
    let (storage, _queue) = pushed();
    let reads = each_read_fails(&|| killed(&storage));
    assert!(reads > 3 * segments(&*storage.directory("q").unwrap()).len() as u64, "{reads}");
}

/// Open asks each of these for its activation twice: when it collects what was used, and when it
/// looks for what came before the next one.
#[test]
fn segments_that_lost_their_activation() {
    let (storage, _queue) = pushed();
    let directory = storage.directory("q").unwrap();
    let names = segments(&*directory);
    for name in [&names[0], &names[2]] {
        overwrite(&*directory, name, ACTIVATION, &[Page::First, Page::Last]);
    }
    assert!(each_read_fails(&|| killed(&storage)) > 3 * names.len() as u64);
}

/// What stands in one header page only and cannot be read there is not missing.
#[test]
fn a_mark_that_is_left_in_one_page() {
    let (storage, queue) = pushed();
    queue.close().unwrap();
    let directory = storage.directory("q").unwrap();
    let names = segments(&*directory);
    let name = &names[1];
    let size = directory.open(name).unwrap().size();
    for place in [ACTIVATION, SEAL] {
        let (marked, there) = (storage.killed(), size - PAGE + place);
        overwrite(&*marked.directory("q").unwrap(), name, place, &[Page::First]);
        let plan = Plan::Place(name.clone(), there..there + 20);
        assert!(fails_and_is_found(&|| killed(&marked), plan));
    }
    // Nor is what stands in a page whose header is the only good one.
    for (damaged, good) in [(Page::Last, Page::First), (Page::First, Page::Last)] {
        let (marked, start) = (storage.killed(), good.start(size));
        overwrite(&*marked.directory("q").unwrap(), name, 0, &[damaged]);
        let plan = Plan::Place(name.clone(), start..start + PAGE);
        assert!(fails_and_is_found(&|| killed(&marked), plan));
    }
}

/// Both slots of CHECKPOINT are read, and neither is taken for a damaged one.
#[test]
fn a_checkpoint() {
    let (storage, queue) = pushed();
    queue.close().unwrap();
    let half = storage.directory("q").unwrap().open("CHECKPOINT").unwrap().size() / 2;
    for slot in [0..half, half..2 * half] {
        let plan = Plan::Place("CHECKPOINT".to_string(), slot);
        assert!(fails_and_is_found(&|| killed(&storage), plan));
    }
}

/// Open once failed if the disk could not read a first header page or CHECKPOINT, although the last
/// page says the same, either slot of CHECKPOINT serves, and losing CHECKPOINT costs time.
#[test]
fn what_the_disk_cannot_read_is_read_where_it_stands_again() {
    let (storage, queue) = pushed();
    queue.ack_batch(queue.pop_batch(250).unwrap()).unwrap();
    queue.compact().unwrap();
    queue.close().unwrap();
    let directory = storage.directory("q").unwrap();
    let names = segments(&*directory);
    let half = directory.open("CHECKPOINT").unwrap().size() / 2;
    let whole = 0..2 * half;
    let checkpoint = [(0..half), (half..2 * half), whole.clone()];
    let checkpoint = checkpoint.map(|bytes| ("CHECKPOINT".to_string(), bytes));
    let pages = names.iter().map(|name| (name.clone(), 0..PAGE));
    for (name, bytes) in checkpoint.into_iter().chain(pages) {
        let inner = killed(&storage);
        let reading = Unreadable::new(Arc::clone(&inner));
        let open = || options(reading.storage.clone()).open("q").unwrap();
        reading.plan(Plan::Sectors(name.clone(), bytes.clone()));
        let queue = open();
        let report = queue.recovery().clone();
        let is_lost = bytes == whole;
        let state = if is_lost { CheckpointState::Unreadable } else { CheckpointState::Used };
        assert_eq!((report.checkpoint(), report.damage()), (state, &[][..]), "{name} {bytes:?}");
        let ignored: Vec<_> = report.ignored().map(|(path, _)| path.to_path_buf()).collect();
        let expected = if is_lost { vec![] } else { vec![inner.path(&name)] };
        assert_eq!(ignored, expected, "it is told: {name} {bytes:?}");
        let left = |queue: &Queue| {
            let left = queue.pop_batch(usize::MAX).unwrap();
            left.iter().map(|job| u64::from(job.seq())).collect::<Vec<u64>>()
        };
        assert_eq!(left(&queue), (251..=300).collect::<Vec<u64>>(), "{name} {bytes:?}");
        queue.push("goes on").unwrap();
        queue.close().unwrap();
        // CHECKPOINT was replaced: no slot of it is a bad one now.
        reading.plan(Plan::None);
        let queue = open();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        assert_eq!(left(&queue).len(), 51);
    }
}

/// A compacted segment beside what it was made from, and one that tells in its last page only what
/// it was made from.
#[test]
fn a_copy_and_its_sources() {
    let (storage, queue) = pushed();
    let jobs = queue.pop_batch(250).unwrap();
    let settled = jobs.into_iter().filter(|job| !u64::from(job.seq()).is_multiple_of(10));
    queue.ack_batch(settled).unwrap();
    queue.sync().unwrap();
    let before = storage.killed();
    queue.compact().unwrap();
    let directory = storage.directory("q").unwrap();
    let names = segments(&*before.directory("q").unwrap());
    let copies: Vec<_> = segments(&*directory);
    let copies: Vec<_> = copies.into_iter().filter(|name| !names.contains(name)).collect();
    assert!(!copies.is_empty());
    // As if the process had been killed before anything was let go.
    let both = before.killed();
    let target = both.directory("q").unwrap();
    target.remove("CHECKPOINT").unwrap();
    for (name, bytes) in content(&*directory) {
        if copies.contains(&name) {
            let file = target.create(&name, bytes.len() as u64).unwrap();
            file.write_at(0, &bytes).unwrap();
            file.sync().unwrap();
        }
    }
    let copy = copies[0].clone();
    let page = target.open(&copy).unwrap().size() - PAGE;
    overwrite(&*target, &copy, SOURCES, &[Page::First]);
    target.sync_directory().unwrap();
    // Not each read: once the states of a copy are brought up to date, something was written.
    for place in [0..PAGE, page..page + PAGE] {
        assert!(fails_and_is_found(&|| killed(&both), Plan::Place(copy.clone(), place)));
    }
    let plan = Plan::Place(names[0].clone(), 0..PAGE);
    assert!(fails_and_is_found(&|| killed(&both), plan));
}

/// Compaction once took a read that the system refused as invalid for a record that lies outside of
/// its file, and its message was lost.
#[test]
fn compaction_loses_nothing_to_a_failed_read() {
    let (pushed, _queue) = pushed();
    for number in 0.. {
        let inner = killed(&pushed);
        let unreadable = Unreadable::new(Arc::clone(&inner));
        let queue = options(unreadable.storage.clone()).open("q").unwrap();
        let jobs = queue.pop_batch(250).unwrap();
        let (kept, settled): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| u64::from(job.seq()).is_multiple_of(10));
        queue.ack_batch(settled).unwrap();
        drop(kept);
        unreadable.plan(Plan::Number(number));
        let compacted = queue.compact();
        let failed = unreadable.reads.lock().unwrap().failed.clone();
        unreadable.plan(Plan::None);
        match (compacted, &failed) {
            (Err(Error::Io { source, path, .. }), Some((failed, _))) => {
                assert_eq!((source.kind(), &path), (FAILURE, failed), "{number}");
            }
            (compacted, None) => assert!(compacted.unwrap().freed_bytes() > 0),
            (compacted, failed) => panic!("{number}: {failed:?} gave {compacted:?}"),
        }
        let left = queue.pop_batch(usize::MAX).unwrap();
        let left: Vec<u64> = left.iter().map(|job| u64::from(job.seq())).collect();
        let expected = (1..=300).filter(|seq| *seq > 250 || seq % 10 == 0);
        assert_eq!(left, expected.collect::<Vec<u64>>(), "{number}: {failed:?}");
        assert_eq!(queue.damage(), [], "{number}: {failed:?}");
        if failed.is_none() {
            assert!(number > 20, "{number}");
            return;
        }
    }
}
