//! What a queue has to do to be measured, and what each configuration of it promises.

use std::path::Path;

/// The answer of a consumer to one message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    /// The message stays in flight: it is neither acked nor given back.
    Keep,
}

/// A queue that is open. Calls stop the measurement (by a panic) at any error.
pub(crate) trait Contender: Send + Sync {
    /// Pushes one message; what that promises is in [`Kind::keeps`].
    fn push(&self, payload: &[u8]);

    /// Pushes messages with the crate's own call for a batch, or one by one if it has none.
    fn push_batch(&self, payloads: &[&[u8]]) {
        for payload in payloads {
            self.push(payload);
        }
    }

    /// Pops up to `limit` messages, shows each to `answer`, and acks those that it says so of.
    /// Returns how many it popped. A limit of 1 uses the crate's call for a single message.
    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize;

    /// Syncs what was pushed, as far as the crate can.
    fn sync(&self);

    /// Closes the queue as the crate wants it to be closed.
    fn close(self: Box<Self>);
}

/// What is left of a message whose push returned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Keeps {
    /// It lies in the memory of the process: kill -9 may lose it.
    Nothing,
    /// It survives kill -9; a power cut may lose it.
    Kill,
    /// It was synced.
    Power,
}

impl Keeps {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::Kill, Self::Power];

    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Nothing => "a",
            Self::Kill => "b",
            Self::Power => "c",
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Nothing => "in the memory of the process: does not survive kill -9",
            Self::Kill => "survives kill -9, not synced",
            Self::Power => "synced when push returns",
        }
    }
}

/// Which messages can be acked, and what becomes of an ack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    AnyOrder,
    InOrder,
    /// A message is gone once it is popped.
    AtPop,
    /// A reader has a place, which nothing keeps and which frees no space.
    Unkept,
    /// There is no pop.
    NoPop,
}

impl Acks {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::AnyOrder => "any order",
            Self::InOrder => "in order",
            Self::AtPop => "none, gone when popped",
            Self::Unkept => "not kept",
            Self::NoPop => "no pop",
        }
    }
}

/// One configuration of one crate.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) keeps: Keeps,
    pub(crate) acks: Acks,
    /// Whether several processes can have the queue open at a time.
    pub(crate) many_processes: bool,
    pub(crate) open: fn(&Path) -> Box<dyn Contender>,
    /// The longest payload.
    pub(crate) longest: usize,
    /// Jobs that it takes no part in, and why.
    pub(crate) cannot: &'static [(&'static str, &'static str)],
    /// What else to know, with its source.
    pub(crate) remarks: &'static str,
}

impl Kind {
    /// Why it takes no part in the job, if it does not.
    pub(crate) fn left_out(&self, job: &str, payload: usize) -> Option<String> {
        if payload > self.longest {
            return Some(format!("payloads up to {} bytes only", self.longest));
        }
        let found = self.cannot.iter().find(|(named, _)| *named == job);
        found.map(|(_, why)| (*why).to_string())
    }

    pub(crate) fn pops(&self) -> bool {
        self.acks != Acks::NoPop
    }
}
