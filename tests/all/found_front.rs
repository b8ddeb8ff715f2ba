//! Found faults: what is at the front, what is delayed, and when somebody looks.

use crate::found_hooks::find;
use crate::found_support::{PATIENCE, alone, call, ms, on, soon, watched};
use crate::support::watched::{Op, Watched};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Delivery, Durability, Message, Overflow};
use std::mem::forget;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

const HOUR: Duration = Duration::from_secs(3600);

fn at(hours: u32) -> Arc<ManualClock> {
    let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Arc::new(ManualClock::new(start + hours * HOUR))
}

/// An answer, and its name.
type Answers<const N: usize> = [(&'static str, fn(Delivery)); N];

/// A look was planned for a delayed message that lives long. A message that came to the front, and
/// expired sooner, planned none: it stayed until that look.
#[test]
fn a_message_that_expires_before_the_planned_look_is_let_go() {
    let queue = alone().background(true).open("queue").unwrap();
    queue.push(Message::new("first").ttl(HOUR)).unwrap();
    queue.pop().unwrap().unwrap().ack().unwrap();
    // The look a second after that finds nothing, and plans no other.
    thread::sleep(ms(1500));
    queue.push(Message::new("later").delay(HOUR).ttl(2 * HOUR)).unwrap();
    queue.push(Message::new("short").ttl(ms(100))).unwrap();
    assert!(soon(|| queue.stats().expired() == 1), "{:?}", queue.stats());
}

/// The lease of the first message ran out, so it was at the front; then its holder answered late or
/// asked for more time. No look at the message behind it was planned, which had expired.
#[test]
fn what_is_behind_a_message_that_is_taken_back_expires() {
    let answers: Answers<4> = [
        ("ack", |job| job.ack().unwrap()),
        ("reject", |job| job.reject("no").unwrap()),
        ("nack_after", |job| job.nack_after(HOUR).unwrap()),
        ("extend", |job| {
            job.extend(HOUR).unwrap();
            forget(job);
        }),
    ];
    let prepared = answers.map(|(name, answer)| {
        let options = alone().background(true).visibility_timeout(ms(20));
        let queue = options.backoff(Backoff::none()).open("queue").unwrap();
        queue.push("first").unwrap();
        let job = queue.pop().unwrap().unwrap();
        let seq = queue.push(Message::new("behind").ttl(ms(2000))).unwrap();
        assert!(soon(|| queue.len() == 2), "the lease of the first one runs out");
        (name, answer, queue, job, seq)
    });
    // Long enough for all looks that are planned: they find the first one at the front.
    thread::sleep(ms(3500));
    for (name, answer, queue, job, seq) in prepared {
        assert!(!queue.is_acked(seq).unwrap(), "it waits behind the first one");
        answer(job);
        assert!(queue.wait_acked(seq, PATIENCE).unwrap(), "{name}");
    }
}

/// Each time the background woke up, it copied and verified the whole message at the front, in any
/// queue that had messages of an earlier run.
#[test]
fn the_background_reads_a_front_that_stays_once() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let open = |is_running| {
        let options = on(storage.clone()).segment_bytes(1 << 20).background(is_running);
        options.durability(Durability::Interval(ms(1))).open("queue").unwrap()
    };
    let queue = open(false);
    queue.push(vec![7; 60_000]).unwrap();
    queue.close().unwrap();
    let queue = open(true);
    let rounds = || {
        let (syncs, loads) = (watch.count(Op::Sync), watch.count(Op::Load));
        for _ in 0..40 {
            let before = watch.count(Op::Sync);
            queue.push("more").unwrap();
            assert!(soon(|| watch.count(Op::Sync) > before));
        }
        assert!(watch.count(Op::Sync) >= syncs + 40);
        watch.count(Op::Load) - loads
    };
    rounds();
    let loads = rounds();
    assert!(loads < 40, "{loads} loads in 40 rounds of syncs, and nothing was taken");
}

/// A delay was cut to its length when the clock had been set back, but the cut was not stored: each
/// restart began the delay anew, so the message never came.
#[test]
fn a_delay_does_not_begin_anew_with_each_run() {
    let disk = Arc::new(MemoryStorage::new());
    let open = |clock: &Arc<ManualClock>| {
        on(disk.clone()).background(false).clock(clock.clone()).open("queue").unwrap()
    };
    let clock = at(0);
    let queue = open(&clock);
    queue.push("job").unwrap();
    clock.advance(100 * HOUR);
    queue.pop().unwrap().unwrap().nack_after(HOUR).unwrap();
    queue.close().unwrap();
    let clock = at(50);
    let came = (0..20).find(|_| {
        let queue = open(&clock);
        clock.advance(HOUR * 3 / 4);
        let is_there = queue.pop().unwrap().is_some();
        queue.close().unwrap();
        is_there
    });
    assert_eq!(came, Some(1), "the run of 45 minutes at whose end it came");
}

/// A message whose delay was over, and that was handed out and came back, was delayed again if the
/// clock was set back before the next run.
#[test]
fn a_delay_that_was_over_stays_over() {
    let disk = Arc::new(MemoryStorage::new());
    let open = |clock: &Arc<ManualClock>| {
        on(disk.clone()).background(false).clock(clock.clone()).open("queue").unwrap()
    };
    let clock = at(0);
    let queue = open(&clock);
    queue.push("first").unwrap();
    queue.push(Message::new("delayed by its push").delay(HOUR)).unwrap();
    queue.pop().unwrap().unwrap().nack_after(2 * HOUR).unwrap();
    clock.advance(3 * HOUR);
    let jobs = queue.pop_batch(9).unwrap();
    assert_eq!(jobs.len(), 2);
    for job in jobs {
        job.nack_after(Duration::ZERO).unwrap();
    }
    queue.close().unwrap();
    let clock = at(1);
    let queue = open(&clock);
    clock.advance(ms(2));
    assert_eq!((queue.len(), queue.delayed()), (2, 0));
}

/// Both words of the slot of a delayed message were damaged. Its record knows the time, but the
/// rebuilt slot says one attempt, so the message was taken for one that had been due before.
#[test]
fn a_delayed_message_with_a_damaged_slot_does_not_come_early() {
    for (damaged, len, from) in [("both words", 16, 0), ("the state", 8, 0), ("the delay", 8, 8)] {
        let (disk, clock) = (Arc::new(MemoryStorage::new()), at(0));
        let open =
            || on(disk.clone()).background(false).clock(clock.clone()).open("queue").unwrap();
        let queue = open();
        queue.push_batch([Message::new("now"), Message::new("later").delay(HOUR)]).unwrap();
        queue.close().unwrap();
        let (name, _) = find(&disk, b"later");
        let file = disk.open(&name).unwrap();
        let slot = file.size() - 4096 - 16 * 2;
        file.write_at(slot + from, &vec![0xA5; len]).unwrap();
        let queue = open();
        let payloads = || queue.pop_batch(9).unwrap().iter().map(|job| job.to_vec()).collect();
        let (early, after): (Vec<_>, Vec<_>) = (payloads(), {
            clock.advance(HOUR);
            payloads()
        });
        assert_eq!(
            (early, after.contains(&b"later".to_vec())),
            (vec![b"now".to_vec()], true),
            "{damaged}"
        );
    }
}

/// A batch of delayed messages goes into the schedule in steps, before it is published: no count
/// shows a part of it, and no `pop` takes one of it.
#[test]
fn no_part_of_a_delayed_batch_is_seen() {
    const COUNT: u64 = 300_000;
    let options = alone().segment_bytes(64 << 20).max_attempts(0);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..10_000).map(|_| "ready")).unwrap();
    let pushing = queue.clone();
    let pushing = call(move || {
        let jobs = (0..COUNT).map(|n| Message::new("x").delay(HOUR + ms(n * 7919 % 1000)));
        pushing.push_batch(jobs).unwrap();
    });
    // Each count is of one moment: none of the batch, or all of it.
    let mut counts = Vec::new();
    while !pushing.is_over() {
        counts.push((queue.len(), queue.delayed()));
        queue.pop().unwrap().unwrap().nack().unwrap();
    }
    pushing.result("push");
    let wrong = counts
        .iter()
        .find(|(ready, delayed)| *ready > 10_000 || ![0, 1, COUNT, COUNT + 1].contains(delayed));
    assert!(wrong.is_none(), "{wrong:?}");
    assert_eq!(queue.delayed() + queue.len(), COUNT + 10_000);
}

