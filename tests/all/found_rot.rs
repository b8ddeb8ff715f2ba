//! Bytes that go bad while a queue is open, after they were read once. Each test is a story that
//! once went wrong.

use crate::found_hooks::{Gate, OpenAtEnd, by_hand, files, flip, is_segment, until};
use crate::found_support::{call, watched};
use crate::support::watched::{Op, Op::Load, Watched};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Delivery, Message, Options, Queue};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const PAGE: u64 = 4096;
const SLOT: u64 = 16;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A word of the slot of a message in the oldest segment.
#[derive(Clone, Copy)]
enum Word {
    State,
    Delay,
}

/// Damages the slot of the message at this index.
fn rot(disk: &MemoryStorage, index: u64, word: Word) {
    let name = oldest_segment(disk);
    let slot = disk.read(&name).unwrap().len() as u64 - PAGE - SLOT * (index + 1);
    flip(disk, &name, slot + if let Word::Delay = word { 8 } else { 0 });
}

fn oldest_segment(disk: &MemoryStorage) -> String {
    files(disk).into_iter().filter(|name| is_segment(name)).min().unwrap()
}

fn with_clock(disk: &Arc<MemoryStorage>) -> (Options, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
    (by_hand(disk.clone()).clock(clock.clone()).backoff(Backoff::none()), clock)
}

/// Settles 99 messages but three of them, so that a copy has the numbers 0, 7 and 21 behind its
/// first one.
fn take_three(queue: &Queue) -> Vec<Delivery> {
    for n in 0..99_u8 {
        queue.push(vec![n; 1500]).unwrap();
    }
    let jobs = queue.pop_batch(99).unwrap();
    let is_kept = |job: &Delivery| [3, 10, 24].contains(&job[0]);
    let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_kept);
    queue.ack_batch(settled).unwrap();
    kept
}

/// Damages the second number of such a copy. They are stored plus one.
fn rot_second_number(disk: &MemoryStorage) {
    let table = files(disk).into_iter().filter(|name| is_segment(name)).find_map(|name| {
        let bytes = disk.read(&name)?;
        let numbers = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()) & ((1 << 48) - 1));
        let at = numbers.collect::<Vec<_>>().windows(3).position(|three| three == [1, 8, 22])?;
        Some((name, at as u64 * 8))
    });
    let (name, at) = table.expect("the table of the copy");
    flip(disk, &name, at + 8);
}

fn pop_all(queue: &Queue) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(job) = queue.pop().unwrap() {
        texts.push(String::from_utf8_lossy(&job).into_owned());
        job.ack().unwrap();
    }
    texts
}

/// A settled slot went bad after it had been counted. Its message was handed out again, which is
/// right, and counted again: the segment passed for done, and went with another message in it.
#[test]
fn a_settled_slot_that_goes_bad_costs_no_other_message() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    let mut jobs = queue.pop_batch(2).unwrap();
    jobs.pop().unwrap().ack().unwrap();
    drop(jobs);
    queue.close().unwrap();
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    queue.push("d").unwrap();
    assert_eq!(queue.len(), 3);
    rot(&disk, 1, Word::State);
    for expected in ["a", "b"] {
        let job = queue.pop().unwrap().unwrap();
        assert_eq!(&job[..], expected.as_bytes());
        job.ack().unwrap();
    }
    assert_eq!(queue.len(), 2);
    queue.maintain().unwrap();
    assert_eq!(pop_all(&queue), ["c", "d"]);
    assert_eq!((queue.len(), queue.damage().len()), (0, 1));
}

/// The same in one run: nothing was left by the count, and a message waited.
#[test]
fn a_purged_slot_that_goes_bad_is_counted_once() {
    let disk = Arc::new(MemoryStorage::new());
    let options = by_hand(disk.clone()).max_messages(2);
    let queue = options.open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.purge().unwrap();
    queue.push("c").unwrap();
    rot(&disk, 1, Word::State);
    let job = queue.pop().unwrap().unwrap();
    assert_eq!((&job[..], queue.len(), queue.in_flight()), (&b"b"[..], 1, 1));
    assert!(queue.push("too many").is_err(), "two are not settled");
    job.ack().unwrap();
    assert_eq!(queue.len(), 1);
    queue.push("d").unwrap();
    queue.maintain().unwrap();
    assert_eq!(pop_all(&queue), ["c", "d"]);
}

