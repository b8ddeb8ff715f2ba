//! A history, ordered by message.

use super::record::{Call, Event, Kind, Letter, Reply, Said};
use super::settings::Settings;
use keepq::{Expired, Overflow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The clocks of two runs may lag behind the wall clock by times that differ by so much.
pub(crate) const ACROSS_RUNS: Duration = Duration::ZERO;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Closed,
    Killed,
    PowerCut,
}

/// When a call was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct When {
    pub(crate) run: usize,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) is_cut: bool,
}

impl When {
    fn of(event: &Event) -> Self {
        let Event { run, start, end, began, ended, is_cut, .. } = *event;
        Self { run, start, end, began, ended, is_cut }
    }

    /// Whether this was over for sure before the other one began.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        !self.is_cut && self.end < other.start
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    Yes,
    No,
    /// The crash came, or nothing says.
    Perhaps,
}

/// An answer to a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) effect: Effect,
    pub(crate) when: When,
}

/// One delivery of a message.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) attempts: u32,
    pub(crate) when: When,
    pub(crate) answer: Option<Answer>,
    pub(crate) extensions: Vec<Answer>,
}

impl Take {
    pub(crate) fn is_answered(&self, reply: Reply, effect: Effect) -> bool {
        self.answer.is_some_and(|answer| answer.reply == reply && answer.effect == effect)
    }

    /// Whether its answer may have settled the message.
    pub(crate) fn may_settle(&self) -> bool {
        self.answer.is_some_and(|answer| {
            let settles = matches!(answer.reply, Reply::Ack | Reply::Reject);
            settles && answer.effect != Effect::No
        })
    }
}

/// What a call showed of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sight {
    /// `pop` could take it, or its time has not come.
    Waiting,
    Unsettled,
    Settled,
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pushed {
    pub(crate) when: When,
    pub(crate) kind: Kind,
    pub(crate) first_id: u64,
}

/// All that is known of one number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) seq: u64,
    pub(crate) id: u64,
    /// None if it was pushed by `redrive`.
    pub(crate) pushed: Option<Pushed>,
    pub(crate) takes: Vec<Take>,
    pub(crate) sights: Vec<(Sight, When)>,
}

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) events: Vec<Event>,
    pub(crate) ends: Vec<End>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) messages: BTreeMap<u64, Message>,
    /// Dead letters that were handed out, and whether they were then acked.
    pub(crate) letters: Vec<(Letter, When, bool)>,
    /// Calls that make all before them durable.
    syncs: Vec<When>,
    /// Numbers up to which a call said that all is durable, and its run.
    durable: Vec<(u64, usize)>,
    /// Dead letters that were acked, and when that began.
    acked_letters: Vec<(u64, u64)>,
    pub(crate) purges: Vec<(When, u64)>,
    pub(crate) pushes: Vec<When>,
    pub(crate) redrives: Vec<(When, u64)>,
}

/// What is wrong, and with which message.
pub(crate) type Fault = (String, Option<u64>);

impl Facts {
    pub(crate) fn new(
        events: Vec<Event>,
        ends: Vec<End>,
        settings: Arc<Settings>,
    ) -> Result<Self, Fault> {
        let mut facts = Self {
            events: Vec::new(),
            ends,
            settings,
            messages: BTreeMap::new(),
            letters: Vec::new(),
            syncs: Vec::new(),
            durable: Vec::new(),
            acked_letters: Vec::new(),
            purges: Vec::new(),
            pushes: Vec::new(),
            redrives: Vec::new(),
        };
        let mut takes: BTreeMap<u64, (u64, Take)> = BTreeMap::new();
        for event in &events {
            facts.note_take(event, &mut takes)?;
        }
        for event in &events {
            Self::note_answer(event, &mut takes);
            if let Call::AnswerLetter(Reply::Ack, own) = event.call
                && event.said == Said::Done
                && !event.is_cut
            {
                facts.acked_letters.push((own, event.start));
            }
        }
        for (seq, take) in takes.into_values() {
            facts.at(seq).takes.push(take);
        }
        for event in &events {
            facts.note(event)?;
        }
        for event in &events {
            facts.note_push(event)?;
        }
        for message in facts.messages.values_mut() {
            // Calls may overlap, but attempts are counted one by one.
            message.takes.sort_by_key(|take| (take.when.run, take.attempts, take.when.end));
            message.sights.sort_by_key(|(_, when)| when.start);
        }
        facts.events = events;
        Ok(facts)
    }

