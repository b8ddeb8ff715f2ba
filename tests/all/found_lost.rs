//! Found faults: a message that is found damaged leaves every place where it waited, is settled
//! once, and costs no other message.

use super::found_hooks::{Part, Way, by_hand, flip, spoil};
use crate::support::watched::{Op, Watched};
use keepq::fault::{FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Compaction, Delivery, Durability, Error, Message, Options, Overflow, Queue};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A kilobyte with the number in front: some fifty fill a segment.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(1000, 7);
    payload
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

fn on(storage: Arc<dyn Storage>) -> Options {
    let options = by_hand(storage).durability(Durability::Os).backoff(Backoff::none());
    options.compaction(Compaction::default().idle(Duration::ZERO)).max_attempts(0)
}

/// Takes and settles all that is ready.
fn settle_all(queue: &Queue) {
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
}

fn give_back(jobs: Vec<Delivery>) {
    for job in jobs {
        job.release().unwrap();
    }
}

/// Settles nearly all ready messages and gives the others back, so that compaction has work.
fn settle_most(queue: &Queue) {
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| number(job) % 20 == 1);
    queue.ack_batch(settled).unwrap();
    give_back(left);
}

/// How a message came to wait for its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Delayed {
    /// By its push.
    Push,
    NackAfter,
    /// Its lease ran out, and the queue has a backoff.
    Backoff,
}

/// The message that is damaged; its Seq is one more.
const LOST: u64 = 10;

/// A queue of a hundred messages, one of which is delayed, and the delivery of that one if its
/// lease ran out.
fn with_one_delayed(
    disk: Arc<MemoryStorage>,
    clock: &Arc<ManualClock>,
    delayed: Delayed,
) -> (Queue, Option<Delivery>) {
    let options = on(disk).clock(Arc::clone(clock));
    let queue = match delayed {
        Delayed::Backoff => options.visibility_timeout(SECOND).backoff(Backoff::exponential(HOUR)),
        Delayed::Push | Delayed::NackAfter => options,
    };
    let queue = queue.open("queue").unwrap();
    for number in 0..100 {
        let message = Message::new(payload(number));
        let is_it = number == LOST && delayed == Delayed::Push;
        queue.push(if is_it { message.delay(HOUR) } else { message }).unwrap();
    }
    if delayed == Delayed::Push {
        return (queue, None);
    }
    let mut jobs = queue.pop_batch(11).unwrap();
    let job = jobs.pop().unwrap();
    queue.ack_batch(jobs).unwrap();
    if delayed == Delayed::NackAfter {
        job.nack_after(HOUR).unwrap();
        return (queue, None);
    }
    clock.advance(2 * SECOND);
    (queue, Some(job))
}

/// Calls that may find a message damaged.
const FINDERS: [Way; 9] = [
    ("pop", |queue| {
        while let Some(job) = queue.pop().unwrap() {
            job.ack().unwrap();
        }
    }),
    ("pop_batch", settle_all),
    ("peek", |queue| {
        while queue.peek().unwrap().is_some() {
            if let Some(job) = queue.pop().unwrap() {
                job.ack().unwrap();
            }
        }
    }),
    ("iter", |queue| assert!(queue.iter().all(|message| message.is_ok()))),
    ("get", |queue| drop(queue.get((LOST + 1).into()))),
    ("stuck", |queue| assert!(!queue.stuck(9).unwrap().is_empty())),
    ("compact", |queue| {
        settle_most(queue);
        assert!(queue.compact().unwrap().copies() > 0);
    }),
    ("maintain", |queue| {
        settle_most(queue);
        queue.maintain().unwrap();
    }),
    ("purge", |queue| assert!(queue.purge().unwrap() > 0)),
];

/// Pushes one message to a queue in which no other one is ready, and tells what is wrong about the
/// numbers of the queue then. `delayed`: how many messages wait for their time.
fn wrong_counts(queue: &Queue, delayed: u64) -> Option<String> {
    queue.push("one").unwrap();
    let (len, is_empty, told) = (queue.len(), queue.is_empty(), queue.delayed());
    let there = queue.pop().unwrap();
    let is_right = (len, is_empty, told, there.is_some()) == (1, false, delayed, true);
    if let Some(job) = there {
        job.ack().unwrap();
    }
    let found = format!("len {len}, is_empty {is_empty}, delayed {told}");
    (!is_right).then(|| format!("with one message ready and {delayed} delayed: {found}"))
}

