//! Directories from whoever can write to them: all checks are right, and the numbers are any.
//!
//! Queues as keepq leaves them are taken, some of their numbers are changed, all checks are mended,
//! and the queue is opened and used. It may refuse, with an error that has a name. It must not
//! panic, hang, touch a file that is not its own, or lose what it confirms from then on.
//!
//! `KEEPQ_CRAFT_CASES`: how many directories. `KEEPQ_CRAFT_SEED`: the first one. A find is written
//! out as a test of its own, in `found_craft`.

use crate::found_hooks::is_segment;
use crate::support::craft::{
    ACTIVATION, Checkpoint, EPOCH, ORDINAL, PAGE, PREDECESSOR, SEAL, SEQ_LIMIT, SIZE, Segment,
    u64_at,
};
use crate::support::{DEADLINE, Dice, cases, sparse};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Backoff, Compaction, Error, Message, Options, Queue, Seq};
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const FOREIGN: &str = "notes.txt";

/// The files of a directory; those of the dead letters have `dead/` in front.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn options(disk: Arc<MemoryStorage>) -> Options {
    let compaction = Compaction::default().idle(Duration::ZERO).live_percent(80);
    let options = Queue::options().segment_bytes(65_536).background(false).storage(disk);
    options.compaction(compaction).max_attempts(3).backoff(Backoff::none())
}

pub(crate) fn files_of(disk: &MemoryStorage) -> Files {
    let names = |storage: &dyn Storage, prefix: &str| {
        let entries = storage.list().unwrap().into_iter().filter(|entry| entry.is_file);
        entries.map(|entry| format!("{prefix}{}", entry.name)).collect::<Vec<_>>()
    };
    let dead = disk.directory("dead").unwrap();
    let all = names(disk, "").into_iter().chain(names(&*dead, "dead/"));
    all.map(|name| (name.clone(), disk.read(&name).unwrap())).collect()
}

pub(crate) fn disk_of(files: &Files) -> Arc<MemoryStorage> {
    let disk = MemoryStorage::new();
    if files.keys().any(|name| name.starts_with("dead/")) {
        disk.directory("dead").unwrap();
    }
    for (name, bytes) in files {
        disk.write(name, bytes.clone());
    }
    Arc::new(disk)
}

/// A queue with all kinds of messages in some segments.
fn fill(queue: &Queue, first: u64) {
    for n in first..first + 150 {
        let message = Message::new(sparse::payload(n));
        let message = match n % 11 {
            0 => message.delay(Duration::from_secs(3600)),
            1 => message.transient(),
            2 => message.header("kind", b"any"),
            3 => message.ttl(Duration::from_secs(9999)),
            _ => message,
        };
        queue.push(message).unwrap();
    }
}

/// What keepq leaves in some ways of ending.
static LEFT: LazyLock<Vec<Files>> = LazyLock::new(|| {
    let disk = Arc::new(MemoryStorage::new());
    let queue = options(disk.clone()).open("queue").unwrap();
    fill(&queue, 1);
    let jobs = queue.pop_batch(60).unwrap();
    for job in jobs {
        match sparse::number(&job) % 5 {
            0 => job.reject("no").unwrap(),
            1 => drop(job),
            2 => job.nack_after(Duration::from_secs(60)).unwrap(),
            _ => job.ack().unwrap(),
        }
    }
    queue.sync().unwrap();
    let killed = files_of(&disk.killed());
    sparse::ack_most(&queue, 80, 9).into_iter().for_each(drop);
    queue.maintain().unwrap();
    let before = files_of(&disk.killed());
    queue.compact().unwrap();
    let compacted = files_of(&disk.killed());
    queue.close().unwrap();
    let closed = files_of(&disk);
    // The sources of the copies have come back, and CHECKPOINT is lost.
    let mut replaced: Files = before.into_iter().chain(compacted.clone()).collect();
    replaced.remove("CHECKPOINT");
    // Numbers were skipped behind a kill.
    let disk = disk_of(&killed);
    let queue = options(disk.clone()).open("queue").unwrap();
    fill(&queue, 200);
    queue.close().unwrap();
    vec![killed, compacted, closed, replaced, files_of(&disk)]
});

