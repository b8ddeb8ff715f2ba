//! Giving back the disk that settled messages hold: what to copy (`plan`), and copying it (`copy_job`).
//!
//! Neither knows locks or who is told of it: the engine decides when, and switches over.

pub(crate) mod copy_job;
pub(crate) mod plan;
