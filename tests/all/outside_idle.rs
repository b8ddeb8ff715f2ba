//! Queues that nobody uses for a while: what they write, what they keep, and the burst after it.

use crate::found_support::soon;
use crate::support::board::{Board, DAY, HOUR, MINUTE, SECOND, bytes, year};
use crate::support::watched::{Op, Watched};
use crate::support::{Dice, OverAtEnd};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Durability, Message, Options, Overflow, Queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// A disk on which files that are made, and names that are given up, are counted.
struct Counted {
    storage: Arc<Watched>,
    made: Arc<AtomicU64>,
    removed: Arc<AtomicU64>,
}

impl Counted {
    fn new() -> Self {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let (made, removed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counts = [(Op::Create, Arc::clone(&made)), (Op::Remove, Arc::clone(&removed))];
        storage.rule(move |call| {
            for (op, count) in &counts {
                count.fetch_add(u64::from(call.op == *op), Ordering::SeqCst);
            }
            Ok(())
        });
        Self { storage, made, removed }
    }

    fn options(&self) -> Options {
        Queue::options().storage(self.storage.clone()).durability(Durability::Os)
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }
}

/// A queue with messages waiting, which nobody uses, gave up the segment that was ready for the
/// next push, and made it again, every ten seconds: 64 MiB each time, for ever.
#[test]
fn an_idle_queue_with_messages_makes_no_files() {
    let disk = Counted::new();
    let options = disk.options().shrink_after(Duration::from_millis(20));
    let queue = options.open("q").unwrap();
    for _ in 0..200 {
        queue.push(vec![7; 100_000]).unwrap();
    }
    // The ready one goes, once.
    assert!(soon(|| disk.removed.load(Ordering::SeqCst) > 0));
    let before = disk.made();
    // As long as many times the idle time.
    thread::sleep(Duration::from_millis(600));
    let made = disk.made() - before;
    assert!(made <= 2, "{made} files while nobody used it");
    assert_eq!(queue.stats().last_background_error(), None);
}

/// The same by `maintain`, where there is no background.
#[test]
fn maintain_makes_no_file_that_the_next_one_removes() {
    let disk = Counted::new();
    let clock = Arc::new(ManualClock::new(year(2026)));
    let queue = disk.options().background(false).clock(clock.clone()).open("q").unwrap();
    for _ in 0..8 {
        queue.push(vec![7; 100_000]).unwrap();
    }
    queue.maintain().unwrap();
    let before = disk.made();
    for _ in 0..10 {
        clock.advance(MINUTE);
        queue.maintain().unwrap();
    }
    let made = disk.made() - before;
    assert!(made <= 1, "{made} files");
}

/// Where `max_bytes` leaves no room for a small segment beside the others, an idle queue keeps what
/// it has: its upkeep said that the disk was full.
#[test]
fn shrinking_under_max_bytes_is_no_error() {
    for len in [20_000, 60_000, 150_000] {
        for delayed in (0..60).step_by(3) {
            let board = Board::at(year(2026));
            let options = board.options().segment_bytes(4 << 20).max_bytes(4 << 20);
            let queue = options.open("q").unwrap();
            for _ in 0..delayed {
                if queue.push(Message::new(vec![7; len]).delay(DAY)).is_err() {
                    break;
                }
            }
            while queue.push(vec![8; len]).is_ok() {}
            while let Some(job) = queue.pop().unwrap() {
                job.ack().unwrap();
            }
            let context = format!("{len} bytes each, {delayed} delayed");
            for _ in 0..3 {
                board.clock.advance(MINUTE);
                queue.maintain().unwrap_or_else(|error| panic!("{context}: {error:?}"));
            }
            let (real, told) = (bytes(&board.storage), queue.stats().disk_bytes());
            assert!(real.abs_diff(told) <= 16_384, "{context}: {real} bytes, {told} told");
        }
    }
}

const BURSTS: u64 = 25;

/// Bursts of messages at random times.
fn produce(queue: &Queue, seed: u64) -> u64 {
    let (mut dice, mut pushed) = (Dice(seed), 0);
    for _ in 0..BURSTS {
        for _ in 0..dice.below(60) {
            queue.push(vec![1; dice.below(60_000) as usize]).unwrap();
            pushed += 1;
        }
        thread::sleep(Duration::from_millis(dice.below(20)));
    }
    pushed
}

/// A queue that shrinks after each burst loses nothing to the next one, and counts its bytes right.
#[test]
fn bursts_and_shrinking() {
    for max in [None, Some(8 << 20), Some(2 << 20)] {
        let storage = Arc::new(MemoryStorage::new());
        let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
        let options = options.shrink_after(Duration::from_millis(1)).segment_bytes(4 << 20);
        let queue = options.max_bytes(max).overflow(Overflow::Block).open("q").unwrap();
        let (popped, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let pushed: u64 = thread::scope(|scope| {
            let producers = [1, 2].map(|seed| {
                scope.spawn({
                    let queue = &queue;
                    move || produce(queue, seed)
                })
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        match queue.pop_timeout(Duration::from_millis(20)).unwrap() {
                            Some(job) => {
                                job.ack().unwrap();
                                popped.fetch_add(1, Ordering::SeqCst);
                            }
                            None if is_over.load(Ordering::SeqCst) => break,
                            None => {}
                        }
                    }
                });
            }
            let _over = OverAtEnd(&is_over);
            producers.map(|producer| producer.join().unwrap()).iter().sum()
        });
        assert_eq!(popped.load(Ordering::SeqCst), pushed, "{max:?}");
        let real = || bytes(&*storage);
        assert!(soon(|| real() < 2 << 20), "{max:?}: {}", real());
        let told = || queue.stats().disk_bytes();
        assert!(soon(|| real().abs_diff(told()) <= 16_384), "{max:?}: {} {}", real(), told());
        let stats = queue.stats();
        assert_eq!((queue.len(), stats.last_background_error()), (0, None), "{max:?}");
        // The floor may be one behind.
        assert!((pushed..=pushed + 1).contains(&stats.floor().into()), "{max:?}: {stats:?}");
        queue.close().unwrap();
    }
}

