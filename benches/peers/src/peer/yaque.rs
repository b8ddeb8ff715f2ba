//! yaque: one sender and one receiver, each behind a mutex of its own.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use std::path::Path;
use std::sync::Mutex;
use yaque::{Receiver, Sender, TryRecvError};

pub(super) const KINDS: [Kind; 1] = [Kind {
    name: "yaque",
    package: "yaque",
    keeps: Keeps::Kill,
    acks: Acks::InOrder,
    many_processes: true,
    open,
    longest: usize::MAX,
    cannot: &[],
    remarks: "never syncs (queue/sender.rs: flush only); acks in order only; one sender and one \
              receiver; up to 250 acks come again after a kill (save_every_nth); no checksum; \
              lock files stay after a kill, recovery::recover removes them; each receiver has a \
              thread and an inotify instance (watcher.rs), of which a user has 128 by default",
}];

struct Yaque {
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
}

fn open(path: &Path) -> Box<dyn Contender> {
    std::fs::create_dir_all(path).unwrap();
    // A kill leaves lock files behind.
    if path.join("send.lock").exists() || path.join("recv.lock").exists() {
        yaque::recovery::recover(path).unwrap();
    }
    let (sender, receiver) = yaque::channel(path).unwrap();
    Box::new(Yaque { sender: Mutex::new(sender), receiver: Mutex::new(receiver) })
}

impl Contender for Yaque {
    fn push(&self, payload: &[u8]) {
        self.sender.lock().unwrap().try_send(payload).unwrap();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        let sent = self.sender.lock().unwrap().try_send_batch(payloads);
        assert!(sent.is_ok());
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        let mut receiver = self.receiver.lock().unwrap();
        if limit == 1 {
            return match receiver.try_recv() {
                Ok(message) => {
                    answer(&message);
                    message.commit().unwrap();
                    1
                }
                Err(TryRecvError::QueueEmpty) => 0,
                Err(error) => panic!("{error:?}"),
            };
        }
        match receiver.try_recv_batch_up_to(limit) {
            Ok(messages) => {
                for message in messages.iter() {
                    answer(message);
                }
                let count = messages.len();
                messages.commit().unwrap();
                count
            }
            Err(TryRecvError::QueueEmpty) => 0,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn sync(&self) {}

    fn close(self: Box<Self>) {
        self.receiver.lock().unwrap().save().unwrap();
    }
}
