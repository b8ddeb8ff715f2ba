//! Crashes at every storage operation of seeded workloads, and again during what follows.
//!
//! The storage counts operations; a run stops at a chosen one; a disk is made on which every sector
//! and every name has any version that it had since its last sync; the queue is opened on it and
//! compared with a model of the promise; the workload goes on, and crashes again.
//!
//! `KEEPQ_CRASH_CASES` sets the number of chains (default 1500); the long run is
//! `KEEPQ_CRASH_CASES=200000 cargo test --release --test all crash::`.

use crate::support::agree::agree;
use crate::support::model::{End, Known, Model, message};
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage};
use keepq::{Compaction, Delivery, Durability, Options, Queue};
use std::sync::Arc;
use std::time::Duration;

const STEPS: u64 = 60;

/// A queue, its model, and how it will end.
struct Leg<'a> {
    model: &'a mut Model,
    dice: Dice,
    faults: Arc<FaultStorage>,
    crash_at: u64,
    /// How many operations there were, once they no longer count.
    operations: Option<u64>,
    sync_acks: bool,
    durability: Durability,
    in_flight: Vec<(u64, Delivery)>,
}

/// Something failed: the crash, or else it should not have.
struct Stopped(String);

impl From<keepq::Error> for Stopped {
    fn from(error: keepq::Error) -> Self {
        Self(error.to_string())
    }
}

type Step = Result<(), Stopped>;

