//! Directories whose checks are right and whose numbers no keepq wrote. Each test is a story that
//! once went wrong.

use crate::craft::{Files, disk_of, exercise, files_of, name_of, options, within_time};
use crate::found_hooks::is_segment;
use crate::support::agree::agree;
use crate::support::craft::{
    ACTIVATION, Checkpoint, EPOCH, ORDINAL, PREDECESSOR, SEAL, SEQ_LIMIT, SOURCES, Segment, u64_at,
};
use keepq::fault::MemoryStorage;
use keepq::{Compaction, Error, Queue};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

const END: u64 = 1 << 62;
const DAY: u64 = 86_400_000;

/// The files of closed runs, each of which pushed four messages.
fn runs(number: u64) -> Files {
    let disk = Arc::new(MemoryStorage::new());
    for run in 0..number {
        let options = options(disk.clone()).compaction(Compaction::off());
        let queue = options.open("queue").unwrap();
        for n in 0..4 {
            queue.push(format!("message {}", 4 * run + n)).unwrap();
        }
        queue.close().unwrap();
    }
    files_of(&disk)
}

/// The segments, oldest first.
fn segments(files: &Files) -> Vec<Segment> {
    let segments = files.iter().filter(|(name, _)| is_segment(name));
    segments.map(|(_, bytes)| Segment::read(bytes.clone()).unwrap()).collect()
}

/// Puts a segment in, under the name that its ordinal has.
fn add(files: &mut Files, mut segment: Segment) {
    segment.mend();
    files.insert(name_of(u64_at(&segment.bytes, ORDINAL)), segment.bytes);
}

/// The segment under another ordinal.
fn numbered(segment: &Segment, ordinal: u64) -> Segment {
    let mut segment = segment.clone();
    segment.put(ORDINAL, ordinal);
    segment
}

/// The same as a copy that was made from these.
fn copy(segment: &Segment, ordinal: u64, sources: &[u64]) -> Segment {
    let mut copy = numbered(segment, ordinal);
    copy.make_copy(sources, 0);
    copy
}

fn without_checkpoint(mut files: Files) -> Files {
    files.remove("CHECKPOINT");
    files
}

fn exercise_in_time(what: &'static str, files: Files) {
    within_time(what, move || exercise(&files));
}

fn open(files: &Files) -> (Arc<MemoryStorage>, keepq::Result<Queue>) {
    let disk = disk_of(files);
    let queue = options(disk.clone()).open("queue");
    (disk, queue)
}

/// Copies that said that they were made from themselves, or from each other: open asked for ever
/// which was made from which, until its stack was full.
#[test]
fn copies_in_a_circle_are_looked_at_once() {
    let files = without_checkpoint(runs(2));
    let first = &segments(&files)[0];
    let old = u64_at(&first.bytes, ORDINAL);
    for circle in [vec![(50, vec![old, 50])], vec![(50, vec![old, 51]), (51, vec![old, 50])]] {
        let mut files = files.clone();
        for (ordinal, sources) in circle {
            add(&mut files, copy(first, ordinal, &sources));
        }
        add(&mut files, copy(first, 60, &[old]));
        exercise_in_time("circle", files);
    }
}

/// Forty layers of two copies, each made from both of the layer below: every way through them was
/// followed.
#[test]
fn layers_of_copies_are_looked_at_once() {
    let mut files = without_checkpoint(runs(2));
    let first = segments(&files)[0].clone();
    let old = u64_at(&first.bytes, ORDINAL);
    for layer in 0..40 {
        let below = [old, 98 + 2 * layer, 99 + 2 * layer];
        for n in 0..2 {
            add(&mut files, copy(&first, 100 + 2 * layer + n, &below));
        }
    }
    add(&mut files, copy(&first, 1000, &[old]));
    exercise_in_time("layers", files);
}

