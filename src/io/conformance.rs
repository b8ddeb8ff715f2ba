//! What every [`Storage`] must do: the promises of `io/mod.rs`, run over each of them.

use super::disk::DiskStorage;
use super::fault::FaultStorage;
use super::memory::MemoryStorage;
use super::{Access, Storage, StorageFile};
use crate::format::bytes::to_u64;
use crate::format::name::LOCK;
use crate::format::record::HEADER;
use std::io;
use std::sync::Arc;

/// Neither pages nor sectors.
const SIZE: u64 = 12_345;
const LEN: usize = 12_345;

/// Checks all that the pages of `Storage`, `StorageFile` and `Region` promise. `storage`: empty.
pub(super) fn check(storage: &dyn Storage) {
    files_are_made_opened_and_replaced(storage);
    names_change_and_go(storage);
    reads_and_writes_keep_to_the_file(storage);
    all_see_the_same_bytes(storage);
    words_are_little_endian_and_aligned(storage);
    a_record_is_stored_whole(storage);
    pieces_are_written_side_by_side(storage);
    a_region_outlives_file_and_name(storage);
    a_released_file_is_opened_again(storage);
    a_file_is_made_longer_or_stays(storage);
    directories_are_apart(storage);
    the_lock_is_exclusive(storage);
    storage.sync_directory().unwrap();
    storage.sync_parents().unwrap();
}

fn names(storage: &dyn Storage) -> Vec<(String, bool)> {
    let entries = storage.list().unwrap().into_iter();
    let mut names: Vec<_> = entries.map(|entry| (entry.name, entry.is_file)).collect();
    // Not every lock is a file.
    names.retain(|(name, _)| name != LOCK);
    names.sort();
    names
}

