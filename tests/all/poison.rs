//! A message that kills whoever takes it: a real process, killed again and again while it holds it.
//!
//! `KEEPQ_POISON_KILLS` sets how often (default 100).

use crate::support::cases;
use crate::support::process::again;
use keepq::{DeathCause, Options, Queue};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

fn options(max_attempts: u64) -> Options {
    Queue::options().max_attempts(u32::try_from(max_attempts).unwrap()).segment_bytes(65_536)
}

fn kills() -> u64 {
    cases("KEEPQ_POISON_KILLS", 100)
}

/// Not a test by itself: takes the message, tells how often it was handed out, and holds it.
#[test]
fn child() {
    let Some(path) = std::env::var_os("KEEPQ_POISON_CHILD") else { return };
    let queue = options(kills()).open(Path::new(&path)).unwrap();
    let job = queue.pop().unwrap().unwrap();
    std::io::stdout().write_all(format!("\n@{}\n", job.attempts()).as_bytes()).unwrap();
    if job.attempts().is_multiple_of(3) {
        std::process::abort();
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_message_that_kills_its_consumer_ends_in_the_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    let seq = options(0).open(dir.path()).unwrap().push("poison").unwrap();
    for kill in 1..=kills() {
        let mut child = again("poison::child")
            .env("KEEPQ_POISON_CHILD", dir.path())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix('@')?.parse().ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(told, Some(kill), "the attempts rise by one with each kill");
    }
    let queue = options(kills()).open(dir.path()).unwrap();
    assert!(queue.pop().unwrap().is_none(), "nobody is given it any more");
    queue.maintain().unwrap();
    let letter = queue.dead_letters().unwrap().pop().unwrap().unwrap();
    let death = letter.dead_letter().unwrap();
    assert_eq!((death.seq(), death.cause()), (seq, DeathCause::Attempts));
    assert_eq!((u64::from(death.attempts()), &letter[..]), (kills(), &b"poison"[..]));
    letter.ack().unwrap();
    assert_eq!((queue.len(), queue.stats().dying(), queue.stats().dead_letters()), (0, 0, 0));
}
