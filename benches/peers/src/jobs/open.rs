//! P10: opening what a kill left, and the memory that it takes.

use super::{Entrant, Job, Mode, Part, Scene, fill, stands_for_crate};
use crate::child::{self, Child};
use crate::contender::{Answer, Kind};
use crate::limit;
use crate::measure::{Figure, Unit, Work};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

const PAYLOAD: usize = 100;
const SEGMENT: u64 = 64 << 20;

pub(super) fn job(mode: Mode, kinds: &[Kind]) -> Job {
    let mut job = Job::new("P10", "open with a backlog, after kill -9");
    job.rounds = mode.pick(1, 2);
    job.times = 0.0;
    job.aside = mode.pick(0.25, 1.4);
    let chosen = job.choose(kinds, PAYLOAD, |kind| stands_for_crate(kinds, kind));
    let mut backlogs = vec![10_000, 100_000, 1_000_000];
    if mode == Mode::Full {
        backlogs.push(10_000_000);
    }
    for messages in backlogs {
        let what = format!("{} waiting", count(messages));
        let works = [
            Work::new("P10", format!("open, {what}"), PAYLOAD).unit(Unit::Milliseconds),
            Work::new("P10", format!("memory at open, {what}"), PAYLOAD).unit(Unit::Mib),
        ];
        let work = works[0].clone();
        let mut entrants = vec![Entrant::limit("limit: read one segment", move |scene| {
            vec![read_segment(scene, &work)]
        })];
        for kind in chosen.clone() {
            let works = works.clone();
            entrants.push(Entrant::contender(kind, move |scene, kind| {
                open(scene, kind, messages, &works)
            }));
        }
        job.parts.push(Part::InTurn(entrants));
    }
    job
}

/// 10 k, 1 M.
pub(super) fn count(messages: u64) -> String {
    match messages {
        0..1000 => messages.to_string(),
        1000..1_000_000 => format!("{} k", messages / 1000),
        _ => format!("{} M", messages / 1_000_000),
    }
}

fn read_segment(scene: &Scene<'_>, work: &Work) -> Figure {
    let file = limit::made(&scene.directory.join("segment"));
    std::io::copy(&mut std::io::repeat(7).take(SEGMENT), &mut &file).unwrap();
    let start = Instant::now();
    limit::read_all(&file, SEGMENT);
    let took = start.elapsed();
    Figure::plain(work.clone(), took.as_secs_f64() * 1e3, 0, took)
}

fn open(scene: &Scene<'_>, kind: &Kind, messages: u64, works: &[Work; 2]) -> Vec<Figure> {
    let path = scene.queue();
    let mut filler =
        Child::start(&["fill", kind.name, path.to_str().unwrap(), &messages.to_string()]);
    assert_eq!(filler.line(Duration::from_secs(120)).as_deref(), Some("filled"));
    filler.kill();
    let mut opener = Child::start(&["open", kind.name, path.to_str().unwrap()]);
    let line = opener.line(Duration::from_secs(120)).expect("it opens");
    let mut figures = line.split(' ').map(|figure| figure.parse::<f64>().unwrap());
    let (micros, kib) = (figures.next().unwrap(), figures.next().unwrap());
    opener.kill();
    let took = Duration::from_secs_f64(micros / 1e6);
    vec![
        Figure::plain(works[0].clone(), micros / 1e3, messages, took),
        Figure::plain(works[1].clone(), kib / 1024.0, messages, took),
    ]
}

/// Fills a queue, says so, and waits for the kill.
pub(crate) fn fill_child(kind: &Kind, path: &Path, messages: u64) {
    let queue = (kind.open)(path);
    fill(&*queue, messages, PAYLOAD);
    child::say("filled");
    child::wait_for_kill();
}

/// Opens a queue, takes the first message if there is a pop, and prints the microseconds that the
/// open took, and the most KiB that the process had in memory.
pub(crate) fn open_child(kind: &Kind, path: &Path) {
    let start = Instant::now();
    let queue = (kind.open)(path);
    let took = start.elapsed();
    if kind.pops() {
        assert_eq!(queue.take(1, &mut |_| Answer::Ack), 1, "the backlog is gone");
    }
    let kib = child::status(std::process::id(), "VmHWM:");
    child::say(&format!("{} {kib}", took.as_micros()));
    child::wait_for_kill();
}
