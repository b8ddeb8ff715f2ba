//! P8: one producer and one consumer at the same time.

use super::{Entrant, Job, Part, Scene, drain};
use crate::contender::{Answer, Keeps, Kind};
use crate::measure::{Figure, Ran, Work, noise};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

const PAYLOAD: usize = 256;

pub(super) fn job(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P8", "one producer and one consumer, 256 B");
    job.aside = 0.03;
    job.times = 1.5;
    let work = Work::new("P8", job.title, PAYLOAD).threads(2);
    let limit = work.clone();
    let mut entrants = vec![Entrant::limit("limit: std channel", move |scene| {
        vec![Figure::rate(&limit, channel(scene))]
    })];
    for kind in job.choose(kinds, PAYLOAD, |kind| kind.keeps != Keeps::Power && kind.pops()) {
        let work = work.clone();
        entrants.push(Entrant::contender(kind, move |scene, kind| {
            vec![Figure::rate(&work, flow(scene, kind))]
        }));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}

fn channel(scene: &Scene<'_>) -> Ran {
    let (sender, receiver) = sync_channel::<Vec<u8>>(100_000);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            scene.limits.run(PAYLOAD, || {
                sender.send(vec![7; PAYLOAD]).unwrap();
                1
            });
        });
        let messages = receiver.iter().count() as u64;
        Ran { messages, took: start.elapsed() }
    })
}

/// Ends when all that was pushed is consumed, or after three times the limit.
fn flow(scene: &Scene<'_>, kind: &Kind) -> Ran {
    let queue = scene.open(kind);
    let pushed = AtomicU64::new(u64::MAX);
    let start = Instant::now();
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            let payload = noise(PAYLOAD);
            let ran = scene.limits.run(PAYLOAD, || {
                queue.push(&payload);
                1
            });
            pushed.store(ran.messages, Ordering::Relaxed);
        });
        let mut messages = 0;
        while messages < pushed.load(Ordering::Relaxed) && start.elapsed() < scene.limits.time * 3 {
            // The clock is not read for each message.
            for _ in 0..16 {
                match queue.take(1, &mut |_| Answer::Ack) {
                    0 => std::thread::yield_now(),
                    popped => messages += popped as u64,
                }
            }
        }
        Ran { messages, took: start.elapsed() }
    });
    let left = drain(&*queue);
    let pushed = pushed.load(Ordering::Relaxed);
    assert_eq!(ran.messages + left, pushed, "messages popped, and messages pushed");
    queue.close();
    ran
}
