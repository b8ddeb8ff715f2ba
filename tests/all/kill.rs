//! A real process, killed by SIGKILL at random moments, again and again on one directory.
//!
//! The child pushes and acks from several threads and tells on its standard output what returned
//! `Ok`; after each kill the parent opens the queue and compares. `KEEPQ_KILL_ROUNDS` sets the
//! number of rounds (default 200); the long run is `KEEPQ_KILL_ROUNDS=5000 cargo test --release
//! --test all kill::`.

use crate::support::agree::agree_in;
use crate::support::process::{again, was_killed};
use crate::support::{Dice, cases};
use keepq::{Compaction, Durability, Message, Options, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

fn options(dice: &mut Dice) -> Options {
    let durability = match dice.below(3) {
        0 => Durability::Os,
        1 => Durability::Interval(Duration::from_millis(3)),
        _ => Durability::Always,
    };
    let segment_bytes = 65_536 << dice.below(3);
    let options = Queue::options().durability(durability).segment_bytes(segment_bytes);
    let idle = Duration::from_millis(dice.below(3));
    let options = options.compaction(Compaction::default().idle(idle));
    // The backlog is handed out in each round, and must not be given up for that.
    options.sync_acks(dice.one_in(4)).max_attempts(0)
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    let len = 8 + Dice(number).below(if number.is_multiple_of(50) { 90_000 } else { 1500 });
    payload.resize(len as usize, number as u8);
    payload
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

/// One line, written whole: what was told before the kill was told.
fn tell(what: &str, number: u64) {
    std::io::stdout().lock().write_all(format!("\n@{what} {number}\n").as_bytes()).unwrap();
}

/// Pushes numbers from `first` on, pops and acks, for ever or for `limit` pushes.
fn work(path: &Path, first: u64, limit: u64) {
    let mut dice = Dice(first ^ u64::from(std::process::id()));
    tell("opening", first);
    let queue = options(&mut dice).open(path).unwrap();
    std::thread::scope(|scope| {
        for consumer in 0..2 {
            let (queue, mut dice) = (queue.clone(), Dice(first + consumer));
            scope.spawn(move || {
                while let Ok(job) = queue.pop_wait() {
                    let number = number(&job);
                    assert_eq!(&job[..], payload(number));
                    match dice.below(8) {
                        0 => job.nack().unwrap_or(()),
                        1 => drop(job),
                        2 => job.release().unwrap_or(()),
                        3 => job.nack_after(Duration::from_millis(dice.below(4))).unwrap_or(()),
                        4 if dice.one_in(5) => {
                            tell("acking", number);
                            if job.reject(number.to_string()).is_ok() {
                                tell("rejected", number);
                            }
                        }
                        _ => {
                            tell("acking", number);
                            if job.ack().is_ok() {
                                tell("acked", number);
                            }
                        }
                    }
                }
            });
        }
        let mut next = first;
        while next < first + limit {
            let count = if dice.one_in(10) { 5 } else { 1 };
            let message = |number| Message::new(payload(number));
            match (count, dice.below(3)) {
                (1, 0) => drop(queue.submit(message(next)).unwrap()),
                (1, 1) => assert!(u64::from(queue.push(message(next)).unwrap()) > 0),
                _ => drop(queue.push_batch((next..next + count).map(message)).unwrap()),
            }
            (next..next + count).for_each(|number| tell("pushed", number));
            next += count;
        }
        queue.clone().close().unwrap();
    });
}

/// The child's entry; run as a test of its own it works for a while and is not killed.
#[test]
fn child() {
    if let Ok(path) = std::env::var("KEEPQ_KILL_CHILD") {
        work(Path::new(&path), cases("KEEPQ_KILL_FIRST", 0), u64::MAX / 2);
    } else {
        let dir = tempfile::tempdir().unwrap();
        work(dir.path(), 0, 200);
        let queue = Queue::open(dir.path()).unwrap();
        assert!(queue.recovery().was_closed() && queue.recovery().is_clean());
    }
}

#[derive(Default)]
struct Told {
    pushed: BTreeSet<u64>,
    acking: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    rejected: BTreeSet<u64>,
}

/// One life of the child. It is killed `after` a time that begins when it has told of its first
/// `pushes`, or, where they are none, when it is about to open the queue.
fn life(path: &Path, first: u64, pushes: u64, after: Duration) -> Told {
    let mut child = again("kill::child")
        .env("KEEPQ_KILL_CHILD", path)
        .env("KEEPQ_KILL_FIRST", first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (progress, has_come) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut told = Told::default();
        for line in lines {
            let line = line.unwrap();
            let Some((what, number)) = line.strip_prefix('@').and_then(|l| l.split_once(' '))
            else {
                continue;
            };
            let number = number.parse().unwrap();
            if what == "opening" || what == "pushed" {
                // Nobody listens any more once it is to be killed.
                progress.send(()).ok();
            }
            match what {
                "opening" => continue,
                "pushed" => told.pushed.insert(number),
                "acking" => told.acking.insert(number),
                "rejected" => told.rejected.insert(number),
                _ => told.acked.insert(number),
            };
        }
        told
    });
    // Until it has come so far, or ended by itself.
    (0..=pushes).try_for_each(|_| has_come.recv()).ok();
    // The moment of the kill is what this test is about.
    std::thread::sleep(after);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(was_killed(status), "the child ended by itself: {status}");
    reader.join().unwrap()
}

#[test]
fn killed_at_random_moments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let mut dice = Dice(cases("KEEPQ_KILL_SEED", 7));
    // What must be there, and what must not.
    let mut owed = BTreeSet::new();
    let (mut settled, mut rejected) = (BTreeSet::new(), BTreeSet::new());
    let mut seqs = BTreeMap::new();
    let mut next = 0;
    let rounds = cases("KEEPQ_KILL_ROUNDS", 200);
    for round in 0..rounds {
        // One in four dies while it opens the queue, or soon after that.
        let pushes = if dice.one_in(4) { 0 } else { 1 + dice.below(20) };
        let after = if pushes == 0 { dice.below(5_000) } else { dice.below(40_000) };
        let told = life(&path, next, pushes, Duration::from_micros(after));
        owed.extend(&told.pushed);
        for number in &told.acking {
            owed.remove(number);
        }
        settled.extend(&told.acked);
        rejected.extend(&told.rejected);
        // So that what was given back for a while is due.
        std::thread::sleep(Duration::from_millis(5));
        agree_in(&path, &format!("round {round}"));
        let queue = options(&mut dice).open(&path).unwrap();
        assert!(queue.recovery().damage().is_empty(), "round {round}: {:?}", queue.recovery());
        let found = queue.pop_batch(usize::MAX).unwrap();
        assert!(queue.damage().is_empty(), "round {round}: {:?}", queue.damage());
        let mut here = BTreeSet::new();
        for job in &found {
            let number = number(job);
            assert_eq!(&job[..], payload(number), "round {round}");
            assert!(here.insert(number), "round {round}: {number} is there twice");
            assert!(!settled.contains(&number), "round {round}: {number} came back");
            let seq = job.seq();
            assert_eq!(*seqs.entry(number).or_insert(seq), seq, "round {round}: changed its Seq");
        }
        let mut dead = BTreeSet::new();
        for letter in &queue.dead_letters().unwrap() {
            let letter = letter.unwrap();
            let number = number(&letter);
            assert!(letter[..] == payload(number), "round {round}: {number}");
            // Where the kill came while it was rejected, the reason may be gone.
            let reason = letter.dead_letter().unwrap().reason().to_string();
            let is_told = !rejected.contains(&number) && reason.is_empty();
            assert!(is_told || reason == number.to_string(), "round {round}: {number} {reason}");
            assert!(dead.insert(number), "round {round}: {number} died twice");
            assert!(!here.contains(&number), "round {round}: {number} is dead, and is here");
        }
        assert!(rejected.is_subset(&dead), "round {round}: one that was rejected is lost");
        settled.extend(&dead);
        let in_order = found.is_sorted_by(|a, b| a.seq() < b.seq() && number(a) < number(b));
        assert!(in_order, "round {round}: out of order");
        for number in &owed {
            assert!(here.contains(number), "round {round}: {number} was confirmed and is lost");
        }
        // No number twice, also not that of a message whose push nobody came to tell of, and that
        // was settled, or died, meanwhile.
        let known = here.iter().chain(&told.pushed).chain(&told.acking).chain(&owed).chain(&dead);
        next = known.max().map_or(next, |last| last + 10).max(next);
        // Now and then a drained queue, so that segments are let go; else the backlog grows.
        if dice.one_in(3) {
            settled.extend(here);
            owed.clear();
            queue.ack_batch(found).unwrap();
        } else {
            owed.extend(here);
        }
        if dice.one_in(2) {
            queue.close().unwrap();
        }
    }
    assert!(next > 5 * rounds, "the children got to push: {next}");
}
