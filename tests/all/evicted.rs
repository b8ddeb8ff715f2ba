//! Maps that nobody needs go out of memory in steps, and recycled segments are cleared in steps.

use crate::found_hooks::{Gate, OpenAtEnd, files, is_segment, is_temporary, until};
use crate::found_support::{Call, call};
use crate::support::OverAtEnd;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Compaction, Delivery, Durability, Options, Queue};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{current, scope, sleep};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// The first call for a map evicts so much at most.
const PIECE: u64 = 256 << 10;

/// Segments of 1 MiB.
fn options(storage: &Arc<Watched>) -> Options {
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    options.segment_bytes(MIB).shrink_after(None)
}

fn push_some(queue: &Queue, number: u64) {
    (0..number).for_each(|_| assert!(queue.push(vec![7; 16 << 10]).is_ok()));
}

fn settle_all(queue: &Queue) {
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
}

fn segments(disk: &MemoryStorage) -> Vec<String> {
    let mut segments: Vec<_> = files(disk).into_iter().filter(|name| is_segment(name)).collect();
    segments.sort();
    segments
}

/// The parts that were evicted, each with the name of its segment, its offset and its length.
type Parts = Arc<Mutex<Vec<(String, u64, u64)>>>;

fn evicted(storage: &Watched) -> Parts {
    let parts = Parts::default();
    let seen = parts.clone();
    storage.rule(move |call| {
        if call.op == Op::Evict {
            seen.lock().unwrap().push((call.name.to_string(), call.offset, call.len));
        }
        Ok(())
    });
    parts
}

/// Each byte of it once, from start to end. A message of it is held for as long as others are
/// pushed and settled, so that the background gives its map up once, however far it is meanwhile.
#[test]
fn a_segment_that_is_left_goes_out_of_memory_in_steps_before_it_is_let_go() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let parts = evicted(&storage);
    let queue = options(&storage).open("queue").unwrap();
    push_some(&queue, 1);
    let first = segments(&disk)[0].clone();
    let held = queue.pop().unwrap().unwrap();
    push_some(&queue, 69);
    settle_all(&queue);
    held.ack().unwrap();
    until("the first segment goes", || !segments(&disk).contains(&first));
    let parts = parts.lock().unwrap().clone();
    let mut end = 0;
    for (_, offset, len) in parts.iter().filter(|(name, ..)| *name == first) {
        assert!(
            *offset == end && (*offset > 0 || *len <= PIECE),
            "{len} bytes at {offset}, after {end}"
        );
        end += len;
    }
    assert_eq!(end, MIB);
}

