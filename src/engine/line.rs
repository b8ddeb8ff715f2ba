//! A line of producers that wait for room. They are served one at a time, in the order in which
//! they came.
//!
//! Promises: only the first in line looks; it is woken by each change that may have made room, and
//! it wakes the next one when it leaves, with room or without. So a change that makes room for one
//! producer wakes one. Producers that come while there is a line stand at its end; only a push that
//! does not wait may overtake them.

use super::wait::{Look, Parker};
use crate::clock;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::thread::{self, ThreadId};
use std::time::Instant;

/// The producers that wait, the first one in front.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// How many there are, so that it costs one load to wake none.
    waiting: AtomicUsize,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    next_id: u64,
    producers: VecDeque<Producer>,
}

#[derive(Debug)]
struct Producer {
    id: u64,
    /// The thread that waits.
    thread: ThreadId,
    waker: Waker,
}

impl Line {
    /// Returns true if no producer waits. A producer that this misses sees every change that was
    /// made before the call.
    pub(crate) fn is_empty(&self) -> bool {
        // SeqCst: pairs with the increment in `join`; either this sees the turn, or the look that
        // follows `join` sees what was changed before.
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// There may be room: wakes the first. Not the thread that calls: it is in its own look, after
    /// which it looks again if it made room, and would find itself woken for ever.
    pub(crate) fn wake_first(&self) {
        if !self.is_empty() {
            let turns = self.turns.lock();
            let first = turns.producers.front();
            let other = first.filter(|first| first.thread != thread::current().id());
            let waker = other.map(|first| first.waker.clone());
            drop(turns);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The queue is closed, or poisoned: wakes the first, also if it is the thread that calls. The
    /// others follow as each of them leaves.
    pub(crate) fn wake_first_for_good(&self) {
        let waker = self.turns.lock().producers.front().map(|first| first.waker.clone());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Stands at the end of the line, and calls `look` whenever it is the first and there may be
    /// room, until that finds something; `None` once `deadline` has passed.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut() -> Look<T>,
    ) -> Option<T> {
        let parker = Parker::new();
        let turn = self.join(parker.waker());
        loop {
            parker.forget();
            let mut until = deadline;
            if turn.is_first() {
                match look() {
                    Look::Found(found) => return Some(found),
                    Look::NotYet => {}
                    Look::NotBefore(time) => until = Some(until.map_or(time, |end| end.min(time))),
                }
            }
            if deadline.is_some_and(|end| end <= clock::now()) {
                return None;
            }
            parker.park(until);
        }
    }

    fn join(&self, waker: Waker) -> Turn<'_> {
        let mut turns = self.turns.lock();
        let id = turns.next_id;
        turns.next_id += 1;
        turns.producers.push_back(Producer { id, thread: thread::current().id(), waker });
        // SeqCst: pairs with the load in `is_empty`.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Turn { line: self, id }
    }
}

/// The turn of a producer in the line.
struct Turn<'a> {
    line: &'a Line,
    id: u64,
}

impl Turn<'_> {
    fn is_first(&self) -> bool {
        self.line.turns.lock().producers.front().is_some_and(|first| first.id == self.id)
    }
}

impl Drop for Turn<'_> {
    /// The next one looks, whether this one found room or not.
    fn drop(&mut self) {
        let mut turns = self.line.turns.lock();
        let was_first = turns.producers.front().is_some_and(|first| first.id == self.id);
        turns.producers.retain(|producer| producer.id != self.id);
        self.line.waiting.fetch_sub(1, Ordering::SeqCst);
        let next = turns.producers.front().filter(|_| was_first).map(|next| next.waker.clone());
        drop(turns);
        if let Some(next) = next {
            next.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex as StdMutex;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    /// Takes one of the free places.
    fn take(free: &AtomicU64) -> Look<()> {
        let taken = free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        taken.map_or(Look::NotYet, |_| Look::Found(()))
    }

    #[test]
    fn each_place_serves_the_one_that_came_first() {
        let (line, free, order) = (Line::default(), AtomicU64::new(0), StdMutex::new(Vec::new()));
        let looks = AtomicU64::new(0);
        thread::scope(|scope| {
            for number in 0_usize..8 {
                let (line, free, order, looks) = (&line, &free, &order, &looks);
                scope.spawn(move || {
                    line.wait(None, || {
                        looks.fetch_add(1, Ordering::SeqCst);
                        let look = take(free);
                        if matches!(look, Look::Found(())) {
                            order.lock().unwrap().push(number);
                        }
                        look
                    });
                });
                while line.waiting.load(Ordering::SeqCst) <= number {
                    thread::yield_now();
                }
            }
            for _ in 0..8 {
                free.fetch_add(1, Ordering::SeqCst);
                line.wake_first();
            }
        });
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert!(line.is_empty());
        assert!(looks.load(Ordering::SeqCst) <= 3 * 8, "each change concerns one, or two");
    }

    #[test]
    fn one_that_gives_up_lets_the_next_one_look() {
        let (line, free) = (Line::default(), AtomicU64::new(0));
        thread::scope(|scope| {
            let (line, soon) = (&line, clock::now() + Duration::from_millis(50));
            let first = scope.spawn(move || line.wait(Some(soon), || Look::<()>::NotYet));
            while line.is_empty() {
                thread::yield_now();
            }
            let second = scope.spawn(|| line.wait(None, || take(&free)));
            while line.waiting.load(Ordering::SeqCst) < 2 && !first.is_finished() {
                thread::yield_now();
            }
            // The first one may not look for it: it waits for more.
            free.fetch_add(1, Ordering::SeqCst);
            assert_eq!(first.join().unwrap(), None);
            assert_eq!(second.join().unwrap(), Some(()));
        });
        assert!(line.is_empty());
    }
}