/// A number that is near some end, or that something else in the directory has.
fn number(dice: &mut Dice, known: u64, pool: &[u64]) -> u64 {
    match dice.below(14) {
        0 => 0,
        1 => 1,
        2 => u64::MAX - dice.below(3),
        3 => (1 << 63) - dice.below(3),
        4 => (1 << 62) - dice.below(40),
        5 => (1 << 48) - dice.below(3),
        6 => (1 << dice.below(64)) - dice.below(2),
        7 => known.wrapping_add(dice.below(3)),
        8 => known.wrapping_sub(dice.below(3)),
        9 => dice.below(400),
        10 => 8 * dice.below(8192),
        11 => u64::from(u32::MAX) - dice.below(2),
        _ => pool[dice.below(pool.len() as u64) as usize],
    }
}

/// Numbers that the directory has.
fn pool(files: &Files) -> Vec<u64> {
    let mut pool = vec![7];
    for (name, bytes) in files {
        if is_segment(name) {
            let fields = [ORDINAL, PREDECESSOR, EPOCH, SIZE, SEQ_LIMIT];
            pool.extend(fields.map(|at| u64_at(bytes, at)));
            pool.extend([0, 8].map(|at| u64_at(bytes, ACTIVATION + at)));
            pool.extend([0, 8].map(|at| u64_at(bytes, SEAL + at)));
        }
    }
    pool
}

/// The name of the segment with this ordinal.
pub(crate) fn name_of(ordinal: u64) -> String {
    format!("{ordinal:016x}.seg")
}

/// Changes something of one file.
fn mutate(files: &mut Files, dice: &mut Dice) {
    let (names, pool): (Vec<_>, _) = (files.keys().cloned().collect(), pool(files));
    let name = &names[dice.below(names.len() as u64) as usize];
    if name.ends_with("CHECKPOINT") {
        return mutate_checkpoint(files, name, dice, &pool);
    }
    let Some(mut segment) = Segment::read(files[name].clone()) else { return };
    let ordinals: Vec<u64> = files
        .values()
        .filter(|bytes| bytes.len() > PAGE)
        .map(|bytes| u64_at(bytes, ORDINAL))
        .collect();
    let mut to = name.clone();
    match dice.below(12) {
        0 => {
            files.remove(name);
            return;
        }
        // The same once more, under another number.
        1 | 2 => {
            let ordinal = number(dice, u64_at(&segment.bytes, ORDINAL), &pool);
            segment.put(ORDINAL, ordinal);
            to = if dice.one_in(4) { to } else { name_of(ordinal) };
        }
        3 | 4 if u64_at(&segment.bytes, SEAL + 8) & 0xFFFF_FFFF > 0 => {
            let count = 1 + dice.below(4);
            let any = |_| ordinals[dice.below(ordinals.len() as u64) as usize];
            let sources: Vec<u64> = (0..count).map(any).collect();
            segment.make_copy(&sources, dice.below(3));
        }
        5 => segment.put(PREDECESSOR, pool[dice.below(pool.len() as u64) as usize]),
        6 => segment.put(EPOCH, 1 + dice.below(6)),
        7 => segment.put(ACTIVATION, number(dice, u64_at(&segment.bytes, ACTIVATION), &pool)),
        8 => segment.put(SEAL + 8, dice.below(1500) | dice.below(2) << 32),
        _ => segment.change(dice, |dice, known| number(dice, known, &pool)),
    }
    segment.mend();
    files.insert(to, segment.bytes);
}

fn mutate_checkpoint(files: &mut Files, name: &str, dice: &mut Dice, pool: &[u64]) {
    let Some(mut checkpoint) = Checkpoint::read(&files[name]) else { return };
    let at = dice.below(checkpoint.numbers.len() as u64) as usize;
    match dice.below(6) {
        0 => drop(files.remove(name)),
        1 => checkpoint.generation = number(dice, checkpoint.generation, pool),
        2 => drop(checkpoint.numbers.remove(at)),
        3 => checkpoint.numbers.insert(at, number(dice, 1, pool)),
        _ => checkpoint.numbers[at] = number(dice, checkpoint.numbers[at], pool),
    }
    if files.contains_key(name) {
        files.insert(name.to_string(), checkpoint.file());
    }
}

/// An error that a directory may be answered with. An I/O error is none: nothing here fails, so it
/// would be one of bounds.
fn is_named(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. }
            | Error::UnsupportedVersion { .. }
            | Error::UnknownSeq { .. }
            | Error::LeaseExpired { .. }
    )
}

