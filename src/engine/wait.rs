//! Waiting: a list of wakers, and a thread that parks until one of them is called.
//!
//! Promises: a waiter that registers before it looks, and is woken after a change, misses no
//! change. A thread remembers by itself that it was woken, so a look may park, too. A wake-up that
//! is given to a waiter that has left is passed on. Relies on callers that hold none of the locks
//! that a push, a look or an answer takes: a waker is called outside of `unsealed`, of the dispatch
//! lock and of the leaves.

use crate::clock;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often a waiter looks again before it parks: a few microseconds, where parking costs 30.
const SPINS: u32 = 80;
const SPIN_STEPS: u32 = 3;

/// Whether a wait may be over within microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Soon {
    /// Look a few times more before parking.
    Perhaps,
    /// A disk has to turn first: looking again would only keep others from work.
    No,
}

/// What a waiter sees when it looks.
#[derive(Debug)]
pub(super) enum Look<T> {
    Found(T),
    NotYet,
    /// Nothing, unless woken, before this time.
    NotBefore(Instant),
}

/// The waiters for one kind of thing, by key.
#[derive(Debug, Default)]
pub(crate) struct WaitList {
    /// How many there are, so that it costs one load to wake none.
    waiting: AtomicUsize,
    entries: Mutex<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    next_id: u64,
    /// By key, then in the order in which they came.
    wakers: BTreeMap<(u64, u64), Waker>,
}

impl WaitList {
    /// Wakes the one that waits longest, where all wait for the same.
    pub(super) fn wake_one(&self) {
        // SeqCst: pairs with the increment in `register`; either this sees the waiter, or the
        // waiter, who looks again after it registered, sees the change made before this call.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let woken = self.entries.lock().wakers.pop_first();
            if let Some((_, waker)) = woken {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                waker.wake();
            }
        }
    }

    /// Wakes the first that waits for one of `keys`.
    pub(super) fn wake_first(&self, keys: RangeInclusive<u64>) {
        // SeqCst: as in `wake_one`.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut entries = self.entries.lock();
            let concerned = (*keys.start(), 0)..=(*keys.end(), u64::MAX);
            let place = entries.wakers.range(concerned).next().map(|(place, _)| *place);
            let woken = place.and_then(|place| entries.wakers.remove(&place));
            drop(entries);
            if let Some(waker) = woken {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                waker.wake();
            }
        }
    }

    /// Wakes all that wait for one of `keys`.
    pub(super) fn wake_keys(&self, keys: RangeInclusive<u64>) {
        // SeqCst: as in `wake_one`.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut entries = self.entries.lock();
            let concerned = (*keys.start(), 0)..=(*keys.end(), u64::MAX);
            let places: Vec<_> = entries.wakers.range(concerned).map(|(place, _)| *place).collect();
            let woken: Vec<_> =
                places.iter().filter_map(|place| entries.wakers.remove(place)).collect();
            drop(entries);
            self.waiting.fetch_sub(woken.len(), Ordering::SeqCst);
            woken.into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes all.
    pub(super) fn wake_all(&self) {
        self.wake_keys(0..=u64::MAX);
    }

    /// Whether there are waiters. To be asked under a lock that every waiter takes between
    /// registering and looking: then either this sees the waiter, or the waiter sees what was done
    /// before.
    pub(super) fn has_waiters(&self) -> bool {
        // Relaxed: the lock orders it.
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// From here on `waker` is called once for a change that concerns `key`: a look after this
    /// misses none.
    pub(super) fn register(&self, key: u64, waker: Waker) -> Registration<'_> {
        let mut entries = self.entries.lock();
        let id = entries.next_id;
        entries.next_id += 1;
        entries.wakers.insert((key, id), waker);
        // SeqCst: pairs with the load in `wake_one` and `wake_keys`.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Registration { list: self, place: (key, id) }
    }

    /// Calls `look` until it finds something, parked in between; `None` once `deadline` has passed.
    /// `registered` is called between registering and looking: the place to take the lock under
    /// which others ask [`WaitList::has_waiters`].
    pub(super) fn wait_until<T>(
        &self,
        key: u64,
        soon: Soon,
        deadline: Option<Instant>,
        registered: impl Fn(),
        mut look: impl FnMut() -> Look<T>,
    ) -> Option<T> {
        let spins = if soon == Soon::Perhaps { SPINS } else { 0 };
        for _ in 0..spins {
            if let Look::Found(found) = look() {
                return Some(found);
            }
            (0..SPIN_STEPS).for_each(|_| std::hint::spin_loop());
        }
        let parker = Parker::new();
        loop {
            parker.forget();
            let registration = self.register(key, parker.waker());
            registered();
            let until = match look() {
                Look::Found(found) => {
                    registration.end();
                    return Some(found);
                }
                Look::NotYet => deadline,
                Look::NotBefore(time) => Some(deadline.map_or(time, |end| end.min(time))),
            };
            parker.park(until);
            if deadline.is_some_and(|end| end <= clock::now()) {
                // A wake-up that came in this very moment is passed on.
                drop(registration);
                return if let Look::Found(found) = look() { Some(found) } else { None };
            }
            registration.end();
        }
    }
}

