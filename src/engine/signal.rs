//! The dispatch lock, and its guard, which tells others what changed when it is dropped.
//!
//! Promises: when the guard is dropped, it wakes the threads that wait for what was done under the
//! lock, asks the background for the work that follows, tells it the next time to watch, and sees
//! to it that maps above the limit are given up. So no caller has to remember any of that. Work
//! that takes long is done in steps of less than a millisecond; beside a consumer it has the lock
//! for about half of the time.

use super::backlog::IdleMaps;
use super::context::{Context, Padded, RoomTries};
use super::dispatch::news::Event;
use super::dispatch::{Dispatch, ShortWay, Watcher};
use super::gate::{ClosedGate, Gate};
use crate::clock;
use crate::error;
use parking_lot::{Mutex, MutexGuard};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use std::{hint, thread};

/// The dispatch, and the lock that guards it.
#[derive(Debug)]
pub(crate) struct DispatchLock {
    context: Arc<Context>,
    dispatch: Padded<Mutex<Dispatch>>,
    gate: Gate,
}

/// The dispatch while it is locked.
#[derive(Debug)]
pub(crate) struct DispatchGuard<'a> {
    lock: &'a DispatchLock,
    /// `None` only while it is dropped.
    guard: Option<MutexGuard<'a, Dispatch>>,
}

/// Work that takes long, in steps under the lock.
///
/// A consumer takes the lock twice for each message. If it got it between two steps only, it could
/// not keep up with producers: so beside one, there is a rest as long as the step.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    lock: &'a DispatchLock,
    /// The newest change at the end of the last step, if there was one.
    newest_change: Option<u64>,
    /// To be taken before the next step.
    rest: Option<Duration>,
}

/// Others have the lock for less than a microsecond, unless they lose their core: a step looks for
/// it so often, which takes some microseconds; then again so often, with a pause before each time.
const LOOKS: usize = 200;
const PATIENCE: usize = 100;

/// A step that took longer was held up: by a disk, or with the whole process.
const LONGEST_REST: Duration = Duration::from_millis(1);

/// About what it takes a thread to wake.
const PAUSE: Duration = Duration::from_micros(50);

impl DispatchLock {
    pub(super) fn new(context: Arc<Context>, dispatch: Dispatch) -> Self {
        Self { context, dispatch: Padded(Mutex::new(dispatch)), gate: Gate::default() }
    }

