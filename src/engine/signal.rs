//! The dispatch lock, and its guard, which tells others what changed when it is dropped.
//!
//! Promises: when the guard is dropped, it wakes the threads that wait for what was done under the
//! lock, asks the background for the work that follows, tells it the next time to watch, and drops
//! maps above the limit outside of the lock. So no caller has to remember any of that.

use super::context::{Context, Padded};
use super::dispatch::news::Event;
use super::dispatch::{Dispatch, ShortWay, Watcher};
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

    /// Takes the lock to go the short way. Where that does not lead, gives the lock, to go the long
    /// way instead.
    #[inline(always)]
    pub(crate) fn go_short<T>(
        &self,
        go: impl FnOnce(&mut ShortWay<'_>) -> Option<T>,
    ) -> Result<T, DispatchGuard<'_>> {
        let mut dispatch = self.dispatch.lock();
        let Some(done) = go(&mut dispatch.short_way()) else {
            return Err(DispatchGuard { lock: self, guard: Some(dispatch) });
        };
        // Nothing is mapped on it.
        if !dispatch.is_quiet(|| self.find_watcher()) {
            self.tell(dispatch);
        }
        Ok(done)
    }

    /// Takes the lock for a step of work that takes long. A thread that waits for the lock gets it
    /// before the next step: without that, who works would have it again before another one wakes.
    pub(crate) fn step<T>(&self, work: impl FnOnce(&mut Dispatch) -> T) -> T {
        let mut dispatch = self.lock();
        let done = work(&mut dispatch);
        dispatch.let_others_in();
        done
    }

    /// To be asked under the lock, which a thread takes between its place in line and its look.
    #[inline(always)]
    fn find_watcher(&self) -> Watcher {
        let Context { waiters, worker, .. } = &*self.context;
        let has_waiters = || waiters.consumers.has_waiters() || waiters.settled.has_waiters();
        match worker.is_running() {
            true => Watcher::Worker,
            false if !waiters.room.is_empty() || has_waiters() => Watcher::Waiters,
            false => Watcher::Nobody,
        }
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
        let asks_waiters = !has_worker && (news.has(Event::Died) || watch.is_some());
        // Asked under the lock, which each consumer takes between registering and looking.
        let tells_consumers = news.has(Event::Returned) || asks_waiters || watch.is_some();
        let has_consumers = tells_consumers && waiters.consumers.has_waiters();
        // Under the lock, so that a thread that looks after this sees it.
        if news.has(Event::Died) {
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
        if news.has(Event::Room) || news.has(Event::Died) || asks_waiters {
            waiters.room.wake_first();
        }
        if asks_waiters && watch.is_some() {
            waiters.settled.wake_all();
        }
        if news.has(Event::SettledUnknown) {
            waiters.settled.wake_all();
        }
        if asks_for_sync {
            worker.sync_answers();
        }
        if news.has(Event::Upkeep) || news.has(Event::Died) {
            worker.ask();
        } else if news.has(Event::Reclaims) {
            worker.compact_within(self.context.look_interval());
        }
        for seq in news.into_settled_seqs() {
            waiters.settled.wake_keys(seq..=seq);
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
        let Some(dispatch) = self.guard.take() else { return };
        if dispatch.backlog().has_new_maps() || !dispatch.is_quiet(|| self.lock.find_watcher()) {
            self.lock.tell(dispatch);
        }
    }
}

#[cfg(all(test, feature = "fault-injection", target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail")]

    use crate::engine::futures::engine;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::{fs, hint, thread};

    /// An unlock passes the lock on by itself only if it has not done so for up to a millisecond.
    const STEPS: usize = 50;
    /// On a busy machine a thread sleeps for a moment in front of the queue of the lock, too.
    const MOST_MISSED: usize = STEPS / 4;

    /// Where Linux tells the state of this thread: "id (name) state ...".
    fn stat() -> PathBuf {
        Path::new("/proc").join(fs::read_link("/proc/thread-self").unwrap()).join("stat")
    }

    fn is_asleep(stat: &Path) -> bool {
        let stat = fs::read_to_string(stat).unwrap();
        stat.rsplit(')').next().is_some_and(|state| state.trim_start().starts_with('S'))
    }

    #[test]
    fn a_thread_that_waits_for_the_lock_gets_it_after_each_step() {
        let engine = engine();
        let (is_over, is_waiting) = (AtomicBool::new(false), AtomicBool::new(false));
        let (turns, (tell, told)) = (AtomicU64::new(0), mpsc::channel());
        let other = || {
            tell.send(stat()).unwrap();
            while !is_over.load(Ordering::SeqCst) {
                is_waiting.store(true, Ordering::SeqCst);
                let guard = engine.dispatch.lock();
                is_waiting.store(false, Ordering::SeqCst);
                turns.fetch_add(1, Ordering::SeqCst);
                drop(guard);
            }
        };
        let missed = thread::scope(|scope| {
            scope.spawn(other);
            let stat = told.recv().unwrap();
            let step = || {
                engine.dispatch.step(|_| {
                    while !is_waiting.load(Ordering::SeqCst) || !is_asleep(&stat) {
                        hint::spin_loop();
                    }
                    turns.load(Ordering::SeqCst)
                })
            };
            let turns: Vec<_> = (0..=STEPS).map(|_| step()).collect();
            is_over.store(true, Ordering::SeqCst);
            turns.windows(2).filter(|turns| turns[0] == turns[1]).count()
        });
        assert!(missed <= MOST_MISSED, "{missed} of {STEPS} steps let no other thread in");
    }
}