/// A segment that named itself, or a newer one, as the one before it: open followed them for ever.
#[test]
fn only_an_older_segment_is_taken_for_the_one_before() {
    let files = without_checkpoint(runs(3));
    let all = segments(&files);
    let ordinals: Vec<u64> = all.iter().map(|one| u64_at(&one.bytes, ORDINAL)).collect();
    for before in [[1, 1, 1], [2, 2, 1], [0, 2, 1], [2, 0, 0]] {
        for empty in [false, true] {
            let mut files = files.clone();
            for (mut segment, before) in all.clone().into_iter().zip(before) {
                segment.put(PREDECESSOR, ordinals[before]);
                segment.put(EPOCH, 1);
                if empty && before != 0 {
                    segment.forget_marks();
                }
                add(&mut files, segment);
            }
            exercise_in_time("predecessors", files);
        }
    }
}

/// Four hundred copies that were made from three hundred others each were compared with each other,
/// source by source: minutes for 25 MiB.
#[test]
fn many_copies_take_no_longer_than_their_bytes() {
    let mut files = without_checkpoint(runs(1));
    let first = segments(&files)[0].clone();
    let mut small = first.resized(12_288);
    for n in 0..400 {
        let sources: Vec<u64> = (0..300).map(|source| 100 + 300 * n + source).collect();
        small.put(ACTIVATION, 1000 + 10 * n);
        add(&mut files, copy(&small, 1_000_000 + n, &sources));
    }
    within_time("copies", move || {
        let (_, queue) = open(&files);
        assert_eq!(queue.unwrap().len(), 4 + 400 * 4);
    });
}

/// Numbers near their end: the next segment was one that open refuses, and what was pushed to it
/// was lost. Debug builds panicked.
#[test]
fn a_push_that_would_pass_a_limit_is_refused() {
    let files = runs(1);
    for (field, value) in
        [(SEQ_LIMIT, END), (SEQ_LIMIT, END - 1), (ORDINAL, END - 1), (EPOCH, END - 1)]
    {
        let mut files = files.clone();
        let mut segment = segments(&files)[0].clone();
        files.retain(|name, _| !is_segment(name));
        segment.put(field, value);
        add(&mut files, segment);
        for files in [without_checkpoint(files.clone()), files] {
            let (disk, queue) = open(&files);
            let queue = queue.unwrap();
            assert!(matches!(queue.push("more"), Err(Error::Corrupt { .. })), "{field} {value}");
            if !queue.is_empty() {
                queue.pop().unwrap().unwrap().ack().unwrap();
            }
            queue.close().unwrap();
            assert!(options(disk).open("queue").is_ok());
            exercise_in_time("near the end", files);
        }
    }
}

/// What is beyond a limit is no segment, and that is told.
#[test]
fn a_number_beyond_its_limit_is_reported() {
    let files = without_checkpoint(runs(2));
    for (field, value) in [
        (ORDINAL, END),
        (ORDINAL, 0),
        (EPOCH, 0),
        (EPOCH, u64::MAX),
        (SEQ_LIMIT, END + 1),
        (SEQ_LIMIT, u64::MAX),
        (ACTIVATION, 0),
        (ACTIVATION, END - 5),
        (ACTIVATION, u64::MAX - 1),
        (ACTIVATION + 8, 1 << 48),
        (ACTIVATION + 8, u64::MAX),
    ] {
        let mut files = files.clone();
        let (name, bytes) = files.iter().find(|(name, _)| is_segment(name)).unwrap();
        let (name, mut segment) = (name.clone(), Segment::read(bytes.clone()).unwrap());
        segment.put(field, value);
        segment.mend();
        files.insert(name.clone(), segment.bytes);
        let (_, queue) = open(&files);
        let queue = queue.unwrap();
        let is_told = queue.recovery().ignored().any(|(path, _)| path.ends_with(&name));
        assert!(is_told, "{field} {value}: {:?}", queue.recovery());
        assert_eq!(queue.len(), 4);
        drop(queue);
        exercise_in_time("beyond", files);
    }
}

