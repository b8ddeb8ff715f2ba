//! The jobs: what is measured, with whom, and how long it is expected to take.

mod age;
mod depth;
mod durable;
mod flow;
mod idle;
mod open;
mod pop;
mod push;
mod space;
mod writes;

pub(crate) use idle::idle_child;
pub(crate) use open::{fill_child, open_child};

use crate::contender::{Answer, Contender, Keeps, Kind};
use crate::measure::{Figure, Limits, noise};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Quick,
    Full,
}

impl Mode {
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.pick("quick", "full")
    }
}

/// Where one measurement runs, and how long.
pub(crate) struct Scene<'a> {
    /// A fresh directory.
    pub(crate) directory: &'a Path,
    pub(crate) limits: Limits,
}

impl Scene<'_> {
    pub(crate) fn queue(&self) -> PathBuf {
        self.directory.join("queue")
    }

    pub(crate) fn open(&self, kind: &Kind) -> Box<dyn Contender> {
        (kind.open)(&self.queue())
    }
}

type Run = Box<dyn Fn(&Scene<'_>) -> Vec<Figure>>;
type RunTogether = Box<dyn Fn(&Scene<'_>, &[Kind]) -> Vec<(&'static str, Figure)>>;

/// One that takes part: a contender, or a limit.
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    pub(crate) kind: Option<Kind>,
    pub(crate) run: Run,
}

impl Entrant {
    pub(crate) fn limit(
        name: &'static str,
        run: impl Fn(&Scene<'_>) -> Vec<Figure> + 'static,
    ) -> Self {
        Self { name, kind: None, run: Box::new(run) }
    }

    pub(crate) fn contender(
        kind: Kind,
        run: impl Fn(&Scene<'_>, &Kind) -> Vec<Figure> + 'static,
    ) -> Self {
        Self { name: kind.name, kind: Some(kind), run: Box::new(move |scene| run(scene, &kind)) }
    }
}

pub(crate) enum Part {
    /// All take turns, each in a fresh directory, round after round.
    InTurn(Vec<Entrant>),
    /// One run handles all of them, as they wait for the same seconds.
    Together(Vec<Kind>, RunTogether),
}

/// Some measurements that belong together.
pub(crate) struct Job {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) parts: Vec<Part>,
    /// The seconds that one entrant takes in one round, without its limits of time.
    pub(crate) aside: f64,
    /// How many times its limit of time one entrant takes in one round.
    pub(crate) times: f64,
    /// At most so many rounds.
    pub(crate) rounds: usize,
    /// Who is left out, and why.
    pub(crate) left_out: Vec<(&'static str, String)>,
}

impl Job {
    fn new(id: &'static str, title: &'static str) -> Self {
        let (parts, left_out) = (Vec::new(), Vec::new());
        Self { id, title, parts, aside: 0.02, times: 1.0, rounds: usize::MAX, left_out }
    }

    /// Those who take part with payloads of this length; notes the others.
    fn choose(
        &mut self,
        kinds: &[Kind],
        payload: usize,
        belongs: impl Fn(&Kind) -> bool,
    ) -> Vec<Kind> {
        let mut chosen = Vec::new();
        for kind in kinds.iter().filter(|kind| belongs(kind)) {
            match kind.left_out(self.id, payload) {
                None => chosen.push(*kind),
                Some(why) => {
                    let line = (kind.name, why);
                    if !self.left_out.contains(&line) {
                        self.left_out.push(line);
                    }
                }
            }
        }
        chosen
    }

    /// The seconds that it takes with measurements of this time.
    pub(crate) fn seconds(&self, time: Duration, rounds: usize) -> f64 {
        let each = self.aside + self.times * time.as_secs_f64();
        let seconds = |part: &Part| match part {
            Part::InTurn(entrants) => (entrants.len() * rounds.min(self.rounds)) as f64 * each,
            Part::Together(kinds, _) => self.times * 10.0 + kinds.len() as f64 * self.aside,
        };
        self.parts.iter().map(seconds).fold(0.0, |sum, part| sum + part)
    }
}

/// All jobs, with those of the kinds that take part.
pub(crate) fn all(mode: Mode, kinds: &[Kind]) -> Vec<Job> {
    let mut jobs = push::jobs(kinds);
    jobs.extend(durable::jobs(kinds));
    jobs.extend([pop::job(kinds), flow::job(kinds), age::job(mode, kinds)]);
    jobs.extend([open::job(mode, kinds), depth::job(mode, kinds), space::job(kinds)]);
    jobs.extend([writes::job(kinds), idle::job(mode, kinds)]);
    let place = |job: &Job| job.id.trim_start_matches('P').parse().unwrap_or(0);
    jobs.sort_by_key(place);
    jobs
}

/// Whether a kind stands for its crate where the promise of a push is not what is measured: the
/// one that is not synced, or else the synced one.
fn stands_for_crate(kinds: &[Kind], kind: &Kind) -> bool {
    let has_unsynced = || {
        let mut others = kinds.iter().filter(|other| other.package == kind.package);
        others.any(|other| other.keeps == Keeps::Kill)
    };
    kind.keeps == Keeps::Kill || (kind.keeps == Keeps::Power && !has_unsynced())
}

/// Fills a queue in batches of a thousand, with payloads that differ.
pub(crate) fn fill(queue: &dyn Contender, messages: u64, payload: usize) {
    let pool = noise(1000 * payload);
    let batch: Vec<&[u8]> = pool.chunks(payload).collect();
    let mut left = messages as usize;
    while left > 0 {
        let now = left.min(batch.len());
        queue.push_batch(&batch[..now]);
        left -= now;
    }
}

/// Pops and acks all that is there, and counts it.
pub(crate) fn drain(queue: &dyn Contender) -> u64 {
    let mut count = 0;
    loop {
        match queue.take(1000, &mut |_| Answer::Ack) {
            0 => return count,
            popped => count += popped as u64,
        }
    }
}