/// A place in the list. If it was woken, and is dropped instead of ended, it wakes another waiter,
/// because nobody may have done what it was woken for.
#[derive(Debug)]
pub(super) struct Registration<'a> {
    list: &'a WaitList,
    place: (u64, u64),
}

impl Registration<'_> {
    /// Leaves the list. The caller has looked, or is about to look.
    pub(super) fn end(self) {
        self.leave();
        std::mem::forget(self);
    }

    /// Whether it had been woken already.
    fn leave(&self) -> bool {
        let left = self.list.entries.lock().wakers.remove(&self.place);
        if left.is_some() {
            self.list.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        left.is_none()
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if self.leave() {
            self.list.wake_one();
        }
    }
}

/// A thread that parks until it is woken, and remembers that it was: what else it parks for in
/// between cannot take the wake-up away.
#[derive(Debug)]
pub(super) struct Parker(Arc<Parked>);

#[derive(Debug)]
struct Parked {
    thread: Thread,
    is_woken: AtomicBool,
}

impl Parker {
    /// For the thread that calls.
    pub(super) fn new() -> Self {
        Self(Arc::new(Parked { thread: thread::current(), is_woken: AtomicBool::new(false) }))
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.0))
    }

    /// Forgets earlier wake-ups. The caller looks after this and before it parks.
    pub(super) fn forget(&self) {
        // Acquire: pairs with the store in `wake`.
        self.0.is_woken.swap(false, Ordering::Acquire);
    }

    /// Parks until woken, or until this time.
    pub(super) fn park(&self, until: Option<Instant>) {
        // Acquire: pairs with the store in `wake`.
        while !self.0.is_woken.load(Ordering::Acquire) {
            match until.map(|until| until.saturating_duration_since(clock::now())) {
                Some(Duration::ZERO) => return,
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        // Release: pairs with the loads in `forget` and `park`.
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_wake_up_is_lost_between_many_waiters() {
        let (list, tokens) = (WaitList::default(), AtomicU64::new(0));
        let take = || {
            let taken =
                tokens.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            taken.map_or(Look::NotYet, Look::Found)
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..500).for_each(|_| {
                        assert!(list.wait_until(0, Soon::Perhaps, None, || (), take).is_some());
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

    /// A look may wait for something else: the wake-up that came meanwhile is not lost.
    #[test]
    fn a_look_that_parks_does_not_eat_the_wake_up() {
        let (outer, inner, is_there) =
            (WaitList::default(), WaitList::default(), AtomicU64::new(0));
        let looks = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                outer.wait_until(
                    0,
                    Soon::No,
                    None,
                    || (),
                    || {
                        // The first look waits until both of its wake-ups have come.
                        if looks.fetch_add(1, Ordering::SeqCst) == 0 {
                            let seen = || {
                                if is_there.load(Ordering::SeqCst) == 0 {
                                    Look::NotYet
                                } else {
                                    Look::Found(())
                                }
                            };
                            inner.wait_until(0, Soon::No, None, || (), seen);
                            return Look::NotYet;
                        }
                        Look::Found(())
                    },
                )
            });
            while !inner.has_waiters() {
                thread::yield_now();
            }
            outer.wake_one();
            is_there.store(1, Ordering::SeqCst);
            inner.wake_one();
        });
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_deadline_ends_the_wait_and_leaves_nothing_behind() {
        let list = WaitList::default();
        let deadline = clock::now() + Duration::from_millis(5);
        let nothing = || Look::<()>::NotYet;
        assert_eq!(list.wait_until(0, Soon::No, Some(deadline), || (), nothing), None);
        assert!(clock::now() >= deadline);
        assert_eq!(list.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_look_that_comes_too_early_comes_again_in_time() {
        let list = WaitList::default();
        let time = clock::now() + Duration::from_millis(5);
        let look = || if clock::now() < time { Look::NotBefore(time) } else { Look::Found(()) };
        assert_eq!(list.wait_until(0, Soon::No, None, || (), look), Some(()));
        assert_eq!(list.waiting.load(Ordering::SeqCst), 0);
    }

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Counter(AtomicU64);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_waiters_for_that_key_are_woken() {
        let list = WaitList::default();
        let counters: [Arc<Counter>; 4] = std::array::from_fn(|_| Arc::default());
        let waker = |of: usize| Waker::from(Arc::clone(&counters[of]));
        let waiting = [5, 7, 7, 9].into_iter().zip(0..);
        let places: Vec<_> = waiting.map(|(key, of)| list.register(key, waker(of))).collect();
        let woken = || counters.each_ref().map(|counter| counter.0.load(Ordering::SeqCst));
        list.wake_keys(6..=8);
        assert_eq!((woken(), list.waiting.load(Ordering::SeqCst)), ([0, 1, 1, 0], 2));
        places.into_iter().for_each(Registration::end);
        assert_eq!((woken(), list.waiting.load(Ordering::SeqCst)), ([0, 1, 1, 0], 0));
        let (first, second) = (list.register(0, waker(0)), list.register(0, waker(3)));
        list.wake_one();
        drop(first);
        assert_eq!(woken(), [1, 1, 1, 1], "a place that is dropped wakes another");
        second.end();
        assert!(!list.has_waiters());
    }
}
