//! The process may not make files larger than so many bytes, and files have holes on a full disk:
//! the system ends a process by a signal for either. keepq says that the disk is full.
//!
//! Each test has a process of its own: it would be ended, and the limit is one of the process.

use crate::found_hooks::is_segment;
use crate::support::Dice;
use crate::support::mount::{Mount, fill, say};
use crate::support::process::is_alone;
use keepq::{Compaction, Delivery, Durability, Error, Queue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Until this is dropped, this process may not write behind that offset of any file.
struct Limit(Rlimit);

impl Limit {
    fn new(bytes: u64) -> Self {
        let before = getrlimit(Resource::Fsize);
        let limit = Rlimit { current: Some(bytes), maximum: before.maximum };
        setrlimit(Resource::Fsize, limit).unwrap();
        Self(before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(Resource::Fsize, self.0).unwrap();
    }
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(2000 + number as usize % 7 * 1500, number as u8);
    payload
}

fn number(payload: &[u8]) -> u64 {
    let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
    assert_eq!(payload, self::payload(number));
    number
}

/// What a message is, by what the queue has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Pushed,
    Settled,
    /// The push or the answer was an error.
    Unknown,
}

/// A queue that is used while the disk is full for it, and what it has said.
struct Used {
    context: String,
    open: Box<dyn Fn() -> keepq::Result<Queue>>,
    told: BTreeMap<u64, Told>,
    next: u64,
    refused: u64,
}

impl Used {
    /// A queue with small segments in this directory, in which there is something of everything.
    fn new(context: String, directory: &Path, durability: Durability) -> (Self, Queue) {
        let directory = directory.to_path_buf();
        let open = move || {
            let compaction = Compaction::default().idle(Duration::ZERO);
            let options = Queue::options().durability(durability).background(false);
            options.segment_bytes(262_144).compaction(compaction).open(&directory)
        };
        let queue = open().unwrap();
        let told = BTreeMap::new();
        let mut used = Self { context, open: Box::new(open), told, next: 0, refused: 0 };
        used.push(&queue, 100);
        used.consume(&queue, 70);
        used.push(&queue, 10);
        assert_eq!(used.refused, 0, "nothing is refused yet");
        (used, queue)
    }

    /// It works, or the disk is full.
    fn check<T>(&mut self, what: &str, result: keepq::Result<T>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(Error::StorageFull { .. }) => {
                self.refused += 1;
                None
            }
            Err(error) => panic!("{}: {what}: {error:?}", self.context),
        }
    }

    fn push(&mut self, queue: &Queue, count: u64) {
        for number in self.next..self.next + count {
            let is_told = self.check("push", queue.push(payload(number))).is_some();
            self.told.insert(number, if is_told { Told::Pushed } else { Told::Unknown });
        }
        self.next += count;
    }

    fn answer(&mut self, job: Delivery) {
        let number = number(&job);
        let (settles, result) = match number % 5 {
            0 => (false, job.nack_after(Duration::from_millis(1))),
            1 => (false, job.release()),
            2 => (true, job.reject("no")),
            _ => (true, job.ack()),
        };
        let is_told = self.check("answer", result).is_some();
        if settles {
            self.told.insert(number, if is_told { Told::Settled } else { Told::Unknown });
        }
    }

    fn consume(&mut self, queue: &Queue, count: usize) {
        let popped = self.check("pop", queue.pop_batch(count));
        popped.into_iter().flatten().for_each(|job| self.answer(job));
        let popped = self.check("pop", queue.pop());
        popped.into_iter().flatten().for_each(|job| self.answer(job));
    }

    fn tend(&mut self, queue: &Queue) {
        self.check("sync", queue.sync());
        self.check("maintain", queue.maintain());
        self.check("compact", queue.compact());
    }

    /// Everything that a queue does, with one more open in between.
    fn use_all(&mut self, queue: Queue, seed: u64) {
        let mut dice = Dice(seed);
        let mut act = |used: &mut Self, queue: &Queue| match dice.below(4) {
            0 | 1 => used.push(queue, 10),
            2 => used.consume(queue, 10),
            _ => used.tend(queue),
        };
        (0..12).for_each(|_| act(self, &queue));
        self.check("close", queue.close());
        let opened = (self.open)();
        if let Some(queue) = self.check("open", opened) {
            (0..12).for_each(|_| act(self, &queue));
            self.check("close", queue.close());
        }
    }

    /// Nothing that was confirmed is lost, and nothing that was settled comes again.
    fn check_all(&self) {
        let queue = (self.open)().unwrap();
        assert_eq!(queue.damage(), [], "{}", self.context);
        let found: Vec<u64> = (&queue).into_iter().map(|job| number(&job.unwrap())).collect();
        for (number, told) in &self.told {
            let times = found.iter().filter(|found| *found == number).count();
            let is_right = match told {
                Told::Pushed => times == 1,
                Told::Settled => times == 0,
                Told::Unknown => times <= 1,
            };
            assert!(is_right, "{}: {number} was {told:?}, found {times} times", self.context);
        }
        // There is room again.
        queue.push("next").unwrap();
        queue.sync().unwrap();
        queue.maintain().unwrap();
        queue.close().unwrap();
    }
}

