//! Tests what each configuration promises: a child process is killed with SIGKILL, and another one
//! counts what is there; the syncs of a third are counted by strace.

use crate::child::{self, Child};
use crate::contender::{Acks, Answer, Keeps, Kind};
use crate::plan::directory;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// How many confirmed pushes a child is killed after, at least.
const PUSHES: u64 = 2000;
/// How many messages are pushed, of which half are acked.
const POPPED: usize = 10;
/// How many pushes are made while syncs are counted.
const COUNTED: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(kinds: &[Kind], out: &Path) -> ExitCode {
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    if !has_strace {
        println!("there is no strace: syncs are not counted");
    }
    let mut table = String::from(
        "| contender | declared | confirmed, found after kill -9 | 10 pushed, 5 acked, kill -9 | \
         syncs a push | |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    let mut failed = 0;
    for kind in kinds {
        let mut faults = Vec::new();
        let kept = after_kill(kind, &mut faults);
        let answered = acks_after_kill(kind, &mut faults);
        let syncs = if has_strace { syncs_of(kind, &mut faults) } else { "not counted".into() };
        failed += usize::from(!faults.is_empty());
        let verdict = if faults.is_empty() { "held".into() } else { faults.join("; ") };
        let declared = format!("{}, acks {}", kind.keeps.letter(), kind.acks.words());
        let row =
            format!("| {} | {declared} | {kept} | {answered} | {syncs} | {verdict} |", kind.name);
        println!("{row}");
        writeln!(table, "{row}").unwrap();
    }
    std::fs::write(out.join("check.md"), table).unwrap();
    if failed > 0 {
        println!("{failed} do not hold what is declared");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Kills a process while it pushes, and counts what another one finds.
fn after_kill(kind: &Kind, faults: &mut Vec<String>) -> String {
    let directory = directory();
    let path = directory.path().join("queue");
    let path = path.to_str().unwrap();
    let mut child = Child::start(&["push", kind.name, path]);
    let mut confirmed = 0;
    while confirmed < PUSHES {
        let Some(line) = child.line(PATIENCE) else {
            faults.push("stops pushing".into());
            return "nothing".into();
        };
        confirmed = line.parse().unwrap();
    }
    let last = child.kill().and_then(|line| line.parse().ok());
    let confirmed = last.unwrap_or(confirmed);
    let Some(found) = count(kind, path) else {
        if kind.keeps != Keeps::Nothing {
            faults.push("cannot be opened after a kill".into());
        }
        return format!("{confirmed}, cannot be opened");
    };
    let is_held = found.messages >= confirmed && found.is_in_order;
    if kind.keeps != Keeps::Nothing && !is_held {
        faults.push("loses messages, or their order, when it is killed".into());
    }
    // At most the push that was under way, or that was not told of yet, comes on top.
    if found.messages > confirmed + 1000 {
        faults.push("finds messages that were never pushed".into());
    }
    let order = if found.is_in_order { "" } else { ", wrong ones" };
    format!("{confirmed}, {}{order}", found.messages)
}

struct Found {
    messages: u64,
    /// The payloads are some that were pushed, in order.
    is_in_order: bool,
}

fn count(kind: &Kind, path: &str) -> Option<Found> {
    let mut counter = Child::start(&["count", kind.name, path]);
    let line = counter.line(PATIENCE)?;
    counter.kill();
    let (messages, is_in_order) = line.split_once(' ')?;
    Some(Found { messages: messages.parse().ok()?, is_in_order: is_in_order == "true" })
}

/// Pops some, acks every other one or the first half, is killed; counts what comes again.
fn acks_after_kill(kind: &Kind, faults: &mut Vec<String>) -> String {
    if kind.acks == Acks::NoPop || kind.keeps == Keeps::Nothing {
        return "not tested".into();
    }
    let directory = directory();
    let path = directory.path().join("queue");
    let path = path.to_str().unwrap();
    let mut child = Child::start(&["ack", kind.name, path]);
    let said = child.line(PATIENCE);
    child.kill();
    if said.as_deref() != Some("acked") {
        faults.push("cannot pop and ack".into());
        return "nothing".into();
    }
    let Some(found) = count(kind, path) else {
        faults.push("cannot be opened after acks and a kill".into());
        return "cannot be opened".into();
    };
    let half = POPPED as u64 / 2;
    let is_held = match kind.acks {
        Acks::AnyOrder | Acks::AtPop => found.messages == half,
        Acks::InOrder => (half..=2 * half).contains(&found.messages),
        Acks::Unkept => found.messages == 2 * half,
        Acks::NoPop => true,
    };
    if !is_held {
        faults.push("acks are not what is declared".into());
    }
    format!("{} of {POPPED} come again", found.messages)
}

/// Counts the calls that sync, for each push of one thread.
fn syncs_of(kind: &Kind, faults: &mut Vec<String>) -> String {
    let count = |pushes: u64| {
        let directory = directory();
        let (path, counts) = (directory.path().join("queue"), directory.path().join("strace"));
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=fsync,fdatasync,msync,syncfs,sync_file_range", "-o"]);
        command.arg(&counts).arg(std::env::current_exe().unwrap());
        command.args(["some", kind.name]).arg(path).arg(pushes.to_string());
        let mut child = Child::of(command);
        child.line(PATIENCE)?;
        child.kill();
        let calls = std::fs::read_to_string(counts).ok()?;
        let is_sync = |line: &&str| {
            line.contains("sync") && !line.contains("resumed") && !line.contains("MS_ASYNC")
        };
        Some(calls.lines().filter(is_sync).count() as u64)
    };
    // What opening and the first push take is not counted.
    let (Some(few), Some(many)) = (count(1), count(1 + COUNTED)) else {
        return "not counted".into();
    };
    let each = many.saturating_sub(few) as f64 / COUNTED as f64;
    if kind.keeps == Keeps::Power && each < 0.98 {
        faults.push("does not sync each push".into());
    }
    if kind.keeps != Keeps::Power && each > 0.5 {
        faults.push("syncs, though it is not declared".into());
    }
    format!("{each:.2}")
}

/// What the children do.
pub(crate) fn run_child(task: &str, kind: &Kind, path: &Path, number: u64) {
    let queue = (kind.open)(path);
    match task {
        // Pushes and tells, until it is killed.
        "push" => {
            for number in 0u64.. {
                queue.push(&payload(number));
                child::say(&(number + 1).to_string());
            }
        }
        "some" => {
            (0..number).for_each(|number| queue.push(&payload(number)));
            child::say("pushed");
            child::wait_for_kill();
        }
        "ack" => {
            // A batch, then one by one: both calls are tested.
            let all: Vec<[u8; 64]> = (0..POPPED as u64).map(payload).collect();
            let batch: Vec<&[u8]> = all.iter().map(<[u8; 64]>::as_slice).collect();
            queue.push_batch(&batch);
            let mut popped = 0;
            let mut answer = |_: &[u8]| {
                popped += 1;
                if popped % 2 == 1 { Answer::Ack } else { Answer::Keep }
            };
            // Acks that come in order, or at the pop, are those of the first half.
            let limit = if kind.acks == Acks::AnyOrder { POPPED } else { POPPED / 2 };
            for _ in 0..limit {
                assert_eq!(queue.take(1, &mut answer), 1);
            }
            child::say("acked");
            child::wait_for_kill();
        }
        "count" => {
            let (mut messages, mut is_in_order, mut last) = (0u64, true, None);
            while queue.take(100, &mut |payload| {
                let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
                is_in_order &= last.is_none_or(|last| last < number);
                is_in_order &= *payload == self::payload(number);
                last = Some(number);
                messages += 1;
                Answer::Ack
            }) > 0
            {}
            child::say(&format!("{messages} {is_in_order}"));
            child::wait_for_kill();
        }
        task => panic!("there is no task {task}"),
    }
}

fn payload(number: u64) -> [u8; 64] {
    let mut payload = [7; 64];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}
