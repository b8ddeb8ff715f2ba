//! How long a message that failed stays away.

use crate::clock::MAX_DELAY;
use std::time::Duration;

/// How long a message stays away before it is handed out again, after it was given back with its
/// attempt counted: by `nack`, by drop, or because its lease ran out. For
/// [`Options::backoff`](crate::Options::backoff).
///
/// After attempt number n this time is `base * factor^(n - 1)`, at most `ceiling`. Then a part of
/// it, up to `jitter`, is taken off. That part differs from message to message and from attempt to
/// attempt, so that messages that failed together do not come back together.
///
/// ```
/// use keepq::{Backoff, Queue};
/// use std::time::Duration;
/// # let dir = tempfile::tempdir()?;
/// let backoff = Backoff::exponential(Duration::from_millis(100)).ceiling(Duration::from_secs(60));
/// let queue = Queue::options().backoff(backoff.jitter(0.2)).open(dir.path().join("orders"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Backoff {
    base: Duration,
    factor: f64,
    ceiling: Duration,
    jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::none()
    }
}

impl Backoff {
    /// The message is back at once. The default.
    #[must_use]
    pub const fn none() -> Self {
        Self { base: Duration::ZERO, factor: 1.0, ceiling: Duration::ZERO, jitter: 0.0 }
    }

    /// `base`, above 0, after the first attempt, and twice as long after each further attempt; at
    /// most an hour (or `base`, if that is longer); without jitter.
    #[must_use]
    pub fn exponential(base: Duration) -> Self {
        let ceiling = base.max(Duration::from_secs(3600));
        Self { base, factor: 2.0, ceiling, jitter: 0.0 }
    }

    /// By what the time is multiplied after each further attempt, 1 (always `base`) to 1000.
    /// Default: 2.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// The longest time, from `base` to 8 years. Default: an hour, or `base` if that is longer.
    #[must_use]
    pub fn ceiling(mut self, ceiling: Duration) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// Which part of the time may be taken off at random, from 0 (none) to 1 (all). Default: 0.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// What is wrong with these settings: which value, and what it may be.
    pub(crate) fn fault(&self) -> Option<(String, &'static str)> {
        if *self == Self::none() {
            None
        } else if self.base.is_zero() {
            Some(("base 0".into(), "Backoff::none(), or a base above 0"))
        } else if !(1.0..=1000.0).contains(&self.factor) {
            Some((format!("factor {}", self.factor), "a factor from 1 to 1000"))
        } else if !(0.0..=1.0).contains(&self.jitter) {
            Some((format!("jitter {}", self.jitter), "a jitter from 0 to 1"))
        } else if self.ceiling < self.base || self.ceiling > MAX_DELAY {
            Some((format!("ceiling {:?}", self.ceiling), "a ceiling from base to 8 years"))
        } else {
            None
        }
    }

    /// How long a message stays away after this attempt, counted from 1. `chance`: any number that
    /// depends on message and attempt.
    pub(crate) fn after(&self, attempts: u32, chance: u64) -> Duration {
        if self.base.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.base.as_secs_f64() * self.factor.powi(exponent);
        // A time that is too large for a `Duration`, infinity included, is above the ceiling.
        let whole = Duration::try_from_secs_f64(seconds).unwrap_or(self.ceiling).min(self.ceiling);
        // The upper half of the bits is a fraction of 2^32.
        let upper = u32::try_from(chance >> 32).unwrap_or(u32::MAX);
        let fraction = f64::from(upper) / 4_294_967_296.0;
        whole.mul_f64(1.0 - self.jitter * fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_ceiling_and_jitter_only_takes_off() {
        let seconds = Duration::from_secs;
        assert_eq!(Backoff::none().after(7, 1), Duration::ZERO);
        let backoff = Backoff::exponential(seconds(1)).factor(3.0).ceiling(seconds(20));
        let times = [1, 2, 3, 4, 32_767].map(|attempts| backoff.after(attempts, u64::MAX));
        assert_eq!(times, [1, 3, 9, 20, 20].map(seconds));
        let jittered = backoff.jitter(0.5);
        for chance in (0..64).map(|part| part << 58) {
            let time = jittered.after(3, chance);
            assert!((seconds(9) / 2..=seconds(9)).contains(&time), "{time:?}");
        }
        assert_eq!(jittered.after(3, 0), seconds(9));
        assert!(backoff.jitter(1.0).after(3, u64::MAX) < Duration::from_millis(1));
    }

    #[test]
    fn nonsense_is_told() {
        let good = Backoff::exponential(Duration::from_secs(1));
        assert_eq!(good.fault(), None);
        assert_eq!(Backoff::none().fault(), None);
        for bad in [
            Backoff::exponential(Duration::ZERO),
            good.factor(0.5),
            good.factor(f64::NAN),
            good.factor(f64::INFINITY),
            good.jitter(-0.1),
            good.jitter(1.1),
            good.jitter(f64::NAN),
            good.ceiling(Duration::from_millis(999)),
            good.ceiling(Duration::MAX),
        ] {
            assert!(bad.fault().is_some(), "{bad:?}");
        }
    }
}