/// A slot of the same kind was met by a copy: a debug build stopped there, and in any other the
/// message counted as ready, and no pop of this run handed it out.
#[test]
fn a_settled_slot_that_goes_bad_is_handed_out_of_a_copy() {
    const MESSAGES: u8 = 200;
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    for n in 0..MESSAGES {
        queue.push(vec![n; 1500]).unwrap();
    }
    let jobs = queue.pop_batch(160).unwrap();
    let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job[0] % 10 == 0);
    queue.ack_batch(settled).unwrap();
    drop(kept);
    queue.sync().unwrap();
    let before = queue.len();
    rot(&disk, 2, Word::State);
    queue.compact().unwrap();
    assert_eq!(queue.len(), before + 1);
    let popped = queue.pop_batch(usize::MAX).unwrap();
    assert!(popped.iter().any(|job| job[0] == 2), "it is ready again");
    assert_eq!(popped.len() as u64, before + 1);
    queue.ack_batch(popped).unwrap();
    assert_eq!((queue.len(), queue.in_flight()), (0, 0));
}

/// The slot of a message that was dying went bad before the cursor came to it: it was handed out,
/// and moved to the dead letters as well.
#[test]
fn a_dying_message_whose_slot_goes_bad_stays_dying() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    storage.rule(|call| {
        let is_refused = call.op == Op::Create && call.name.starts_with("dead/");
        if is_refused { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let queue = by_hand(storage.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let mut jobs = queue.pop_batch(2).unwrap();
    jobs.pop().unwrap().reject("bad").unwrap();
    drop(jobs);
    queue.close().unwrap();
    let queue = by_hand(storage.clone()).open("queue").unwrap();
    assert_eq!((queue.len(), queue.stats().dying()), (1, 1));
    rot(&disk, 1, Word::State);
    assert_eq!(pop_all(&queue), ["a"]);
    assert_eq!(queue.stats().dying(), 1);
    storage.no_rule();
    queue.maintain().unwrap();
    let letter = queue.dead_letters().unwrap().pop().unwrap().expect("the letter");
    assert_eq!(&letter[..], b"b");
}

/// The delay of a message went bad while a consumer had it: another consumer got it, too.
#[test]
fn a_message_in_flight_whose_delay_goes_bad_stays_with_its_holder() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.open("queue").unwrap();
    queue.push("a").unwrap();
    queue.push(Message::new("later").delay(SECOND)).unwrap();
    queue.push("c").unwrap();
    clock.advance(2 * SECOND);
    let held = queue.pop().unwrap().unwrap();
    assert_eq!(&held[..], b"later");
    rot(&disk, 1, Word::Delay);
    assert_eq!(queue.iter().count(), 2, "it does not wait");
    assert_eq!(pop_all(&queue), ["a", "c"]);
    assert_eq!(queue.purge().unwrap(), 0);
    held.ack().unwrap();
    assert_eq!((queue.len(), queue.in_flight()), (0, 0));
}

/// The delay of a message that an earlier run had put off went bad while it waited: it was handed
/// out at once, and again at its time.
#[test]
fn a_message_that_was_put_off_and_whose_delay_goes_bad_comes_at_its_time() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.clone().open("queue").unwrap();
    queue.push("later").unwrap();
    queue.pop().unwrap().unwrap().nack_after(HOUR).unwrap();
    queue.close().unwrap();
    let queue = options.open("queue").unwrap();
    assert_eq!((queue.len(), queue.stats().delayed()), (0, 1));
    rot(&disk, 0, Word::Delay);
    assert!(queue.pop().unwrap().is_none(), "too early");
    clock.advance(2 * HOUR);
    assert_eq!(pop_all(&queue), ["later"]);
    let stats = queue.stats();
    assert_eq!((queue.len(), stats.in_flight(), stats.delayed()), (0, 0, 0));
}

/// For each damaged record of a delayed message the whole segment was searched, and all of that
/// under one lock: half a megabyte of damage took a pop some seconds.
#[test]
fn damaged_records_of_delayed_messages_are_not_sought() {
    const MESSAGES: usize = 4000;
    // Some for each message, and not thousands for each that is lost.
    const LOADS: u64 = 20 * 3 * MESSAGES as u64;
    let disk = Arc::new(MemoryStorage::new());
    let (storage, watch) = watched(disk.clone());
    let (options, clock) = with_clock(&disk);
    let queue = options.storage(storage).segment_bytes(64 << 20).open("queue").unwrap();
    let batch = || (0..MESSAGES).map(|_| Message::new(&[7; 2000]).delay(SECOND));
    for _ in 0..3 {
        queue.push_batch(batch()).unwrap();
    }
    let names = files(&disk).into_iter().filter(|name| is_segment(name));
    let size = |name: &String| disk.read(name).unwrap().len();
    let largest = names.max_by_key(size).unwrap();
    let file = disk.open(&largest).unwrap();
    file.write_at(1 << 20, &vec![0xA5; 512 << 10]).unwrap();
    clock.advance(2 * SECOND);
    let before = watch.count(Load);
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let lost = queue.stats().lost();
    assert_eq!(jobs.len() as u64 + lost, 3 * MESSAGES as u64);
    assert!((200..300).contains(&lost), "{lost}");
    let loads = watch.count(Load) - before;
    assert!(loads < LOADS, "{loads} loads");
}

/// After a power cut a slot may never have been written, and only the record of a message says that
/// it is delayed: `peek` showed what `pop` did not hand out.
#[test]
fn a_message_whose_record_alone_is_delayed_is_not_shown_as_the_next() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.clone().open("queue").unwrap();
    queue.push(Message::new("later").delay(HOUR)).unwrap();
    queue.push("now").unwrap();
    queue.close().unwrap();
    let name = oldest_segment(&disk);
    let file = disk.open(&name).unwrap();
    file.write_at(file.size() - PAGE - SLOT, &[0; 16]).unwrap();
    let queue = options.open("queue").unwrap();
    assert_eq!(&queue.peek().unwrap().unwrap()[..], b"now");
    let due: Vec<_> = queue.iter().map(|message| message.unwrap().not_before()).collect();
    assert!(due[0].is_some() && due[1].is_none(), "{due:?}");
    assert_eq!(pop_all(&queue), ["now"]);
    assert!(queue.peek().unwrap().is_none());
    clock.advance(2 * HOUR);
    assert_eq!(&queue.peek().unwrap().unwrap()[..], b"later");
    assert_eq!(pop_all(&queue), ["later"]);
}

