//! What a durable push makes the disk write, by the block device's own counter.
//!
//! On a disk of its own, where that can be made (as in `full_disk`), and on the one that temporary
//! files are on: there it is skipped, with a word, where the counter is not to be had or other
//! programs write all the time.

use crate::support::mount::{Mount, say};
use keepq::Queue;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The most that a push of 64 bytes may write.
const MOST: u64 = 24;

/// Field 7 of the device's `stat` file (Documentation/block/stat.rst of the Linux kernel).
fn kib_written(directory: &Path) -> Option<u64> {
    let device = directory.metadata().ok()?.dev();
    let (major, minor) = (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00);
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors / 2)
}

/// What the disk writes meanwhile, for whomever.
fn kib_meanwhile(directory: &Path, act: impl FnOnce()) -> Option<u64> {
    let before = kib_written(directory)?;
    act();
    Some(kib_written(directory)? - before)
}

/// What one push makes the disk write: the least of some tries, as other programs, and the tests
/// beside this one, write to the same disk. They are tried until one wrote little enough, or until
/// there were five after which nobody else wrote anything.
fn kib_for_a_push(queue: &Queue, directory: &Path) -> Option<u64> {
    const PUSHES: u64 = 40;
    let (mut least, mut undisturbed) = (None, 0);
    for _ in 0..100 {
        let push = || (0..PUSHES).for_each(|_| assert!(queue.push([1; 64].as_slice()).is_ok()));
        let kib = kib_meanwhile(directory, push)? / PUSHES;
        // A disk that counts nothing says nothing.
        if kib > 0 {
            least = Some(least.map_or(kib, |least: u64| least.min(kib)));
        }
        let pause = || std::thread::sleep(Duration::from_millis(30));
        if least.is_some_and(|least| least <= MOST) {
            return least;
        }
        undisturbed += u32::from(kib_meanwhile(directory, pause)? == 0);
        if undisturbed == 5 {
            return least;
        }
    }
    None
}

fn a_durable_push_writes_little(directory: &Path) {
    let queue = Queue::options().background(false).open(directory.join("q")).unwrap();
    // From the first small segment into one of 16 MiB.
    for _ in 0..12 {
        queue.push(vec![7; 2 << 20]).unwrap();
        queue.push(b"settle").unwrap();
        match kib_for_a_push(&queue, directory) {
            Some(kib) => assert!(kib <= MOST, "{kib} KiB for a push of 64 B"),
            None => return say("skipped: what a push writes cannot be told on this disk"),
        }
    }
}

#[test]
fn a_durable_push_writes_a_few_kib_at_any_offset() {
    if let Some(mount) = Mount::new("ext4", 400, "-F", "") {
        a_durable_push_writes_little(&mount.path());
    }
    a_durable_push_writes_little(tempfile::tempdir().unwrap().path());
}
