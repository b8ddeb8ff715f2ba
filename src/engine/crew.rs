//! The background threads of this process: as few as do the work of all its queues.
//!
//! Promises: the work of one client is done by one thread at a time, and no client waits for the
//! work of another one, up to [`MOST_THREADS`], and as long as the system gives threads. One that
//! waits for its time is watched by a thread. While nothing is due there is one thread, however
//! many clients there are; without clients there is none. If a thread cannot be started, those that
//! are there do its work later. Does not know what the work is.

use crate::clock;
use crate::io::process::ProcessId;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// More work at a time waits for its turn: so many disks there are hardly, and each thread takes
/// memory, and one of the threads that a process may have.
const MOST_THREADS: usize = 32;
/// How long a thread that is not needed stays.
const REST: Duration = Duration::from_secs(1);

/// One for whom the crew works.
pub(super) trait Client: Debug + Send + Sync {
    /// When it has work, if at all.
    fn next_time(&self) -> Option<Instant>;

    /// Does what is due. Does not panic.
    fn work(&self);
}

/// The number of a client.
pub(super) type ClientId = u64;

/// The threads, and for whom they work.
#[derive(Debug)]
pub(super) struct Crew {
    roster: Mutex<Roster>,
    /// Wakes the thread that watches the time.
    watcher: Condvar,
    /// Wakes one of those that are not needed.
    spare: Condvar,
    /// Some work has ended.
    ended: Condvar,
    process: ProcessId,
    /// How long a thread that is not needed stays.
    rest: Duration,
}

#[derive(Debug, Default)]
struct Roster {
    clients: BTreeMap<ClientId, Enrolled>,
    /// When each is due that waits for its time.
    times: BTreeSet<(Instant, ClientId)>,
    next_id: ClientId,
    threads: usize,
    /// A thread waits for the first of `times`.
    is_watched: bool,
    /// Threads that are on their way to look at the time: they were started, or woken.
    coming: usize,
    /// Threads that are not needed.
    spare: usize,
}

#[derive(Debug)]
struct Enrolled {
    client: Arc<dyn Client>,
    /// Its entry in `times`.
    planned: Option<Instant>,
    is_working: bool,
}

impl Roster {
    /// Notes the next time of a client, unless its work is being done: that notes it anew. Tells
    /// whether it is the first of all.
    fn plan(&mut self, id: ClientId) -> bool {
        let Some(enrolled) = self.clients.get_mut(&id).filter(|enrolled| !enrolled.is_working)
        else {
            return false;
        };
        let next = enrolled.client.next_time();
        if let Some(before) = std::mem::replace(&mut enrolled.planned, next) {
            self.times.remove(&(before, id));
        }
        next.is_some_and(|next| {
            self.times.insert((next, id));
            self.times.first() == Some(&(next, id))
        })
    }
}

impl Crew {
    /// That of this process.
    pub(super) fn of_process() -> Arc<Self> {
        static CREW: Mutex<Option<Arc<Crew>>> = Mutex::new(None);
        let process = ProcessId::current();
        let mut crew = CREW.lock();
        // A child that was forked has none of its parent's threads.
        let known = crew.take().filter(|crew| crew.process == process);
        Arc::clone(crew.insert(known.unwrap_or_else(|| Arc::new(Self::new(process)))))
    }

    fn new(process: ProcessId) -> Self {
        Self {
            roster: Mutex::default(),
            watcher: Condvar::new(),
            spare: Condvar::new(),
            ended: Condvar::new(),
            process,
            rest: REST,
        }
    }

    /// Works for a client from here on.
    ///
    /// # Errors
    ///
    /// If there is no thread, and none can be started.
    pub(super) fn enroll(self: &Arc<Self>, client: Arc<dyn Client>) -> io::Result<ClientId> {
        let mut roster = self.roster.lock();
        if roster.threads == 0 {
            self.start_thread(&mut roster)?;
        }
        let id = roster.next_id;
        roster.next_id += 1;
        let enrolled = Enrolled { client, planned: None, is_working: false };
        roster.clients.insert(id, enrolled);
        if roster.plan(id) {
            self.call_watcher(&mut roster);
        }
        Ok(id)
    }

    /// Works for a client no more: when this returns, its work has ended. Not to be called by that
    /// work.
    pub(super) fn dismiss(&self, id: ClientId) {
        let mut roster = self.roster.lock();
        while roster.clients.get(&id).is_some_and(|enrolled| enrolled.is_working) {
            self.ended.wait(&mut roster);
        }
        let dismissed = roster.clients.remove(&id);
        if let Some(at) = dismissed.as_ref().and_then(|enrolled| enrolled.planned) {
            roster.times.remove(&(at, id));
        }
        if roster.clients.is_empty() {
            self.watcher.notify_all();
            self.spare.notify_all();
        }
        // The client is dropped without the lock.
        drop(roster);
        drop(dismissed);
    }

