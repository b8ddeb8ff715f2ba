//! The dispatch lock, and its guard, which tells others what changed when it is dropped.
//!
//! Promises: when the guard is dropped, it wakes the threads that wait for what was done under the
//! lock, asks the background for the work that follows, tells it the next time to watch, and drops
//! maps above the limit outside of the lock. So no caller has to remember any of that.

use super::context::{Context, Padded};
use super::dispatch::{Dispatch, Watcher};
use parking_lot::{Mutex, MutexGuard};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The dispatch, and the lock that guards it.
#[derive(Debug)]
pub(crate) struct DispatchLock {
    context: Arc<Context>,
    dispatch: Padded<Mutex<Dispatch>>,
}

/// The dispatch while it is locked.
#[derive(Debug)]
pub(crate) struct DispatchGuard<'a> {
    lock: &'a DispatchLock,
    /// `None` only while it is dropped.
    guard: Option<MutexGuard<'a, Dispatch>>,
}

impl DispatchLock {
    pub(super) fn new(context: Arc<Context>, dispatch: Dispatch) -> Self {
        Self { context, dispatch: Padded(Mutex::new(dispatch)) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> DispatchGuard<'_> {
        DispatchGuard { lock: self, guard: Some(self.dispatch.lock()) }
    }

    /// Takes the lock for a step of work that takes long. A thread that waits for the lock gets it
    /// before the next step: without that, who works would have it again before another one wakes.
    pub(crate) fn step<T>(&self, work: impl FnOnce(&mut Dispatch) -> T) -> T {
        let mut dispatch = self.lock();
        let done = work(&mut dispatch);
        dispatch.let_others_in();
        done
    }

    /// Gives the lock up, and tells others what changed under it.
    #[inline(never)]
    fn tell(&self, mut dispatch: MutexGuard<'_, Dispatch>) {
        let Context { waiters, worker, clock, surplus, died, .. } = &*self.context;
        let (maps, holds_too_many) = dispatch.take_surplus_maps();
        let (news, asks_for_sync) = dispatch.take_news();
        let has_worker = worker.is_running();
        let watch = dispatch.take_watch(has_worker);
        // Without a background, a thread that waits moves messages that died, and watches the next
        // time.
        let asks_waiters = !has_worker && (news.died || watch.is_some());
        // Asked under the lock, which each consumer takes between registering and looking.
        let tells_consumers = news.returned || asks_waiters || watch.is_some();
        let has_consumers = tells_consumers && waiters.consumers.has_waiters();
        // Under the lock, so that a thread that looks after this sees it.
        if news.died {
            died.note();
        }
        drop(dispatch);
        drop(maps);
        if holds_too_many {
            surplus.note();
            worker.ask();
        }
        if has_consumers {
            waiters.consumers.wake_one();
        }
        // Where nothing can be moved to the dead letters, a producer waits in vain for what died.
        if news.settled || news.died || asks_waiters {
            waiters.room.wake_first();
        }
        if asks_waiters && watch.is_some() {
            waiters.settled.wake_all();
        }
        for seq in news.settled_seqs {
            waiters.settled.wake_keys(seq..=seq);
        }
        if news.settled_unknown {
            waiters.settled.wake_all();
        }
        if asks_for_sync {
            worker.sync_answers();
        }
        if news.upkeep || news.died {
            worker.ask();
        } else if news.reclaims {
            worker.compact_within(self.context.look_interval());
        }
        if let Some(at) = watch.filter(|_| has_worker).and_then(|time| clock.instant(time)) {
            worker.watch(at);
        }
    }
}

impl DispatchGuard<'_> {
    /// Lets a thread in that waits for the lock, in the middle of long work, and takes it again.
    /// What changed is told when the guard is dropped.
    pub(super) fn let_others_in(&mut self) {
        if let Some(guard) = &mut self.guard {
            MutexGuard::bump(guard);
        }
    }
}

impl Deref for DispatchGuard<'_> {
    type Target = Dispatch;

    #[inline]
    fn deref(&self) -> &Dispatch {
        self.guard.as_ref().expect("it is there until the guard is dropped")
    }
}

impl DerefMut for DispatchGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Dispatch {
        self.guard.as_mut().expect("it is there until the guard is dropped")
    }
}

impl Drop for DispatchGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut dispatch) = self.guard.take() else { return };
        // Asked under the lock, which a producer takes between its place in line and its look.
        let Context { waiters, worker, .. } = &*self.lock.context;
        let has_producers = !waiters.room.is_empty();
        let has_waiters = || waiters.consumers.has_waiters() || waiters.settled.has_waiters();
        let find_watcher = || match worker.is_running() {
            true => Watcher::Worker,
            false if has_producers || has_waiters() => Watcher::Waiters,
            false => Watcher::Nobody,
        };
        if !dispatch.is_quiet(has_producers, find_watcher) {
            self.lock.tell(dispatch);
        }
    }
}
