//! Found faults: a message moves to the dead letters once, and is in one place.

use super::found_hooks::{by_hand, files};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Options, Queue};
use std::mem::forget;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);

fn on(storage: Arc<dyn Storage>) -> Options {
    by_hand(storage)
}

/// What a power cut at operation number `at` leaves of a message that was pushed durably, while it
/// is rejected and moved; `None` if there was no such operation.
pub(crate) fn cut_while_a_message_dies(at: u64, image: CrashImage) -> Option<Arc<MemoryStorage>> {
    let memory = Arc::new(MemoryStorage::new());
    let faults = Arc::new(FaultStorage::new(memory.clone()));
    let queue = on(faults.clone()).open("queue").unwrap();
    queue.dead_letters().unwrap();
    queue.push("a").unwrap();
    queue.sync().unwrap();
    faults.plan(FaultPlan::CrashAt { at });
    let rejected = queue.pop().and_then(|job| job.unwrap().reject("first"));
    let moved = rejected.and_then(|()| queue.maintain());
    moved.is_err().then(|| Arc::new(memory.power_cut(image)))
}

/// What the next run does before it ends in order, with these options.
type Run = (&'static str, fn(Options) -> Options, fn(&Queue));

const RUNS_BETWEEN: [Run; 4] = [
    ("a push", |options| options, push_another),
    ("upkeep", |options| options, |queue| queue.maintain().unwrap()),
    ("a background", |options| options.background(true), push_another),
    (WITHOUT, |options| options.dead_letters(false), push_another),
];

const WITHOUT: &str = "a push, no dead letters";

fn push_another(queue: &Queue) {
    queue.push("b").unwrap();
}

/// How often message "a" is a dead letter, if it dies wherever it is; and whether it was here and
/// there at once.
fn letters_of(queue: &Queue) -> (usize, bool) {
    let dead = queue.dead_letters().unwrap();
    let mut letters = 0;
    for letter in dead.pop_batch(9).unwrap() {
        letters += 1;
        letter.ack().unwrap();
    }
    let mut is_here = false;
    for job in queue.pop_batch(9).unwrap() {
        is_here |= &job[..] == b"a";
        job.reject("second").unwrap();
    }
    queue.maintain().unwrap();
    let again = dead.pop_batch(9).unwrap();
    let again = again.iter().filter(|letter| &letter[..] == b"a").count();
    (letters + again, is_here && letters > 0)
}

/// A power cut kept a dead letter and undid what the slot of its message said. The next run closed
/// the queue in order and did not need the dead letters, or had them switched off. The run after
/// that believed the slots, because a run that ends in order leaves them right, and compared
/// nothing. So it showed the letter while its message was ready, and the message could die a second
/// time.
#[test]
fn a_power_cut_and_a_run_in_order_make_no_second_dead_letter() {
    let (mut wrong, mut cuts) = (Vec::new(), 0);
    for at in 0.. {
        let mixed = (1..6).map(|seed| CrashImage::Mixed(seed * 1000 + at));
        let images = [CrashImage::Oldest].into_iter().chain(mixed);
        let disks: Vec<_> =
            images.filter_map(|image| cut_while_a_message_dies(at, image)).collect();
        if disks.is_empty() {
            break;
        }
        for disk in disks {
            for (run, with, work) in RUNS_BETWEEN {
                let disk = Arc::new(disk.killed());
                let between = with(on(disk.clone())).open("queue").unwrap();
                // Without dead letters what is dying is dropped.
                let is_dropped = run == WITHOUT && between.stats().dropped() > 0;
                work(&between);
                between.close().unwrap();
                let queue = on(disk).open("queue").unwrap();
                let (letters, is_twice) = letters_of(&queue);
                let is_right = letters == 1 || is_dropped && letters == 0;
                if !is_right || is_twice {
                    wrong.push(format!("cut at {at}, {run}: {letters} letters, both {is_twice}"));
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 50, "{cuts} cuts");
    assert!(wrong.is_empty(), "{} of {cuts}: {:#?}", wrong.len(), &wrong[..wrong.len().min(9)]);
}

/// The files of a queue were moved away, and its directory `dead` stayed. Then a message of the new
/// queue had the number of an old one, whose dead letter was still there. It was taken for moved
/// when it died in a later run, and was lost.
#[test]
fn a_message_with_the_number_of_an_old_dead_letter_is_not_lost() {
    let disk = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
    let open = || on(disk.clone()).max_attempts(1).clock(clock.clone()).open("queue").unwrap();
    let queue = open();
    queue.push("old").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
    for name in files(&disk).iter().filter(|name| !name.starts_with("dead/")) {
        disk.remove(name).unwrap();
    }
    clock.advance(SECOND);
    let queue = open();
    assert_eq!(queue.push("new").unwrap(), 1.into());
    forget(queue.pop().unwrap().unwrap());
    queue.close().unwrap();
    let queue = open();
    queue.maintain().unwrap();
    let letters = queue.dead_letters().unwrap().pop_batch(9).unwrap();
    assert_eq!(letters.iter().map(|letter| letter.to_vec()).collect::<Vec<_>>(), [b"old", b"new"]);
    assert_eq!((queue.len(), queue.stats().dying()), (0, 0));
}
