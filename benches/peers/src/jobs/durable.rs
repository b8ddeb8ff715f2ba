//! P5, P6 and P15: pushes that return once they are synced.

use super::{Entrant, Job, Part, Scene};
use crate::contender::{Keeps, Kind};
use crate::limit::Writes;
use crate::measure::{Figure, Ran, Work, latencies, noise, note};
use std::sync::Barrier;
use std::time::Instant;

pub(super) fn jobs(kinds: &[Kind]) -> Vec<Job> {
    let one = |id, size, payload| Work::new(id, format!("push {size}, synced, 1 thread"), payload);
    let mut p5 = Job::new("P5", "push synced, 1 thread: 64 B and 1 KiB");
    for work in [one("P5", "64 B", 64), one("P5", "1 KiB", 1024)] {
        part(&mut p5, kinds, &work);
    }
    let mut p6 = Job::new("P6", "push 1 KiB synced: 1, 8, 64 threads");
    for threads in [1, 8, 64] {
        let plural = if threads == 1 { "" } else { "s" };
        let name = format!("push 1 KiB, synced, {threads} thread{plural}");
        part(&mut p6, kinds, &Work::new("P6", name, 1024).threads(threads));
    }
    let mut p15 = Job::new("P15", "push 64 KiB synced, 1 thread");
    part(&mut p15, kinds, &one("P15", "64 KiB", 64 << 10));
    vec![p5, p6, p15]
}

fn part(job: &mut Job, kinds: &[Kind], work: &Work) {
    let limit = work.clone();
    let mut entrants =
        vec![Entrant::limit("limit: write and sync", move |scene| vec![at_most(scene, &limit)])];
    for kind in job.choose(kinds, work.payload, |kind| kind.keeps == Keeps::Power) {
        let work = work.clone();
        entrants.push(Entrant::contender(kind, move |scene, kind| {
            vec![by_threads(scene, kind, &work)]
        }));
    }
    job.parts.push(Part::InTurn(entrants));
}

/// One write and one sync for what all threads push at a time.
fn at_most(scene: &Scene<'_>, work: &Work) -> Figure {
    let mut writes = Writes::new(scene.directory, 16 << 20);
    let staged = noise(work.threads * work.payload);
    let mut latency = latencies();
    let ran = scene.limits.run(work.payload, || {
        let start = Instant::now();
        writes.write_synced(&staged);
        note(&mut latency, start.elapsed());
        work.threads as u64
    });
    Figure::rate(work, ran).latency(&latency)
}

fn by_threads(scene: &Scene<'_>, kind: &Kind, work: &Work) -> Figure {
    let queue = scene.open(kind);
    let payload = noise(work.payload);
    // The first push may have a file to make.
    queue.push(&payload);
    let ready = Barrier::new(work.threads + 1);
    let mut latency = latencies();
    let (messages, took) = std::thread::scope(|scope| {
        let push_all = || {
            let mut latency = latencies();
            ready.wait();
            let ran = scene.limits.run(work.payload, || {
                let start = Instant::now();
                queue.push(&payload);
                note(&mut latency, start.elapsed());
                1
            });
            (ran, latency)
        };
        let threads: Vec<_> = (0..work.threads).map(|_| scope.spawn(push_all)).collect();
        ready.wait();
        let start = Instant::now();
        let mut messages = 0;
        for thread in threads {
            let (ran, own) = thread.join().unwrap();
            messages += ran.messages;
            latency.add(own).unwrap();
        }
        (messages, start.elapsed())
    });
    queue.close();
    Figure::rate(work, Ran { messages, took }).latency(&latency)
}
