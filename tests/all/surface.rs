//! The rest of the surface: conversions, headers, `is_acked`, `purge`, `stats`, creating.

use crate::support::{DEADLINE, OverAtEnd};
use keepq::fault::ManualClock;
use keepq::{Durability, Error, Message, Queue, Seq};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn names(path: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn everything_that_is_bytes_is_a_message() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let (vec, string, slice) = (vec![1u8], String::from("2"), &b"3"[..]);
    let message = Message::new(b"4").header("name", "value");
    queue.push(&vec).unwrap();
    queue.push(&string).unwrap();
    queue.push(slice).unwrap();
    queue.push(&message).unwrap();
    queue.push(vec).unwrap();
    queue.push(string).unwrap();
    queue.push(message).unwrap();
    queue.push(&[7u8, 8]).unwrap();
    queue.push(Cow::Borrowed(slice)).unwrap();
    queue.push(slice.to_vec().into_boxed_slice()).unwrap();
    queue.push("text").unwrap();
    queue.push_batch([b"a", b"b"]).unwrap();
    queue.push_batch(vec!["c".to_string(), "d".to_string()]).unwrap();
    let (texts, slices, arrays) = (vec!["t"], vec![slice], vec![b"u"]);
    queue.push_batch(&texts).unwrap();
    queue.push_batch(&slices).unwrap();
    queue.push_batch(&arrays).unwrap();
    queue.push(Cow::Borrowed("v")).unwrap();
    queue.push_batch([Message::new("e"), Message::new(vec![9u8])]).unwrap();
    let all: Vec<Vec<u8>> =
        queue.pop_batch(99).unwrap().iter().map(|delivery| delivery.to_vec()).collect();
    let expected: [&[u8]; 21] = [
        &[1],
        b"2",
        b"3",
        b"4",
        &[1],
        b"2",
        b"4",
        &[7, 8],
        b"3",
        b"3",
        b"text",
        b"a",
        b"b",
        b"c",
        b"d",
        b"t",
        b"3",
        b"u",
        b"v",
        b"e",
        &[9],
    ];
    assert_eq!(all, expected);
}

#[test]
fn headers_travel_with_the_message() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let message = Message::new("pay 42").header("kind", b"sale").header("\u{e9}t\u{e9}", [0, 255]);
    queue.push(message.header("empty", "").header("kind", b"refund")).unwrap();
    queue.push_batch([Message::new(""), Message::new("").header("", "no name")]).unwrap();
    queue.push(Message::new("x").header("only", "t").transient()).unwrap();
    for reopened in [false, true] {
        let queue = if reopened {
            queue.clone().close().unwrap();
            Queue::open(dir.path()).unwrap()
        } else {
            queue.clone()
        };
        let all = queue.pop_batch(9).unwrap();
        assert_eq!(all.len(), if reopened { 3 } else { 4 });
        assert_eq!(&all[0][..], b"pay 42");
        let headers: Vec<_> = all[0].headers().collect();
        let expected: [(&str, &[u8]); 3] =
            [("kind", b"refund"), ("\u{e9}t\u{e9}", &[0, 255]), ("empty", b"")];
        assert_eq!(headers, expected);
        assert_eq!(all[0].header("kind"), Some(&b"refund"[..]));
        assert_eq!((all[0].header("empty"), all[0].header("Kind")), (Some(&b""[..]), None));
        assert_eq!((all[1].headers().count(), all[1].header("kind")), (0, None));
        assert_eq!((&all[2][..], all[2].header("")), (&b""[..], Some(&b"no name"[..])));
    }
}

