//! What people and programs do to a queue's directory and its files: links are switched,
//! directories are moved, removed and copied, files are linked, cut, lengthened and left there.
//!
//! All of it was met in public reports, and cost messages, or kept a queue from working.

use crate::found_support::soon;
use crate::support::process::again;
use keepq::{CheckpointState, Compaction, Durability, Error, Options, Queue};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

// From format.md.
const PAGE: usize = 4096;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn small() -> Options {
    Queue::options().segment_bytes(65_536).background(false)
}

fn payload(who: &str, number: u32) -> Vec<u8> {
    format!("{who} {number:0>1000}").into_bytes()
}

/// How many of these pushes are confirmed.
fn push(queue: &Queue, who: &str, count: u32) -> usize {
    (0..count).filter(|&number| queue.push(payload(who, number)).is_ok()).count()
}

/// All that is there, by who pushed it.
fn found(queue: &Queue) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for message in queue {
        let who = String::from_utf8(message.unwrap()[..3].to_vec()).unwrap();
        *found.entry(who).or_default() += 1;
    }
    found
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    files.map(read).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let paths = files(directory).into_keys().map(|name| directory.join(name));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

/// Two queues, one after the other, at one path, of which the first goes somewhere else by `switch`
/// while it is open. Nobody touches a file of either, each push is confirmed, each close says `Ok`;
/// and both lost messages: the first one made its files in the directory of the second.
fn two_at_one_path(path: &Path, switch: impl FnOnce(), [first, second]: [&Path; 2]) {
    let old = small().open(path).unwrap();
    let before = push(&old, "old", 10);
    switch();
    let new = small().open(path).unwrap();
    let confirmed = [before + push(&old, "old", 200), push(&new, "new", 200)];
    new.close().unwrap();
    old.close().unwrap();
    for (path, who, confirmed) in [(first, "old", confirmed[0]), (second, "new", confirmed[1])] {
        let queue = small().open(path).unwrap();
        assert!(queue.recovery().is_clean(), "{who}: {:?}", queue.recovery());
        assert_eq!(found(&queue), BTreeMap::from([(who.to_string(), confirmed)]));
    }
}

#[test]
fn a_link_is_switched_under_an_open_queue() {
    let dir = directory();
    let [current, one, two] = ["current", "r1", "r2"].map(|name| dir.path().join(name));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    std::os::unix::fs::symlink("r1", &current).unwrap();
    let switch = || {
        fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink("r2", &current).unwrap();
    };
    two_at_one_path(&current.join("q"), switch, [&one.join("q"), &two.join("q")]);
}

#[test]
fn a_directory_is_moved_and_made_anew_under_an_open_queue() {
    let dir = directory();
    let [here, there] = ["q", "q.bak"].map(|name| dir.path().join(name));
    two_at_one_path(&here, || fs::rename(&here, &there).unwrap(), [&there, &here]);
}

/// The dead letters go along with the queue that they come from.
#[test]
fn dead_letters_are_where_their_queue_is() {
    let dir = directory();
    let [here, there] = ["q", "moved"].map(|name| dir.path().join(name));
    let queue = small().open(&here).unwrap();
    queue.push("bad").unwrap();
    fs::rename(&here, &there).unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    assert_eq!(queue.dead_letters().unwrap().len(), 1);
    queue.close().unwrap();
    assert!(!here.exists());
    assert_eq!(small().open(&there).unwrap().dead_letters().unwrap().len(), 1);
}

/// A file has the name of the directory for dead letters. Nothing was told at open.
#[test]
fn a_file_in_place_of_the_dead_letters_is_told() {
    let dir = directory();
    let dead = dir.path().join("dead");
    fs::write(&dead, "somebody's").unwrap();
    let queue = small().open(dir.path()).unwrap();
    let ignored: Vec<_> = queue.recovery().ignored().collect();
    assert!(matches!(ignored[..], [(path, _)] if path == dead), "{ignored:?}");
    assert!(!queue.recovery().is_clean());
    queue.push("bad").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let refused = queue.maintain().unwrap_err();
    assert!(matches!(&refused, Error::Io { path, .. } if *path == dead), "{refused:?}");
    assert_eq!(queue.stats().dying(), 1);
    assert_eq!(fs::read(&dead).unwrap(), b"somebody's");
    fs::remove_file(&dead).unwrap();
    assert_eq!((queue.dead_letters().unwrap().len(), queue.stats().dying()), (1, 0));
}

