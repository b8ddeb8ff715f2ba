//! What other threads see while a queue, or the queue of its dead letters, is being closed. Each
//! test is a story that once went wrong.

use crate::found_support::{alone, call, ms, on, soon, watched};
use crate::support::watched::Op;
use keepq::fault::MemoryStorage;
use keepq::{Backoff, Error, Queue, Result, Seq};
use std::sync::Arc;
use std::thread;

/// A monitor asked for a message that waited while another thread closed the queue. `get`
/// returned `None`, which says that the message is settled.
#[test]
fn a_waiting_message_is_not_taken_for_settled_while_the_queue_is_closed() {
    type Look = fn(&Queue, Seq) -> Result<bool>;
    // Whether the call shows that the message, or any message, waits.
    const LOOKS: [Look; 5] = [
        |queue, seq| Ok(queue.get(seq)?.is_some()),
        |queue, seq| Ok(!queue.is_acked(seq)?),
        |queue, _| Ok(queue.peek()?.is_some()),
        |queue, _| Ok(queue.iter().next().transpose()?.is_some()),
        |queue, _| Ok(!queue.stuck(1)?.is_empty()),
    ];
    let until_closed = |queue: &Queue, seq: Seq, look: Look| loop {
        match look(queue, seq) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => return matches!(error, Error::Closed),
        }
    };
    for round in 0..20 {
        let queue = alone().open("queue").unwrap();
        let seq = queue.push_batch(["a", "b", "c"]).unwrap()[1];
        thread::scope(|scope| {
            // `get` twelve times, and each of the others.
            let looks = LOOKS.iter().chain([&LOOKS[0]; 11]);
            let queue = &queue;
            let looks = looks.map(|&look| scope.spawn(move || until_closed(queue, seq, look)));
            let looks: Vec<_> = looks.collect();
            (0..round % 8).for_each(|_| thread::yield_now());
            queue.clone().close().unwrap();
            let is_right: Vec<bool> = looks.into_iter().map(|look| look.join().unwrap()).collect();
            assert!(is_right.iter().all(|&is| is), "round {round}: {is_right:?}");
        });
    }
}

/// A thread had synced a full segment, and was about to store its seal. `close` found that all was
/// durable, and returned; the seal was stored when another process might have the queue open.
#[test]
fn no_segment_is_sealed_once_close_has_returned() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).background(false).open("queue").unwrap();
    // The first segment is full.
    (0..8).for_each(|_| assert!(queue.push(&[1; 9000]).is_ok()));
    let for_sync = queue.clone();
    let (hold, syncing) = watch.hold(Op::Store, "", move || for_sync.sync());
    let closing = call(move || queue.close());
    closing.asleep();
    assert!(!closing.is_over(), "close returned, and a seal is about to be stored");
    drop(hold);
    syncing.result("sync").unwrap();
    closing.result("close").unwrap();
}

/// A queue with one dead letter, and the result of a call that is made while a handle of the dead
/// letters is in the middle of closing them.
fn while_dead_letters_close<T: Send + 'static>(
    work: impl FnOnce(&Queue) -> T + Send + 'static,
) -> (Queue, T) {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).background(false).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    queue.maintain().unwrap();
    let dead = queue.dead_letters().unwrap();
    let (hold, closing) = watch.hold(Op::Sync, "dead/", move || dead.close());
    let for_work = queue.clone();
    let working = call(move || work(&for_work));
    working.asleep();
    drop(hold);
    closing.result("close of the dead letters").unwrap();
    (queue, working.result("the call during the close"))
}

/// One thread closed its handle of the dead letters while another one asked for them: `Locked`,
/// "another process, or another handle in this one, has the queue open".
#[test]
fn dead_letters_are_opened_while_another_handle_closes_them() {
    let (_queue, dead) = while_dead_letters_close(Queue::dead_letters);
    assert_eq!(&dead.unwrap().pop().unwrap().expect("the letter")[..], b"a");
}

/// A redrive failed with the same error at that moment.
#[test]
fn dead_letters_are_redriven_while_another_handle_closes_them() {
    let (queue, redriven) = while_dead_letters_close(|queue| queue.redrive(9));
    assert_eq!(redriven.unwrap(), 1);
    assert_eq!(queue.len(), 3);
}