/// A caller that wants the disk back takes a map as it is, after the step that is under way.
#[test]
fn who_wants_room_waits_for_one_step() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    push_some(&queue, 1);
    let first = segments(&disk)[0].clone();
    let gate = Gate::closed();
    let (here, gated) = (gate.clone(), first.clone());
    storage.rule(move |call| {
        if call.op == Op::Evict && call.name == gated {
            here.pass();
        }
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    push_some(&queue, 70);
    settle_all(&queue);
    until("a step begins", || gate.has_waiting());
    let maintaining = queue.clone();
    let maintained = call(move || maintaining.maintain());
    maintained.asleep();
    assert!(segments(&disk).contains(&first), "it waits");
    // For one step; the next one would wait for the gate.
    gate.give_ticket();
    maintained.result("maintain").unwrap();
    assert!(!segments(&disk).contains(&first));
}

/// The background did nothing else as long as others mapped segments faster than it evicted them.
#[test]
fn other_work_goes_on_while_maps_come_and_go() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let interval = Durability::Interval(Duration::from_millis(1));
    let options = options(&storage).durability(interval).compaction(Compaction::off());
    let queue = options.open_segments(8).open("queue").unwrap();
    let push = |_| queue.push(vec![7; 16 << 10]).unwrap();
    let seqs: Vec<_> = (0..1200).map(push).collect();
    queue.maintain().unwrap();
    let (syncs, is_over) = (Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
    let counted = syncs.clone();
    storage.rule(move |call| {
        counted.fetch_add(u64::from(call.op == Op::Sync && is_segment(call.name)), SeqCst);
        if call.op == Op::Evict {
            sleep(Duration::from_micros(200));
        }
        Ok(())
    });
    scope(|scope| {
        scope.spawn(|| {
            let mut looked = seqs.iter().cycle().step_by(61);
            while !is_over.load(SeqCst) {
                queue.get(*looked.next().unwrap()).unwrap().unwrap();
            }
        });
        let _over = OverAtEnd(&is_over);
        until("there are syncs", || {
            queue.push("small").unwrap();
            syncs.load(SeqCst) > 20
        });
    });
}

/// A consumer that found no room for a map heard of it, although the background was about to give
/// one up.
#[test]
fn who_finds_no_room_for_a_map_waits_for_one_that_is_evicted() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let options = || options(&storage).compaction(Compaction::off());
    let queue = options().open("queue").unwrap();
    push_some(&queue, 220);
    queue.close().unwrap();
    let [first, _, third, ..] = &segments(&disk)[..] else { panic!("there are more") };
    let (first, third) = (first.clone(), third.clone());
    let gate = Gate::closed();
    let (here, maps) = (gate.clone(), AtomicU64::new(0));
    let refused = Arc::new(AtomicU64::new(0));
    let counted = refused.clone();
    storage.rule(move |call| {
        match call.op {
            Op::Map if call.name == first => _ = maps.fetch_add(1, SeqCst),
            Op::Unmap if call.name == first => _ = maps.fetch_sub(1, SeqCst),
            Op::Evict if call.name == first => here.pass(),
            Op::Map if call.name == third && maps.load(SeqCst) > 0 => {
                counted.fetch_add(1, SeqCst);
                return Err(ErrorKind::OutOfMemory.into());
            }
            _ => {}
        }
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    let queue = options().open("queue").unwrap();
    let mut jobs = queue.pop_batch(100).unwrap();
    // Some of the second segment, so that the first one is left; it is not done.
    let _seconds = jobs.split_off(70);
    jobs.remove(0).nack_after(Duration::from_secs(3600)).unwrap();
    queue.ack_batch(jobs).unwrap();
    // That asks for upkeep.
    push_some(&queue, 100);
    until("a step begins", || gate.has_waiting());
    let popping = queue.clone();
    let popped =
        call(move || (0..100).try_for_each(|_| popping.pop_batch(1).map(std::mem::forget)));
    until("there is no room", || refused.load(SeqCst) > 0);
    gate.open();
    popped.result("pop").unwrap();
}

/// A consumer unmapped each segment above the limit itself, while the background had time for it.
/// Where it has none, the consumer unmaps one with each that it maps, and the limit is kept.
#[test]
fn a_consumer_unmaps_nothing_unless_the_background_does_not_keep_up() {
    const LIMIT: u64 = 16;
    /// The segment that is read.
    const MORE: u64 = 1;
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let options = || {
        let options = options(&storage).compaction(Compaction::off());
        options.open_segments(LIMIT).segment_bytes(256 << 10)
    };
    let queue = options().open("queue").unwrap();
    let seqs: Vec<_> = (0..1200).map(|_| queue.push(vec![7; 16 << 10]).unwrap()).collect();
    queue.close().unwrap();
    let (gate, is_held) = (Gate::closed(), Arc::new(AtomicBool::new(false)));
    let (here, holds, consumer) = (gate.clone(), is_held.clone(), current().id());
    let (maps, unmaps) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (mapped, unmapped) = (maps.clone(), unmaps.clone());
    let evicted = Mutex::new(HashSet::new());
    storage.rule(move |call| {
        match call.op {
            Op::Map => {
                mapped.fetch_add(1, SeqCst);
                evicted.lock().unwrap().remove(call.name);
            }
            Op::Evict => _ = evicted.lock().unwrap().insert(call.name.to_string()),
            Op::Unmap => {
                mapped.fetch_sub(1, SeqCst);
                // One that goes while it is copied from is evicted, and goes after that.
                let is_mine = current().id() == consumer;
                let is_whole = is_mine && !evicted.lock().unwrap().contains(call.name);
                unmapped.fetch_add(u64::from(is_whole), SeqCst);
            }
            // The background syncs the segment that is settled before it lets it go.
            Op::Sync if holds.load(SeqCst) => here.pass(),
            _ => {}
        }
        Ok(())
    });
    let queue = options().open("queue").unwrap();
    let _open = OpenAtEnd(gate.clone());
    // A segment holds fifteen. Not in the newest one, which may be mapped besides.
    let looked = || seqs[100..1150].iter().step_by(15);
    for seq in looked() {
        assert!(queue.get(*seq).unwrap().is_some());
        until("there is room for more maps", || maps.load(SeqCst) < LIMIT);
    }
    assert_eq!(unmaps.load(SeqCst), 0);
    is_held.store(true, SeqCst);
    queue.ack_batch(queue.pop_batch(20).unwrap()).unwrap();
    until("the background is held up", || gate.has_waiting());
    unmaps.store(0, SeqCst);
    for seq in looked() {
        let before = unmaps.load(SeqCst);
        assert!(queue.get(*seq).unwrap().is_some());
        assert!(unmaps.load(SeqCst) <= before + 1);
        assert!(maps.load(SeqCst) <= LIMIT + MORE, "{} maps", maps.load(SeqCst));
    }
    assert!(unmaps.load(SeqCst) > 0);
}

/// What was stored since the last round, up to where pushes go on.
#[test]
fn a_round_of_syncs_evicts_what_it_covers() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let parts = evicted(&storage);
    // No background, which would do it at its own time.
    let queue = options(&storage).background(false).open("queue").unwrap();
    let mut expected = Vec::new();
    // 64 KiB are less than a whole part where the next push goes on in it.
    for (kib, part) in [(300, Some((0, 256 << 10))), (1, None), (130, Some((256 << 10, 128 << 10)))]
    {
        queue.push(vec![7; kib << 10]).unwrap();
        queue.sync().unwrap();
        expected.extend(part);
        let parts = parts.lock().unwrap();
        let parts: Vec<_> = parts.iter().map(|&(_, offset, len)| (offset, len)).collect();
        assert_eq!(parts, expected, "after {kib} KiB more");
    }
}

/// A thousand small messages for each of these numbers, which they hold.
fn push_small(queue: &Queue, numbers: std::ops::Range<u64>) {
    let numbered = numbers.flat_map(|number| (0..1000).map(move |_| number.to_le_bytes()));
    queue.push_batch(numbered.map(Vec::from)).unwrap();
}

fn number_of(job: &Delivery) -> u64 {
    u64::from_le_bytes(job[..8].try_into().unwrap())
}

/// Fills two segments with small messages, settles them, and returns once the first one is being
/// cleared, in the second step; the stores so far; and how many numbers the messages have.
fn in_the_middle_of_clearing(
    disk: &MemoryStorage,
    storage: &Watched,
    queue: &Queue,
) -> (Arc<Gate>, Arc<AtomicU64>, u64) {
    push_small(queue, 0..1);
    let first = segments(disk)[0].clone();
    let has_gone_on = Arc::new(AtomicBool::new(false));
    let goes_on = has_gone_on.clone();
    storage.rule(move |call| {
        let is_push = call.op == Op::Store && is_segment(call.name) && call.name != first;
        goes_on.fetch_or(is_push, SeqCst);
        Ok(())
    });
    let mut numbers = 1;
    while !has_gone_on.load(SeqCst) {
        push_small(queue, numbers..numbers + 1);
        numbers += 1;
    }
    let gate = Gate::closed();
    let (here, stores) = (gate.clone(), Arc::new(AtomicU64::new(0)));
    let counted = stores.clone();
    storage.rule(move |call| {
        let clears = is_temporary(call.name) && call.op == Op::Store && call.offset > 0;
        if clears && counted.fetch_add(1, SeqCst) == IN_SECOND_STEP {
            here.pass();
        }
        Ok(())
    });
    settle_all(queue);
    until("a segment is cleared", || gate.has_waiting());
    (gate, stores, numbers)
}

/// A step clears 32 pages.
const IN_SECOND_STEP: u64 = 50;

/// The third one finds no room in the active segment.
fn push_three_large(queue: &Queue) -> Call<()> {
    let queue = queue.clone();
    call(move || (0..3).for_each(|_| assert!(queue.push(vec![255; 400 << 10]).is_ok())))
}

/// A recycled segment that is needed before all old slots are cleared has none of them.
#[test]
fn a_recycled_segment_that_is_needed_at_once_has_no_old_slots() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    let (gate, stores, _) = in_the_middle_of_clearing(&disk, &storage, &queue);
    let _open = OpenAtEnd(gate.clone());
    let pushed = push_three_large(&queue);
    pushed.asleep();
    let cleared = stores.load(SeqCst);
    gate.open();
    pushed.result("push");
    assert!(stores.load(SeqCst) > cleared + 50, "the push waited for the rest");
    push_small(&queue, 0..8);
    queue.close().unwrap();
    let queue = options(&storage).open("queue").unwrap();
    let jobs = queue.pop_batch(10_000).unwrap();
    assert!(jobs.iter().all(|job| job.attempts() == 1));
    assert_eq!((jobs.len(), queue.stats().lost()), (8003, 0));
}

