//! Errors as a user meets them: each variant through the public API, what its text says, and what
//! its source is.

use keepq::fault::{FaultPlan, FaultStorage, ManualClock, MemoryStorage};
use keepq::{Delivery, Durability, Error, Message, Options, Queue};
use std::collections::BTreeSet;
use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What the text of an error says, all of it.
#[track_caller]
fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert!(text.is_ascii() && !text.ends_with('.') && !text.contains("  "), "{text:?}");
}

/// The operating system's error below it, wherever it is in the chain.
fn system_error(error: &Error) -> Option<&io::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn faulty() -> (Arc<FaultStorage>, Options) {
    let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    let options = Queue::options().segment_bytes(65_536).background(false);
    (faults.clone(), options.storage(faults))
}

/// A variant, and an error that is one, checked.
type Case = (&'static str, fn() -> Error);

const CASES: [Case; 16] = [
    ("Locked", locked),
    ("IsDeadLetters", is_dead_letters),
    ("Corrupt", corrupt),
    ("UnsupportedVersion", unsupported_version),
    ("TooLarge", too_large),
    ("StorageFull", storage_full),
    ("Full", full),
    ("LeaseExpired", lease_expired),
    ("Disabled", disabled),
    ("Closed", closed),
    ("Poisoned", poisoned),
    ("UnknownSeq", unknown_seq),
    ("Decode", decode),
    ("Encode", encode),
    ("InvalidOption", invalid_option),
    ("Io", io_error),
];

#[test]
fn every_variant_can_be_met_and_says_what_it_should() {
    for (variant, provoke) in CASES {
        let error = provoke();
        assert!(format!("{error:?}").starts_with(variant), "{error:?} is no {variant}");
        // A program that prints the chain prints each text once.
        if let Some(source) = error.source() {
            assert!(!error.to_string().contains(&source.to_string()), "{error} repeats its source");
        }
        // It can be passed on as any error can.
        let boxed: Box<dyn std::error::Error + Send + Sync> = error.into();
        assert!(!boxed.to_string().is_empty());
    }
}

/// The list above is the enum.
#[test]
fn no_variant_is_missing_here() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/error.rs"));
    let text = text.unwrap();
    let body = text.split("pub enum Error {").nth(1).unwrap().split("\n}\n").next().unwrap();
    let variants = body.lines().filter_map(|line| {
        let name = line.strip_prefix("    ")?;
        let is_variant = name.starts_with(|first: char| first.is_ascii_uppercase());
        is_variant.then(|| name.trim_end_matches([' ', '{', ',']))
    });
    let here: BTreeSet<&str> = CASES.iter().map(|(name, _)| *name).collect();
    assert_eq!(variants.collect::<BTreeSet<&str>>(), here);
}

fn locked() -> Error {
    let dir = directory();
    let _queue = Queue::open(dir.path()).unwrap();
    let error = Queue::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Locked { path } if *path == dir.path().join("LOCK")));
    says(&error, &["open", name(dir.path()), "locked", "close it", "cloning"]);
    assert!(error.source().is_none());
    error
}

fn is_dead_letters() -> Error {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    queue.push("x").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let dead = dir.path().join("dead");
    assert!(matches!(Queue::open(&dead), Err(Error::Locked { .. })));
    queue.close().unwrap();
    let error = Queue::open(&dead).unwrap_err();
    assert!(matches!(&error, Error::IsDeadLetters { path } if *path == dead));
    says(&error, &["open", name(&dead), "dead letters of the queue", "Queue::dead_letters"]);
    assert!(error.source().is_none());
    error
}

fn corrupt() -> Error {
    let dir = directory();
    std::fs::write(dir.path().join("0000000000000001.seg"), [1; 8192]).unwrap();
    let error = Queue::open(dir.path()).unwrap_err();
    says(&error, &["open", name(dir.path()), "damaged at offset 0", "restore one of them"]);
    assert!(error.source().is_none());
    error
}