/// Uses a queue in this directory under many limits.
fn under_limits(parent: &Path, kind: &str) {
    let mut refused = 0;
    // Around the sizes of CHECKPOINT, of the first segment, and of the others.
    for limit in [0, 1, 4096, 8191, 8192, 20_000, 65_535, 65_536, 131_072, 262_143, 262_144] {
        for (at, durability) in [Durability::Os, Durability::Always].into_iter().enumerate() {
            let path = parent.join("queue");
            let context = format!("{kind}, {limit} bytes, {durability:?}");
            let (mut used, queue) = Used::new(context, &path, durability);
            let limited = Limit::new(limit);
            used.use_all(queue, limit * 2 + at as u64);
            drop(limited);
            used.check_all();
            refused += used.refused;
            fs::remove_dir_all(&path).unwrap();
        }
    }
    assert!(refused > 0, "{kind}: no limit was met");
}

/// A push, a recycled file, an ack or CHECKPOINT behind the limit of file sizes ended the process
/// by SIGXFSZ. Stores into maps, which ext4 and tmpfs allow, are not limited; writes, which btrfs
/// with compression needs, are.
#[test]
fn a_limit_of_file_sizes_is_a_full_disk() {
    if !is_alone("outside_limits::a_limit_of_file_sizes_is_a_full_disk") {
        return;
    }
    under_limits(tempfile::tempdir().unwrap().path(), "here");
    if let Some(mount) = Mount::new("btrfs", 128, "-f", ",compress-force=zstd") {
        under_limits(&mount.path(), "btrfs");
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// Whether a segment in this directory takes fewer blocks than it has bytes.
fn have_holes(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut segments = entries.filter(|entry| is_segment(entry.file_name().to_str().unwrap()));
    segments.any(|entry| {
        let file = entry.metadata().unwrap();
        file.blocks() * 512 < file.size()
    })
}

/// `tar -S`, `cp --sparse` and rsync make holes in what they copy. A store into a map of such a
/// file needs a block; where there is none, the process was ended by SIGBUS.
#[test]
fn files_with_holes_on_a_full_disk_are_no_signal() {
    if !is_alone("outside_limits::files_with_holes_on_a_full_disk_are_no_signal") {
        return;
    }
    for (kind, mib, force) in [("ext4", 40, "-F"), ("xfs", 300, "-f")] {
        let Some(mount) = Mount::new(kind, mib, force, "") else { continue };
        for (seed, is_copied) in [true, false].into_iter().enumerate() {
            for durability in [Durability::Os, Durability::Always] {
                let (path, original) = (mount.path().join("queue"), mount.path().join("original"));
                let context = format!("{kind}, {durability:?}, copied {is_copied}");
                let (mut used, queue) = Used::new(context, &path, durability);
                queue.close().unwrap();
                let [here, there] = [&path, &original].map(|path| path.to_str().unwrap());
                if is_copied {
                    fs::rename(&path, &original).unwrap();
                    run("cp", &["-r", "--sparse=always", there, here]);
                } else {
                    let script = format!(
                        "for file in {here}/*.seg; do fallocate --dig-holes $file || exit; done"
                    );
                    run("sh", &["-c", &script]);
                }
                // xfs counts the blocks that it keeps for a file to grow, too.
                assert!(kind == "xfs" || have_holes(&path), "{}", used.context);
                let filler = mount.path().join("filler");
                fill(&filler);
                let opened = (used.open)();
                if let Some(queue) = used.check("open", opened) {
                    used.use_all(queue, seed as u64);
                }
                assert!(used.refused > 0, "{}: the disk was not full", used.context);
                fs::remove_file(filler).unwrap();
                used.check_all();
                fs::remove_dir_all(&path).unwrap();
                fs::remove_dir_all(&original).ok();
            }
        }
    }
}

/// On overlayfs a file is one of the file system below, and a load of a hole there needs a block if
/// that is tmpfs. It was taken for a file system of which nothing is known but that stores are
/// writes, and a pop ended the process.
#[test]
fn files_with_holes_above_a_full_tmpfs_are_no_signal() {
    if !is_alone("outside_limits::files_with_holes_above_a_full_tmpfs_are_no_signal") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [below, above, path, original] =
        ["below", "above", "above/queue", "original"].map(|name| dir.path().join(name));
    let layers = ["lower", "upper", "work"].map(|name| below.join(name));
    fs::create_dir(&below).unwrap();
    fs::create_dir(&above).unwrap();
    let [at, below_at] = [&above, &below].map(|path| path.to_str().unwrap());
    let mount = |args: &[&str]| {
        Command::new("mount").args(args).output().is_ok_and(|done| done.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=16m", "none", below_at]) {
        return say("skipped: no tmpfs can be mounted here");
    }
    for layer in &layers {
        fs::create_dir(layer).unwrap();
    }
    let [lower, upper, work] = layers.each_ref().map(|layer| layer.to_str().unwrap());
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    if mount(&["-t", "overlay", "-o", &layers, "none", at]) {
        let context = "overlay".to_string();
        let (mut used, queue) = Used::new(context, &original, Durability::Os);
        queue.close().unwrap();
        run("cp", &["-r", "--sparse=always", original.to_str().unwrap(), path.to_str().unwrap()]);
        assert!(have_holes(&path));
        used.open = Box::new(move || Queue::options().background(false).open(&path));
        let filler = below.join("filler");
        fill(&filler);
        let opened = (used.open)();
        if let Some(queue) = used.check("open", opened) {
            used.use_all(queue, 1);
        }
        assert!(used.refused > 0, "the disk was not full");
        fs::remove_file(filler).unwrap();
        used.check_all();
        drop(used);
        run("umount", &["-l", at]);
    } else {
        say("skipped: no overlayfs here");
    }
    run("umount", &["-l", below_at]);
}
