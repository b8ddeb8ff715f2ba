//! Producers that wait for room and consumers that wait for a message: a change, a close or a
//! failed sync wakes them. Each test is a story that once went wrong.

use crate::found_support::{Call, PATIENCE, alone, call, ms, on, watched};
use crate::support::watched::Op;
use keepq::fault::{FaultPlan, FaultStorage, MemoryStorage};
use keepq::{Delivery, Error, Options, Overflow, Queue, Result, Seq};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static PAYLOAD: [u8; 5000] = [7; 5000];

/// Pushes until there is no room left.
fn fill(queue: &Queue) {
    while queue.try_push(&PAYLOAD).is_ok() {}
}

fn ack_one(queue: &Queue) {
    queue.pop().unwrap().unwrap().ack().unwrap();
}

fn ack_all(queue: &Queue) {
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
}

/// A producer that sleeps until there is room.
fn producer<const N: usize>(queue: &Queue, payload: &'static [u8; N]) -> Call<Result<Seq>> {
    let queue = queue.clone();
    let push = call(move || queue.push(payload));
    push.asleep();
    push
}

/// A queue that is full of bytes, and producers that wait for room. An ack wakes them while
/// another thread syncs, so their look for room has to wait for the disk. A second ack wakes them
/// again during that wait. Neither ack frees a file, so they go on waiting.
fn looks_that_last(options: Options, producers: usize) -> (Queue, Vec<Call<Result<Seq>>>) {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = options.storage(storage).max_bytes(1 << 20).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    fill(&queue);
    let waiting: Vec<_> = (0..producers).map(|_| producer(&queue, &PAYLOAD)).collect();
    let syncing = queue.clone();
    let (hold, syncing) = watch.hold(Op::Sync, "", move || syncing.sync());
    for _ in 0..2 {
        ack_one(&queue);
        waiting.iter().for_each(Call::asleep);
    }
    drop(hold);
    syncing.result("sync").unwrap();
    waiting.iter().for_each(Call::asleep);
    (queue, waiting)
}

/// A producer waited for the disk while it looked for room. A wake-up of the outer wait ended the
/// inner one and was lost: the producer was in no list any more, and slept for ever beside an
/// empty queue, with one producer or several, with a timeout or without.
#[test]
fn a_producer_that_waited_for_the_disk_is_woken_by_room_for_bytes() {
    let patient = alone().push_timeout(Duration::from_secs(3600));
    for (producers, options) in [(1, alone()), (1, patient), (3, alone())] {
        let (queue, waiting) = looks_that_last(options, producers);
        ack_all(&queue);
        queue.maintain().unwrap();
        for push in waiting {
            push.result("a push beside an empty queue").unwrap();
        }
    }
}

/// The same producers went on sleeping after the queue was closed, so their threads never ended.
#[test]
fn a_producer_that_waited_for_the_disk_is_woken_by_the_close() {
    let (queue, waiting) = looks_that_last(alone(), 3);
    queue.close().unwrap();
    for push in waiting {
        let pushed = push.result("a push to a closed queue");
        assert!(matches!(pushed, Err(Error::Closed)), "{pushed:?}");
    }
}

/// With `max_messages`, too: a push found a free place, needed a new file and waited for the
/// disk. Meanwhile another push took the place. The wake-up for the next place was lost, and the
/// producer slept for ever beside an empty queue.
#[test]
fn a_producer_that_waited_for_the_disk_is_woken_by_room_for_messages() {
    static LARGE: [u8; 40_000] = [8; 40_000];
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).background(false).max_messages(16).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    fill(&queue);
    // The first file is drained, and the second one has no room for the large message.
    (0..11).for_each(|_| ack_one(&queue));
    while queue.try_push("small").is_ok() {}
    let large = producer(&queue, &LARGE);
    let syncing = queue.clone();
    let (hold, syncing) = watch.hold(Op::Sync, "", move || syncing.sync());
    for _ in 0..2 {
        ack_one(&queue);
        large.asleep();
        // It may be refused if the place is kept for the producer that waits.
        queue.try_push("small").ok();
    }
    drop(hold);
    syncing.result("sync").unwrap();
    large.asleep();
    ack_all(&queue);
    large.result("a push beside an empty queue").unwrap();
}

/// A queue without a background, and a consumer that waits for a message. A rejected message
/// wakes the consumer, which moves it to the dead letters while another thread syncs those, and
/// has to wait for that sync. During this wait a push wakes the consumer again.
fn look_that_moves_what_is_dying<T: Send + 'static>(
    consumer: impl FnOnce(Queue) -> T + Send + 'static,
) -> (Queue, Call<T>) {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).background(false).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push("rejected").unwrap();
    let job = queue.pop().unwrap().unwrap();
    let for_consumer = queue.clone();
    let consumer = call(move || consumer(for_consumer));
    consumer.asleep();
    drop(dead.submit("something to sync").unwrap());
    let (hold, syncing) = watch.hold(Op::Sync, "dead/", move || dead.sync());
    let rejecting = call(move || job.reject("no"));
    rejecting.asleep();
    consumer.asleep();
    queue.push("ready").unwrap();
    consumer.asleep();
    drop(hold);
    syncing.result("sync").unwrap();
    rejecting.result("reject").unwrap();
    consumer.asleep();
    (queue, consumer)
}

