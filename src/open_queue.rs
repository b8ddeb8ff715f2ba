//! An open queue: its engine and its dead letters, as all handles and deliveries share them.
//!
//! Work that concerns both is put together here. The background thread is started here, too, and
//! works for both.

use crate::dead_letters::DeadLetters;
use crate::engine::{
    Answer, Answerable, Context, DEAD_LETTERS_ROOM, Due, Engine, LeaseKey, Placed, Promise,
    Setting, Share, Space, Task, WhenFull, Worker,
};
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::process::ProcessId;
use crate::log::draft::Draft;
use crate::options::Options;
use crate::report::Compacted;
use crate::stats::Stats;
use std::sync::Arc;

/// An open queue.
#[derive(Debug)]
pub(crate) struct OpenQueue {
    engine: Arc<Engine>,
    /// `None` if it has none: by its options, or because it is one of dead letters itself.
    dead_letters: Option<DeadLetters>,
    /// These are the dead letters of another queue, which the background thread belongs to.
    is_of_dead_letters: bool,
    /// The process that has opened it.
    process: ProcessId,
}

impl OpenQueue {
    /// Opens the queue that `storage` holds.
    pub(crate) fn open(options: Options, storage: Arc<dyn Storage>) -> Result<Arc<Self>> {
        let has_dead_letters = options.dead_letters;
        let is_bounded = options.max_bytes.is_some();
        let reserve = if has_dead_letters && is_bounded { DEAD_LETTERS_ROOM } else { 0 };
        let space = Arc::new(Space::new(options.max_bytes));
        let space = Share::of_queue(space, reserve, options.scratch());
        let worker = Arc::new(Worker::default());
        let dead_space = Share::of_dead_letters(&space);
        let setting = Setting { worker: Arc::clone(&worker), space, is_for_dead_letters: false };
        let engine = Engine::open(options, storage, setting)?;
        let dead_letters = has_dead_letters.then(|| {
            let worker = Arc::clone(&worker);
            let setting = Setting { worker, space: dead_space, is_for_dead_letters: true };
            DeadLetters::new(&engine, setting)
        });
        let process = ProcessId::current();
        let open = Self { engine, dead_letters, is_of_dead_letters: false, process };
        let open = Arc::new(open);
        // What the dead letters take counts from the start.
        if let Some(letters) = &open.dead_letters
            && is_bounded
        {
            letters.open_if_any()?;
        }
        // Or else the time of a short run would not count if it is killed.
        open.engine.reclaim().note_clock_without_background();
        if open.engine.options().background {
            open.start(&worker)?;
        }
        Ok(open)
    }

