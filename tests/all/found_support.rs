//! What the tests of found faults share: calls in threads of their own, which can be seen to
//! sleep and are waited for with patience; and a storage that counts, delays or holds up
//! operations.

use crate::support::DEADLINE;
use crate::support::watched::{Op, Watched};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Durability, Options, Queue};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

/// A call that works returns within this time, even on a busy machine.
pub(crate) const PATIENCE: Duration = DEADLINE;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A queue with small segments, on this storage. Its pushes do not wait for the disk.
pub(crate) fn on(storage: Arc<dyn Storage>) -> Options {
    Queue::options().durability(Durability::Os).segment_bytes(65_536).storage(storage)
}

/// The same in memory and without a background thread.
pub(crate) fn alone() -> Options {
    on(Arc::new(MemoryStorage::new())).background(false)
}

/// Whether the condition becomes true before `PATIENCE` is over.
pub(crate) fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(ms(1));
    }
    true
}

/// How long the thread with this directory in `/proc` has run on a processor; nothing where the
/// system does not tell.
pub(crate) fn ran_for(thread: &Path) -> Duration {
    let stat = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Fails the test unless the second one takes less than so many times as long as the first, at the
/// best of each: others may be at work.
#[track_caller]
pub(crate) fn takes_less_than(
    times: u32,
    first: impl Fn() -> Duration,
    second: impl Fn() -> Duration,
) {
    const TRIES: usize = 6;
    let mut best = [Duration::MAX; 2];
    for _ in 0..TRIES {
        best = [best[0].min(first()), best[1].min(second())];
        if best[1] < times * best[0] {
            return;
        }
    }
    panic!("the second took {times} times as long, at the best of {TRIES}: {best:?}");
}

/// A call in a thread of its own. If it hangs, its thread is left behind.
pub(crate) struct Call<T> {
    result: Receiver<T>,
    thread: JoinHandle<()>,
    /// The file in which Linux tells the state of the thread.
    task: Option<PathBuf>,
}

pub(crate) fn call<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Call<T> {
    let ((tell, result), (tell_task, task)) = (mpsc::channel(), mpsc::channel());
    let thread = thread::spawn(move || {
        let task = fs::read_link("/proc/thread-self").ok();
        tell_task.send(task.map(|task| PathBuf::from("/proc").join(task).join("stat"))).ok();
        tell.send(work()).ok();
    });
    Call { result, thread, task: task.recv().unwrap() }
}

impl<T> Call<T> {
    /// Returns once the thread sleeps and stays asleep, or has ended.
    pub(crate) fn asleep(&self) {
        let Some(task) = &self.task else { return thread::sleep(ms(100)) };
        let mut times = 0;
        soon(|| {
            // "id (name) state ...", where S is a thread that waits.
            let stat = fs::read_to_string(task).unwrap_or_default();
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            times = if state.starts_with('S') { times + 1 } else { 0 };
            times > 3 || self.is_over()
        });
    }

    /// What the call returns, if it returns before `end`.
    pub(crate) fn result_by(self, end: Instant) -> Option<T> {
        self.result.recv_timeout(end.saturating_duration_since(Instant::now())).ok()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// How often the thread has gone to sleep; `None` where the system does not tell.
    pub(crate) fn sleeps(&self) -> Option<u64> {
        let status = fs::read_to_string(self.task.as_ref()?.with_file_name("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    }

    /// What the call returns.
    #[track_caller]
    pub(crate) fn result(self, what: &str) -> T {
        match self.result.recv_timeout(PATIENCE) {
            Ok(result) => result,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

/// Counts the operations that reach a storage, delays them, or holds one up.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<Op, u64>,
    /// What to hold up, after how many more of its kind.
    hold: Option<(Op, &'static str, u64)>,
    is_held: bool,
    slow: Option<(Op, Duration)>,
    /// How many words had been stored when each thread loaded something for the first time.
    stores_at_load: HashMap<ThreadId, u64>,
}

/// Ends the holding up when it is dropped.
pub(crate) struct Hold<'a>(&'a Watch);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many operations of this kind there have been.
    pub(crate) fn count(&self, op: Op) -> u64 {
        self.lock().counts.get(&op).copied().unwrap_or(0)
    }

    /// How many words had been stored when this thread loaded something for the first time.
    pub(crate) fn stores_at_load(&self) -> Option<u64> {
        self.lock().stores_at_load.get(&thread::current().id()).copied()
    }

    /// From here on each operation of this kind takes longer by this time.
    pub(crate) fn slow_down(&self, op: Op, by: Duration) {
        self.lock().slow = Some((op, by));
    }

    /// Makes a call, and holds up the first operation of this kind on a file whose name begins
    /// with `name`. Returns once that operation is held up, or the call has returned.
    #[track_caller]
    pub(crate) fn hold<T: Send + 'static>(
        &self,
        op: Op,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (Hold<'_>, Call<T>) {
        self.hold_after(0, op, name, work)
    }

    /// The same with the operation that comes after this many others of its kind on such files.
    #[track_caller]
    pub(crate) fn hold_after<T: Send + 'static>(
        &self,
        others: u64,
        op: Op,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (Hold<'_>, Call<T>) {
        self.lock().hold = Some((op, name, others));
        let (hold, call) = (Hold(self), call(work));
        assert!(soon(|| call.is_over() || self.lock().is_held), "nothing was held up");
        (hold, call)
    }

    fn pass(&self, op: Op, name: &str) {
        let mut state = self.lock();
        *state.counts.entry(op).or_default() += 1;
        if op == Op::Load {
            let stores = state.counts.get(&Op::StoreWord).copied().unwrap_or(0);
            state.stores_at_load.entry(thread::current().id()).or_insert(stores);
        }
        let held =
            state.hold.as_mut().filter(|(held, from, _)| *held == op && name.starts_with(*from));
        match held {
            Some((_, _, others)) if *others > 0 => *others -= 1,
            Some(_) => {
                state.hold = None;
                state.is_held = true;
                state = self.changed.wait_while(state, |state| state.is_held).unwrap();
            }
            None => {}
        }
        let slow = state.slow.filter(|slow| slow.0 == op);
        drop(state);
        if let Some((_, by)) = slow {
            thread::sleep(by);
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.hold, state.is_held) = (None, false);
        self.0.changed.notify_all();
    }
}

/// A disk in memory that is watched.
pub(crate) fn watched(disk: Arc<MemoryStorage>) -> (Arc<dyn Storage>, Arc<Watch>) {
    let (storage, watch) = (Watched::around(disk), Arc::new(Watch::default()));
    let sees = Arc::clone(&watch);
    storage.rule(move |call| {
        sees.pass(call.op, call.name);
        Ok(())
    });
    (storage, watch)
}
