//! The dispatch lock, and its guard, which tells others what changed when it is dropped.
//!
//! Promises: when the guard is dropped, it wakes the threads that wait for what was done under the
//! lock, asks the background for the work that follows, tells it the next time to watch, and drops
//! maps above the limit outside of the lock. So no caller has to remember any of that.

use super::context::{Context, Padded};
use super::dispatch::news::News;
use super::dispatch::{Dispatch, Watcher};
use crate::log::sealed::Mapped;
use crate::time::Time;
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
    context: &'a Context,
    guard: MutexGuard<'a, Dispatch>,
    /// Dropped after the lock is given up, which tells it.
    told: Option<Box<Told<'a>>>,
}

/// What changed under the lock. Its drop tells others, outside of the lock.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct Told<'a> {
    context: &'a Context,
    /// Maps above the limit.
    maps: Vec<Arc<Mapped>>,
    news: News,
    holds_too_many: bool,
    asks_for_sync: bool,
    /// There is no background, so that a thread that waits moves messages that died, and watches
    /// the next time.
    asks_waiters: bool,
    has_consumers: bool,
    /// The next time to watch, if it is a new one.
    watch: Option<Time>,
}

impl DispatchLock {
    pub(super) fn new(context: Arc<Context>, dispatch: Dispatch) -> Self {
        Self { context, dispatch: Padded(Mutex::new(dispatch)) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> DispatchGuard<'_> {
        DispatchGuard { context: &self.context, guard: self.dispatch.lock(), told: None }
    }

    /// Takes the lock for a step of work that takes long. A thread that waits for the lock gets it
    /// before the next step: without that, who works would have it again before another one wakes.
    pub(crate) fn step<T>(&self, work: impl FnOnce(&mut Dispatch) -> T) -> T {
        let mut dispatch = self.lock();
        let done = work(&mut dispatch);
        dispatch.let_others_in();
        done
    }
}

impl<'a> Told<'a> {
    /// Asked under the lock.
    #[inline(never)]
    fn of(dispatch: &mut Dispatch, context: &'a Context) -> Self {
        let Context { waiters, worker, died, .. } = context;
        let (maps, holds_too_many) = dispatch.take_surplus_maps();
        let (news, asks_for_sync) = dispatch.take_news();
        let has_worker = worker.is_running();
        let watch = dispatch.take_watch(has_worker);
        let asks_waiters = !has_worker && (news.died || watch.is_some());
        // Each consumer takes the lock between registering and looking.
        let tells_consumers = news.returned || asks_waiters || watch.is_some();
        let has_consumers = tells_consumers && waiters.consumers.has_waiters();
        // Under the lock, so that a thread that looks after this sees it.
        if news.died {
            died.note();
        }
        Self {
            context,
            maps,
            news,
            holds_too_many,
            asks_for_sync,
            asks_waiters,
            has_consumers,
            watch,
        }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Context { waiters, worker, clock, surplus, .. } = self.context;
        let News { settled, settled_unknown, upkeep, died, reclaims, .. } = self.news;
        self.maps.clear();
        if self.holds_too_many {
            surplus.note();
            worker.ask();
        }
        if self.has_consumers {
            waiters.consumers.wake_one();
        }
        // Where nothing can be moved to the dead letters, a producer waits in vain for what died.
        if settled || died || self.asks_waiters {
            waiters.room.wake_first();
        }
        if self.asks_waiters && self.watch.is_some() {
            waiters.settled.wake_all();
        }
        for &seq in &self.news.settled_seqs {
            waiters.settled.wake_keys(seq..=seq);
        }
        if settled_unknown {
            waiters.settled.wake_all();
        }
        if self.asks_for_sync {
            worker.sync_answers();
        }
        if upkeep || died {
            worker.ask();
        } else if reclaims {
            worker.compact_within(self.context.look_interval());
        }
        let watch = self.watch.filter(|_| !self.asks_waiters);
        if let Some(at) = watch.and_then(|time| clock.instant(time)) {
            worker.watch(at);
        }
    }
}

impl DispatchGuard<'_> {
    /// Lets a thread in that waits for the lock, in the middle of long work, and takes it again.
    /// What changed is told when the guard is dropped.
    pub(super) fn let_others_in(&mut self) {
        MutexGuard::bump(&mut self.guard);
    }
}

impl Deref for DispatchGuard<'_> {
    type Target = Dispatch;

    #[inline]
    fn deref(&self) -> &Dispatch {
        &self.guard
    }
}

impl DerefMut for DispatchGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Dispatch {
        &mut self.guard
    }
}

impl Drop for DispatchGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Asked under the lock, which a producer takes between its place in line and its look.
        let Context { waiters, worker, .. } = self.context;
        let has_producers = !waiters.room.is_empty();
        let has_waiters = || waiters.consumers.has_waiters() || waiters.settled.has_waiters();
        let find_watcher = || match worker.is_running() {
            true => Watcher::Worker,
            false if has_producers || has_waiters() => Watcher::Waiters,
            false => Watcher::Nobody,
        };
        if !self.guard.is_quiet(has_producers, find_watcher) {
            self.told = Some(Box::new(Told::of(&mut self.guard, self.context)));
        }
    }
}
