//! A directory that stays the one that was opened, wherever its path leads later.
//!
//! Promises: a name is always found in that directory, also when a link in the path is switched, or
//! the directory is moved and another one is made in its place. Once it is removed, calls that make
//! or sync names fail. Refuses to interpret names.
//!
//! On Unix all calls are relative to a descriptor. Elsewhere a handle keeps the directory from
//! being moved and removed, and links in the path are resolved once.

#[cfg(not(unix))]
mod by_path;
mod names;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use by_path::PathDirectory as Directory;
#[cfg(unix)]
pub(super) use unix::Directory;

pub(super) use names::{Want, make};
