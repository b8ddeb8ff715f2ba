//! What a user sees of a healthy queue.

use crate::support::DEADLINE;
#[cfg(unix)]
use crate::support::OverAtEnd;
#[cfg(target_os = "linux")]
use crate::support::process::{descriptors, is_alone};
use keepq::{Delivery, Durability, Error, Message, Queue};
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

fn seqs(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| delivery.seq().into()).collect()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// What may cross threads is a part of the promise.
const _: () = {
    const fn crosses<T: Send + Sync + 'static>() {}
    const fn moves<T: Send + 'static>() {}
    crosses::<Queue>();
    crosses::<Delivery>();
    crosses::<Error>();
    crosses::<keepq::TypedQueue<std::cell::Cell<u8>>>();
    crosses::<keepq::TypedDelivery<u8>>();
    moves::<keepq::Receipt>();
};

#[test]
fn push_pop_ack_and_reopen() {
    let dir = directory();
    let path = dir.path().join("deep/er/orders");
    let before = SystemTime::now() - Duration::from_secs(1);
    let queue = Queue::open(&path).unwrap();
    assert!(queue.is_empty() && queue.last_seq().is_none() && queue.pop().unwrap().is_none());
    let first = queue.push(b"one").unwrap();
    let second = queue.push("two").unwrap();
    queue.push(String::from("three")).unwrap();
    assert_eq!((queue.len(), queue.last_seq().map(u64::from)), (3, Some(u64::from(second) + 1)));
    let job = queue.pop().unwrap().unwrap();
    assert_eq!((job.seq(), &job[..], job.attempts()), (first, &b"one"[..], 1));
    assert!(!job.is_redelivered() && job.pushed_at() > before);
    assert!(job.pushed_at() <= SystemTime::now());
    assert_eq!((queue.len(), queue.in_flight()), (2, 1));
    job.ack().unwrap();
    let unanswered = queue.pop().unwrap().unwrap();
    queue.close().unwrap();
    assert!(matches!(unanswered.ack(), Err(Error::Closed)));

    let queue = Queue::open(&path).unwrap();
    assert!(queue.recovery().was_closed() && queue.recovery().is_clean());
    assert_eq!((queue.len(), queue.in_flight()), (2, 0));
    let again = queue.pop().unwrap().unwrap();
    assert_eq!((again.seq(), again.attempts(), &again[..]), (second, 2, &b"two"[..]));
    assert!(again.is_redelivered());
    let third = queue.push(b"four").unwrap();
    assert_eq!(u64::from(third), u64::from(second) + 2, "no number is skipped after a close");
}

#[test]
fn what_is_given_back_comes_first_and_in_order() {
    let dir = directory();
    let queue = Queue::open(dir.path().join("q")).unwrap();
    queue.push_batch([b"a", b"b", b"c", b"d"]).unwrap();
    let mut taken = queue.pop_batch(3).unwrap();
    assert_eq!(seqs(&taken), [1, 2, 3]);
    taken.remove(2).nack().unwrap();
    drop(taken.remove(0));
    taken.remove(0).release().unwrap();
    let again = queue.pop_batch(10).unwrap();
    assert_eq!(seqs(&again), [1, 2, 3, 4]);
    let attempts: Vec<u32> = again.iter().map(Delivery::attempts).collect();
    assert_eq!(attempts, [2, 1, 2, 1], "release does not count");
    queue.ack_batch(again).unwrap();
    assert_eq!((queue.len(), queue.in_flight()), (0, 0));
    assert_eq!(queue.stats().lost(), 0);
}

#[test]
fn acks_in_any_order_are_kept() {
    let dir = directory();
    let path = dir.path().join("q");
    let queue = Queue::open(&path).unwrap();
    queue.push_batch((0..100u8).map(|n| vec![n])).unwrap();
    for delivery in queue.pop_batch(100).unwrap() {
        if delivery[0] % 3 != 0 {
            delivery.ack().unwrap();
        }
    }
    drop(queue);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.len(), 34);
    let rest: Vec<u8> = queue.pop_batch(usize::MAX).unwrap().iter().map(|d| d[0]).collect();
    assert_eq!(rest, (0..100).filter(|n| n % 3 == 0).collect::<Vec<u8>>());
}

