//! Extensions of a record: tagged entries in its body, before the payload.

use super::bytes::wide;

/// A header that the user gave the message: length of the name (1 byte), name, value.
const HEADER: u8 = 0x01;
/// Tags from here on must be understood.
const MUST_KNOW: u8 = 0x80;
/// Bytes before the first entry, and before the content of each.
pub(crate) const LENGTH: usize = 2;
const ENTRY: usize = 1 + LENGTH;
/// The longest name of a header.
pub(crate) const MAX_NAME: u64 = 0xFF;
/// The largest sum of all entries of a message.
pub(crate) const MAX_ENTRIES: u64 = 0xFFFF;

/// Bytes that a header takes among the entries.
pub(crate) fn header_len(name: &str, value: &[u8]) -> u64 {
    wide(ENTRY + 1 + name.len() + value.len())
}

/// The extensions of a message with these headers, whose entries keep to [`MAX_NAME`] and
/// [`MAX_ENTRIES`]; empty if there are none.
pub(crate) fn encode<'h>(headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> Vec<u8> {
    // Empty, and so without an allocation, for a message that has none.
    let mut out = Vec::new();
    for (name, value) in headers {
        out.resize(out.len().max(LENGTH), 0);
        let name_len = u8::try_from(name.len()).expect("the caller keeps to MAX_NAME");
        out.push(HEADER);
        out.extend(length(1 + name.len() + value.len()));
        out.push(name_len);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value);
    }
    let entries = length(out.len().saturating_sub(LENGTH));
    if let Some(place) = out.first_chunk_mut() {
        *place = entries;
    }
    out
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

/// Where in a body that starts with extensions the payload starts; `None` if it holds what this
/// version must not ignore.
pub(crate) fn payload_start(body: &[u8]) -> Option<usize> {
    let (entries, _) = split(body)?;
    let mut rest = Entries(entries);
    if rest.any(|(tag, _)| tag >= MUST_KNOW) || !rest.0.is_empty() {
        return None;
    }
    Some(LENGTH + entries.len())
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
        assert_eq!(payload_start(b"\x04\x00\x02\x01\x00Axyz"), Some(6), "unknown, may be skipped");
        assert_eq!(payload_start(b"\x00\x00xyz"), Some(2));
        assert_eq!(payload_start(b"\x04\x00\x81\x01\x00Axyz"), None, "must be known");
        assert_eq!(payload_start(b"\xFF\xFF\x01"), None, "lying length");
        assert_eq!(payload_start(b"\x04\x00\x01\xFF\xFFAxyz"), None, "lying entry");
        assert_eq!(payload_start(b"\x01"), None);
        let mixed = b"\x0D\x00\x02\x01\x00A\x01\x06\x00\x04kindxrest";
        assert_eq!(payload_start(mixed), Some(15));
        assert_eq!(headers(mixed).collect::<Vec<_>>(), [("kind", &b"x"[..])]);
        assert_eq!(headers(b"\x04\x00\x01\x01\x00\x09").count(), 0, "a name longer than its entry");
        assert_eq!(headers(b"\x05\x00\x01\x02\x00\x01\xFF").count(), 0, "a name that is no text");
    }

    proptest! {
        #[test]
        fn headers_come_back(
            given in prop::collection::vec((".{0,60}", prop::collection::vec(any::<u8>(), 0..99)), 0..9),
            payload: Vec<u8>,
        ) {
            let given: Vec<_> = given.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let mut body = encode(given.iter().copied());
            if given.is_empty() {
                prop_assert!(body.is_empty());
                return Ok(());
            }
            let entries: u64 = given.iter().map(|(name, value)| header_len(name, value)).sum();
            prop_assert_eq!(wide(body.len()), entries + 2);
            body.extend(&payload);
            prop_assert_eq!(payload_start(&body), Some(body.len() - payload.len()));
            prop_assert_eq!(headers(&body).collect::<Vec<_>>(), given);
        }

        #[test]
        fn garbage_never_panics(body: Vec<u8>) {
            prop_assert!(payload_start(&body).is_none_or(|start| start <= body.len()));
            prop_assert!(headers(&body).count() <= body.len());
        }
    }
}
