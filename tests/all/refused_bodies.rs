//! The bodies of refused messages stay in the file behind the last record. Where later messages
//! have their slots, they were read as the state of those.

use crate::collected::{Held, held, options, payloads};
use crate::found_hooks::until;
use crate::found_support::{Call, call};
use crate::support::watched::Op;
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage};
use keepq::{Durability, Error, Message, Queue};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

/// With what is refused behind them, these reach to where 400 small messages have their slots.
fn push_large(queue: &Queue) {
    let large = Message::new(vec![2; 15_000]).durability(Durability::Os);
    queue.push_batch(vec![large; 2]).unwrap();
}

/// From operation `at` on, or only there, all fails.
fn failing(at: u64, lasting: bool) -> FaultPlan {
    FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting }
}

/// Fills the segment with small messages: all are there, in this run and the next. False if the
/// queue is poisoned.
fn fill_and_check(queue: &Queue, disk: &MemoryStorage, context: &str) -> bool {
    let small = Message::new("small").durability(Durability::Os);
    match queue.push_batch(vec![small; 400]) {
        Err(Error::Poisoned { .. }) => return false,
        pushed => assert_eq!(pushed.unwrap().len(), 400, "{context}"),
    }
    let stats = queue.stats();
    assert_eq!(stats.segments(), 1, "{context}");
    for image in [disk.killed(), disk.power_cut(CrashImage::Newest)] {
        let found = options(Arc::new(image)).background(false).open("queue").unwrap();
        assert!(found.damage().is_empty(), "{context}: {:?}", found.damage());
        assert_eq!(payloads(&found).len() as u64, stats.ready(), "{context}");
    }
    assert_eq!(payloads(queue).len() as u64, stats.ready(), "{context}");
    assert!(queue.damage().is_empty(), "{context}: {:?}", queue.damage());
    true
}

/// Pushes these with operation `at` failing, and then others. False if no push was refused.
fn refuse(messages: &[Message<'_>], at: u64, lasting: bool) -> bool {
    let disk = Arc::new(MemoryStorage::new());
    let faults = Arc::new(FaultStorage::new(disk.clone()));
    faults.stores_can_fail(true);
    let queue = options(faults.clone()).background(false).open("queue").unwrap();
    push_large(&queue);
    faults.plan(failing(at, lasting));
    if queue.push_batch(messages).is_ok() {
        return false;
    }
    if lasting {
        queue.push("more").unwrap_err();
    }
    faults.plan(FaultPlan::None);
    fill_and_check(&queue, &disk, &format!("operation {at}, lasting {lasting}"))
}

#[test]
fn of_pushes_that_write_at_once() {
    let hour = Duration::from_secs(3600);
    let ways = [
        vec![Message::new(vec![1; 24_000])],
        vec![Message::new(vec![1; 15_000]).header("a", [1; 8000]).ttl(hour)],
        vec![Message::new(vec![1; 24_000]).durability(Durability::Os)],
        vec![Message::new(vec![1; 12_000]).delay(hour); 2],
        vec![Message::new(vec![1; 2400]).transient(); 10],
    ];
    for messages in ways {
        for lasting in [false, true] {
            let end = (0..200).find(|&at| !refuse(&messages, at, lasting));
            assert!(end.is_some_and(|at| at > 0), "the writes end, and there are some");
        }
    }
}

#[test]
fn of_pushes_that_are_collected() {
    let mut checked = 0;
    for (at, lasting) in (1..60).flat_map(|at| [(at, false), (at, true)]) {
        let Held { disk, faults, queue, gate, open: _open } = held(Op::Sync);
        push_large(&queue);
        let push = |payload: Vec<u8>| {
            let queue = queue.clone();
            call(move || queue.push(payload))
        };
        let one = push(vec![1; 9]);
        until("it syncs", || gate.has_waiting());
        let others = [1; 2].map(|byte| push(vec![byte; 12_000]));
        others.iter().for_each(Call::asleep);
        // Counted from its sync on.
        faults.plan(failing(at, lasting));
        gate.open();
        one.result("the push that syncs").unwrap();
        let told = others.map(|call| call.result("push").is_err());
        faults.plan(FaultPlan::None);
        if told == [true; 2] && fill_and_check(&queue, &disk, &format!("{at}, {lasting}")) {
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}
