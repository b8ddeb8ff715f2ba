//! Rules of this code base that no lint knows.

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

use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 500;

/// The layer of a file, from its path below `src`: it may use its own layer and lower ones.
fn layer(path: &str) -> u32 {
    match path {
        "lib.rs" | "queue.rs" | "typed.rs" | "delivery.rs" | "peeked.rs" => 6,
        _ if path.starts_with("queue/") => 6,
        _ if path.starts_with("engine/") => 5,
        "recovery.rs" | "compaction.rs" => 4,
        _ if path.starts_with("compaction/") => 4,
        _ if path.starts_with("options/") => 0,
        _ if path.starts_with("recovery/") => 4,
        "checkpoint.rs" | "leases.rs" | "schedule.rs" => 3,
        _ if path.starts_with("log/") => 3,
        _ if path.starts_with("io/") => 2,
        _ if path.starts_with("format/") => 1,
        "error.rs" | "seq.rs" | "clock.rs" | "options.rs" | "message.rs" | "report.rs"
        | "ranges.rs" | "stats.rs" | "stuck.rs" | "backoff.rs" | "distribution.rs" => 0,
        _ => panic!("{path} has no layer: name one here"),
    }
}

/// The layer of what a `crate::` path starts with.
fn layer_of_use(head: &str) -> u32 {
    match head {
        "error" | "seq" | "clock" | "options" | "message" | "report" | "ranges" | "stats"
        | "stuck" | "backoff" | "distribution" => 0,
        "format" => 1,
        "io" => 2,
        "log" | "checkpoint" | "leases" | "schedule" => 3,
        "recovery" | "compaction" => 4,
        "engine" => 5,
        "queue" | "typed" | "delivery" | "peeked" => 6,
        _ => panic!("crate::{head} has no layer: name one here"),
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(below: &str, ending: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, ending: &str, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, ending, into);
            } else if path.to_str().unwrap().ends_with(ending) {
                into.push(path);
            }
        }
    }
    let base = root().join(below);
    let mut paths = Vec::new();
    walk(&base, ending, &mut paths);
    paths.sort();
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&base).unwrap().to_str().unwrap().replace('\\', "/");
        (name, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(named).collect()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn files_are_short_and_ascii() {
    for below in ["src", "tests", "examples", "benches"] {
        for (name, text) in files(below, ".rs") {
            assert!(text.lines().count() <= MAX_LINES, "{below}/{name} is too long");
            assert!(text.is_ascii(), "{below}/{name} is not ASCII");
            assert!(text.starts_with("//!") || text.starts_with("#!"), "{name} says nothing first");
        }
    }
    for (name, text) in files("src/docs", ".md") {
        assert!(text.is_ascii(), "docs/{name} is not ASCII");
    }
}

/// Options carry what may stand in for the operating system; options and messages are held against
/// the format's limits: plain data all the same.
const REACHES_UP: [(&str, &str); 3] =
    [("options.rs", "io"), ("options.rs", "format"), ("message.rs", "format")];

#[test]
fn nothing_uses_a_higher_layer() {
    for (name, text) in files("src", ".rs") {
        for part in code(&text).split("crate::").skip(1) {
            let head: String =
                part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if head.is_empty() || name == "lib.rs" || REACHES_UP.contains(&(&name, &head)) {
                continue;
            }
            assert!(
                layer_of_use(&head) <= layer(&name),
                "{name} (layer {}) uses crate::{head} (layer {})",
                layer(&name),
                layer_of_use(&head)
            );
        }
    }
}

#[test]
fn unsafe_and_files_are_at_home() {
    for (name, text) in files("src", ".rs") {
        let code = code(&text);
        if name != "io/mmap.rs" {
            assert!(
                !code.contains("unsafe {") && !code.contains("unsafe_code"),
                "unsafe in {name}"
            );
        }
        if !name.starts_with("io/") {
            assert!(!code.contains("std::fs"), "std::fs in {name}");
        }
        if name != "clock.rs" {
            let reads = ["Instant::now", "SystemTime::now"];
            assert!(!reads.iter().any(|now| code.contains(now)), "{name} reads a clock");
        }
        if name.starts_with("format/") || ["leases.rs", "schedule.rs"].contains(&name.as_str()) {
            let impure = ["Mutex", "Atomic", "crate::io", "clock"];
            assert!(!impure.iter().any(|word| code.contains(word)), "{name} is not pure");
        }
        if !name.starts_with("engine/") && !name.starts_with("io/") {
            assert!(!code.contains("Mutex"), "a lock in {name}");
        }
    }
}

/// `format.md` names constants; the code has the same.
#[test]
fn the_constants_in_format_md_are_those_of_the_code() {
    let text = fs::read_to_string(root().join("src/docs/format.md")).unwrap();
    let table = text.split("## Constants").nth(1).unwrap().split("## A segment").next().unwrap();
    let cells = |line: &str| -> Option<(String, u64)> {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?.to_string();
        Some((name, cells.next()?.parse().ok()?))
    };
    let told: Vec<(String, u64)> = table.lines().filter_map(cells).collect();
    let places = [
        ("FORMAT_VERSION", "mod.rs", "FORMAT_VERSION"),
        ("PAGE", "mod.rs", "PAGE"),
        ("SECTOR", "mod.rs", "SECTOR"),
        ("RECORDS_START", "segment.rs", "RECORDS_START"),
        ("RECORD_HEADER", "record.rs", "HEADER"),
        ("RECORD_ALIGN", "record.rs", "ALIGN"),
        ("SLOT", "slot.rs", "SLOT"),
        ("MAX_PAYLOAD", "record.rs", "MAX_PAYLOAD"),
        ("MAX_EXTENSIONS", "extension.rs", "MAX_EXTENSIONS"),
        ("CHECKPOINT_HEADER", "checkpoint.rs", "HEADER"),
    ];
    assert_eq!(told.len(), places.len());
    for (name, file, constant) in places {
        let code = fs::read_to_string(root().join("src/format").join(file)).unwrap();
        let start = format!("pub(crate) const {constant}: ");
        let line = code.lines().find(|line| line.starts_with(&start)).unwrap();
        let value = line.split(" = ").nth(1).unwrap().trim_end_matches(';').replace('_', "");
        let value = match (value.as_str(), value.split_once("<<")) {
            ("PAGE", _) => 4096,
            (_, Some((one, shift))) => {
                one.trim().parse::<u64>().unwrap() << shift.trim().parse::<u32>().unwrap()
            }
            (plain, None) => plain.parse().unwrap(),
        };
        assert!(told.contains(&(name.to_string(), value)), "{name} is {value} in the code");
    }
}

#[test]
fn nothing_is_unfinished() {
    let words = ["TODO", "FIXME", "todo!(", "unimplemented!("];
    for (name, text) in files("src", ".rs") {
        assert!(!words.iter().any(|word| text.contains(word)), "{name} is unfinished");
    }
    for (name, text) in files("tests", ".rs") {
        assert!(name == "tidy.rs" || !text.contains("#[ignore"), "{name} ignores a test");
    }
}

/// What the crate page shows first is a program that CI runs.
#[test]
fn the_readme_shows_the_example_hello() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (readme, hello) = (read("README.md"), read("examples/hello.rs"));
    let shown = readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, &hello[hello.find("use keepq").unwrap()..]);
}