/// The power is cut while that happens, at each call but most of the stores: nothing that was
/// settled durably in its last use comes back, and nothing else is lost.
#[test]
fn a_power_cut_while_a_recycled_segment_is_cleared_brings_nothing_back() {
    const KEPT: u64 = u64::MAX - 1;
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    let (gate, _, numbers) = in_the_middle_of_clearing(&disk, &storage, &queue);
    let _open = OpenAtEnd(gate.clone());
    queue.push(KEPT.to_le_bytes().to_vec()).unwrap();
    queue.sync().unwrap();
    let (found, calls) = (Arc::new(Mutex::new(Vec::new())), AtomicU64::new(0));
    let (cut_disk, finds) = (disk.clone(), found.clone());
    let look = move |image| {
        let image = Arc::new(cut_disk.power_cut(image));
        let found = Queue::options().storage(image).background(false).open("queue").unwrap();
        let jobs = found.pop_batch(10_000).unwrap();
        let of_kept = jobs.iter().filter(|job| number_of(job) == KEPT).count();
        let of_first = jobs.iter().filter(|job| number_of(job) < numbers - 1).count();
        let large = jobs.iter().filter(|job| number_of(job) == u64::MAX).count();
        (large, (of_kept, of_first, found.stats().lost(), found.damage().len()))
    };
    let cut = look.clone();
    storage.rule(move |call| {
        let call_number = calls.fetch_add(u64::from(call.op.is_change()), SeqCst);
        if !call.op.is_change() || call.op.is_store() && call_number % 16 != 0 {
            return Ok(());
        }
        for image in [CrashImage::Oldest, CrashImage::Newest, CrashImage::Mixed(call_number)] {
            finds.lock().unwrap().push(cut(image).1);
        }
        Ok(())
    });
    let pushed = push_three_large(&queue);
    pushed.asleep();
    gate.open();
    pushed.result("push");
    storage.no_rule();
    let found = found.lock().unwrap().clone();
    assert!(found.len() > 20, "{} power cuts", found.len());
    assert!(found.iter().all(|found| *found == (1, 0, 0, 0)), "{found:?}");
    queue.sync().unwrap();
    for image in [CrashImage::Oldest, CrashImage::Newest, CrashImage::Mixed(1)] {
        assert_eq!(look(image), (3, (1, 0, 0, 0)), "{image:?}");
    }
}