#[test]
fn headers_have_limits() {
    let dir = directory();
    let queue = Queue::options().max_message_bytes(1 << 20).open(dir.path()).unwrap();
    let name = "n".repeat(255);
    // One header may have 64,000 bytes less 4 for itself, its name included.
    let largest = vec![7; 64_000 - 4 - 255];
    queue.push(Message::new("x").header(&name, &largest)).unwrap();
    let job = queue.pop().unwrap().unwrap();
    assert_eq!((&job[..], job.header(&name)), (&b"x"[..], Some(&largest[..])));
    let refused = queue.push(Message::new("x").header(name.clone() + "n", ""));
    assert!(matches!(refused, Err(Error::TooLarge { len: 256, max: 255 })), "{refused:?}");
    let refused = queue.push(Message::new("x").header(&name, &largest).header("", ""));
    assert!(matches!(refused, Err(Error::TooLarge { len: 64_004, max: 64_000 })), "{refused:?}");
    drop(job);
    queue.close().unwrap();
    // Headers count as bytes of the message, and of the batch.
    let options = Queue::options().max_message_bytes(10).max_batch_bytes(12);
    let queue = options.open(dir.path()).unwrap();
    queue.push(Message::new("12345").header("ab", "cde")).unwrap();
    let refused = queue.push(Message::new("12345").header("ab", "cdef"));
    assert!(matches!(refused, Err(Error::TooLarge { len: 11, max: 10 })), "{refused:?}");
    let one = Message::new("12345").header("a", "b");
    let refused = queue.push_batch([&one, &one]);
    assert!(matches!(refused, Err(Error::TooLarge { len: 14, max: 12 })), "{refused:?}");
    assert_eq!(queue.len(), 2);
}

#[test]
fn is_acked_tells_settled_from_owed_from_unknown() {
    let dir = directory();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    let queue = options().open(dir.path()).unwrap();
    let unknown = |queue: &Queue, seq: u64| {
        let told = queue.is_acked(Seq::from(seq));
        assert!(matches!(told, Err(Error::UnknownSeq { seq: named }) if named == seq.into()));
    };
    unknown(&queue, 1);
    let seqs = queue.push_batch((0..5).map(|n| vec![n; 30_000])).unwrap();
    unknown(&queue, 0);
    unknown(&queue, 6);
    unknown(&queue, u64::MAX);
    assert!(seqs.iter().all(|&seq| !queue.is_acked(seq).unwrap()));
    let mut jobs = queue.pop_batch(5).unwrap();
    jobs.remove(4).nack().unwrap();
    let kept = jobs.remove(0);
    assert!(!queue.is_acked(kept.seq()).unwrap());
    queue.ack_batch(jobs).unwrap();
    let all = |queue: &Queue| seqs.iter().map(|&s| queue.is_acked(s).unwrap()).collect::<Vec<_>>();
    assert_eq!(all(&queue), [false, true, true, true, false]);
    let transient = queue.push(Message::new("t").transient()).unwrap();
    drop(kept);
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(all(&queue), [false, true, true, true, false]);
    assert!(queue.is_acked(transient).unwrap(), "it is never handed out again");
    // Also when its segment is long gone, in this run and in the next.
    queue.ack_batch(queue.pop_batch(9).unwrap()).unwrap();
    queue.push(b"a newer segment").unwrap();
    queue.maintain().unwrap();
    assert!(!names(dir.path()).contains(&"0000000000000001.seg".to_string()));
    assert_eq!(all(&queue), [true; 5]);
    let clone = queue.clone();
    queue.close().unwrap();
    assert!(matches!(clone.is_acked(seqs[0]), Err(Error::Closed)));
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(all(&queue), [true; 5]);
    unknown(&queue, 8);
    // Without CHECKPOINT nobody knows what became of them; nobody guesses.
    queue.close().unwrap();
    // On Windows a file that is open somewhere keeps its name until it is not.
    drop(clone);
    std::fs::remove_file(dir.path().join("CHECKPOINT")).unwrap();
    let queue = options().open(dir.path()).unwrap();
    for seq in seqs {
        unknown(&queue, seq.into());
    }
}