fn unsupported_version() -> Error {
    let dir = directory();
    Queue::open(dir.path()).unwrap().push(b"x").unwrap();
    let segment = dir.path().join("0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let twin = bytes.len() - 4096;
    (bytes[8], bytes[twin + 8]) = (7, 7);
    std::fs::write(&segment, bytes).unwrap();
    let error = Queue::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { found: 7, supported: 1 }));
    says(&error, &["open", "version 7", "up to 1", "update keepq", "nothing was changed"]);
    error
}

fn too_large() -> Error {
    let dir = directory();
    let queue = Queue::options().max_message_bytes(4).open(dir.path()).unwrap();
    let error = queue.push(b"12345").unwrap_err();
    assert!(matches!(error, Error::TooLarge { len: 5, max: 4 }));
    says(&error, &["push", "5 bytes", "4 allowed", "max_message_bytes", "max_batch_bytes"]);
    assert!(queue.is_empty());
    error
}

fn storage_full() -> Error {
    let small = Arc::new(MemoryStorage::with_capacity(100_000));
    let options = Queue::options().segment_bytes(65_536).background(false).storage(small);
    let queue = options.open("memory").unwrap();
    queue.push(vec![1; 50_000]).unwrap();
    let error = queue.push(vec![2; 50_000]).unwrap_err();
    let Error::StorageFull { path, source, .. } = &error else { panic!("{error}") };
    says(&error, &["allocate segment", name(path), "offset 0", "free some"]);
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert_eq!(system_error(&error).unwrap().kind(), ErrorKind::StorageFull);
    queue.pop().unwrap().unwrap().ack().unwrap();
    assert!(queue.is_empty());
    error
}

fn full() -> Error {
    let dir = directory();
    let queue = Queue::options().max_messages(1).open(dir.path()).unwrap();
    queue.push(b"x").unwrap();
    let error = queue.push(b"y").unwrap_err();
    assert!(matches!(error, Error::Full { limit: "max_messages", max: 1 }));
    says(&error, &["push", "full", "Options::max_messages is 1", "ack", "raise", "overflow"]);
    assert!(error.source().is_none());
    error
}

fn lease_expired() -> Error {
    let (clock, dir) = (Arc::new(ManualClock::new(std::time::UNIX_EPOCH)), directory());
    let second = Duration::from_secs(1);
    let options = Queue::options().visibility_timeout(second).clock(clock.clone());
    let queue = options.open(dir.path()).unwrap();
    let seq = queue.push(b"x").unwrap();
    let late = queue.pop().unwrap().unwrap();
    clock.advance(second);
    let newer = queue.pop().unwrap().unwrap();
    assert!(matches!(late.extend(second), Err(Error::LeaseExpired { .. })));
    let error = late.ack().unwrap_err();
    assert!(matches!(error, Error::LeaseExpired { seq: told } if told == seq));
    says(&error, &["message 1", "ran out", "did nothing", "extend", "visibility_timeout"]);
    assert!(!queue.is_acked(seq).unwrap());
    newer.ack().unwrap();
    error
}

fn disabled() -> Error {
    let dir = directory();
    let queue = Queue::options().dead_letters(false).open(dir.path()).unwrap();
    assert!(matches!(queue.redrive(1), Err(Error::Disabled { .. })));
    let error = queue.dead_letters().unwrap_err();
    says(&error, &["dead letters", "switched off", "Options::dead_letters(false)"]);
    error
}

