//! What two threads do in turns, step by step, where no thread can be stopped in between. Tests
//! only.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use super::dispatch::drop_segment::Dropping;
use super::futures::{ack, engine, push};

/// The segment is not one that was dropped in vain: the consumer is the reason why it stays.
#[test]
fn a_drop_that_a_consumer_interrupts_is_not_whole() {
    let engine = engine();
    let dispatch = || engine.dispatch.lock();
    while dispatch().backlog().tracks().len() < 2 {
        push(&engine, b"");
    }
    let dropping = || Dropping::of_oldest(&dispatch(), None).unwrap();
    let mut interrupted = dropping();
    assert!(interrupted.drop_some(&mut dispatch()).unwrap(), "it takes more than one step");
    let taken = engine.consumers().pop(|taken| taken, || {}).unwrap().unwrap();
    assert!(!interrupted.drop_some(&mut dispatch()).unwrap());
    assert!(interrupted.dropped() > 0);
    assert!(!interrupted.is_whole());
    ack(&engine, &taken);
    let mut whole = dropping();
    while whole.drop_some(&mut dispatch()).unwrap() {}
    assert!(whole.is_whole());
}
