//! What differs between operating systems and file systems.

#![expect(clippy::disallowed_types, reason = "part of the door to the operating system")]

use std::fs::File;
#[cfg(not(unix))]
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

/// Options for files of a directory that is known by its path.
#[cfg(not(unix))]
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
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

/// Keeps a directory from being moved and removed, where handles do that.
#[cfg(not(unix))]
pub(super) fn hold_directory(path: &Path) -> io::Result<Option<File>> {
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt;
        // FILE_FLAG_BACKUP_SEMANTICS opens directories, too; FILE_SHARE_READ | FILE_SHARE_WRITE
        // without FILE_SHARE_DELETE: CreateFileW, in the documentation of the Windows API.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(0x0200_0000).share_mode(3);
        options.open(path).map(Some)
    }
    #[cfg(not(windows))]
    {
        let _ = path;
        Ok(None)
    }
}

/// What tells a file or directory from every other one of this machine, as long as it is there.
pub(super) type FileId = (u64, u64);

/// The identity of a file or directory, by device and inode.
#[cfg(unix)]
pub(super) fn identity(file: &File) -> io::Result<FileId> {
    let stat = rustix::io::retry_on_intr(|| rustix::fs::fstat(file))?;
    Ok(identity_in(&stat))
}

/// The same of what has this name in a directory, which is not followed if it is a link.
#[cfg(unix)]
pub(super) fn identity_at(directory: &File, name: &Path) -> io::Result<FileId> {
    #[cfg(target_os = "linux")]
    match linux::identity_at(directory, name) {
        // Kernels before 4.11 do not know that call.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        found => return found,
    }
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::io::retry_on_intr(|| rustix::fs::statat(directory, name, flags))?;
    Ok(identity_in(&stat))
}

/// The same, where the system has told of it.
#[cfg(unix)]
fn identity_in(stat: &rustix::fs::Stat) -> FileId {
    // Each system has types of its own for them.
    fn widen(number: impl TryInto<u64>) -> u64 {
        number.try_into().unwrap_or(u64::MAX)
    }
    (widen(stat.st_dev), widen(stat.st_ino))
}

/// The standard library does not tell it: a file that is open cannot be replaced there.
#[cfg(not(unix))]
pub(super) const UNKNOWN: FileId = (0, 0);

/// See [`UNKNOWN`].
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "other systems can refuse")]
pub(super) fn identity(_file: &File) -> io::Result<FileId> {
    Ok(UNKNOWN)
}

/// How many names a file or directory has: 0 once it was removed.
#[cfg(unix)]
pub(super) fn links(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink())
}

/// The standard library does not tell it.
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "other systems can refuse")]
pub(super) fn links(_file: &File) -> io::Result<u64> {
    Ok(1)
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    check_file_size(offset.saturating_add(len))?;
    write_within_limit(file, offset, bytes)
}

/// The same where the process's limit of file sizes was asked for.
#[cfg(unix)]
fn write_within_limit(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes pieces side by side, from the start on, by one call where the system takes all of them.
pub(super) fn write_pieces_at(file: &File, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
    match pieces {
        [piece] => write_all_at(file, offset, piece),
        #[cfg(target_os = "linux")]
        pieces => {
            let len = pieces.iter().map(|piece| piece.len()).sum::<usize>();
            let len = u64::try_from(len).unwrap_or(u64::MAX);
            check_file_size(offset.saturating_add(len))?;
            linux::write_slices(file, offset, pieces)
        }
        #[cfg(not(target_os = "linux"))]
        pieces => write_all_at(file, offset, &pieces.concat()),
    }
}

/// Fails if the process may not make files of this size: a write behind that limit, also into a
/// file that is there, is a signal (SIGXFSZ: setrlimit(2)) that ends the process.
#[cfg(unix)]
fn check_file_size(size: u64) -> io::Result<()> {
    use rustix::process::{Resource, getrlimit};
    match getrlimit(Resource::Fsize).current {
        Some(limit) if size > limit => Err(io::ErrorKind::FileTooLarge.into()),
        _ => Ok(()),
    }
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
use write_all_at as write_within_limit;

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    write_pieces(offset, bytes, |bytes, offset| file.seek_write(bytes, offset))
}

/// Writes all of `bytes`, as many at a time as `write` takes of those that it is given, at the
/// offset that it is given. A system that takes none is not asked for ever.
#[cfg(any(windows, test))]
fn write_pieces(
    mut offset: u64,
    mut bytes: &[u8],
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = write(bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += u64::try_from(written).unwrap_or(0);
    }
    Ok(())
}

/// Bytes of zeros that are written by one call where room cannot be taken in another way.
const PIECE: u64 = 4096;

/// Gives a new, empty file `size` zero bytes with all their blocks allocated.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // A file larger than the limit would be a signal.
        check_file_size(size)?;
        linux::prepare(file)?;
        match linux::fallocate(file, size) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                write_zeros(file, 0, size, PIECE)
            }
            result => result,
        }
    }
    #[cfg(not(target_os = "linux"))]
    write_zeros(file, 0, size, PIECE)
}