fn closed() -> Error {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    queue.push(b"x").unwrap();
    let (job, receipt) = (queue.pop().unwrap().unwrap(), queue.submit(b"y").unwrap());
    let typed = queue.typed::<u8>();
    queue.clone().close().unwrap();
    assert_eq!(u64::from(receipt.wait().unwrap()), 2, "close made it durable");
    let seq = job.seq();
    let is_closed = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Closed)));
    is_closed(job.ack());
    is_closed(queue.push_batch([b"x"]).map(drop));
    is_closed(queue.submit(b"x").map(drop));
    is_closed(queue.pop().map(drop));
    is_closed(queue.pop_batch(1).map(drop));
    is_closed(queue.pop_wait().map(drop));
    is_closed(queue.pop_timeout(Duration::ZERO).map(drop));
    is_closed(queue.is_acked(seq).map(drop));
    is_closed(queue.wait_acked(seq, Duration::MAX).map(drop));
    is_closed(queue.purge().map(drop));
    is_closed(queue.peek().map(drop));
    is_closed(queue.get(seq).map(drop));
    is_closed(queue.iter().collect::<Result<Vec<_>, _>>().map(drop));
    is_closed(queue.try_push(b"x").map(drop));
    is_closed(queue.dead_letters().map(drop));
    is_closed(queue.redrive(1).map(drop));
    is_closed(queue.sync());
    is_closed(queue.maintain());
    is_closed(typed.push(&1).map(drop));
    is_closed(typed.pop().map(drop));
    let error = queue.push(b"x").unwrap_err();
    says(&error, &["closed", "open it again"]);
    assert!(!error.is_indeterminate());
    error
}

fn poisoned() -> Error {
    let (faults, options) = faulty();
    let queue = options.open("memory").unwrap();
    queue.push(b"kept").unwrap();
    let receipt = queue.submit(Message::new("open")).unwrap();
    faults.plan(FaultPlan::FailSyncs { error: ErrorKind::TimedOut });
    let error = receipt.wait().unwrap_err();
    assert!(error.is_indeterminate());
    let Error::Poisoned { operation, path, .. } = &error else { panic!("{error}") };
    says(&error, &["poisoned", operation, name(path), "close the queue", "open the queue again"]);
    assert_eq!(system_error(&error).unwrap().kind(), ErrorKind::TimedOut);
    // For ever, also once syncs work again; what is there can be worked on.
    faults.plan(FaultPlan::None);
    let refused = queue.push(b"x").unwrap_err();
    assert!(matches!(refused, Error::Poisoned { indeterminate: false, .. }), "never placed");
    assert!(queue.sync().is_err() && queue.len() == 2);
    queue.pop().unwrap().unwrap().ack().unwrap();
    error
}

fn unknown_seq() -> Error {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    let error = queue.is_acked(77.into()).unwrap_err();
    says(&error, &["message 77", "unknown", "Queue::recovery"]);
    error
}

fn decode() -> Error {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    queue.push(b"\x05abc").unwrap();
    let error = queue.typed::<String>().pop().unwrap_err();
    says(&error, &["message 1 does not decode", "Queue::pop"]);
    assert!(error.source().unwrap().downcast_ref::<postcard::Error>().is_some());
    error
}

fn encode() -> Error {
    struct Never;
    impl serde::Serialize for Never {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("never"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Never {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("never"))
        }
    }
    let dir = directory();
    let error = Queue::open(dir.path()).unwrap().typed().push(&Never).unwrap_err();
    says(&error, &["push", "does not encode", "nothing was pushed"]);
    assert!(error.source().unwrap().downcast_ref::<postcard::Error>().is_some());
    error
}

fn invalid_option() -> Error {
    let dir = directory();
    let error = Queue::options().segment_bytes(1).open(dir.path().join("q")).unwrap_err();
    says(&error, &["segment_bytes", "is 1", "65536 to 134217728"]);
    assert!(!dir.path().join("q").exists());
    error
}

fn io_error() -> Error {
    let dir = directory();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Queue::open(file.join("below")).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == file.join("below")));
    says(&error, &["create directory", name(&file)]);
    // Windows does not say why there is no such directory.
    let kind = if cfg!(windows) { ErrorKind::NotFound } else { ErrorKind::NotADirectory };
    assert_eq!(system_error(&error).unwrap().kind(), kind);
    error
}

