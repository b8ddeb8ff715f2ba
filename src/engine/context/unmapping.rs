//! Where maps are given up, by whatever thread, and how long who needs one tries to get it.
//!
//! Promises: a map is told as gone once it is; whoever finds no room waits for the maps that others
//! are giving up, each of them for a step at most, then for a moment, and is refused after that.
//! Knows no track and no lock but its own: `engine/signal` takes the maps out.

use crate::format::bytes::to_u64;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Where maps are given up, by whatever thread. Whoever finds no room for a map waits here for
/// those that others are giving up.
#[derive(Debug, Default)]
pub(crate) struct Unmapping {
    gone: AtomicU64,
    turns: Mutex<UnmapTurns>,
    ended: Condvar,
}

/// What a thread has tried that finds no room for a map.
#[derive(Debug)]
pub(crate) struct RoomTries {
    /// How many maps were gone before the last try.
    seen: u64,
    pauses: u32,
    /// How often there was room since the work last got on: others took it.
    in_vain: u32,
}

/// Others may take all room again and again: then it is refused after as many tries. A try that
/// fails may have got on all the same, and have used the room itself: so they are many.
const MOST_TRIES: u32 = 1000;

/// A map that no turn takes, since it is copied from or a segment is sealed through it, is gone
/// after a moment: so a thread that finds no room pauses so often before it gives up, for a
/// millisecond, and then for twice as long each time.
const PAUSES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The threads that may give maps up now, by number.
#[derive(Debug, Default)]
struct UnmapTurns {
    under_way: Vec<u64>,
    next: u64,
}

/// A thread may give maps up. What it takes out is seen as gone, or as under way.
#[derive(Debug)]
struct UnmapTurn<'a> {
    unmapping: &'a Unmapping,
    number: u64,
}

impl RoomTries {
    /// The work got on. There are no more pauses for that.
    #[inline]
    pub(crate) fn note_progress(&mut self) {
        self.in_vain = 0;
    }
}

impl Unmapping {
    /// To be asked before a map is tried.
    #[inline]
    pub(crate) fn tries(&self) -> RoomTries {
        RoomTries { seen: self.gone(), pauses: 0, in_vain: 0 }
    }

    /// The same, for a test.
    #[cfg(test)]
    pub(crate) fn tries_without_pause(&self) -> RoomTries {
        RoomTries { pauses: PAUSES, ..self.tries() }
    }

    /// How many maps are gone.
    #[inline]
    fn gone(&self) -> u64 {
        // Acquire: there is room for as many.
        self.gone.load(Ordering::Acquire)
    }

    /// Gives up the maps that `take` takes out, and waits for nobody. What is being copied from one
    /// of them keeps it for a moment.
    pub(crate) fn give_up<T>(&self, take: impl FnOnce() -> Vec<T>) {
        let turn = self.begin();
        let maps = take();
        let count = to_u64(maps.len());
        drop(maps);
        turn.note_gone(count);
    }

    /// Works with a map that others may give up meanwhile; `None` if they did before. If they do,
    /// it goes here.
    pub(crate) fn with<T, R>(&self, map: &Weak<T>, work: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        let turn = self.begin();
        let map = map.upgrade()?;
        let done = work(&map);
        // It is gone at the end of this line, and is told as gone after that.
        let is_gone = Arc::into_inner(map).is_some();
        turn.note_gone(u64::from(is_gone));
        Some(done)
    }

    /// As `give_up`, for somebody who found no room; waits for others if nothing is gone by that,
    /// and then for a moment. False if it is of no use to try again.
    pub(crate) fn make_room<T>(
        &self,
        tries: &mut RoomTries,
        take: impl FnOnce() -> Vec<T>,
    ) -> bool {
        let before = self.gone();
        self.give_up(take);
        if self.gone() == before {
            self.wait_for_others();
        }
        let gone = self.gone();
        if std::mem::replace(&mut tries.seen, gone) != gone {
            tries.in_vain += 1;
            return tries.in_vain < MOST_TRIES;
        }
        let may_pause = tries.pauses < PAUSES;
        if may_pause {
            thread::sleep(FIRST_PAUSE * (1 << tries.pauses));
            tries.pauses += 1;
        }
        may_pause
    }

    /// Waits until those who may give up maps now have done so: for a step of each at most.
    pub(crate) fn wait_for_others(&self) {
        let mut turns = self.turns.lock();
        let next = turns.next;
        while turns.under_way.iter().any(|&number| number < next) {
            self.ended.wait(&mut turns);
        }
    }

    fn begin(&self) -> UnmapTurn<'_> {
        let mut turns = self.turns.lock();
        let number = turns.next;
        turns.next += 1;
        turns.under_way.push(number);
        UnmapTurn { unmapping: self, number }
    }
}