/// Makes a file longer, from its size to another one. It gets all of its blocks if there is room
/// for them, and else none of those that it lacks.
pub(super) fn extend(file: &File, (from, to): (u64, u64)) -> io::Result<()> {
    // A file larger than the limit would be a signal.
    #[cfg(unix)]
    check_file_size(to)?;
    #[cfg(target_os = "linux")]
    {
        if linux::fallocate(file, to).is_ok() {
            return Ok(());
        }
        // Gives back what it may have got.
        file.set_len(from)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = from;
    file.set_len(to)
}

/// Whether a store into the map of this file, all of whose blocks are there, can never need another
/// block. That is known of some file systems of Linux only: others copy blocks that a snapshot or
/// another file shares, or all. `is_unshared`: the user says that nobody shares any.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unnecessary_wraps, reason = "other systems can refuse")
)]
pub(super) fn rewrites_in_place(file: &File, is_unshared: bool) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        linux::rewrites_in_place(file, is_unshared)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, is_unshared);
        Ok(false)
    }
}

/// Whether a load from the map of this file can never need a block, though some are missing. That
/// is known of some file systems of Linux only: on tmpfs it can, and so on what lies above it.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unnecessary_wraps, reason = "other systems can refuse")
)]
pub(super) fn loads_need_no_block(file: &File) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        linux::loads_need_no_block(file)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(true)
    }
}

/// Whether all blocks of a file are there. A few that are missing are allocated; a file of which
/// many are missing stays as it is.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unnecessary_wraps, reason = "other systems can refuse")
)]
pub(super) fn has_all_blocks(file: &File, size: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        linux::has_all_blocks(file, size)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, size);
        Ok(false)
    }
}

/// The offset of the first byte from this one on that a block holds, or the largest number.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unnecessary_wraps, reason = "other systems can refuse")
)]
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        linux::next_data(file, offset)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(offset)
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

