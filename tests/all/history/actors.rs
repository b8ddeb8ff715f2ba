//! The threads that work on the queue.

use super::record::{Call, Handed, Kind, Letter, Log, Pen, Reply, Said};
use super::settings::Settings;
use crate::support::Dice;
use crate::support::model::payload;
use keepq::{Delivery, Durability, Message, Queue, Receipt, Seq};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than any case.
const LONG: Duration = Duration::from_secs(36_000);

/// What the threads of a run share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) queue: Queue,
    pub(crate) settings: Arc<Settings>,
    /// Numbers that were given out lately.
    pub(crate) seqs: Arc<Mutex<Vec<u64>>>,
    pub(crate) walks: Arc<AtomicU64>,
    /// What consumers took and another thread answers.
    pub(crate) others: Sender<Held>,
    pub(crate) for_others: Arc<Mutex<Receiver<Held>>>,
    /// How many calls the threads make that do not work to the end.
    pub(crate) calls: u64,
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The payload of a message says its number, and the rest follows from it.
pub(crate) fn number_of(payload_told: &[u8]) -> Result<u64, String> {
    let Some(Ok(id)) = payload_told.get(..8).map(<[u8; 8]>::try_from) else {
        return Err("a payload without a number".into());
    };
    let id = u64::from_le_bytes(id);
    let is_whole = payload(id, payload_told.len() - 8) == payload_told;
    if is_whole { Ok(id) } else { Err(format!("message {id} was changed")) }
}

impl World {
    fn remember(&self, seqs: &[u64]) {
        let mut known = self.seqs.lock().unwrap();
        known.extend(seqs.iter().filter(|&&seq| seq > 0));
        let surplus = known.len().saturating_sub(60);
        known.drain(..surplus);
    }

    fn any_seq(&self, dice: &mut Dice) -> Option<u64> {
        let known = self.seqs.lock().unwrap();
        let place = dice.below(known.len().max(1) as u64) as usize;
        known.get(place).copied()
    }

    fn kind(&self, dice: &mut Dice) -> Kind {
        let delay = if self.settings.delays && dice.one_in(4) { 1 + dice.below(25) } else { 0 };
        let ttl = if self.settings.expires && dice.one_in(3) { 1 + dice.below(30) } else { 0 };
        let transient = self.settings.transients && dice.one_in(6);
        // A transient message is synced by no push, so it confirms none before it either.
        let always = !transient && self.settings.durability == Durability::Always;
        Kind { delay, ttl, transient, always }
    }

    fn message(&self, id: u64, kind: &Kind) -> Message<'static> {
        let len = Dice(id).below(self.settings.longest) as usize;
        let mut message = Message::new(payload(id, len));
        if kind.delay > 0 {
            message = message.delay(ms(kind.delay));
        }
        if kind.ttl > 0 {
            message = message.ttl(ms(kind.ttl));
        }
        if kind.transient {
            message = message.transient();
        } else if kind.always {
            message = message.durability(Durability::Always);
        }
        message
    }
}

/// Pushes in every way.
pub(crate) fn produce(world: &World, pen: &Pen, mut dice: Dice) {
    let queue = &world.queue;
    let seqs_of = |seq: Seq| Said::Seqs(vec![seq.into()]);
    for _ in 0..world.calls {
        let mut kind = world.kind(&mut dice);
        let many = if dice.one_in(5) { 2 + dice.below(4) } else { 1 };
        let ids = pen.log.ids(many);
        let first = ids.start;
        let said = if many > 1 {
            let batch = ids.clone().map(|id| world.message(id, &kind));
            let call = Call::Push("push_batch", ids.clone(), kind);
            pen.call(call, || both(Said::of(queue.push_batch(batch), numbers)))
        } else if dice.one_in(4) {
            kind.always = false;
            let call = Call::Push("submit", ids, kind);
            let (said, receipt) =
                pen.call(call, || match queue.submit(world.message(first, &kind)) {
                    Ok(receipt) => {
                        (seqs_of(receipt.seq()), (seqs_of(receipt.seq()), Some(receipt)))
                    }
                    Err(error) => (Said::error(&error), (Said::error(&error), None)),
                });
            wait_durable(pen, receipt.filter(|_| dice.one_in(2)));
            said
        } else if dice.one_in(5) {
            let call = Call::Push("try_push", ids, kind);
            pen.call(call, || both(Said::of(queue.try_push(world.message(first, &kind)), seqs_of)))
        } else {
            kind.always |= !kind.transient && dice.one_in(6);
            let call = Call::Push("push", ids, kind);
            pen.call(call, || both(Said::of(queue.push(world.message(first, &kind)), seqs_of)))
        };
        match said {
            Said::Seqs(seqs) => world.remember(&seqs),
            Said::Failed("Closed") | Said::Wrong(_) => return,
            _ => std::thread::sleep(ms(1)),
        }
        if dice.one_in(20) {
            std::thread::sleep(ms(dice.below(4)));
        }
    }
}