/// A message that was lost to damage is not settled: nobody worked on it.
#[test]
fn is_acked_does_not_know_what_was_lost() {
    let dir = directory();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    let queue = options().open(dir.path()).unwrap();
    let seqs = queue.push_batch([&[1u8; 100], &[2; 100], &[3; 100]]).unwrap();
    queue.close().unwrap();
    let segment = dir.path().join("0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(100).position(|window| window == [2; 100]).unwrap();
    bytes[at] = 9;
    std::fs::write(&segment, bytes).unwrap();
    let queue = options().open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.wait_acked(seqs[1], DEADLINE));
        queue.ack_batch(queue.pop_batch(9).unwrap()).unwrap();
        let told = waiting.join().unwrap();
        assert!(matches!(told, Err(Error::UnknownSeq { seq }) if seq == seqs[1]), "{told:?}");
    });
    queue.push(b"a newer segment").unwrap();
    for _ in 0..2 {
        queue.maintain().unwrap();
        assert!(queue.is_acked(seqs[0]).unwrap() && queue.is_acked(seqs[2]).unwrap());
        assert!(matches!(queue.is_acked(seqs[1]), Err(Error::UnknownSeq { .. })));
    }
    assert!(!segment.exists());
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert!(queue.is_acked(seqs[0]).unwrap());
    assert!(matches!(queue.is_acked(seqs[1]), Err(Error::UnknownSeq { .. })));
}

#[test]
fn wait_acked_ends_with_the_ack_the_deadline_or_the_close() {
    let dir = directory();
    let queue = Queue::options().durability(Durability::Os).open(dir.path()).unwrap();
    let seqs = queue.push_batch((0..20).map(|n| vec![n])).unwrap();
    let start = Instant::now();
    assert!(!queue.wait_acked(seqs[0], Duration::from_millis(20)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(!queue.wait_acked(seqs[0], Duration::ZERO).unwrap());
    std::thread::scope(|scope| {
        let queue = &queue;
        let wait = |seq| scope.spawn(move || queue.wait_acked(seq, Duration::MAX));
        let waiting: Vec<_> = seqs[..18].iter().chain(&seqs[..18]).map(|&seq| wait(seq)).collect();
        for job in queue.pop_batch(10).unwrap() {
            job.ack().unwrap();
        }
        let taken = queue.pop().unwrap().unwrap();
        assert_eq!(queue.purge().unwrap(), 9);
        assert!(!queue.is_acked(taken.seq()).unwrap(), "what is in flight is not purged");
        queue.ack_batch([taken]).unwrap();
        assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap().unwrap()));
        let last = queue.push(b"last").unwrap();
        let waiting = [wait(last), wait(last)];
        queue.clone().close().unwrap();
        for waiting in waiting {
            assert!(matches!(waiting.join().unwrap(), Err(Error::Closed)));
        }
    });
}

#[test]
fn purge_takes_what_waits_and_nothing_else() {
    let dir = directory();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.purge().unwrap(), 0);
    // Over several segments, some of them of an earlier run.
    queue.push_batch((0..1000u32).map(|n| n.to_le_bytes().repeat(30))).unwrap();
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch((1000..2000u32).map(|n| n.to_le_bytes().repeat(30))).unwrap();
    let mut jobs = queue.pop_batch(500).unwrap();
    jobs.drain(..100).for_each(drop);
    let undecodable = queue.typed::<String>();
    queue.push(b"\xFF").unwrap();
    jobs.drain(..10).for_each(|job| job.ack().unwrap());
    assert!(undecodable.pop().is_err());
    assert_eq!((queue.len(), queue.in_flight(), queue.delayed()), (1600, 390, 1));
    assert_eq!(queue.purge().unwrap(), 1601);
    assert_eq!((queue.len(), queue.in_flight(), queue.delayed()), (0, 390, 0));
    assert!(queue.pop().unwrap().is_none());
    assert_eq!(queue.stats().purged(), 1601);
    let next = queue.push(b"after").unwrap();
    jobs.truncate(1);
    let kept = jobs[0].seq();
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    let rest = queue.pop_batch(9999).unwrap();
    // Those that were in flight come back, and what was pushed after the purge.
    assert_eq!(rest.len(), 391);
    assert_eq!((rest[0].seq(), rest[390].seq()), (kept, next));
    drop(rest);
    assert_eq!(queue.purge().unwrap(), 391);
    queue.maintain().unwrap();
    let segments = names(dir.path()).iter().filter(|name| name.contains("seg")).count();
    assert!(segments <= 2, "{:?}", names(dir.path()));
    let clone = queue.clone();
    queue.close().unwrap();
    assert!(matches!(clone.purge(), Err(Error::Closed)));
}

