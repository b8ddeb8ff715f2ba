//! P1 to P4: pushes that wait for no disk, and P2 also with a sync for each batch.

use super::{Entrant, Job, Part, Scene, drain};
use crate::contender::{Keeps, Kind};
use crate::limit::{Copy, Writes};
use crate::measure::{Figure, Work, noise};

const BATCH: usize = 100;

pub(super) fn jobs(kinds: &[Kind]) -> Vec<Job> {
    vec![
        single(kinds, "P1", "push 64 B", 64),
        batches(kinds),
        single(kinds, "P3", "push 1 KiB", 1024),
        large(kinds),
    ]
}

fn is_unsynced(kind: &Kind) -> bool {
    kind.keeps != Keeps::Power
}

fn single(kinds: &[Kind], id: &'static str, title: &'static str, payload: usize) -> Job {
    let mut job = Job::new(id, title);
    let work = Work::new(id, title, payload);
    let mut entrants = limits(&work, 1);
    for kind in job.choose(kinds, payload, is_unsynced) {
        let work = work.clone();
        entrants.push(Entrant::contender(kind, move |scene, kind| push(scene, kind, &work)));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}

fn push(scene: &Scene<'_>, kind: &Kind, work: &Work) -> Vec<Figure> {
    let payload = noise(work.payload);
    let queue = scene.open(kind);
    let ran = scene.limits.run(work.payload, || {
        queue.push(&payload);
        1
    });
    queue.close();
    vec![Figure::rate(work, ran)]
}

/// A copy into resident memory, and one into a file that is touched for the first time; so many
/// messages at a time.
fn limits(work: &Work, at_once: usize) -> Vec<Entrant> {
    let run = move |scene: &Scene<'_>, copy: &Copy, work: &Work| {
        let payload = noise(work.payload);
        let batch = vec![&payload[..]; at_once];
        let ran = scene.limits.run(payload.len(), || {
            match batch[..] {
                [payload] => copy.push(payload),
                _ => copy.push_batch(&batch),
            }
            at_once as u64
        });
        vec![Figure::rate(work, ran)]
    };
    let (resident, fresh) = (work.clone(), work.clone());
    vec![
        Entrant::limit("limit: copy, resident", move |scene| {
            run(scene, &Copy::resident(64 << 20), &resident)
        }),
        Entrant::limit("limit: copy, fresh file", move |scene| {
            // Headers and padding take less than half as much again, at 64 B.
            run(scene, &Copy::fresh(scene.directory, scene.limits.bytes * 3 / 2), &fresh)
        }),
    ]
}

fn batches(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P2", "push batches of 100 x 64 B");
    let work = Work::new("P2", job.title, 64);
    let synced = Work::new("P2", "push batches of 100 x 64 B, synced", 64);
    let mut entrants = limits(&work, BATCH);
    let limit = synced.clone();
    entrants.push(Entrant::limit("limit: write and sync", move |scene| {
        let mut writes = Writes::new(scene.directory, 16 << 20);
        let batch = noise(BATCH * (64 + 24));
        let ran = scene.limits.run(64, || {
            writes.write_synced(&batch);
            BATCH as u64
        });
        vec![Figure::rate(&limit, ran)]
    }));
    for kind in job.choose(kinds, 64, |_| true) {
        let work = if kind.keeps == Keeps::Power { synced.clone() } else { work.clone() };
        entrants.push(Entrant::contender(kind, move |scene, kind| {
            let pool = noise(BATCH * 64);
            let batch: Vec<&[u8]> = pool.chunks(64).collect();
            let queue = scene.open(kind);
            let ran = scene.limits.run(64, || {
                queue.push_batch(&batch);
                BATCH as u64
            });
            queue.close();
            vec![Figure::rate(&work, ran)]
        }));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}

fn large(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P4", "push 64 KiB, first pass and recycled");
    job.times = 3.0;
    job.aside = 0.04;
    let payload = 64 << 10;
    let first = Work::new("P4", "push 64 KiB, first pass", payload);
    let recycled = Work::new("P4", "push 64 KiB, recycled", payload);
    let mut entrants = limits(&first, 1);
    let limit = recycled.clone();
    entrants.push(Entrant::limit("limit: copy, resident", move |scene| {
        let (copy, payload) = (Copy::resident(64 << 20), noise(payload));
        let ran = scene.limits.run(payload.len(), || {
            copy.push(&payload);
            1
        });
        vec![Figure::rate(&limit, ran)]
    }));
    for kind in job.choose(kinds, payload, is_unsynced) {
        let (first, recycled) = (first.clone(), recycled.clone());
        entrants.push(Entrant::contender(kind, move |scene, kind| {
            let payload = noise(payload);
            let queue = scene.open(kind);
            let pass = |work: &Work| {
                let ran = scene.limits.run(payload.len(), || {
                    queue.push(&payload);
                    1
                });
                Figure::rate(work, ran)
            };
            let mut figures = vec![pass(&first)];
            if kind.pops() {
                drain(&*queue);
                figures.push(pass(&recycled));
            }
            queue.close();
            figures
        }));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}
