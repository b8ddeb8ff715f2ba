//! keepq and the reader of the page on directories with damage: what one keeps, the other keeps.
//!
//! Each case is a queue of a few runs that were closed, killed or cut off from power, and a few
//! things done to its files then: bytes changed, sectors zeroed, files cut, lost, copied.
//! `KEEPQ_READER_CASES` sets the number of queues (default 60), each is damaged in several ways;
//! the long run is `KEEPQ_READER_CASES=20000 cargo test --release --test all page::`.

use crate::support::agree::{agree_at, either_slot_serves, files};
use crate::support::reader;
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Message, Options, Queue, Result};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const DAMAGES: u64 = 12;
const START: u64 = 1_700_000_000_000;
const PAGE: u64 = 4096;

fn on(storage: Arc<dyn Storage>, clock: &Arc<ManualClock>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).clock(clock.clone());
    let options = options.compaction(Compaction::default().idle(Duration::ZERO)).storage(storage);
    options.durability(Durability::Os).max_attempts(0)
}

/// One run of a queue: pushes of all kinds, answers of all kinds, upkeep.
fn run(queue: &Queue, clock: &ManualClock, dice: &mut Dice) -> Result<()> {
    let most_bytes = 1 + dice.below(6000);
    for _ in 0..dice.below(60) {
        clock.advance(Duration::from_millis(dice.below(50)));
        let payload = || vec![b'.'; most_bytes as usize / 2];
        let delay = Duration::from_millis(1 + dice.below(3000));
        match dice.below(16) {
            0..=4 => drop(queue.push(payload())?),
            5 => drop(queue.push(Message::new(payload()).delay(delay).header("kind", "late"))?),
            6 => drop(queue.push(Message::new("transient").transient())?),
            7 | 8 => drop(queue.push_batch((0..=dice.below(5)).map(|_| payload()))?),
            9 => queue.sync()?,
            10 => queue.maintain()?,
            11 if dice.one_in(2) => drop(queue.compact()?),
            11 => {
                // A small segment follows, which may stay empty.
                clock.set_wall(UNIX_EPOCH + Duration::from_millis(START + dice.below(10_000)));
                queue.maintain()?;
            }
            12 => {
                let mut jobs = queue.pop_batch(20)?;
                jobs.truncate(20 - dice.below(4) as usize);
                queue.ack_batch(jobs)?;
            }
            _ => {
                let Some(job) = queue.pop()? else { continue };
                match dice.below(5) {
                    0 => job.nack_after(delay)?,
                    1 => job.reject("bad")?,
                    2 => drop(job),
                    _ => job.ack()?,
                }
            }
        }
    }
    Ok(())
}

/// A queue after a few runs, and the time.
fn queue(dice: &mut Dice) -> (MemoryStorage, u64) {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_millis(START)));
    let mut disk = MemoryStorage::new();
    for _ in 0..=dice.below(4) {
        let memory = Arc::new(disk);
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        let at = if dice.one_in(2) { u64::MAX } else { dice.below(500) };
        faults.plan(FaultPlan::CrashAt { at });
        if let Ok(queue) = on(faults.clone(), &clock).open("queue") {
            run(&queue, &clock, dice).ok();
            if dice.one_in(2) {
                // The drop of the last handle reaches nothing.
                faults.plan(FaultPlan::CrashAt { at: 0 });
            }
        }
        disk = match dice.below(3) {
            0 => memory.power_cut(CrashImage::Mixed(dice.next())),
            _ => memory.killed(),
        };
    }
    // Some delays are over by then; or the clock was set back.
    (disk, START + dice.below(12_000))
}

/// A copy of a disk, of which only the files count.
fn copy(disk: &MemoryStorage) -> MemoryStorage {
    disk.power_cut(CrashImage::Newest)
}