/// A message with a delay was acked, or purged, before the cursor came to it, and its slot went
/// bad. It was rebuilt, was in no place, and counted for the rest of the run.
#[test]
fn a_settled_slot_with_a_delay_that_goes_bad_is_in_a_place() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.max_messages(3).open("queue").unwrap();
    queue.push("a").unwrap();
    queue.push(Message::new("later").delay(HOUR)).unwrap();
    assert_eq!(queue.purge().unwrap(), 2);
    queue.push("c").unwrap();
    rot(&disk, 1, Word::State);
    assert_eq!(pop_all(&queue), ["c"]);
    assert_eq!((queue.len(), queue.delayed()), (0, 1), "it waits for its time again");
    clock.advance(2 * HOUR);
    assert_eq!(pop_all(&queue), ["later"]);
    queue.push_batch(["x", "y", "z"]).unwrap();
}

/// The same slot was met by a copy: its message came an hour early.
#[test]
fn a_settled_slot_with_a_delay_that_goes_bad_does_not_come_early_out_of_a_copy() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.open("queue").unwrap();
    queue.push(Message::new("later").delay(HOUR)).unwrap();
    for n in 0..99_u8 {
        queue.push(vec![n; 1500]).unwrap();
    }
    let jobs = queue.pop_batch(99).unwrap();
    let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job[0] % 10 == 0);
    queue.ack_batch(settled).unwrap();
    assert_eq!(queue.purge().unwrap(), 1);
    drop(kept);
    rot(&disk, 0, Word::State);
    queue.compact().unwrap();
    let early = queue.pop_batch(99).unwrap();
    assert_eq!((early.len(), queue.delayed()), (10, 1));
    queue.ack_batch(early).unwrap();
    clock.advance(2 * HOUR);
    assert_eq!(pop_all(&queue), ["later"]);
}

/// The slot of a waiting message went bad, and with it that of a settled one. The first was met,
/// and the slots were counted again: the other one counted as ready, and no pop handed it out.
#[test]
fn all_slots_that_went_bad_are_rebuilt_together() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    queue.ack_batch(queue.pop_batch(2).unwrap()).unwrap();
    for index in [0, 2] {
        rot(&disk, index, Word::State);
    }
    assert_eq!(pop_all(&queue), ["a", "c"]);
    assert_eq!((queue.len(), queue.damage().len()), (0, 2));
}

/// A delay went bad while a consumer had its message, and a copy was made: the copy had no delay at
/// all, so the cursor handed the message to another consumer.
#[test]
fn a_copy_keeps_what_memory_knows_of_a_delay_that_went_bad() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, clock) = with_clock(&disk);
    let queue = options.open("queue").unwrap();
    for n in 0..99_u8 {
        queue.push(vec![n; 1500]).unwrap();
        if n == 0 {
            queue.push(Message::new("held").delay(SECOND)).unwrap();
            queue.push(Message::new("later").delay(HOUR)).unwrap();
        }
    }
    clock.advance(2 * SECOND);
    let held = queue.pop().unwrap().unwrap();
    assert_eq!(&held[..], b"held");
    for index in [1, 2] {
        rot(&disk, index, Word::Delay);
    }
    let before = queue.len();
    assert_eq!(queue.purge().unwrap(), before + 1, "the delayed one waits, too");
    queue.push("new").unwrap();
    queue.compact().unwrap();
    assert_eq!(pop_all(&queue), ["new"]);
    held.ack().unwrap();
    assert_eq!((queue.len(), queue.in_flight(), queue.delayed()), (0, 0, 0));
}

