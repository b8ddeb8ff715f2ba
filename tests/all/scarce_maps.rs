//! Where the system has fewer maps than `open_segments` says, whoever needs one makes room for it.

use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Backoff, Compaction, Delivery, Durability, Options, Overflow, Queue, Seq};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MESSAGES: usize = 600;
const PAYLOAD: usize = 16 << 10;
/// So many are in one segment.
const IN_A_SEGMENT: usize = 15;
const HOUR: Duration = Duration::from_secs(3600);

/// The maps of a storage.
#[derive(Debug)]
struct Maps {
    live: AtomicU64,
    peak: AtomicU64,
    most: AtomicU64,
    refused: AtomicU64,
}

impl Maps {
    /// Counts the maps of this storage, and refuses those that are too many.
    fn of(storage: &Watched) -> Arc<Self> {
        let zero = AtomicU64::default;
        let most = AtomicU64::new(u64::MAX);
        let maps = Arc::new(Self { live: zero(), peak: zero(), most, refused: zero() });
        let seen = maps.clone();
        storage.rule(move |call| match call.op {
            Op::Map => seen.begin(),
            Op::Unmap => {
                seen.live.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        });
        maps
    }

    fn begin(&self) -> std::io::Result<()> {
        let most = self.most.load(Ordering::SeqCst);
        let one_more = |live| (live < most).then_some(live + 1);
        let began = self.live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        let Ok(before) = began else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorKind::OutOfMemory.into());
        };
        self.peak.fetch_max(before + 1, Ordering::SeqCst);
        Ok(())
    }

    fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst)
    }

    /// From here on there are no more than now.
    fn allow_no_more(&self) {
        self.most.store(self.live(), Ordering::SeqCst);
    }
}

fn options(storage: &Arc<Watched>) -> Options {
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    options.segment_bytes(256 << 10).shrink_after(None).compaction(Compaction::off())
}

/// Opens a queue with messages in forty segments.
fn filled(options: &dyn Fn() -> Options) -> (Queue, Vec<Seq>) {
    let queue = options().open("queue").unwrap();
    let seqs = (0..MESSAGES).map(|_| queue.push(vec![7; PAYLOAD]).unwrap()).collect();
    queue.close().unwrap();
    (options().open("queue").unwrap(), seqs)
}

fn look_at(queue: &Queue, seqs: &[Seq]) {
    let looks = seqs.iter().step_by(IN_A_SEGMENT);
    looks.for_each(|seq| assert!(queue.get(*seq).unwrap().is_some()));
}

/// The holder of a message whose map went heard that there is no room, and the message came back.
#[test]
fn an_answer_makes_room_for_its_map() {
    type Way = fn(&Queue, Vec<Delivery>) -> keepq::Result<()>;
    let ways: [(&str, Way); 6] = [
        ("ack", |_, jobs| jobs.into_iter().try_for_each(Delivery::ack)),
        ("ack_batch", |queue, jobs| queue.ack_batch(jobs)),
        ("nack", |_, jobs| jobs.into_iter().try_for_each(Delivery::nack)),
        ("nack_after", |_, jobs| jobs.into_iter().try_for_each(|job| job.nack_after(HOUR))),
        ("release", |_, jobs| jobs.into_iter().try_for_each(Delivery::release)),
        ("reject", |_, jobs| jobs.into_iter().try_for_each(|job| job.reject("no"))),
    ];
    for (name, answer) in ways {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let maps = Maps::of(&storage);
        let options = || {
            let options = options(&storage).background(false).open_segments(4);
            options.backoff(Backoff::exponential(HOUR)).max_attempts(2)
        };
        let (queue, seqs) = filled(&options);
        let mut jobs: Vec<_> = queue.pop_batch(3 * IN_A_SEGMENT).unwrap().into_iter().collect();
        look_at(&queue, &seqs[100..]);
        maps.allow_no_more();
        let held = jobs.split_off(2);
        answer(&queue, jobs).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(maps.refused.load(Ordering::SeqCst) > 0, "{name}: there was room");
        maps.most.store(u64::MAX, Ordering::SeqCst);
        drop(held);
    }
}

