//! The two checks of format 1: CRC-32 for content, `fold` for what is bound to a place.

use super::bytes::{high_u32, u64_at};
use std::sync::LazyLock;

/// Names the pair of algorithms in this file, in every segment header.
pub(crate) const CHECKSUM_ID: u8 = 1;

/// 2^64 divided by the golden ratio, made odd (Knuth, TAOCP volume 3, section 6.4).
const FOLD_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// A hasher that has found out what the processor can do: to clone it costs less than to ask again
/// for each message.
static HASHER: LazyLock<crc32fast::Hasher> = LazyLock::new(crc32fast::Hasher::new);

/// CRC-32 (ISO-HDLC) of `bytes`.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut hasher = HASHER.clone();
    hasher.update(bytes);
    hasher.finalize()
}

/// CRC-32 (ISO-HDLC) of two pieces, one after the other.
pub(crate) fn crc32_of_both(first: &[u8], second: &[u8]) -> u32 {
    if first.is_empty() {
        return crc32(second);
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(first);
    hasher.update(second);
    hasher.finalize()
}

/// One step of the place check. With `state` fixed, different words give different results; with
/// `word` fixed, different states do.
pub(crate) const fn fold(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(FOLD_FACTOR);
    mixed ^ (mixed >> 32)
}

/// Ties a check to one use of one file of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(u64);

impl Key {
    /// From the identity words of a segment header (bytes 32..80).
    pub(crate) fn new(identity: &[u8; 48]) -> Self {
        Self((0..6).fold(0, |state, word| fold(state, u64_at(identity, word * 8))))
    }

    /// The check of `words` at `place`.
    pub(crate) fn check(self, place: u64, words: [u64; 2]) -> u32 {
        high_u32(fold(fold(fold(self.0, place), words[0]), words[1]))
    }

    /// The check of three words at `place`.
    pub(crate) const fn check3(self, place: u64, words: [u64; 3]) -> u32 {
        high_u32(fold(fold(fold(fold(self.0, place), words[0]), words[1]), words[2]))
    }

    /// The 16-bit check of a slot word, in its upper 16 bits.
    pub(crate) const fn slot_check(self, index: u64, word: u64) -> u64 {
        fold(fold(self.0, index), word) & 0xFFFF_0000_0000_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "CRC-32/ISO-HDLC check value");
        assert_eq!(crc32_of_both(b"1234", b"56789"), 0xCBF4_3926);
        assert_eq!(crc32_of_both(b"", b"123456789"), 0xCBF4_3926);
        assert_eq!(fold(0, 0), 0);
        assert_eq!(fold(0, 1), FOLD_FACTOR ^ (FOLD_FACTOR >> 32));
    }

    #[test]
    fn a_flipped_bit_changes_every_check() {
        let key = Key::new(&[7; 48]);
        let words = [1, 2, 3];
        let check = key.check3(4096, words);
        for bit in 0..192 {
            let mut other = words;
            other[bit / 64] ^= 1 << (bit % 64);
            assert_ne!(key.check3(4096, other), check, "bit {bit}");
        }
        assert_ne!(key.check3(4104, words), check, "another place");
        assert_ne!(Key::new(&[8; 48]).check3(4096, words), check, "another key");
    }
}