#[test]
fn a_second_open_is_refused_until_the_first_is_closed() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let error = Queue::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Locked { path } if path.ends_with("LOCK")), "{error}");
    let clone = queue.clone();
    queue.close().unwrap();
    assert!(matches!(clone.push(b"x"), Err(Error::Closed)));
    assert!(matches!(clone.pop(), Err(Error::Closed)));
    assert!(matches!(clone.pop_wait(), Err(Error::Closed)));
    assert!(matches!(clone.maintain(), Err(Error::Closed)));
    let reopened = Queue::open(dir.path()).unwrap();
    clone.close().unwrap();
    reopened.push(b"the second close does not end another queue").unwrap();
}

#[test]
fn limits_are_checked_before_anything_is_written() {
    let dir = directory();
    let queue = Queue::options().max_message_bytes(100).max_batch_bytes(250);
    let queue = queue.open(dir.path().join("q")).unwrap();
    let refused = queue.push([0; 101].as_slice());
    assert!(matches!(refused, Err(Error::TooLarge { len: 101, max: 100 })));
    let refused = queue.push_batch([&[0; 100], &[0; 100], &[0; 100]]);
    assert!(matches!(refused, Err(Error::TooLarge { len: 300, max: 250 })));
    let refused = queue.push_batch([&[0u8; 1][..], &[0; 101]]);
    assert!(matches!(refused, Err(Error::TooLarge { len: 101, max: 100 })));
    assert!(queue.push_batch(Vec::<Message>::new()).unwrap().is_empty());
    assert_eq!(queue.last_seq(), None);
    assert_eq!(std::fs::read_dir(dir.path().join("q")).unwrap().count(), 1, "only LOCK");
    queue.push([0; 100].as_slice()).unwrap();
    queue.push(b"").unwrap();
    let popped = queue.pop_batch(9).unwrap();
    assert_eq!((popped[0].len(), popped[1].len()), (100, 0));
}

#[test]
fn wrong_options_are_named() {
    let dir = directory();
    let cases = [
        (Queue::options().segment_bytes(4096), "segment_bytes"),
        (Queue::options().segment_bytes(65_537), "segment_bytes"),
        (Queue::options().segment_bytes(1 << 40), "segment_bytes"),
        (Queue::options().max_message_bytes(0), "max_message_bytes"),
        (Queue::options().max_batch_bytes(1 << 40), "max_batch_bytes"),
        (Queue::options().durability(Durability::Interval(Duration::ZERO)), "durability"),
        (Queue::options().ack_sync(Duration::ZERO), "ack_sync"),
    ];
    for (options, name) in cases {
        let error = options.open(dir.path().join("q")).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidOption { option, .. } if *option == name),
            "{error}"
        );
        assert!(error.to_string().contains(name));
    }
    assert!(!dir.path().join("q").exists(), "nothing was made");
}

#[test]
fn messages_and_batches_larger_than_a_segment() {
    let dir = directory();
    let path = dir.path().join("q");
    let options = || Queue::options().segment_bytes(65_536).background(false);
    let queue = options().open(&path).unwrap();
    let sizes = [10, 300_000, 65_536, 20, 40_000, 40_000, 1_000_000, 5];
    for (n, size) in (0u8..).zip(sizes) {
        queue.push(vec![n; size]).unwrap();
    }
    let batch: Vec<Vec<u8>> = (0..10).map(|n| vec![100 + n; 30_000]).collect();
    queue.push_batch(&batch).unwrap();
    for reopen in [false, true] {
        let queue = if reopen {
            queue.clone().close().unwrap();
            options().open(&path).unwrap()
        } else {
            queue.clone()
        };
        let all = queue.pop_batch(100).unwrap();
        let lens: Vec<usize> = all.iter().map(|delivery| delivery.len()).collect();
        assert_eq!(lens[..8], sizes);
        assert_eq!(lens[8..], [30_000; 10]);
        assert!(all.iter().all(|delivery| delivery.iter().all(|&byte| byte == delivery[0])));
    }
}

