//! The names in a queue's directory.

/// Carries the operating system's lock.
pub(crate) const LOCK: &str = "LOCK";
/// The hints.
pub(crate) const CHECKPOINT: &str = "CHECKPOINT";
/// A checkpoint on its way.
pub(crate) const CHECKPOINT_TMP: &str = "CHECKPOINT.tmp";
/// Where the dead letters will lie.
pub(crate) const DEAD: &str = "dead";

/// What a name says. Only [`Kind::Segment`] files are looked into: their header decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `LOCK`, `CHECKPOINT`, `dead`.
    Own,
    /// Ends in `.seg`; with the ordinal where the name is one that keepq writes.
    Segment(Option<u64>),
    /// Ends in `.tmp`: half-made, or half-removed.
    Temporary,
    /// Not ours.
    Foreign,
}

/// The name of the segment with this ordinal.
pub(crate) fn segment(ordinal: u64) -> String {
    format!("{ordinal:016x}.seg")
}

/// The name of that segment before it is one, and after it was one.
pub(crate) fn temporary(ordinal: u64) -> String {
    format!("{ordinal:016x}.tmp")
}

/// What a name found in the directory says.
pub(crate) fn kind(name: &str) -> Kind {
    if [LOCK, CHECKPOINT, DEAD].contains(&name) {
        Kind::Own
    } else if let Some(stem) = name.strip_suffix(".seg") {
        let ordinal = u64::from_str_radix(stem, 16).ok();
        Kind::Segment(ordinal.filter(|&ordinal| segment(ordinal) == name))
    } else if name == CHECKPOINT_TMP || is_temporary_segment(name) {
        Kind::Temporary
    } else {
        Kind::Foreign
    }
}

/// Only the names that keepq itself writes are taken for half-made: others are not ours to delete.
fn is_temporary_segment(name: &str) -> bool {
    name.strip_suffix(".tmp")
        .and_then(|stem| u64::from_str_radix(stem, 16).ok())
        .is_some_and(|ordinal| temporary(ordinal) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        assert_eq!(segment(31), "000000000000001f.seg");
        assert_eq!(kind("000000000000001f.seg"), Kind::Segment(Some(31)));
        assert_eq!(kind("1f.seg"), Kind::Segment(None));
        assert_eq!(kind("copy.seg"), Kind::Segment(None));
        assert_eq!(kind("+00000000000001f.seg"), Kind::Segment(None));
        assert_eq!(kind(&temporary(31)), Kind::Temporary);
        assert_eq!(kind("CHECKPOINT.tmp"), Kind::Temporary);
        assert_eq!(kind("notes.tmp"), Kind::Foreign);
        assert_eq!(kind("000000000000001f.seg~"), Kind::Foreign);
        assert_eq!(kind("LOCK"), Kind::Own);
    }
}