/// Where each second message was settled, and those between them were never handed out, counting
/// read the header of each settled one, thousands of reads under one lock.
#[test]
fn counting_reads_no_record_for_each_slot() {
    const COUNT: u64 = 4000;
    let (disk, clock) = (Arc::new(MemoryStorage::new()), at(0));
    let options = || on(disk.clone()).segment_bytes(1 << 20).background(false).clock(clock.clone());
    let queue = options().open("queue").unwrap();
    let message = |n| if n % 2 == 0 { Message::new("x").delay(ms(1)) } else { Message::new("x") };
    queue.push_batch((0..COUNT).map(message)).unwrap();
    clock.advance(ms(10));
    queue.ack_batch(queue.pop_batch(2000).unwrap()).unwrap();
    queue.close().unwrap();
    let (storage, watch) = watched(disk.clone());
    let queue = options().storage(storage).open("queue").unwrap();
    let before = watch.count(Op::Read);
    assert_eq!(queue.len(), COUNT / 2);
    let reads = watch.count(Op::Read) - before;
    assert!(reads < 40, "{reads} reads to count {COUNT} slots");
}

/// Without a background, what dies makes room by a move. No producer that waited for room, and no
/// consumer that waited, was woken for it.
#[test]
fn a_message_that_dies_wakes_those_who_can_move_it() {
    let answers: Answers<3> = [
        ("nack", |job| job.nack().unwrap()),
        ("drop", drop),
        ("reject", |job| job.reject("no").unwrap()),
    ];
    for (name, answer) in answers {
        let options = alone().max_messages(1).max_attempts(1).overflow(Overflow::Block);
        let queue = options.open("queue").unwrap();
        queue.push("dies").unwrap();
        let job = queue.pop().unwrap().unwrap();
        let pushing = queue.clone();
        let pushing = call(move || pushing.push("next").unwrap());
        pushing.asleep();
        answer(job);
        pushing.result(name);
    }
    let queue = alone().max_attempts(1).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push("dies").unwrap();
    let job = queue.pop().unwrap().unwrap();
    let (waiting, letters) = (queue.clone(), dead.clone());
    let waiting = call(move || waiting.pop_wait().is_ok());
    waiting.asleep();
    let letters = call(move || letters.pop_wait().unwrap().to_vec());
    letters.asleep();
    job.nack().unwrap();
    assert_eq!(letters.result("pop_wait of the dead letters"), b"dies");
    queue.close().unwrap();
    assert!(!waiting.result("pop_wait"));
}

