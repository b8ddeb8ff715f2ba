//! P14: what idle queues take: disk, memory, threads, descriptors.

use super::{Job, Mode, Part, Scene, drain, fill, stands_for_crate};
use crate::child::{self, Child, disk};
use crate::contender::Kind;
use crate::measure::{Figure, Unit, Work};
use crate::plan::note_failure;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A second more than ten: what happens after ten seconds has happened.
const IDLE: Duration = Duration::from_secs(11);
/// How long a process has for opening all of its queues.
const OPENS: Duration = Duration::from_secs(30);

pub(super) fn job(mode: Mode, kinds: &[Kind]) -> Job {
    let mut job = Job::new("P14", "idle for ten seconds: one queue, and many");
    let many = mode.pick(100, 1000);
    job.aside = mode.pick(0.8, 5.5);
    job.times = mode.pick(2.2, 6.0);
    let chosen = job.choose(kinds, 0, |kind| stands_for_crate(kinds, kind));
    job.parts.push(Part::Together(
        chosen,
        Box::new(move |scene, kinds| {
            let mut figures = idle(scene, kinds, 1);
            // Few at a time, as a thousand queues may take much memory.
            let at_once = mode.pick(kinds.len().max(1), 3);
            for some in kinds.chunks(at_once) {
                let (can, cannot): (Vec<Kind>, Vec<Kind>) =
                    some.iter().partition(|kind| kind.left_out("P14 many", 0).is_none());
                for kind in cannot {
                    let why = kind.left_out("P14 many", 0).unwrap_or_default();
                    note_failure(format!("P14 {}: {many} queues: {why}", kind.name));
                }
                figures.extend(idle(scene, &can, many));
            }
            figures
        }),
    ));
    job
}

struct Sleeper {
    kind: Kind,
    child: Child,
    path: PathBuf,
    since: Instant,
}

/// A process for each kind, with so many queues; all of them sleep at the same time.
fn idle(scene: &Scene<'_>, kinds: &[Kind], queues: usize) -> Vec<(&'static str, Figure)> {
    let mut sleepers = Vec::new();
    for kind in kinds {
        let path = scene.directory.join(format!("{} x {queues}", kind.name));
        let arguments = ["idle", kind.name, path.to_str().unwrap(), &queues.to_string()];
        let mut child = Child::start(&arguments);
        if child.line(OPENS).as_deref() == Some("open") {
            sleepers.push(Sleeper { kind: *kind, child, path, since: Instant::now() });
        } else {
            let why = match child.ended() {
                Some(status) => format!("the process fails ({status})"),
                None => format!("not open after {} s", OPENS.as_secs()),
            };
            note_failure(format!("P14 {}: {queues} queues: {why}", kind.name));
            child.kill();
        }
    }
    let mut figures = Vec::new();
    for mut sleeper in sleepers {
        std::thread::sleep(IDLE.saturating_sub(sleeper.since.elapsed()));
        figures.extend(look(&sleeper, queues).map(|figure| (sleeper.kind.name, figure)));
        sleeper.child.kill();
        std::fs::remove_dir_all(&sleeper.path).unwrap();
    }
    figures
}

fn look(sleeper: &Sleeper, queues: usize) -> [Figure; 4] {
    let pid = sleeper.child.pid();
    let plural = if queues == 1 { "queue" } else { "queues" };
    let figure = |what: &str, unit, value| {
        let work = Work::new("P14", format!("{what}, {queues} idle {plural}"), 0).unit(unit);
        Figure::plain(work, value, 0, sleeper.since.elapsed())
    };
    let mib = f64::from(1 << 20);
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    [
        figure("disk", Unit::Mib, disk(&sleeper.path) as f64 / mib),
        figure("memory", Unit::Mib, child::status(pid, "VmRSS:") as f64 / 1024.0),
        figure("threads", Unit::Count, child::status(pid, "Threads:") as f64),
        figure("descriptors", Unit::Count, descriptors as f64),
    ]
}

/// Opens queues, uses each a little, and sleeps until it is killed. A single one has 10 MiB pushed
/// and popped.
pub(crate) fn idle_child(kind: &Kind, path: &Path, queues: usize) {
    child::raise_descriptors();
    let messages = if queues == 1 { 10_000 } else { 1 };
    let mut open = Vec::new();
    for number in 0..queues {
        let queue = (kind.open)(&path.join(number.to_string()));
        fill(&*queue, messages, 1024);
        if kind.pops() {
            drain(&*queue);
        }
        open.push(queue);
    }
    child::say("open");
    child::wait_for_kill();
    drop(open);
}
