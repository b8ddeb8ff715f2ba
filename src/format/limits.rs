//! The largest numbers that a file may hold.
//!
//! Checks are no secrets, so a number that passes its check may still be any number. Each is held
//! against these limits where it is decoded, and keepq writes none that is out of them. So a sum of
//! two numbers never overflows, whatever a directory says.

use crate::time::Time;

/// The end of Seqs, ordinals, epochs, spans, and generations of CHECKPOINT: each is below it, and
/// only what says where such numbers end may be equal to it. It is 2^62. A queue that takes a
/// thousand million numbers a second comes there after 146 years; and a sum of two is below 2^63.
pub(crate) const NUMBER_END: u64 = 4_611_686_018_427_387_904;

/// No segment begins with a larger Seq: it has fewer than 2^32 records, and so the Seq of each is
/// below the end.
pub(crate) const FIRST_SEQ_END: u64 = NUMBER_END - (1 << 32);

/// The end of times, in milliseconds since 1970: each is below it. It is 2^48, in the year 10889:
/// behind every date that is written with four digits. A delay and an age fit behind it.
pub(crate) const TIME_END: u64 = 281_474_976_710_656;

const _: () = assert!(NUMBER_END == 1 << 62 && TIME_END == 1 << 48);
const _: () = assert!(Time::LATEST_START.0 + (1 << 40) == TIME_END);
const _: () = assert!(Time::LATEST.0 + 1 == TIME_END);

/// Whether this can be the number of something: 0 is that of nothing.
pub(crate) const fn is_number(number: u64) -> bool {
    0 < number && number < NUMBER_END
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_the_end_are_no_numbers() {
        let told = [0, 1, NUMBER_END - 1, NUMBER_END, u64::MAX].map(is_number);
        assert_eq!(told, [false, true, true, false, false]);
    }
}