/// The last step of a recycled segment fails: that is told, its file goes, and pushes go on.
#[test]
fn a_late_failure_of_a_recycled_segment_is_told_and_costs_its_file() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    let (gate, ..) = in_the_middle_of_clearing(&disk, &storage, &queue);
    let _open = OpenAtEnd(gate.clone());
    let has_failed = AtomicBool::new(false);
    let [cleared] = &temporaries(&disk)[..] else { panic!("there is one") };
    let cleared = cleared.clone();
    let failing = cleared.clone();
    storage.rule(move |call| {
        let fails = call.op == Op::Write && call.name == failing;
        if fails && !has_failed.swap(true, SeqCst) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(())
    });
    gate.open();
    let told = || queue.stats().last_background_error().map(ToString::to_string);
    until("that is told", || told().is_some_and(|told| told.contains(&cleared)));
    until("its file goes", || !temporaries(&disk).contains(&cleared));
    push_some(&queue, 200);
    settle_all(&queue);
    queue.maintain().unwrap();
    // The background may still make a file, or let one go; room is kept for a next CHECKPOINT.
    until("what is counted is what there is", || {
        let there: u64 = files(&disk).iter().map(|name| bytes_of(&disk, name)).sum();
        queue.stats().disk_bytes().abs_diff(there) < 64 << 10
    });
}

fn bytes_of(disk: &MemoryStorage, name: &str) -> u64 {
    disk.open(name).map_or(0, |file| file.size())
}

fn temporaries(disk: &MemoryStorage) -> Vec<String> {
    files(disk).into_iter().filter(|name| is_temporary(name)).collect()
}

/// While a step of the background is under way, whatever it is, nobody waits for it.
#[test]
fn a_step_holds_no_lock_of_pushes_and_pops() {
    type Named = fn(&str) -> bool;
    for (op, is_named) in [
        (Op::Evict, is_segment as Named),
        (Op::Store, is_temporary as Named),
        (Op::Write, is_temporary as Named),
    ] {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let queue = options(&storage).open("queue").unwrap();
        let gate = Gate::closed();
        let here = gate.clone();
        storage.rule(move |call| {
            let is_background = current().name().is_some_and(|name| name.starts_with("keepq"));
            if is_background && call.op == op && is_named(call.name) && call.offset > 0 {
                here.pass();
            }
            Ok(())
        });
        let _open = OpenAtEnd(gate.clone());
        until("a step is under way", || {
            push_some(&queue, 1);
            settle_all(&queue);
            gate.has_waiting()
        });
        let working = queue.clone();
        let worked = call(move || {
            push_some(&working, 5);
            let job = working.pop_timeout(Duration::from_secs(1)).unwrap().unwrap();
            job.nack().unwrap();
            let seq = working.push("looked at").unwrap();
            working.get(seq).unwrap().unwrap();
            settle_all(&working);
            (working.stats().in_flight(), working.len())
        });
        assert_eq!(worked.result("the work meanwhile"), (0, 0), "{op:?}");
    }
}
