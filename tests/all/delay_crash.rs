//! Delayed messages through crashes: none that was confirmed is lost, and none comes before its
//! time.

use crate::support::agree::agree_at;
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, Error, Message, Options, Queue};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn on(storage: Arc<dyn Storage>, clock: &Arc<ManualClock>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).storage(storage);
    options.clock(clock.clone()).compaction(Compaction::default().idle(ms(0)))
}

/// When each message that was confirmed may come at the earliest: by its number, of a run's clock.
type Due = BTreeMap<u64, u64>;

/// Pushes with delays, and gives back with delays; each in a millisecond of its own.
fn work(
    queue: &Queue,
    clock: &ManualClock,
    now: &mut u64,
    due: &mut Due,
    dice: &mut Dice,
) -> Result<(), Error> {
    for n in 0..25u64 {
        clock.advance(ms(1));
        *now += 1;
        let id = *now;
        let delay = if dice.one_in(3) { 0 } else { 1 + dice.below(40) };
        let payload = id.to_le_bytes().repeat(1 + dice.below(60) as usize);
        let message = || Message::new(&payload).delay(ms(delay));
        if dice.one_in(4) {
            // Two, or none: the other is never delayed, and worth nothing.
            queue.push_batch([message(), Message::new("").transient()])?;
        } else {
            queue.push(message())?;
        }
        due.insert(id, *now + delay);
        if n % 3 == 2
            && let Some(job) = queue.pop()?
        {
            let Some(id) = job.first_chunk() else { continue };
            let id = u64::from_le_bytes(*id);
            assert!(due.get(&id).is_none_or(|&due| due <= *now), "{id} came too early");
            let away = 1 + dice.below(40);
            // Durable with the next sync, so a power cut may undo it: then it is due as before.
            job.nack_after(ms(away))?;
            queue.sync()?;
            due.insert(id, *now + away);
        }
        if n % 10 == 9 {
            queue.maintain()?;
        }
    }
    Ok(())
}

#[test]
fn no_crash_loses_a_delayed_message_or_hands_it_out_early() {
    let most = cases("KEEPQ_DELAY_CRASHES", 150);
    for case in 0..most {
        let mut dice = Dice(case);
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + ms(1_000_000)));
        let (mut now, mut due) = (0, Due::new());
        let mut disk = Arc::new(MemoryStorage::new());
        for _ in 0..3 {
            let faults = Arc::new(FaultStorage::new(disk.clone()));
            faults.plan(FaultPlan::CrashAt { at: dice.below(400) });
            let opened = on(faults, &clock).open("queue");
            opened.and_then(|queue| work(&queue, &clock, &mut now, &mut due, &mut dice)).ok();
            disk = Arc::new(match dice.below(3) {
                0 => disk.killed(),
                1 => disk.power_cut(CrashImage::Oldest),
                _ => disk.power_cut(CrashImage::Mixed(dice.next())),
            });
            agree_at(&disk, 1_000_000 + now, &format!("case {case}"));
        }
        let queue = on(disk, &clock).open("queue").unwrap();
        let mut found = BTreeMap::new();
        for _ in 0..100 {
            while let Some(job) = queue.pop().unwrap() {
                let Some(id) = job.first_chunk() else {
                    job.ack().unwrap();
                    continue;
                };
                let id = u64::from_le_bytes(*id);
                assert!(found.insert(id, now).is_none(), "case {case}: {id} came twice");
                let due = due.get(&id).copied().unwrap_or(0);
                assert!(due <= now, "case {case}: {id} came at {now}, and is due at {due}");
                job.ack().unwrap();
            }
            clock.advance(ms(1));
            now += 1;
        }
        assert!(due.keys().all(|id| found.contains_key(id)), "case {case}: one is lost");
        assert_eq!((queue.len(), queue.delayed(), queue.damage().len()), (0, 0, 0));
    }
}
