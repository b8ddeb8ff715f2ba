//! The examples, started, killed and started again: what they promise holds at the end.
//!
//! The moments of the kills come from `KEEPQ_EXAMPLES_SEED`.

use crate::support::process::was_killed;
use crate::support::{DEADLINE, Dice, cases};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `cargo test` builds the examples along with the tests, in a directory beside theirs; a test
/// that runs alone has to ask for it.
fn example(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", name]);
    build.args((!cfg!(debug_assertions)).then_some("--release"));
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.exists(), "{} is built", path.display());
    path
}

fn dice() -> Dice {
    Dice(cases("KEEPQ_EXAMPLES_SEED", 3))
}

/// Starts the example, and kills it once `is_time`; tells the first line that it said, and whether
/// it was still running.
fn kill_when(mut example: Command, mut is_time: impl FnMut() -> bool) -> (String, bool) {
    let mut child = example.stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !is_time() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no progress: {example:?}");
        std::thread::sleep(Duration::from_micros(300));
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let status = output.status;
    assert!(status.success() || was_killed(status), "failed by itself: {status}");
    let said = String::from_utf8_lossy(&output.stdout);
    (said.lines().next().unwrap_or_default().to_string(), !status.success())
}

/// Runs the example to its end, and gives what it says.
fn finish(mut example: Command) -> String {
    let pipes = example.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it hangs: {example:?}: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}: {said}{errors}", output.status);
    said
}

fn bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The lines of a file that an example keeps, each without its checksum.
fn lines(path: &Path) -> Vec<Vec<u64>> {
    let text = fs::read_to_string(path).unwrap();
    let numbers = |line: &str| numbers(line.rsplit_once(' ').unwrap().0);
    text.lines().map(numbers).collect()
}

/// The line that contains this, or a panic.
fn line<'t>(text: &'t str, part: &str) -> &'t str {
    let found = text.lines().find(|line| line.contains(part));
    found.unwrap_or_else(|| panic!("no {part:?} in {text:?}"))
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn orders_add_up_after_any_number_of_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut dice) = (example("orders"), dice());
    let command = || {
        let mut command = Command::new(&path);
        command.arg(dir.path()).arg("800");
        command
    };
    let book = |name: &str| dir.path().join(name);
    let progress =
        || ["reserved", "charged", "shipped"].map(|name| bytes(&book(name))).iter().sum::<u64>();
    let mut kills = 0;
    for _ in 0..10 {
        let enough: u64 = progress() + 1 + dice.below(2000);
        kills += u32::from(kill_when(command(), || progress() >= enough).1);
    }
    assert!(kills >= 3, "it was killed {kills} times before it was done");
    let said = finish(command());
    assert_eq!(numbers(line(&said, "orders ="))[0], 800);
    // The books themselves: every order once in each that it belongs to, and in no other.
    let book = |name: &str| {
        let entries: Vec<u64> = lines(&book(name)).iter().map(|line| line[0]).collect();
        let distinct: BTreeSet<u64> = entries.iter().copied().collect();
        assert_eq!(entries.len(), distinct.len(), "{name} has an order twice");
        distinct
    };
    let (reserved, charged) = (book("reserved"), book("charged"));
    let (shipped, declined) = (book("shipped"), book("declined"));
    assert_eq!(reserved.len(), 800);
    assert_eq!(charged, shipped);
    assert!(charged.is_disjoint(&declined) && !declined.is_empty());
    assert_eq!(&charged | &declined, reserved);
    let again = finish(command());
    assert!(line(&again, "are done").starts_with("800 of 800"));
    let mut other = Command::new(&path);
    assert!(!other.arg(dir.path()).arg("801").output().unwrap().status.success(), "another count");
}

#[test]
fn money_is_conserved_after_any_number_of_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut dice) = (example("ledger"), dice());
    let command = |count: &str| {
        let mut command = Command::new(&path);
        command.arg(dir.path()).arg(count);
        command
    };
    let (journal, receipts) = (dir.path().join("journal"), dir.path().join("receipts"));
    for round in 0..15 {
        // Some die before the first new line, some later.
        let enough = bytes(&journal) + dice.below(2) * (1 + dice.below(20_000));
        let (_, was_killed) = kill_when(command("90000000"), || bytes(&journal) >= enough);
        assert!(was_killed, "round {round}");
    }
    let said = finish(command("1999"));
    let sums: Vec<_> = said.lines().filter(|line| line.contains("cents in all")).collect();
    assert_eq!(sums, ["50 accounts, 50000 cents in all"; 2]);
    let counts = numbers(line(&said, "receipts"));
    assert!(counts[1] >= counts[0] && counts[0] > 1999, "{counts:?}");
    assert_eq!(numbers(line(&said, "accepted;"))[2], 1999);
    // The journal itself, without the example's help.
    let journal = lines(&journal);
    assert!(journal.is_sorted_by(|a, b| a[0] < b[0]), "a transfer was applied twice");
    let applied: BTreeSet<u64> = journal.iter().map(|line| line[0]).collect();
    let mut accepted = lines(&receipts).into_iter().map(|line| line[0]);
    assert!(accepted.all(|seq| applied.contains(&seq)), "an accepted transfer is lost");
    let mut balances = [1000u64; 50];
    for line in journal {
        let [from, to] = [line[1] as usize, line[2] as usize];
        balances[from] = balances[from].checked_sub(line[3]).expect("overdrawn");
        balances[to] += line[3];
        assert_eq!([balances[from], balances[to]], line[4..], "after transfer {}", line[0]);
    }
    assert_eq!(balances.iter().sum::<u64>(), 50_000);
}