/// A word of the table of numbers of a copy went bad while another message of it was in flight: its
/// message was passed by, and nothing told of the loss.
#[test]
fn a_number_that_goes_bad_beside_a_delivery_is_told() {
    let disk = Arc::new(MemoryStorage::new());
    let options = by_hand(disk.clone());
    let queue = options.clone().open("queue").unwrap();
    drop(take_three(&queue));
    queue.compact().unwrap();
    queue.close().unwrap();
    let queue = options.open("queue").unwrap();
    queue.push("new").unwrap();
    assert_eq!(queue.len(), 4);
    let held = queue.pop().unwrap().unwrap();
    rot_second_number(&disk);
    assert_eq!(pop_all(&queue).len(), 2);
    held.ack().unwrap();
    queue.maintain().unwrap();
    assert_eq!((queue.stats().lost(), queue.damage().len(), queue.len()), (1, 1, 0));
}

/// A delay went bad after its slot had been copied, while the copy was made, and then the slot was
/// stored to. The copy had no delay at all: a message that was given back was handed to two
/// consumers, and one that was put off came at once.
#[test]
fn a_delay_that_goes_bad_while_it_is_copied_stays_known() {
    for is_put_off in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let (options, clock) = with_clock(&disk);
        let queue = options.storage(storage.clone()).open("queue").unwrap();
        for n in 0..99_u8 {
            queue.push(vec![n; 1500]).unwrap();
            if n == 0 {
                queue.push(Message::new("held").delay(SECOND)).unwrap();
            }
        }
        clock.advance(2 * SECOND);
        let held = queue.pop().unwrap().unwrap();
        // All others are settled, and the cursor passes none.
        assert_eq!(queue.purge().unwrap(), 99);
        queue.push("new").unwrap();
        let before = files(&disk);
        let gate = Gate::closed();
        let (_open, waits) = (OpenAtEnd(gate.clone()), gate.clone());
        storage.rule(move |call| {
            let is_copy = is_segment(call.name) && !before.contains(&call.name.to_owned());
            if call.op == Op::Rename && is_copy {
                waits.pass();
            }
            Ok(())
        });
        let copier = queue.clone();
        let copying = call(move || copier.compact());
        until("the copy is made", || gate.has_waiting());
        if is_put_off {
            held.nack_after(HOUR).unwrap();
            rot(&disk, 1, Word::Delay);
        } else {
            rot(&disk, 1, Word::Delay);
            held.release().unwrap();
        }
        gate.open();
        assert_eq!(copying.result("the copy").unwrap().copies(), 1);
        if is_put_off {
            assert_eq!(pop_all(&queue), ["new"]);
            clock.advance(2 * HOUR);
            assert_eq!(pop_all(&queue), ["held"]);
        } else {
            let jobs = queue.pop_batch(9).unwrap();
            let payloads: Vec<_> = jobs.iter().map(|job| job.to_vec()).collect();
            assert_eq!(payloads, [b"held".to_vec(), b"new".to_vec()]);
        }
    }
}

/// Both words of the slot of a delayed message went bad between two runs. Its record still told of
/// the delay, but a copy stored that there was none: the message came early.
#[test]
fn a_lost_slot_of_a_delayed_message_does_not_come_early_out_of_a_copy() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, _clock) = with_clock(&disk);
    let queue = options.clone().open("queue").unwrap();
    queue.push(Message::new("later").delay(HOUR)).unwrap();
    for n in 0..99_u8 {
        queue.push(vec![n; 1500]).unwrap();
    }
    queue.ack_batch(queue.pop_batch(99).unwrap()).unwrap();
    queue.close().unwrap();
    rot(&disk, 0, Word::Delay);
    rot(&disk, 0, Word::State);
    let queue = options.open("queue").unwrap();
    queue.push("new").unwrap();
    queue.compact().unwrap();
    assert!(queue.stats().compacted_bytes() > 0, "it is copied");
    assert_eq!(pop_all(&queue), ["new"]);
}

/// The number of a message went bad in a copy that was made while a consumer had it. Its ack could
/// not find it, and its delivery held the file until the next open.
#[test]
fn a_delivery_whose_number_goes_bad_holds_no_file() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).open("queue").unwrap();
    let kept = take_three(&queue);
    queue.push("new").unwrap();
    assert_eq!(queue.compact().unwrap().copies(), 1);
    rot_second_number(&disk);
    assert_eq!(kept.into_iter().filter_map(|job| job.ack().err()).count(), 1);
    assert_eq!(pop_all(&queue), ["new"]);
    queue.maintain().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.segments(), stats.lost(), queue.len()), (1, 1, 0));
}