/// The generation of CHECKPOINT at its end: the next one was taken for older, and the list of an
/// older run counted.
#[test]
fn generations_of_checkpoint_begin_again_in_a_new_file() {
    let mut files = runs(1);
    let mut checkpoint = Checkpoint::read(&files["CHECKPOINT"]).unwrap();
    checkpoint.generation = END - 1;
    files.insert("CHECKPOINT".to_string(), checkpoint.file());
    let (disk, queue) = open(&files);
    let queue = queue.unwrap();
    assert_eq!(queue.recovery().checkpoint(), keepq::CheckpointState::Used);
    queue.push("more").unwrap();
    queue.close().unwrap();
    let now = Checkpoint::read(&disk.read("CHECKPOINT").unwrap()).unwrap();
    assert_eq!(now.generation, 1);
    let queue = options(disk).open("queue").unwrap();
    assert!(queue.recovery().is_clean() && queue.len() == 5, "{:?}", queue.recovery());
    checkpoint.generation = END;
    files.insert("CHECKPOINT".to_string(), checkpoint.file());
    let (_, queue) = open(&files);
    assert_eq!(queue.unwrap().recovery().checkpoint(), keepq::CheckpointState::Damaged);
    exercise_in_time("generation", files);
}

/// A list that takes no room on the disk, because it is a hole, took 24 bytes of memory for each
/// three of its bytes; one that was longer than its bytes had to be read to its end.
#[test]
fn a_list_of_checkpoint_that_is_a_hole_is_damaged() {
    let files = runs(1);
    let whole = Checkpoint::read(&files["CHECKPOINT"]).unwrap();
    let start = whole.numbers[..3].to_vec();
    for (count, zeros) in [(20 << 20, 60 << 20), (u64::MAX, 100), (0, 0)] {
        for is_list in [true, false] {
            let mut checkpoint = whole.clone();
            checkpoint.numbers.clone_from(&start);
            // An empty list of segments, and the ranges behind it.
            checkpoint.numbers.extend(if is_list { vec![] } else { vec![0, 0] });
            checkpoint.numbers.push(count);
            checkpoint.numbers.resize(checkpoint.numbers.len() + zeros, 0);
            let mut files = files.clone();
            files.insert("CHECKPOINT".to_string(), checkpoint.file());
            let (_, queue) = open(&files);
            let queue = queue.unwrap();
            assert_eq!(queue.recovery().checkpoint(), keepq::CheckpointState::Damaged);
            assert_eq!(queue.len(), 4);
        }
    }
}

/// A Seq table that falls, and numbers that another segment has, too: `compact` made a copy, gave
/// it up, and chose the same again, for ever.
#[test]
fn numbers_that_do_not_rise_are_damage() {
    // Below what is possible; then in bounds, each by itself.
    let below = [[6, 4, 2, 0], [0, 3, 2, 1], [0, 1, 1, 2], [0, 1 << 40, 2, 3], [3, 3, 3, 3]];
    let within = [[0, 3, 3, 3], [0, 5, 4, 3], [0, 6, 4, 5], [0, 1, 6, 5], [0, 6, 6, 6]];
    for numbers in below.into_iter().chain(within) {
        let mut files = without_checkpoint(runs(2));
        let all = segments(&files);
        let mut falling = copy(&all[0], 50, &[40]);
        falling.put(SOURCES, u64_at(&falling.bytes, ACTIVATION) + 6);
        falling.put_numbers(&numbers);
        files.remove(&name_of(u64_at(&all[0].bytes, ORDINAL)));
        add(&mut files, falling);
        let (_, queue) = open(&files);
        let queue = queue.unwrap();
        let mut seqs = Vec::new();
        while let Some(job) = queue.pop().unwrap() {
            seqs.push(u64::from(job.seq()));
            job.release().unwrap();
            if seqs.len() > 20 {
                break;
            }
            let job = queue.pop().unwrap().unwrap();
            job.ack().unwrap();
        }
        assert!(seqs.is_sorted() && seqs.len() < 9, "{numbers:?} {seqs:?}");
        assert!(!queue.damage().is_empty(), "{numbers:?}");
        drop(queue);
        exercise_in_time("falling", files);
    }
}

