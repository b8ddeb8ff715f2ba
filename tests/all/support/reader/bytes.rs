//! Numbers and checks. From the page: "Fold and key", and the CRC-32 that it names.

/// `len` bytes at `at`, if they are there.
pub(super) fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(at.checked_add(len)?).ok()?;
    bytes.get(usize::try_from(at).ok()?..end)
}

/// The number of `len` bytes at `at`: at most eight, little-endian.
fn number(bytes: &[u8], at: u64, len: u64) -> Option<u64> {
    let bytes = slice(bytes, at, len)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

pub(super) fn u16_at(bytes: &[u8], at: u64) -> Option<u64> {
    number(bytes, at, 2)
}

pub(super) fn u32_at(bytes: &[u8], at: u64) -> Option<u64> {
    number(bytes, at, 4)
}

pub(super) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    number(bytes, at, 8)
}

/// Signed, in two's complement.
pub(super) fn i64_at(bytes: &[u8], at: u64) -> Option<i64> {
    number(bytes, at, 8).map(u64::cast_signed)
}

/// What each byte does to a CRC-32.
const STEPS: [u32; 256] = {
    let mut steps = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
            bit += 1;
        }
        steps[byte] = crc;
        byte += 1;
    }
    steps
};

pub(super) fn crc32(parts: &[&[u8]]) -> u64 {
    let step = |crc: u32, &byte: &u8| (crc >> 8) ^ STEPS[(crc as u8 ^ byte) as usize];
    u64::from(!parts.iter().copied().flatten().fold(u32::MAX, step))
}

pub(super) fn fold(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^ (x >> 32)
}

pub(super) fn fold_all(state: u64, words: &[u64]) -> u64 {
    words.iter().fold(state, |state, &word| fold(state, word))
}
