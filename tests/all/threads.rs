//! Many producers and consumers on clones of one queue.

use crate::support::Dice;
use keepq::{Durability, Queue};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// Every message is delivered until it is acked, once; each producer's messages come in order at
/// first delivery; the count of attempts tells how often.
#[test]
fn every_message_ends_acked_exactly_once() {
    for (durability, sync_acks) in
        [(Durability::Os, false), (Durability::Always, true), (Durability::Always, false)]
    {
        let each: u64 = if durability == Durability::Os { 20_000 } else { 300 };
        let dir = tempfile::tempdir().unwrap();
        let options = Queue::options().segment_bytes(262_144).sync_acks(sync_acks);
        let queue = options.durability(durability).open(dir.path()).unwrap();
        let acked = Mutex::new(BTreeMap::<(u8, u64), u32>::new());
        std::thread::scope(|scope| {
            for producer in 0..3u8 {
                let queue = queue.clone();
                scope.spawn(move || {
                    let mut dice = Dice(producer.into());
                    let mut number = 0u64;
                    while number < each {
                        let count = if dice.one_in(5) { 1 + dice.below(9) } else { 1 };
                        let payloads = (number..each).take(count as usize).map(|n| {
                            let mut payload = vec![producer];
                            payload.extend(n.to_le_bytes());
                            payload.resize(9 + (n % 200) as usize, 7);
                            payload
                        });
                        number += queue.push_batch(payloads).unwrap().len() as u64;
                    }
                });
            }
            for consumer in 0..3 {
                let (queue, acked) = (queue.clone(), &acked);
                scope.spawn(move || {
                    let mut dice = Dice(100 + consumer);
                    let mut last_first = [None; 3];
                    loop {
                        let timeout = Duration::from_millis(500);
                        let Some(job) = queue.pop_timeout(timeout).unwrap() else {
                            if acked.lock().unwrap().len() as u64 == 3 * each {
                                return;
                            }
                            continue;
                        };
                        let number = u64::from_le_bytes(job[1..9].try_into().unwrap());
                        if job.attempts() == 1 {
                            let last = &mut last_first[usize::from(job[0])];
                            assert!(last.is_none_or(|last| number > last), "out of order");
                            *last = Some(number);
                        }
                        match dice.below(10) {
                            0 => job.nack().unwrap(),
                            1 => drop(job),
                            _ => {
                                let key = (job[0], number);
                                job.ack().unwrap();
                                *acked.lock().unwrap().entry(key).or_default() += 1;
                            }
                        }
                    }
                });
            }
        });
        let acked = acked.into_inner().unwrap();
        assert_eq!(acked.len() as u64, 3 * each);
        assert!(acked.values().all(|&times| times == 1), "acked twice");
        assert_eq!((queue.len(), queue.in_flight()), (0, 0));
        queue.close().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        assert!(queue.pop().unwrap().is_none());
        assert!(queue.recovery().is_clean());
    }
}

/// Closing in the middle of everything hangs nobody, and loses nothing that was confirmed.
#[test]
fn close_races_with_everybody() {
    for round in 0..30u64 {
        let dir = tempfile::tempdir().unwrap();
        let options = Queue::options().segment_bytes(65_536);
        let queue = options.open(dir.path()).unwrap();
        let confirmed = Mutex::new(Vec::new());
        let acked = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (producer, confirmed) = (queue.clone(), &confirmed);
                scope.spawn(move || {
                    while let Ok(seq) = producer.push([7; 2000].as_slice()) {
                        confirmed.lock().unwrap().push(u64::from(seq));
                    }
                });
                let (consumer, acked) = (queue.clone(), &acked);
                scope.spawn(move || {
                    while let Ok(job) = consumer.pop_wait() {
                        let seq = u64::from(job.seq());
                        if job.ack().is_ok() {
                            acked.lock().unwrap().push(seq);
                        }
                    }
                });
            }
            let enough = 3 + round as usize * 2;
            while confirmed.lock().unwrap().len() < enough {
                std::thread::yield_now();
            }
            queue.clone().close().unwrap();
        });
        let queue = Queue::open(dir.path()).unwrap();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        let rest: Vec<u64> =
            queue.pop_batch(usize::MAX).unwrap().iter().map(|job| job.seq().into()).collect();
        let acked = acked.into_inner().unwrap();
        for seq in confirmed.into_inner().unwrap() {
            assert!(rest.contains(&seq) != acked.contains(&seq), "{seq} lost or doubled");
        }
    }
}