impl Leg<'_> {
    fn options(&mut self) -> Options {
        let segment_bytes = 65_536 << self.dice.below(2);
        Queue::options()
            .background(false)
            .segment_bytes(segment_bytes)
            .durability(self.durability)
            .sync_acks(self.sync_acks)
            .compaction(Compaction::default().idle(Duration::ZERO))
            .storage(self.faults.clone())
    }

    fn open(&mut self, end: End) -> Result<Queue, Stopped> {
        let queue = self.options().open("memory")?;
        let report = queue.recovery();
        assert!(report.damage().is_empty(), "damage after a mere crash: {report:?}");
        assert!(report.ignored().next().is_none(), "{report:?}");
        let len = queue.len();
        let found = queue.pop_batch(usize::MAX)?;
        if self.faults.operations() > self.crash_at {
            return Err(Stopped("crashed while it was read".into()));
        }
        assert!(queue.damage().is_empty(), "damage after a mere crash: {:?}", queue.damage());
        self.model.recovered(&found, end);
        self.model.check_settled(&queue)?;
        // Transient messages of a crashed run whose state was lost count until they are met.
        assert!(len >= found.len() as u64, "len {len}, found {}", found.len());
        for delivery in found {
            let id = Self::id(&delivery);
            self.model.released(id);
            delivery.release()?;
        }
        Ok(queue)
    }

    fn id(delivery: &Delivery) -> u64 {
        u64::from_le_bytes(delivery[..8].try_into().unwrap())
    }

    fn len(&mut self) -> usize {
        let len = match self.dice.below(20) {
            0 => 20_000 + self.dice.below(20_000),
            1..=4 => self.dice.below(5_000),
            _ => self.dice.below(200),
        };
        usize::try_from(len).unwrap()
    }

    fn step(&mut self, queue: &Queue) -> Step {
        match self.dice.below(20) {
            0..=7 => self.push(queue),
            8 | 9 => self.push_batch(queue),
            10..=12 => self.pop(queue),
            13..=16 => self.answer(queue),
            17 => {
                self.note("sync");
                queue.sync()?;
                self.model.synced();
                Ok(())
            }
            18 => {
                self.note("maintain");
                queue.maintain()?;
                self.model.synced();
                Ok(())
            }
            _ if self.dice.one_in(4) => self.purge(queue),
            _ if self.dice.one_in(2) => {
                self.note("compact");
                let compacted = queue.compact()?;
                self.note(format!("{compacted:?}"));
                Ok(())
            }
            _ => self.ack_batch(queue),
        }
    }

    fn purge(&mut self, queue: &Queue) -> Step {
        self.note("purge");
        let in_flight: Vec<u64> = self.in_flight.iter().map(|(id, _)| *id).collect();
        let purged = self.model.begin_purge(&in_flight);
        assert_eq!(queue.purge()?, purged.len() as u64);
        assert_eq!(queue.len(), 0);
        for id in purged {
            self.model.acked(id, if self.sync_acks { Known::Durable } else { Known::Yes });
        }
        Ok(())
    }

    fn note(&self, what: impl Into<String>) {
        if std::env::var("KEEPQ_CRASH_TRACE").is_ok() {
            eprintln!("{:5} {}", self.faults.operations(), what.into());
        }
    }

    fn push(&mut self, queue: &Queue) -> Step {
        let is_transient = self.dice.one_in(12);
        let durability = match self.dice.below(4) {
            0 => Durability::Os,
            1 => Durability::Interval(Duration::from_secs(1)),
            2 => Durability::Always,
            _ => self.durability,
        };
        let len = self.len();
        let (id, payload) = self.model.begin_push(&[len], is_transient).remove(0);
        self.note(format!("push {id} len {len} {durability:?} transient {is_transient}"));
        let message = message(id, &payload).durability(durability);
        if is_transient {
            let seq = queue.push(message.transient())?;
            self.model.end_push(&[id], &[seq.into()], Known::Yes);
        } else if self.dice.one_in(4) {
            let receipt = queue.submit(message)?;
            self.model.end_push(&[id], &[receipt.seq().into()], Known::Yes);
            if self.dice.one_in(2) {
                receipt.wait()?;
                self.model.entries.get_mut(&id).unwrap().pushed = Known::Durable;
            }
        } else {
            let seq = queue.push(message)?;
            let known = if durability == Durability::Always { Known::Durable } else { Known::Yes };
            self.model.end_push(&[id], &[seq.into()], known);
        }
        Ok(())
    }

    fn push_batch(&mut self, queue: &Queue) -> Step {
        let count = 1 + self.dice.below(5);
        let lens: Vec<usize> = (0..count).map(|_| self.len() / 4).collect();
        let begun = self.model.begin_push(&lens, false);
        self.note(format!("push_batch {:?}", begun.iter().map(|(id, _)| id).collect::<Vec<_>>()));
        let seqs = queue.push_batch(begun.iter().map(|(id, payload)| message(*id, payload)))?;
        let ids: Vec<u64> = begun.iter().map(|(id, _)| *id).collect();
        let seqs: Vec<u64> = seqs.into_iter().map(u64::from).collect();
        let is_durable = self.durability == Durability::Always;
        self.model.end_push(&ids, &seqs, if is_durable { Known::Durable } else { Known::Yes });
        Ok(())
    }

    fn pop(&mut self, queue: &Queue) -> Step {
        let limit = usize::try_from(1 + self.dice.below(4)).unwrap();
        for delivery in queue.pop_batch(limit)? {
            let id = self.model.delivered(&delivery);
            self.note(format!("popped {id}"));
            self.in_flight.push((id, delivery));
        }
        Ok(())
    }

    fn answer(&mut self, _queue: &Queue) -> Step {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let place = usize::try_from(self.dice.below(self.in_flight.len() as u64)).unwrap();
        let (id, delivery) = self.in_flight.swap_remove(place);
        match self.dice.below(6) {
            0 => delivery.nack()?,
            1 => drop(delivery),
            2 => {
                self.note(format!("release {id}"));
                self.model.released(id);
                delivery.release()?;
            }
            _ => {
                self.note(format!("ack {id}"));
                self.model.acked(id, Known::Perhaps);
                delivery.ack()?;
                self.model.acked(id, if self.sync_acks { Known::Durable } else { Known::Yes });
            }
        }
        Ok(())
    }

    fn ack_batch(&mut self, queue: &Queue) -> Step {
        let (ids, deliveries): (Vec<u64>, Vec<Delivery>) = self.in_flight.drain(..).unzip();
        self.note(format!("ack_batch {ids:?}"));
        for &id in &ids {
            self.model.acked(id, Known::Perhaps);
        }
        queue.ack_batch(deliveries)?;
        for id in ids {
            self.model.acked(id, if self.sync_acks { Known::Durable } else { Known::Yes });
        }
        Ok(())
    }

    /// Opens, works, reopens now and then, until the crash or the end.
    fn run(&mut self, end: End) -> Step {
        let mut queue = self.open(end)?;
        for _ in 0..STEPS {
            if self.dice.one_in(25) {
                self.note("reopen");
                self.in_flight.clear();
                queue.close()?;
                self.model.synced();
                queue = self.open(End::Closed)?;
            } else {
                self.step(&queue)?;
            }
        }
        self.in_flight.clear();
        if self.dice.one_in(2) {
            queue.close()?;
            self.model.synced();
        } else {
            // Ends like a crash: the close of the last handle reaches nothing.
            self.operations = Some(self.faults.operations());
            self.faults.plan(FaultPlan::CrashAt { at: 0 });
        }
        Ok(())
    }
}