/// A letter was pushed, another handle closed the dead letters before it was settled there, and a
/// consumer of theirs took it: nobody counted it, and `redrive(1)` pushed another one in its place.
#[test]
fn a_redrive_counts_what_it_pushed_though_the_dead_letters_were_closed() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).background(false).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    for job in queue.pop_batch(2).unwrap() {
        job.reject("no").unwrap();
    }
    queue.maintain().unwrap();
    let dead = queue.dead_letters().unwrap();
    let for_redrive = queue.clone();
    // The sync of the message that it has pushed.
    let (hold, redrive) = watch.hold(Op::Sync, "", move || for_redrive.redrive(1));
    dead.close().unwrap();
    let dead = queue.dead_letters().unwrap();
    let letter = dead.pop().unwrap().unwrap();
    assert_eq!(&letter[..], b"a");
    letter.ack().unwrap();
    drop(hold);
    assert_eq!(redrive.result("redrive").unwrap(), 1);
    assert_eq!((queue.stats().pushed(), queue.len(), dead.len()), (4, 2, 1));
    assert_eq!(queue.redrive(9).unwrap(), 1);
}

/// At that moment `stats` said that there were no dead letters.
#[test]
fn dead_letters_are_counted_while_another_handle_closes_them() {
    let (_queue, stats) = while_dead_letters_close(Queue::stats);
    assert_eq!(stats.dead_letters(), 1);
}

/// A message that died at that moment was not moved; `maintain` and the last background error
/// said `Locked`.
#[test]
fn messages_die_while_another_handle_closes_the_dead_letters() {
    let ways: [fn(&Queue) -> Result<()>; 3] = [
        |queue| queue.pop()?.unwrap().reject("no"),
        |queue| queue.pop()?.unwrap().reject("no").and_then(|()| queue.maintain()),
        |queue| {
            // The second `pop` moves the first message, since there is no background.
            queue.pop()?.unwrap().reject("no")?;
            queue.pop()?.unwrap().ack()
        },
    ];
    let told = ways.map(|work| {
        let (queue, result) = while_dead_letters_close(work);
        let told = queue.stats().last_background_error().map(ToString::to_string);
        queue.maintain().unwrap();
        assert_eq!(queue.dead_letters().unwrap().len(), 2);
        (result.map_err(|error| error.to_string()), told)
    });
    assert!(told.iter().all(|told| *told == (Ok(()), None)), "{told:?}");
}

/// The background met the same error, and moved the message only a second later.
#[test]
fn the_background_moves_messages_while_another_handle_closes_the_dead_letters() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let moved = |count| move |queue: &Queue| queue.stats().dead_lettered() == count;
    assert!(soon(|| moved(1)(&queue)));
    let dead = queue.dead_letters().unwrap();
    let (hold, closing) = watch.hold(Op::Sync, "dead/", move || dead.close());
    let job = queue.pop().unwrap().unwrap();
    let rejecting = call(move || job.reject("no"));
    rejecting.asleep();
    drop(hold);
    closing.result("close of the dead letters").unwrap();
    rejecting.result("reject").unwrap();
    assert!(soon(|| moved(2)(&queue)));
    assert_eq!(queue.stats().last_background_error(), None);
}

/// More than a call takes in a millisecond.
const LETTERS: u64 = 60_000;

/// A redrive whose dead letters were closed by another handle had letters that were pushed and not
/// settled. If one of those was settled by another consumer, the call went on looking for it: it
/// took all other letters, one by one. With a visibility timeout those that it took first were back
/// before it had come to the last, so the call never returned.
#[test]
fn a_redrive_ends_although_another_consumer_has_its_letter() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).segment_bytes(8 << 20).background(false);
    let options = options.max_attempts(1).backoff(Backoff::none());
    let queue = options.clone().open("queue").unwrap();
    queue.push_batch((0..LETTERS).map(|n| n.to_string())).unwrap();
    queue.pop_batch(usize::MAX).unwrap().into_iter().for_each(|job| job.nack().unwrap());
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = options.visibility_timeout(ms(1)).open("queue").unwrap();
    // The run has its first segment before the redrive.
    queue.push("first").unwrap();
    queue.pop().unwrap().unwrap().ack().unwrap();
    let letters = queue.dead_letters().unwrap();
    assert_eq!(letters.len(), LETTERS);
    let redriving = queue.clone();
    let (hold, redrive) = watch.hold(Op::Sync, "0", move || redriving.redrive(1).unwrap());
    assert_eq!(queue.len(), 1, "it is pushed, and is being synced");
    letters.close().unwrap();
    let letters = queue.dead_letters().unwrap();
    let letter = letters.pop().unwrap().unwrap();
    assert_eq!(letter[..], *b"0");
    letter.ack().unwrap();
    drop(hold);
    assert_eq!(redrive.result("redrive"), 1);
}
