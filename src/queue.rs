//! The handle of an open queue.

mod pop;
mod push;
mod state;
#[cfg(all(test, feature = "fault-injection"))]
mod ways;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::format::name;
use crate::io::Storage;
use crate::io::disk::DiskStorage;
use crate::open_queue::OpenQueue;
use crate::options::Options;
use crate::report::Compacted;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A persistent queue. It is cheap to clone; every clone is the same queue, and any thread may use
/// it.
///
/// Dropping the last clone closes the queue like [`Queue::close`], but cannot report errors.
///
/// ```
/// use keepq::Queue;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("orders");
/// let queue = Queue::open(&path)?;
/// queue.push(b"pay 42")?; // on the disk when this returns
/// while let Some(job) = queue.pop()? {
///     // work, then
///     job.ack()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Queue {
    handle: Arc<Handle>,
}

/// Closes the queue when the last clone is gone.
struct Handle {
    open: Arc<OpenQueue>,
    /// If this is a queue of dead letters: the queue that they come from, kept open by this handle.
    owner: Option<Queue>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.owner.is_none() {
            // A caller that wants to know the error calls `close`.
            self.open.close().ok();
        }
    }
}

impl Options {
    /// Opens the queue in the directory `path`; creates it if there is none.
    ///
    /// When this returns, no other handle can open the queue, and keepq knows what the directory
    /// holds: see [`Queue::recovery`] for what open found.
    ///
    /// # Errors
    ///
    /// * [`Error::Locked`] if the queue is open already.
    /// * [`Error::IsDeadLetters`] if the directory is that of the dead letters of another queue.
    /// * [`Error::UnsupportedVersion`] if a newer keepq wrote it.
    /// * [`Error::InvalidOption`] for a value out of bounds.
    /// * [`Error::Corrupt`] if no file in the directory says how far the numbers went.
    /// * [`Error::Io`] or [`Error::StorageFull`] if the operating system refuses.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Queue> {
        self.validate()?;
        let (path, may_make) = (path.as_ref(), self.create || self.create_new);
        let storage = match &self.storage {
            Some(storage) => Arc::clone(storage),
            None => disk(path, may_make, self.unshared_blocks)?,
        };
        let open = OpenQueue::open(self, storage)?;
        Ok(Queue { handle: Arc::new(Handle { open, owner: None }) })
    }
}

impl Queue {
    /// Opens the queue in the directory `path` with the default options; creates it if there is
    /// none.
    ///
    /// # Errors
    ///
    /// As [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// Options to open a queue with.
    pub fn options() -> Options {
        Options::default()
    }

    pub(crate) fn open_queue(&self) -> &Arc<OpenQueue> {
        &self.handle.open
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.handle.open.engine()
    }

    /// The queue of this queue's dead letters: messages that were rejected
    /// ([`Delivery::reject`](crate::Delivery::reject)), failed too often
    /// ([`Options::max_attempts`](crate::Options::max_attempts)), or expired
    /// ([`Options::expired`](crate::Options::expired)). They are messages like others, and each
    /// says where it comes from: see [`Delivery::dead_letter`](crate::Delivery::dead_letter).
    /// [`Queue::redrive`] pushes them again.
    ///
    /// The dead letters are a queue of their own in the directory `dead`, with the same background
    /// thread. Each call returns the same queue, until one of its handles is closed; the next call
    /// opens it again. The handle keeps this queue open, and closing this queue closes the dead
    /// letters. Their space counts in [`Options::max_bytes`](crate::Options::max_bytes). The first
    /// call of a run, or the first message that dies, reads all dead letters that earlier runs
    /// left, to find out which of their messages are here as well.
    ///
    /// They have no limit of attempts, and no dead letters of their own.
    /// [`Delivery::reject`](crate::Delivery::reject) of a dead letter drops it for good, and counts
    /// it in [`Stats::dropped`](crate::Stats::dropped) of the dead letters;
    /// [`Delivery::release`](crate::Delivery::release) leaves it there. A program may push messages
    /// of its own: `dead_letter` is `None` for them, and `redrive` takes them as well.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push(b"pay -1")?;
    /// queue.pop()?.expect("one is waiting").reject("a negative amount")?;
    /// let dead = queue.dead_letters()?;
    /// let letter = dead.pop_wait()?; // moved there by the background
    /// assert_eq!(&letter[..], b"pay -1");
    /// let death = letter.dead_letter().expect("all of them have one");
    /// assert_eq!((death.reason(), death.attempts()), ("a negative amount", 1));
    /// letter.ack()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Disabled`] with [`Options::dead_letters`](crate::Options::dead_letters)`(false)`,
    /// and if this is a queue of dead letters itself; [`Error::Closed`]; otherwise as
    /// [`Options::open`](crate::Options::open).
    pub fn dead_letters(&self) -> Result<Self> {
        let open = self.open_queue().dead_letters()?;
        Ok(Self { handle: Arc::new(Handle { open, owner: Some(self.clone()) }) })
    }