/// Whatever operation of the storage fails, whoever is told is told the system's own error.
#[test]
fn no_kind_of_an_error_is_swallowed() {
    let mut told = 0;
    for stores_can_fail in [false, true] {
        for at in 0.. {
            let (faults, options) = faulty();
            faults.stores_can_fail(stores_can_fail);
            let mut results = Vec::new();
            faults.plan(FaultPlan::FailAt { at, error: ErrorKind::TimedOut, lasting: false });
            match options.open("memory") {
                Ok(queue) => {
                    results.extend((0..4).map(|_| queue.push(vec![1; 20_000]).map(drop)));
                    results.push(queue.push_batch([vec![2; 30_000], vec![3; 30_000]]).map(drop));
                    results.push(queue.pop().and_then(|job| job.map_or(Ok(()), Delivery::ack)));
                    results.push(queue.maintain());
                    results.push(queue.purge().map(drop));
                    results
                        .push(queue.push(Message::new("x").durability(Durability::Os)).map(drop));
                    results.push(queue.sync());
                    results.push(queue.close());
                }
                Err(error) => results.push(Err(error)),
            }
            for error in results.into_iter().filter_map(Result::err) {
                told += 1;
                let kind = system_error(&error).map(io::Error::kind);
                let is_right = kind == Some(ErrorKind::TimedOut) || matches!(error, Error::Closed);
                assert!(is_right, "operation {at}: {error:?}");
            }
            if faults.operations() <= at {
                break;
            }
        }
    }
    assert!(told > 50, "errors were told: {told}");
}

/// What the operating system refuses is told with its path, and nothing half made remains.
#[cfg(unix)]
#[test]
fn a_directory_that_must_not_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory();
    let sealed = dir.path().join("sealed");
    std::fs::create_dir(&sealed).unwrap();
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o500)).unwrap();
    let result = Queue::open(sealed.join("q"));
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o700)).unwrap();
    // The superuser may do it all the same.
    if let Err(error) = result {
        assert!(matches!(&error, Error::Io { path, .. } if *path == sealed.join("q")));
        assert_eq!(system_error(&error).unwrap().kind(), ErrorKind::PermissionDenied);
        says(&error, &["create directory", name(&sealed.join("q"))]);
        assert!(!sealed.join("q").exists());
    }
}

/// No lease lasts longer than 8 years, whatever `extend` is asked for.
#[test]
fn a_lease_is_extended_by_eight_years_at_most() {
    let (clock, dir) = (Arc::new(ManualClock::new(std::time::UNIX_EPOCH)), directory());
    let options = Queue::options().visibility_timeout(Duration::from_secs(60));
    let queue = options.clock(clock.clone()).background(false).open(dir.path()).unwrap();
    queue.push("a").unwrap();
    let job = queue.pop().unwrap().unwrap();
    job.extend(Duration::MAX).unwrap();
    let year = Duration::from_secs(365 * 24 * 3600);
    clock.advance(7 * year);
    assert!(queue.pop().unwrap().is_none());
    clock.advance(2 * year);
    assert_eq!(queue.pop().unwrap().unwrap().attempts(), 2);
    job.ack().unwrap_err();
}

/// A queue of dead letters said that an option of its queue had switched its own dead letters off.
#[test]
fn a_queue_of_dead_letters_says_why_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path().join("q")).unwrap();
    queue.push("a").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let dead = queue.dead_letters().unwrap();
    let told = dead.redrive(1).unwrap_err().to_string();
    assert!(told.contains("dead letters") && !told.contains("Options::"), "{told}");
    let letter = dead.pop_wait().unwrap();
    let shown = format!("{:?}", letter.dead_letter().unwrap());
    assert!(shown.contains("cause: Rejected") && shown.contains("attempts: 1"), "{shown}");
}
