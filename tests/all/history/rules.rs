//! What may not happen, whatever the threads do.
//!
//! * What is settled stays settled, and was settled by something.
//! * What was confirmed is there, as far as its durability goes; what a power cut leaves of a run
//!   has no holes, and a batch is whole.
//! * Each dead letter is there once, and died of something.
//! * The counts add up.

use super::facts::{Effect, End, Facts, Fault, Message, Pushed, Sight, When};
use super::record::{Call, Event, Reply, Said};
use keepq::Stats;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(facts: &Facts) -> Result<(), Fault> {
    for message in facts.messages.values() {
        let told = settled_is_final(facts, message)
            .and_then(|()| settled_has_a_cause(facts, message))
            .and_then(|()| known_is_known(facts, message))
            .and_then(|()| nothing_is_lost(facts, message))
            .and_then(|()| rejected_is_kept(facts, message));
        told.map_err(|fault| (fault, Some(message.seq)))?;
    }
    batches_are_whole(facts)?;
    letters(facts)?;
    for run in 0..facts.ends.len() {
        let events: Vec<&Event> = facts.events.iter().filter(|event| event.run == run).collect();
        numbers(facts, &events)?;
        errors(facts, &events)?;
    }
    Ok(())
}

/// The moments from which on a message is settled; whether that was an answer, and whether it still
/// counts as unsettled on its way to the dead letters.
fn settlings(message: &Message) -> Vec<(When, bool, bool)> {
    let answers = message.takes.iter().filter_map(|take| take.answer);
    let answers = answers.filter(|answer| answer.effect == Effect::Yes);
    let answers = answers.filter_map(|answer| match answer.reply {
        Reply::Ack => Some((answer.when, true, false)),
        Reply::Reject => Some((answer.when, true, true)),
        _ => None,
    });
    let sights = message.sights.iter().filter(|(sight, _)| *sight == Sight::Settled);
    answers.chain(sights.map(|(_, when)| (*when, false, false))).collect()
}

fn settled_is_final(facts: &Facts, message: &Message) -> Result<(), String> {
    let mut later: Vec<(&When, bool)> =
        message.takes.iter().map(|take| (&take.when, true)).filter(|one| !one.0.is_cut).collect();
    for (sight, when) in &message.sights {
        match sight {
            Sight::Waiting => later.push((when, true)),
            Sight::Unsettled => later.push((when, false)),
            _ => {}
        }
    }
    for (settled, is_answer, is_dying) in settlings(message) {
        for &(seen, is_waiting) in &later {
            if settled.is_before(seen)
                && (is_waiting || !is_dying)
                && !facts.may_come_back(&settled, seen.run, is_answer)
            {
                let (at, again) = (settled.end, seen.start);
                return Err(format!("settled at {at}, and not at {again}"));
            }
        }
    }
    Ok(())
}

fn settled_has_a_cause(facts: &Facts, message: &Message) -> Result<(), String> {
    for (sight, when) in &message.sights {
        // A number that a crash hid may stand for a message of any kind.
        if *sight == Sight::Settled && message.id > 0 && facts.cause(message, when).is_none() {
            return Err(format!("said to be settled at {}, and nothing settled it", when.end));
        }
    }
    Ok(())
}

fn known_is_known(facts: &Facts, message: &Message) -> Result<(), String> {
    let Some(pushed) = message.pushed.filter(|pushed| !pushed.kind.transient) else {
        return Ok(());
    };
    for (sight, when) in &message.sights {
        let may_be_lost = facts.may_be_lost(message, when.run).is_some();
        if *sight == Sight::Unknown && pushed.when.is_before(when) && !may_be_lost {
            return Err(format!("unknown at {}, though it was confirmed", when.end));
        }
    }
    Ok(())
}

/// Whether it was there in a run behind this one.
fn is_there_after(message: &Message, run: usize) -> bool {
    let is_seen = |(sight, when): &(Sight, When)| {
        when.run > run && matches!(sight, Sight::Waiting | Sight::Unsettled)
    };
    message.takes.iter().any(|take| take.when.run > run && !take.when.is_cut)
        || message.sights.iter().any(is_seen)
}

fn nothing_is_lost(facts: &Facts, message: &Message) -> Result<(), String> {
    let last = facts.ends.len() - 1;
    let Some(pushed) = message.pushed.filter(|pushed| !pushed.when.is_cut) else { return Ok(()) };
    if message.takes.iter().any(|take| take.when.run == last) {
        return Ok(());
    }
    let end = facts.events.last().map_or(pushed.when, end_of);
    if facts.cause(message, &end).is_some() {
        return Ok(());
    }
    let Some(cut) = facts.may_be_lost(message, last) else {
        return Err(format!("{pushed:?} was confirmed, is lost, and nothing settled it"));
    };
    let torn = facts.messages.values().find(|other| {
        let same = |other: &Pushed| {
            let is_batch = other.first_id == pushed.first_id;
            other.when.run == pushed.when.run
                && !other.kind.transient
                && (other.first_id > 0 && is_batch)
        };
        let behind = |other: &Message| {
            let is_same_run = other.pushed.is_some_and(|one| one.when.run == pushed.when.run);
            is_same_run && other.seq > message.seq
        };
        (other.pushed.as_ref().is_some_and(same) || behind(other)) && is_there_after(other, cut)
    });
    match torn {
        Some(other) => Err(format!("a power cut took it and left {} of the same run", other.seq)),
        None => Ok(()),
    }
}

