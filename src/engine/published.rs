//! How far messages are published, and how far consumers may see them.

use super::context::Padded;
use std::sync::atomic::{AtomicU64, Ordering};

/// The newest Seq that is placed, and the first that is kept from consumers.
#[derive(Debug)]
pub(crate) struct Published {
    newest: Padded<AtomicU64>,
    held_back: AtomicU64,
}

impl Published {
    pub(super) fn new(newest: u64) -> Self {
        let newest = Padded(AtomicU64::new(newest));
        Self { newest, held_back: AtomicU64::new(u64::MAX) }
    }

    /// All up to this message are placed.
    #[inline]
    pub(super) fn publish(&self, last_seq: u64) {
        // Release: pairs with the load in `newest`.
        self.newest.store(last_seq, Ordering::Release);
    }

    /// The newest published message.
    #[inline]
    pub(crate) fn newest(&self) -> u64 {
        // Acquire: pairs with the store in `publish`.
        self.newest.load(Ordering::Acquire)
    }

    /// The newest message that consumers may see.
    #[inline]
    pub(crate) fn visible(&self) -> u64 {
        // In this order: a thread that hides a message first holds it back, and then publishes it.
        let newest = self.newest();
        // Acquire: pairs with the store in `hold_back_from`.
        newest.min(self.held_back.load(Ordering::Acquire) - 1)
    }

    /// From this message on, which is at least 1, consumers see none; `u64::MAX`: they see all.
    pub(crate) fn hold_back_from(&self, seq: u64) {
        // Release: pairs with the load in `visible`.
        self.held_back.store(seq, Ordering::Release);
    }

    /// The first message that is held back; `u64::MAX` if none is.
    pub(crate) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;

    /// A dead letter is held back until its message is settled. A consumer that looked what is held
    /// back, and then what is published, saw a letter that came in between. (Miri finds that.)
    #[test]
    fn a_message_that_was_hidden_before_it_was_published_is_not_seen() {
        const MESSAGES: u64 = if cfg!(miri) { 200 } else { 100_000 };
        let (published, settled) = (Published::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for seq in 1..=MESSAGES {
                    published.hold_back_from(seq);
                    published.publish(seq);
                    settled.store(seq, SeqCst);
                    published.hold_back_from(u64::MAX);
                }
            });
            while settled.load(SeqCst) < MESSAGES {
                let visible = published.visible();
                assert!(visible <= settled.load(SeqCst), "message {visible} is hidden");
            }
        });
    }
}
