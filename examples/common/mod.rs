//! What the examples keep beside the queue: a file of lines that is only appended to.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

/// Lines of numbers, each with a checksum. Bytes that a crash left behind the last whole line are
/// cut off. If there are whole lines behind them, that was no crash, and nothing is touched. After
/// a write that failed, nothing more is appended.
pub(crate) struct Lines {
    file: File,
    has_failed: bool,
}

impl Lines {
    /// Opens or creates the file, and passes its lines to `each`, in order. When this returns, all
    /// of them are on the disk, also those that a killed run had written and not synced.
    pub(crate) fn open(path: &Path, mut each: impl FnMut(&[u64])) -> io::Result<Self> {
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let mut whole = 0;
        while let Some(numbers) = lines.next().and_then(decode) {
            each(&numbers);
            whole += encode(&numbers).len() as u64;
        }
        if lines.any(|line| decode(line).is_some()) {
            let reason = format!("{}: damaged at byte {whole}", path.display());
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        file.set_len(whole)?;
        file.sync_all()?;
        // The file's name has to survive a power cut, too.
        #[cfg(unix)]
        File::open(path.parent().unwrap_or(path))?.sync_all()?;
        Ok(Self { file, has_failed: false })
    }

    /// Appends lines with one write.
    pub(crate) fn append<const N: usize>(&mut self, lines: &[[u64; N]]) -> io::Result<()> {
        if self.has_failed {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "an earlier write failed"));
        }
        let bytes: String = lines.iter().map(|line| encode(line)).collect();
        self.has_failed = true;
        self.file.write_all(bytes.as_bytes())?;
        self.has_failed = false;
        Ok(())
    }

    /// Appends lines, and returns once they are on the disk.
    pub(crate) fn append_synced<const N: usize>(&mut self, lines: &[[u64; N]]) -> io::Result<()> {
        self.append(lines)?;
        self.has_failed = true;
        self.file.sync_data()?;
        self.has_failed = false;
        Ok(())
    }
}

fn encode(numbers: &[u64]) -> String {
    let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
    let text = words.join(" ");
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

fn decode(line: &[u8]) -> Option<Vec<u64>> {
    let line = str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (text, check) = line.rsplit_once(' ')?;
    if u32::from_str_radix(check, 16).ok()? != crc32fast::hash(text.as_bytes()) {
        return None;
    }
    text.split(' ').map(|word| word.parse().ok()).collect()
}