#[test]
fn transient_messages_do_not_outlive_the_run() {
    let dir = directory();
    let path = dir.path().join("q");
    let queue = Queue::open(&path).unwrap();
    queue.push(Message::new(b"a").transient()).unwrap();
    queue.push(b"b").unwrap();
    queue.push(Message::new(b"c").transient()).unwrap();
    let first = queue.pop().unwrap().unwrap();
    assert_eq!(&first[..], b"a");
    first.nack().unwrap();
    assert_eq!(queue.len(), 3);
    drop(queue);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.len(), 1);
    let lasting = queue.pop().unwrap().unwrap();
    assert_eq!(&lasting[..], b"b");
    assert!(queue.pop().unwrap().is_none());
    assert!(queue.recovery().is_clean() && queue.damage().is_empty());
}

#[test]
fn waiting_ends_with_a_message_the_deadline_or_the_close() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let start = Instant::now();
    assert!(queue.pop_timeout(Duration::from_millis(20)).unwrap().is_none());
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(queue.pop_timeout(Duration::ZERO).unwrap().is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.pop_wait().map(|delivery| delivery.to_vec()));
        queue.push(b"wake up").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), b"wake up");
        let returned = queue.pop_timeout(Duration::MAX).unwrap().unwrap();
        let waiting = scope.spawn(|| queue.pop_wait().map(Delivery::ack));
        returned.nack().unwrap();
        waiting.join().unwrap().unwrap().unwrap();
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| queue.pop_wait())).collect();
        queue.clone().close().unwrap();
        for waiting in waiting {
            assert!(matches!(waiting.join().unwrap(), Err(Error::Closed)));
        }
    });
}

#[test]
fn receipts_say_when() {
    let dir = directory();
    let queue = Queue::options().durability(Durability::Os).open(dir.path()).unwrap();
    let receipt = queue.submit(b"a").unwrap();
    assert!(!receipt.is_durable());
    queue.sync().unwrap();
    assert!(receipt.is_durable());
    let seq = receipt.seq();
    assert_eq!(receipt.wait().unwrap(), seq);
    let late = queue.submit(b"b").unwrap();
    let open = queue.submit(b"c").unwrap();
    assert_eq!(u64::from(late.wait().unwrap()), 2);
    queue.close().unwrap();
    assert_eq!(u64::from(open.wait().unwrap()), 3, "close made it durable");
}

#[test]
fn space_comes_back_when_everything_is_acked() {
    let dir = directory();
    let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let queue = options.background(false).open(dir.path()).unwrap();
    let on_disk = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let segments = files.filter(|f| f.path().extension().is_some_and(|e| e == "seg"));
        segments.count()
    };
    for round in 0..20u8 {
        queue.push_batch((0..200).map(|_| vec![round; 1000])).unwrap();
        queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
        queue.maintain().unwrap();
        assert!(on_disk() <= 2, "{} segments in round {round}", on_disk());
    }
    assert_eq!(queue.len(), 0);
    queue.push(b"still works").unwrap();
    assert_eq!(&queue.pop().unwrap().unwrap()[..], b"still works");
}

