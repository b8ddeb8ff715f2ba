//! A clock that is set at random, by decades, while messages with delays and times to live come and
//! go, the queue is compacted, closed, killed and cut off from power; against what the messages
//! were given.
//!
//! No delay is over early, none is longer than it was given by more than the time in which nobody
//! ran or a run did not end in order, and nothing expires early. `KEEPQ_STEPS_CASES` sets the
//! number of histories (default 100) of each kind, `KEEPQ_STEPS_SEED` the first one.

use crate::support::board::{Board, SECOND, bytes, year};
use crate::support::{Dice, cases};
use keepq::fault::CrashImage;
use keepq::{Delivery, Expired, Message, Queue};
use std::time::{Duration, SystemTime};

/// How much time had passed: all of it, and that in which the queue was open.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    total: Duration,
    ran: Duration,
}

#[derive(Debug)]
struct Known {
    pushed: Passed,
    /// What the clock showed then.
    wall: SystemTime,
    /// When it was given this delay.
    given_at: Duration,
    delay: Duration,
    /// How much of the delay has passed in runs that count, and in the present run.
    counted: Duration,
    in_run: Duration,
    ttl: Option<Duration>,
    is_over: bool,
}

#[derive(Clone, Copy, Default)]
struct Kind {
    /// Whether the clock is set back while the queue is closed, too.
    sets_while_closed: bool,
    /// Whether CHECKPOINT is lost now and then.
    loses_checkpoint: bool,
    /// Whether all of it is in one boot.
    stays_up: bool,
}

struct History {
    seed: u64,
    dice: Dice,
    board: Board,
    wall: SystemTime,
    now: Passed,
    all: Vec<Known>,
    story: Vec<String>,
    kind: Kind,
    /// Whether CHECKPOINT knows of the boot.
    is_anchored: bool,
}