/// After `rm -rf`, push, sync and close said `Ok`, and nothing was kept.
#[test]
fn a_directory_is_removed_under_an_open_queue() {
    for (durability, is_running) in [(Durability::Always, true), (Durability::Always, false)]
        .into_iter()
        .chain([(Durability::Os, true), (Durability::Os, false)])
    {
        let dir = directory();
        let path = dir.path().join("q");
        let options = Queue::options().durability(durability).background(is_running);
        let queue = options.open(&path).unwrap();
        push(&queue, "old", 10);
        // The background may make a file meanwhile.
        while fs::remove_dir_all(&path).is_err() {}
        let failed = |error: &Error| {
            let is_told = matches!(error, Error::Poisoned { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound);
            assert!(is_told, "{durability:?}: {error:?}");
        };
        if durability == Durability::Always {
            failed(&queue.push("lost").unwrap_err());
        } else {
            // One that syncs nothing looks now and then.
            assert!(soon(|| queue.push("lost").inspect_err(failed).is_err()));
        }
        failed(&queue.push("lost").unwrap_err());
        failed(&queue.sync().unwrap_err());
        assert!(queue.pop().unwrap().is_some(), "what it has can still be taken");
        failed(&queue.close().unwrap_err());
        assert!(!path.exists());
    }
}

/// The same without another push: sync and close are the first to notice.
#[test]
fn a_directory_is_removed_under_a_queue_that_is_idle() {
    for closes in [false, true] {
        let dir = directory();
        let path = dir.path().join("q");
        let queue = Queue::options().background(false).open(&path).unwrap();
        push(&queue, "old", 10);
        queue.sync().unwrap();
        if closes {
            // Only what is in it.
            for name in files(&path).into_keys() {
                fs::remove_file(path.join(name)).unwrap();
            }
            assert!(queue.close().is_err());
        } else {
            fs::remove_dir_all(&path).unwrap();
            assert!(matches!(queue.sync(), Err(Error::Poisoned { .. })));
        }
    }
}

/// Cleaners of temporary directories remove a lock file that is old; then a second open succeeded.
#[test]
fn the_lock_holds_without_its_file() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    assert!(matches!(Queue::open(dir.path()), Err(Error::Locked { .. })));
    queue.close().unwrap();
    Queue::open(dir.path()).unwrap();
}

/// `cp -al`: both directories have the same files, and to open the copy emptied the queue.
#[test]
fn a_copy_by_hard_links_is_a_queue_of_its_own() {
    for original_first in [true, false] {
        let dir = directory();
        let [original, linked] = ["q", "linked"].map(|name| dir.path().join(name));
        let options = || Queue::options().segment_bytes(65_536).background(false);
        let queue = options().open(&original).unwrap();
        push(&queue, "old", 200);
        queue.ack_batch(queue.pop_batch(50).unwrap()).unwrap();
        queue.close().unwrap();
        fs::create_dir(&linked).unwrap();
        for name in files(&original).keys() {
            fs::hard_link(original.join(name), linked.join(name)).unwrap();
        }
        let (one, other) = if original_first { (&original, &linked) } else { (&linked, &original) };
        let before = files(other);
        let queue = options().open(one).unwrap();
        // Both can be open: LOCK is not shared either.
        let beside = options().open(other).unwrap();
        assert_eq!((queue.len(), beside.len()), (150, 150));
        drop(beside);
        queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
        push(&queue, "new", 200);
        queue.compact().unwrap();
        queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
        queue.maintain().unwrap();
        push(&queue, "new", 300);
        queue.close().unwrap();
        for path in segments(other) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let before = before.get(name);
            assert!(before.is_none_or(|before| *before == fs::read(&path).unwrap()), "{name}");
        }
        let queue = options().open(other).unwrap();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        assert_eq!(found(&queue), BTreeMap::from([("old".to_string(), 150)]));
        assert_eq!(
            found(&options().open(one).unwrap()),
            BTreeMap::from([("new".to_string(), 300)])
        );
    }
}

/// A file called CHECKPOINT that never was one was overwritten in place, whatever it was.
#[test]
fn only_a_checkpoint_is_written_to() {
    let dir = directory();
    let precious = dir.path().join("precious");
    fs::write(&precious, [b'p'; 8192]).unwrap();
    let path = dir.path().join("q");
    fs::create_dir(&path).unwrap();
    fs::hard_link(&precious, path.join("CHECKPOINT")).unwrap();
    let queue = small().open(&path).unwrap();
    assert_eq!(queue.recovery().checkpoint(), CheckpointState::Damaged);
    push(&queue, "new", 200);
    queue.maintain().unwrap();
    queue.close().unwrap();
    assert_eq!(fs::read(&precious).unwrap(), [b'p'; 8192]);
    let queue = small().open(&path).unwrap();
    assert_eq!(queue.recovery().checkpoint(), CheckpointState::Used);
    drop(queue);
    // A checkpoint that somebody keeps by another name is not changed either.
    let kept = dir.path().join("kept");
    fs::hard_link(path.join("CHECKPOINT"), &kept).unwrap();
    let before = fs::read(&kept).unwrap();
    let queue = small().open(&path).unwrap();
    push(&queue, "new", 200);
    queue.maintain().unwrap();
    queue.close().unwrap();
    assert_eq!(fs::read(&kept).unwrap(), before);
    assert_eq!(small().open(&path).unwrap().len(), 400);
}

