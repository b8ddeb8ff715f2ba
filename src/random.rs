//! Random bytes of the operating system.

use crate::error::{Error, Result};

/// Bytes that no other queue has.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    #[cfg(test)]
    if tests::fill(&mut bytes) {
        return Ok(bytes);
    }
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            let told = error.raw_os_error().map(std::io::Error::from_raw_os_error);
            let error = told.unwrap_or_else(|| std::io::Error::other(error.to_string()));
            Err(Error::io("read random bytes", "".as_ref(), 0, error))
        }
    }
}

/// For tests that do the same twice.
#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// The next byte, and those behind it count up from there.
        static NEXT: Cell<Option<u8>> = const { Cell::new(None) };
    }

    /// From here on this thread gets bytes that follow from this one.
    pub(crate) fn count_from(byte: u8) {
        NEXT.set(Some(byte));
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        let Some(mut next) = NEXT.get() else { return false };
        for byte in bytes {
            *byte = next;
            next = next.wrapping_mul(5).wrapping_add(1);
        }
        NEXT.set(Some(next));
        true
    }
}