const MESSAGES: u64 = 60_000;

/// Pushes, pops and acks go on while another thread purges; what was pushed is settled once.
#[test]
fn purge_races_with_everybody() {
    let dir = directory();
    let options = Queue::options().segment_bytes(262_144).durability(Durability::Os);
    let queue = options.open(dir.path()).unwrap();
    let (mut purged, mut acked) = (0, 0);
    let all_pushed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            (0..MESSAGES).for_each(|n| assert!(queue.push(&n.to_le_bytes()).is_ok()));
        });
        let consumer = scope.spawn(|| {
            let mut acked = 0u64;
            loop {
                let were_all_pushed = all_pushed.load(Ordering::SeqCst);
                match queue.pop_timeout(Duration::from_millis(20)).unwrap() {
                    Some(job) => job.ack().unwrap(),
                    None if were_all_pushed => return acked,
                    None => continue,
                }
                acked += 1;
            }
        });
        let end = OverAtEnd(&all_pushed);
        while !producer.is_finished() {
            purged += queue.purge().unwrap();
        }
        drop(end);
        acked = consumer.join().unwrap();
    });
    purged += queue.purge().unwrap();
    assert_eq!(purged + acked, MESSAGES);
    assert_eq!((queue.len(), queue.in_flight()), (0, 0));
    let stats = queue.stats();
    assert_eq!((stats.pushed(), stats.purged(), stats.acked()), (MESSAGES, purged, acked));
}

/// The caller's iterator may panic after it has given some deliveries away: they go back.
#[test]
fn a_panic_in_the_callers_iterator_strands_no_delivery() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    let jobs = queue.pop_batch(3).unwrap();
    let iterator = jobs.into_iter().inspect(|job| assert!(&job[..] != b"c", "user code"));
    let acked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.ack_batch(iterator)));
    assert!(acked.is_err());
    assert_eq!((queue.in_flight(), queue.len()), (0, 3));
}

#[test]
fn stats_count_what_was_done() {
    let dir = directory();
    let queue = Queue::options().segment_bytes(65_536).open(dir.path()).unwrap();
    queue.push_batch([b"a", b"b", b"c", b"d", b"e", b"f"]).unwrap();
    queue.pop().unwrap().unwrap().ack().unwrap();
    queue.pop().unwrap().unwrap().nack().unwrap();
    drop(queue.pop().unwrap());
    queue.pop().unwrap().unwrap().release().unwrap();
    let held = queue.pop().unwrap().unwrap();
    queue.ack_batch(queue.pop_batch(2).unwrap()).unwrap();
    let stats = queue.stats();
    assert_eq!((stats.pushed(), stats.popped(), stats.redelivered()), (6, 7, 3));
    assert_eq!((stats.acked(), stats.nacked(), stats.released()), (3, 2, 1));
    assert_eq!((stats.ready(), stats.in_flight(), stats.delayed(), stats.lost()), (2, 1, 0, 0));
    assert_eq!((stats.segments(), stats.segment_bytes()), (1, 65_536));
    assert!(stats.last_background_error().is_none());
    drop(held);
    drop(queue);
    let queue = Queue::open(dir.path()).unwrap();
    let stats = queue.stats();
    assert_eq!((stats.ready(), stats.pushed(), stats.popped()), (3, 0, 0), "since open");
    drop(queue.pop().unwrap());
    assert_eq!(queue.stats().redelivered(), 1, "counted over runs");
}

