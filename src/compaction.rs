//! Giving back the disk space of settled messages: what to copy (`plan`), and copying it
//! (`copy_job`).
//!
//! Neither of the two knows locks: the engine decides when to copy, and puts the copy in the place
//! of its sources.

pub(crate) mod copy_job;
pub(crate) mod plan;
