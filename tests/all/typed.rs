//! Queues of values: what goes in comes out, and what does not decode or encode.

use crate::support::DEADLINE;
use keepq::fault::ManualClock;
use keepq::{Error, Queue, Seq};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
enum Event {
    Paid { order: u64, cents: i64 },
    Note(String),
}

#[test]
fn values_go_through_a_typed_queue() {
    let dir = directory();
    let events = Queue::open(dir.path()).unwrap().typed::<Event>();
    let values = [
        Event::Paid { order: 7, cents: -250 },
        Event::Note("thanks".into()),
        Event::Note(String::new()),
    ];
    let first = events.push(&values[0]).unwrap();
    events.push_batch(&values[1..]).unwrap();
    events.push_batch(values.to_vec()).unwrap();
    assert_eq!(events.submit(&values[2]).unwrap().wait().unwrap(), Seq::from(7));
    events.queue().push(events.message(&values[1]).unwrap().header("kind", "b")).unwrap();
    let job = events.pop().unwrap().unwrap();
    assert_eq!((&*job, job.seq(), job.attempts()), (&values[0], first, 1));
    job.nack().unwrap();
    let job = events.pop_wait().unwrap();
    assert_eq!((job.seq(), job.attempts()), (first, 2));
    job.release().unwrap();
    let (value, delivery) = events.pop_timeout(Duration::ZERO).unwrap().unwrap().into_parts();
    assert_eq!((&value, delivery.attempts()), (&values[0], 2));
    delivery.ack().unwrap();
    let rest = events.pop_batch(99).unwrap();
    assert_eq!(rest.iter().map(|job| (**job).clone()).collect::<Vec<_>>()[..2], values[1..]);
    assert_eq!(rest[6].delivery().header("kind"), Some(&b"b"[..]));
    events.clone().ack_batch(rest).unwrap();
    assert!(events.queue().is_empty() && events.queue().in_flight() == 0);
    events.close().unwrap();
}

/// What does not decode: the error names it, others go on, its attempt counts, and it comes back
/// after a second and not before.
#[test]
fn what_does_not_decode_goes_back_for_a_second() {
    let dir = directory();
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH));
    let options = || Queue::options().background(false).clock(clock.clone());
    let queue = options().open(dir.path()).unwrap();
    let events = queue.typed::<Event>();
    let bad = queue.push(b"\xFF\xFF\xFF").unwrap();
    let good = events.push(&Event::Note("good".into())).unwrap();
    let mut trailing = b"\x01\x01x".to_vec();
    assert_eq!(postcard::from_bytes::<Event>(&trailing).unwrap(), Event::Note("x".into()));
    trailing.extend(b"more");
    let long = queue.push(trailing).unwrap();
    let error = events.pop().unwrap_err();
    assert!(matches!(&error, Error::Decode { seq, .. } if *seq == bad), "{error}");
    assert!(std::error::Error::source(&error).is_some(), "says why");
    let job = events.pop().unwrap().unwrap();
    assert_eq!(job.seq(), good);
    let error = events.pop().unwrap_err();
    assert!(matches!(&error, Error::Decode { seq, .. } if *seq == long), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "4 bytes too many");
    assert!(events.pop().unwrap().is_none());
    assert_eq!((queue.len(), queue.delayed(), queue.in_flight()), (0, 2, 1));
    let stats = queue.stats();
    assert_eq!((stats.delayed(), stats.nacked(), stats.ready()), (2, 2, 0));
    job.ack().unwrap();
    clock.advance(Duration::from_millis(999));
    assert!(events.pop_timeout(Duration::from_millis(20)).unwrap().is_none());
    clock.advance(Duration::from_millis(1));
    let raw = queue.pop().unwrap().unwrap();
    assert_eq!((raw.seq(), raw.attempts(), &raw[..]), (bad, 2, &b"\xFF\xFF\xFF"[..]));
    raw.ack().unwrap();
    assert_eq!(queue.pop().unwrap().unwrap().seq(), long);
    queue.close().unwrap();
    // The next run hands it out at once, with its attempts.
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.pop().unwrap().map(|job| (job.seq(), job.attempts())), Some((long, 3)));
}

/// A consumer that waits is woken by that time alone.
#[test]
fn who_waits_for_what_does_not_decode_gets_it_after_a_second() {
    let dir = directory();
    let queue = Queue::options().background(false).open(dir.path()).unwrap();
    let seq = queue.push(b"\xFF\xFF\xFF").unwrap();
    let start = Instant::now();
    assert!(matches!(queue.typed::<Event>().pop(), Err(Error::Decode { .. })));
    let raw = queue.pop_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!((raw.seq(), raw.attempts()), (seq, 2));
    // Not found by the last look of all, at the end of the time.
    assert!((Duration::from_secs(1)..DEADLINE).contains(&start.elapsed()), "{start:?}");
}

#[test]
fn a_batch_with_one_that_does_not_decode_keeps_the_others() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let numbers = queue.typed::<u32>();
    numbers.push_batch([1u32, 2]).unwrap();
    let bad = queue.push(b"").unwrap();
    numbers.push(&3).unwrap();
    let error = numbers.pop_batch(9).unwrap_err();
    assert!(matches!(&error, Error::Decode { seq, .. } if *seq == bad), "{error}");
    let rest = numbers.pop_batch(9).unwrap();
    assert_eq!(
        rest.iter().map(|job| (**job, job.attempts())).collect::<Vec<_>>(),
        [(1, 1), (2, 1), (3, 1)]
    );
}

/// A value that cannot be encoded is refused before anything is written, in a batch as well.
#[test]
fn what_does_not_encode_is_not_pushed() {
    #[derive(Deserialize)]
    struct Stubborn(bool);
    impl Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            if self.0 { Err(serde::ser::Error::custom("no")) } else { to.serialize_bool(false) }
        }
    }
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap().typed::<Stubborn>();
    let error = queue.push(&Stubborn(true)).unwrap_err();
    assert!(matches!(&error, Error::Encode { .. }), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    assert!(queue.push_batch([Stubborn(false), Stubborn(true)]).is_err());
    assert!(queue.submit(&Stubborn(true)).is_err());
    assert_eq!((queue.queue().len(), queue.queue().last_seq()), (0, None));
}

#[test]
fn a_panic_while_decoding_gives_the_message_back() {
    #[derive(Serialize)]
    struct Bomb;
    impl<'de> Deserialize<'de> for Bomb {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("user code")
        }
    }
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    queue.push(b"x").unwrap();
    let bombs = queue.typed::<Bomb>();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bombs.pop()));
    assert!(result.is_err());
    assert_eq!((queue.len(), queue.in_flight()), (1, 0));
    assert_eq!(queue.pop().unwrap().unwrap().attempts(), 2);
}