    /// A client has work sooner than it had.
    pub(super) fn hurry(self: &Arc<Self>, id: ClientId) {
        let mut roster = self.roster.lock();
        if roster.plan(id) {
            self.call_watcher(&mut roster);
        }
    }

    /// Somebody has to look at the time.
    fn call_watcher(self: &Arc<Self>, roster: &mut Roster) {
        if roster.is_watched {
            self.watcher.notify_one();
        } else if roster.coming == 0 {
            if roster.spare > 0 && self.spare.notify_one() {
                roster.coming += 1;
            } else if roster.threads < MOST_THREADS {
                // If that fails, whoever ends its work next looks.
                self.start_thread(roster).ok();
            }
        }
    }

    fn start_thread(self: &Arc<Self>, roster: &mut Roster) -> io::Result<()> {
        let crew = Arc::clone(self);
        thread::Builder::new().name("keepq".into()).spawn(move || crew.run())?;
        (roster.threads, roster.coming) = (roster.threads + 1, roster.coming + 1);
        Ok(())
    }

    /// What a thread does.
    fn run(self: Arc<Self>) {
        let mut roster = self.roster.lock();
        roster.coming = roster.coming.saturating_sub(1);
        loop {
            let now = clock::now();
            match roster.times.first().copied() {
                Some((at, id)) if at <= now => self.work(&mut roster, id),
                _ if roster.clients.is_empty() => break,
                first if !roster.is_watched => {
                    roster.is_watched = true;
                    match first {
                        Some((at, _)) => {
                            self.watcher.wait_until(&mut roster, at);
                        }
                        None => self.watcher.wait(&mut roster),
                    }
                    roster.is_watched = false;
                }
                _ => {
                    roster.spare += 1;
                    let is_over = self.spare.wait_for(&mut roster, self.rest).timed_out();
                    roster.spare -= 1;
                    if !is_over {
                        // It was called, or all are to end.
                        roster.coming = roster.coming.saturating_sub(1);
                    } else if roster.is_watched {
                        break;
                    }
                }
            }
        }
        roster.threads -= 1;
    }

