//! Futures made of the wait lists as they are: wakers suffice, so an async API needs no second way
//! of waiting. Tests only.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use super::wait::{Look, Registration};
use super::{Engine, Need, Promise, Setting, Share, Space, Taken};
use crate::error::{Error, Result};
use crate::io::memory::MemoryStorage;
use crate::log::draft::Draft;
use crate::options::{Durability, Options};
use crate::random;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// The next message, as a future. Dropping it takes no message, and no wake-up from others.
struct NextMessage<'e> {
    engine: &'e Engine,
    registration: Option<Registration<'e>>,
}

impl<'e> NextMessage<'e> {
    fn of(engine: &'e Engine) -> Self {
        Self { engine, registration: None }
    }
}

impl Future for NextMessage<'_> {
    type Output = Result<Taken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // What this one was woken for, it looks for now.
        if let Some(registration) = self.registration.take() {
            registration.end();
        }
        let registration =
            self.engine.context().waiters.consumers.register(0, context.waker().clone());
        self.engine.consumers().registered();
        match self.engine.consumers().look_for_message(None) {
            Look::Found(found) => {
                registration.end();
                self.engine.consumers().pass_on();
                Poll::Ready(found.map(|taken| taken.unwrap()))
            }
            Look::NotYet | Look::NotBefore(_) => {
                self.registration = Some(registration);
                Poll::Pending
            }
        }
    }
}

/// Whether a message is settled, as a future.
struct WhenSettled<'e> {
    engine: &'e Engine,
    seq: u64,
    registration: Option<Registration<'e>>,
}

impl Future for WhenSettled<'_> {
    type Output = Result<bool>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(registration) = self.registration.take() {
            registration.end();
        }
        let registration =
            self.engine.context().waiters.settled.register(self.seq, context.waker().clone());
        match self.engine.inspect().is_settled(self.seq) {
            Ok(false) => {
                self.registration = Some(registration);
                Poll::Pending
            }
            found => {
                registration.end();
                Poll::Ready(found)
            }
        }
    }
}

/// Counts wake-ups and unparks its thread.
struct Counter {
    woken: AtomicU64,
    thread: Thread,
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter { woken: AtomicU64::new(0), thread: thread::current() });
    (Arc::clone(&counter), Waker::from(counter))
}

/// Runs futures to their ends, on this thread, each polled only after it was woken.
fn run_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let pin = |future| (Box::pin(future), counter(), u64::MAX);
    let mut running: VecDeque<_> = futures.into_iter().map(pin).collect();
    let mut results = Vec::new();
    while let Some((mut future, (counter, waker), seen)) = running.pop_front() {
        let woken = counter.woken.load(Ordering::SeqCst);
        if woken == seen {
            if running.iter().all(|(_, (c, _), seen)| c.woken.load(Ordering::SeqCst) == *seen) {
                thread::park();
            }
            running.push_back((future, (counter, waker), seen));
            continue;
        }
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => results.push(result),
            Poll::Pending => running.push_back((future, (counter, waker), woken)),
        }
    }
    results
}

pub(super) fn engine() -> Arc<Engine> {
    let options = Options::default().durability(Durability::Os).background(false);
    let setting = Setting {
        worker: Arc::default(),
        space: Share::of_queue(Arc::new(Space::new(None)), 0, 0),
        is_for_dead_letters: false,
    };
    Engine::open(options, Arc::new(MemoryStorage::new()), setting).unwrap()
}

pub(super) fn push(engine: &Engine, payload: &[u8]) -> u64 {
    let drafts = [Draft::new(Vec::new(), payload.into()).unwrap()];
    let placed = engine.producers().append(&drafts, Need::of(&drafts), Promise::PLACED);
    placed.unwrap().first_seq()
}

pub(super) fn ack(engine: &Engine, taken: &Taken) {
    engine.consumers().answer(&[taken.key], &super::Answer::Ack, || ()).unwrap();
}

#[test]
fn many_futures_on_one_thread_share_what_another_pushes() {
    const MESSAGES: u64 = 2000;
    let engine = engine();
    let take = |_| async {
        let mut taken = Vec::new();
        loop {
            let message = NextMessage::of(&engine).await.unwrap();
            ack(&engine, &message);
            if message.body.is_empty() {
                return taken;
            }
            taken.push(message.key.ticket.seq());
        }
    };
    let mut all = thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                push(&engine, &random::bytes::<8>().unwrap());
                if n.is_multiple_of(64) {
                    thread::yield_now();
                }
            }
            (0..8).for_each(|_| assert!(push(&engine, b"") > 0));
        });
        run_all((0..8).map(take)).concat()
    });
    all.sort_unstable();
    assert_eq!(all, (1..=MESSAGES).collect::<Vec<_>>());
    assert!(!engine.context().waiters.consumers.has_waiters());
}

#[test]
fn a_future_that_is_dropped_after_it_was_woken_wakes_another() {
    let engine = engine();
    let ((first, first_waker), (second, second_waker)) = (counter(), counter());
    let mut cancelled = Box::pin(NextMessage::of(&engine));
    let mut waiting = Box::pin(NextMessage::of(&engine));
    assert!(cancelled.as_mut().poll(&mut Context::from_waker(&first_waker)).is_pending());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&second_waker)).is_pending());
    let seq = push(&engine, b"for the one that is still there");
    let woken = || (first.woken.load(Ordering::SeqCst), second.woken.load(Ordering::SeqCst));
    assert_eq!(woken(), (1, 0));
    drop(cancelled);
    assert_eq!(woken(), (1, 1));
    let Poll::Ready(Ok(taken)) = waiting.as_mut().poll(&mut Context::from_waker(&second_waker))
    else {
        panic!("the message is there");
    };
    assert_eq!(taken.key.ticket.seq(), seq);
}

#[test]
fn futures_hear_of_acks_and_of_the_close() {
    let engine = engine();
    let (one, two) = (push(&engine, b"one"), push(&engine, b"two"));
    let settled = |seq| WhenSettled { engine: &engine, seq, registration: None };
    let when_waited_for = |act: fn(&Engine)| {
        let engine = &engine;
        move || {
            while !engine.context().waiters.settled.has_waiters() {
                thread::yield_now();
            }
            act(engine);
        }
    };
    let acked = thread::scope(|scope| {
        scope.spawn(when_waited_for(|engine| {
            ack(engine, &engine.consumers().pop(|taken| taken, || {}).unwrap().unwrap());
        }));
        run_all([settled(one), settled(one)])
    });
    assert!(matches!(acked[..], [Ok(true), Ok(true)]), "{acked:?}");
    let closed = thread::scope(|scope| {
        scope.spawn(when_waited_for(|engine| engine.close(|| Ok(())).unwrap()));
        run_all([settled(two)])
    });
    assert!(matches!(closed[..], [Err(Error::Closed)]), "{closed:?}");
    assert!(matches!(run_all([NextMessage::of(&engine)])[..], [Err(Error::Closed)]));
}
