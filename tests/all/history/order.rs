//! When a message may be handed out, and to how many.
//!
//! * Numbers follow pushes, and first deliveries follow numbers.
//! * A message is with one consumer at a time while its lease lasts.
//! * Attempts are counted one by one.
//! * A call that found nothing was made at a moment at which nothing was ready.
//! * Nothing comes before its time, or after it has expired.

use super::facts::{ACROSS_RUNS, Answer, Effect, End, Facts, Fault, Message, Sight, Take, When};
use super::record::{Call, Event, Reply, Said};
use std::time::Duration;

/// By so much may times differ, since clocks are read to about 10 ms.
const COARSE: Duration = Duration::from_millis(50);

pub(crate) fn check(facts: &Facts) -> Result<(), Fault> {
    numbers_follow_pushes(facts)?;
    first_deliveries_follow_numbers(facts)?;
    for message in facts.messages.values() {
        let told = one_consumer(facts, message)
            .and_then(|()| attempts(facts, message))
            .and_then(|()| in_time(message))
            .and_then(|()| shown_when_it_waits(facts, message));
        told.map_err(|fault| (fault, Some(message.seq)))?;
    }
    nothing_means_nothing(facts)
}

fn numbers_follow_pushes(facts: &Facts) -> Result<(), Fault> {
    let mut told: Vec<(&Event, u64, u64)> = Vec::new();
    for event in facts.events.iter().filter(|event| !event.is_cut) {
        let (Call::Push(..), Said::Seqs(seqs)) = (&event.call, &event.said) else { continue };
        let is_row = seqs.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair == [0, 0]);
        if !is_row {
            return Err((format!("not in a row: {event}"), None));
        }
        if seqs[0] > 0 {
            told.push((event, seqs[0], *seqs.last().unwrap()));
        }
    }
    // In the order of their ends: each that begins later has larger numbers than all that ended.
    let mut by_end = told.clone();
    by_end.sort_by_key(|(event, ..)| event.end);
    let (mut ended, mut largest) = (by_end.into_iter().peekable(), 0);
    for (event, first, _) in told {
        while let Some((_, _, last)) = ended.next_if(|(other, ..)| other.end < event.start) {
            largest = largest.max(last);
        }
        if first <= largest {
            return Err((format!("{first} after {largest}: {event}"), Some(first)));
        }
    }
    Ok(())
}

fn first_deliveries_follow_numbers(facts: &Facts) -> Result<(), Fault> {
    // Of the messages behind: the earliest end of a first delivery.
    let mut earliest: Option<(When, u64)> = None;
    for message in facts.messages.values().rev() {
        let has_delay = message.pushed.is_none_or(|pushed| pushed.kind.delay > 0);
        let Some(first) = message.takes.first().filter(|_| !has_delay) else { continue };
        // A power cut may bring back what was purged or dropped before.
        let is_later = |other: &When| {
            other.end < first.when.start
                && !facts.ends[other.run..first.when.run].contains(&End::PowerCut)
        };
        if let Some((other, seq)) = earliest.filter(|(other, _)| is_later(other)) {
            let text = format!("{seq} was handed out first, at {}, and this one later", other.end);
            return Err((text, Some(message.seq)));
        }
        if !first.when.is_cut && earliest.is_none_or(|(other, _)| first.when.end < other.end) {
            earliest = Some((first.when, message.seq));
        }
    }
    Ok(())
}

/// The real time at which the lease may be over, at the earliest, as far as `until` tells.
fn lease_end(facts: &Facts, take: &Take, until: &When) -> Option<Duration> {
    let mut end = take.when.began + Duration::from_millis(facts.settings.visibility?);
    for Answer { reply, when, effect, .. } in &take.extensions {
        let Reply::Extend(time) = reply else { continue };
        if *effect == Effect::No || when.start >= until.end {
            continue;
        }
        let extended = when.began + Duration::from_millis(*time);
        // One that was under way may have come too late for what `until` tells.
        let is_over = when.end < until.start;
        end = if is_over { extended } else { end.min(extended) };
    }
    Some(end)
}