impl UnmapTurn<'_> {
    fn note_gone(&self, maps: u64) {
        self.unmapping.gone.fetch_add(maps, Ordering::Release);
    }
}

impl Drop for UnmapTurn<'_> {
    fn drop(&mut self) {
        self.unmapping.turns.lock().under_way.retain(|&number| number != self.number);
        self.unmapping.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail")]

    use super::{FIRST_PAUSE, RoomTries, Unmapping};
    use crate::clock;
    use std::iter;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    const A_MOMENT: Duration = Duration::from_millis(50);

    /// Of two threads that found no room, the one that gave a map up took all the room that there
    /// was, and the other one was refused.
    #[test]
    fn room_that_one_made_is_there_for_all() {
        let unmapping = Unmapping::default();
        let (mut mine, mut yours) =
            (unmapping.tries_without_pause(), unmapping.tries_without_pause());
        assert!(unmapping.make_room(&mut mine, || vec![Arc::new(())]));
        assert!(unmapping.make_room(&mut yours, Vec::<Arc<()>>::new));
        assert!(!unmapping.make_room(&mut mine, Vec::<Arc<()>>::new));
        assert!(!unmapping.make_room(&mut yours, Vec::<Arc<()>>::new));
    }

    #[test]
    fn who_never_gets_the_room_is_told() {
        let unmapping = Unmapping::default();
        let mut tries = unmapping.tries();
        let makes_room = || unmapping.make_room(&mut tries, || vec![Arc::new(())]);
        assert_eq!(iter::repeat_with(makes_room).take_while(|&again| again).count(), 999);
        let makes_room = || {
            tries.note_progress();
            unmapping.make_room(&mut tries, || vec![Arc::new(())])
        };
        assert!(iter::repeat_with(makes_room).take(2000).all(|again| again), "it is not in vain");
    }

    /// What is being copied from a map is given up by nobody: it is gone a moment later.
    #[test]
    fn who_finds_nothing_tries_again_after_a_pause() {
        let unmapping = Unmapping::default();
        let mut tries = unmapping.tries();
        let makes_room = || unmapping.make_room(&mut tries, Vec::<Arc<()>>::new);
        let began = clock::now();
        assert_eq!(iter::repeat_with(makes_room).take_while(|&again| again).count(), 3);
        assert!(clock::now() - began >= 7 * FIRST_PAUSE);
    }

    /// A map is told as gone once it is, and not before: who has seen the number finds its room.
    #[test]
    fn a_map_that_is_told_as_gone_is_gone() {
        struct Map<'a>(&'a Unmapping, mpsc::Sender<u64>);

        impl Drop for Map<'_> {
            fn drop(&mut self) {
                self.1.send(self.0.gone()).unwrap();
            }
        }

        let unmapping = Unmapping::default();
        let (tell, told) = mpsc::channel();
        unmapping.give_up(|| vec![Map(&unmapping, tell.clone())]);
        let mut map = Some(Arc::new(Map(&unmapping, tell)));
        let weak = Arc::downgrade(map.as_ref().unwrap());
        unmapping.with(&weak, |_| map = None);
        assert_eq!((told.recv(), told.recv(), unmapping.gone()), (Ok(0), Ok(1), 2));
    }

    #[test]
    fn who_finds_nothing_waits_for_those_that_give_maps_up() {
        let (unmapping, has_worked) = (&Unmapping::default(), &AtomicBool::new(false));
        let map = Arc::new(());
        let weak = Arc::downgrade(&map);
        let (tell_begin, begins) = mpsc::channel();
        thread::scope(|scope| {
            // In here: or else the thread would wait for ever if this one panics.
            let (tell_end, ends) = mpsc::channel::<()>();
            scope.spawn(move || {
                unmapping.with(&weak, |_| {
                    tell_begin.send(()).unwrap();
                    ends.recv().unwrap();
                    has_worked.store(true, Ordering::SeqCst);
                })
            });
            begins.recv().unwrap();
            // The other thread is the last one to have it.
            drop(map);
            let (tell_room, told) = mpsc::channel();
            scope.spawn(move || {
                let mut tries = RoomTries { seen: 0, ..unmapping.tries_without_pause() };
                let has_room = unmapping.make_room(&mut tries, Vec::<Arc<()>>::new);
                tell_room.send((has_room, has_worked.load(Ordering::SeqCst))).unwrap();
            });
            assert!(told.recv_timeout(A_MOMENT).is_err(), "it waits");
            tell_end.send(()).unwrap();
            assert_eq!(told.recv(), Ok((true, true)), "once it is gone");
        });
    }
}
