//! Extensions of a record: tagged entries in its body, before the payload.

use super::bytes::{to_u64, u32_at, u64_at};
use super::limits::TIME_END;
use crate::time::Time;

/// A header that the user gave to the message: length of the name (1 byte), name, value.
const HEADER: u8 = 0x01;
/// Where a dead letter comes from: see [`Origin`].
const ORIGIN: u8 = 0x05;
/// The message is not handed out before this time: milliseconds since 1970 UTC (8 bytes).
const DUE: u8 = 0x81;
/// The message is not handed out from this time on: milliseconds since 1970 UTC (8 bytes).
const EXPIRES: u8 = 0x82;
/// A reader must know tags from this one on.
const MUST_KNOW: u8 = 0x80;
/// Bytes before the first entry, and before the content of each.
pub(crate) const LENGTH: usize = 2;
const ENTRY: usize = 1 + LENGTH;
/// The longest name of a header.
pub(crate) const MAX_NAME: u64 = 0xFF;
/// The largest sum of the entries of a message's headers.
pub(crate) const MAX_ENTRIES: u64 = 64_000;
/// The longest reason that is kept of a dead letter.
pub(crate) const MAX_REASON: usize = 1024;
const ORIGIN_FIXED: usize = 8 + 8 + 4 + 1;
/// The most that the extensions of a message take, keepq's own entries included.
pub(crate) const MAX_EXTENSIONS: u64 = 65_537;
const _: () = assert!(MAX_EXTENSIONS == 0xFFFF + 2 && MAX_ENTRIES == 64_000);
const _: () = assert!(64_000 + 2 * (ENTRY + 8) + ENTRY + ORIGIN_FIXED + MAX_REASON <= 0xFFFF);

/// What keepq itself notes with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Notes<'n> {
    pub(crate) due: Option<Time>,
    pub(crate) expires: Option<Time>,
    pub(crate) origin: Option<Origin<'n>>,
}

impl Notes<'_> {
    fn is_empty(&self) -> bool {
        self.due.is_none() && self.expires.is_none() && self.origin.is_none()
    }
}

/// Where a dead letter comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin<'n> {
    /// Its number in the queue where it died.
    pub(crate) seq: u64,
    /// When it was pushed there.
    pub(crate) pushed_at: Time,
    pub(crate) attempts: u32,
    /// 0 rejected, 1 too many attempts, 2 expired.
    pub(crate) cause: u8,
    pub(crate) reason: &'n str,
}

/// What the body of a record turns out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verified {
    /// What was pushed; the payload starts here.
    Payload(usize),
    /// What was pushed, with an entry that a reader must know and this version does not: a newer
    /// keepq can read it.
    Newer,
    /// Not what was pushed: the checksum is wrong, or the entries contradict their own lengths.
    Damaged,
}

/// Bytes that a header takes among the entries.
pub(crate) fn header_len(name: &str, value: &[u8]) -> u64 {
    to_u64(ENTRY + 1 + name.len() + value.len())
}