    /// Does what is due for a client, without the lock.
    fn work(self: &Arc<Self>, roster: &mut MutexGuard<'_, Roster>, id: ClientId) {
        roster.times.pop_first();
        let Some(enrolled) = roster.clients.get_mut(&id) else { return };
        (enrolled.planned, enrolled.is_working) = (None, true);
        let client = Arc::clone(&enrolled.client);
        // Who watches the others meanwhile?
        if !roster.is_watched && !roster.times.is_empty() {
            self.call_watcher(roster);
        }
        MutexGuard::unlocked(roster, move || {
            client.work();
            drop(client);
        });
        if let Some(enrolled) = roster.clients.get_mut(&id) {
            enrolled.is_working = false;
        }
        self.ended.notify_all();
        // This thread looks at the time next; but another one may be waiting for a later time.
        if roster.plan(id) && roster.is_watched {
            self.watcher.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;

    /// One that has work once it is asked, and whose work takes until it is told to end.
    #[derive(Debug, Default)]
    struct Asked {
        has_work: AtomicBool,
        worked: AtomicUsize,
        /// Its work waits here, if it is locked.
        gate: Mutex<()>,
    }

    impl Client for Asked {
        fn next_time(&self) -> Option<Instant> {
            self.has_work.load(Ordering::SeqCst).then(clock::now)
        }

        fn work(&self) {
            self.has_work.store(false, Ordering::SeqCst);
            drop(self.gate.lock());
            self.worked.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Asked {
        fn ask(&self, crew: &Arc<Crew>, id: ClientId) {
            self.has_work.store(true, Ordering::SeqCst);
            crew.hurry(id);
        }
    }

    fn until(is_so: impl Fn() -> bool) {
        let end = clock::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(clock::now() < end, "it never became so");
            thread::yield_now();
        }
    }

    fn crew(rest: Duration) -> Arc<Crew> {
        Arc::new(Crew { rest, ..Crew::new(ProcessId::current()) })
    }

    fn threads(crew: &Crew) -> usize {
        crew.roster.lock().threads
    }

    #[test]
    fn a_thousand_clients_at_rest_have_one_thread_and_none_has_none() {
        let crew = crew(Duration::from_millis(1));
        let clients: Vec<_> = (0..1000).map(|_| Arc::new(Asked::default())).collect();
        let enroll = |client: &Arc<Asked>| crew.enroll(Arc::<Asked>::clone(client)).unwrap();
        let ids: Vec<_> = clients.iter().map(enroll).collect();
        for round in 1..=3 {
            clients.iter().zip(&ids).for_each(|(client, id)| client.ask(&crew, *id));
            let is_done = |client: &Arc<Asked>| client.worked.load(Ordering::SeqCst) == round;
            until(|| clients.iter().all(is_done));
            assert!(threads(&crew) <= MOST_THREADS);
        }
        until(|| threads(&crew) == 1);
        for id in ids {
            crew.dismiss(id);
        }
        until(|| threads(&crew) == 0);
        let roster = crew.roster.lock();
        assert!(roster.clients.is_empty() && roster.times.is_empty() && !roster.is_watched);
    }

    #[test]
    fn nobody_waits_for_the_work_of_another_one() {
        let crew = crew(Duration::from_secs(5));
        let (slow, quick) = (Arc::new(Asked::default()), Arc::new(Asked::default()));
        let slow_id = crew.enroll(Arc::<Asked>::clone(&slow)).unwrap();
        let quick_id = crew.enroll(Arc::<Asked>::clone(&quick)).unwrap();
        let gate = slow.gate.lock();
        slow.ask(&crew, slow_id);
        until(|| !slow.has_work.load(Ordering::SeqCst));
        for round in 1..=100 {
            quick.ask(&crew, quick_id);
            until(|| quick.worked.load(Ordering::SeqCst) == round);
        }
        assert_eq!(threads(&crew), 2, "no more threads than there is work");
        // What it is asked for meanwhile is done by the same work, or by one behind it.
        slow.ask(&crew, slow_id);
        drop(gate);
        until(|| slow.worked.load(Ordering::SeqCst) == 2);
        crew.dismiss(slow_id);
        crew.dismiss(quick_id);
    }

    #[test]
    fn dismissing_waits_for_the_work_and_ends_it() {
        let crew = crew(Duration::from_secs(5));
        let client = Arc::new(Asked::default());
        let id = crew.enroll(Arc::<Asked>::clone(&client)).unwrap();
        let gate = client.gate.lock();
        client.ask(&crew, id);
        until(|| !client.has_work.load(Ordering::SeqCst));
        let (dismissed, is_dismissed) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                crew.dismiss(id);
                dismissed.send(client.worked.load(Ordering::SeqCst)).unwrap();
            });
            let early = is_dismissed.recv_timeout(Duration::from_millis(50));
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
            drop(gate);
            assert_eq!(is_dismissed.recv_timeout(Duration::from_secs(60)), Ok(1));
        });
        client.ask(&crew, id);
        until(|| threads(&crew) == 0);
        assert_eq!((client.worked.load(Ordering::SeqCst), Arc::strong_count(&client)), (1, 1));
    }

    /// One that has work at some times, a while after each other.
    #[derive(Debug)]
    struct Timed {
        next: Mutex<Option<Instant>>,
        left: AtomicUsize,
    }

    impl Timed {
        fn new(within: Duration, times: usize) -> Arc<Self> {
            let next = Mutex::new(Some(clock::now() + within));
            Arc::new(Self { next, left: AtomicUsize::new(times) })
        }
    }

    impl Client for Timed {
        fn next_time(&self) -> Option<Instant> {
            *self.next.lock()
        }

        fn work(&self) {
            let is_last = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
            let again = clock::now() + Duration::from_millis(2);
            *self.next.lock() = (!is_last).then_some(again);
        }
    }

    /// The thread that watched the time waited for that of another client, and was not told.
    #[test]
    fn a_time_that_follows_work_is_watched() {
        let crew = crew(Duration::from_secs(120));
        let later = Timed::new(Duration::from_secs(3600), 1);
        let later_id = crew.enroll(Arc::<Timed>::clone(&later)).unwrap();
        let often = Timed::new(Duration::ZERO, 50);
        let often_id = crew.enroll(Arc::<Timed>::clone(&often)).unwrap();
        until(|| often.next.lock().is_none());
        for id in [later_id, often_id] {
            crew.dismiss(id);
        }
    }

    #[test]
    fn what_has_a_time_is_done_then_also_while_others_work() {
        let crew = crew(Duration::from_secs(5));
        let busy = Arc::new(Asked::default());
        let busy_id = crew.enroll(Arc::<Asked>::clone(&busy)).unwrap();
        let due = clock::now() + Duration::from_millis(50);
        let timed = Timed::new(Duration::from_millis(50), 1);
        let timed_id = crew.enroll(Arc::<Timed>::clone(&timed)).unwrap();
        let gate = busy.gate.lock();
        busy.ask(&crew, busy_id);
        until(|| timed.next.lock().is_none());
        assert!(clock::now() >= due);
        drop(gate);
        for id in [busy_id, timed_id] {
            crew.dismiss(id);
        }
    }
}
