//! Measurements: loops for a set time, latencies, and the figures that they make.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Whether more or less is better, and what is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    Milliseconds,
    Microseconds,
    Mib,
    Count,
}

impl Unit {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::PerSecond => "messages/s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "us",
            Self::Mib => "MiB",
            Self::Count => "count",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

/// What is measured: one line of the table for each contender.
#[derive(Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) job: &'static str,
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) payload: usize,
    pub(crate) threads: usize,
}

impl Work {
    pub(crate) fn new(job: &'static str, name: impl Into<String>, payload: usize) -> Self {
        Self { job, name: name.into(), unit: Unit::PerSecond, payload, threads: 1 }
    }

    pub(crate) fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn unit(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }
}

/// The percentiles that are kept of a latency, in percent; 100 is the longest.
pub(crate) const PERCENTS: [f64; 4] = [50.0, 99.0, 99.9, 100.0];

/// One figure of one contender in one round.
#[derive(Clone)]
pub(crate) struct Figure {
    pub(crate) work: Work,
    pub(crate) value: f64,
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// In microseconds, as in [`PERCENTS`].
    pub(crate) latency: Option<[f64; 4]>,
}

impl Figure {
    pub(crate) fn rate(work: &Work, ran: Ran) -> Self {
        let seconds = ran.took.as_secs_f64();
        let value = ran.messages as f64 / seconds;
        Self { work: work.clone(), value, messages: ran.messages, seconds, latency: None }
    }

    /// A figure that is no rate, of a run with so many messages.
    pub(crate) fn plain(work: Work, value: f64, messages: u64, took: Duration) -> Self {
        Self { work, value, messages, seconds: took.as_secs_f64(), latency: None }
    }

    pub(crate) fn latency(self, latency: &Histogram<u64>) -> Self {
        let micros = |percent| latency.value_at_percentile(percent) as f64 / 1000.0;
        Self { latency: Some(PERCENTS.map(micros)), ..self }
    }
}

/// How far a loop came.
#[derive(Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) messages: u64,
    pub(crate) took: Duration,
}

/// When a loop ends: after a time, or a number of bytes, whichever comes first.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
}

impl Limits {
    /// The most messages of a length that a loop may handle.
    pub(crate) fn messages(self, payload: usize) -> u64 {
        (self.bytes / payload as u64).max(1)
    }

    /// Calls `step`, which says how many messages it handled, until the limits are reached or it
    /// handles none. The clock is read seldom where steps are short.
    pub(crate) fn run(self, payload: usize, mut step: impl FnMut() -> u64) -> Ran {
        let most = self.messages(payload);
        let mut messages = 0;
        let mut steps = 1;
        let start = Instant::now();
        loop {
            let before = start.elapsed();
            for _ in 0..steps {
                let handled = step();
                messages += handled;
                if handled == 0 || messages >= most {
                    return Ran { messages, took: start.elapsed() };
                }
            }
            let took = start.elapsed();
            if took >= self.time {
                return Ran { messages, took };
            }
            if took.saturating_sub(before) < Duration::from_micros(200) {
                steps *= 2;
            }
        }
    }
}

/// A histogram of nanoseconds up to a minute.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

pub(crate) fn note(latency: &mut Histogram<u64>, took: Duration) {
    latency.saturating_record(took.as_nanos().max(1) as u64);
}

/// Bytes that do not compress, the same in each run.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The median; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => sorted.get(middle).copied(),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_loop_ends_at_its_bytes_at_its_time_and_when_nothing_is_left() {
        let limits = Limits { time: Duration::from_secs(60), bytes: 6400 };
        assert_eq!(limits.run(64, || 1).messages, 100);
        let mut left = 7;
        let some = limits.run(64, || {
            left -= 1;
            u64::from(left > 0)
        });
        assert_eq!(some.messages, 6);
        let limits = Limits { time: Duration::from_millis(1), bytes: u64::MAX };
        assert!(limits.run(64, || 1).took >= limits.time);
    }

    #[test]
    fn noise_is_the_same_each_time_and_has_all_bytes() {
        let bytes = noise(10_000);
        assert_eq!(bytes, noise(10_000));
        assert!((0..=u8::MAX).all(|byte| bytes.contains(&byte)));
    }
}
