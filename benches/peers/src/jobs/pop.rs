//! P7: pop and ack from a queue that was filled before.

use super::{Entrant, Job, Part, Scene, drain};
use crate::contender::{Answer, Keeps, Kind};
use crate::limit::Copy;
use crate::measure::{Figure, Work, noise};
use crate::peer;

const PAYLOAD: usize = 64;
const BATCH: usize = 100;

/// How many messages wait before the single pops, and before the batches: at least this many
/// times what the slowest handle in the time, and so few that a run pops most of them.
const WAITING: [u64; 2] = [400_000, 1_500_000];

pub(super) fn job(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P7", "pop + ack 64 B: single, and batches of 100");
    job.aside = 0.3;
    job.times = 2.0;
    let single = Work::new("P7", "pop + ack 64 B, single", PAYLOAD);
    let batches = Work::new("P7", "pop + ack 64 B, batches of 100", PAYLOAD);
    let mut chosen = job.choose(kinds, PAYLOAD, |kind| kind.keeps != Keeps::Power && kind.pops());
    if let Some(place) = chosen.iter().position(|kind| kind.name == peer::OS.name) {
        chosen.insert(place + 1, peer::LEASED);
    }
    let limits = [single.clone(), batches.clone()];
    let mut entrants = vec![Entrant::limit("limit: copy out, checked", move |scene| {
        let copy = Copy::resident(64 << 20);
        let payload = [7; PAYLOAD];
        (0..500_000).for_each(|_| copy.push(&payload));
        let at_most = |work: &Work| {
            copy.rewind();
            let mut left = 500_000;
            let ran = scene.limits.run(PAYLOAD, || {
                left -= 1;
                if left == 0 {
                    copy.rewind();
                    left = 500_000;
                }
                copy.take(PAYLOAD);
                1
            });
            Figure::rate(work, ran)
        };
        limits.iter().map(at_most).collect()
    })];
    for kind in chosen {
        let works = [single.clone(), batches.clone()];
        entrants.push(Entrant::contender(kind, move |scene, kind| pop(scene, kind, &works)));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}

fn pop(scene: &Scene<'_>, kind: &Kind, works: &[Work; 2]) -> Vec<Figure> {
    let queue = scene.open(kind);
    let mut figures = Vec::new();
    for ((work, limit), waiting) in works.iter().zip([1, BATCH]).zip(WAITING) {
        // Slow ones are filled for as long as they are measured, no more.
        let pool = noise(1000 * PAYLOAD);
        let batch: Vec<&[u8]> = pool.chunks(PAYLOAD).collect();
        let mut filled = 0;
        let mut filling = scene.limits;
        filling.time *= 2;
        filling.run(PAYLOAD, || {
            filled += batch.len() as u64;
            queue.push_batch(&batch);
            if filled < waiting { batch.len() as u64 } else { 0 }
        });
        let mut bytes = 0;
        let ran = scene.limits.run(PAYLOAD, || {
            queue.take(limit, &mut |payload| {
                bytes += payload.len() as u64;
                Answer::Ack
            }) as u64
        });
        assert_eq!(bytes, ran.messages * PAYLOAD as u64);
        let left = drain(&*queue);
        assert_eq!(ran.messages + left, filled, "messages popped, and messages pushed");
        figures.push(Figure::rate(work, ran));
    }
    queue.close();
    figures
}