fn content(file: &dyn StorageFile) -> Vec<u8> {
    let mut bytes = vec![0xEE; usize::try_from(file.size()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

/// What is open, where a name goes at once. On Windows a removed file may keep its name until it is
/// closed, so there this closes it. keepq relies on such a name nowhere.
fn outlasting_its_name<T>(open: T) -> Option<T> {
    Some(open).filter(|_| cfg!(not(windows)))
}

fn files_are_made_opened_and_replaced(storage: &dyn Storage) {
    assert_eq!(names(storage), []);
    assert_eq!(kind(storage.open("a")), io::ErrorKind::NotFound);
    let made = storage.create("a", SIZE).unwrap();
    assert_eq!((made.size(), content(&*made)), (SIZE, vec![0; LEN]));
    made.write_at(5, b"old").unwrap();
    made.sync().unwrap();
    let opened = storage.open("a").unwrap();
    assert_eq!((opened.size(), &content(&*opened)[4..9]), (SIZE, &b"\0old\0"[..]));
    let open = outlasting_its_name((made, opened));
    let replaced = storage.create("a", 1).unwrap();
    assert_eq!((replaced.size(), content(&*replaced)), (1, vec![0]));
    if let Some((made, _)) = open {
        assert_eq!(&content(&*made)[5..8], b"old", "what was open is the file it was");
    }
    assert_eq!(storage.open("a").unwrap().size(), 1);
    assert_eq!(names(storage), [("a".to_string(), true)]);
    assert_eq!(storage.path("a"), storage.path("").join("a"));
}

fn a_file_is_made_longer_or_stays(storage: &dyn Storage) {
    let file = storage.create("short", SIZE).unwrap();
    file.write_at(SIZE - 3, b"end").unwrap();
    let extended = file.extend(3 * SIZE);
    drop(file);
    let longer = storage.open("short").unwrap();
    let mut bytes = content(&*longer);
    match extended {
        Ok(()) => assert_eq!(bytes.split_off(LEN), vec![0; 2 * LEN]),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
    }
    assert_eq!((bytes.len(), &bytes[LEN - 4..]), (LEN, &b"\0end"[..]));
    longer.map(Access::Commits).unwrap().store(longer.size() - 3, b"new").unwrap();
    assert!(content(&*longer).ends_with(b"new"));
    drop(longer);
    storage.remove("short").unwrap();
}

fn names_change_and_go(storage: &dyn Storage) {
    let b = storage.create("b", SIZE).unwrap();
    b.write_at(0, b"b").unwrap();
    storage.rename("b", "a").unwrap();
    assert_eq!(names(storage), [("a".to_string(), true)]);
    assert_eq!(content(&*storage.open("a").unwrap())[0], b'b');
    b.write_at(1, b"c").unwrap();
    b.sync().unwrap();
    assert_eq!(&content(&*storage.open("a").unwrap())[..2], b"bc", "under its new name");
    assert_eq!(kind(storage.rename("b", "a")), io::ErrorKind::NotFound);
    assert_eq!(content(&*storage.open("a").unwrap())[0], b'b', "what was not replaced stays");
    let b = outlasting_its_name(b);
    storage.remove("a").unwrap();
    storage.remove("a").unwrap();
    assert_eq!(names(storage), []);
    assert_eq!(kind(storage.open("a")), io::ErrorKind::NotFound);
    if let Some(b) = b {
        assert_eq!(&content(&*b)[..2], b"bc", "without a name");
    }
}

fn reads_and_writes_keep_to_the_file(storage: &dyn Storage) {
    let file = storage.create("bounds", SIZE).unwrap();
    let region = file.map(Access::Commits).unwrap();
    file.write_at(SIZE - 3, b"end").unwrap();
    file.write_at(SIZE, b"").unwrap();
    region.store(SIZE, b"").unwrap();
    let before = content(&*file);
    let outside = [(SIZE - 3, 4), (SIZE, 1), (SIZE + 4096, 8), (u64::MAX, 1), (u64::MAX - 1, 4)];
    for (offset, len) in outside {
        let mut bytes = vec![7; len];
        let failures = [
            file.write_at(offset, &bytes),
            region.store(offset, &bytes),
            region.store_word(offset.max(SIZE) & !7, 7),
            region.load_word(offset.max(SIZE) & !7).map(drop),
            file.read_at(offset, &mut bytes),
            region.load(offset, &mut bytes),
            region.load_into(offset, len, &mut bytes),
        ];
        for (call, result) in failures.into_iter().enumerate() {
            assert!(result.is_err(), "call {call} with {len} bytes at {offset}");
        }
        assert_eq!(bytes, vec![7; len], "what failed gave something");
    }
    // Before any memory is taken for it.
    assert!(region.load_into(0, usize::MAX, &mut Vec::new()).is_err());
    file.sync().unwrap();
    let again = storage.open("bounds").unwrap();
    assert_eq!((again.size(), content(&*again) == before), (SIZE, true), "the file changed");
    storage.remove("bounds").unwrap();
}

fn all_see_the_same_bytes(storage: &dyn Storage) {
    for access in [Access::Commits, Access::Streams] {
        let file = storage.create("shared", SIZE).unwrap();
        file.write_at(10, b"written").unwrap();
        let (one, other) = (file.map(access).unwrap(), file.map(Access::Commits).unwrap());
        one.populate();
        let mut loaded = [0; 7];
        one.load(10, &mut loaded).unwrap();
        assert_eq!(&loaded, b"written");
        one.store(SIZE - 6, b"stored").unwrap();
        one.evict(0, SIZE);
        one.evict(0, u64::MAX);
        let mut appended = b"what was ".to_vec();
        other.load_into(SIZE - 6, 6, &mut appended).unwrap();
        assert_eq!(appended, b"what was stored");
        assert_eq!(&content(&*file)[LEN - 6..], b"stored");
        file.write_at(4095, b"across").unwrap();
        let mut loaded = [0; 6];
        other.load(4095, &mut loaded).unwrap();
        assert_eq!(&loaded, b"across");
        file.sync().unwrap();
        let opened = storage.open("shared").unwrap();
        assert_eq!(content(&*opened), content(&*file));
        let region = opened.map(access).unwrap();
        region.store(0, b"by another").unwrap();
        opened.sync().unwrap();
        assert_eq!(&content(&*file)[..10], b"by another");
    }
    storage.remove("shared").unwrap();
}

fn words_are_little_endian_and_aligned(storage: &dyn Storage) {
    let file = storage.create("words", SIZE).unwrap();
    let region = file.map(Access::Commits).unwrap();
    region.store_word(4096, 0x0807_0605_0403_0201).unwrap();
    assert_eq!(&content(&*file)[4096..4105], b"\x01\x02\x03\x04\x05\x06\x07\x08\0");
    file.write_at(8, &[0xFF, 0, 0, 0, 0, 0, 0, 1]).unwrap();
    assert_eq!(region.load_word(8).unwrap(), 0x0100_0000_0000_00FF);
    for offset in [4097, 4100, SIZE - 8] {
        assert!(region.store_word(offset, 1).is_err() && region.load_word(offset).is_err());
    }
    assert_eq!(region.load_word(4096).unwrap(), 0x0807_0605_0403_0201);
    // The last whole words.
    let end = SIZE - SIZE % 8;
    region.store_words(end - 24, &[1, 2, 3]).unwrap();
    let mut words = [9; 4];
    region.load_words(end - 32, &mut words).unwrap();
    assert_eq!((words, content(&*file)[LEN - LEN % 8 - 16]), ([0, 1, 2, 3], 2));
    let many: Vec<u64> = (1..=300).collect();
    let mut loaded = vec![0; 302];
    region.store_words(1000, &many).unwrap();
    region.load_words(992, &mut loaded).unwrap();
    assert_eq!((&loaded[1..301], loaded[0], loaded[301]), (&many[..], 0, 0));
    for offset in [end - 16, end - 28] {
        let refused = region.store_words(offset, &[7; 3]).is_err();
        assert!(refused && region.load_words(offset, &mut [0; 3]).is_err());
    }
    assert_eq!((file.size(), content(&*file).len()), (SIZE, LEN), "no write made it longer");
    storage.remove("words").unwrap();
}

fn a_record_is_stored_whole(storage: &dyn Storage) {
    let file = storage.create("record", SIZE).unwrap();
    let region = file.map(Access::Streams).unwrap();
    let header = [b'h'; HEADER];
    for (body, stored) in [
        ([&b"first "[..], b"second"], &b"first second\0"[..]),
        ([b"", b"one"], b"onest second\0"),
        ([b"two", b""], b"twost second\0"),
        ([b"", b""], b"twost second\0"),
    ] {
        region.store_record(100, &header, body).unwrap();
        assert_eq!(content(&*file)[99..101], *b"\0h");
        assert_eq!(&content(&*file)[123..124 + stored.len()], [b"h", stored].concat());
    }
    let last = SIZE - to_u64(HEADER) - 5;
    region.store_record(last, &header, [b"two", b"-3"]).unwrap();
    assert!(region.store_record(last + 1, &header, [b"two", b"-4"]).is_err());
    assert!(region.store_record(u64::MAX, &header, [b"two", b"-4"]).is_err());
    assert_eq!(&content(&*file)[LEN - 6..], b"htwo-3");
    assert_eq!(content(&*file).len(), LEN, "no write made it longer");
    storage.remove("record").unwrap();
}

fn pieces_are_written_side_by_side(storage: &dyn Storage) {
    let file = storage.create("pieces", SIZE).unwrap();
    let region = file.map(Access::Commits).unwrap();
    region.write(100, &[b"one piece"]).unwrap();
    region.write(200, &[b"", b"three", b"", b" ", b"pieces"]).unwrap();
    region.write(SIZE, &[]).unwrap();
    region.write(SIZE, &[b""]).unwrap();
    let bytes = content(&*file);
    assert_eq!(
        (&bytes[99..110], &bytes[199..213]),
        (&b"\0one piece\0"[..], &b"\0three pieces\0"[..])
    );
    let many = [vec![1; 5000], vec![2; 3], vec![3; 4000]];
    region.write(300, &many.each_ref().map(Vec::as_slice)).unwrap();
    let mut loaded = vec![0; 9003];
    region.load(300, &mut loaded).unwrap();
    assert_eq!(loaded, many.concat());
    let before = content(&*file);
    for offset in [SIZE - 2999, SIZE - 2, SIZE, u64::MAX] {
        assert!(region.write(offset, &[&[7; 2990], &[7; 10]]).is_err(), "at {offset}");
    }
    assert_eq!(content(&*file), before, "what reaches beyond the file changes nothing");
    storage.remove("pieces").unwrap();
}

fn a_region_outlives_file_and_name(storage: &dyn Storage) {
    let file = storage.create("gone", SIZE).unwrap();
    let region = file.map(Access::Commits).unwrap();
    region.store(100, b"before").unwrap();
    storage.remove("gone").unwrap();
    file.sync().unwrap();
    drop(file);
    region.store_word(0, 9).unwrap();
    let region = outlasting_its_name(region);
    // The name is another file's now.
    let other = storage.create("gone", SIZE).unwrap();
    if let Some(region) = region {
        region.store(106, b"behind").unwrap();
        let mut loaded = [0; 12];
        region.load(100, &mut loaded).unwrap();
        assert_eq!((&loaded, region.load_word(0).unwrap()), (b"beforebehind", 9));
    }
    assert_eq!(content(&*other), vec![0; LEN]);
    storage.remove("gone").unwrap();
}

fn a_released_file_is_opened_again(storage: &dyn Storage) {
    drop(storage.create("released", SIZE).unwrap());
    let file = storage.open("released").unwrap();
    file.write_at(0, b"one").unwrap();
    file.sync().unwrap();
    file.release();
    assert_eq!(&content(&*file)[..3], b"one");
    let region = file.map(Access::Streams).unwrap();
    region.store(3, b"two").unwrap();
    // While it is mapped, nothing is closed.
    file.release();
    region.store(6, b"three").unwrap();
    file.sync().unwrap();
    drop(region);
    file.release();
    assert_eq!(&content(&*file)[..11], b"onetwothree");
    file.write_at(0, b"six").unwrap();
    file.sync().unwrap();
    assert_eq!(&content(&*storage.open("released").unwrap())[..6], b"sixtwo");
    storage.remove("released").unwrap();
}

fn directories_are_apart(storage: &dyn Storage) {
    let inner = storage.directory("inner").unwrap();
    assert_eq!((names(storage), names(&*inner)), (vec![("inner".to_string(), false)], vec![]));
    assert_eq!(inner.path("x"), storage.path("inner").join("x"));
    storage.create("x", 1).unwrap();
    inner.create("x", 2).unwrap();
    inner.directory("deeper").unwrap().create("x", 3).unwrap();
    let same = storage.directory("inner").unwrap();
    assert_eq!(same.open("x").unwrap().size(), 2);
    let deeper = [("deeper".to_string(), false), ("x".to_string(), true)];
    assert_eq!(names(&*same), deeper);
    assert_eq!(storage.open("x").unwrap().size(), 1);
    // A name is a directory's or a file's.
    assert!(storage.directory("x").is_err());
    assert!(storage.open("inner").is_err() && storage.create("inner", 1).is_err());
    assert!(storage.remove("inner").is_err() && storage.rename("x", "inner").is_err());
    let all = [("inner".to_string(), false), ("x".to_string(), true)];
    assert_eq!((names(storage), storage.open("x").unwrap().size()), (all.to_vec(), 1));
    let lock = inner.lock().unwrap();
    assert!(storage.lock().unwrap().is_some(), "that of another directory");
    drop(lock);
    inner.sync_directory().unwrap();
    storage.remove("x").unwrap();
}

fn the_lock_is_exclusive(storage: &dyn Storage) {
    let inner = storage.directory("inner").unwrap();
    let same = storage.directory("inner").unwrap();
    let lock = inner.lock().unwrap();
    assert!(lock.is_some() && inner.lock().unwrap().is_none() && same.lock().unwrap().is_none());
    drop(inner);
    assert!(same.lock().unwrap().is_none(), "it is its holder's, not the directory's");
    drop(lock);
    assert!(same.lock().unwrap().is_some());
    assert!(same.lock().unwrap().is_some(), "what was dropped at once is free");
}

/// What there is no room for leaves no file, not even the one that it would have replaced.
pub(super) fn check_without_room(storage: &dyn Storage) {
    storage.create("large", SIZE).unwrap();
    assert!(storage.create("large", 1 << 60).is_err());
    assert_eq!(names(storage), []);
    storage.create("large", SIZE).unwrap();
}

#[test]
fn memory() {
    check(&MemoryStorage::new());
    check_without_room(&MemoryStorage::new());
    check_without_room(&MemoryStorage::with_capacity(2 * SIZE));
}

#[test]
fn faults_that_are_not_planned() {
    check(&FaultStorage::new(Arc::new(MemoryStorage::new())));
    let dir = tempfile::tempdir().unwrap();
    let disk = DiskStorage::existing(dir.path(), false).unwrap();
    check(&FaultStorage::new(Arc::new(disk)));
}

#[test]
fn disk() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    DiskStorage::make(&made).unwrap();
    check(&DiskStorage::existing(&made, false).unwrap());
}