    fn at(&mut self, seq: u64) -> &mut Message {
        let message = self.messages.entry(seq).or_default();
        message.seq = seq;
        message
    }

    fn know(&mut self, seq: u64, id: u64) -> Result<&mut Message, Fault> {
        let message = self.at(seq);
        if message.id != 0 && message.id != id {
            return Err((format!("{seq} stands for {} and for {id}", message.id), Some(seq)));
        }
        message.id = id;
        Ok(message)
    }

    fn note_take(
        &mut self,
        event: &Event,
        takes: &mut BTreeMap<u64, (u64, Take)>,
    ) -> Result<(), Fault> {
        let when = When::of(event);
        let Said::Handed(handed) = &event.said else { return Ok(()) };
        let mut seen = BTreeSet::new();
        for one in handed {
            if !event.is_cut {
                self.know(one.seq, one.id)?;
            }
            if !seen.insert(one.seq) {
                return Err(("one call handed it out twice".into(), Some(one.seq)));
            }
            let (answer, extensions) = (None, Vec::new());
            let take = Take { attempts: one.attempts, when, answer, extensions };
            takes.insert(one.token, (one.seq, take));
        }
        Ok(())
    }

    fn note_answer(event: &Event, takes: &mut BTreeMap<u64, (u64, Take)>) {
        let Call::Answer(reply, tokens) = &event.call else { return };
        let effect = match &event.said {
            Said::Done if !event.is_cut && *reply != Reply::Drop => Effect::Yes,
            Said::Failed(_) if tokens.len() == 1 => Effect::No,
            _ => Effect::Perhaps,
        };
        let answer = Answer { reply: *reply, effect, when: When::of(event) };
        for token in tokens {
            let Some((_, take)) = takes.get_mut(token) else { continue };
            match reply {
                Reply::Extend(_) => take.extensions.push(answer),
                _ => take.answer = Some(answer),
            }
        }
    }

    fn note(&mut self, event: &Event) -> Result<(), Fault> {
        let when = When::of(event);
        match (&event.call, &event.said) {
            (_, Said::Wrong(wrong)) => return Err((format!("{wrong}: {event}"), None)),
            (Call::Sync | Call::Close, Said::Done) if !event.is_cut => self.syncs.push(when),
            (Call::Purge | Call::Redrive, Said::Number(0)) => {}
            (Call::Purge, Said::Number(number)) => self.purges.push((when, *number)),
            (Call::Purge, Said::Nothing | Said::Failed(_)) => self.purges.push((when, u64::MAX)),
            (Call::Redrive, Said::Number(number)) => self.redrives.push((when, *number)),
            (Call::Redrive, _) => self.redrives.push((when, u64::MAX)),
            (Call::PopLetter, Said::Letter(Some(letter))) => {
                let mut acked = self.acked_letters.iter();
                let is_acked = acked.any(|&(own, at)| own == letter.own && at > when.end);
                self.letters.push((*letter, when, is_acked));
            }
            _ if event.is_cut => {}
            (Call::WaitDurable(seq), Said::Done) => self.durable.push((*seq, when.run)),
            (Call::Push(_, _, kind), Said::Seqs(seqs)) if kind.always => {
                self.durable.extend(seqs.iter().map(|&seq| (seq, when.run)));
            }
            (Call::Ask(_, seq), Said::Settled(is_settled)) => {
                let sight = if *is_settled { Sight::Settled } else { Sight::Unsettled };
                self.at(*seq).sights.push((sight, when));
            }
            (Call::Ask(_, seq), Said::Failed("UnknownSeq")) => {
                self.at(*seq).sights.push((Sight::Unknown, when));
            }
            (call, Said::Shown(Some((seq, id)))) => {
                let is_any = matches!(call, Call::Ask(..));
                let sight = if is_any { Sight::Unsettled } else { Sight::Waiting };
                self.know(*seq, *id)?.sights.push((sight, when));
            }
            _ => {}
        }
        Ok(())
    }