fn both(said: Said) -> (Said, Said) {
    (said.clone(), said)
}

fn numbers(seqs: Vec<Seq>) -> Said {
    Said::Seqs(seqs.into_iter().map(u64::from).collect())
}

fn wait_durable(pen: &Pen, receipt: Option<Receipt>) {
    if let Some(receipt) = receipt.filter(|receipt| !receipt.seq().is_dropped()) {
        let seq = receipt.seq().into();
        pen.note(Call::WaitDurable(seq), || Said::of(receipt.wait(), |_| Said::Done));
    }
}

/// A delivery, and its number in the history.
pub(crate) type Held = (u64, Delivery);

/// Writes down what was handed out.
pub(crate) fn handed(log: &Log, deliveries: Vec<Delivery>) -> (Said, Vec<Held>) {
    let (mut told, mut held) = (Vec::new(), Vec::new());
    for delivery in deliveries {
        let id = match number_of(&delivery) {
            Ok(id) => id,
            Err(wrong) => return (Said::Wrong(wrong), Vec::new()),
        };
        let (token, seq) = (log.token(), delivery.seq().into());
        told.push(Handed { token, seq, id, attempts: delivery.attempts() });
        held.push((token, delivery));
    }
    (Said::Handed(told), held)
}

/// Takes in every way, and answers in every way, until the queue is closed.
pub(crate) fn consume(world: &World, pen: &Pen, mut dice: Dice) {
    let queue = &world.queue;
    let mut late: Vec<Held> = Vec::new();
    loop {
        let runs_out = world.settings.visibility.is_some();
        let (what, limit) = match dice.below(10) {
            // What is held and does not run out by itself is answered before a long wait.
            0..5 if runs_out || late.is_empty() => ("pop_wait", 1),
            5 => ("pop_batch", 1 + dice.below(6) as usize),
            6 | 7 => ("pop_timeout", 1),
            _ => ("pop", 1),
        };
        let (is_open, taken) = pen.call(Call::Pop(what, limit), || {
            let told = match what {
                "pop_wait" => queue.pop_wait().map(|delivery| vec![delivery]),
                "pop_batch" => queue.pop_batch(limit),
                "pop_timeout" => {
                    queue.pop_timeout(ms(1 + dice.below(10))).map(|one| one.into_iter().collect())
                }
                _ => queue.pop().map(|one| one.into_iter().collect()),
            };
            match told {
                Ok(deliveries) => {
                    let (said, held) = handed(&pen.log, deliveries);
                    (said, (true, held))
                }
                Err(error) => (Said::error(&error), (false, Vec::new())),
            }
        });
        if !is_open {
            return;
        }
        let seqs: Vec<u64> = taken.iter().map(|(_, delivery)| delivery.seq().into()).collect();
        world.remember(&seqs);
        let is_limited = world.settings.max_in_flight.is_some();
        let is_over = taken.is_empty() && !runs_out;
        if (runs_out || !is_limited) && dice.one_in(10) {
            late.extend(taken);
        } else if dice.one_in(5) {
            for held in taken {
                world.others.send(held).unwrap();
            }
        } else {
            answer_all(world, pen, &mut dice, taken);
        }
        if late.len() > 8 || is_over || !late.is_empty() && dice.one_in(12) {
            let visibility = world.settings.visibility.unwrap_or(1);
            std::thread::sleep(ms(dice.below(2 * visibility)));
            answer_all(world, pen, &mut dice, std::mem::take(&mut late));
        }
    }
}