/// A delayed message was found damaged, by a pop that passed over a hole in the file, or by
/// compaction. It counted as lost, and it still counted as delayed. So `len` was one too low from
/// then on, and a consumer that looked at `is_empty` left a ready message alone.
#[test]
fn a_lost_message_is_no_longer_delayed() {
    let mut wrong = Vec::new();
    for delayed in [Delayed::Push, Delayed::NackAfter, Delayed::Backoff] {
        let by_push = delayed == Delayed::Push;
        let header = if by_push { Part::HeaderBeforeDelay } else { Part::Header };
        let hole = [(LOST - 1, Part::Header), (LOST, header)];
        let damages = [&hole[1..], &[(LOST, Part::Payload)], if by_push { &hole } else { &[] }];
        for damage in damages.into_iter().filter(|damage| !damage.is_empty()) {
            for (name, finder) in FINDERS {
                let (disk, clock) = (Arc::new(MemoryStorage::new()), manual_clock());
                let (queue, _unanswered) = with_one_delayed(disk.clone(), &clock, delayed);
                assert_eq!(queue.delayed(), 1);
                for &(number, part) in damage {
                    spoil(&disk, &payload(number), part);
                }
                finder(&queue);
                settle_all(&queue);
                let is_waiting = matches!(queue.is_acked((LOST + 1).into()), Ok(false));
                let counts = wrong_counts(&queue, u64::from(is_waiting));
                // It is found when its time comes, if not before.
                clock.advance(2 * HOUR);
                assert!(queue.pop().unwrap().is_none(), "{delayed:?}, {damage:?}, {name}");
                let counts = counts.or_else(|| wrong_counts(&queue, 0));
                let context = format!("delayed {delayed:?}, damaged {damage:?}, {name}");
                wrong.extend(counts.map(|counts| format!("{context}: {counts}")));
                if name != "purge" {
                    let lost = queue.stats().lost();
                    assert_eq!(lost, damage.len() as u64, "{context}");
                    let told = queue.is_acked((LOST + 1).into());
                    assert!(matches!(told, Err(Error::UnknownSeq { .. })), "{context}: {told:?}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The same with a message that was on its way to the dead letters, which had no room for it.
#[test]
fn a_lost_message_is_no_longer_dying() {
    let mut wrong = Vec::new();
    for (name, finder) in FINDERS {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        storage.rule(|call| {
            let is_it = call.op == Op::Create && call.name.starts_with("dead/");
            if is_it { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        let options = || on(storage.clone()).clock(manual_clock());
        let queue = options().open("queue").unwrap();
        (0..100).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
        let mut jobs = queue.pop_batch(11).unwrap();
        jobs.pop().unwrap().reject("no").unwrap();
        jobs.pop().unwrap().release().unwrap();
        queue.ack_batch(jobs).unwrap();
        assert_eq!(queue.stats().dying(), 1);
        queue.close().unwrap();
        let queue = options().open("queue").unwrap();
        assert_eq!((queue.len(), queue.stats().dying()), (90, 1));
        // The dead letters refuse it once more, and then it is left alone for a while.
        assert!(queue.maintain().is_err());
        for number in [LOST - 1, LOST] {
            spoil(&disk, &payload(number), Part::Header);
        }
        if name == "maintain" {
            settle_most(&queue);
            // The dead letters may refuse a message again.
            queue.maintain().ok();
        } else {
            finder(&queue);
        }
        settle_all(&queue);
        let is_lost = matches!(queue.is_acked((LOST + 1).into()), Err(Error::UnknownSeq { .. }));
        let dying = queue.stats().dying();
        let counts = wrong_counts(&queue, 0);
        let counts = counts.or_else(|| {
            (is_lost && dying > 0).then(|| format!("it is lost, and {dying} messages are dying"))
        });
        wrong.extend(counts.map(|counts| format!("{name}: {counts}")));
        storage.no_rule();
        queue.maintain().unwrap();
        let stats = queue.stats();
        assert_eq!((stats.dying(), stats.dead_letters()), (0, 0), "{name}: {stats:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Calls that find the first message damaged, after its lease ran out.
const FIND_FIRST: [Way; 5] = [
    ("pop", |queue| queue.pop().unwrap().unwrap().release().unwrap()),
    ("pop_batch", |queue| give_back(queue.pop_batch(2).unwrap())),
    ("push", |queue| assert!(queue.push("over the oldest").is_ok())),
    ("compact", |queue| assert!(queue.compact().is_ok())),
    ("maintain", |queue| queue.maintain().unwrap()),
];

type Answer = fn(Delivery) -> keepq::Result<()>;

/// Answers that a consumer may give too late.
const LATE: [(&str, Answer); 7] = [
    ("ack", Delivery::ack),
    ("nack", Delivery::nack),
    ("nack_after", |job| job.nack_after(HOUR)),
    ("release", Delivery::release),
    ("reject", |job| job.reject("late")),
    ("extend", |job| job.extend(HOUR)),
    ("drop", |job| {
        let seq = job.seq();
        drop(job);
        // What any other answer says.
        Err(Error::LeaseExpired { seq })
    }),
];

/// A lease ran out, and the message was found damaged and settled as lost. Then the consumer
/// answered, too late. keepq took the answer and settled the message a second time. So the file
/// seemed to hold no more messages while one still waited in it, and keepq removed the file: that
/// message was gone, `is_acked` called it settled, and no damage was reported.
#[test]
fn a_late_answer_to_a_lost_message_does_nothing() {
    let mut wrong = Vec::new();
    for backoff in [Backoff::none(), Backoff::exponential(10 * SECOND)] {
        for part in [Part::Header, Part::Payload] {
            for (finder, find) in FIND_FIRST {
                if (finder, part) == ("push", Part::Payload) {
                    // It drops the message without a look at the payload.
                    continue;
                }
                for (name, answer) in LATE {
                    let told = late_answer(backoff, part, find, answer);
                    let context = format!("{part:?} damaged, found by {finder}, then {name}");
                    wrong.extend(told.err().map(|told| format!("{context}: {told}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn late_answer(
    backoff: Backoff,
    part: Part,
    find: fn(&Queue),
    answer: Answer,
) -> Result<(), String> {
    let (disk, clock) = (Arc::new(MemoryStorage::new()), manual_clock());
    let options = on(disk.clone()).clock(clock.clone()).visibility_timeout(SECOND);
    let options = options.backoff(backoff).max_messages(5).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    (0..3).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
    // In the next files.
    (3..5).for_each(|number| assert!(queue.push(payload(number).repeat(55)).is_ok()));
    let first = queue.pop().unwrap().unwrap();
    clock.advance(20 * SECOND);
    let stats = queue.stats();
    assert_eq!((stats.in_flight(), stats.ready() + stats.delayed()), (0, 5));
    // Its backoff is over, too.
    clock.advance(20 * SECOND);
    spoil(&disk, &payload(0), part);
    find(&queue);
    let is_lost = |queue: &Queue| matches!(queue.is_acked(1.into()), Err(Error::UnknownSeq { .. }));
    if !is_lost(&queue) {
        return Err("it was not found".into());
    }
    let answered = answer(first);
    if !matches!(answered, Err(Error::LeaseExpired { .. })) {
        return Err(format!("the answer gave {answered:?}"));
    }
    // The others are settled, but for the last one of the same file.
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| number(job) == 2);
    let acked = settled.len() as u64;
    queue.ack_batch(settled).unwrap();
    give_back(kept);
    queue.maintain().unwrap();
    let (told, got) = (queue.is_acked(3.into()), queue.get(3.into()).map(|got| got.is_some()));
    if !matches!((&told, &got), (Ok(false), Ok(true))) {
        return Err(format!("of a message that waits: is_acked {told:?}, get {got:?}"));
    }
    let stats = queue.stats();
    let places = [stats.ready(), stats.in_flight(), stats.delayed(), stats.dying()];
    let done = (stats.lost(), stats.acked(), stats.dead_letters(), stats.duplicated());
    if places != [1, 0, 0, 0] || done != (1, acked, 0, 0) || !is_lost(&queue) {
        return Err(format!("{stats:?}"));
    }
    let last = queue.pop().unwrap().map(|job| number(&job));
    if last == Some(2) { Ok(()) } else { Err(format!("pop gave {last:?}")) }
}

/// A queue of a hundred messages: forty are settled, and these others have damaged headers.
fn damaged(headers: &[u64]) -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).open("queue").unwrap();
    (0..100).for_each(|number| assert!(queue.push(payload(number)).is_ok()));
    queue.ack_batch(queue.pop_batch(40).unwrap()).unwrap();
    queue.close().unwrap();
    for &number in headers {
        spoil(&disk, &payload(number), Part::Header);
    }
    disk.killed()
}

/// Which of the sixty messages that wait the queue does not hand out.
fn missing(queue: &Queue) -> Vec<u64> {
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let here: Vec<u64> = jobs.iter().map(|job| number(job)).collect();
    (40..100).filter(|number| !here.contains(number)).collect()
}

/// Compaction met a record with a damaged header, and stored in its slot the place of the next
/// record. Then the copy was given up, after an error or by a kill. The next reader took that place
/// for the end of the damaged record, went on behind the next one, and lost that, too. A damaged
/// byte costs the record that it is in, and no other.
#[test]
fn a_damaged_header_costs_no_other_message_whatever_becomes_of_a_copy() {
    for (headers, each) in [(&[44][..], 1), (&[44, 45], 7), (&[40], 5), (&[50, 52], 5)] {
        let prepared = damaged(headers);
        let plain = on(Arc::new(prepared.killed())).open("queue").unwrap();
        assert_eq!(missing(&plain), headers, "without compaction");
        let (mut wrong, mut tried) = (Vec::new(), 0);
        for kill in [false, true] {
            for at in (0..).step_by(each) {
                let disk = Arc::new(prepared.killed());
                let faults = Arc::new(FaultStorage::new(disk.clone()));
                let queue = on(faults.clone()).open("queue").unwrap();
                let error = ErrorKind::StorageFull;
                let failure = FaultPlan::FailAt { at, error, lasting: false };
                faults.plan(if kill { FaultPlan::CrashAt { at } } else { failure });
                let compacted = queue.compact().map(|compacted| compacted.copies());
                let was_reached = faults.operations() > at;
                faults.plan(FaultPlan::None);
                let after = if kill { Arc::new(disk.killed()) } else { disk };
                let queue = if kill { on(after).open("queue").unwrap() } else { queue };
                let lost = missing(&queue);
                if lost != headers {
                    wrong.push(format!("kill {kill} at {at} ({compacted:?}): lost {lost:?}"));
                }
                if !was_reached {
                    assert_eq!(compacted.unwrap(), 1);
                    break;
                }
                tried += 1;
            }
        }
        let shown = &wrong[..wrong.len().min(5)];
        assert!(
            wrong.is_empty(),
            "{} of {tried}, with {headers:?} damaged: {shown:#?}",
            wrong.len()
        );
    }
}

/// The bytes of a message that was found damaged counted as those of a message that waits, until
/// the next open. So its segment was never sparse, and kept its place on the disk.
#[test]
fn what_was_lost_takes_no_bytes_of_those_that_wait() {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).open("queue").unwrap();
    for _ in 0..3 {
        queue.push(vec![1; 50_000]).unwrap();
        queue.push("small").unwrap();
    }
    queue.push(vec![2; 60_000]).unwrap();
    queue.sync().unwrap();
    queue.maintain().unwrap();
    for ordinal in 1..=3 {
        flip(&disk, &format!("000000000000000{ordinal}.seg"), 20_000);
    }
    give_back(queue.pop_batch(usize::MAX).unwrap());
    assert_eq!((queue.len(), queue.damage().len()), (4, 3));
    let before = queue.stats().segment_bytes();
    queue.compact().unwrap();
    let after = queue.stats().segment_bytes();
    assert!(after < before / 2, "{before} bytes, then {after}");
    queue.close().unwrap();
    let queue = on(disk).open("queue").unwrap();
    queue.compact().unwrap();
    assert_eq!(queue.stats().segment_bytes(), after, "the next run knows no better");
}