#[test]
fn create_and_create_new() {
    let dir = directory();
    let path = dir.path().join("a/b");
    let kind = |result: keepq::Result<Queue>| match result.unwrap_err() {
        Error::Io { source, path, .. } => (source.kind(), path),
        other => panic!("{other}"),
    };
    let missing = kind(Queue::options().create(false).open(&path));
    assert_eq!(missing, (ErrorKind::NotFound, path.clone()));
    assert!(!dir.path().join("a").exists(), "nothing was made");
    // An empty directory is no queue.
    std::fs::create_dir_all(&path).unwrap();
    assert_eq!(kind(Queue::options().create(false).open(&path)).0, ErrorKind::NotFound);
    assert!(names(&path).is_empty(), "nothing was made");
    Queue::options().create_new(true).open(&path).unwrap().close().unwrap();
    // A queue that was never pushed to is one all the same.
    assert_eq!(kind(Queue::options().create_new(true).open(&path)).0, ErrorKind::AlreadyExists);
    assert_eq!(
        kind(Queue::options().create_new(true).create(false).open(&path)).0,
        ErrorKind::AlreadyExists
    );
    let queue = Queue::options().create(false).open(&path).unwrap();
    assert_eq!(kind(Queue::options().create_new(true).open(&path)).0, ErrorKind::AlreadyExists);
    queue.push(b"x").unwrap();
    queue.close().unwrap();
    std::fs::remove_file(path.join("LOCK")).unwrap();
    assert_eq!(kind(Queue::options().create_new(true).open(&path)).0, ErrorKind::AlreadyExists);
    assert_eq!(Queue::options().create(false).open(&path).unwrap().len(), 1);
    Queue::options().create(false).create_new(true).open(dir.path().join("new")).unwrap();
    // A file in its place.
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_eq!(kind(Queue::options().create(false).open(&file)).0, ErrorKind::NotADirectory);
}

#[test]
fn a_message_with_an_impossible_interval_is_refused() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let refused = queue.push(Message::new("x").durability(Durability::Interval(Duration::ZERO)));
    let named = matches!(&refused, Err(Error::InvalidOption { option, .. })
        if *option == "Message::durability");
    assert!(named, "{refused:?}");
    assert!(queue.is_empty());
}

/// A purge that only meets what is damaged settles it all the same, and says so to who waits for
/// it.
#[test]
fn purge_wakes_who_waits_for_what_it_finds_lost() {
    let dir = directory();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    let queue = options().open(dir.path()).unwrap();
    let seq = queue.push([1u8; 100].as_slice()).unwrap();
    queue.close().unwrap();
    let segment = dir.path().join("0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 8] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let queue = options().open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.wait_acked(seq, DEADLINE));
        // Long enough to be parked, mostly; it must not matter.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(queue.purge().unwrap(), 0);
        assert!(matches!(waiting.join().unwrap(), Err(Error::UnknownSeq { .. })));
    });
    assert_eq!((queue.len(), queue.stats().lost()), (0, 1));
}

#[test]
fn what_is_due_counts_as_ready_before_anybody_pops() {
    let dir = directory();
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH));
    let queue = Queue::options().clock(clock.clone()).open(dir.path()).unwrap();
    queue.push(b"no number").unwrap();
    assert!(matches!(queue.typed::<u64>().pop(), Err(Error::Decode { .. })));
    assert_eq!((queue.len(), queue.delayed()), (0, 1));
    clock.advance(Duration::from_millis(999));
    assert_eq!((queue.len(), queue.delayed()), (0, 1));
    clock.advance(Duration::from_millis(1));
    assert_eq!((queue.len(), queue.delayed(), queue.stats().ready()), (1, 0, 1));
    let held = queue.pop().unwrap().unwrap();
    let other = queue.clone();
    queue.close().unwrap();
    assert_eq!((other.len(), other.in_flight(), other.delayed()), (0, 0, 0));
    assert!(matches!(held.ack(), Err(Error::Closed)));
}