/// `my backup.seg` was read as a segment and later deleted, or its messages came again.
#[test]
fn only_names_of_keepq_are_keepqs() {
    let dir = directory();
    let queue = small().open(dir.path()).unwrap();
    push(&queue, "old", 120);
    queue.close().unwrap();
    let first = fs::read(&segments(dir.path())[0]).unwrap();
    let names =
        ["my backup.seg", "1.seg", "000000000000001F.seg", "notes.tmp", "0000000000000001.seg~"];
    for name in names {
        fs::write(dir.path().join(name), &first).unwrap();
    }
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    for has_checkpoint in [true, false] {
        if !has_checkpoint {
            fs::remove_file(dir.path().join("CHECKPOINT")).unwrap();
        }
        let queue = small().open(dir.path()).unwrap();
        assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
        assert_eq!(
            queue.recovery().ignored().count(),
            names.len() + 1,
            "they are told all the same"
        );
        assert_eq!(found(&queue), BTreeMap::from([("old".to_string(), 120)]));
        let all = queue.pop_batch(usize::MAX).unwrap();
        queue.ack_batch(all).unwrap();
        queue.maintain().unwrap();
        push(&queue, "old", 120);
        queue.close().unwrap();
        for name in names {
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), first, "{name}");
        }
    }
}

/// A file whose name is that of the last segment that there could be made the next segment one that
/// open refuses: its messages were lost.
#[test]
fn a_name_with_a_huge_number_costs_no_message() {
    for name in ["3fffffffffffffff.tmp", "3fffffffffffffff.seg", "ffffffffffffffff.tmp"] {
        let dir = directory();
        push(&small().open(dir.path()).unwrap(), "new", 50);
        fs::write(dir.path().join(name), [7; 3 * PAGE]).unwrap();
        let queue = small().open(dir.path()).unwrap();
        push(&queue, "new", 150);
        queue.close().unwrap();
        let queue = small().open(dir.path()).unwrap();
        assert_eq!(found(&queue), BTreeMap::from([("new".to_string(), 200)]), "{name}");
    }
}

/// One rotten byte in the newer slot of CHECKPOINT reported segments as lost that had been let go
/// of, and messages that were acked became unknown.
#[test]
fn either_slot_of_checkpoint_may_rot() {
    let dir = directory();
    let [path, killed, after] = ["q", "killed", "after"].map(|name| dir.path().join(name));
    let queue = small().compaction(Compaction::off()).open(&path).unwrap();
    push(&queue, "old", 250);
    queue.maintain().unwrap();
    queue.ack_batch(queue.pop_batch(200).unwrap()).unwrap();
    // Lets go of what is settled, after a CHECKPOINT without it.
    queue.maintain().unwrap();
    copy(&path, &killed);
    queue.close().unwrap();
    for image in [&killed, &path] {
        let whole = fs::read(image.join("CHECKPOINT")).unwrap();
        let used: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
        for at in used {
            fs::remove_dir_all(&after).ok();
            copy(image, &after);
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(after.join("CHECKPOINT"), bytes).unwrap();
            let queue = small().open(&after).unwrap();
            assert_eq!(queue.damage(), [], "byte {at}");
            assert!(queue.is_acked(1.into()).unwrap(), "byte {at}");
            assert_eq!(queue.len(), 50, "byte {at}");
        }
    }
}

