//! What several modules share.

pub(crate) mod agree;
pub(crate) mod board;
pub(crate) mod craft;
pub(crate) mod model;
#[cfg(target_os = "linux")]
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod reader;
pub(crate) mod sparse;
pub(crate) mod watched;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Reproducible dice: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Nothing that a test waits for takes so long, on any machine: what does hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Says to threads that go on until then that all is over, when it is dropped: a scope waits for
/// them also where a test fails in it.
pub(crate) struct OverAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A number from the environment, for tests whose size can be chosen.
pub(crate) fn cases(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