impl History {
    fn new(seed: u64, kind: Kind) -> Self {
        let board = Board::at(year(2020));
        Self {
            seed,
            dice: Dice(seed),
            board: if kind.stays_up { board.in_boot(1) } else { board },
            wall: year(2020),
            now: Passed::default(),
            all: Vec::new(),
            story: Vec::new(),
            kind,
            is_anchored: false,
        }
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.dice.below(end))
    }

    fn context(&self) -> String {
        format!("seed {} at {:?}: {:#?}", self.seed, self.now, self.story)
    }

    fn open(&self) -> Queue {
        let options = self.board.options().expired(Expired::Drop).max_attempts(30_000);
        let queue = options.open("q").unwrap();
        assert_eq!(queue.damage(), [], "{}", self.context());
        queue
    }

    fn pass(&mut self, span: Duration, is_open: bool) {
        self.board.clock.advance(span);
        self.wall += span;
        self.now.total += span;
        if is_open {
            self.now.ran += span;
            self.all.iter_mut().for_each(|known| known.in_run += span);
        }
    }

    fn set(&mut self, wall: SystemTime) {
        self.board.clock.set_wall(wall);
        self.wall = wall;
    }

    fn push(&mut self, queue: &Queue) {
        for _ in 0..=self.dice.below(20) {
            let id = self.all.len();
            let mut payload = format!("{id} ").into_bytes();
            payload.resize(payload.len() + self.dice.below(3000) as usize, b'x');
            let mut message = Message::new(payload);
            let delay = if self.dice.one_in(2) { self.millis(3_600_000) } else { Duration::ZERO };
            if delay > Duration::ZERO {
                message = message.delay(delay);
            }
            let ttl = self.dice.one_in(3).then(|| self.millis(7_200_000) + SECOND);
            if let Some(ttl) = ttl {
                message = message.ttl(ttl);
            }
            queue.push(message).unwrap();
            self.all.push(Known {
                pushed: self.now,
                wall: self.wall,
                given_at: self.now.total,
                delay,
                counted: Duration::ZERO,
                in_run: Duration::ZERO,
                ttl,
                is_over: false,
            });
        }
        self.story.push(format!("pushed to {}", self.all.len()));
    }

    /// A message was handed out; tells which.
    fn came(&mut self, job: &Delivery) -> usize {
        let text = String::from_utf8_lossy(job).into_owned();
        let id: usize = text.split(' ').next().unwrap().parse().unwrap();
        let (known, now) = (&self.all[id], self.now);
        let context = || format!("{id}, {known:?}, {}", self.context());
        assert!(!known.is_over, "twice: {}", context());
        assert!(now.total >= known.given_at + known.delay, "early: {}", context());
        // A clock that was set back while nobody ran may give it back some of its time.
        let is_over = known.ttl.is_some_and(|ttl| {
            if self.kind.stays_up {
                now.total >= known.pushed.total + ttl
            } else {
                now.ran >= known.pushed.ran + ttl
            }
        });
        assert!(!is_over || self.kind.sets_while_closed, "outlived: {}", context());
        assert_eq!(job.pushed_at(), known.wall, "{}", context());
        id
    }

    /// Nothing is there to be handed out.
    fn nothing_came(&self) {
        for (id, known) in self.all.iter().enumerate().filter(|(_, known)| !known.is_over) {
            // A slot has the length of its delay with eight bits, rounded up.
            let rounding =
                if self.kind.sets_while_closed { known.delay / 128 } else { Duration::ZERO };
            let counted = known.counted + known.in_run;
            // In one boot, all time counts.
            let waits = if self.kind.stays_up {
                self.now.total < known.given_at + known.delay
            } else {
                counted < known.delay + rounding
            };
            let is_past = |ttl| self.now.total >= known.pushed.total + ttl;
            let may_be_over = known.ttl.is_some_and(is_past);
            // Without CHECKPOINT, a run does not know how much time passed in those before it.
            let may_be_late = self.kind.loses_checkpoint;
            assert!(
                waits || may_be_over || may_be_late,
                "late or lost: {id}, {known:?}, {}",
                self.context()
            );
        }
    }

    fn pop(&mut self, queue: &Queue) {
        for _ in 0..=self.dice.below(30) {
            let Some(job) = queue.pop().unwrap() else {
                self.nothing_came();
                break;
            };
            let id = self.came(&job);
            match self.dice.below(4) {
                0 => {
                    let delay = self.millis(3_600_000);
                    job.nack_after(delay).unwrap();
                    let known = &mut self.all[id];
                    (known.given_at, known.delay) = (self.now.total, delay);
                    (known.counted, known.in_run) = (Duration::ZERO, Duration::ZERO);
                }
                1 if self.all[id].delay == Duration::ZERO => job.release().unwrap(),
                _ => {
                    job.ack().unwrap();
                    self.all[id].is_over = true;
                }
            }
        }
        self.story.push("popped".to_string());
    }

    fn reopen(&mut self, queue: Queue) -> Queue {
        let way = self.dice.below(3);
        match way {
            0 => queue.close().unwrap(),
            // What the old queue does while it is dropped, it does to the old disk.
            1 => self.board.storage = self.board.storage.killed(),
            _ => {
                queue.sync().unwrap();
                let image = CrashImage::Mixed(self.dice.next());
                self.board.storage = self.board.storage.power_cut(image);
            }
        }
        // A run that did not end in order may not have noted its time, of which only clocks that
        // are set back while nobody runs take any.
        let counts = way == 0 || !self.kind.sets_while_closed;
        for known in &mut self.all {
            let ran = std::mem::take(&mut known.in_run);
            known.counted += if counts { ran } else { Duration::ZERO };
        }
        let span = if self.dice.one_in(2) { self.millis(1_800_000) } else { Duration::ZERO };
        self.pass(span, false);
        if self.kind.sets_while_closed && self.dice.one_in(2) {
            let wall = self.wall - self.millis(86_400_000);
            self.set(wall);
        }
        // Forward and back, once a run has noted where its time lies on the boot clock.
        self.is_anchored |= way == 0 && !self.all.is_empty();
        if self.kind.stays_up && self.is_anchored && self.dice.one_in(2) {
            let wall = year(1971) + self.millis(60 * 365 * 86_400_000);
            self.set(wall);
        }
        if self.kind.loses_checkpoint && self.dice.one_in(2) {
            // It may not be there yet.
            self.board.directory().remove("CHECKPOINT").ok();
        }
        let way = ["closed", "killed", "without power"][way as usize];
        self.story.push(format!("{way} for {span:?}, at {:?}", self.wall));
        self.open()
    }

    fn step(&mut self, queue: Queue) -> Queue {
        match self.dice.below(12) {
            0..=2 => self.push(&queue),
            3..=5 => self.pop(&queue),
            6..=7 => {
                let span = self.millis(1_800_000);
                self.pass(span, true);
                self.story.push(format!("{span:?} passed"));
            }
            8 => {
                let wall = year(1971) + self.millis(60 * 365 * 86_400_000);
                self.set(wall);
                self.story.push(format!("set to {wall:?}"));
                // A pop notes it, where there is no background.
                if let Some(job) = queue.pop().unwrap() {
                    let id = self.came(&job);
                    job.ack().unwrap();
                    self.all[id].is_over = true;
                }
            }
            9 => {
                queue.compact().unwrap();
                self.story.push("compacted".to_string());
            }
            10 => {
                queue.maintain().unwrap();
                self.story.push("maintained".to_string());
            }
            _ => return self.reopen(queue),
        }
        queue
    }

    fn run(mut self) {
        let mut queue = self.open();
        for _ in 0..150 {
            queue = self.step(queue);
            let (real, told) = (bytes(&self.board.storage), queue.stats().disk_bytes());
            assert!(real.abs_diff(told) <= 16_384, "{real} bytes, {told} told: {}", self.context());
        }
    }
}

fn run(kind: Kind) {
    let first = cases("KEEPQ_STEPS_SEED", 1);
    for seed in first..first + cases("KEEPQ_STEPS_CASES", 100) {
        History::new(seed, kind).run();
    }
}

#[test]
fn a_clock_that_is_set_while_the_queue_is_open() {
    run(Kind::default());
}

#[test]
fn a_clock_that_is_set_back_while_it_is_closed_too() {
    run(Kind { sets_while_closed: true, ..Kind::default() });
}

#[test]
fn a_clock_that_is_set_where_checkpoint_is_lost() {
    run(Kind { loses_checkpoint: true, ..Kind::default() });
}

/// A boot clock tells how much time passes while nobody runs, however the wall clock is set.
#[test]
fn a_clock_that_is_set_while_the_system_is_up() {
    run(Kind { stays_up: true, ..Kind::default() });
}