/// Whether `first` may have been over when `second` was handed out.
fn may_follow(facts: &Facts, first: &Take, second: &Take) -> bool {
    let is_answered = first
        .answer
        .is_some_and(|answer| answer.effect != Effect::No && answer.when.start < second.when.end);
    let is_drained = second.when.run + 1 == facts.ends.len();
    let runs_out = !is_drained
        && lease_end(facts, first, &second.when).is_some_and(|end| end <= second.when.ended);
    is_answered || runs_out
}

fn one_consumer(facts: &Facts, message: &Message) -> Result<(), String> {
    let takes: Vec<&Take> = message.takes.iter().filter(|take| !take.when.is_cut).collect();
    for (place, one) in takes.iter().enumerate() {
        for other in takes[place + 1..].iter().filter(|other| other.when.run == one.when.run) {
            let is_after = one.when.end < other.when.start;
            if !may_follow(facts, one, other) && (is_after || !may_follow(facts, other, one)) {
                let (at, again) = (one.when.end, other.when.end);
                return Err(format!("handed out at {at}, and at {again} again, without an end"));
            }
            let answers = one.answer.iter().chain(&one.extensions);
            let mut late = answers.filter(|answer| {
                answer.effect == Effect::Yes && other.when.end < answer.when.start
            });
            if let Some(late) = late.next().filter(|_| is_after) {
                let text = "handed out again, and then the earlier consumer's answer counts";
                return Err(format!("{text}: {late:?}"));
            }
        }
    }
    Ok(())
}

fn attempts(facts: &Facts, message: &Message) -> Result<(), String> {
    let most = facts.settings.max_attempts;
    let takes: Vec<&Take> = message.takes.iter().filter(|take| !take.when.is_cut).collect();
    // Deliveries that a crash hid.
    let hidden = (message.takes.len() - takes.len()) as u32;
    let gives_back = |take: &&&Take| take.answer.is_some_and(|one| one.reply == Reply::Release);
    let mut highest = 0;
    for pair in std::iter::once(None).chain(takes.iter().map(Some)).zip(&takes) {
        let (before, take) = pair;
        if before.is_some_and(|before| take.when.end < before.when.start) {
            return Err(format!("attempt {} came before a lower one", take.attempts));
        }
        let told = take.attempts;
        if most > 0 && told > most {
            return Err(format!("attempt {told} of {most}"));
        }
        let run = before.map_or(0, |before| before.when.run);
        let ends = &facts.ends[run..take.when.run];
        let base = before.map_or(0, |before| before.attempts);
        let released = before.is_some_and(|before| before.is_answered(Reply::Release, Effect::Yes));
        let perhaps =
            before.is_some_and(|before| before.is_answered(Reply::Release, Effect::Perhaps));
        let least = base - u32::from(released || perhaps) + 1;
        let exact = base - u32::from(released) + 1;
        let (least, largest) = if ends.contains(&End::PowerCut) {
            (1, highest + hidden + 1)
        } else if ends.contains(&End::Killed) {
            // A copy may have kept an attempt that was given back.
            let ambiguous = takes.iter().filter(gives_back).count() as u32;
            (least, exact + hidden + ambiguous)
        } else {
            (least, exact + hidden)
        };
        if !(least..=largest).contains(&told) {
            return Err(format!("attempt {told} is not in {least}..={largest}"));
        }
        highest = highest.max(told);
    }
    Ok(())
}

fn in_time(message: &Message) -> Result<(), String> {
    let Some(pushed) = message.pushed else { return Ok(()) };
    let (delay, ttl) = (pushed.kind.delay, pushed.kind.ttl);
    for take in message.takes.iter().filter(|take| !take.when.is_cut) {
        let early = if take.when.run == pushed.when.run { Duration::ZERO } else { ACROSS_RUNS };
        if take.when.ended + early < pushed.when.began + Duration::from_millis(delay) {
            return Err(format!("handed out before its delay of {delay} ms"));
        }
        let expires = pushed.when.ended.saturating_add(Duration::from_millis(ttl));
        if ttl > 0 && take.when.began > expires.saturating_add(COARSE) {
            return Err(format!("handed out after its {ttl} ms"));
        }
    }
    for pair in message.takes.windows(2) {
        let Some(Answer { reply: Reply::NackAfter(time), effect: Effect::Yes, when }) =
            pair[0].answer
        else {
            continue;
        };
        let is_same_run = pair[0].when.run == pair[1].when.run;
        let is_early = pair[1].when.ended < when.began + Duration::from_millis(time);
        if is_same_run && when.is_before(&pair[1].when) && is_early {
            return Err(format!("handed out before the {time} ms of its nack_after"));
        }
    }
    Ok(())
}