#[track_caller]
fn named<T>(result: keepq::Result<T>) -> Option<T> {
    result.inspect_err(|error| assert!(is_named(error), "{error:?}")).ok()
}

/// Opens the queue that these files say, uses it, and opens it again.
pub(crate) fn exercise(files: &Files) {
    let mut files = files.clone();
    files.insert(FOREIGN.to_string(), b"not yours".to_vec());
    let disk = disk_of(&files);
    let Some(queue) = named(options(disk.clone()).open("queue")) else {
        assert!(files.iter().all(|(name, bytes)| disk.read(name).as_ref() == Some(bytes)));
        return;
    };
    use_up(&queue);
    let mut pushed: Vec<(Seq, Vec<u8>)> = Vec::new();
    for n in 1000..1040 {
        let payload = sparse::payload(n);
        if let Some(seq) = named(queue.push(payload.clone())) {
            assert!(pushed.last().is_none_or(|(last, _)| *last < seq), "{pushed:?} {seq}");
            pushed.push((seq, payload));
        }
    }
    named(queue.sync());
    named(queue.maintain());
    named(queue.compact());
    let killed = disk.killed();
    named(queue.close());
    for disk in [disk, Arc::new(killed)] {
        assert_eq!(disk.read(FOREIGN).unwrap(), b"not yours");
        let queue = options(disk.clone()).open("queue").unwrap();
        for (seq, payload) in &pushed {
            let there = queue.get(*seq).unwrap().unwrap_or_else(|| panic!("{seq} is gone"));
            assert_eq!(&there[..], &payload[..], "{seq}");
        }
        if let Some(next) = named(queue.push("next")) {
            assert!(pushed.last().is_none_or(|(last, _)| *last < next), "{next} was given out");
        }
        use_up(&queue);
        named(queue.compact());
        named(queue.close());
    }
}

/// Looks at a queue in all ways, and takes and answers some of its messages.
fn use_up(queue: &Queue) {
    assert!(queue.len() < 1_000_000);
    let told = format!("{:?} {:?} {:?}", queue.stats(), queue.recovery(), queue.damage());
    assert!(!told.is_empty());
    named(queue.peek());
    for message in queue.iter().take(5000) {
        named(message);
    }
    for n in 0..300 {
        let Some(Some(job)) = named(queue.pop()) else { break };
        named(queue.is_acked(job.seq()));
        match n % 7 {
            0 => named(job.reject("craft")),
            1 => named(job.nack()),
            2 => named(job.nack_after(Duration::from_secs(1))),
            3 => named(job.release()),
            _ => named(job.ack()),
        };
    }
    for seq in [0, 1, 100, 1 << 61, u64::MAX] {
        named(queue.is_acked(seq.into()));
        named(queue.get(seq.into()));
    }
    if let Some(dead) = named(queue.dead_letters()) {
        for letter in dead.iter().take(1000) {
            named(letter);
        }
    }
    named(queue.redrive(3));
}

/// Fails if it takes as long as nothing takes.
pub(crate) fn within_time(what: &str, work: impl FnOnce() + Send + 'static) {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        work();
        tell.send(()).ok();
    });
    let waited = told.recv_timeout(DEADLINE);
    assert_ne!(waited, Err(RecvTimeoutError::Timeout), "{what}: not over");
    thread.join().unwrap_or_else(|_| panic!("{what}"));
}

#[test]
fn what_keepq_leaves_is_read_and_mended_as_it_is() {
    for (n, files) in LEFT.iter().enumerate() {
        let mut mended = files.clone();
        for (name, bytes) in &mut mended {
            if is_segment(name) {
                let mut segment = Segment::read(bytes.clone()).unwrap();
                segment.mend();
                *bytes = segment.bytes;
            }
        }
        assert!(*files == mended, "{n}");
        within_time("as it is", move || exercise(&mended));
    }
}

#[test]
fn any_numbers_do_no_harm() {
    let first = cases("KEEPQ_CRAFT_SEED", 0);
    for seed in first..first + cases("KEEPQ_CRAFT_CASES", 60) {
        within_time(&format!("seed {seed}"), move || exercise(&crafted(seed)));
    }
}

/// What keepq leaves, with some numbers changed.
fn crafted(seed: u64) -> Files {
    let mut dice = Dice(seed);
    let mut files = LEFT[dice.below(LEFT.len() as u64) as usize].clone();
    for _ in 0..=dice.below(5) {
        mutate(&mut files, &mut dice);
    }
    files
}