    fn note_push(&mut self, event: &Event) -> Result<(), Fault> {
        let Call::Push(_, ids, kind) = &event.call else { return Ok(()) };
        let when = When::of(event);
        self.pushes.push(when);
        let pushed = Pushed { when, kind: *kind, first_id: ids.start };
        let seqs = match &event.said {
            Said::Seqs(seqs) => seqs.clone(),
            Said::Nothing => vec![0; (ids.end - ids.start) as usize],
            _ => return Ok(()),
        };
        for (id, seq) in ids.clone().zip(seqs) {
            let told = if event.is_cut || event.said == Said::Nothing {
                // The lowest number under which a call met it, but for what a redrive gave.
                let found = self.messages.values().find(|message| message.id == id);
                found.map(|found| found.seq).filter(|&found| seq == 0 || found == seq)
            } else {
                Some(seq)
            };
            if let Some(seq) = told.filter(|&seq| seq > 0) {
                self.know(seq, id)?.pushed = Some(pushed);
            }
        }
        Ok(())
    }

    /// The first power cut between two runs that something which was over at `when` may be lost
    /// in, because no sync came between.
    pub(crate) fn may_be_undone(&self, when: &When, until_run: usize) -> Option<usize> {
        let cut = (when.run..until_run).find(|&run| self.ends[run] == End::PowerCut)?;
        let is_synced = |sync: &&When| when.is_before(sync) && sync.run <= cut;
        self.syncs.iter().find(is_synced).is_none().then_some(cut)
    }

    /// The first power cut before the run that may have taken the message.
    pub(crate) fn may_be_lost(&self, message: &Message, until_run: usize) -> Option<usize> {
        let cut = self.may_be_undone(&message.pushed?.when, until_run)?;
        let covers = |&(seq, run): &(u64, usize)| seq >= message.seq && run <= cut;
        (!self.durable.iter().any(covers)).then_some(cut)
    }

    /// Whether a settled state of this moment may be lost before the run.
    pub(crate) fn may_come_back(&self, when: &When, until_run: usize, is_answer: bool) -> bool {
        let is_kept = is_answer && self.settings.sync_acks;
        !is_kept && self.may_be_undone(when, until_run).is_some()
    }

    /// Whether anything may have settled the message before the end of `until`; what, if so.
    pub(crate) fn cause(&self, message: &Message, until: &When) -> Option<&'static str> {
        let began = |when: &When| when.start < until.end;
        let takes = message.takes.iter().filter(|take| began(&take.when));
        let mut most = 0;
        for take in takes {
            if take.may_settle() && take.answer.is_some_and(|answer| began(&answer.when)) {
                return Some("answer");
            }
            most = most.max(take.attempts);
        }
        if self.settings.max_attempts > 0 && most >= self.settings.max_attempts {
            return Some("attempts");
        }
        let start = message.pushed.map_or(0, |pushed| pushed.when.start);
        let is_later = |when: &When| began(when) && when.end > start;
        if self.purges.iter().any(|(when, _)| is_later(when)) {
            return Some("purge");
        }
        if self.drops_oldest() && self.pushes.iter().any(is_later) {
            return Some("overflow");
        }
        let pushed = message.pushed?;
        let ttl = Duration::from_millis(pushed.kind.ttl);
        let early = if until.run == pushed.when.run { Duration::ZERO } else { ACROSS_RUNS };
        if !ttl.is_zero() && until.ended.saturating_add(early) >= pushed.when.began + ttl {
            return Some("expired");
        }
        (pushed.kind.transient && pushed.when.run < until.run).then_some("transient")
    }

    /// Whether a push may drop messages.
    pub(crate) fn drops_oldest(&self) -> bool {
        let has_limit = self.settings.max_messages.is_some() || self.settings.max_bytes.is_some();
        self.settings.overflow == Overflow::DropOldest && has_limit
    }

    /// Whether what expires, fails or is rejected is kept.
    pub(crate) fn keeps_dead(&self, is_expired: bool) -> bool {
        let is_kept = !is_expired || self.settings.expired == Expired::DeadLetter;
        self.settings.dead_letters && is_kept
    }
}
