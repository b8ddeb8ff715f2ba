//! Waiting: a list of wakers, and a thread that parks until one of them is called.
//!
//! Promises: whoever registers before looking, and is woken after a change, misses no change; a
//! wake-up given to somebody who left is passed on. Wakers are called outside of all locks.

use crate::clock;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often a waiter looks again before it parks: a few microseconds, where parking costs 30.
const SPINS: u32 = 80;
const SPIN_STEPS: u32 = 3;

/// Whether what is waited for may come within microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Soon {
    /// Look a few times more before parking.
    Perhaps,
    /// A disk has to turn first: looking again would only keep others from work.
    No,
}

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct WaitList {
    /// How many there are, so that waking nobody costs one load.
    waiting: AtomicUsize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    wakers: VecDeque<(u64, Waker)>,
}

impl WaitList {
    /// Wakes the one that waits longest.
    pub(super) fn wake_one(&self) {
        // SeqCst: pairs with the increment in `register`; either this sees the waiter, or the
        // waiter, who looks again after it registered, sees the change made before this call.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let woken = self.entries.lock().wakers.pop_front();
            if let Some((_, waker)) = woken {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                waker.wake();
            }
        }
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        // SeqCst: as in `wake_one`.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let woken = std::mem::take(&mut self.entries.lock().wakers);
            self.waiting.fetch_sub(woken.len(), Ordering::SeqCst);
            for (_, waker) in woken {
                waker.wake();
            }
        }
    }

    /// Whether anybody waits. To be asked under a lock that every waiter takes between registering
    /// and looking: then either this sees the waiter, or the waiter sees what was done before.
    pub(super) fn has_waiters(&self) -> bool {
        // Relaxed: the lock orders it.
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn register(&self, waker: Waker) -> Registration<'_> {
        let mut entries = self.entries.lock();
        let id = entries.next_id;
        entries.next_id += 1;
        entries.wakers.push_back((id, waker));
        // SeqCst: pairs with the load in `wake_one` and `wake_all`.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Registration { list: self, id }
    }

    /// Calls `look` until it gives something, parked in between; `None` once `deadline` has passed.
    /// `registered` is called between registering and looking: the place to take the lock under
    /// which others ask [`WaitList::has_waiters`].
    pub(super) fn wait_until<T>(
        &self,
        soon: Soon,
        deadline: Option<Instant>,
        registered: impl Fn(),
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let spins = if soon == Soon::Perhaps { SPINS } else { 0 };
        for _ in 0..spins {
            if let Some(found) = look() {
                return Some(found);
            }
            (0..SPIN_STEPS).for_each(|_| std::hint::spin_loop());
        }
        let parker = Waker::from(Arc::new(Parker(thread::current())));
        loop {
            let registration = self.register(parker.clone());
            registered();
            if let Some(found) = look() {
                return Some(found);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
            match left {
                Some(Duration::ZERO) => {
                    // Whoever woke this one, in this very moment, has to wake another.
                    if registration.leave() {
                        self.wake_one();
                    }
                    return look();
                }
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }
}

/// A place in the list, given up on drop.
struct Registration<'a> {
    list: &'a WaitList,
    id: u64,
}

impl Registration<'_> {
    /// Whether it had been woken already.
    fn leave(&self) -> bool {
        let mut entries = self.list.entries.lock();
        let place = entries.wakers.iter().position(|(id, _)| *id == self.id);
        if let Some(place) = place {
            entries.wakers.remove(place);
            self.list.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        place.is_none()
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

struct Parker(Thread);

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_wake_up_is_lost_between_many_waiters() {
        let (list, tokens) = (WaitList::default(), AtomicU64::new(0));
        let take =
            || tokens.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).ok();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..500).for_each(|_| {
                        assert!(list.wait_until(Soon::Perhaps, None, || (), take).is_some());
                    });
                });
            }
            for _ in 0..2000 {
                tokens.fetch_add(1, Ordering::SeqCst);
                list.wake_one();
            }
        });
        assert_eq!(tokens.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_deadline_ends_the_wait_and_leaves_nothing_behind() {
        let list = WaitList::default();
        let deadline = clock::now() + Duration::from_millis(5);
        assert_eq!(list.wait_until(Soon::No, Some(deadline), || (), || None::<()>), None);
        assert!(clock::now() >= deadline);
        assert_eq!(list.waiting.load(Ordering::SeqCst), 0);
    }
}