/// Answers what others took, and takes nothing itself: it has no part in waking itself.
pub(crate) fn answer_for_others(world: &World, pen: &Pen, mut dice: Dice) {
    let taken = world.for_others.lock().unwrap();
    loop {
        match taken.recv_timeout(ms(10)) {
            Ok(held) => {
                std::thread::sleep(ms(dice.below(4)));
                answer(world, pen, &mut dice, held);
            }
            Err(RecvTimeoutError::Timeout) if world.queue.peek().is_ok() => {}
            Err(_) => return,
        }
    }
}

fn answer_all(world: &World, pen: &Pen, dice: &mut Dice, taken: Vec<Held>) {
    if taken.len() > 1 && dice.one_in(2) {
        let tokens = taken.iter().map(|(token, _)| *token).collect();
        let deliveries: Vec<Delivery> = taken.into_iter().map(|(_, delivery)| delivery).collect();
        pen.note(Call::Answer(Reply::Ack, tokens), || {
            Said::of(world.queue.ack_batch(deliveries), |()| Said::Done)
        });
        return;
    }
    for held in taken {
        answer(world, pen, dice, held);
    }
}

fn answer(world: &World, pen: &Pen, dice: &mut Dice, (token, delivery): Held) {
    let visibility = world.settings.visibility;
    if let Some(visibility) = visibility.filter(|_| dice.one_in(8)) {
        let time = if dice.one_in(5) { 0 } else { dice.below(2 * visibility) };
        pen.note(Call::Answer(Reply::Extend(time), vec![token]), || {
            Said::of(delivery.extend(ms(time)), |()| Said::Done)
        });
    }
    if dice.one_in(15) {
        std::thread::sleep(ms(dice.below(3)));
    }
    let reply = match dice.below(24) {
        0 | 1 => Reply::Nack,
        2 => Reply::NackAfter(dice.below(12)),
        3 => Reply::Release,
        4 => Reply::Reject,
        5 => Reply::Drop,
        _ => Reply::Ack,
    };
    if visibility.is_some() && dice.one_in(60) {
        // Nothing answers it: its lease runs out.
        std::mem::forget(delivery);
        return;
    }
    pen.note(Call::Answer(reply, vec![token]), || {
        let told = match reply {
            Reply::Ack => delivery.ack(),
            Reply::Nack => delivery.nack(),
            Reply::NackAfter(time) => delivery.nack_after(ms(time)),
            Reply::Release => delivery.release(),
            Reply::Reject => delivery.reject("no good"),
            Reply::Drop | Reply::Extend(_) => {
                drop(delivery);
                Ok(())
            }
        };
        Said::of(told, |()| Said::Done)
    });
}

/// Asks in every way.
pub(crate) fn watch(world: &World, pen: &Pen, mut dice: Dice) {
    let queue = &world.queue;
    for _ in 0..world.calls {
        let seq = world.any_seq(&mut dice);
        let is_open = match (dice.below(12), seq) {
            (0..3, Some(seq)) => pen.note(Call::Ask("is_acked", seq), || {
                Said::of(queue.is_acked(seq.into()), Said::Settled)
            }),
            (3 | 4, Some(seq)) => {
                let time = if dice.one_in(3) { LONG } else { ms(dice.below(20)) };
                pen.note(Call::Ask("wait_acked", seq), || {
                    Said::of(queue.wait_acked(seq.into(), time), Said::Settled)
                })
            }
            (5 | 6, Some(seq)) => pen.note(Call::Ask("get", seq), || get(queue, seq)),
            (7, _) => pen.note(Call::Peek, || {
                Said::of(queue.peek(), |told| shown(told.map(|told| (told.seq(), told.to_vec()))))
            }),
            (8, _) => walk(queue, pen, world.walks.fetch_add(1, Ordering::Relaxed)),
            (9, _) => pen.note(Call::Len, || Said::Number(queue.len())),
            (10, _) => {
                pen.note(Call::Stats("busy"), || Said::Stats(Box::new(queue.stats())));
                pen.note(Call::Stuck, || {
                    Said::of(queue.stuck(3), |told| Said::Number(told.len() as u64))
                })
            }
            _ => {
                std::thread::sleep(ms(dice.below(3)));
                true
            }
        };
        if !is_open {
            return;
        }
    }
}

pub(crate) fn get(queue: &Queue, seq: u64) -> Said {
    Said::of(queue.get(seq.into()), |told| match told {
        Some(told) => shown(Some((told.seq(), told.to_vec()))),
        None => Said::Settled(true),
    })
}

