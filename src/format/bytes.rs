//! Little-endian fields at fixed places of a fixed array.

/// Copies `value` to `at`. The callers' offsets are constants, asserted against the array's size.
pub(crate) fn put<const N: usize>(into: &mut [u8], at: usize, value: [u8; N]) {
    into[at..at + N].copy_from_slice(&value);
}

/// The `N` bytes at `at`. The callers' offsets are constants, asserted against the array's size.
pub(crate) fn take<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&from[at..at + N]);
    value
}

pub(crate) fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(from, at))
}

pub(crate) fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(from, at))
}

pub(crate) fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(from, at))
}

/// The low 32 bits: for words that carry two numbers.
pub(crate) const fn low_u32(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high 32 bits.
pub(crate) const fn high_u32(word: u64) -> u32 {
    low_u32(word >> 32)
}

/// A `usize` as a `u64`: never loses anything on the platforms that Rust's std knows.
pub(crate) fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
