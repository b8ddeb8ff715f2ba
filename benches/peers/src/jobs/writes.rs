//! P13: keepq where stores are writes, beside bare writes.

use super::{Entrant, Job, Part, drain};
use crate::contender::{Answer, Contender, Kind};
use crate::limit::Writes;
use crate::measure::{Figure, Limits, Work, noise};
use crate::peer;
use std::path::{Path, PathBuf};

const PAYLOAD: usize = 256;
const VARIABLE: &str = "KEEPQ_PEERS_WRITE_DIR";

pub(super) fn job(kinds: &[Kind]) -> Job {
    let mut job = Job::new("P13", "keepq where stores are writes, 256 B");
    job.aside = 0.3;
    job.times = 2.0;
    if !kinds.iter().any(|kind| kind.package == "keepq") {
        return job;
    }
    let Some(directory) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        let why = format!("{VARIABLE} names no directory on xfs with reflinks, btrfs or the like");
        job.left_out.push((peer::OS.name, why));
        return job;
    };
    let push = Work::new("P13", "push 256 B, by write", PAYLOAD);
    let pop = Work::new("P13", "pop + ack 256 B, by write", PAYLOAD);
    let works = [push.clone(), pop.clone()];
    let elsewhere = directory.clone();
    let mut entrants = vec![Entrant::limit("limit: bare writes", move |scene| {
        let directory = tempfile::tempdir_in(&elsewhere).unwrap();
        let mut writes = Writes::new(directory.path(), 64 << 20);
        let payload = noise(PAYLOAD);
        let mut at_most = |work: &Work, times: usize| {
            let ran = scene.limits.run(PAYLOAD, || {
                (0..times).for_each(|_| writes.write(&payload));
                1
            });
            Figure::rate(work, ran)
        };
        // A pop and its ack are two stores.
        vec![at_most(&push, 1), at_most(&pop, 2)]
    })];
    let mapped = Kind { name: "keepq Os, unshared blocks", open: peer::keepq_by_map, ..peer::OS };
    for kind in [peer::OS, mapped] {
        let (works, directory) = (works.clone(), directory.clone());
        entrants.push(Entrant::contender(kind, move |scene, kind| {
            push_and_pop(&directory, scene.limits, kind, &works)
        }));
    }
    job.parts.push(Part::InTurn(entrants));
    job
}

fn push_and_pop(directory: &Path, limits: Limits, kind: &Kind, works: &[Work; 2]) -> Vec<Figure> {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let queue: Box<dyn Contender> = (kind.open)(&directory.path().join("queue"));
    let payload = noise(PAYLOAD);
    let pushed = limits.run(PAYLOAD, || {
        queue.push(&payload);
        1
    });
    let popped = limits.run(PAYLOAD, || queue.take(1, &mut |_| Answer::Ack) as u64);
    drain(&*queue);
    queue.close();
    vec![Figure::rate(&works[0], pushed), Figure::rate(&works[1], popped)]
}
