//! The example `ship_log`, killed again and again: the copy ends up identical.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a test may fail"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::Dice;

/// `cargo test` builds the examples along with the tests, in a directory beside theirs; a test
/// that runs alone has to ask for it.
fn example() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", "ship_log"]);
    build.args((!cfg!(debug_assertions)).then_some("--release"));
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().and_then(Path::parent).unwrap();
    let path =
        profile.join("examples").join("ship_log").with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.exists(), "{} is built", path.display());
    path
}

fn log(dice: &mut Dice, bytes: usize) -> Vec<u8> {
    let mut log = Vec::new();
    while log.len() < bytes {
        let len = if dice.one_in(2000) { 3_000_000 } else { dice.below(300) };
        // Empty lines, line ends of other systems and bytes that are no text are lines, too.
        log.extend((0..len).map(|_| match dice.next() as u8 {
            b'\n' => b'\r',
            byte => byte,
        }));
        log.push(b'\n');
    }
    log.extend(b"a last line without an end");
    log
}

#[test]
fn killed_again_and_again_the_copy_is_identical() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("in.log"), dir.path().join("out.log"));
    let mut dice = Dice(3);
    let content = log(&mut dice, 40 << 20);
    fs::write(&file, &content).unwrap();
    let mut kills = 0;
    loop {
        let mut child =
            Command::new(example()).args([&file, &out]).stdout(Stdio::null()).spawn().unwrap();
        if kills < 25 {
            // The moment of the kill is what this test is about.
            std::thread::sleep(Duration::from_millis(5 + dice.below(60)));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        let copy = fs::read(&out).unwrap_or_default();
        assert!(content.starts_with(&copy), "a line is lost, doubled or changed");
        if status.success() {
            assert_eq!(copy.len(), content.len());
            break;
        }
        assert_eq!(status.code(), None, "failed by itself: {status}");
        kills += 1;
    }
    assert!(kills > 3, "it was killed {kills} times before it was done");
}

#[test]
fn refuses_what_is_not_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("in.log"), dir.path().join("out.log"));
    fs::write(&file, b"a\nb\n").unwrap();
    fs::write(&out, b"x\n").unwrap();
    let refused = Command::new(example()).args([&file, &out]).output().unwrap();
    assert!(!refused.status.success());
    assert_eq!(fs::read(&out).unwrap(), b"x\n");
    fs::write(&out, b"").unwrap();
    assert!(Command::new(example()).args([&file, &out]).output().unwrap().status.success());
    assert_eq!(fs::read(&out).unwrap(), b"a\nb\n");
}