fn end_of(event: &Event) -> When {
    let Event { run, start, end, began, ended, is_cut, .. } = *event;
    When { run, start, end, began, ended, is_cut }
}

/// A batch that a crash met is there as a whole, or not at all.
fn batches_are_whole(facts: &Facts) -> Result<(), Fault> {
    let has_other_ends = !facts.purges.is_empty() || facts.drops_oldest();
    let handed = facts.events.iter().filter_map(|event| match &event.said {
        Said::Handed(handed) => Some(handed),
        _ => None,
    });
    // A consumer may have settled it, and then the crash came.
    let taken: BTreeSet<u64> = handed.flatten().map(|one| one.id).collect();
    for event in facts.events.iter().filter(|event| event.is_cut && !has_other_ends) {
        let Call::Push(_, batch, kind) = &event.call else { continue };
        // What a consumer saw before a power cut may be gone with all of its batch.
        let is_kept = facts.ends[event.run] != End::PowerCut;
        let known: BTreeSet<u64> = facts
            .messages
            .values()
            .filter(|message| is_kept || is_there_after(message, event.run))
            .map(|message| message.id)
            .collect();
        let (there, mut missing): (Vec<u64>, Vec<u64>) =
            batch.clone().partition(|id| known.contains(id));
        missing.retain(|id| !taken.contains(id));
        if kind.ttl == 0 && !kind.transient && !there.is_empty() && !missing.is_empty() {
            return Err((format!("of a batch {there:?} are there and {missing:?} are not"), None));
        }
    }
    Ok(())
}

fn rejected_is_kept(facts: &Facts, message: &Message) -> Result<(), String> {
    let last = facts.ends.len() - 1;
    let rejected = message.takes.iter().filter(|take| take.is_answered(Reply::Reject, Effect::Yes));
    for answer in rejected.filter_map(|take| take.answer) {
        let is_kept = facts.letters.iter().any(|(letter, ..)| letter.origin == message.seq);
        let may_be_redriven = !facts.redrives.is_empty();
        if facts.settings.dead_letters
            && !is_kept
            && !may_be_redriven
            && !facts.may_come_back(&answer.when, last, true)
        {
            return Err("it was rejected, and is not among the dead letters".into());
        }
    }
    Ok(())
}

fn letters(facts: &Facts) -> Result<(), Fault> {
    let mut known: BTreeMap<u64, (u64, When)> = BTreeMap::new();
    for (letter, when, is_acked) in facts.letters.iter().filter(|(_, when, _)| !when.is_cut) {
        let origin = letter.origin;
        let fault = |text: String| Err((text, Some(origin)));
        let power_cut = |from: usize, to: usize| facts.ends[from..to].contains(&End::PowerCut);
        let (own, first) = *known.entry(origin).or_insert((letter.own, *when));
        if own != letter.own && !power_cut(first.run.min(when.run), first.run.max(when.run)) {
            return fault(format!("it is dead twice, as {own} and as {}", letter.own));
        }
        let Some(message) = facts.messages.get(&origin) else { continue };
        if message.id != 0 && message.id != letter.id {
            return fault(format!("its dead letter is that of {}", letter.id));
        }
        if message.pushed.is_some() && facts.cause(message, when).is_none() {
            return fault("it is a dead letter, and nothing killed it".into());
        }
        for take in message.takes.iter().filter(|take| !take.when.is_cut) {
            let is_excused = power_cut(when.run, take.when.run.max(when.run))
                && !(facts.settings.sync_acks && *is_acked);
            if when.is_before(&take.when) && !is_excused {
                return fault(format!("it was dead at {}, and is handed out again", when.end));
            }
        }
    }
    Ok(())
}

/// Errors that are allowed are so only where there is a reason for them.
fn errors(facts: &Facts, events: &[&Event]) -> Result<(), Fault> {
    let settings = &facts.settings;
    let closing = events.iter().find(|event| event.call == Call::Close);
    let has_limit = settings.max_messages.is_some() || settings.max_bytes.is_some();
    for event in events {
        let Said::Failed(error) = &event.said else { continue };
        let is_letter = matches!(event.call, Call::PopLetter | Call::AnswerLetter(..))
            || matches!(event.call, Call::OpenLetters | Call::CloseLetters);
        let is_allowed = match *error {
            "Closed" => is_letter || closing.is_none_or(|close| close.start < event.end),
            "Full" => has_limit,
            "LeaseExpired" => settings.visibility.is_some(),
            "Disabled" => !settings.dead_letters,
            // See `known_is_known`.
            _ => true,
        };
        if !is_allowed {
            return Err((format!("{error} for no reason: {event}"), None));
        }
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq)]
struct Counted {
    pushed: u64,
    popped: u64,
    acked: u64,
    released: u64,
    rejected: u64,
    purged: u64,
}