#[test]
fn a_look_makes_room_for_its_map() {
    type Way = fn(&Queue, Seq) -> keepq::Result<()>;
    let ways: [(&str, Way); 5] = [
        ("get", |queue, seq| queue.get(seq).map(|found| assert!(found.is_some()))),
        ("is_acked", |queue, seq| queue.is_acked(seq).map(|acked| assert!(!acked))),
        ("peek", |queue, _| queue.peek().map(|found| assert!(found.is_some()))),
        ("iter", |queue, _| {
            let all = queue.iter().collect::<keepq::Result<Vec<_>>>()?;
            assert_eq!(all.len(), MESSAGES);
            Ok(())
        }),
        ("purge", |queue, _| queue.purge().map(|purged| assert_eq!(purged, MESSAGES as u64))),
    ];
    for (name, look) in ways {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let maps = Maps::of(&storage);
        let options = || options(&storage).background(false).open_segments(32);
        let (queue, seqs) = filled(&options);
        look_at(&queue, &seqs[100..400]);
        maps.allow_no_more();
        look(&queue, seqs[70]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(maps.refused.load(Ordering::SeqCst) > 0, "{name}: there was room");
    }
}

/// Some work mapped each segment of its messages under one lock, of which there may be hundreds.
#[test]
fn no_step_maps_many_more_segments_than_may_be_open() {
    type Way = fn(&Queue, Vec<Delivery>);
    let ways: [(&str, Way); 3] = [
        ("messages die", |queue, jobs| {
            jobs.into_iter().try_for_each(Delivery::nack).unwrap();
            queue.maintain().unwrap();
        }),
        ("leases run out", |queue, jobs| {
            jobs.iter().try_for_each(|job| job.extend(Duration::ZERO)).unwrap();
            queue.maintain().unwrap();
        }),
        ("a lowered limit", |queue, jobs| {
            drop(jobs);
            queue.push("x").unwrap();
        }),
    ];
    for (limit, (name, work)) in [1, 4].into_iter().flat_map(|limit| ways.map(|way| (limit, way))) {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let maps = Maps::of(&storage);
        let is_lowered = name == "a lowered limit";
        let options = || {
            let options = options(&storage).background(false).open_segments(limit);
            options.max_attempts(if is_lowered { 20 } else { 1 }).visibility_timeout(HOUR)
        };
        let (queue, _) = filled(&options);
        let (queue, jobs) = if is_lowered {
            queue.close().unwrap();
            let options = options().max_messages(50).overflow(Overflow::DropOldest);
            (options.open("queue").unwrap(), Vec::new())
        } else {
            let mut jobs = Vec::new();
            while jobs.len() < MESSAGES {
                jobs.extend(queue.pop_batch(MESSAGES - jobs.len()).unwrap());
            }
            (queue, jobs)
        };
        maps.peak.store(maps.live(), Ordering::SeqCst);
        work(&queue, jobs);
        // Those that are leased or read, those of a step, and the same of the dead letters.
        let (peak, most) = (maps.peak.load(Ordering::SeqCst), 3 * limit + 4);
        assert!(peak <= most, "{name}: {peak} maps, where {limit} may be open");
    }
}

/// A queue of forty segments, of which so many can be mapped, opened with these options.
fn with_room_for(most: u64, options: &dyn Fn(Options) -> Options) -> (Queue, Arc<Maps>) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let maps = Maps::of(&storage);
    let (queue, _) = filled(&|| options_of(&storage));
    queue.close().unwrap();
    maps.most.store(most, Ordering::SeqCst);
    (options(options_of(&storage)).open("queue").unwrap(), maps)
}

fn options_of(storage: &Arc<Watched>) -> Options {
    options(storage).background(false).open_segments(64)
}

/// Work that goes over more segments than there is room for makes room again and again, and is not
/// refused for that.
#[test]
fn work_that_gets_on_is_not_refused() {
    type Way = fn(&Queue) -> keepq::Result<()>;
    let expires = |options: Options| options.message_ttl(Duration::from_millis(1));
    let ways: [(&str, Way); 4] = [
        ("pop", |queue| queue.pop().map(|job| assert!(job.is_none()))),
        ("pop_batch", |queue| queue.pop_batch(9).map(|jobs| assert!(jobs.is_empty()))),
        ("peek", |queue| queue.peek().map(|found| assert!(found.is_none()))),
        ("maintain", |queue| queue.maintain().map(|()| assert!(queue.is_empty()))),
    ];
    for (room, (name, work)) in [2, 8].into_iter().flat_map(|room| ways.map(|way| (room, way))) {
        let (queue, maps) = with_room_for(room, &expires);
        work(&queue).unwrap_or_else(|error| panic!("{name}, room for {room}: {error}"));
        assert!(maps.refused.load(Ordering::SeqCst) > 0, "{name}: there was room");
    }
    let lowered = |options: Options| options.max_messages(50).overflow(Overflow::DropOldest);
    let (queue, maps) = with_room_for(2, &lowered);
    queue.push("x").unwrap();
    assert_eq!(queue.len(), 50);
    assert!(maps.refused.load(Ordering::SeqCst) > 0, "there was room");
}

/// One lease in each segment, and room for no more maps than some of them have: an answer that
/// found no room failed, and all others of its step with it.
#[test]
fn answers_make_room_for_each_other() {
    type Way = fn(&Queue, Vec<Delivery>) -> keepq::Result<()>;
    let ways: [(&str, Way); 4] = [
        ("ack_batch", |queue, jobs| queue.ack_batch(jobs)),
        ("ack_batch, newest first", |queue, jobs| queue.ack_batch(jobs.into_iter().rev())),
        ("ack", |_, jobs| jobs.into_iter().try_for_each(Delivery::ack)),
        ("nack", |_, jobs| jobs.into_iter().try_for_each(Delivery::nack)),
    ];
    for (limit, (name, answer)) in [1, 4].into_iter().flat_map(|limit| ways.map(|way| (limit, way)))
    {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let maps = Maps::of(&storage);
        let options = || {
            let options = options(&storage).background(false).open_segments(limit);
            options.backoff(Backoff::exponential(HOUR))
        };
        let (queue, _) = filled(&options);
        let mut jobs = Vec::new();
        while jobs.len() < MESSAGES {
            jobs.extend(queue.pop_batch(MESSAGES - jobs.len()).unwrap());
        }
        let jobs = jobs.into_iter().enumerate();
        let (held, others): (Vec<_>, Vec<_>) =
            jobs.partition(|(number, _)| number % IN_A_SEGMENT == 7);
        queue.ack_batch(others.into_iter().map(|(_, job)| job)).unwrap();
        maps.allow_no_more();
        let held = held.into_iter().map(|(_, job)| job).collect();
        answer(&queue, held).unwrap_or_else(|error| panic!("{name}, {limit}: {error}"));
        assert!(maps.refused.load(Ordering::SeqCst) > 0, "{name}: there was room");
    }
}
