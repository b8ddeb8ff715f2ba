//! P11: push and pop beside a backlog.

use super::open::count;
use super::{Entrant, Job, Mode, Part, Scene, fill};
use crate::contender::{Answer, Keeps, Kind};
use crate::measure::{Figure, Ran, Work, noise};
use std::time::{Duration, Instant};

const PAYLOAD: usize = 100;
/// Pushes and pops take turns in blocks, so that the depth stays.
const BLOCK: u64 = 500;

pub(super) fn job(mode: Mode, kinds: &[Kind]) -> Job {
    let mut job = Job::new("P11", "push and pop 100 B beside a backlog");
    job.rounds = mode.pick(1, 2);
    job.times = 2.0;
    job.aside = mode.pick(0.2, 2.5);
    let belongs = |kind: &Kind| kind.keeps == Keeps::Kill && kind.pops();
    let chosen = job.choose(kinds, PAYLOAD, belongs);
    let mut depths = vec![10_000, 1_000_000];
    if mode == Mode::Full {
        depths.push(10_000_000);
    }
    for depth in depths {
        let push = Work::new("P11", format!("push 100 B, {} waiting", count(depth)), PAYLOAD);
        let pop = Work::new("P11", format!("pop + ack 100 B, {} waiting", count(depth)), PAYLOAD);
        let mut entrants = Vec::new();
        for kind in chosen.clone() {
            let works = [push.clone(), pop.clone()];
            entrants.push(Entrant::contender(kind, move |scene, kind| {
                beside(scene, kind, depth, &works)
            }));
        }
        job.parts.push(Part::InTurn(entrants));
    }
    job
}

fn beside(scene: &Scene<'_>, kind: &Kind, depth: u64, works: &[Work; 2]) -> Vec<Figure> {
    let queue = scene.open(kind);
    let payload = noise(PAYLOAD);
    fill(&*queue, depth, PAYLOAD);
    let mut took = [Duration::ZERO; 2];
    let mut messages = 0;
    while took[0] + took[1] < scene.limits.time * 2 {
        let start = Instant::now();
        (0..BLOCK).for_each(|_| queue.push(&payload));
        let pushed = start.elapsed();
        let popped = (0..BLOCK).map(|_| queue.take(1, &mut |_| Answer::Ack)).sum::<usize>();
        took = [took[0] + pushed, took[1] + start.elapsed().saturating_sub(pushed)];
        assert_eq!(popped as u64, BLOCK);
        messages += BLOCK;
    }
    queue.close();
    let figure = |(work, took)| Figure::rate(work, Ran { messages, took });
    works.iter().zip(took).map(figure).collect()
}