/// With a background, four times as many files were open as the option says, where the page of the
/// design says twice.
#[cfg(target_os = "linux")]
#[test]
fn no_more_files_are_open_than_the_option_says() {
    const LIMIT: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let open = |is_running| {
        let options = keepq::Queue::options().durability(Durability::Os).segment_bytes(65_536);
        let options = options.open_segments(LIMIT as u64).ack_sync(None).background(is_running);
        options.open(directory.path()).unwrap()
    };
    let descriptors = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        let path =
            |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
        all.filter_map(path).filter(|path| path.starts_with(directory.path())).count()
    };
    let queue = open(false);
    for number in 0..240 {
        queue.push(vec![number; 30_000]).unwrap();
    }
    queue.close().unwrap();
    for (is_running, most) in [(false, LIMIT), (true, 2 * LIMIT)] {
        let queue = open(is_running);
        let mut open_files = 0;
        for _ in 0..120 {
            queue.pop().unwrap().unwrap().nack_after(HOUR).unwrap();
            // A list that is read while others open and close files may have too many.
            let lists = (0..5).map(|_| descriptors());
            open_files = open_files.max(lists.min().unwrap_or(0));
        }
        // The lock, the directory, the newest file, the one that is read, and one to be closed.
        assert!(open_files <= most + 5, "{open_files} files, background {is_running}");
        queue.close().unwrap();
    }
}

/// Delays end in steps: many that are over at once are all counted, and all come.
#[test]
fn many_delays_that_end_at_once_end_all() {
    const COUNT: u64 = 100_000;
    let clock = at(0);
    let queue = alone().segment_bytes(16 << 20).clock(clock.clone()).open("queue").unwrap();
    queue.push_batch((0..COUNT).map(|_| Message::new("x").delay(HOUR))).unwrap();
    clock.advance(2 * HOUR);
    assert_eq!((queue.len(), queue.delayed()), (COUNT, 0));
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(jobs.len() as u64, COUNT);
    queue.ack_batch(jobs).unwrap();
    assert!(queue.is_empty());
}

