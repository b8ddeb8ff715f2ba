//! P12: the disk that a queue takes: waiting, all acked, one in a thousand left; right away, and
//! ten seconds later.

use super::open::count;
use super::{Job, Part, Scene, drain, fill, stands_for_crate};
use crate::child::disk;
use crate::contender::{Acks, Answer, Contender, Kind};
use crate::measure::{Figure, Unit, Work};
use crate::plan::shielded;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MESSAGES: u64 = 1_000_000;
const PAYLOAD: usize = 100;
const LATER: Duration = Duration::from_secs(10);
/// One message in this many is left.
const LEFT: u64 = 1000;

pub(super) fn job(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P12", "disk: 1 M x 100 B waiting, all acked, 1 in 1,000 left");
    job.aside = 1.3;
    job.times = 2.0;
    let mut chosen = job.choose(kinds, PAYLOAD, |kind| stands_for_crate(kinds, kind));
    for kind in &chosen {
        let acks = kind.acks.words();
        match kind.acks {
            Acks::AnyOrder => {}
            Acks::NoPop => job.left_out.push((kind.name, "no pop".into())),
            _ => {
                let why = format!("only waiting, and all acked: acks: {acks}");
                job.left_out.push((kind.name, why));
            }
        }
    }
    chosen.retain(Kind::pops);
    job.parts.push(Part::Together(chosen, Box::new(states)));
    job
}

/// Takes all contenders through all states, so that they wait for the same seconds.
fn states(scene: &Scene<'_>, kinds: &[Kind]) -> Vec<(&'static str, Figure)> {
    let mut all: Vec<(&'static str, Held)> = Vec::new();
    for kind in kinds {
        let held = shielded(&format!("P12 {}", kind.name), || Held::new(scene, kind));
        all.extend(held.map(|held| (kind.name, held)));
    }
    for (_, held) in &mut all {
        held.note_later();
    }
    for (name, held) in &mut all {
        shielded(&format!("P12 {name}"), || held.drain());
    }
    for (_, held) in &mut all {
        held.note_later();
    }
    let mut figures = Vec::new();
    for (name, mut held) in all {
        // What belongs together, in the order of the ages.
        let state = |figure: &Figure| Some(figure.work.name.rsplit_once(", ")?.0.to_string());
        held.figures.sort_by_key(state);
        figures.extend(held.figures.iter().map(|figure| (name, figure.clone())));
        shielded(&format!("P12 {name}"), || held.close());
    }
    figures
}

/// A queue whose files are looked at.
struct Open {
    queue: Box<dyn Contender>,
    path: PathBuf,
    what: String,
    since: Instant,
}

/// The queues of one contender: one that is full and then drained, one that keeps a few.
struct Held {
    open: Vec<Open>,
    figures: Vec<Figure>,
}

impl Held {
    fn new(scene: &Scene<'_>, kind: &Kind) -> Self {
        let mut held = Self { open: Vec::new(), figures: Vec::new() };
        let opened = |suffix: &str, what: String| {
            let path = scene.directory.join(format!("{} {suffix}", kind.name));
            let queue = (kind.open)(&path);
            fill(&*queue, MESSAGES, PAYLOAD);
            Open { queue, path, what, since: Instant::now() }
        };
        let full = opened("full", format!("{} x 100 B waiting", count(MESSAGES)));
        let few = (kind.acks == Acks::AnyOrder).then(|| {
            let few = opened("few", format!("1 in 1,000 of {} left", count(MESSAGES)));
            let mut number = 0;
            let mut answer = |_: &[u8]| {
                number += 1;
                if number % LEFT == 0 { Answer::Keep } else { Answer::Ack }
            };
            while few.queue.take(1000, &mut answer) > 0 {}
            Open { since: Instant::now(), ..few }
        });
        held.open.push(full);
        held.open.extend(few);
        (0..held.open.len()).for_each(|at| held.note(at, "right away"));
        held
    }

    fn note(&mut self, at: usize, when: &str) {
        let open = &self.open[at];
        let work = Work::new("P12", format!("{}, {when}", open.what), PAYLOAD).unit(Unit::Mib);
        let mib = disk(&open.path) as f64 / f64::from(1 << 20);
        self.figures.push(Figure::plain(work, mib, 0, open.since.elapsed()));
    }

    fn note_later(&mut self) {
        for at in 0..self.open.len() {
            std::thread::sleep(LATER.saturating_sub(self.open[at].since.elapsed()));
            self.note(at, "10 s later");
        }
    }

    /// Acks all of the full one; the other was looked at twice, and is closed.
    fn drain(&mut self) {
        if let Some(few) = (self.open.len() > 1).then(|| self.open.pop()).flatten() {
            few.queue.close();
        }
        let open = &mut self.open[0];
        assert!(drain(&*open.queue) > 0);
        open.what = "all acked".into();
        open.since = Instant::now();
        self.note(0, "right away");
    }

    fn close(self) {
        self.open.into_iter().for_each(|open| open.queue.close());
    }
}
