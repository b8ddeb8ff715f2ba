//! Which process this is.

use super::mmap::ForkMark;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A process. A child that was forked is another one, also where it has the same number: it is the
/// first in a namespace of its own (`pid_namespaces(7)`), as its parent may be in another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProcessId {
    pid: u32,
    /// A number that no process before it has that it was forked from; 0 where nothing tells.
    fork: u64,
}

impl ProcessId {
    /// That of the caller.
    pub(crate) fn current() -> Self {
        static MARK: OnceLock<Option<ForkMark>> = OnceLock::new();
        static LAST: AtomicU64 = AtomicU64::new(0);
        let mark = MARK.get_or_init(ForkMark::new).as_ref();
        let fork = mark.map_or(0, |mark| number(mark.word(), &LAST));
        Self { pid: std::process::id(), fork }
    }
}

/// What `mark` holds, or, if that is 0, as in a new process, the next number, which it holds then.
/// `last`: the last one that was given out, here or in a parent.
fn number(mark: &AtomicU64, last: &AtomicU64) -> u64 {
    // Relaxed: each is about itself.
    let known = mark.load(Ordering::Relaxed);
    if known > 0 {
        return known;
    }
    let next = last.fetch_add(1, Ordering::Relaxed) + 1;
    let marked = mark.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
    // Another thread was faster.
    marked.map_or_else(|known| known, |_| next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_mark_was_wiped_is_another_one() {
        let (mark, last) = (AtomicU64::new(0), AtomicU64::new(0));
        let first = number(&mark, &last);
        assert!(first > 0 && number(&mark, &last) == first);
        mark.store(0, Ordering::Relaxed);
        let child = number(&mark, &last);
        assert!(child > first && number(&mark, &last) == child);
        assert_eq!(ProcessId::current(), ProcessId::current());
    }
}
