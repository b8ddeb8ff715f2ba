//! Random bytes of the operating system.

use crate::error::{Error, Result};

/// Bytes that no other queue has.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            let told = error.raw_os_error().map(std::io::Error::from_raw_os_error);
            let error = told.unwrap_or_else(|| std::io::Error::other(error.to_string()));
            Err(Error::io("read random bytes", "".as_ref(), 0, error))
        }
    }
}