fn shown(told: Option<(Seq, Vec<u8>)>) -> Said {
    match told.map(|(seq, payload)| (seq, number_of(&payload))) {
        None => Said::Shown(None),
        Some((seq, Ok(id))) => Said::Shown(Some((seq.into(), id))),
        Some((_, Err(wrong))) => Said::Wrong(wrong),
    }
}

/// Each step is a call of its own, because each message is shown as it is at that step.
pub(crate) fn walk(queue: &Queue, pen: &Pen, number: u64) -> bool {
    let mut messages = queue.iter();
    loop {
        let (is_open, is_over) = pen.call(Call::Walk(number), || {
            let said = match messages.next() {
                Some(Ok(told)) => shown(Some((told.seq(), told.to_vec()))),
                Some(Err(error)) => Said::error(&error),
                None => Said::Shown(None),
            };
            let (is_closed, is_over) = (said.is_closed(), !matches!(said, Said::Shown(Some(_))));
            (said, (!is_closed, is_over))
        });
        if is_over {
            return is_open;
        }
    }
}

/// Looks after the files.
pub(crate) fn keep_house(world: &World, pen: &Pen, mut dice: Dice) {
    let queue = &world.queue;
    for _ in 0..world.calls / 3 {
        let choice = dice.below(8);
        let is_open = match choice {
            0..3 => pen.note(Call::Compact, || {
                Said::of(queue.compact(), |told| Said::Number(told.copies()))
            }),
            3 => pen.note(Call::Sync, || Said::of(queue.sync(), |()| Said::Done)),
            4 if world.settings.purges => {
                pen.note(Call::Purge, || Said::of(queue.purge(), Said::Number))
            }
            5 => {
                pen.note(Call::Redrive, || Said::of(queue.redrive(1 + dice.below(3)), Said::Number))
            }
            6 => pen.note(Call::Maintain, || maintain(queue)),
            _ => {
                std::thread::sleep(ms(dice.below(3)));
                true
            }
        };
        if !is_open {
            return;
        }
    }
}

/// Full dead letters are an error that the promise allows.
pub(crate) fn maintain(queue: &Queue) -> Said {
    Said::of(queue.maintain(), |()| Said::Done)
}

/// Takes dead letters, and opens and closes their handle.
pub(crate) fn take_letters(world: &World, pen: &Pen, mut dice: Dice) {
    let mut handle = None;
    for _ in 0..world.calls / 4 {
        std::thread::sleep(ms(dice.below(3)));
        let dead = if let Some(handle) = handle.take() {
            handle
        } else {
            let opened = pen.call(Call::OpenLetters, || match world.queue.dead_letters() {
                Ok(dead) => (Said::Done, Some(dead)),
                Err(error) => (Said::error(&error), None),
            });
            let Some(dead) = opened else { return };
            dead
        };
        if let Some(letter) = pop_letter(pen, &dead) {
            let reply = if dice.one_in(3) { Reply::Ack } else { Reply::Release };
            answer_letter(pen, reply, letter);
        }
        match dice.below(6) {
            0 => {
                pen.note(Call::CloseLetters, || Said::of(dead.close(), |()| Said::Done));
            }
            1 => drop(dead),
            _ => handle = Some(dead),
        }
    }
}

pub(crate) fn pop_letter(pen: &Pen, dead: &Queue) -> Option<Delivery> {
    pen.call(Call::PopLetter, || match dead.pop() {
        Ok(Some(letter)) => (letter_of(&letter), Some(letter)),
        Ok(None) => (Said::Letter(None), None),
        Err(error) => (Said::error(&error), None),
    })
}

pub(crate) fn answer_letter(pen: &Pen, reply: Reply, letter: Delivery) {
    let own = letter.seq().into();
    pen.note(Call::AnswerLetter(reply, own), || {
        let told = if reply == Reply::Ack { letter.ack() } else { letter.release() };
        Said::of(told, |()| Said::Done)
    });
}

fn letter_of(letter: &Delivery) -> Said {
    let Some(death) = letter.dead_letter() else {
        return Said::Wrong("a dead letter without an origin".into());
    };
    match number_of(letter) {
        Ok(id) => Said::Letter(Some(Letter {
            own: letter.seq().into(),
            origin: death.seq().into(),
            id,
            attempts: death.attempts(),
        })),
        Err(wrong) => Said::Wrong(wrong),
    }
}
