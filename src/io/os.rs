//! What differs between operating systems and file systems.

#![expect(clippy::disallowed_types, reason = "part of the door to the operating system")]

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Options for files that only their owner may read, and that are not reached through a link.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW.bits();
        options.mode(0o600).custom_flags(i32::try_from(flags).unwrap_or(0));
    }
    options
}

/// Makes a directory that only its owner may enter.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    #[cfg(not(unix))]
    builder.recursive(false);
    builder.create(path)
}

/// Makes the names in a directory durable. Windows has no such call: there the file system's
/// journal keeps names in order.
#[cfg_attr(not(unix), expect(clippy::unnecessary_wraps, reason = "other systems can refuse"))]
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !into.is_empty() {
        let read = file.seek_read(into, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into = &mut into[read..];
        offset += u64::try_from(read).unwrap_or(0);
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let written = file.seek_write(bytes, offset)?;
        bytes = &bytes[written..];
        offset += u64::try_from(written).unwrap_or(0);
    }
    Ok(())
}

/// Gives a new, empty file `size` zero bytes with all their blocks allocated, and says whether a
/// store into its map can then never run out of room. If it can, bytes have to be stored by write.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        let mappable = linux::prepare(file, size)?;
        match linux::fallocate(file, size) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file, size)?,
            result => result?,
        }
        Ok(mappable)
    }
    #[cfg(not(target_os = "linux"))]
    {
        write_zeros(file, size)?;
        is_mappable(file)
    }
}

/// Whether a store into the map of this existing, allocated file can never run out of room. That is
/// known of some file systems of Linux only: APFS copies blocks that a snapshot holds, ReFS all.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unnecessary_wraps, reason = "other systems can refuse")
)]
pub(super) fn is_mappable(file: &File) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        linux::is_mappable(file)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(false)
    }
}

/// Asks for no read-ahead: pages that are read now may be stored to later, and must not be parts of
/// large folios then.
pub(super) fn advise_random(file: &File) {
    #[cfg(target_os = "linux")]
    // Advice that is refused changes nothing but speed.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

fn write_zeros(file: &File, size: u64) -> io::Result<()> {
    const CHUNK: u64 = 4096;
    let zeros = [0; 4096];
    for offset in (0..size).step_by(4096) {
        let len = usize::try_from(CHUNK.min(size - offset)).unwrap_or(0);
        write_all_at(file, offset, &zeros[..len])?;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{File, io};
    use rustix::fs::{FallocateFlags, IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
    use rustix::process::{Resource, getrlimit};

    // Magic numbers: statfs(2).
    const EXT: u32 = 0xEF53;
    const XFS: u32 = 0x5846_5342;
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58F6;
    const BTRFS: u32 = 0x9123_683E;

    fn file_system(file: &File) -> io::Result<u32> {
        // The field has 32 or 64 bits, the magic numbers have 32.
        let [a, b, c, d, ..] = fstatfs(file)?.f_type.to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    /// Before the first block is allocated: a file larger than the limit would be a signal, and on
    /// btrfs only an empty file can be made to be rewritten in place.
    pub(super) fn prepare(file: &File, size: u64) -> io::Result<bool> {
        if getrlimit(Resource::Fsize).current.is_some_and(|limit| size > limit) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if file_system(file)? == BTRFS {
            let flags = ioctl_getflags(file)?;
            // It is refused where a mount option compresses data, say; `is_mappable` will see.
            ioctl_setflags(file, flags | IFlags::NOCOW).ok();
        }
        is_mappable(file)
    }

    pub(super) fn is_mappable(file: &File) -> io::Result<bool> {
        Ok(match file_system(file)? {
            EXT | XFS | TMPFS | RAMFS => true,
            BTRFS => ioctl_getflags(file)?.contains(IFlags::NOCOW),
            // Copy-on-write, layered, remote or unknown file systems: a store may need a new block.
            _ => false,
        })
    }

    pub(super) fn fallocate(file: &File, size: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}