/// Does something to a file, and tells what.
fn damage(disk: &MemoryStorage, dice: &mut Dice) -> String {
    let files = files(disk);
    let Some((name, bytes)) = files.get(dice.below(files.len().max(1) as u64) as usize) else {
        return "nothing is there".into();
    };
    let mut bytes = bytes.clone();
    let size = bytes.len() as u64;
    if size < 3 * PAGE || dice.one_in(12) {
        return damage_file(disk, name, &bytes, dice);
    }
    // Where something is: in the header pages, the first records, the first slots.
    let reach = (1 << (4 + dice.below(12))).min(size - PAGE - 1);
    let place = match dice.below(4) {
        0 => dice.below(2048),
        1 => size - PAGE + dice.below(2048),
        2 => PAGE + dice.below(reach),
        _ => size - PAGE - 1 - dice.below(reach),
    };
    let at = place.min(size - 1) as usize;
    let end = bytes.len().min(at + (1 << dice.below(10)));
    let what = match dice.below(3) {
        0 => {
            bytes[at] ^= 1 << dice.below(8);
            "a bit flipped"
        }
        1 => {
            let sector = at / 512 * 512;
            bytes[sector..].iter_mut().take(512).for_each(|byte| *byte = 0);
            "a sector zeroed"
        }
        _ => {
            bytes[at..end].iter_mut().for_each(|byte| *byte = dice.next() as u8);
            "bytes changed"
        }
    };
    disk.write(name, bytes);
    format!("{name}: {what} at {at}, up to {end}")
}

/// Does something to a file as a whole.
fn damage_file(disk: &MemoryStorage, name: &str, bytes: &[u8], dice: &mut Dice) -> String {
    let remove = |disk: &MemoryStorage, name: &str| {
        disk.remove(name).unwrap();
        disk.sync_directory().unwrap();
    };
    let other = format!("{:016x}.seg", dice.below(40));
    match dice.below(6) {
        0 if name != "CHECKPOINT" => {
            disk.write(&other, bytes.to_vec());
            format!("{name}: copied to {other}")
        }
        1 if name != "CHECKPOINT" => {
            remove(disk, name);
            disk.write(&other, bytes.to_vec());
            format!("{name}: named {other}")
        }
        2 if !bytes.is_empty() => {
            let len = dice.below(bytes.len() as u64) as usize;
            disk.write(name, bytes[..len].to_vec());
            format!("{name}: cut at {len}")
        }
        4 if dice.one_in(2) => {
            let more =
                bytes.iter().copied().chain((0..dice.below(9000)).map(|_| dice.next() as u8));
            disk.write(name, more.collect());
            format!("{name}: longer")
        }
        3 => {
            remove(disk, "CHECKPOINT");
            "CHECKPOINT: removed".into()
        }
        _ => {
            remove(disk, name);
            format!("{name}: removed")
        }
    }
}

/// Whether both agree on this disk; if not, it is told on which.
fn is_agreed(disk: &MemoryStorage, now: u64, context: &str) -> bool {
    passes(|| agree_at(disk, now, context))
}

fn passes(check: impl FnOnce()) -> bool {
    std::panic::catch_unwind(AssertUnwindSafe(check)).is_ok()
}

#[test]
fn what_the_page_keeps_is_kept() {
    let first = cases("KEEPQ_READER_SEED", 1);
    let mut failed = Vec::new();
    for seed in first..first + cases("KEEPQ_READER_CASES", 60) {
        let mut dice = Dice(seed);
        let (disk, now) = queue(&mut dice);
        let context = format!("KEEPQ_READER_SEED={seed}, undamaged");
        let mut is_right = is_agreed(&disk, now, &context);
        is_right &= passes(|| either_slot_serves(&disk, now, &context));
        for case in 0..DAMAGES {
            let disk = copy(&disk);
            let done: Vec<String> = (0..=dice.below(3)).map(|_| damage(&disk, &mut dice)).collect();
            let context = format!("KEEPQ_READER_SEED={seed}, case {case}: {done:?}");
            is_right &= is_agreed(&disk, now, &context);
        }
        failed.extend((!is_right).then_some(seed));
    }
    assert!(failed.is_empty(), "KEEPQ_READER_SEED={{n}} KEEPQ_READER_CASES=1 shows it: {failed:?}");
}

/// Whatever the bytes are, the reader ends, and says something.
#[test]
fn the_reader_reads_anything() {
    for seed in 0..cases("KEEPQ_READER_CASES", 60) {
        let mut dice = Dice(seed);
        let (disk, now) = queue(&mut dice);
        for _ in 0..50 {
            damage(&disk, &mut dice);
            reader::read(&files(&disk), now).ok();
        }
    }
}
