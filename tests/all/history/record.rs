//! What each call said, and when.

use keepq::{Error, Stats};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A call that has not returned has this as its end.
pub(crate) const NEVER: u64 = u64::MAX;

/// What a producer asks for; times in milliseconds, 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kind {
    pub(crate) delay: u64,
    pub(crate) ttl: u64,
    pub(crate) transient: bool,
    pub(crate) always: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Ack,
    Nack,
    NackAfter(u64),
    Release,
    Reject,
    Drop,
    /// Milliseconds.
    Extend(u64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// The numbers of the messages.
    Push(&'static str, Range<u64>, Kind),
    /// `Receipt::wait`, of this Seq.
    WaitDurable(u64),
    /// How many are asked for.
    Pop(&'static str, usize),
    /// The deliveries that are answered.
    Answer(Reply, Vec<u64>),
    /// The Seq that is asked about.
    Ask(&'static str, u64),
    Peek,
    /// One step of a walk; the number of the walk.
    Walk(u64),
    Len,
    /// The moment: `open`, `busy`, `quiet` or `end`.
    Stats(&'static str),
    Stuck,
    Purge,
    Compact,
    Maintain,
    Sync,
    Redrive,
    Close,
    PopLetter,
    /// A letter is answered; its own Seq.
    AnswerLetter(Reply, u64),
    OpenLetters,
    CloseLetters,
}

/// A message that was handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handed {
    /// The number of the delivery.
    pub(crate) token: u64,
    pub(crate) seq: u64,
    pub(crate) id: u64,
    pub(crate) attempts: u32,
}

/// A dead letter that was handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Letter {
    /// Its number among the dead letters.
    pub(crate) own: u64,
    /// The number that it had here.
    pub(crate) origin: u64,
    pub(crate) id: u64,
    pub(crate) attempts: u32,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Said {
    /// The call has not returned.
    Nothing,
    Done,
    Seqs(Vec<u64>),
    Handed(Vec<Handed>),
    Letter(Option<Letter>),
    Settled(bool),
    /// Seq and number of a message that is not settled.
    Shown(Option<(u64, u64)>),
    Number(u64),
    Stats(Box<Stats>),
    /// An error that the promise allows.
    Failed(&'static str),
    /// What no call may say.
    Wrong(String),
}

impl Said {
    pub(crate) fn of<T>(told: keepq::Result<T>, said: impl FnOnce(T) -> Self) -> Self {
        match told {
            Ok(value) => said(value),
            Err(error) => Self::error(&error),
        }
    }

    pub(crate) fn error(error: &Error) -> Self {
        match error {
            Error::Closed => Self::Failed("Closed"),
            Error::Full { .. } => Self::Failed("Full"),
            Error::LeaseExpired { .. } => Self::Failed("LeaseExpired"),
            Error::UnknownSeq { .. } => Self::Failed("UnknownSeq"),
            Error::Disabled { .. } => Self::Failed("Disabled"),
            error => Self::Wrong(format!("{error}: {error:?}")),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self == Self::Failed("Closed")
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Event {
    pub(crate) run: usize,
    pub(crate) thread: &'static str,
    pub(crate) call: Call,
    pub(crate) said: Said,
    /// Logical times: a call that ended before another one started has a smaller one.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Real times since the case began.
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// A crash may have come before, in or after it: it may have had no effect.
    pub(crate) is_cut: bool,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, thread, start, call, .. } = self;
        let end = if self.end == NEVER { "...".into() } else { self.end.to_string() };
        let ended = match self.ended {
            Duration::MAX => "...".into(),
            time => format!("{:.1}", millis(time)),
        };
        let times = format!("{:.1}..{ended} ms", millis(self.began));
        let cut = if self.is_cut { " (cut by the crash)" } else { "" };
        write!(f, "run {run} {thread:<11} [{start}..{end}] {times:<18} {call:?} -> ")?;
        match &self.said {
            Said::Stats(stats) => {
                let (ready, delayed) = (stats.ready(), stats.delayed());
                let (in_flight, dying) = (stats.in_flight(), stats.dying());
                write!(f, "ready {ready} in flight {in_flight} delayed {delayed} dying {dying}")?;
            }
            said => write!(f, "{said:?}")?,
        }
        f.write_str(cut)
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The clock of a case, and what its threads have written.
#[derive(Debug)]
pub(crate) struct Log {
    clock: AtomicU64,
    tokens: AtomicU64,
    ids: AtomicU64,
    epoch: Instant,
    pages: Mutex<Vec<Arc<Mutex<Vec<Event>>>>>,
}

impl Log {
    pub(crate) fn new() -> Self {
        let numbers = || AtomicU64::new(1);
        let (clock, tokens, ids) = (numbers(), numbers(), numbers());
        Self { clock, tokens, ids, epoch: Instant::now(), pages: Mutex::default() }
    }

    /// The next logical time.
    pub(crate) fn tick(&self) -> u64 {
        // SeqCst: the order of all ticks is one that real time agrees with.
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn ids(&self, count: u64) -> Range<u64> {
        let first = self.ids.fetch_add(count, Ordering::Relaxed);
        first..first + count
    }

    pub(crate) fn pen(self: &Arc<Self>, run: usize, thread: &'static str) -> Pen {
        let page = Arc::new(Mutex::default());
        self.pages.lock().unwrap().push(Arc::clone(&page));
        Pen { log: Arc::clone(self), page, run, thread }
    }

    /// Takes out what all threads wrote, in the order of its beginning.
    pub(crate) fn take(&self) -> Vec<Event> {
        let pages = std::mem::take(&mut *self.pages.lock().unwrap());
        let mut events: Vec<Event> =
            pages.iter().flat_map(|page| page.lock().unwrap().clone()).collect();
        events.sort_by_key(|event| event.start);
        events
    }
}

/// What one thread writes with.
#[derive(Debug)]
pub(crate) struct Pen {
    pub(crate) log: Arc<Log>,
    page: Arc<Mutex<Vec<Event>>>,
    run: usize,
    thread: &'static str,
}

impl Pen {
    /// Makes a call, and writes down what it said.
    pub(crate) fn call<T>(&self, call: Call, body: impl FnOnce() -> (Said, T)) -> T {
        let place = {
            let mut page = self.page.lock().unwrap();
            page.push(Event {
                run: self.run,
                thread: self.thread,
                call,
                said: Said::Nothing,
                start: self.log.tick(),
                end: NEVER,
                began: self.log.epoch.elapsed(),
                ended: Duration::MAX,
                is_cut: false,
            });
            page.len() - 1
        };
        let (said, value) = body();
        let ended = self.log.epoch.elapsed();
        let event = &mut self.page.lock().unwrap()[place];
        (event.said, event.end, event.ended) = (said, self.log.tick(), ended);
        value
    }

    /// Makes a call whose value does not matter; whether the queue was open.
    pub(crate) fn note(&self, call: Call, body: impl FnOnce() -> Said) -> bool {
        self.call(call, || {
            let said = body();
            let is_open = !said.is_closed();
            (said, is_open)
        })
    }
}

/// What happened in a run that ended in a crash between these two ticks. What began later never
/// did, and what had not ended by then may have.
pub(crate) fn cut(events: &[Event], (before, after): (u64, u64)) -> Vec<Event> {
    let began = events.iter().filter(|event| event.start < after);
    began
        .map(|event| Event { is_cut: event.is_cut || event.end > before, ..event.clone() })
        .collect()
}