/// A look came while the queue was not idle for long enough, and the next one a whole idle time
/// later: the queue shrank after nearly twice the time that the option says.
#[test]
fn a_queue_shrinks_once_it_was_idle_for_long_enough() {
    const LEFT: Duration = Duration::from_millis(300);
    let board = Board::at(year(2026));
    let options = board.options().background(true).segment_bytes(4 << 20).shrink_after(HOUR + LEFT);
    let queue = options.open("q").unwrap();
    for _ in 0..90 {
        queue.push(vec![7; 100_000]).unwrap();
    }
    queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
    queue.maintain().unwrap();
    board.clock.advance(HOUR);
    queue.maintain().unwrap();
    // Other work that was asked for has a look, too. It ends before the queue is idle.
    thread::sleep(LEFT / 2);
    assert!(bytes(&board.storage) > 2 << 20, "it is not idle for long enough");
    board.clock.advance(LEFT);
    assert!(soon(|| bytes(&board.storage) < 2 << 20), "nobody looks once it is");
}

/// What an idle queue has given up costs nothing but time: it works as before.
#[test]
fn a_queue_that_shrank_many_times_works_as_before() {
    let board = Board::at(year(2026));
    let queue = board.options().segment_bytes(4 << 20).open("q").unwrap();
    for round in 0..20_u8 {
        for _ in 0..30 {
            queue.push(vec![round; 100_000]).unwrap();
        }
        let jobs = queue.pop_batch(100).unwrap();
        assert_eq!((jobs.len(), jobs[29][0]), (30, round));
        queue.ack_batch(jobs).unwrap();
        board.clock.advance(11 * SECOND);
        queue.maintain().unwrap();
        let real = bytes(&board.storage);
        assert!(real < 2 << 20, "round {round}: {real} bytes");
    }
}

/// Dead letters took all that `max_bytes` allows. `maintain` of the idle queue beside them said
/// that the queue was full, as if somebody had pushed.
#[test]
fn an_idle_queue_without_room_shrinks_later() {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = Queue::options().storage(Arc::new(MemoryStorage::new())).background(false);
    let options = options.durability(Durability::Os).clock(clock.clone()).max_bytes(8 << 20);
    let queue = options.open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    for _ in 0..60 {
        queue.push(vec![1; 20_000]).unwrap();
    }
    while dead.push(vec![1; 20_000]).is_ok() {}
    queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
    let before = queue.stats().disk_bytes();
    for _ in 0..3 {
        clock.advance(Duration::from_secs(20));
        queue.maintain().unwrap();
    }
    dead.purge().unwrap();
    for _ in 0..3 {
        clock.advance(Duration::from_secs(20));
        queue.maintain().unwrap();
    }
    assert!(queue.stats().disk_bytes() < before / 4, "{:?}", queue.stats());
}

/// The newest file of a queue that shrank holds nothing. Its seal said that the run had ended in
/// order, and was not believed: each next number was some 100,000 above the last one, and the
/// report said that the queue had not been closed.
#[test]
fn a_queue_that_shrank_is_closed_in_order() {
    let step: fn(&Board) = |board| board.clock.set_wall(year(2027));
    let idle: fn(&Board) = |board| board.clock.advance(MINUTE);
    for (change, settled) in [(idle, 100), (step, 50), (step, 100)] {
        let board = Board::at(year(2026));
        let options = || board.options().segment_bytes(4 << 20);
        for run in 0..4 {
            let queue = options().open("q").unwrap();
            assert!(queue.recovery().was_closed() && queue.recovery().is_clean(), "run {run}");
            let first = queue.push_batch((0..100).map(|_| vec![1; 20_000])).unwrap()[0];
            assert_eq!(u64::from(first), 1 + 100 * run, "run {run}");
            queue.ack_batch(queue.pop_batch(settled).unwrap()).unwrap();
            change(&board);
            queue.maintain().unwrap();
            queue.close().unwrap();
        }
    }
}