/// A file that is longer than its header says was lost as a whole; and one that is shorter, too,
/// although the records in front of the cut are whole.
#[test]
fn a_segment_is_read_as_far_as_it_goes() {
    let dir = directory();
    let [path, after] = ["q", "after"].map(|name| dir.path().join(name));
    for is_closed in [true, false] {
        fs::remove_dir_all(&path).ok();
        let queue = small().open(&path).unwrap();
        push(&queue, "old", 200);
        if is_closed {
            queue.close().unwrap();
        } else {
            queue.sync().unwrap();
            std::mem::forget(queue);
        }
        let names = segments(&path);
        for name in [&names[0], &names[1], names.last().unwrap()] {
            let whole = fs::read(name).unwrap();
            let name = name.file_name().unwrap();
            for change in [1, 4096, 100_000_i64, -1, -5000, -20_000, -45_000] {
                fs::remove_dir_all(&after).ok();
                copy(&path, &after);
                let len = whole.len().saturating_add_signed(change as isize);
                let mut bytes = whole.clone();
                bytes.resize(len, 0xAA);
                fs::write(after.join(name), bytes).unwrap();
                let queue = small().open(&after).unwrap();
                let context = format!("{name:?} {change} {is_closed}: {:?}", queue.recovery());
                let told = queue.recovery().ignored().any(|(path, _)| path.ends_with(name));
                assert!(told && !queue.recovery().is_clean(), "{context}");
                let all = queue.pop_batch(usize::MAX).unwrap();
                let lost = 200 - all.len();
                // Of a thousand bytes each. The slots and the last page are no records.
                let cut = usize::try_from(-change.min(0)).unwrap();
                assert!(lost <= cut / 1000 + 2, "{lost} lost: {context}");
                let told: u64 = queue
                    .damage()
                    .iter()
                    .map(|damage| u64::from(damage.last_seq()) - u64::from(damage.first_seq()) + 1)
                    .sum();
                // How many there were behind the cut of a file without a seal, nothing says.
                let is_sealed = is_closed || name != names.last().unwrap().file_name().unwrap();
                assert!(!is_sealed || told >= lost as u64, "{told} of {lost} told: {context}");
                queue.ack_batch(all).unwrap();
                push(&queue, "new", 100);
                queue.close().unwrap();
                let queue = small().open(&after).unwrap();
                assert_eq!(found(&queue), BTreeMap::from([("new".to_string(), 100)]), "{context}");
            }
        }
    }
}

/// Runs a test in a process of its own, which may have this many descriptors.
pub(crate) fn with_few_descriptors(test: &str, limit: u32) {
    let program = again(test);
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\""));
    shell.arg(program.get_program()).args(program.get_args());
    let output = shell.env("KEEPQ_FEW_DESCRIPTORS", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}{errors}");
}

/// All descriptors that are left, until this is dropped.
pub(crate) fn take_all_descriptors() -> Vec<fs::File> {
    let mut all = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        all.push(file);
    }
    all
}

/// For a moment other parts of the program held every descriptor: a file that could not be opened
/// to be synced was taken for a failed sync, and the queue was poisoned for the rest of the run.
#[test]
fn without_descriptors_for_a_moment() {
    if std::env::var("KEEPQ_FEW_DESCRIPTORS").is_err() {
        return with_few_descriptors("outside_files::without_descriptors_for_a_moment", 128);
    }
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    // A result without descriptors is `Ok` or an error of the moment; after it, all works.
    let check = |case: &str, result: keepq::Result<()>, queue: &Queue| {
        if let Err(error) = result {
            assert!(matches!(error, Error::Io { .. }), "{case}: {error:?}");
        }
        queue.push("again").unwrap_or_else(|error| panic!("{case}: {error:?}"));
        queue.sync().unwrap_or_else(|error| panic!("{case}: {error:?}"));
    };

    let queue = small().open(path("new")).unwrap();
    let all = take_all_descriptors();
    let result = queue.push("first").map(drop);
    assert!(result.is_err(), "a file has to be made");
    drop(all);
    check("new", result, &queue);

    // What a run that was killed had answered is not synced.
    let queue = small().open(path("run")).unwrap();
    push(&queue, "old", 200);
    queue.ack_batch(queue.pop_batch(150).unwrap()).unwrap();
    copy(&path("run"), &path("killed"));
    copy(&path("run"), &path("killed too"));
    queue.close().unwrap();
    for (name, syncs) in [("killed", false), ("killed too", true)] {
        let queue = small().open(path(name)).unwrap();
        let all = take_all_descriptors();
        let result = if syncs { queue.sync() } else { queue.push("x").map(drop) };
        assert!(result.is_err(), "{name}: files have to be opened");
        drop(all);
        check(name, result, &queue);
        assert!(queue.len() >= 50, "{name}");
    }

    // The background syncs answers.
    let options = Queue::options().segment_bytes(65_536).open_segments(1);
    let interval = Some(Duration::from_millis(5));
    let queue = options.ack_sync(interval).open(path("run")).unwrap();
    let jobs = queue.pop_batch(40).unwrap();
    let all = take_all_descriptors();
    let result = queue.ack_batch(jobs);
    // Some rounds of it, and more.
    std::thread::sleep(Duration::from_millis(100));
    drop(all);
    check("background", result, &queue);
    queue.close().unwrap();
}