/// Segments with the same numbers: the first Seqs of the log fell.
#[test]
fn of_two_segments_with_the_same_numbers_one_counts() {
    let mut files = without_checkpoint(runs(2));
    let all = segments(&files);
    add(&mut files, copy(&all[0], 50, &[40]));
    add(&mut files, copy(&all[1], 51, &[41]));
    let mut later = numbered(&all[0], 52);
    later.put(EPOCH, 9);
    add(&mut files, later);
    let (_, queue) = open(&files);
    let queue = queue.unwrap();
    assert_eq!((queue.len(), queue.recovery().ignored().count()), (8, 3));
    // Another one has each of the numbers of those that do not count.
    assert!(queue.recovery().damage().is_empty());
    let jobs = queue.pop_batch(100).unwrap();
    assert!(jobs.iter().map(keepq::Delivery::seq).is_sorted() && jobs.len() == 8);
    drop(jobs);
    drop(queue);
    exercise_in_time("overlap", files);
}

/// Epochs that fall with ordinals put the newer Seqs first.
#[test]
fn epochs_that_fall_do_not_turn_the_log_around() {
    let mut files = without_checkpoint(runs(4));
    for (n, mut segment) in segments(&files).into_iter().enumerate() {
        segment.put(EPOCH, 9 - n as u64);
        add(&mut files, segment);
    }
    let (_, queue) = open(&files);
    let queue = queue.unwrap();
    let jobs = queue.pop_batch(100).unwrap();
    let seqs: Vec<_> = jobs.iter().map(keepq::Delivery::seq).collect();
    assert!(seqs.is_sorted() && seqs.len() == 16, "{seqs:?}");
    drop(jobs);
    drop(queue);
    exercise_in_time("epochs", files);
}

/// Months between the segments, upwards or downwards: a copy that began with the wrong one had room
/// for none, and was chosen again; and a message older than its copy got another push time.
#[test]
fn a_copy_keeps_push_times_that_are_far_apart() {
    for days in [60, -60_i64] {
        let mut files = without_checkpoint(runs(6));
        let mut times = Vec::new();
        for (n, mut segment) in segments(&files).into_iter().enumerate() {
            let days = 10_000 + days * i64::try_from(n).unwrap();
            let time = u64::try_from(days).unwrap() * DAY;
            segment.put(ACTIVATION + 8, time);
            add(&mut files, segment);
            times.push(time);
        }
        within_time("times", move || {
            let (_, queue) = open(&files);
            let queue = queue.unwrap();
            let jobs = queue.pop_batch(100).unwrap();
            for (n, job) in jobs.into_iter().enumerate() {
                if n % 4 == 1 { job.release().unwrap() } else { job.ack().unwrap() }
            }
            queue.push("new").unwrap();
            let start = Instant::now();
            queue.compact().unwrap();
            assert!(start.elapsed() < Duration::from_secs(60));
            let pushed = queue.iter().map(|message| {
                let since = message.unwrap().pushed_at().duration_since(UNIX_EPOCH).unwrap();
                since.as_secs() / 86_400
            });
            let pushed: Vec<u64> = pushed.take(6).collect();
            assert_eq!(pushed, times.iter().map(|time| time / DAY).collect::<Vec<_>>());
        });
    }
}