/// Writes zeros, at most `piece` bytes by one call.
pub(super) fn write_zeros(file: &File, start: u64, end: u64, piece: u64) -> io::Result<()> {
    static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
    let step = usize::try_from(piece).unwrap_or(ZEROS.len()).clamp(1, ZEROS.len());
    #[cfg(unix)]
    check_file_size(end)?;
    for offset in (start..end).step_by(step) {
        let len = usize::try_from(end - offset).unwrap_or(step).min(step);
        write_within_limit(file, offset, &ZEROS[..len])?;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{File, FileId, Path, io};
    use rustix::fs::{AtFlags, StatxFlags, makedev, statx};
    use rustix::fs::{FallocateFlags, IFlags, SeekFrom};
    use rustix::fs::{fstatfs, ioctl_ficlone, ioctl_getflags, ioctl_setflags, seek};
    use rustix::io::Errno;
    use std::io::IoSlice;
    use std::os::unix::fs::MetadataExt;

    // Magic numbers: statfs(2).
    const EXT: u32 = 0xEF53;
    const XFS: u32 = 0x5846_5342;
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58F6;
    const BTRFS: u32 = 0x9123_683E;

    /// The unit of `st_blocks`: stat(2).
    const BLOCK: u64 = 512;

    /// Asks for no times. Of a file whose times were asked for, Linux (from 6.13 on: "Multigrain
    /// Timestamps" in its documentation of file systems) notes the time of the next store to it
    /// exactly, and the next sync writes that, too: half as much again as the sync alone takes.
    pub(super) fn identity_at(directory: &File, name: &Path) -> io::Result<FileId> {
        let (flags, mask) = (AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO);
        let found = rustix::io::retry_on_intr(|| statx(directory, name, flags, mask))?;
        Ok((makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
    }

    fn file_system(file: &File) -> io::Result<u32> {
        // The field has 32 or 64 bits, the magic numbers have 32.
        let [a, b, c, d, ..] = fstatfs(file)?.f_type.to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    /// Before the first block is allocated: on btrfs only an empty file can be made to be rewritten
    /// in place.
    pub(super) fn prepare(file: &File) -> io::Result<()> {
        if file_system(file)? == BTRFS {
            let flags = ioctl_getflags(file)?;
            // It is refused where a mount option compresses data, say.
            ioctl_setflags(file, flags | IFlags::NOCOW).ok();
        }
        Ok(())
    }

    pub(super) fn rewrites_in_place(file: &File, is_unshared: bool) -> io::Result<bool> {
        Ok(match file_system(file)? {
            EXT | XFS | TMPFS | RAMFS => is_unshared || !can_share_blocks(file),
            BTRFS => is_unshared && ioctl_getflags(file)?.contains(IFlags::NOCOW),
            // Copy-on-write, layered, remote or unknown file systems: a store may need a new block.
            _ => false,
        })
    }

    pub(super) fn loads_need_no_block(file: &File) -> io::Result<bool> {
        Ok(matches!(file_system(file)?, EXT | XFS | BTRFS))
    }

    /// Whether other files may share blocks with this one (reflinks). To share a file's blocks with
    /// itself changes nothing, and fails in this way only where nothing can be shared:
    /// `ioctl_ficlone(2)`.
    fn can_share_blocks(file: &File) -> bool {
        let refused = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS];
        !matches!(ioctl_ficlone(file, file), Err(error) if refused.contains(&error))
    }

    pub(super) fn has_all_blocks(file: &File, size: u64) -> io::Result<bool> {
        // Blocks that are allocated and were never written count as a hole, too: lseek(2).
        let hole = match seek(file, SeekFrom::Hole(0)) {
            Ok(hole) => hole,
            Err(Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if hole >= size {
            return Ok(true);
        }
        if file.metadata()?.blocks() * BLOCK < size {
            return Ok(false);
        }
        // Some of the blocks may be the file system's own, in the place of a few that are missing.
        Ok(fallocate(file, size).is_ok())
    }

    pub(super) fn next_data(file: &File, offset: u64) -> io::Result<u64> {
        match seek(file, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => Ok(u64::MAX),
            // A file system that does not tell it.
            Err(Errno::INVAL) => Ok(offset),
            data => Ok(data?),
        }
    }

    pub(super) fn write_slices(file: &File, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let (mut offset, mut left) = (offset, &mut slices[..]);
        // Pieces without a byte are passed over, here and below.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, left, offset))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
            offset += u64::try_from(written).unwrap_or(0);
        }
        Ok(())
    }

    pub(super) fn fallocate(file: &File, size: u64) -> io::Result<()> {
        let allocate = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size);
        Ok(rustix::io::retry_on_intr(allocate)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On Windows a write that took nothing was asked again for ever.
    #[test]
    fn pieces_are_written_in_their_places_and_none_is_an_error() {
        let mut written = vec![0; 12];
        let third = |bytes: &[u8], offset: u64| {
            let (at, len) = (usize::try_from(offset).unwrap(), bytes.len().min(3));
            written[at..at + len].copy_from_slice(&bytes[..len]);
            Ok(len)
        };
        write_pieces(2, b"in pieces", third).unwrap();
        assert_eq!(written, b"\0\0in pieces\0");
        let mut room = 5;
        let full = |bytes: &[u8], _| {
            let taken = bytes.len().min(room).min(3);
            room -= taken;
            Ok(taken)
        };
        let error = write_pieces(0, b"in pieces", full).unwrap_err();
        assert_eq!((error.kind(), room), (io::ErrorKind::WriteZero, 0));
        write_pieces(0, b"", |_, _| Ok(0)).unwrap();
        let refused = write_pieces(0, b"x", |_, _| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
