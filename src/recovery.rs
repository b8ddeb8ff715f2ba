//! What a directory holds: [`Found`] -> [`Reconciled`] -> [`Log`].
//!
//! `Found` is what was read and may contradict itself; `Reconciled` is what counts; only a `Log`
//! can be appended to. Nothing here writes, so open can be killed at any point and repeated, and
//! finds the same again. Knows every rule of the section "Reading a queue" of format.md. Refuses to
//! guess: what it drops, skips or ignores is in the report; newer, damaged and unreadable are three
//! things, so an I/O error ends the open and is never taken for damage or for nothing.

#![warn(clippy::indexing_slicing)]

mod compacted;
mod damaged;
mod epoch;
mod found;
mod leftover;
mod lost_numbers;
mod order;
mod part;
mod reconciled;
mod segment_file;
mod set_aside;
mod unusable;

pub(crate) use compacted::Replaced;
pub(crate) use found::Found;
pub(crate) use leftover::{Kept, Leftover};
pub(crate) use part::Part;
pub(crate) use reconciled::{Log, Reconciled};