#[test]
fn the_pipeline_works_on_what_a_kill_left_over() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut dice) = (example("pipeline"), dice());
    let command = |count: &str| {
        let mut command = Command::new(&path);
        command.arg(dir.path()).arg(count);
        command
    };
    // Each run makes segments of its own once it pushes.
    let newest = || {
        let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).max()
    };
    let mut left_over = Vec::new();
    while left_over.len() < 8 || left_over.iter().all(|&left| left == 0) {
        assert!(left_over.len() < 100, "a kill leaves something");
        let (before, after) = (newest(), Duration::from_millis(dice.below(80)));
        let mut moment = None;
        let is_time = || {
            let is_pushing = moment.is_some() || newest() > before;
            is_pushing && Instant::now() >= *moment.get_or_insert(Instant::now() + after)
        };
        let (first, was_killed) = kill_when(command("90000000"), is_time);
        assert!(was_killed);
        left_over.extend(numbers(&first));
    }
    let said = finish(command("30000"));
    let left = numbers(line(&said, "are left from the last run"))[0];
    let summary = line(&said, "worked on");
    assert_eq!(numbers(summary)[..3], [30_000 + left, 30_000, left], "{summary}");
    assert!(left <= 10_000, "the backlog is bounded: {left}");
    let latencies: Vec<u64> = said
        .lines()
        .filter(|line| line.contains("took at most"))
        .map(|line| *numbers(line).last().unwrap())
        .collect();
    assert!(latencies.len() == 5 && latencies.is_sorted(), "{said}");
    assert_eq!(finish(command("3")).lines().next(), Some("0 messages are left from the last run"));
}

#[test]
fn every_task_is_done_once_and_in_time_after_any_number_of_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut dice) = (example("schedule"), dice());
    let command = || {
        let mut command = Command::new(&path);
        command.arg(dir.path()).arg("300");
        command
    };
    let done = dir.path().join("done");
    let mut kills = 0;
    for _ in 0..10 {
        let enough = bytes(&done) + 1 + dice.below(400);
        kills += u32::from(kill_when(command(), || bytes(&done) >= enough).1);
    }
    assert!(kills >= 3, "it was killed {kills} times before it was done");
    let said = finish(command());
    assert_eq!(numbers(line(&said, "each once and none too early")), [300, 300]);
    let ids: Vec<u64> = lines(&done).iter().map(|line| line[0]).collect();
    assert_eq!(ids.len(), 300);
    assert_eq!(ids.into_iter().collect::<BTreeSet<u64>>(), (0..300).collect());
    // Those that could only succeed after the fix, and were given up before.
    assert!(dir.path().join("fixed").exists());
    let queue = keepq::Queue::open(dir.path().join("tasks")).unwrap();
    assert_eq!((queue.len(), queue.delayed(), queue.stats().dead_letters()), (0, 0, 0));
}

/// A log that was replaced while the queue still held lines of the old one must not be mixed up
/// with it.
#[test]
fn lines_of_another_log_are_not_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("in.log"), dir.path().join("out.log"));
    let queue = keepq::Queue::open(dir.path().join("out.log.queue")).unwrap();
    queue.push([&0u64.to_le_bytes()[..], b"a line of the old log\n"].concat()).unwrap();
    drop(queue);
    fs::write(&file, b"the new log\nhas other lines\n").unwrap();
    let path = example("ship_log");
    let refused = Command::new(path).args([&file, &out]).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("is not the beginning of the log"), "{said}");
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
    let (path, mut dice) = (example("ship_log"), dice());
    let content = log(&mut dice, 40 << 20);
    fs::write(&file, &content).unwrap();
    let command = || {
        let mut command = Command::new(&path);
        command.args([&file, &out]);
        command
    };
    let is_whole = || {
        let copy = fs::read(&out).unwrap_or_default();
        assert!(content.starts_with(&copy), "a line is lost, doubled or changed");
        copy.len() == content.len()
    };
    let mut kills = 0;
    for round in 0..25 {
        // By its progress, and at any time, also before it has begun.
        let enough = bytes(&out) + dice.below(1 << 20);
        let moment = Instant::now() + Duration::from_millis(5 + dice.below(60));
        let is_time = || if round < 8 { bytes(&out) > enough } else { Instant::now() >= moment };
        kills += u32::from(kill_when(command(), is_time).1);
        is_whole();
    }
    assert!(kills > 3, "it was killed {kills} times before it was done");
    finish(command());
    assert!(is_whole());
}

#[test]
fn refuses_what_is_not_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("in.log"), dir.path().join("out.log"));
    fs::write(&file, b"a\nb\n").unwrap();
    fs::write(&out, b"x\n").unwrap();
    let path = example("ship_log");
    let refused = Command::new(&path).args([&file, &out]).output().unwrap();
    assert!(!refused.status.success());
    assert_eq!(fs::read(&out).unwrap(), b"x\n");
    fs::write(&out, b"").unwrap();
    assert!(Command::new(&path).args([&file, &out]).output().unwrap().status.success());
    assert_eq!(fs::read(&out).unwrap(), b"a\nb\n");
}