/// The dead letters counted delayed messages that were held back, but no others that were: `len`
/// told of fewer letters than there were.
#[test]
fn letters_that_are_held_back_make_no_other_one_disappear() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    dead.push_batch(["x"; 3]).unwrap();
    queue.push("dies").unwrap();
    let job = queue.pop().unwrap().unwrap();
    // The letter is written, and held back as long as its message is not settled durably.
    let (letters, seen) = (dead.clone(), Arc::new(AtomicU64::new(0)));
    let told = Arc::clone(&seen);
    storage.rule(move |call| {
        let is_first = call.op == Op::Sync
            && !call.name.starts_with("dead/")
            && told.load(Ordering::SeqCst) == 0;
        if is_first {
            letters.push_batch((0..2).map(|_| Message::new("later").delay(HOUR))).unwrap();
            told.store(letters.len(), Ordering::SeqCst);
        }
        Ok(())
    });
    job.reject("no").unwrap();
    queue.maintain().unwrap();
    storage.no_rule();
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert_eq!(dead.pop_batch(9).unwrap().len(), 4);
}

/// The delay of a message that was handed out before was damaged, and its record said that it was
/// not due: `pop` held it back, but `peek` showed it as the next one, and `iter` and `get` told no
/// time.
#[test]
fn what_pop_holds_back_for_its_record_is_not_shown_as_ready() {
    let (clock, disk) = (at(0), Arc::new(MemoryStorage::new()));
    let options = |clock: &Arc<ManualClock>| {
        alone().storage(disk.clone()).clock(clock.clone()).max_attempts(0)
    };
    let queue = options(&clock).open("queue").unwrap();
    queue.push(Message::new("late").delay(HOUR)).unwrap();
    clock.advance(HOUR);
    queue.pop().unwrap().unwrap().nack_after(HOUR).unwrap();
    queue.close().unwrap();
    let name = "0000000000000001.seg";
    let mut bytes = disk.read(name).unwrap();
    let second_word = bytes.len() - 4096 - 16 + 8;
    bytes[second_word + 6] ^= 1;
    disk.write(name, bytes);
    disk.remove("CHECKPOINT").unwrap();
    let clock = at(0);
    let queue = options(&clock).open("queue").unwrap();
    assert!(queue.peek().unwrap().is_none());
    let due = Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000) + HOUR);
    let not_before = || queue.iter().next().unwrap().unwrap().not_before();
    assert_eq!((not_before(), queue.get(1.into()).unwrap().unwrap().not_before()), (due, due));
    assert!(queue.pop().unwrap().is_none(), "the record says: not before an hour");
    assert_eq!((not_before(), queue.get(1.into()).unwrap().unwrap().not_before()), (due, due));
    clock.advance(HOUR);
    assert_eq!(not_before(), None);
    assert!(queue.peek().unwrap().is_some() && queue.pop().unwrap().is_some());
}

/// The state in the slot of a delayed message was damaged: `pop` rebuilds it, and finds the delay,
/// but `peek` showed the message as the next one, and `iter` and `get` as ready.
#[test]
fn a_delayed_message_whose_slot_is_rebuilt_is_not_shown_as_ready() {
    let (clock, disk) = (at(0), Arc::new(MemoryStorage::new()));
    let options = || alone().storage(disk.clone()).clock(clock.clone()).max_attempts(0);
    let queue = options().open("queue").unwrap();
    queue.push(Message::new("late").delay(HOUR)).unwrap();
    queue.close().unwrap();
    let name = "0000000000000001.seg";
    let mut bytes = disk.read(name).unwrap();
    let first_word = bytes.len() - 4096 - 16;
    bytes[first_word + 7] ^= 1;
    disk.write(name, bytes);
    let queue = options().open("queue").unwrap();
    let due = Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000) + HOUR);
    let not_before = || queue.iter().next().unwrap().unwrap().not_before();
    assert_eq!((not_before(), queue.get(1.into()).unwrap().unwrap().not_before()), (due, due));
    assert!(queue.peek().unwrap().is_none());
    assert!(queue.pop().unwrap().is_none());
    assert_eq!((not_before(), queue.get(1.into()).unwrap().unwrap().not_before()), (due, due));
    clock.advance(HOUR);
    assert_eq!(not_before(), None);
    assert!(queue.peek().unwrap().is_some() && queue.pop().unwrap().is_some());
}
