//! The contenders, one file for each crate.

mod commitlog;
mod disk_queue;
mod fjall;
mod keepq;
mod lmdb;
mod okaywal;
mod persistent_queue;
mod queue_file;
mod redb;
mod segment_buffer;
mod sqlite;
mod wal_db;
mod yaque;

pub(crate) use keepq::{ALWAYS_SUBMITTED, INTERVAL, LEASED, OS, unshared as keepq_by_map};

use crate::contender::Kind;

/// All that the jobs choose from. Some configurations of keepq are for single jobs.
pub(crate) fn all() -> Vec<Kind> {
    let kinds: [&[Kind]; 13] = [
        &keepq::KINDS,
        &yaque::KINDS,
        &queue_file::KINDS,
        &disk_queue::KINDS,
        &wal_db::KINDS,
        &okaywal::KINDS,
        &segment_buffer::KINDS,
        &commitlog::KINDS,
        &persistent_queue::KINDS,
        &redb::KINDS,
        &fjall::KINDS,
        &lmdb::KINDS,
        &sqlite::KINDS,
    ];
    kinds.concat()
}

/// The version of a package, from the file that cargo wrote when this program was built.
pub(crate) fn version(package: &str) -> &'static str {
    let lock = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"));
    let name = format!("name = \"{package}\"");
    let mut versions = lock.split("[[package]]").filter(|part| part.contains(&name));
    let part = versions.next().unwrap_or_default();
    part.split("version = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?")
}
