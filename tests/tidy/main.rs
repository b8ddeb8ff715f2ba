//! Rules of this code base that no lint knows: rooms, circles, owners, sentences, texts.
//!
//! Each rule tells what breaks it as `file:line: what is wrong and what to do`. The rooms stand in
//! one table, in `rooms.rs`, with the form of the drawing that `src/docs/design.md` has of it.
//!
//! * Rooms (`house.rs`): a file uses its own rank and lower ones. A use of a name that is
//!   re-exported is a use of the file that defines it; the re-export is one as well. Tests are
//!   left out, features are not.
//! * Circles (`house.rs`): between files, inside a room too. A child file that holds nothing but
//!   `impl` blocks of a type that its parent defines, and private helpers, counts as its parent.
//! * Owners (`owners.rs`): an `impl` stands in its type's file or in a child of it. The exception
//!   is a door: a block all of whose methods are `pub` and return what the file defines
//!   (`Options::open` beside `Queue`). Fields are private but for plain data. `Engine` has one
//!   file, and no type has more than 40 methods, but for the figures of `Stats`.
//! * Names (`names.rs`): no two types have one name.
//! * Sentences (`sentences.rs`): what a pop, a push and a look must not do.
//! * Texts (`texts.rs`): lengths, letters, what is at home in which file, and that the files are
//!   there that a page or a comment of `src` names.

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

mod body;
mod calls;
mod house;
mod modules;
mod names;
mod owners;
mod rooms;
mod sentences;
mod source;
mod texts;
mod uses;

use house::House;
use rooms::{LOCKING, PLAIN, ROOMS, Rooms, is_in};
use sentences::HOUSE;
use source::{assert_none, in_src, read, sources, texts as files};

const ENGINE: &str = "engine/mod.rs";
const MAX_METHODS: usize = 40;

#[test]
fn every_file_has_a_room_and_every_room_a_file() {
    let (rooms, all) = (Rooms::new(ROOMS), sources());
    let homeless = all.iter().filter(|source| rooms.of(&source.name).is_none());
    let what = "no room: name one in tests/tidy/rooms.rs";
    let homeless = homeless.map(|source| in_src(&source.name, 1, what));
    let named = rooms.all().chain(PLAIN.iter().chain(LOCKING).copied());
    let empty = named.filter(|room| !all.iter().any(|source| is_in(&source.name, room)));
    let what = "a room without a file: take it out of tests/tidy/rooms.rs";
    let empty = empty.map(|room| in_src(room, 1, what));
    assert_none("Every file has a room.", homeless.chain(empty).collect());
}

#[test]
fn the_design_page_shows_the_rooms() {
    let rooms = Rooms::new(ROOMS);
    let shown = Rooms::drawn_in(&read("src/docs/design.md"));
    let drawing = rooms.drawing();
    assert!(
        shown == Some(rooms),
        "src/docs/design.md:1: its drawing of the rooms is not the table in tests/tidy/rooms.rs; \
         show this (remarks may follow `--`):\n\n{drawing}\n"
    );
}

#[test]
fn nothing_uses_a_higher_room() {
    let violations = House::new(sources()).uses_that_reach_up(&Rooms::new(ROOMS));
    assert_none("A file uses its own room or lower ones.", violations);
}

#[test]
fn nothing_goes_in_circles() {
    assert_none("Files do not use each other in circles.", House::new(sources()).circles());
}

#[test]
fn an_impl_stands_at_its_type() {
    let violations = House::new(sources()).owners.misplaced_impls();
    assert_none("An impl stands in its type's file or in a child of it.", violations);
}

#[test]
fn fields_are_private() {
    let violations = House::new(sources()).owners.open_fields();
    assert_none("Fields are private, but for plain data.", violations);
}

#[test]
fn the_engine_is_one_file_and_no_type_is_two() {
    let owners = House::new(sources()).owners;
    let mut violations = owners.engine_blocks(ENGINE);
    violations.extend(owners.types_with_many_methods(MAX_METHODS));
    assert_none("Engine stands in its file, and types are small.", violations);
}

#[test]
fn a_type_name_has_one_meaning() {
    let violations = names::with_two_meanings(&sources());
    assert_none("No two types have one name.", violations);
}

#[test]
fn a_pop_does_no_upkeep() {
    let violations = HOUSE.a_pop_does_no_upkeep(&House::new(sources()));
    assert_none("A pop does no upkeep.", violations);
}

#[test]
fn the_engine_knows_no_dead_letters() {
    let violations = HOUSE.the_engine_knows_no_dead_letters(&House::new(sources()));
    assert_none("An engine opens no other queue.", violations);
}

#[test]
fn a_push_leads_no_compaction() {
    let violations = HOUSE.a_push_leads_no_compaction(&House::new(sources()));
    assert_none("A push leads no compaction of its own accord.", violations);
}

#[test]
fn looking_changes_nothing() {
    let violations = HOUSE.looking_changes_nothing(&House::new(sources()));
    assert_none("Looking changes nothing.", violations);
}

#[test]
fn texts_are_short_narrow_and_ascii() {
    let mut violations = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        for (name, text) in files(folder, ".rs") {
            violations.extend(texts::of_code(&name, &text));
        }
    }
    for (name, text) in files("src/docs", ".md") {
        violations.extend(texts::of_text(&name, &text));
    }
    for name in ["README.md", "CHANGELOG.md", "Cargo.toml", ".ci/run", ".ci/platforms"] {
        violations.extend(texts::of_text(name, &read(name)));
    }
    assert_none("Texts are short, narrow and ASCII.", violations);
}

#[test]
fn files_that_are_named_are_there() {
    let pages = files("src/docs", ".md").into_iter().chain(files("src", ".rs"));
    let named = pages.chain([("README.md".to_string(), read("README.md"))]);
    let violations = named.flat_map(|(name, text)| texts::gone_files(&name, &text)).collect();
    assert_none("Files that are named are there.", violations);
}

#[test]
fn unsafe_files_clocks_and_locks_are_at_home() {
    let violations = texts::strays(&House::new(sources()));
    assert_none("unsafe, files, clocks and locks are at home.", violations);
}

#[test]
fn pure_rooms_are_pure() {
    let violations = texts::impure_rooms(&House::new(sources()));
    assert_none("Pure rooms have no files, no locks, no clock.", violations);
}

#[test]
fn nothing_is_unfinished() {
    let mut violations = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        for (name, text) in files(folder, ".rs") {
            if !is_in(&name, "tests/tidy") {
                violations.extend(texts::unfinished(&name, &text));
            }
        }
    }
    for (name, text) in files("src/docs", ".md") {
        violations.extend(texts::unfinished(&name, &text));
    }
    violations.extend(texts::unfinished("README.md", &read("README.md")));
    assert_none("Nothing is left for later.", violations);
}

/// `format.md` names constants; the code has the same.
#[test]
fn the_constants_in_format_md_are_those_of_the_code() {
    let [told, in_code] = texts::constants();
    assert_eq!(told, in_code, "left: src/docs/format.md, right: src/format/");
}

/// What the crate page shows first is a program that CI runs.
#[test]
fn the_readme_shows_the_example_hello() {
    let (readme, hello) = (read("README.md"), read("examples/hello.rs"));
    let shown = readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, &hello[hello.find("use keepq").unwrap()..], "README.md, examples/hello.rs");
}
