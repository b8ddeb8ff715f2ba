//! Threads that do everything at once, closes, kills and power cuts; and a check of all that they
//! were told, as a whole.
//!
//! Each call is written down with a logical time before it and one after it. A run ends, is killed
//! or loses power at any moment; then the queue is opened again, emptied, and the whole history is
//! held against what the README promises. See `history/rules.rs` for the rules.
//!
//! `KEEPQ_HISTORY_CASES` sets how many histories are tried, `KEEPQ_HISTORY_SEED` the first seed. A
//! seed chooses the options and what each thread does, but not how the threads interleave, so it
//! may take several tries to see a fault again.

mod actors;
mod facts;
mod order;
mod record;
mod rules;
mod settings;

use crate::support::{DEADLINE, Dice, cases};
use actors::World;
use facts::{End, Facts, Fault};
use keepq::fault::{CrashImage, MemoryStorage};
use keepq::{Queue, Stats};
use record::{Call, Event, Log, Pen, Reply, Said};
use settings::{Place, Settings};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Work = fn(&World, &Pen, Dice);

/// One history, over several runs.
struct Case {
    dice: Dice,
    settings: Arc<Settings>,
    log: Arc<Log>,
    past: Vec<Event>,
    ends: Vec<End>,
}

/// The threads of a run.
struct Threads {
    handles: Vec<JoinHandle<()>>,
    finished: Receiver<bool>,
    /// How many end by themselves, and not only when the queue is closed.
    workers: usize,
}

#[test]
fn every_history_keeps_the_promise() {
    let first = cases("KEEPQ_HISTORY_SEED", 1);
    for seed in first..first + cases("KEEPQ_HISTORY_CASES", 40) {
        let mut dice = Dice(seed);
        let settings = Arc::new(Settings::new(&mut dice));
        let log = Arc::new(Log::new());
        let mut case = Case { dice, settings, log, past: Vec::new(), ends: Vec::new() };
        if let Err((fault, seq)) = case.run() {
            let text = case.report(seed, &fault, seq);
            eprintln!("{text}");
            panic!("seed {seed}: {fault} (message {seq:?}); the history is above");
        }
    }
}

impl Case {
    fn run(&mut self) -> Result<(), Fault> {
        let directory = tempfile::tempdir().unwrap();
        let mut place = if self.settings.is_on_disk {
            Place::Disk(directory.path().join("queue"))
        } else {
            Place::Memory(Arc::new(MemoryStorage::new()))
        };
        for _ in 0..=self.dice.below(3) {
            place = self.one_run(&place)?;
        }
        let mut drained = self.drain(&place);
        let past = std::mem::take(&mut self.past);
        drained.splice(..0, past);
        let mut ends = self.ends.clone();
        ends.push(End::Closed);
        self.check(drained, ends)
    }

    /// Works, ends in one of the ways, and checks what would be left after each of them; gives what
    /// is left after one.
    fn one_run(&mut self, place: &Place) -> Result<Place, Fault> {
        let run = self.ends.len();
        let pen = self.log.pen(run, "main");
        let Some(queue) = open(&pen, place, &self.settings) else {
            return Err(self.give_up("the queue does not open"));
        };
        let threads = self.spawn(&queue, run);
        let is_abrupt = self.dice.one_in(2);
        let worked = if is_abrupt {
            self.let_work(&threads);
            Ok(())
        } else {
            self.await_quiet(&queue, &pen, &threads)
        };
        if let Err(hang) = worked {
            return Err(self.give_up(hang));
        }
        let before = self.log.tick();
        let frozen = match place {
            Place::Memory(memory) => Some(memory.killed()),
            Place::Disk(_) => None,
        };
        let after = self.log.tick();
        if is_abrupt {
            std::thread::sleep(actors::ms(self.dice.below(3)));
        }
        let (done, has_closed) = channel();
        let close = std::thread::spawn(move || {
            pen.note(Call::Close, || Said::of(queue.close(), |()| Said::Done));
            done.send(true).ok();
        });
        if has_closed.recv_timeout(DEADLINE).is_err() {
            return Err(self.give_up("close hangs"));
        }
        close.join().unwrap();
        if let Err(what) = threads.all_end() {
            return Err(self.give_up(what));
        }
        let events = self.log.take();
        self.branch(place, frozen.as_ref(), &events, (before, after))
    }

