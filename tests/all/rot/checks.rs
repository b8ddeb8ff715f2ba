//! What has to be so after each step, and at the end.

use super::{At, Case, Held, ms};
use keepq::Queue;

/// Longer than any time that a slot can hold.
const CENTURY: u64 = 100 * 366 * 86_400_000;

impl Case {
    /// What a look shows, and whether each number is settled.
    pub(super) fn look(&mut self) {
        self.note("look");
        let queue = self.queue();
        let seen: Vec<u64> = queue.iter().flatten().map(|message| message.seq().into()).collect();
        for known in self.messages.iter().filter(|known| !known.is_excused) {
            assert_eq!(seen.contains(&known.seq), known.waits(self.now), "seen: {known:?}");
            if known.at != At::Dying {
                let is_settled = queue.is_acked(known.seq.into()).unwrap();
                assert_eq!(is_settled, known.at == At::Settled, "{known:?}");
            }
        }
    }

    /// No damage is told of a message that has none.
    pub(super) fn check_damage(&self) {
        let queue = self.queue();
        for damage in queue.damage().iter().chain(queue.recovery().damage()) {
            let range = u64::from(damage.first_seq())..=u64::from(damage.last_seq());
            let told = self.count_sound(|known| range.contains(&known.seq));
            assert_eq!(told, 0, "{damage:?}");
        }
    }

    pub(super) fn check(&self) {
        let (queue, now) = (self.queue(), self.now);
        let stats = queue.stats();
        let dying = self.count_sound(|known| known.at == At::Dying);
        self.within("ready", stats.ready(), self.count_sound(|known| known.is_ready(now)));
        self.within("in flight", stats.in_flight(), self.count_sound(|known| known.is_held(now)));
        self.within("delayed", stats.delayed(), self.count_sound(|known| known.is_delayed(now)));
        // The letters of the others are made already.
        self.within("dying", stats.dying(), dying.min(stats.dying()));
        let total = stats.ready() + stats.in_flight() + stats.delayed() + stats.dying();
        let unsettled = self.count_sound(|known| known.is_held(now) || known.waits(now));
        self.within("in all", total, unsettled + dying.min(stats.dying()));
        let ready = queue.len();
        assert_eq!(queue.is_empty(), ready == 0);
    }

    /// Whether a count is right, whatever became of the excused messages.
    pub(super) fn within(&self, what: &str, told: u64, sound: u64) {
        let excused = self.count(|known| known.is_excused);
        assert!((sound..=sound + excused).contains(&told), "{what}: {told}, not {sound}+{excused}");
    }

    /// All that is left is handed out once, in this run, and nothing is in the next.
    pub(super) fn finish(&mut self) {
        for _ in 0..2 {
            self.clock.advance(ms(CENTURY));
            self.now += CENTURY;
            self.pop_all();
            self.tidy(Queue::maintain, "maintain");
            // What was settled may have come again.
            self.pop_all();
            while self.take_letter() {}
            assert_eq!(self.count_sound(|known| known.at != At::Settled), 0, "lost");
            let queue = self.queue();
            let counts = (queue.len(), queue.in_flight(), queue.delayed(), queue.stats().dying());
            assert_eq!((counts, queue.is_empty()), ((0, 0, 0, 0), true));
            self.end_run(false);
        }
    }

    fn pop_all(&mut self) {
        loop {
            while let Some(Held { number, message, delivery }) = self.held.pop() {
                self.answered(message, number, delivery.ack(), At::Settled);
            }
            self.pop();
            if self.held.is_empty() {
                return;
            }
        }
    }
}