/// One leg on `disk`; stops at operation `crash_at`. Gives the number of operations.
fn leg(disk: &Arc<MemoryStorage>, model: &mut Model, end: End, seed: u64, crash_at: u64) -> u64 {
    let faults = Arc::new(FaultStorage::new(disk.clone()));
    faults.plan(FaultPlan::CrashAt { at: crash_at });
    let mut dice = Dice(seed);
    if std::env::var("KEEPQ_CRASH_TRACE").is_ok() {
        eprintln!("leg of seed {seed}, crash at {crash_at}");
    }
    let durability = match dice.below(4) {
        0 => Durability::Os,
        1 => Durability::Interval(Duration::from_secs(1)),
        _ => Durability::Always,
    };
    let sync_acks = dice.one_in(3);
    let mut leg = Leg {
        model,
        dice,
        faults: faults.clone(),
        crash_at,
        operations: None,
        sync_acks,
        durability,
        in_flight: Vec::new(),
    };
    agree(disk, &format!("leg of seed {seed}"));
    let result = leg.run(end);
    if let Err(Stopped(error)) = result {
        assert!(faults.operations() > crash_at, "failed without a crash: {error}");
        leg.model.crashed();
    }
    leg.operations.unwrap_or_else(|| faults.operations())
}

/// Runs three legs, each crashed at an operation of its own, then reads everything.
fn chain(seed: u64) {
    let mut dice = Dice(seed);
    let mut model = Model::default();
    let mut disk = Arc::new(MemoryStorage::new());
    let mut end = End::Closed;
    for _ in 0..3 {
        let seed = dice.next();
        // How long the leg is without a crash decides where it can crash.
        let rehearsal = Arc::new(disk.killed());
        let operations = leg(&rehearsal, &mut model.clone(), end, seed, u64::MAX);
        let crash_at = dice.below(operations + 1);
        let run = model.run;
        leg(&disk, &mut model, end, seed, crash_at);
        // A run that did not come to compare leaves the comparison to the next.
        let was_compared = model.run > run;
        let end_before = end;
        (disk, end) = match dice.below(6) {
            0 => (Arc::new(disk.killed()), End::Killed),
            1 => (Arc::new(disk.power_cut(CrashImage::Oldest)), End::PowerCut),
            2 => (Arc::new(disk.power_cut(CrashImage::Newest)), End::PowerCut),
            _ => (Arc::new(disk.power_cut(CrashImage::Mixed(dice.next()))), End::PowerCut),
        };
        if !was_compared && end_before == End::PowerCut {
            end = End::PowerCut;
        }
    }
    // A recovery that is cut short anywhere leaves the same for the next one.
    let again = Arc::new(disk.killed());
    let faults = Arc::new(FaultStorage::new(again.clone()));
    faults.plan(FaultPlan::CrashAt { at: dice.below(40) });
    let options = Queue::options().segment_bytes(65_536).background(false).storage(faults);
    if let Ok(queue) = options.open("memory") {
        queue.maintain().ok();
    }
    for disk in [disk, Arc::new(again.killed())] {
        drain(&disk, &mut model.clone(), end);
    }
}

fn drain(disk: &Arc<MemoryStorage>, model: &mut Model, end: End) {
    agree(disk, "the last disk");
    let options = Queue::options().background(false).storage(disk.clone());
    let queue = options.clone().open("memory").unwrap();
    let found = queue.pop_batch(usize::MAX).unwrap();
    model.recovered(&found, end);
    assert_eq!(queue.in_flight(), found.len() as u64);
    model.check_settled(&queue).unwrap();
    queue.ack_batch(found).unwrap();
    let (id, payload) = model.begin_push(&[10], false).remove(0);
    let seq = queue.push(message(id, &payload)).unwrap();
    model.end_push(&[id], &[seq.into()], Known::Durable);
    queue.close().unwrap();
    let queue = options.open("memory").unwrap();
    assert_eq!(queue.len(), 1);
    let last = queue.pop().unwrap().unwrap();
    assert_eq!((last.seq(), &last[..]), (seq, &payload[..]));
}

#[test]
fn every_crash_keeps_the_promise() {
    let first = cases("KEEPQ_CRASH_SEED", 1);
    let count = cases("KEEPQ_CRASH_CASES", 1500);
    for seed in first..first + count {
        let outcome = std::panic::catch_unwind(|| chain(seed));
        assert!(outcome.is_ok(), "KEEPQ_CRASH_SEED={seed} KEEPQ_CRASH_CASES=1 shows it");
    }
}

/// Every single operation of a few workloads, each with several disks.
#[test]
fn every_operation_of_a_workload_can_be_the_last() {
    for seed in 0..cases("KEEPQ_CRASH_WORKLOADS", 3) {
        let rehearsal = Arc::new(MemoryStorage::new());
        let operations = leg(&rehearsal, &mut Model::default(), End::Closed, seed, u64::MAX);
        for crash_at in 0..=operations {
            let (disk, mut model) = (Arc::new(MemoryStorage::new()), Model::default());
            leg(&disk, &mut model, End::Closed, seed, crash_at);
            drain(&Arc::new(disk.killed()), &mut model.clone(), End::Killed);
            for image in [CrashImage::Oldest, CrashImage::Mixed(crash_at)] {
                drain(&Arc::new(disk.power_cut(image)), &mut model.clone(), End::PowerCut);
            }
        }
    }
}