/// A segment in which nothing is owed becomes the next one: the same file under a new name.
#[cfg(unix)]
#[test]
fn segments_are_recycled() {
    use std::os::unix::fs::MetadataExt;
    let dir = directory();
    let queue = Queue::options().segment_bytes(65_536).background(false).open(dir.path()).unwrap();
    let inodes = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap());
        let segments = files.filter(|f| f.path().extension().is_some_and(|e| e == "seg"));
        segments.map(|f| f.metadata().unwrap().ino()).collect::<std::collections::BTreeSet<_>>()
    };
    queue.push_batch((0..3).map(|_| vec![1; 15_000])).unwrap();
    let first = inodes();
    queue.push_batch((0..3).map(|_| vec![2; 3_000])).unwrap();
    queue.push_batch((0..1).map(|_| vec![3; 15_000])).unwrap();
    queue.ack_batch(queue.pop_batch(9).unwrap()).unwrap();
    queue.maintain().unwrap();
    assert!(first.is_subset(&inodes()), "recycled");
    // Smaller messages than in its first life: none of its old bytes passes for a slot.
    for round in 0..5u8 {
        queue.push_batch((0..700).map(|_| vec![round; 10])).unwrap();
        let jobs = queue.pop_batch(1000).unwrap();
        assert!(jobs.len() == 700 && jobs.iter().all(|job| job[..] == [round; 10]));
        queue.ack_batch(jobs).unwrap();
        queue.maintain().unwrap();
    }
    assert!(queue.damage().is_empty() && queue.stats().last_background_error().is_none());
    queue.close().unwrap();
    assert!(Queue::open(dir.path()).unwrap().recovery().is_clean());
}

#[test]
fn interval_syncs_in_the_background() {
    let dir = directory();
    let interval = Durability::Interval(Duration::from_millis(5));
    let queue = Queue::options().durability(interval).open(dir.path()).unwrap();
    let receipt = queue.submit(b"soon").unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !receipt.is_durable() {
        assert!(Instant::now() < deadline, "never synced");
        std::thread::yield_now();
    }
    // A message of its own may ask for it in a queue that never syncs.
    let dir = directory();
    let queue = Queue::options().durability(Durability::Os).open(dir.path()).unwrap();
    let receipt = queue.submit(Message::new(b"soon").durability(interval)).unwrap();
    while !receipt.is_durable() {
        assert!(Instant::now() < deadline, "never synced");
        std::thread::yield_now();
    }
}

#[test]
fn two_queues_in_one_process_differ() {
    let dir = directory();
    let one = Queue::options().max_message_bytes(1).open(dir.path().join("1")).unwrap();
    let two = Queue::options().max_message_bytes(2).open(dir.path().join("2")).unwrap();
    assert!(one.push(b"xx").is_err());
    two.push(b"xx").unwrap();
    one.push(b"x").unwrap();
    let foreign = two.pop().unwrap().unwrap();
    one.ack_batch([foreign, one.pop().unwrap().unwrap()]).unwrap();
    assert_eq!((one.in_flight(), two.in_flight()), (0, 0));
    assert!(two.pop().unwrap().is_none(), "its own queue settled it");
}

/// As many runs that leave a message behind as there are descriptors, and more: each has a
/// segment of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_long_backlog_needs_few_descriptors() {
    if !is_alone("api::a_long_backlog_needs_few_descriptors") {
        return;
    }
    let dir = directory();
    let options = || Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let queue = options().background(false).open(dir.path()).unwrap();
    for n in 0..400u32 {
        queue.push(n.to_le_bytes().repeat(12_000)).unwrap();
    }
    drop(queue);
    let queue = options().open(dir.path()).unwrap();
    let descriptors = || descriptors(dir.path());
    assert_eq!(queue.len(), 400);
    assert!(descriptors() < 10, "{}", descriptors());
    queue.sync().unwrap();
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
        assert!(descriptors() < 450);
    }
    queue.maintain().unwrap();
    assert!(descriptors() < 10, "{}", descriptors());
}

#[cfg(unix)]
#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory();
    let path = dir.path().join("q");
    Queue::open(&path).unwrap().push(b"secret").unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in std::fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

/// A process that another thread is starting has every descriptor of this one until it runs its
/// program, that of the lock, too; and the lock outlived the close.
#[cfg(unix)]
#[test]
fn a_closed_queue_is_free_while_processes_are_started() {
    let dir = directory();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert!(std::process::Command::new("true").status().unwrap().success());
            }
        });
        let _over = OverAtEnd(&is_over);
        (0..1000).try_for_each(|_| Queue::open(dir.path())?.close()).unwrap();
    });
}