    fn branch(
        &mut self,
        place: &Place,
        frozen: Option<&MemoryStorage>,
        events: &[Event],
        at: (u64, u64),
    ) -> Result<Place, Fault> {
        let (Some(frozen), Place::Memory(memory)) = (frozen, place) else {
            self.past.extend_from_slice(events);
            self.ends.push(End::Closed);
            return Ok(place.clone());
        };
        let mixed = CrashImage::Mixed(self.dice.next());
        let images = [
            (End::Killed, frozen.killed()),
            (End::PowerCut, frozen.power_cut(CrashImage::Oldest)),
            (End::PowerCut, frozen.power_cut(mixed)),
            (End::Closed, memory.killed()),
        ];
        let chosen = self.dice.below(4) as usize;
        let mut next = None;
        for (number, (end, image)) in images.into_iter().enumerate() {
            let happened =
                if end == End::Closed { events.to_vec() } else { record::cut(events, at) };
            let mut history = self.past.clone();
            history.extend_from_slice(&happened);
            let mut ends = self.ends.clone();
            ends.push(end);
            if number == chosen {
                next = Some((history.clone(), ends.clone(), image.killed()));
            }
            let (past, before) = (
                std::mem::replace(&mut self.past, history.clone()),
                std::mem::replace(&mut self.ends, ends.clone()),
            );
            history.extend(self.drain(&Place::Memory(Arc::new(image))));
            ends.push(End::Closed);
            self.check(history, ends)?;
            (self.past, self.ends) = (past, before);
        }
        let (past, ends, image) = next.unwrap();
        (self.past, self.ends) = (past, ends);
        Ok(Place::Memory(Arc::new(image)))
    }

    fn spawn(&mut self, queue: &Queue, run: usize) -> Threads {
        let calls = if self.settings.is_on_disk { 25 } else { 30 + self.dice.below(60) };
        let (others, for_others) = channel();
        let for_others = Arc::new(Mutex::new(for_others));
        let world = World {
            others,
            for_others,
            queue: queue.clone(),
            settings: Arc::clone(&self.settings),
            seqs: Arc::default(),
            walks: Arc::default(),
            calls,
        };
        let mut all: Vec<(&'static str, Work, bool)> = vec![
            ("producer 1", actors::produce, true),
            ("producer 2", actors::produce, true),
            ("watcher", actors::watch, true),
            ("keeper", actors::keep_house, true),
            ("letters", actors::take_letters, true),
            ("consumer 1", actors::consume, false),
            ("consumer 2", actors::consume, false),
            ("answerer", actors::answer_for_others, false),
        ];
        if self.dice.one_in(3) {
            all.push(("consumer 3", actors::consume, false));
        }
        let (sender, finished) = channel();
        let workers = all.iter().filter(|(_, _, ends)| *ends).count();
        let mut handles = Vec::new();
        for (name, work, is_worker) in all {
            let (world, pen) = (world.clone(), self.log.pen(run, name));
            let (dice, sender) = (Dice(self.dice.next()), Finish(sender.clone(), is_worker));
            handles.push(std::thread::spawn(move || {
                let _finish = sender;
                work(&world, &pen, dice);
            }));
        }
        Threads { handles, finished, workers }
    }

