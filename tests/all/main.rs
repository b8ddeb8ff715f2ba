//! keepq from the outside. All tests are modules of one program, so that they are linked once:
//! `cargo test --test all` runs them, and `cargo test --test all crash::` those of one module.
//!
//! They run as threads of one process, beside each other and on machines that are busy. So a test
//!
//! - counts what its own directory or queue has, never what the process has; where that is not
//!   possible, it runs in a process of its own (`support::process::is_alone`);
//! - relies on nothing being faster than some time. What would hang has a deadline that is never
//!   reached when all is well (`support::DEADLINE`), what waits for a thread or a child is told by
//!   it, and what is about time has a `ManualClock`;
//! - that replays what a random test once found has its steps written out. A seed stands for other
//!   steps as soon as the random test is given a new one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a test may fail"
)]

mod ahead;
mod api;
mod away_model;
mod collected;
mod compaction;
mod compaction_crash;
mod compaction_found;
mod craft;
mod crash;
mod crash_found;
mod crash_threads;
mod damage;
mod dead_letters;
mod delay_crash;
mod delivery;
mod delivery_found;
mod delivery_model;
mod errors;
mod evicted;
mod examples;
mod faults;
mod found_between;
mod found_closing;
mod found_cost;
mod found_craft;
mod found_errors;
mod found_files;
mod found_front;
mod found_hooks;
mod found_letters;
mod found_letters_room;
mod found_line;
mod found_lost;
mod found_marks;
mod found_moves;
mod found_newer;
mod found_page;
mod found_races;
mod found_reads;
mod found_rebuild;
mod found_refused;
mod found_retries;
mod found_room;
mod found_rot;
mod found_steps;
mod found_support;
mod found_syncs;
mod found_time;
mod found_waiting;
mod found_waits;
mod found_watching;
mod found_work;
#[cfg(target_os = "linux")]
mod full_disk;
mod full_segments;
mod golden;
mod golden_apart;
mod golden_times;
mod held_open;
mod history;
mod kill;
mod lost_numbers;
mod opened_at_once;
mod outside_away;
mod outside_back;
mod outside_clock;
mod outside_disk;
#[cfg(unix)]
mod outside_files;
mod outside_idle;
#[cfg(target_os = "linux")]
mod outside_limits;
mod outside_links;
#[cfg(target_os = "linux")]
mod outside_many;
#[cfg(unix)]
mod outside_memory;
mod outside_offset;
#[cfg(unix)]
mod outside_replaced;
mod outside_steps;
mod outside_variants;
mod page;
mod poison;
mod refused_bodies;
mod rot;
mod scarce_maps;
mod space;
mod steps_model;
mod support;
mod surface;
mod threads;
mod typed;
#[cfg(target_os = "linux")]
mod written;