/// Where no background runs, a consumer moved a dead letter while it looked for a message. The
/// push that woke it meanwhile was lost, and the consumer slept beside a message that was ready.
#[test]
fn a_consumer_that_moved_a_dead_letter_is_woken_by_a_message() {
    let (_queue, consumer) = look_that_moves_what_is_dying(|queue| queue.pop_wait());
    let job = consumer.result("pop_wait beside a message that is ready").unwrap();
    assert_eq!(&job[..], b"ready");
    job.ack().unwrap();
    let patient = |queue: Queue| queue.pop_timeout(Duration::from_secs(3600));
    let (_queue, consumer) = look_that_moves_what_is_dying(patient);
    let job = consumer.result("pop_timeout beside a message that is ready").unwrap();
    assert!(job.is_some_and(|job| job[..] == *b"ready"));
}

/// The close did not wake the same consumer either, so its thread never ended.
#[test]
fn a_consumer_that_moved_a_dead_letter_is_woken_by_the_close() {
    let until_closed = |queue: Queue| loop {
        match queue.pop_wait() {
            Ok(job) => job.ack().unwrap(),
            Err(error) => return error,
        }
    };
    let (queue, consumer) = look_that_moves_what_is_dying(until_closed);
    // If the consumer has not taken it.
    drop(queue.pop().unwrap().map(Delivery::ack));
    queue.close().unwrap();
    let end = consumer.result("pop_wait of a closed queue");
    assert!(matches!(end, Error::Closed), "{end:?}");
}