    /// Waits until any moment of the work.
    fn let_work(&mut self, threads: &Threads) {
        let until = self.log.tick() + 20 + self.dice.below(900);
        while self.log.tick() < until && !threads.handles.iter().any(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until everything that was asked for is done, and all messages are settled. That takes
    /// no help: each call that waits is woken.
    fn await_quiet(&self, queue: &Queue, pen: &Pen, threads: &Threads) -> Result<(), &'static str> {
        // Without a background only `pop` and `maintain` move dying messages.
        let help = |stats: &Stats| {
            if !self.settings.background && stats.dying() > 0 {
                pen.note(Call::Maintain, || actors::maintain(queue));
            }
        };
        let mut last = Instant::now();
        let mut working = threads.workers;
        while working > 0 {
            match threads.finished.recv_timeout(actors::ms(20)) {
                Ok(_) => (working, last) = (working - 1, Instant::now()),
                Err(_) if last.elapsed() > DEADLINE => {
                    return Err("a thread does not come to its end");
                }
                Err(_) => help(&queue.stats()),
            }
        }
        let start = Instant::now();
        loop {
            let stats = queue.stats();
            let left = unsettled(&stats);
            if left == 0 {
                pen.note(Call::Stats("quiet"), || Said::Stats(Box::new(stats)));
                return Ok(());
            }
            help(&stats);
            if start.elapsed() > DEADLINE {
                pen.note(Call::Stats("stalled"), || Said::Stats(Box::new(stats)));
                return Err("messages are left, and nothing happens");
            }
            std::thread::sleep(actors::ms(1));
        }
    }

    /// Opens what is left, asks about all messages, and takes them all.
    fn drain(&self, place: &Place) -> Vec<Event> {
        let pen = self.log.pen(self.ends.len(), "drain");
        let settings = self.settings.to_drain();
        let Some(queue) = open(&pen, place, &settings) else { return self.log.take() };
        let known: BTreeSet<u64> = self.past.iter().flat_map(seqs_of).collect();
        let ask = || {
            for &seq in &known {
                let asked = || Said::of(queue.is_acked(seq.into()), Said::Settled);
                pen.note(Call::Ask("is_acked", seq), asked);
            }
        };
        ask();
        actors::walk(&queue, &pen, 0);
        let start = Instant::now();
        while unsettled(&queue.stats()) > 0 && start.elapsed() < DEADLINE {
            let taken = pen.call(Call::Pop("pop", 1), || match queue.pop() {
                Ok(one) => actors::handed(&pen.log, one.into_iter().collect()),
                Err(error) => (Said::error(&error), Vec::new()),
            });
            if taken.is_empty() {
                pen.note(Call::Maintain, || actors::maintain(&queue));
                std::thread::sleep(actors::ms(1));
            }
            for (token, delivery) in taken {
                let ack = || Said::of(delivery.ack(), |()| Said::Done);
                pen.note(Call::Answer(Reply::Ack, vec![token]), ack);
            }
        }
        if settings.dead_letters {
            let dead = pen.call(Call::OpenLetters, || match queue.dead_letters() {
                Ok(dead) => (Said::Done, Some(dead)),
                Err(error) => (Said::error(&error), None),
            });
            while let Some(letter) = dead.as_ref().and_then(|dead| actors::pop_letter(&pen, dead)) {
                actors::answer_letter(&pen, Reply::Ack, letter);
            }
        }
        ask();
        for _ in 0..3 {
            pen.note(Call::Maintain, || actors::maintain(&queue));
        }
        pen.note(Call::Stats("end"), || Said::Stats(Box::new(queue.stats())));
        pen.note(Call::Stuck, || tidy(&queue, place));
        pen.note(Call::Close, || Said::of(queue.close(), |()| Said::Done));
        self.log.take()
    }

    fn check(&mut self, mut events: Vec<Event>, ends: Vec<End>) -> Result<(), Fault> {
        events.sort_by_key(|event| event.start);
        let facts = Facts::new(events.clone(), ends.clone(), Arc::clone(&self.settings));
        let checked =
            facts.and_then(|facts| rules::check(&facts).and_then(|()| order::check(&facts)));
        if checked.is_err() {
            (self.past, self.ends) = (events, ends);
        }
        checked
    }

    fn give_up(&mut self, what: &str) -> Fault {
        let events = self.log.take();
        self.past.extend(events);
        (what.to_string(), None)
    }

    /// The history in words: first what concerns the message.
    fn report(&self, seed: u64, fault: &str, seq: Option<u64>) -> String {
        let mut text =
            format!("seed {seed}: {fault}\n{:#?}\nends {:?}\n", self.settings, self.ends);
        let tokens: BTreeSet<u64> =
            self.past.iter().flat_map(|event| tokens_of(event, seq)).collect();
        writeln!(text, "--- message {seq:?}").unwrap();
        let answers = |event: &Event| match &event.call {
            Call::Answer(_, all) => all.iter().any(|token| tokens.contains(token)),
            _ => false,
        };
        let concerns =
            |event: &&Event| seqs_of(event).any(|known| Some(known) == seq) || answers(event);
        for event in self.past.iter().filter(concerns) {
            writeln!(text, "{event}").unwrap();
        }
        writeln!(text, "--- all").unwrap();
        for event in &self.past {
            writeln!(text, "{event}").unwrap();
        }
        text
    }
}

/// Says that a thread is at its end, also when it panics.
struct Finish(std::sync::mpsc::Sender<bool>, bool);

impl Drop for Finish {
    fn drop(&mut self) {
        if self.1 || std::thread::panicking() {
            self.0.send(true).ok();
        }
    }
}

impl Threads {
    /// Waits for the end of all.
    fn all_end(self) -> Result<(), &'static str> {
        let start = Instant::now();
        while !self.handles.iter().all(JoinHandle::is_finished) {
            if start.elapsed() > DEADLINE {
                return Err("a call hangs after close");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let ends = self.handles.into_iter().map(JoinHandle::join);
        let panicked = ends.filter(Result::is_err).count();
        if panicked > 0 { Err("a thread panicked") } else { Ok(()) }
    }
}

fn unsettled(stats: &Stats) -> u64 {
    stats.ready() + stats.in_flight() + stats.delayed() + stats.dying()
}

fn open(pen: &Pen, place: &Place, settings: &Settings) -> Option<Queue> {
    pen.call(Call::Stats("open"), || match place.open(settings.options()) {
        Ok(queue) if !queue.recovery().damage().is_empty() => {
            (Said::Wrong(format!("{:?}", queue.recovery())), None)
        }
        Ok(queue) => (Said::Stats(Box::new(queue.stats())), Some(queue)),
        Err(error) => (Said::Wrong(format!("open: {error}: {error:?}")), None),
    })
}

fn segments_of(queue: &Queue) -> u64 {
    queue.stats().segments()
}

/// All is settled: no file is left but the newest segment, the one that is kept ready, and a
/// handful that are no segments.
fn tidy(queue: &Queue, place: &Place) -> Said {
    let Ok(()) = queue.stats().last_background_error().map_or(Ok(()), Err) else {
        return Said::Wrong(format!("{:?}", queue.stats().last_background_error()));
    };
    if !queue.damage().is_empty() {
        return Said::Wrong(format!("{:?}", queue.damage()));
    }
    let dead = queue.dead_letters().ok();
    let segments = [Some(queue), dead.as_ref()].map(|queue| queue.map_or(0, segments_of));
    let names = place.names();
    let count = |is_dead| {
        let is_segment = |name: &&String| matches!(name.rsplit_once('.'), Some((_, "seg" | "tmp")));
        let is_here = |name: &&String| name.starts_with("dead/") == is_dead;
        names.iter().filter(is_segment).filter(is_here).count()
    };
    if segments.iter().any(|&segments| segments > 1) || count(true) > 2 || count(false) > 2 {
        return Said::Wrong(format!("too many files, {segments:?}: {names:?}"));
    }
    match queue.stuck(10) {
        Ok(stuck) if stuck.is_empty() => Said::Number(0),
        told => Said::Wrong(format!("all is settled, and stuck says {told:?}")),
    }
}

/// The numbers that an event names.
fn seqs_of(event: &Event) -> impl Iterator<Item = u64> {
    let told: Vec<u64> = match (&event.call, &event.said) {
        (Call::Ask(_, seq) | Call::WaitDurable(seq), _) | (_, Said::Shown(Some((seq, _)))) => {
            vec![*seq]
        }
        (_, Said::Seqs(seqs)) => seqs.clone(),
        (_, Said::Handed(handed)) => handed.iter().map(|one| one.seq).collect(),
        (_, Said::Letter(Some(letter))) => vec![letter.origin],
        _ => Vec::new(),
    };
    told.into_iter().filter(|&seq| seq > 0)
}

/// The deliveries of the message in an event.
fn tokens_of(event: &Event, seq: Option<u64>) -> Vec<u64> {
    let Said::Handed(handed) = &event.said else { return Vec::new() };
    handed.iter().filter(|one| Some(one.seq) == seq).map(|one| one.token).collect()
}