/// The extensions of a message with these headers, whose entries keep to [`MAX_NAME`] and
/// [`MAX_ENTRIES`], and these notes; empty if there are none.
pub(crate) fn encode<'h>(
    headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    notes: &Notes<'_>,
) -> Vec<u8> {
    let mut headers = headers.peekable();
    if headers.peek().is_none() && notes.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut entry = |tag: u8, parts: &[&[u8]]| {
        out.resize(out.len().max(LENGTH), 0);
        out.push(tag);
        out.extend(length(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            out.extend_from_slice(part);
        }
    };
    for (name, value) in headers {
        let name_len = u8::try_from(name.len()).expect("the caller keeps to MAX_NAME");
        entry(HEADER, &[&[name_len], name.as_bytes(), value]);
    }
    if let Some(due) = notes.due {
        entry(DUE, &[&due.0.to_le_bytes()]);
    }
    if let Some(expires) = notes.expires {
        entry(EXPIRES, &[&expires.0.to_le_bytes()]);
    }
    if let Some(Origin { seq, pushed_at, attempts, cause, reason }) = notes.origin {
        let most = reason.len().min(MAX_REASON);
        let end = (0..=most).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
        let reason = &reason.as_bytes()[..end];
        let (seq, pushed_at) = (seq.to_le_bytes(), pushed_at.0.to_le_bytes());
        entry(ORIGIN, &[&seq, &pushed_at, &attempts.to_le_bytes(), &[cause], reason]);
    }
    let entries = length(out.len().saturating_sub(LENGTH));
    if let Some(place) = out.first_chunk_mut() {
        *place = entries;
    }
    out
}

/// The extensions of a message that moves to another queue: all entries that it had except those
/// that keepq itself noted (its times and its origin), and these notes. `start`: the part of a
/// verified body before the payload. `None` if they would be too long.
pub(crate) fn carry_over(start: &[u8], notes: &Notes<'_>) -> Option<Vec<u8>> {
    let entries = split(start).map_or(&[][..], |(entries, _)| entries);
    let kept = Entries(entries).filter(|(tag, _)| ![DUE, EXPIRES, ORIGIN].contains(tag));
    let own = encode(std::iter::empty(), notes);
    let mut out = vec![0; LENGTH];
    for (tag, content) in kept {
        out.push(tag);
        out.extend(length(content.len()));
        out.extend_from_slice(content);
    }
    out.extend_from_slice(own.get(LENGTH..).unwrap_or_default());
    if out.len() == LENGTH {
        return Some(Vec::new());
    }
    let len = u16::try_from(out.len() - LENGTH).ok()?;
    *out.first_chunk_mut()? = len.to_le_bytes();
    Some(out)
}

fn length(bytes: usize) -> [u8; LENGTH] {
    u16::try_from(bytes).expect("the caller keeps to MAX_ENTRIES").to_le_bytes()
}

/// The headers in a body that starts with extensions and passed its check, in the order given.
pub(crate) fn headers(body: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let entries = split(body).map_or(&[][..], |(entries, _)| entries);
    Entries(entries).filter(|(tag, _)| *tag == HEADER).filter_map(|(_, content)| {
        let (&name_len, rest) = content.split_first()?;
        let (name, value) = rest.split_at_checked(name_len.into())?;
        Some((str::from_utf8(name).ok()?, value))
    })
}

/// What keepq noted in a body that starts with extensions and passed its check.
pub(crate) fn notes(body: &[u8]) -> Notes<'_> {
    let entries = split(body).map_or(&[][..], |(entries, _)| entries);
    let mut notes = Notes::default();
    for (tag, content) in Entries(entries) {
        match tag {
            DUE => notes.due = time(content),
            EXPIRES => notes.expires = time(content),
            ORIGIN => notes.origin = origin(content),
            _ => {}
        }
    }
    notes
}

/// A time from the end of times on never comes.
fn time(content: &[u8]) -> Option<Time> {
    content.first_chunk().map(|time| Time(u64::from_le_bytes(*time).min(TIME_END)))
}

fn origin(content: &[u8]) -> Option<Origin<'_>> {
    let (fixed, reason) = content.split_first_chunk::<ORIGIN_FIXED>()?;
    Some(Origin {
        seq: u64_at(fixed, 0),
        pushed_at: Time(u64_at(fixed, 8)),
        attempts: u32_at(fixed, 16),
        cause: fixed[20],
        reason: str::from_utf8(reason).ok()?,
    })
}

/// Bytes at the start of a body that say how long its extensions are, those included. `start`: of
/// the body.
pub(crate) fn start_len(start: [u8; LENGTH]) -> usize {
    LENGTH + usize::from(u16::from_le_bytes(start))
}

/// Whether a body that starts with extensions has an entry that a reader must know and this version
/// does not. `start`: the body up to its payload, which need not be what was pushed.
pub(crate) fn may_be_newer(start: &[u8]) -> bool {
    let (entries, _) = split(start).unwrap_or_default();
    Entries(entries).any(is_unknown)
}

fn is_unknown((tag, _): (u8, &[u8])) -> bool {
    tag >= MUST_KNOW && ![DUE, EXPIRES].contains(&tag)
}

/// What a body that starts with extensions turns out to be; its checksum is right.
pub(crate) fn verify(body: &[u8]) -> Verified {
    let Some((entries, _)) = split(body) else { return Verified::Damaged };
    let mut rest = Entries(entries);
    if rest.any(is_unknown) {
        return Verified::Newer;
    }
    if rest.0.is_empty() { Verified::Payload(LENGTH + entries.len()) } else { Verified::Damaged }
}

/// The entries, and the payload behind them.
fn split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = body.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u16::from_le_bytes(*len).into())
}

/// Tags and contents, up to the first entry that is not whole.
struct Entries<'b>(&'b [u8]);