/// A push that waited for room went on waiting after a sync had failed, although every new push
/// was told of it. A program with one producer stood still; it could have reopened its queue.
#[test]
fn a_push_that_waits_for_room_hears_of_a_failed_sync() {
    type Way = (&'static str, fn(&Queue));
    const WAYS: [Way; 3] = [
        ("sync", |queue| drop(queue.sync())),
        ("maintain", |queue| drop(queue.maintain())),
        // It syncs the changed count of attempts.
        ("the background", |queue| queue.pop().unwrap().unwrap().release().unwrap()),
    ];
    let start = |options: Options, (way, poison): Way| {
        let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
        let options = options.storage(faults.clone()).overflow(Overflow::Block);
        let options = options.background(way == "the background").ack_sync(ms(10));
        let queue = options.open("queue").unwrap();
        fill(&queue);
        let push = producer(&queue, &PAYLOAD);
        faults.plan(FaultPlan::FailSyncs { error: ErrorKind::Other });
        poison(&queue);
        (way, push, queue, faults)
    };
    let messages = WAYS.into_iter().map(|way| start(alone().max_messages(30), way));
    let bytes = WAYS.into_iter().map(|way| start(alone().max_bytes(1 << 20), way));
    let started: Vec<_> = messages.chain(bytes).collect();
    let (mut not_told, end) = (Vec::new(), Instant::now() + PATIENCE);
    for (way, push, queue, faults) in started {
        match push.result_by(end) {
            Some(Err(error @ Error::Poisoned { .. })) => assert!(!error.is_indeterminate()),
            other => not_told.push((way, other)),
        }
        faults.plan(FaultPlan::None);
        assert!(matches!(queue.sync(), Err(Error::Poisoned { .. })));
    }
    assert!(not_told.is_empty(), "not told of the failed sync: {not_told:?}");
}

/// Each free place woke all producers, and the fastest one took it, not the one that had waited
/// longest.
#[test]
fn places_are_given_in_the_order_of_coming() {
    const PRODUCERS: u8 = 24;
    let queue = alone().max_messages(1).overflow(Overflow::Block).open("queue").unwrap();
    queue.push([0].as_slice()).unwrap();
    let waiting: Vec<_> = (1..=PRODUCERS)
        .map(|number| {
            let queue = queue.clone();
            let push = call(move || queue.push([number].as_slice()));
            push.asleep();
            push
        })
        .collect();
    let mut order = Vec::new();
    for _ in 0..=PRODUCERS {
        let job = queue.pop_timeout(PATIENCE).unwrap().expect("each place is taken");
        order.push(job[0]);
        job.ack().unwrap();
    }
    assert!(order.is_sorted(), "{order:?}");
    for push in waiting {
        push.result("a push").unwrap();
    }
}

/// Each ack woke all producers; all but one found no room and slept again. 2,000 messages of
/// 1,000 producers took 15 s.
#[test]
fn a_place_wakes_one_producer() {
    const PRODUCERS: usize = 60;
    const ACKS: u64 = 150;
    let queue = alone().max_messages(4).overflow(Overflow::Block).open("queue").unwrap();
    fill(&queue);
    let waiting: Vec<_> = (0..PRODUCERS)
        .map(|_| {
            let queue = queue.clone();
            call(move || while queue.push("x").is_ok() {})
        })
        .collect();
    waiting.iter().for_each(Call::asleep);
    let sleeps = || waiting.iter().filter_map(Call::sleeps).sum::<u64>();
    let before = sleeps();
    for _ in 0..ACKS {
        ack_one(&queue);
        let end = Instant::now() + PATIENCE;
        while queue.len() < 4 && Instant::now() < end {
            thread::yield_now();
        }
    }
    waiting.iter().for_each(Call::asleep);
    let slept = sleeps() - before;
    queue.close().unwrap();
    for push in waiting {
        push.result("a push after the close");
    }
    assert!(slept <= 10 * ACKS, "{PRODUCERS} producers slept {slept} times for {ACKS} places");
}

/// A batch that waited for several places never got them: a push of a single message took each
/// place as soon as it was free.
#[test]
fn a_batch_is_not_kept_waiting_by_single_messages() {
    let queue = alone().max_messages(4).overflow(Overflow::Block).open("queue").unwrap();
    fill(&queue);
    let batch = queue.clone();
    let batch = call(move || batch.push_batch(["batch"; 4]));
    batch.asleep();
    let singles = [(); 8].map(|()| {
        let queue = queue.clone();
        call(move || while queue.push("single").is_ok() {})
    });
    singles.iter().for_each(Call::asleep);
    let (mut acks, start) = (0, Instant::now());
    while acks < 400 && !batch.is_over() && start.elapsed() < PATIENCE {
        if let Some(job) = queue.pop().unwrap() {
            job.ack().unwrap();
            acks += 1;
        }
        // Leaves time to take the place.
        let end = Instant::now() + ms(3);
        while queue.len() < 4 && Instant::now() < end {
            thread::yield_now();
        }
    }
    let is_over = batch.is_over();
    queue.close().unwrap();
    for push in singles {
        push.result("a push after the close");
    }
    assert!(is_over, "the batch still waits after {acks} places became free");
    batch.result("the batch").unwrap();
}

/// While some producers pushed hundreds of messages, others pushed none.
#[test]
fn producers_that_wait_get_their_turns() {
    const PRODUCERS: usize = 32;
    const EACH: u64 = 300;
    let limits: [fn(Options) -> Options; 2] =
        [|options| options.max_messages(8), |options| options.max_bytes(1 << 20)];
    for limit in limits {
        let queue = limit(alone()).overflow(Overflow::Block).background(true);
        let queue = queue.open("queue").unwrap();
        let pushed: Arc<[AtomicU64; PRODUCERS]> =
            Arc::new([const { AtomicU64::new(0) }; PRODUCERS]);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|number| {
                let (queue, pushed) = (queue.clone(), Arc::clone(&pushed));
                call(move || {
                    while queue.push(&PAYLOAD).is_ok() {
                        pushed[number].fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..EACH * PRODUCERS as u64 {
            let job = queue.pop_timeout(PATIENCE).unwrap().expect("a producer pushes");
            job.ack().unwrap();
        }
        let counts = pushed.each_ref().map(|count| count.load(Ordering::Relaxed));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(least * 4 >= *most, "messages that each producer pushed: {counts:?}");
        queue.close().unwrap();
        for push in producers {
            push.result("a push after the close");
        }
    }
}

/// A push over the oldest dropped the messages of each segment that it could let go, and failed all
/// the same: most of the disk was in flight.
#[test]
fn drop_oldest_for_bytes_drops_nothing_for_a_push_that_fails() {
    static LARGE: [u8; 250_000] = [7; 250_000];
    let options = alone().max_bytes(1 << 20).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    while queue.stats().dropped() == 0 {
        queue.push(&PAYLOAD).unwrap();
    }
    let (before, ready) = (queue.stats().dropped(), queue.len());
    let jobs = queue.pop_batch(usize::try_from(ready * 3 / 4).unwrap()).unwrap();
    let pushed = queue.push(&LARGE);
    let dropped = queue.stats().dropped() - before;
    assert!(
        matches!(pushed, Err(Error::Full { .. })),
        "{pushed:?} beside {} in flight",
        jobs.len()
    );
    assert_eq!(dropped, 0, "of {ready} messages");
    // With less in flight there is room, once the others are dropped.
    queue.ack_batch(jobs).unwrap();
    queue.push(&LARGE).unwrap();
}