/// Whether `pop` could take the message at each moment of the call: that is so if it was pushed or
/// given back without a delay before it, and handed out after it.
fn is_ready_during(facts: &Facts, message: &Message, call: &When) -> bool {
    let Some(pushed) = message.pushed else { return false };
    let later = message.takes.iter().find(|take| take.when.end > call.start);
    let Some(later) = later else { return false };
    let is_later = later.when.run == call.run && call.end < later.when.start;
    let has_expired = pushed.kind.ttl > 0;
    if !is_later || later.when.is_cut || has_expired {
        return false;
    }
    let before = message.takes.iter().rev().find(|take| take.when.end < call.start);
    if message.takes.iter().any(|take| take.when.is_cut) {
        return false;
    }
    let Some(before) = before else {
        return pushed.when.is_before(call) && pushed.kind.delay == 0;
    };
    if before.when.run != call.run {
        // Given back by the end of its run.
        let has_delay = before.answer.is_some() || pushed.kind.delay > 0;
        return !has_delay && facts.settings.backoff == 0;
    }
    before.answer.is_some_and(|answer| {
        let is_back = match answer.reply {
            Reply::Release => true,
            Reply::Nack => facts.settings.backoff == 0,
            _ => false,
        };
        is_back && answer.effect == Effect::Yes && answer.when.is_before(call)
    })
}

/// A `pop` that found nothing, a `len` of too few.
fn nothing_means_nothing(facts: &Facts) -> Result<(), Fault> {
    for event in facts.events.iter().filter(|event| !event.is_cut) {
        let call = when_of(event);
        let most = match (&event.call, &event.said) {
            (Call::Pop(_, limit), Said::Handed(handed)) if handed.len() < *limit => {
                if facts.settings.max_in_flight.is_some() {
                    continue;
                }
                0
            }
            (Call::Peek, Said::Shown(None)) => 0,
            (Call::Len, Said::Number(number)) => *number,
            _ => continue,
        };
        let ready = facts
            .messages
            .values()
            .filter(|message| message.seq > 0 && is_ready_during(facts, message, &call));
        let ready: Vec<u64> = ready.map(|message| message.seq).collect();
        // After `close` the numbers are zero.
        let is_closing = facts.events.iter().any(|other| {
            other.run == event.run && other.call == Call::Close && other.start < event.end
        });
        if ready.len() as u64 > most && !is_closing {
            let text = format!("{} were ready, and this found fewer: {event}", ready.len());
            return Err((text, ready.first().copied()));
        }
    }
    Ok(())
}

fn when_of(event: &Event) -> When {
    let Event { run, start, end, began, ended, is_cut, .. } = *event;
    When { run, start, end, began, ended, is_cut }
}

/// A message in flight is not shown, and one that waits all the time is.
fn shown_when_it_waits(facts: &Facts, message: &Message) -> Result<(), String> {
    for (_, when) in message.sights.iter().filter(|(sight, _)| *sight == Sight::Waiting) {
        let held = message.takes.iter().find(|take| {
            let is_over = take
                .answer
                .is_some_and(|answer| answer.when.start < when.end && answer.effect != Effect::No);
            let runs_out = lease_end(facts, take, when).is_some_and(|end| end <= when.ended);
            take.when.is_before(when) && take.when.run == when.run && !is_over && !runs_out
        });
        if let Some(held) = held {
            let (at, shown) = (held.when.end, when.start);
            return Err(format!("handed out at {at}, and shown as waiting at {shown}"));
        }
    }
    Ok(())
}
