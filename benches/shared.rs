//! What it costs that blocks may be shared: stores by writes, and stores into maps where
//! `Options::unshared_blocks` says that nobody shares any. The same queue both ways, in turns.
//!
//! `KEEPQ_BENCH_DIR=/mnt/xfs cargo bench --bench shared` measures on the file system of that
//! directory; without it, on that of the temporary directory. Where no block can be shared (ext4,
//! tmpfs), both are the same.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

use keepq::{Durability, Queue};
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const PAYLOAD: [u8; 256] = [7; 256];

/// Seconds for `count` pushes, and for as many pops and acks.
fn run(parent: &Path, durability: Durability, count: usize, is_unshared: bool) -> [Duration; 2] {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let options = Queue::options().durability(durability).unshared_blocks(is_unshared);
    let queue = options.open(dir.path().join("q")).unwrap();
    let start = Instant::now();
    for _ in 0..count {
        queue.push(&PAYLOAD).unwrap();
    }
    let pushed = start.elapsed();
    let start = Instant::now();
    for _ in 0..count {
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
    [pushed, start.elapsed()]
}

fn main() {
    let parent = std::env::var_os("KEEPQ_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    println!("| 256 B | writes, us a message | maps, us a message | ratio |");
    println!("| --- | --- | --- | --- |");
    for (durability, count) in [(Durability::Os, 200_000), (Durability::Always, 1_000)] {
        let mut best = [[Duration::MAX; 2]; 2];
        for _ in 0..ROUNDS {
            for (best, is_unshared) in best.iter_mut().zip([false, true]) {
                let took = run(&parent, durability, count, is_unshared);
                best.iter_mut().zip(took).for_each(|(best, took)| *best = took.min(*best));
            }
        }
        for (at, what) in ["push", "pop + ack"].iter().enumerate() {
            let [writes, maps] = best.map(|best| best[at].as_secs_f64() * 1e6 / count as f64);
            println!(
                "| {what}, `{durability:?}` | {writes:.2} | {maps:.2} | {:.1} |",
                writes / maps
            );
        }
    }
}
