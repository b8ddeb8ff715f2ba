//! How long things took, counted in buckets, so that any number of measurements takes the same
//! memory.

use std::time::Duration;

/// Buckets for each power of two: a value is reported at most an eighth too large.
const PARTS: u64 = 8;
const PARTS_SHIFT: u32 = 3;
const BUCKETS: usize = 62 * 8;

/// How long something took, and how often it was measured: from [`Stats`](crate::Stats). The
/// percentiles are at most an eighth too large, and never above the maximum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Distribution {
    pub(crate) count: u64,
    pub(crate) mean: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Distribution {
    /// How many times were measured. While this is zero, all other values are zero.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all times, divided by their number.
    #[must_use]
    pub fn mean(&self) -> Duration {
        self.mean
    }

    /// Half of the times are at most this long.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.p50
    }

    /// 99 of 100 times are at most this long.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.p99
    }

    /// The longest time.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }
}

/// Durations in nanoseconds, counted: about 4 KiB, allocated for the first one.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Histogram {
    /// Counts one duration.
    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets.resize(BUCKETS, 0);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanos)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    /// What was counted so far.
    pub(crate) fn distribution(&self) -> Distribution {
        let mean = self.sum.checked_div(self.count.into()).unwrap_or(0);
        Distribution {
            count: self.count,
            mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            p50: self.at_most(50),
            p99: self.at_most(99),
            max: Duration::from_nanos(self.max),
        }
    }

    /// The time that `percent` of 100 durations do not exceed.
    fn at_most(&self, percent: u64) -> Duration {
        let rank = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && rank > 0 {
                return Duration::from_nanos(largest_in(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }
}

/// Each value below 8 has its own bucket; each further power of two has 8 buckets.
fn bucket_of(value: u64) -> usize {
    let exponent = (value | PARTS).ilog2();
    let shift = exponent - PARTS_SHIFT;
    let bucket = u64::from(shift) * PARTS + (value >> shift);
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The largest value in a bucket.
fn largest_in(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    if bucket < 2 * PARTS {
        return bucket;
    }
    let shift = bucket / PARTS - 1;
    let part = bucket % PARTS + PARTS;
    ((u128::from(part) + 1) << shift).saturating_sub(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_told_at_most_an_eighth_too_large(value: u64) {
            let bucket = bucket_of(value);
            prop_assert!(bucket < BUCKETS);
            let told = largest_in(bucket);
            prop_assert!(told >= value && u128::from(told) * 8 <= u128::from(value) * 9 + 7);
            prop_assert!(
                bucket == 0 || largest_in(bucket - 1) < value || bucket_of(value - 1) == bucket
            );
        }
    }

    #[test]
    fn percentiles_follow_what_was_counted() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.distribution(), Distribution::default());
        (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let told = histogram.distribution();
        let near = |told: Duration, micros: u64| {
            let exact = Duration::from_micros(micros);
            assert!(told >= exact && told <= exact * 9 / 8, "{told:?} is not near {exact:?}");
        };
        near(told.p50(), 500);
        near(told.p99(), 990);
        assert_eq!((told.count(), told.max()), (1000, Duration::from_millis(1)));
        assert_eq!(told.mean(), Duration::from_nanos(500_500));
    }
}
