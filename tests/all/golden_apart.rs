//! A golden directory with a segment that is lost, and others that are left out.

use crate::golden::{copy, golden, options, text};
use crate::support::reader;
use std::fs;
use std::path::{Path, PathBuf};

/// A backup was copied over a queue that had copied its messages twice since; later a segment
/// was removed. The queue ran after each.
pub(crate) fn apart(into: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    for number in 1..=100 {
        queue.push(text(number).repeat(60)).unwrap();
    }
    queue.close().unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy(dir.path(), backup.path());
    for step in [3, 4] {
        let queue = options().open(dir.path()).unwrap();
        let jobs = queue.pop_batch(40).unwrap();
        let is_left = |seq: u64| seq.is_multiple_of(step) || seq > 60;
        let (left, settled): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| is_left(job.seq().into()));
        queue.ack_batch(settled).unwrap();
        drop(left);
        queue.compact().unwrap();
        queue.push("of a run between").unwrap();
        queue.close().unwrap();
    }
    copy(backup.path(), dir.path());
    let run = || {
        let queue = options().open(dir.path()).unwrap();
        queue.push("after it").unwrap();
        queue.close().unwrap();
    };
    run();
    let payload = text(95).repeat(60);
    let has =
        |path: &PathBuf| reader::place(&fs::read(path).unwrap(), payload.as_bytes()).is_some();
    let paths = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(paths.filter(has).max().unwrap()).unwrap();
    run();
    copy(dir.path(), into);
}

#[test]
fn what_is_apart_is_read_as_ever() {
    let today = tempfile::tempdir().unwrap();
    apart(today.path());
    for directory in [&golden().join("apart"), today.path()] {
        let (checkpoint, ..) = reader::read_checkpoint(directory);
        let apart = checkpoint.apart;
        assert!(apart.lost.len() == 1 && !apart.left_out.is_empty(), "{apart:?}");
        let is_there = |ordinal: &u64| directory.join(format!("{ordinal:016x}.seg")).exists();
        assert!(apart.left_out.iter().all(is_there) && !apart.lost.iter().any(is_there));
        let lists = |ordinal: &u64| checkpoint.segments.iter().any(|one| one.ordinal == *ordinal);
        assert!(apart.lost.iter().all(lists) && !apart.left_out.iter().any(lists));
        let work = tempfile::tempdir().unwrap();
        copy(directory, work.path());
        let queue = options().open(work.path()).unwrap();
        let report = queue.recovery();
        assert!(report.damage().is_empty(), "{report:?}");
        assert_eq!(report.ignored().count(), apart.left_out.len(), "{report:?}");
        let lost = checkpoint.segments.iter().find(|one| apart.lost.contains(&one.ordinal));
        assert!(queue.is_acked(lost.unwrap().first_seq.into()).is_err());
        queue.maintain().unwrap();
        queue.close().unwrap();
        let is_there = |ordinal: &u64| work.path().join(format!("{ordinal:016x}.seg")).exists();
        assert!(apart.left_out.iter().all(is_there));
    }
}