fn unsettled(stats: &Stats) -> u64 {
    stats.ready() + stats.in_flight() + stats.delayed() + stats.dying()
}

fn numbers(facts: &Facts, events: &[&Event]) -> Result<(), Fault> {
    let settings = &facts.settings;
    let mut opened = None;
    for event in events {
        let (Call::Stats(moment), Said::Stats(stats)) = (&event.call, &event.said) else {
            continue;
        };
        let fault = |what: &str| Err((format!("{what}: {event} {stats:?}"), None));
        if (stats.lost(), stats.duplicated(), stats.out_of_order()) != (0, 0, 0) {
            return fault("lost, duplicated or out of order");
        }
        if event.thread != "drain" {
            if settings.max_in_flight.is_some_and(|most| stats.in_flight() > most) {
                return fault("more in flight than allowed");
            }
            // A power cut may bring back what was settled, and files that were removed.
            let is_limited = !facts.ends[..event.run].contains(&End::PowerCut);
            if is_limited && settings.max_messages.is_some_and(|most| unsettled(stats) > most) {
                return fault("more messages than allowed");
            }
            // Once all that was left was dying, dead letters may have passed the limit by twice a
            // segment, of which each takes a quarter of it at most.
            let above = |most| if stats.dead_letters() > 0 { most / 2 } else { 0 };
            let most_bytes = settings.max_bytes.map(|most| most + above(most));
            if is_limited && most_bytes.is_some_and(|most| stats.disk_bytes() > most) {
                return fault("more bytes than allowed");
            }
        }
        match *moment {
            "open" => opened = Some(stats),
            "quiet" | "end" => {
                let opened = opened.expect("a run begins with it");
                if let Err(what) = add_up(facts, events, opened, stats) {
                    return fault(&what);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the calls of a run said, and what the queue says at its end.
fn add_up(facts: &Facts, events: &[&Event], open: &Stats, quiet: &Stats) -> Result<(), String> {
    let mut told = Counted::default();
    let mut is_exact = true;
    let (mut nacked, mut dropped, mut refused) = (0, 0, 0);
    for event in events {
        match (&event.call, &event.said) {
            (_, Said::Seqs(seqs)) => {
                let pushed = seqs.iter().filter(|&&seq| seq > 0).count() as u64;
                told.pushed += pushed;
                refused += seqs.len() as u64 - pushed;
            }
            (_, Said::Handed(handed)) => told.popped += handed.len() as u64,
            (Call::Purge, Said::Number(number)) => told.purged += number,
            (Call::Redrive, Said::Number(number)) => told.pushed += number,
            (Call::Redrive, _) => is_exact = false,
            (Call::Answer(reply, tokens), Said::Done) => match reply {
                Reply::Ack => told.acked += tokens.len() as u64,
                Reply::Nack | Reply::NackAfter(_) => nacked += 1,
                Reply::Release => told.released += 1,
                Reply::Reject => told.rejected += 1,
                Reply::Drop => dropped += 1,
                Reply::Extend(_) => {}
            },
            // Some of a batch may have been settled.
            (Call::Answer(Reply::Ack, tokens), _) => is_exact &= tokens.len() == 1,
            _ => {}
        }
    }
    let counted = Counted {
        pushed: quiet.pushed(),
        popped: quiet.popped(),
        acked: quiet.acked(),
        released: quiet.released(),
        rejected: quiet.rejected(),
        purged: quiet.purged(),
    };
    if is_exact && told != counted {
        return Err(format!("the calls say {told:?}, and the queue says {counted:?}"));
    }
    if is_exact && !(nacked..=nacked + dropped).contains(&quiet.nacked()) {
        return Err(format!("{nacked} nacked, {dropped} dropped"));
    }
    let keeps_expired = facts.keeps_dead(true);
    let settled = |stats: &Stats| {
        let expired = if keeps_expired { 0 } else { stats.expired() };
        let moved = stats.purged() + stats.dropped() + stats.dead_lettered();
        stats.acked() + moved + expired
    };
    // The background may have been at work before the first of them.
    let came = unsettled(open) + settled(open) + quiet.pushed() - open.pushed();
    let transients: BTreeSet<u64> = facts
        .messages
        .values()
        .filter(|message| message.pushed.is_some_and(|pushed| pushed.kind.transient))
        .map(|message| message.seq)
        .collect();
    // New messages that were dropped were never here.
    let (before, after) = (came, settled(quiet) - refused + unsettled(quiet));
    let slack = if events[0].run == 0 { 0 } else { transients.len() as u64 };
    if (after..=after + slack).contains(&before) {
        return Ok(());
    }
    Err(format!("{before} messages came, and {after} are settled or here"))
}
