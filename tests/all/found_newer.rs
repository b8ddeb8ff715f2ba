//! Found faults: messages that only a newer keepq can read.

use super::found_hooks::{Way, by_hand, find};
use super::found_letters::crafted;
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Compaction, Damage, DamageKind, MessageState, Options, Overflow, Queue, Seq, Stats};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);

/// An extension that a reader must know, which no version has yet.
const UNKNOWN: [u8; 4] = [0xEE, 1, 0, b'x'];

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND))
}

/// A queue whose first message is of a newer keepq.
fn with_newer(options: impl Fn(Options) -> Options) -> (Arc<MemoryStorage>, Queue) {
    let disk = crafted(&UNKNOWN);
    let queue = options(by_hand(disk.clone()).segment_bytes(1 << 20)).open("queue").unwrap();
    (disk, queue)
}

fn unsettled(stats: &Stats) -> [u64; 5] {
    [stats.ready(), stats.in_flight(), stats.delayed(), stats.dying(), stats.set_aside()]
}

/// `Stats` says that each unsettled message is in one of its numbers. One that was set aside was in
/// none of them, and `stuck` said that a consumer had it.
#[test]
fn a_message_of_a_newer_keepq_is_counted_and_shown_as_what_it_is() {
    let clock = clock();
    let (_disk, queue) = with_newer(|options| options.clock(clock.clone()));
    queue.push("b").unwrap();
    assert_eq!(unsettled(&queue.stats()), [2, 0, 0, 0, 0], "nobody has looked");
    let job = queue.pop().unwrap().unwrap();
    assert_eq!(&job[..], b"b");
    assert_eq!(unsettled(&queue.stats()), [0, 1, 0, 0, 1]);
    job.ack().unwrap();
    assert_eq!((queue.len(), unsettled(&queue.stats())), (0, [0, 0, 0, 0, 1]));
    let stuck = queue.stuck(9).unwrap();
    let states: Vec<_> = stuck.iter().map(|stuck| (stuck.seq(), stuck.state())).collect();
    assert_eq!(states, [(Seq::from(1), MessageState::SetAside)]);
    assert_eq!((queue.is_acked(1.into()).unwrap(), queue.purge().unwrap()), (false, 0));
    assert!(queue.iter().next().is_none() && queue.peek().unwrap().is_none());
    assert_eq!(queue.damage().len(), 1);
    assert_eq!(queue.damage()[0].kind(), DamageKind::Newer);
    assert_eq!(unsettled(&queue.stats()), [0, 0, 0, 0, 1]);
}

/// A message of a newer keepq was at the front, and nobody called `pop`: those behind it that had
/// expired were not let go, so producers had no room for ever.
#[test]
fn expired_messages_behind_one_of_a_newer_keepq_are_let_go() {
    let clock = clock();
    let (disk, queue) =
        with_newer(|options| options.clock(clock.clone()).message_ttl(SECOND).max_messages(3));
    queue.push_batch(["b", "c"]).unwrap();
    assert!(queue.try_push("d").is_err());
    clock.advance(2 * SECOND);
    queue.push("d").unwrap();
    let stats = queue.stats();
    assert_eq!((stats.expired(), unsettled(&stats)), (2, [1, 0, 0, 0, 1]));
    // It stays as it was, also if its segment is compacted, and after that.
    queue.close().unwrap();
    let options = by_hand(disk).segment_bytes(1 << 20).compaction(Compaction::default());
    let queue = options.clock(clock).open("queue").unwrap();
    queue.compact().unwrap();
    assert_eq!(queue.pop().unwrap().unwrap().attempts(), 1);
    assert_eq!(queue.stats().set_aside(), 1);
}

/// "A message that only a newer keepq understands stays stored": that was so once a `pop` had met
/// it. Before that, `purge` and `Overflow::DropOldest` settled it, and listed nothing.
#[test]
fn a_message_of_a_newer_keepq_is_not_purged_or_dropped() {
    let ways: [Way; 4] = [
        ("pop, then purge", |queue| {
            assert!(queue.pop().unwrap().is_none());
            assert_eq!(queue.purge().unwrap(), 0);
        }),
        ("purge", |queue| assert_eq!(queue.purge().unwrap(), 0)),
        ("a push over the oldest", |queue| assert!(queue.push("b").is_err())),
        ("a look for expired ones", |queue| queue.maintain().unwrap()),
    ];
    for (name, work) in ways {
        let (_disk, queue) = with_newer(|options| {
            let options = options.max_messages(1).overflow(Overflow::DropOldest);
            options.message_ttl(SECOND).clock(clock())
        });
        work(&queue);
        assert!(!queue.is_acked(1.into()).unwrap(), "{name}");
        assert_eq!((queue.stats().set_aside(), queue.damage().len()), (1, 1), "{name}");
    }
}

/// A damaged record is not taken for one of a newer keepq, whatever its bytes look like.
#[test]
fn a_damaged_message_that_looks_newer_is_lost() {
    let disk = crafted(&UNKNOWN);
    let (name, at) = find(&disk, b"the payload");
    let mut bytes = disk.read(&name).unwrap();
    bytes[at as usize] ^= 1;
    disk.write(&name, bytes);
    let queue = by_hand(disk).segment_bytes(1 << 20).clock(clock()).open("queue").unwrap();
    assert_eq!(queue.purge().unwrap(), 0);
    let kinds: Vec<_> = queue.damage().iter().map(Damage::kind).collect();
    assert_eq!((kinds, queue.stats().lost()), (vec![DamageKind::Corrupt], 1));
}