    #[inline]
    pub(crate) fn lock(&self) -> DispatchGuard<'_> {
        DispatchGuard { lock: self, guard: Some(self.lock_mutex()) }
    }

    /// Takes the lock to go the short way. Where that does not lead, gives the lock, to go the long
    /// way instead.
    #[inline(always)]
    pub(crate) fn go_short<T>(
        &self,
        go: impl FnOnce(&mut ShortWay<'_>) -> Option<T>,
    ) -> Result<T, DispatchGuard<'_>> {
        let mut dispatch = self.lock_mutex();
        let Some(done) = go(&mut dispatch.short_way()) else {
            return Err(DispatchGuard { lock: self, guard: Some(dispatch) });
        };
        // Nothing is mapped on it.
        if !dispatch.is_quiet(|| self.find_watcher()) {
            self.tell(dispatch);
        }
        Ok(done)
    }

    #[inline(always)]
    fn lock_mutex(&self) -> MutexGuard<'_, Dispatch> {
        self.dispatch.try_lock().unwrap_or_else(|| self.gate.wait(|| self.dispatch.lock()))
    }

    /// Takes the lock as soon as nobody has it for a moment. If who has it has lost its core, the
    /// gate is open meanwhile, a hundred times.
    fn close_gate(&self) -> (DispatchGuard<'_>, ClosedGate<'_>) {
        let Self { gate, dispatch, .. } = self;
        let guard = |guard| DispatchGuard { lock: self, guard: Some(guard) };
        for _ in 0..PATIENCE {
            let closed = gate.close();
            for _ in 0..LOOKS {
                if let Some(dispatch) = dispatch.try_lock() {
                    return (guard(dispatch), closed);
                }
                hint::spin_loop();
            }
            drop(closed);
            thread::sleep(PAUSE);
        }
        let closed = gate.close();
        (guard(dispatch.lock()), closed)
    }

    /// Begins work that takes long.
    pub(crate) fn steps(&self) -> Steps<'_> {
        Steps { lock: self, newest_change: None, rest: None }
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

    /// Gives up maps that no delivery needs, and those that left their tracks, outside of the
    /// lock. Waits for others who give maps up: for a step at most.
    pub(crate) fn give_up_maps(&self, which: IdleMaps) {
        self.context.unmapping.give_up(|| self.lock_mutex().take_idle_maps(which));
        self.context.unmapping.wait_for_others();
    }

    /// The same with those that left their tracks.
    pub(crate) fn give_up_left_maps(&self) {
        self.give_up_some(usize::MAX);
        self.context.unmapping.wait_for_others();
    }

    /// For somebody who found no room for a map: gives up those that no delivery needs, or all but
    /// two if there are none; or else waits for others that give some up, or for a moment. False if
    /// it is in vain to try again.
    pub(crate) fn make_room_for_map(&self, tries: &mut RoomTries) -> bool {
        let take = || self.lock_mutex().take_idle_maps(IdleMaps::OrLeased);
        let has_room = self.context.unmapping.make_room(tries, take);
        // Their files can be closed by whoever comes first.
        self.context.surplus.note();
        has_room
    }

    /// Does some work, and does it again as long as it finds no room for a map and some can be
    /// made. Not under the lock.
    pub(crate) fn with_room<T>(
        &self,
        mut work: impl FnMut() -> error::Result<T>,
    ) -> error::Result<T> {
        let mut tries = self.context.unmapping.tries();
        loop {
            match work() {
                Err(error) if error.lacks_room_for_map() && self.make_room_for_map(&mut tries) => {}
                done => return done,
            }
        }
    }

    /// Takes the mutex alone, here and above: nothing changes that others have to be told, and who
    /// tells them may give maps up.
    fn give_up_some(&self, most: usize) {
        let take = || self.lock_mutex().backlog_mut().tracks_mut().take_left_maps(most);
        self.context.unmapping.give_up(take);
    }

    /// Gives the lock up, and tells others what changed under it.
    #[inline(never)]
    fn tell(&self, mut dispatch: MutexGuard<'_, Dispatch>) {
        let Context { waiters, worker, clock, surplus, died, .. } = &*self.context;
        let has_worker = worker.is_running();
        let above = dispatch.unmap_surplus(has_worker);
        let (news, asks_for_sync) = dispatch.take_news();
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
        if above.too_many_maps > 0 {
            self.give_up_some(above.too_many_maps);
        }
        if above.has_files_to_close {
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

impl Steps<'_> {
    /// Does the next step, after a rest if there are others: they changed slots since the last
    /// step, or wait. From the second step on the gate is closed meanwhile.
    pub(crate) fn next<T>(&mut self, work: impl FnOnce(&mut Dispatch) -> T) -> T {
        let Some(before) = self.newest_change else { return self.first(work) };
        if let Some(rest) = self.rest.take() {
            thread::sleep(rest);
        }
        let (mut dispatch, gate) = self.lock.close_gate();
        let began = clock::now();
        let has_changes = newest_change(&dispatch) != before;
        let done = work(&mut dispatch);
        self.newest_change = Some(newest_change(&dispatch));
        let has_others = has_changes || self.lock.gate.has_waiting();
        self.rest = has_others.then(|| (clock::now() - began).clamp(PAUSE, LONGEST_REST));
        drop(gate);
        done
    }

    /// Most work is over after one step: that costs the lock, and no more.
    fn first<T>(&mut self, work: impl FnOnce(&mut Dispatch) -> T) -> T {
        let mut dispatch = self.lock.lock();
        let done = work(&mut dispatch);
        self.newest_change = Some(newest_change(&dispatch));
        self.rest = self.lock.gate.has_waiting().then_some(PAUSE);
        done
    }
}

fn newest_change(dispatch: &Dispatch) -> u64 {
    dispatch.backlog().changes().newest()
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

    use super::LONGEST_REST;
    use crate::clock;
    use crate::engine::futures::{self, engine};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;
    use std::{fs, hint, thread};

    /// An unlock passes the lock on by itself only if it has not done so for up to a millisecond.
    const STEPS: usize = 50;
    /// On a busy machine a thread sleeps for a moment in front of the queue of the lock, too.
    const MOST_MISSED: usize = STEPS / 4;
    /// There the other thread may not have a core within a rest, either: then once more.
    const TRIES: usize = 3;
    /// Nothing takes so long, on any machine: what does hangs.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Ends the other thread when it is dropped, also if the test fails.
    struct OverAtEnd<'a>(&'a AtomicBool);

    impl Drop for OverAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn until(is_so: impl Fn() -> bool, pause: fn()) {
        let end = clock::now() + LIMIT;
        while !is_so() {
            assert!(clock::now() < end, "it never became so");
            pause();
        }
    }

    /// Where Linux tells the state of this thread: "id (name) state ...".
    fn stat() -> PathBuf {
        Path::new("/proc").join(fs::read_link("/proc/thread-self").unwrap()).join("stat")
    }

    fn is_asleep(stat: &Path) -> bool {
        let stat = fs::read_to_string(stat).unwrap();
        stat.rsplit(')').next().is_some_and(|state| state.trim_start().starts_with('S'))
    }

    /// How many steps let no other thread in, though one waits.
    fn missed() -> usize {
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
        thread::scope(|scope| {
            scope.spawn(other);
            let _over = OverAtEnd(&is_over);
            let stat = told.recv().unwrap();
            let mut steps = engine.dispatch.steps();
            let mut step = || {
                steps.next(|_| {
                    let waits = || is_waiting.load(Ordering::SeqCst) && is_asleep(&stat);
                    until(waits, hint::spin_loop);
                    turns.load(Ordering::SeqCst)
                })
            };
            let turns: Vec<_> = (0..=STEPS).map(|_| step()).collect();
            turns.windows(2).filter(|turns| turns[0] == turns[1]).count()
        })
    }

    #[test]
    fn a_thread_that_waits_for_the_lock_gets_it_after_each_step() {
        let mut all = Vec::new();
        let lets_others_in = (0..TRIES).any(|_| {
            all.push(missed());
            all.last() <= Some(&MOST_MISSED)
        });
        assert!(lets_others_in, "{all:?} of {STEPS} steps let no other thread in");
    }

    #[test]
    fn steps_have_rests_beside_other_threads_only() {
        const WORK: Duration = Duration::from_millis(1);
        let engine = engine();
        let mut steps = engine.dispatch.steps();
        let mut step = |work: &dyn Fn()| {
            let (began, rest) = (clock::now(), steps.rest.unwrap_or_default());
            steps.next(|_| {
                assert!(clock::now() - began >= rest, "the rest is taken");
                thread::sleep(WORK);
                work();
            });
            steps.rest
        };
        let nothing = || ();
        assert_eq!(step(&nothing), None, "the first one");
        assert_eq!(step(&nothing), None, "nobody else is there");
        futures::push(&engine, b"message");
        assert_eq!(step(&nothing), None, "producers do not need the lock");
        let taken = engine.consumers().pop_until(Some(clock::now())).unwrap();
        futures::ack(&engine, &taken.unwrap());
        assert!(step(&nothing) >= Some(WORK), "a consumer is there");
        assert_eq!(step(&nothing), None, "it is gone");
        thread::scope(|scope| {
            let waits = || {
                scope.spawn(|| drop(engine.dispatch.lock()));
                until(|| engine.dispatch.gate.has_waiting(), thread::yield_now);
            };
            assert!(step(&waits) >= Some(WORK), "a thread waits");
        });
        assert_eq!(step(&nothing), None, "it waits no more");
        thread::scope(|scope| {
            let (go, goes) = mpsc::channel();
            let (is_first, had_first) = mpsc::channel();
            let engine = &engine;
            scope.spawn(move || {
                let mut steps = engine.dispatch.steps();
                steps.next(|_| is_first.send(()).unwrap());
                goes.recv().unwrap();
                steps.next(|_| ());
            });
            // The first step of a thread waits for the lock, the next ones wait at the gate.
            had_first.recv().unwrap();
            let waits = || {
                go.send(()).unwrap();
                until(|| engine.dispatch.gate.has_waiting(), thread::yield_now);
            };
            assert!(step(&waits) >= Some(WORK), "another one works in steps");
        });
    }

    /// Between a segment's leaving the log and its unmapping, a pop that found no room for a map
    /// heard of it.
    #[test]
    fn a_map_that_left_the_log_makes_room() {
        let engine = engine();
        let count = || engine.dispatch.lock().backlog().tracks().len();
        while count() < 2 {
            futures::push(&engine, &vec![0; 1 << 20]);
        }
        while let Some(taken) = engine.consumers().pop_until(Some(clock::now())).unwrap() {
            futures::ack(&engine, &taken);
        }
        let mut dispatch = engine.dispatch.lock();
        let tracks = dispatch.backlog_mut().tracks_mut();
        let oldest = tracks.iter().next().unwrap().ordinal();
        tracks.note_done_synced(oldest);
        assert!(tracks.take_done(|_| true).is_some());
        drop(dispatch);
        let unmapping = &engine.context().unmapping;
        let (mut mine, mut yours) =
            (unmapping.tries_without_pause(), unmapping.tries_without_pause());
        assert!(engine.dispatch.make_room_for_map(&mut mine));
        assert!(!engine.dispatch.make_room_for_map(&mut mine), "it is given up once");
        assert!(engine.dispatch.make_room_for_map(&mut yours), "somebody else made room");
    }

    #[test]
    fn a_step_that_was_held_up_is_followed_by_a_short_rest() {
        let engine = engine();
        let mut steps = engine.dispatch.steps();
        steps.next(|_| ());
        futures::push(&engine, b"message");
        let taken = engine.consumers().pop_until(Some(clock::now())).unwrap();
        futures::ack(&engine, &taken.unwrap());
        steps.next(|_| thread::sleep(3 * LONGEST_REST));
        assert_eq!(steps.rest, Some(LONGEST_REST));
    }
}
