//! Times and spans of time in milliseconds, as the disk has them. Reads no clock.

use serde::{Deserialize, Serialize};
use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a millisecond.
pub(crate) const NANOS: u64 = 1_000_000;

/// A moment: milliseconds since 1970 UTC, as the queue's clock counts them. That is UTC as long as
/// nobody sets the system's clock: see [`Shift`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Time(pub(crate) u64);

/// A span of time in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Millis(pub(crate) u64);

/// How far the time line of a queue is ahead of UTC, in milliseconds. The line goes on as time
/// passes, also where the system's clock is set: then the shift changes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Shift(pub(crate) i64);

impl Shift {
    /// How far `time` is ahead of `utc`.
    pub(crate) fn between(time: Time, utc: Time) -> Self {
        Self(time.0.wrapping_sub(utc.0).cast_signed())
    }

    /// How far it is from another one.
    pub(crate) fn distance(self, other: Self) -> Millis {
        Millis(self.0.abs_diff(other.0))
    }
}

/// The newest time that a disk knows, and how far the queue's time was ahead of UTC then.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct KnownTime {
    pub(crate) time: Time,
    pub(crate) shift: Shift,
}

/// Which boot of which system, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BootId(u128);

impl BootId {
    /// None of 0.
    pub(crate) fn new(id: u128) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    pub(crate) fn get(self) -> u128 {
        self.0
    }
}

/// Where the time line of a queue lies on a boot clock: `time` began when the clock of this boot
/// showed `nanos`. The same of every run in one boot, and true however the wall clock is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Anchor {
    pub(crate) boot: BootId,
    pub(crate) time: Time,
    /// It wraps.
    pub(crate) nanos: u64,
}

impl Anchor {
    /// The time of the line when the boot clock shows this, and nanoseconds since that millisecond
    /// began. None before the anchor.
    pub(crate) fn time_at(&self, nanos: u64) -> Option<(Time, u64)> {
        let since = u64::try_from(nanos.wrapping_sub(self.nanos).cast_signed()).ok()?;
        Some((self.time.saturating_add(Millis(since / NANOS)), since % NANOS))
    }

    /// Whether `time` began when the boot clock showed `nanos`.
    pub(crate) fn has(&self, time: Time, nanos: u64) -> bool {
        self.time_at(nanos) == Some((time, 0))
    }
}

/// What is known of the boot clock.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Boot {
    /// Which boot the clock of the system counts from.
    pub(crate) id: Option<BootId>,
    /// Where the time line was on the clock of a boot, this or another.
    pub(crate) anchor: Option<Anchor>,
}

/// When a message was pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PushTime {
    pub(crate) time: Time,
    /// How far that is ahead of UTC.
    pub(crate) shift: Shift,
}

impl PushTime {
    /// What a clock showed then that was set to UTC.
    pub(crate) fn utc(self) -> Time {
        self.time.utc(self.shift)
    }
}

impl Time {
    /// What a clock showed at this moment that was set to UTC.
    #[inline]
    pub(crate) fn utc(self, shift: Shift) -> Self {
        Self(self.0.saturating_add_signed(shift.0.saturating_neg()))
    }

    /// The moment at which such a clock showed this.
    #[inline]
    pub(crate) fn of_utc(self, shift: Shift) -> Self {
        Self(self.0.saturating_add_signed(shift.0))
    }

    /// No queue's time starts later, so that the times of a run keep to the limits of the format.
    /// It is 2^40 milliseconds, which are 34 years, before their end.
    pub(crate) const LATEST_START: Self = Self((1 << 48) - (1 << 40));

    /// The last time that can be stored.
    pub(crate) const LATEST: Self = Self((1 << 48) - 1);

    /// The beginning of 1970, which is past.
    pub(crate) const ZERO: Self = Self(0);

    /// How much later this is than `earlier`; zero if it is not later.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` later, or the last one that there is.
    #[inline]
    pub(crate) fn saturating_add(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The moment `span` before, or the first one that there is.
    #[inline]
    pub(crate) fn saturating_sub(self, span: Millis) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// The earlier of two times, if there is one.
    #[inline]
    pub(crate) fn earlier(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

impl Add<Millis> for Time {
    type Output = Self;

    #[inline]
    fn add(self, span: Millis) -> Self {
        Self(self.0 + span.0)
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        UNIX_EPOCH.checked_add(Duration::from_millis(time.0)).unwrap_or(UNIX_EPOCH)
    }
}

/// In whole milliseconds, rounded up, so that nothing is ever early.
impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

impl From<Millis> for Duration {
    fn from(span: Millis) -> Self {
        Self::from_millis(span.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_span_is_shorter_than_the_duration_that_it_was_made_of() {
        let nanos = |nanos| Millis::from(Duration::from_nanos(nanos));
        assert_eq!([0, 1, 1_000_000, 1_000_001].map(nanos), [0, 1, 1, 2].map(Millis));
        assert_eq!(Millis::from(Duration::MAX), Millis(u64::MAX));
        assert_eq!(Duration::from(Millis(1_500)), Duration::from_millis(1_500));
    }

    #[test]
    fn a_time_keeps_to_the_times_that_there_are() {
        let (early, late) = (Time(10), Time(30));
        assert_eq!((late.since(early), early.since(late)), (Millis(20), Millis(0)));
        assert_eq!((early + Millis(20), late.saturating_sub(Millis(20))), (late, early));
        assert_eq!(early.saturating_sub(Millis(11)), Time::ZERO);
        assert_eq!(late.saturating_add(Millis(u64::MAX)), Time(u64::MAX));
        assert_eq!(SystemTime::from(late), UNIX_EPOCH + Duration::from_millis(30));
    }

    #[test]
    fn the_earlier_time_is_the_one_that_there_is() {
        let (early, late) = (Some(Time(10)), Some(Time(30)));
        assert_eq!((Time::earlier(early, late), Time::earlier(late, early)), (early, early));
        assert_eq!((Time::earlier(None, late), Time::earlier(late, None)), (late, late));
        assert_eq!(Time::earlier(None, None), None);
    }
}
