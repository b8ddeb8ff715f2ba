//! How long things take.
//!
//! Promises: costs nothing but a counter where nothing is measured. What waits for the disk is
//! measured each time; of all else, one in 64.

#[cfg(test)]
use super::watched::Watched;
use crate::clock::{self, Clock};
use crate::distribution::{Distribution, Histogram};
use crate::format::bytes::to_u64;
use crate::leases::Ticket;
use crate::time::Time;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// One of this many is measured.
const ONE_IN: u64 = 64;
/// At most this many deliveries are measured at a time.
const MOST_OUT: usize = 256;

/// What is measured under the dispatch lock.
#[derive(Debug)]
pub(crate) struct Measure {
    clock: Arc<Clock>,
    /// From push to hand-out.
    waiting: Histogram,
    /// From hand-out to answer.
    processing: Histogram,
    /// When those were handed out that are measured and not answered; of the newest only.
    out: VecDeque<(Ticket, Instant)>,
    #[cfg(test)]
    short_way: Watched,
}

impl Measure {
    pub(super) fn new(clock: Arc<Clock>) -> Self {
        Self {
            clock,
            waiting: Histogram::default(),
            processing: Histogram::default(),
            out: VecDeque::new(),
            #[cfg(test)]
            short_way: Watched::default(),
        }
    }

    /// Whether number `count` is one of those that are measured.
    pub(super) fn is_sample(count: u64) -> bool {
        count % ONE_IN == 1
    }

    /// What tests watch of the short way.
    #[cfg(test)]
    pub(super) fn short_way(&mut self) -> &mut Watched {
        &mut self.short_way
    }

    /// A message is handed out that was pushed then.
    #[cold]
    pub(crate) fn handed_out(&mut self, ticket: Ticket, pushed_at: Time) {
        self.waiting.record(self.clock.coarse().since(pushed_at).into());
        // Deliveries that are never answered must not fill the memory.
        if self.out.len() == MOST_OUT {
            self.out.pop_front();
        }
        self.out.push_back((ticket, clock::now()));
    }

    /// So many messages side by side are answered, from this one on.
    pub(crate) fn answered(&mut self, first: Ticket, number: usize) {
        let seqs = first.seq()..first.seq() + to_u64(number);
        let is_one = |out: &Ticket| seqs.contains(&out.seq()) && *out == first.of(out.seq());
        while let Some(at) = self.out.iter().rposition(|(out, _)| is_one(out))
            && let Some((_, since)) = self.out.remove(at)
        {
            self.processing.record(clock::now().saturating_duration_since(since));
        }
    }

    pub(crate) fn waiting(&self) -> Distribution {
        self.waiting.distribution()
    }

    pub(crate) fn processing(&self) -> Distribution {
        self.processing.distribution()
    }
}

thread_local! {
    static PUSHES: Cell<u64> = const { Cell::new(0) };
}

/// Starts to measure a push, if it is one to be measured.
#[inline]
pub(crate) fn start_push(waits: bool) -> Option<Instant> {
    let number = PUSHES.with(|pushes| {
        pushes.set(pushes.get().wrapping_add(1));
        pushes.get()
    });
    (waits || Measure::is_sample(number)).then(clock::now)
}
