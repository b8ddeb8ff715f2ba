//! The names in a queue's directory.

use super::address::Ordinal;

/// Carries the operating system's lock.
pub(crate) const LOCK: &str = "LOCK";
/// The hints.
pub(crate) const CHECKPOINT: &str = "CHECKPOINT";
/// A checkpoint on its way.
pub(crate) const CHECKPOINT_TMP: &str = "CHECKPOINT.tmp";
/// The directory of the dead letters.
pub(crate) const DEAD: &str = "dead";

const SEGMENT: &str = ".seg";
const TEMPORARY: &str = ".tmp";

/// What a name says. For a [`Kind::Segment`] file, the header decides what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `LOCK`, `CHECKPOINT`, `dead`.
    Own,
    /// Sixteen hex digits and `.seg`.
    Segment,
    /// `CHECKPOINT.tmp`, or sixteen hex digits and `.tmp`: half-made, or half-removed.
    Temporary,
    /// Not ours.
    Foreign,
}

/// The name of the segment with this ordinal.
pub(crate) fn segment(ordinal: Ordinal) -> String {
    format!("{:016x}{SEGMENT}", ordinal.0)
}

/// The name of its file before it is a segment, and after it was one.
pub(crate) fn temporary(ordinal: Ordinal) -> String {
    format!("{:016x}{TEMPORARY}", ordinal.0)
}

/// The name of a copy of this file, before it takes the file's place.
pub(crate) fn copy_of(name: &str) -> String {
    format!("{}{TEMPORARY}", name.strip_suffix(SEGMENT).unwrap_or(name))
}

/// Returns true if a directory that has this name in it is that of a queue.
pub(crate) fn is_of_a_queue(name: &str) -> bool {
    [LOCK, CHECKPOINT].contains(&name) || is_of_a_used_queue(name)
}

/// Returns true if a directory that has this name in it is that of a queue that was pushed to.
pub(crate) fn is_of_a_used_queue(name: &str) -> bool {
    kind(name) == Kind::Segment
}

/// What a name found in the directory says.
pub(crate) fn kind(name: &str) -> Kind {
    if [LOCK, CHECKPOINT, DEAD].contains(&name) {
        Kind::Own
    } else if name == CHECKPOINT_TMP {
        Kind::Temporary
    } else if ordinal(name).is_none() {
        Kind::Foreign
    } else if name.ends_with(SEGMENT) {
        Kind::Segment
    } else {
        Kind::Temporary
    }
}

/// The ordinal in a name that keepq itself gives to a segment, whole or half-made. Files whose
/// names only look like one are not ours to delete.
pub(crate) fn ordinal(name: &str) -> Option<Ordinal> {
    let stem = name.strip_suffix(SEGMENT).or_else(|| name.strip_suffix(TEMPORARY))?;
    let ordinal = u64::from_str_radix(stem, 16).ok().map(Ordinal)?;
    (name == segment(ordinal) || name == temporary(ordinal)).then_some(ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        let it = Ordinal(31);
        assert_eq!(segment(it), "000000000000001f.seg");
        assert_eq!(kind("000000000000001f.seg"), Kind::Segment);
        for foreign in ["1f.seg", "copy.seg", "my backup.seg", "000000000000001F.seg"] {
            assert_eq!(kind(foreign), Kind::Foreign);
        }
        assert_eq!((ordinal(&segment(it)), ordinal(&temporary(it))), (Some(it), Some(it)));
        assert_eq!((ordinal("1f.seg"), ordinal("+00000000000001f.seg")), (None, None));
        assert_eq!(kind("+00000000000001f.seg"), Kind::Foreign);
        assert_eq!(kind(&temporary(it)), Kind::Temporary);
        assert_eq!(kind("CHECKPOINT.tmp"), Kind::Temporary);
        assert_eq!(kind("notes.tmp"), Kind::Foreign);
        assert_eq!(kind("000000000000001f.seg~"), Kind::Foreign);
        assert_eq!(kind("LOCK"), Kind::Own);
        assert!(is_of_a_queue("LOCK") && is_of_a_queue(&segment(it)) && !is_of_a_queue("1.seg"));
        assert!(is_of_a_used_queue(&segment(it)) && !is_of_a_used_queue("LOCK"));
    }
}