    /// The queue of dead letters of another one.
    pub(crate) fn of_dead_letters(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self {
            engine,
            dead_letters: None,
            is_of_dead_letters: true,
            process: ProcessId::current(),
        })
    }

    fn start(self: &Arc<Self>, worker: &Arc<Worker>) -> Result<()> {
        let (open, others) = (Arc::clone(self), Arc::clone(self));
        let within = self.engine.options().ack_interval();
        let run = move |due: &Due| open.run_due(due);
        let started = worker.start(within, run, move || others.wake_all());
        let directory = self.engine.context().directory();
        started.map_err(|error| Error::io("start thread", &directory, 0, error))
    }

    /// What the background does.
    fn run_due(&self, due: &Due) {
        let dead = || self.dead_letters.as_ref().and_then(DeadLetters::open_engine);
        if !due.is_only(Task::Steps) {
            self.note(self.engine.run_due(due));
            if let Some(letters) = &self.dead_letters
                && (due.has(Task::Upkeep) || due.has(Task::Times))
            {
                self.note(letters.move_in_time());
            }
            if let Some(dead) = dead() {
                dead.context().health.note_background(dead.run_due(due));
            }
        }
        // After all that a deadline waits for.
        if due.has(Task::Steps) {
            self.engine.go_on();
            if let Some(dead) = dead() {
                dead.go_on();
            }
        }
    }

    /// The background has panicked: who relied on it watches the next time from here on.
    fn wake_all(&self) {
        self.engine.wake_all();
        if let Some(dead) = self.dead_letters.as_ref().and_then(DeadLetters::open_engine) {
            dead.wake_all();
        }
    }

    fn note(&self, result: Result<()>) {
        self.engine.context().health.note_background(result);
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// # Errors
    ///
    /// [`Error::Disabled`] if there are none.
    fn letters(&self) -> Result<&DeadLetters> {
        let reason = if self.is_of_dead_letters {
            "these are dead letters, and have none of their own; call it on the queue that they \
             come from"
        } else {
            "switched off by Options::dead_letters(false); change that option"
        };
        self.dead_letters.as_ref().ok_or(Error::Disabled { operation: "dead letters", reason })
    }

    /// The queue of dead letters.
    pub(crate) fn dead_letters(&self) -> Result<Arc<Self>> {
        Ok(Self::of_dead_letters(self.letters()?.shown()?))
    }

    /// Pushes up to `limit` dead letters again, as new messages; tells how many.
    pub(crate) fn redrive(&self, limit: u64) -> Result<u64> {
        self.letters()?.redrive(limit)
    }

    /// As [`Producers::push`](crate::engine::Producers::push).
    #[inline]
    pub(crate) fn push(
        &self,
        drafts: &[Draft<'_>],
        promise: Promise,
        when_full: WhenFull,
    ) -> Result<Placed> {
        let letters = self.dead_letters.as_ref();
        let more_room = |full: &Error| letters.map_or(Ok(false), |letters| letters.make_room(full));
        loop {
            match self.engine.producers().push(drafts, promise, when_full, &more_room) {
                Ok(placed) => return Ok(placed),
                // A file has vanished, say, and nothing was placed.
                Err(error @ Error::Io { .. }) if !error.lacks_room_for_map() => {
                    let tries = &mut self.engine.context().unmapping.tries();
                    self.engine.consumers().clear_the_way(error, tries)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Settles deliveries.
    #[inline]
    pub(crate) fn ack(&self, deliveries: &[impl Answerable]) -> Result<()> {
        self.engine.consumers().ack(deliveries, || self.engine.sync_surplus())
    }

    /// Settles a delivery.
    #[inline]
    pub(crate) fn ack_one(&self, delivery: &LeaseKey) -> Result<()> {
        self.engine.consumers().ack_one(delivery, || self.engine.sync_surplus())
    }

    /// Ends a delivery as its holder says.
    pub(crate) fn answer(&self, delivery: LeaseKey, answer: &Answer) -> Result<()> {
        // In a forked child a delivery is dropped, too, but it is the parent's.
        if matches!(answer, Answer::Drop) && self.process != ProcessId::current() {
            return Ok(());
        }
        // A delivery that is dropped waits for no disk.
        let close_files = || match answer {
            Answer::Drop => self.engine.release_surplus(),
            _ => self.engine.sync_surplus(),
        };
        let answered = self.engine.consumers().answer(&[delivery], answer, close_files);
        if let Answer::Reject(_) = answer
            && answered.is_ok()
            && let Some(letters) = &self.dead_letters
        {
            // Now, so that its reason outlives a kill. What cannot be moved is moved later.
            let durably = self.engine.options().sync_acks;
            self.note(letters.move_if_worth_it(durably));
        }
        answered
    }

    /// Does the work of the background, if there is none. To be called after messages were taken.
    #[inline]
    pub(crate) fn work_without_background(&self) {
        self.engine.sync_surplus();
        let context = self.engine.context();
        if !context.clock.is_noted() || context.died.is_noted() {
            self.do_work_without_background(context);
        }
    }

    #[cold]
    fn do_work_without_background(&self, context: &Context) {
        self.engine.reclaim().note_clock_without_background();
        if let Some(letters) = &self.dead_letters
            && !context.worker.is_running()
            && context.died.take()
        {
            // What cannot be moved is moved later: not the concern of a consumer.
            let moved = letters.move_if_worth_it(true);
            if moved.is_err() || self.engine.dying().are_pending(true) {
                context.died.note();
            }
            self.note(moved);
        }
    }

    /// Does at once all that the background does, whether it is due or not.
    pub(crate) fn maintain(&self) -> Result<()> {
        self.engine.check_open()?;
        // What earlier runs left dying is known then.
        let timed = self.engine.look_at_times();
        let counted = timed.and(self.engine.consumers().count_all());
        let swept = self.engine.consumers().sweep_all();
        let move_all = || self.dead_letters.as_ref().map_or(Ok(()), DeadLetters::move_all);
        let mut moved = move_all();
        let own = self.engine.maintain();
        let compacted = self.engine.reclaim().compactor().compact_if_wanted();
        let mut gone = self.engine.reclaim().retirer().let_go_of_all();
        // What found no room before may have some now, and make some for others.
        let mut before = u64::MAX;
        while moved.is_err() && self.engine.dying().count() < before {
            before = self.engine.dying().count();
            moved = move_all();
            gone = gone.and(self.engine.reclaim().retirer().let_go_of_all());
        }
        // What a run that was killed has answered there is synced then, too.
        let open = self.dead_letters.as_ref().map_or(Ok(()), DeadLetters::open_if_any);
        let dead = self.with_open_dead_letters((), |dead| {
            let own = dead.maintain();
            let compacted = dead.reclaim().compactor().compact_if_wanted();
            own.and(compacted).and(dead.reclaim().retirer().let_go_of_all())
        });
        counted.and(swept).and(moved).and(own).and(compacted).and(gone).and(open).and(dead)
    }

    /// Makes all copies that are worth it, here and in the dead letters, and gives back files that
    /// are no longer needed.
    pub(crate) fn compact(&self) -> Result<Compacted> {
        let own = self.engine.compact();
        let dead = self.with_open_dead_letters(Compacted::default(), Engine::compact);
        Ok(own? + dead?)
    }

    /// Numbers of one moment.
    pub(crate) fn stats(&self) -> Stats {
        let dead = self.dead_letters.as_ref().and_then(DeadLetters::engine_if_any);
        let dead_letters = dead.map_or(0, |dead| dead.consumers().unsettled());
        self.engine.stats(dead_letters)
    }

    /// Ends the queue for every handle. In a forked child it does nothing: the files, the lock and
    /// the background thread are those of the parent.
    pub(crate) fn close(&self) -> Result<()> {
        if self.process != ProcessId::current() {
            return Err(Error::Closed);
        }
        if let Some(letters) = self.dead_letters.as_ref()
            && self.engine.check_open().is_ok()
        {
            // What cannot be moved now is moved by the next run: its slots say so.
            self.note(letters.move_all());
        }
        self.engine.close(|| {
            if !self.is_of_dead_letters {
                self.engine.context().worker.stop();
            }
            self.dead_letters.as_ref().map_or(Ok(()), DeadLetters::close)
        })
    }

    /// The dead letters, if they are open; another handle may close them meanwhile.
    fn with_open_dead_letters<T>(
        &self,
        otherwise: T,
        with: impl FnOnce(&Engine) -> Result<T>,
    ) -> Result<T> {
        let Some(dead) = self.dead_letters.as_ref().and_then(DeadLetters::open_engine) else {
            return Ok(otherwise);
        };
        match with(&dead) {
            Err(Error::Closed) => Ok(otherwise),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    #[cfg(feature = "fault-injection")]
    use crate::clock::ManualClock;
    use crate::io::memory::MemoryStorage;
    use std::thread;
    use std::time::Duration;
    #[cfg(feature = "fault-injection")]
    use std::time::UNIX_EPOCH;

    /// Nothing was due in an idle queue: a clock that was set was not noted, and if it was killed,
    /// what had a time to live behind others expired in the next run.
    #[test]
    fn the_background_of_an_idle_queue_looks_at_the_clock() {
        let storage = Arc::new(MemoryStorage::new());
        let open = OpenQueue::open(Options::default(), storage).unwrap();
        let worker = &open.engine.context().worker;
        let end = clock::now() + Duration::from_secs(20);
        let next = loop {
            assert!(clock::now() < end, "nothing is watched");
            if let Some(next) = worker.watched() {
                break next;
            }
            thread::yield_now();
        };
        assert!(next <= clock::now() + Duration::from_secs(30));
        open.close().unwrap();
    }

    /// The dead letters were closed while a look for expired ones was planned there. Once its time
    /// had come, the background found it past in each round, did nothing for a queue that is
    /// closed, and was told of the same time again: it ran without a pause.
    #[cfg(feature = "fault-injection")]
    #[test]
    fn the_background_rests_once_the_dead_letters_are_closed() {
        const WATCHED: Duration = Duration::from_millis(1500);
        let storage = Arc::new(MemoryStorage::new());
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        let options = || Options::default().storage(storage.clone()).clock(clock.clone());
        let queue = options().background(false).open("queue").unwrap();
        for text in ["a", "b"] {
            queue.push(text).unwrap();
            queue.pop().unwrap().unwrap().reject("bad").unwrap();
        }
        queue.close().unwrap();
        let queue = options().ack_sync(Some(Duration::from_millis(1))).open("queue").unwrap();
        let dead = queue.dead_letters().unwrap();
        // Its message is not at the front any more, so there is a look a second later.
        dead.pop().unwrap().unwrap().ack().unwrap();
        dead.close().unwrap();
        clock.advance(Duration::from_secs(2));
        // The background has a round of work.
        queue.push("c").unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        let worker = &queue.engine().context().worker;
        let (before, start) = (worker.rounds(), clock::now());
        thread::sleep(WATCHED);
        let rounds = worker.rounds() - before;
        // On a slow machine it may take longer than that.
        let most = 20 * start.elapsed().as_millis() / WATCHED.as_millis();
        assert!(u128::from(rounds) < most, "{rounds} rounds, in which there was nothing to do");
    }
}