    /// Makes durable all pushes and answers before the call, whatever the options say.
    ///
    /// # Errors
    ///
    /// * [`Error::Poisoned`] if a sync failed, now or before.
    /// * [`Error::Closed`].
    /// * [`Error::Io`] if no file descriptor was left to begin a sync: call it again.
    /// * [`Error::Io`] or [`Error::StorageFull`] if the segments of an earlier run cannot be marked
    ///   as complete, or if the wall clock was set and CHECKPOINT cannot tell it.
    pub fn sync(&self) -> Result<()> {
        self.engine().check_open()?;
        let noted = self.engine().reclaim().note_clock();
        self.engine().sync().and(noted)
    }

    /// Does at once what the background thread does, here and in the dead letters: syncs, prepares
    /// the next file, counts messages, ends leases that have run out, moves dying messages to the
    /// dead letters, gives back files without unsettled messages, copies the unsettled messages of
    /// sparse files together, and writes the checkpoint.
    ///
    /// # Errors
    ///
    /// The first error met, any of [`Error::Closed`], [`Error::Poisoned`], [`Error::Io`],
    /// [`Error::StorageFull`], and [`Error::Full`] for dead letters. The next call tries again what
    /// could not be done.
    pub fn maintain(&self) -> Result<()> {
        self.open_queue().maintain()
    }

    /// Gives back at once all the disk space that can be given back, here and, if they are open, in
    /// the dead letters. Then the disk holds little more than the unsettled messages. Files without
    /// unsettled messages go. The unsettled messages of other files are copied into smaller files,
    /// even where the background would not touch those files yet. All other calls go on meanwhile.
    ///
    /// The newest file stays as it is. A copy needs free space for the messages that it keeps,
    /// until the files that it replaces are gone; with little space the copies are smaller, and
    /// without any there are none. See [`Compaction`](crate::Compaction) for which files are worth
    /// copying.
    ///
    /// # Errors
    ///
    /// The first error met, any of [`Error::Closed`], [`Error::Poisoned`], [`Error::Io`],
    /// [`Error::StorageFull`], or [`Error::Corrupt`] for a damaged message that is in flight.
    /// Nothing is lost, what was done stays done, and a file that cannot be read or removed does
    /// not hold up the others.
    pub fn compact(&self) -> Result<Compacted> {
        self.open_queue().compact()
    }

    /// Ends the queue for every clone, after everything is on the disk. Waiting consumers get
    /// [`Error::Closed`]. Once this has returned, even with an error, the directory can be opened
    /// again. From then on [`Queue::len`], [`Queue::in_flight`] and [`Queue::delayed`] are zero.
    ///
    /// This does not wait for deliveries that are out. From here on their answers are
    /// [`Error::Closed`], and their messages come back at the next open with the attempt counted,
    /// or become dead letters if it was their last. So let workers finish first: see *Waiting* in
    /// [`docs::guide`](crate::docs::guide).
    ///
    /// Closing again, by another clone, is `Ok`. Only if the first `close` returned an error, the
    /// later ones return [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::Io`] or [`Error::StorageFull`] if not everything reached the
    /// disk; [`Error::Closed`] if an earlier call has reported that already, and in a forked child,
    /// where it does nothing: the queue is its parent's.
    pub fn close(self) -> Result<()> {
        self.open_queue().close()
    }
}

fn disk(path: &Path, may_make: bool, is_unshared: bool) -> Result<Arc<dyn Storage>> {
    if DiskStorage::is_of_dead_letters(path) {
        let opened = DiskStorage::existing(path, is_unshared);
        let is_open = opened.is_ok_and(|disk| matches!(disk.lock(), Ok(None)));
        let path = path.to_path_buf();
        let lock = path.join(name::LOCK);
        return Err(if is_open {
            Error::Locked { path: lock }
        } else {
            Error::IsDeadLetters { path }
        });
    }
    if may_make {
        let made = DiskStorage::make(path);
        made.map_err(|error| Error::io("create directory", path, 0, error))?;
    }
    match DiskStorage::existing(path, is_unshared) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(error) => Err(Error::io("open directory", path, 0, error)),
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("directory", &self.engine().context().directory())
            .finish_non_exhaustive()
    }
}
