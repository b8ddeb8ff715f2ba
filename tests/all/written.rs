//! What a durable push makes the disk write, by the block device's own counter.
//!
//! Skips, and says so, where the counter is not to be had or other programs write meanwhile.

use keepq::Queue;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Field 7 of the device's `stat` file (Documentation/block/stat.rst of the Linux kernel).
fn kib_written(directory: &Path) -> Option<u64> {
    let device = directory.metadata().ok()?.dev();
    let (major, minor) = (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00);
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors / 2)
}

#[test]
fn a_durable_push_writes_a_few_kib_at_any_offset() {
    const PUSHES: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::options().background(false).open(dir.path()).unwrap();
    let mut worst = 0;
    // From the first small segment into one of 16 MiB.
    for _ in 0..12 {
        queue.push(vec![7; 2 << 20]).unwrap();
        queue.push(b"settle").unwrap();
        // The least of some tries: other programs write to the same disk.
        let per_push = (0..5).filter_map(|_| {
            let before = kib_written(dir.path())?;
            (0..PUSHES).for_each(|_| assert!(queue.push([1; 64].as_slice()).is_ok()));
            Some((kib_written(dir.path())? - before) / PUSHES)
        });
        let Some(least) = per_push.min().filter(|&least| least > 0) else {
            let said = b"skipped: the disk has no counter of what is written\n";
            std::io::stderr().write_all(said).unwrap();
            return;
        };
        worst = worst.max(least);
    }
    assert!(worst <= 24, "{worst} KiB for a push of 64 B");
}