impl<'b> Iterator for Entries<'b> {
    type Item = (u8, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, low, high], rest) = self.0.split_first_chunk::<ENTRY>()?;
        let (content, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_skipped_or_refused_and_never_overrun() {
        assert_eq!(
            verify(b"\x04\x00\x02\x01\x00Axyz"),
            Verified::Payload(6),
            "unknown, may be skipped"
        );
        assert_eq!(verify(b"\x00\x00xyz"), Verified::Payload(2));
        assert_eq!(verify(b"\x04\x00\x83\x01\x00Axyz"), Verified::Newer, "must be known");
        assert_eq!(verify(b"\xFF\xFF\x01"), Verified::Damaged, "lying length");
        assert_eq!(verify(b"\x04\x00\x01\xFF\xFFAxyz"), Verified::Damaged, "lying entry");
        assert_eq!(verify(b"\x01"), Verified::Damaged);
        let mixed = b"\x0D\x00\x02\x01\x00A\x01\x06\x00\x04kindxrest";
        assert_eq!(verify(mixed), Verified::Payload(15));
        assert_eq!(headers(mixed).collect::<Vec<_>>(), [("kind", &b"x"[..])]);
        assert_eq!(headers(b"\x04\x00\x01\x01\x00\x09").count(), 0, "a name longer than its entry");
        assert_eq!(headers(b"\x05\x00\x01\x02\x00\x01\xFF").count(), 0, "a name that is no text");
    }

    #[test]
    fn notes_come_back_and_a_long_reason_is_cut() {
        let reason = "\u{e9}".repeat(600);
        let origin = Origin { seq: 7, pushed_at: Time(8), attempts: 9, cause: 1, reason: &reason };
        let given =
            Notes { due: Some(Time(1)), expires: Some(Time(TIME_END)), origin: Some(origin) };
        let body = encode([("kind", &b"x"[..])].into_iter(), &given);
        assert_eq!(verify(&body), Verified::Payload(body.len()));
        let told = notes(&body);
        assert_eq!((told.due, told.expires), (given.due, given.expires));
        assert_eq!(time(&[0xFF; 8]), Some(Time(TIME_END)), "it never comes");
        let kept = told.origin.unwrap();
        assert_eq!(Origin { reason: "", ..kept }, Origin { reason: "", ..origin });
        assert_eq!((kept.reason.len(), &reason[..MAX_REASON]), (MAX_REASON, kept.reason));
        assert_eq!(headers(&body).count(), 1);
        assert_eq!(notes(b"\x04\x00\x81\x01\x00Axyz"), Notes::default(), "too short");
        assert_eq!(notes(b""), Notes::default());
    }

    #[test]
    fn all_entries_but_the_notes_go_on_to_another_queue() {
        let origin = Origin { seq: 7, pushed_at: Time(8), attempts: 9, cause: 1, reason: "r" };
        let given = Notes { due: Some(Time(1)), expires: Some(Time(2)), origin: Some(origin) };
        let mut body = encode([("kind", &b"x"[..])].into_iter(), &given);
        // An entry of a later version that may be skipped.
        body.extend(b"\x42\x02\x00ab");
        let len = u16::try_from(body.len() - LENGTH).unwrap();
        body[..2].copy_from_slice(&len.to_le_bytes());
        let other = Origin { seq: 70, reason: "s", ..origin };
        let notes_there = Notes { origin: Some(other), ..Notes::default() };
        let moved = carry_over(&body, &notes_there).unwrap();
        assert_eq!(notes(&moved), notes_there);
        assert_eq!(headers(&moved).collect::<Vec<_>>(), [("kind", &b"x"[..])]);
        assert!(moved.windows(5).any(|bytes| bytes == b"\x42\x02\x00ab"));
        let back = carry_over(&moved, &Notes::default()).unwrap();
        assert_eq!(notes(&back), Notes::default());
        assert!(back.ends_with(b"\x42\x02\x00ab") && headers(&back).count() == 1);
        assert_eq!(carry_over(b"", &Notes::default()), Some(Vec::new()));
        let long = [vec![0xFF, 0xFF, 0x42, 0xFC, 0xFF], vec![7; 0xFFFC]].concat();
        assert_eq!(carry_over(&long, &notes_there), None, "no room for the origin");
    }

    proptest! {
        #[test]
        fn headers_come_back(
            given in prop::collection::vec(
                (".{0,60}", prop::collection::vec(any::<u8>(), 0..99)), 0..9
            ),
            payload: Vec<u8>,
        ) {
            let given: Vec<_> = given.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let mut body = encode(given.iter().copied(), &Notes::default());
            if given.is_empty() {
                prop_assert!(body.is_empty());
                return Ok(());
            }
            let entries: u64 = given.iter().map(|(name, value)| header_len(name, value)).sum();
            prop_assert_eq!(to_u64(body.len()), entries + 2);
            body.extend(&payload);
            prop_assert_eq!(verify(&body), Verified::Payload(body.len() - payload.len()));
            prop_assert_eq!(headers(&body).collect::<Vec<_>>(), given);
        }

        #[test]
        fn garbage_never_panics(body: Vec<u8>) {
            if let Verified::Payload(start) = verify(&body) {
                prop_assert!(start <= body.len());
            }
            prop_assert!(headers(&body).count() <= body.len());
        }
    }
}