/// Segments of one epoch, of which the ones between the first and the last hold nothing: they were
/// dropped, or have lost their marks. Where the last predecessor of all was a dropped one, nothing
/// was told of the numbers that were in it.
#[test]
fn numbers_of_dropped_segments_are_told_wherever_the_chain_ends() {
    const DROPPED: u64 = 5;
    // The ordinals are 10, 20, 30, 40, four numbers in each. Predecessors of the last three; those
    // that are without an activation; the first segment that is there; what is missing.
    type Case = ([u64; 3], &'static [usize], usize, Option<(u64, u64)>);
    let cases: [Case; 9] = [
        ([10, 20, 30], &[], 0, Some((DROPPED, 12))),
        ([0, 20, 30], &[], 0, Some((DROPPED, 12))),
        ([5, 20, 30], &[], 0, Some((DROPPED, 12))),
        ([15, 20, 30], &[], 0, Some((DROPPED, 12))),
        ([10, 0, 30], &[], 0, Some((9, 12))),
        ([0, 20, 30], &[1], 0, Some((9, 12))),
        ([0, 20, 30], &[2], 0, Some((DROPPED, 12))),
        ([0, 20, 30], &[1, 2], 0, None),
        ([10, 20, 30], &[2], 1, Some((DROPPED, 12))),
    ];
    for (predecessors, without, first, missing) in cases {
        let files = without_checkpoint(runs(4));
        let mut crafted = files.clone();
        crafted.retain(|name, _| !is_segment(name));
        for (n, segment) in segments(&files).iter().enumerate().skip(first) {
            let mut segment = numbered(segment, 10 * (n as u64 + 1));
            segment.put(EPOCH, 1);
            segment.put(PREDECESSOR, n.checked_sub(1).map_or(0, |before| predecessors[before]));
            if without.contains(&n) {
                segment.forget_marks();
            } else if n == 1 || n == 2 {
                segment.put(SEAL, 4096);
                segment.put(SEAL + 8, 0);
            }
            add(&mut crafted, segment);
        }
        let context = format!("{predecessors:?}, {without:?}, from {first}");
        let (_, queue) = open(&crafted);
        let queue = queue.unwrap();
        let told = queue.damage();
        let told = told.iter().map(|one| (one.first_seq().into(), one.last_seq().into()));
        assert_eq!(told.collect::<Vec<_>>(), Vec::from_iter(missing), "{context}");
        drop(queue);
        agree(&disk_of(&crafted), &context);
        exercise_in_time("dropped", crafted);
    }
}

/// A CHECKPOINT, or an unused segment, that says that no number was given out, not even 0: the next
/// one was 0, and the segment that it was in was one that open refuses.
#[test]
fn numbers_begin_at_1_whatever_the_limit_is() {
    let files = runs(1);
    let mut only_checkpoint = files.clone();
    only_checkpoint.retain(|name, _| !is_segment(name));
    let mut checkpoint = Checkpoint::read(&files["CHECKPOINT"]).unwrap();
    // Epoch, watermark, limit, no segments, `accounted`, no ranges, newest time, next ordinal.
    checkpoint.numbers = vec![1, 0, 0, 0, 0, 0, 1, 5];
    only_checkpoint.insert("CHECKPOINT".to_string(), checkpoint.file());
    let mut only_segment = without_checkpoint(files.clone());
    let mut segment = segments(&files)[0].clone();
    segment.put(SEQ_LIMIT, 0);
    segment.forget_marks();
    add(&mut only_segment, segment);
    for files in [only_checkpoint, only_segment] {
        agree(&disk_of(&files), "limit 0");
        let (disk, queue) = open(&files);
        let queue = queue.unwrap();
        assert_eq!(queue.push("first").unwrap(), 1.into());
        queue.close().unwrap();
        let queue = options(disk).open("queue").unwrap();
        assert_eq!(queue.pop().unwrap().unwrap().seq(), 1.into());
        drop(queue);
        exercise_in_time("limit 0", files);
    }
}

/// The tail of a seal that lies before the end of the records that it counts: what reaches behind
/// it was read all the same.
#[test]
fn no_record_of_a_sealed_segment_ends_behind_its_tail() {
    const END: u64 = 4096 + 4 * 40;
    for (tail, whole) in [(END, 4), (END - 8, 3), (END - 40, 3), (END - 41, 2), (4096, 0)] {
        let mut files = without_checkpoint(runs(2));
        let mut first = segments(&files)[0].clone();
        assert_eq!(u64_at(&first.bytes, SEAL), END);
        first.put(SEAL, tail);
        add(&mut files, first);
        agree(&disk_of(&files), &format!("tail {tail}"));
        let (_, queue) = open(&files);
        let queue = queue.unwrap();
        let jobs = queue.pop_batch(9).unwrap();
        let seqs: Vec<u64> = jobs.iter().map(|job| job.seq().into()).collect();
        let expected: Vec<u64> = (1..=whole).chain(5..=8).collect();
        assert_eq!(seqs, expected, "tail {tail}");
        assert_eq!(queue.damage().len(), 4 - whole as usize, "tail {tail}");
        drop(jobs);
        drop(queue);
        exercise_in_time("tail", files);
    }
}
