//! Files that are open because something was mapped, while the background does not close them.

use crate::found_hooks::{Gate, OpenAtEnd, until};
use crate::support::watched::{Call, Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Compaction, Durability, Queue, Seq};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::current;

/// The maps of each file that is open: it is from its first map until it is released without one.
#[derive(Default)]
pub(crate) struct OpenFiles(Mutex<BTreeMap<String, u64>>);

impl OpenFiles {
    /// For a rule that sees each call from the open on. Tells how many files are open then.
    pub(crate) fn see(&self, call: Call<'_>) -> usize {
        let mut files = self.0.lock().unwrap();
        match call.op {
            Op::Map => *files.entry(call.name.to_string()).or_default() += 1,
            Op::Unmap => *files.get_mut(call.name).unwrap() -= 1,
            Op::Release if files.get(call.name) == Some(&0) => _ = files.remove(call.name),
            _ => {}
        }
        files.len()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Looks at messages of eighty segments while no sync comes back; gives how many files were open at
/// most.
fn open_at_most(limit: u64) -> usize {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = || {
        let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
        let options = options.segment_bytes(256 << 10).shrink_after(None).open_segments(limit);
        options.compaction(Compaction::off())
    };
    let queue = options().open("queue").unwrap();
    let seqs: Vec<_> = (0..1500).map(|_| queue.push(vec![7; 16 << 10]).unwrap()).collect();
    queue.close().unwrap();
    let gate = Gate::closed();
    let (here, consumer) = (gate.clone(), current().id());
    let files = Arc::new(OpenFiles::default());
    let seen = Arc::clone(&files);
    storage.rule(move |call| {
        seen.see(call);
        if call.op == Op::Sync && current().id() != consumer {
            here.pass();
        }
        Ok(())
    });
    let queue = options().open("queue").unwrap();
    let _open = OpenAtEnd(gate.clone());
    until("the background is held up", || gate.has_waiting());
    // A segment holds fifteen.
    let look = |seq: &Seq| {
        assert!(queue.get(*seq).unwrap().is_some());
        files.count()
    };
    seqs[100..1300].iter().step_by(15).map(look).max().unwrap()
}

/// The files of maps that went ahead of the limit were closed by the background alone.
#[test]
fn files_are_closed_while_the_background_waits_for_a_disk() {
    for limit in [4, 8, 16, 32] {
        let most = open_at_most(limit);
        // One is to be closed by the next call.
        assert!(most as u64 <= limit + 1, "{most} files at a limit of {limit}");
    }
}
