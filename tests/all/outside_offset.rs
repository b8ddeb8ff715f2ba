//! How far consumers are, as CHECKPOINT notes it: a hint that hides no message, and that does not
//! fall behind.

use crate::support::board::{Board, pop, year};
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Delivery, Durability, Message, Options, Queue};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A queue was drained and closed; from the first look for a message on, each later run shows that
/// nothing is left to do.
#[test]
fn the_floor_of_a_drained_queue_outlives_its_runs() {
    let board = Board::at(year(2026));
    let queue = board.open();
    for _ in 0..3 {
        queue.push("x").unwrap();
    }
    while pop(&queue).is_some() {}
    queue.close().unwrap();
    for _ in 0..3 {
        let queue = board.open();
        assert_eq!(pop(&queue), None);
        assert_eq!(queue.stats().floor(), 4.into(), "{:?}", queue.stats());
        queue.maintain().unwrap();
        assert_eq!(queue.stats().floor(), 4.into(), "{:?}", queue.stats());
        queue.close().unwrap();
    }
}

/// A tool that opens a queue to see how far consumers are saw zeros: both numbers were known only
/// once a message was looked for. And what CHECKPOINT had as the cursor was below the floor.
#[test]
fn the_offset_is_known_from_the_open_on() {
    for left in [0, 1, 60] {
        let board = Board::at(year(2026));
        let queue = board.open();
        for _ in 0..100 {
            queue.push("x").unwrap();
        }
        for _ in left..100 {
            pop(&queue).unwrap();
        }
        queue.close().unwrap();
        // What a run notes that only opens is what the next one sees.
        for _ in 0..3 {
            let queue = board.open();
            let (floor, cursor) = (queue.stats().floor(), queue.stats().cursor());
            assert_eq!(floor, (101 - left).into(), "{left} are left");
            assert!(cursor >= floor, "cursor {cursor}, floor {floor}");
            queue.close().unwrap();
        }
    }
}

/// A queue, and which of its messages are not settled.
struct Log {
    context: String,
    dice: Dice,
    disk: MemoryStorage,
    unsettled: BTreeSet<u64>,
}

impl Log {
    fn options(&self) -> Options {
        let options = Queue::options().storage(self.disk.directory("q").unwrap());
        options.background(false).segment_bytes(65_536).durability(Durability::Os)
    }

    fn check_floor(&self, queue: &Queue) {
        let (floor, first) = (u64::from(queue.stats().floor()), self.unsettled.first());
        let is_hint = first.is_none_or(|&first| floor <= first);
        assert!(is_hint, "{}: floor {floor}, {first:?} is not settled", self.context);
    }

    /// What there is by a walk, by a look at the front, and by counting.
    fn check(&self, queue: &Queue) {
        let all: BTreeSet<u64> =
            queue.into_iter().map(|message| u64::from(message.unwrap().seq())).collect();
        assert_eq!(all, self.unsettled, "{}", self.context);
        let front = queue.peek().unwrap().map(|message| u64::from(message.seq()));
        assert_eq!(front, self.unsettled.first().copied(), "{}", self.context);
        assert_eq!(queue.len(), self.unsettled.len() as u64, "{}", self.context);
        self.check_floor(queue);
    }

    fn work(&mut self, queue: &Queue) -> Vec<Delivery> {
        for _ in 0..self.dice.below(60) {
            let message = Message::new(vec![1; self.dice.below(2000) as usize]);
            if self.dice.one_in(6) {
                queue.push(message.transient()).unwrap();
            } else {
                self.unsettled.insert(queue.push(message).unwrap().into());
            }
        }
        let mut kept = Vec::new();
        for _ in 0..self.dice.below(100) {
            let Some(job) = queue.pop().unwrap() else { break };
            let seq = u64::from(job.seq());
            match self.dice.below(8) {
                0 => {
                    kept.push(job);
                    continue;
                }
                1 => job.reject("no").unwrap(),
                _ => job.ack().unwrap(),
            }
            self.unsettled.remove(&seq);
        }
        match self.dice.below(4) {
            0 => drop(queue.compact().unwrap()),
            1 => queue.maintain().unwrap(),
            _ => {}
        }
        kept
    }

    fn end(&mut self, queue: Queue, kept: Vec<Delivery>) {
        match self.dice.below(3) {
            0 => {
                drop(kept);
                queue.close().unwrap();
            }
            // What the old queue does while it is dropped, it does to the old disk.
            1 => self.disk = self.disk.killed(),
            _ => {
                queue.sync().unwrap();
                self.disk = self.disk.power_cut(CrashImage::Mixed(self.dice.next()));
            }
        }
    }
}

/// Acks in any order, kills, power cuts: an open that begins at the noted floor finds what a walk
/// over all messages would find. `KEEPQ_OFFSET_CASES` sets the number of queues (default 100).
#[test]
fn the_offset_hides_nothing() {
    let first = cases("KEEPQ_OFFSET_SEED", 1);
    for seed in first..first + cases("KEEPQ_OFFSET_CASES", 100) {
        let (disk, unsettled) = (MemoryStorage::new(), BTreeSet::new());
        let mut log = Log { context: String::new(), dice: Dice(seed), disk, unsettled };
        for run in 0..12 {
            log.context = format!("seed {seed}, run {run}");
            let queue = log.options().max_attempts(30_000).open("q").unwrap();
            log.check(&queue);
            let kept = log.work(&queue);
            log.check_floor(&queue);
            log.end(queue, kept);
        }
    }
}

/// The offset in CHECKPOINT is that of a later time than the slots: a backup that was made file by
/// file while the queue was used. All that its slots say is unsettled is handed out.
#[test]
fn slots_that_are_older_than_the_offset_are_believed() {
    let disk = Arc::new(MemoryStorage::new());
    let open = |disk: &Arc<MemoryStorage>| {
        let options = Queue::options().storage(disk.clone()).background(false);
        options.segment_bytes(1 << 20).open("q").unwrap()
    };
    let queue = open(&disk);
    for number in 0..200 {
        queue.push(format!("{number}")).unwrap();
    }
    queue.ack_batch(queue.pop_batch(20).unwrap()).unwrap();
    queue.close().unwrap();
    let before = disk.killed();
    let queue = open(&disk);
    queue.ack_batch(queue.pop_batch(150).unwrap()).unwrap();
    queue.close().unwrap();
    before.write("CHECKPOINT", disk.read("CHECKPOINT").unwrap());
    let queue = open(&Arc::new(before));
    let seqs: Vec<u64> =
        queue.pop_batch(500).unwrap().iter().map(|job| u64::from(job.seq())).collect();
    assert_eq!(seqs, (21..=200).collect::<Vec<u64>>());
}
