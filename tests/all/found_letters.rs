//! Found faults: a dead letter comes once, and it keeps what its message had.

use super::found_hooks::{Way, by_hand, files, find};
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, DeathCause, Delivery, Expired, Message, Options, Queue};
use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn on(storage: Arc<dyn Storage>) -> Options {
    by_hand(storage).backoff(Backoff::none())
}

/// A queue that was killed right after two messages were rejected. Both are in the dead letters,
/// and the queue has not stored yet that they are.
fn killed_while_moving() -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    for job in queue.pop_batch(2).unwrap() {
        job.reject("no").unwrap();
    }
    disk.killed()
}

fn texts(jobs: &[Delivery]) -> Vec<String> {
    jobs.iter().map(|job| String::from_utf8(job.to_vec()).unwrap()).collect()
}

/// Every message of a queue and of its dead letters, after a crash.
fn all_after(options: Options) -> (Vec<String>, Vec<String>) {
    let queue = options.open("queue").unwrap();
    queue.maintain().unwrap();
    let here = queue.pop_batch(9).unwrap();
    let letters = queue.dead_letters().unwrap().pop_batch(9).unwrap();
    assert_eq!(queue.stats().dying(), 0);
    (texts(&here), texts(&letters))
}

type Calls = (&'static str, fn(Op) -> bool);

/// What is failed.
const CALLS: [Calls; 2] = [("sync", Op::is_sync), ("call", |op| !op.is_of_memory())];

/// Fails call number `at` of a kind, and all later ones if it lasts. Gives the counter of these
/// calls.
fn fail_at(storage: &Watched, at: u64, lasts: bool, is_it: fn(Op) -> bool) -> Arc<AtomicU64> {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    storage.rule(move |call| {
        if !is_it(call.op) {
            return Ok(());
        }
        let number = counted.fetch_add(1, Ordering::SeqCst);
        let fails = number == at || lasts && number > at;
        if fails { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    calls
}

/// Opens that queue again and fails each of its calls in turn. `work` takes the dead letters and
/// tells which of them it has settled. After another kill, none of those may be a dead letter
/// again, or come more often than `most` times, and no other one may be gone. Gives the cases in
/// which it was otherwise.
fn through_failures(most: usize, work: fn(&Queue) -> Vec<String>) -> Vec<String> {
    let (prepared, mut wrong) = (killed_while_moving(), Vec::new());
    for (kind, is_it) in CALLS {
        for lasts in [false, true] {
            for at in 0.. {
                let disk = Arc::new(prepared.killed());
                let storage = Watched::around(disk.clone());
                let queue = on(storage.clone()).open("queue").unwrap();
                let calls = fail_at(&storage, at, lasts, is_it);
                let settled = work(&queue);
                let was_reached = calls.load(Ordering::SeqCst) > at;
                storage.no_rule();
                let (here, letters) = all_after(on(Arc::new(disk.killed())));
                let context = format!("{kind} {at} fails, lasting {lasts}: settled {settled:?}");
                for text in ["a", "b"] {
                    let is_it = |found: &&String| *found == text;
                    let (here, letters) =
                        (here.iter().filter(is_it).count(), letters.iter().filter(is_it).count());
                    let is_right = if settled.iter().any(|one| one == text) {
                        letters == 0 && here <= most
                    } else {
                        here + letters > 0
                    };
                    let found = format!("{text:?} is {here} times here, {letters} times a letter");
                    wrong.extend((!is_right).then(|| format!("{context}, then {found}")));
                }
                if !was_reached {
                    assert_eq!(settled.len(), 2, "{context}");
                    break;
                }
            }
        }
    }
    wrong
}

/// A process was killed while a message moved to the dead letters. In the next run a sync failed,
/// so the move could not be finished. A consumer got the letter all the same, and acked it. Then
/// the process was killed again. The run after that found no letter and a message on its way to the
/// dead letters, and moved it: the letter came a second time.
#[test]
fn a_dead_letter_that_was_acked_after_a_failure_and_a_kill_does_not_come_again() {
    let wrong = through_failures(0, |queue| {
        let Ok(dead) = queue.dead_letters() else { return Vec::new() };
        let mut settled = Vec::new();
        while let Ok(Some(letter)) = dead.pop() {
            let text = texts(std::slice::from_ref(&letter)).remove(0);
            settled.extend(letter.ack().is_ok().then_some(text));
        }
        settled
    });
    assert!(wrong.is_empty(), "{} cases: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

/// The same with a redrive: the message was in the queue again, and it was a dead letter again.
#[test]
fn a_message_that_was_redriven_after_a_failure_and_a_kill_does_not_die_again() {
    let wrong = through_failures(1, |queue| match queue.redrive(9) {
        Ok(2) => vec!["a".into(), "b".into()],
        _ => Vec::new(),
    });
    assert!(wrong.is_empty(), "{} cases: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

type Death = (&'static str, fn(&Queue, &ManualClock));

/// How a message dies.
const DEATHS: [Death; 4] = [
    ("rejected", |queue, _| queue.pop().unwrap().unwrap().reject("no").unwrap()),
    ("failed", |queue, _| queue.pop().unwrap().unwrap().nack().unwrap()),
    ("timed out", |queue, clock| {
        let job = queue.pop().unwrap().unwrap();
        clock.advance(2 * SECOND);
        assert!(queue.pop().unwrap().is_none());
        drop(job);
    }),
    ("expired", |queue, clock| {
        clock.advance(2 * HOUR);
        assert!(queue.pop().unwrap().is_none());
    }),
];

/// How a dead letter is settled, so that a power cut does not undo it. All but "ack and sync" are
/// with `sync_acks`, and only "redrive" brings the message back to the queue.
const SETTLED: [Way; 4] = [
    ("ack", |queue| {
        queue.dead_letters().unwrap().pop().unwrap().unwrap().ack().unwrap();
    }),
    ("ack_batch", |queue| {
        let dead = queue.dead_letters().unwrap();
        dead.ack_batch(dead.pop_batch(9).unwrap()).unwrap();
    }),
    ("ack and sync", |queue| {
        let dead = queue.dead_letters().unwrap();
        dead.pop().unwrap().unwrap().ack().unwrap();
        dead.sync().unwrap();
    }),
    ("redrive", |queue| assert_eq!(queue.redrive(9).unwrap(), 1)),
];

/// With `sync_acks`, the ack of a dead letter was on the disk when it returned. But the state of
/// the message that had become the letter was not. After a power cut there was no letter, and the
/// message was ready or dying: it came again, or died again. The same happened after a redrive, and
/// after a `sync` of the dead letters.
#[test]
fn a_dead_letter_that_is_durably_settled_does_not_come_again_after_a_power_cut() {
    let mut wrong = Vec::new();
    for (death, die) in DEATHS {
        for (way, settle) in SETTLED {
            let (sync_acks, is_back) = (way != "ack and sync", way == "redrive");
            let disk = Arc::new(MemoryStorage::new());
            let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
            let options = |disk: Arc<MemoryStorage>| {
                let options = on(disk).clock(clock.clone()).visibility_timeout(SECOND);
                options.sync_acks(sync_acks).max_attempts(1).expired(Expired::DeadLetter)
            };
            let queue = options(disk.clone()).open("queue").unwrap();
            let message = Message::new("a");
            queue.push(if death == "expired" { message.ttl(HOUR) } else { message }).unwrap();
            die(&queue, &clock);
            settle(&queue);
            let right = (if is_back { vec!["a".to_string()] } else { Vec::new() }, Vec::new());
            let images = [CrashImage::Oldest, CrashImage::Newest].into_iter();
            for image in images.chain((0..10).map(CrashImage::Mixed)) {
                let found = all_after(options(Arc::new(disk.power_cut(image))));
                if found != right {
                    wrong.push(format!("{death}, {way}, {image:?}: {found:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases: {:#?}", wrong.len(), &wrong[..wrong.len().min(9)]);
}

/// Where the first record of a segment starts, and where its body does. The format page has these
/// and all numbers below.
const RECORDS_START: usize = 4096;
const BODY: usize = RECORDS_START + 24;

fn fold(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^ (x >> 32)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Extension entries that a later version may write, and that this one may skip.
fn unknown_entries(longest: usize) -> Vec<u8> {
    let long = vec![0x5A; longest];
    let mut entries = Vec::new();
    for (tag, content) in [(0x04, &b"of a later version"[..]), (0x7F, b""), (0x02, &long[..])] {
        entries.push(tag);
        entries.extend(u16::try_from(content.len()).unwrap().to_le_bytes());
        entries.extend(content);
    }
    entries
}

/// A closed queue with one message, which has a header, a time to live and these entries. The
/// entries are pushed as the start of the payload. Then the length of the extensions is changed to
/// include them.
pub(crate) fn crafted(entries: &[u8]) -> Arc<MemoryStorage> {
    let disk = Arc::new(MemoryStorage::new());
    let queue = on(disk.clone()).segment_bytes(1 << 20).open("queue").unwrap();
    let message = Message::new([entries, b"the payload"].concat());
    queue.push(message.header("kind", "a").ttl(HOUR)).unwrap();
    queue.close().unwrap();
    let (name, _) = find(&disk, b"the payload");
    let mut bytes = disk.read(&name).unwrap();
    let len = u16::from_le_bytes([bytes[BODY], bytes[BODY + 1]]) + entries.len() as u16;
    bytes[BODY..BODY + 2].copy_from_slice(&len.to_le_bytes());
    let body_len = (word(&bytes, RECORDS_START + 8) & 0xFFFF_FFFF) as usize;
    let check = crc32fast::hash(&bytes[BODY..BODY + body_len]);
    bytes[RECORDS_START + 4..RECORDS_START + 8].copy_from_slice(&check.to_le_bytes());
    let key = (32..80).step_by(8).fold(0, |state, at| fold(state, word(&bytes, at)));
    let first = word(&bytes, RECORDS_START) >> 32 << 32;
    let words = [first, word(&bytes, RECORDS_START + 8), word(&bytes, RECORDS_START + 16)];
    let check = words.into_iter().fold(fold(key, RECORDS_START as u64), fold) >> 32;
    bytes[RECORDS_START..RECORDS_START + 4].copy_from_slice(&(check as u32).to_le_bytes());
    disk.write(&name, bytes);
    disk
}

/// How often an entry stands in the files of the queue, and in those of its dead letters.
fn copies_of(disk: &MemoryStorage, entry: &[u8]) -> (usize, usize) {
    let count = |name: &String| {
        let bytes = disk.read(name).unwrap();
        bytes.windows(entry.len()).filter(|window| window == &entry).count()
    };
    let (dead, here): (Vec<String>, Vec<String>) =
        files(disk).into_iter().partition(|name| name.starts_with("dead/"));
    (here.iter().map(count).sum(), dead.iter().map(count).sum())
}

/// A later version stored something with a message that this version does not know and may skip,
/// such as a key or a priority. When the message died, its dead letter was made of its headers and
/// its payload alone, and so was the message that a redrive pushed. What the later version had
/// stored was gone.
#[test]
fn what_a_later_version_noted_with_a_message_survives_its_death_and_its_redrive() {
    let entries = unknown_entries(40);
    let each = [&entries[..21], &entries[21..24], &entries[24..]];
    for way in ["rejected", "failed"] {
        let disk = crafted(&entries);
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
        let options = on(disk.clone()).segment_bytes(1 << 20).max_attempts(1).clock(clock);
        let queue = options.open("queue").unwrap();
        assert!(each.iter().all(|entry| copies_of(&disk, entry).0 > 0), "{way}");
        let before = each.map(|entry| copies_of(&disk, entry));
        let job = queue.pop().unwrap().unwrap();
        assert_eq!((&job[..], job.header("kind")), (&b"the payload"[..], Some(&b"a"[..])));
        if way == "rejected" {
            job.reject("no").unwrap();
        } else {
            job.nack().unwrap();
        }
        let letter = queue.dead_letters().unwrap().pop().unwrap().unwrap();
        assert_eq!((&letter[..], letter.header("kind")), (&b"the payload"[..], Some(&b"a"[..])));
        assert!(letter.dead_letter().is_some());
        letter.release().unwrap();
        for (entry, before) in each.iter().zip(before) {
            let moved = copies_of(&disk, entry).1;
            assert!(moved > before.1, "{way}: entry {entry:?} is not in the dead letters");
        }
        assert_eq!(queue.redrive(9).unwrap(), 1);
        for (entry, before) in each.iter().zip(before) {
            let here = copies_of(&disk, entry).0;
            assert!(here > before.0, "{way}: entry {entry:?} is not in what was redriven");
        }
        let again = queue.pop().unwrap().unwrap();
        assert_eq!((&again[..], again.header("kind")), (&b"the payload"[..], Some(&b"a"[..])));
        assert_eq!((again.attempts(), again.dead_letter()), (1, None));
    }
}

/// A message has the largest possible extensions, so there is no room for what a dead letter adds.
/// The reason may be cut, or the message may not be moved. It must not be lost, and nothing may
/// panic.
#[test]
fn a_message_with_the_largest_extensions_can_die() {
    // The header, the time to live, and three entries of 9 and 18 bytes besides the longest
    // content.
    let others = (3 + 1 + 4 + 1) + (3 + 8) + 9 + 18;
    let entries = unknown_entries(0xFFFF - others);
    let disk = crafted(&entries);
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
    let options = || on(disk.clone()).segment_bytes(1 << 20).clock(clock.clone());
    let queue = options().open("queue").unwrap();
    let job = queue.pop().unwrap().unwrap();
    assert_eq!(&job[..], b"the payload");
    job.reject("r".repeat(1024)).unwrap();
    queue.maintain().ok();
    let stats = queue.stats();
    assert_eq!(stats.dying() + stats.dead_letters(), 1, "{stats:?}");
    queue.close().ok();
    let queue = options().open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    let letters = dead.pop_batch(9).unwrap();
    assert_eq!(letters.len() as u64 + queue.stats().dying(), 1);
    assert!(letters.iter().all(|letter| &letter[..] == b"the payload"));
}

/// A dead letter waits until it is settled or redriven. The time to live of the message ends
/// neither the dead letter nor the message that a redrive pushes.
#[test]
fn neither_a_dead_letter_nor_a_redriven_message_expires_with_the_first_one() {
    let disk = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
    let queue = on(disk).clock(clock.clone()).open("queue").unwrap();
    queue.push(Message::new("a").ttl(SECOND).delay(SECOND / 2)).unwrap();
    clock.advance(SECOND / 2);
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    clock.advance(HOUR);
    let dead = queue.dead_letters().unwrap();
    dead.pop().unwrap().unwrap().release().unwrap();
    assert_eq!(queue.redrive(9).unwrap(), 1);
    let again = queue.pop().unwrap().unwrap();
    assert_eq!((&again[..], again.attempts()), (&b"a"[..], 1));
    again.ack().unwrap();
}

/// Another handle closed the dead letters while `redrive` waited for the sync of what it had
/// pushed. `redrive` said `Closed`, which a program takes for the end of the queue. Then it went
/// on, but it pushed the same letters a second time.
#[test]
fn a_redrive_goes_on_when_another_handle_closes_the_dead_letters() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = on(storage.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    for job in queue.pop_batch(2).unwrap() {
        job.reject("no").unwrap();
    }
    queue.maintain().unwrap();
    let dead = Mutex::new(Some(queue.dead_letters().unwrap()));
    storage.rule(move |call| {
        let is_it = call.op == Op::Sync && !call.name.starts_with("dead/");
        let dead = dead.lock().unwrap().take_if(|_| is_it);
        // The redrive holds no lock while it syncs.
        dead.map_or(Ok(()), |dead| dead.close().map_err(Error::other))
    });
    assert_eq!(queue.redrive(9).unwrap(), 2);
    assert_eq!((queue.stats().pushed(), queue.dead_letters().unwrap().len()), (5, 0));
    assert_eq!(texts(&queue.pop_batch(9).unwrap()), ["c", "a", "b"]);
}

/// A redrive took letters, and the sync of what it had pushed lasted longer than their leases.
/// Another consumer got a letter whose copy was pushed, so the message was in both places, and the
/// call failed with `LeaseExpired`.
#[test]
fn no_consumer_gets_a_letter_that_a_redrive_has_pushed() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * SECOND));
    let options = on(storage.clone()).clock(clock.clone()).visibility_timeout(SECOND);
    let queue = options.open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    for job in queue.pop_batch(9).unwrap() {
        job.reject("no").unwrap();
    }
    let dead = queue.dead_letters().unwrap();
    assert_eq!(dead.len(), 3);
    let other = dead.clone();
    storage.rule(move |call| {
        if call.op == Op::Sync && !call.name.starts_with("dead/") {
            clock.advance(2 * SECOND);
            let taken = other.pop_batch(9).map_err(Error::other)?;
            assert!(taken.is_empty(), "{:?}", texts(&taken));
        }
        Ok(())
    });
    assert_eq!(queue.redrive(9).unwrap(), 3);
    storage.no_rule();
    assert_eq!(texts(&queue.pop_batch(9).unwrap()), ["a", "b", "c"]);
    assert_eq!((dead.len(), dead.in_flight()), (0, 0));
}

/// The last attempt of a message ended with its run, by a close or by a kill. It was ready until a
/// consumer came to it: `stats`, `iter` and `stuck` said so, and the dead letters never got it
/// where no consumer ran.
#[test]
fn a_message_whose_last_attempt_ended_with_its_run_dies_by_itself() {
    for (way, dead_letters) in [("close", true), ("kill", true), ("kill", false)] {
        let disk = Arc::new(MemoryStorage::new());
        let options = |disk| on(disk).max_attempts(1).dead_letters(dead_letters);
        let queue = options(disk.clone()).open("queue").unwrap();
        queue.push_batch(["a", "b", "c"]).unwrap();
        queue.pop_batch(2).unwrap().into_iter().for_each(std::mem::forget);
        let disk = if way == "kill" {
            Arc::new(disk.killed())
        } else {
            queue.close().unwrap();
            disk
        };
        let queue = options(disk).open("queue").unwrap();
        let stats = queue.stats();
        let dying = if dead_letters { (2, 0) } else { (0, 2) };
        let told = (stats.ready(), (stats.dying(), stats.dropped()));
        assert_eq!(told, (1, dying), "{way}");
        assert_eq!(queue.iter().count(), 1, "{way}");
        assert_eq!(&queue.peek().unwrap().unwrap()[..], b"c", "{way}");
        if dead_letters {
            queue.maintain().unwrap();
            let letters = queue.dead_letters().unwrap().pop_batch(9).unwrap();
            assert_eq!(texts(&letters), ["a", "b"], "{way}");
            let cause = letters[0].dead_letter().unwrap().cause();
            assert_eq!(cause, DeathCause::Attempts, "{way}");
        }
        assert_eq!(&queue.pop().unwrap().unwrap()[..], b"c", "{way}");
    }
}

/// A dead letter was acked, and the process killed. The next run did not open the dead letters, so
/// `maintain` synced nothing there: a power cut brought the letter back.
#[test]
fn maintain_syncs_what_a_killed_run_answered_among_the_dead_letters() {
    let disk = Arc::new(MemoryStorage::new());
    let options = |disk| on(disk).background(false);
    let queue = options(disk.clone()).open("queue").unwrap();
    queue.push("dies").unwrap();
    queue.pop().unwrap().unwrap().reject("of it").unwrap();
    queue.maintain().unwrap();
    let dead = queue.dead_letters().unwrap();
    dead.sync().unwrap();
    dead.pop().unwrap().unwrap().ack().unwrap();
    let disk = Arc::new(disk.killed());
    let queue = options(disk.clone()).open("queue").unwrap();
    queue.maintain().unwrap();
    let disk = Arc::new(disk.power_cut(CrashImage::Oldest));
    let queue = options(disk).open("queue").unwrap();
    assert_eq!(queue.dead_letters().unwrap().len(), 0);
}
