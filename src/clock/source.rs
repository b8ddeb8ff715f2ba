//! What the clocks of the system show, or those of a test.

use crate::time::{BootId, Time};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "fault-injection")]
use super::manual::ManualClock;
#[cfg(feature = "fault-injection")]
use std::sync::Arc;

/// In a millisecond.
pub(super) const NANOS: u64 = 1_000_000;

/// The monotonic clock, for timeouts.
pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    Instant::now()
}

/// What a wall clock shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wall {
    pub(super) time: Time,
    /// Nanoseconds since that millisecond began.
    pub(super) fraction: u64,
}

impl Wall {
    /// In nanoseconds, which wrap.
    pub(super) fn nanos(self) -> u64 {
        self.time.0.wrapping_mul(NANOS).wrapping_add(self.fraction)
    }
}

/// What the clocks of a source show at the same moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: Wall,
    /// Goes on while the system is suspended.
    pub(super) boot: u64,
    /// The clock whose coarse form is cheap.
    pub(super) coarse: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    #[default]
    System,
    #[cfg(feature = "fault-injection")]
    Manual(Arc<ManualClock>),
}

impl Source {
    /// What all clocks show at the same moment. A thread that is interrupted between two readings
    /// reads them again: a clock that is behind by the interruption would store times that are
    /// early for the next run.
    pub(super) fn moment(&self) -> Moment {
        const SOON: u64 = 10_000;
        let mut best: Option<(u64, Moment)> = None;
        for _ in 0..10 {
            let before = self.boot_nanos();
            let (wall, coarse) = (self.wall(), self.monotonic_nanos());
            let boot = self.boot_nanos();
            let took = boot.saturating_sub(before);
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, Moment { wall, boot, coarse }));
            }
            if took <= SOON {
                break;
            }
        }
        best.expect("there was at least one").1
    }

    pub(super) fn wall(&self) -> Wall {
        match self {
            Self::System => {
                #[expect(clippy::disallowed_methods, reason = "this is the clock")]
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let time = Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
                Wall { time, fraction: u64::from(since.subsec_nanos()) % NANOS }
            }
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => Wall { time: clock.wall(), fraction: 0 },
        }
    }

    /// Which boot its boot clock counts from, if that is known.
    pub(super) fn boot_id(&self) -> Option<BootId> {
        match self {
            Self::System => system::boot_id(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.boot_id(),
        }
    }

    pub(super) fn boot_nanos(&self) -> u64 {
        match self {
            Self::System => system::boot(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed().0.saturating_mul(NANOS),
        }
    }

    fn monotonic_nanos(&self) -> u64 {
        match self {
            Self::System => system::monotonic(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(clock) => clock.elapsed().0.saturating_mul(NANOS),
        }
    }

    /// The wall clock and the monotonic one, each up to a tick behind.
    #[inline]
    pub(super) fn coarse_nanos(&self) -> (u64, u64) {
        match self {
            Self::System => system::coarse(),
            #[cfg(feature = "fault-injection")]
            Self::Manual(_) => (self.wall().nanos(), self.monotonic_nanos()),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use super::NANOS;
    use crate::time::BootId;
    use rustix::time::{ClockId, clock_gettime};
    use std::sync::OnceLock;

    #[inline]
    fn read(clock: ClockId) -> u64 {
        let now = clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        seconds.wrapping_mul(1000 * NANOS).wrapping_add(u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    pub(super) fn boot() -> u64 {
        read(ClockId::Boottime)
    }

    /// The kernel's id of this boot (`proc_sys_kernel(5)`), with the number of the time namespace
    /// in it, since each has a boot clock of its own (`time_namespaces(7)`). Read once: a process
    /// stays in its time namespace.
    pub(super) fn boot_id() -> Option<BootId> {
        static ID: OnceLock<Option<BootId>> = OnceLock::new();
        *ID.get_or_init(|| {
            let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
            // Kernels before 5.6 have no time namespaces.
            let namespace = rustix::fs::stat("/proc/self/ns/time").map_or(0, |stat| stat.st_ino);
            BootId::new(id ^ u128::from(namespace))
        })
    }

    pub(super) fn monotonic() -> u64 {
        read(ClockId::Monotonic)
    }

    #[inline]
    pub(super) fn coarse() -> (u64, u64) {
        (read(ClockId::RealtimeCoarse), read(ClockId::MonotonicCoarse))
    }
}

/// Systems whose clock of instants is the only one that the standard library has; there the coarse
/// clocks are the precise ones.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use super::{Instant, Source, now};
    use crate::time::BootId;
    use std::sync::OnceLock;

    /// Unknown: this clock begins with the process.
    pub(super) fn boot_id() -> Option<BootId> {
        None
    }

    pub(super) fn boot() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        let since = now().saturating_duration_since(*START.get_or_init(now));
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn monotonic() -> u64 {
        boot()
    }

    pub(super) fn coarse() -> (u64, u64) {
        (Source::System.wall().nanos(), boot())
    }
}
