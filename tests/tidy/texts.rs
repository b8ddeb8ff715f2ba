//! Rules of texts: their length, their letters, what stands in them, and in which file.

use crate::house::House;
use crate::rooms::{LOCKING, PURE, is_in, is_in_any};
use crate::source::{Violation, in_src, read, root};
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use std::collections::BTreeMap;
use syn::{BinOp, Expr, Item, Lit};

const MAX_LINES: usize = 500;
const MAX_COLUMNS: usize = 100;

fn violation(file: &str, line: usize, what: impl Into<String>) -> Violation {
    Violation { file: file.to_string(), line, what: what.into() }
}

/// A file of Rust is short, ASCII, and says first what it is for.
pub(crate) fn of_code(name: &str, text: &str) -> Vec<Violation> {
    let mut violations = of_text(name, text);
    let lines = text.lines().count();
    if lines > MAX_LINES {
        let what = format!("{lines} lines, and {MAX_LINES} are allowed: it is two nouns");
        violations.push(violation(name, MAX_LINES + 1, what));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        violations.push(violation(name, 1, "say first what the file is for (`//!`)"));
    }
    violations
}

/// Any text is ASCII and narrow: its tables and its code as well.
pub(crate) fn of_text(name: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if !line.is_ascii() {
            violations.push(violation(name, index + 1, "not ASCII"));
        }
        let columns = line.chars().count();
        if columns > MAX_COLUMNS {
            let what = format!("{columns} columns, and {MAX_COLUMNS} are allowed");
            violations.push(violation(name, index + 1, what));
        }
    }
    violations
}

/// A file of Rust that is named between backticks is there: below the root, or below `src`.
pub(crate) fn gone_files(name: &str, text: &str) -> Vec<Violation> {
    let is_there = |path: &str| ["", "src"].iter().any(|at| root().join(at).join(path).is_file());
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let marked = line.split('`').skip(1).step_by(2);
        for path in marked.filter(|marked| is_path(marked) && !is_there(marked)) {
            let what = format!("{path}: no such file below the root or `src`: name the one it is");
            violations.push(violation(name, index + 1, what));
        }
    }
    violations
}

fn is_path(marked: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-/.".contains(letter);
    marked.strip_suffix(".rs").is_some_and(|stem| !stem.is_empty() && stem.chars().all(is_part))
}

/// Nothing is left for later, and no test is left out.
pub(crate) fn unfinished(name: &str, text: &str) -> Vec<Violation> {
    const WORDS: [&str; 4] = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimpl", "emented!("),
    ];
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(word) = WORDS.iter().find(|word| line.contains(*word)) {
            violations.push(violation(name, index + 1, format!("{word}: finish it")));
        }
        let fence = line.split_once("```").map_or("", |(_, rest)| rest);
        if fence.split(',').any(|word| word == "ignore") {
            violations.push(violation(name, index + 1, "an example that is ignored: let it run"));
        }
    }
    if !name.ends_with("md") {
        ignored(text.parse().unwrap(), &mut |ident| {
            let line = ident.span().start().line;
            violations.push(violation(name, line, "a test that is ignored: let it run"));
        });
    }
    violations
}

/// Finds `#[ignore]`, in whatever form.
fn ignored(tokens: TokenStream, found: &mut impl FnMut(&Ident)) {
    let mut after_hash = false;
    for token in tokens {
        let is_hash = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#');
        if let TokenTree::Group(group) = token {
            if after_hash && group.delimiter() == Delimiter::Bracket {
                let mut words = Vec::new();
                idents(group.stream(), &mut |ident| words.push(ident.clone()));
                words.iter().filter(|word| *word == "ignore").for_each(&mut *found);
            } else {
                ignored(group.stream(), found);
            }
        }
        after_hash = is_hash;
    }
}

fn idents(tokens: TokenStream, found: &mut impl FnMut(&Ident)) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => found(&ident),
            TokenTree::Group(group) => idents(group.stream(), found),
            _ => {}
        }
    }
}

/// `unsafe`, `std::fs`, clocks and locks are at home.
pub(crate) fn strays(house: &House) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (file, source) in house.sources.iter().enumerate() {
        let name = &source.name;
        let mut add = |line: usize, what: &str| violations.push(in_src(name, line, what));
        if name != "io/mmap.rs" {
            idents(source.text.parse().unwrap(), &mut |ident| {
                if ident == "unsafe" || ident == "unsafe_code" {
                    add(ident.span().start().line, "unsafe code: it is at home in io/mmap.rs");
                }
            });
        }
        for (path, line) in &house.uses.outside[file] {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            if path.starts_with(&["std", "fs"]) && !is_in(name, "io") {
                add(*line, "std::fs: files are opened in io/");
            }
            if is_clock(&path) && name != "clock.rs" {
                add(*line, "reads a clock: time comes in through clock.rs");
            }
            let is_lock = path.iter().any(|name| ["Mutex", "RwLock", "Condvar"].contains(name));
            if is_lock && !is_in_any(name, LOCKING) {
                add(*line, "a lock: see LOCKING in tests/tidy/rooms.rs for who may have one");
            }
        }
        for (method, line) in &house.uses.methods[file] {
            if method == "elapsed" && name != "clock.rs" {
                add(*line, "`elapsed` reads a clock: time comes in through clock.rs");
            }
        }
    }
    violations
}

fn is_clock(path: &[&str]) -> bool {
    let reads = [["Instant", "now"], ["SystemTime", "now"]];
    reads.iter().any(|read| path.ends_with(read)) || path.contains(&"clock_gettime")
}

/// The pure rooms have no locks, no files, no clocks, and use none that has.
pub(crate) fn impure(house: &House, pure: &[&str]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for room in pure {
        let files = house.files_in(room);
        if files.is_empty() {
            violations.push(in_src(room, 1, "no such room: see PURE in tests/tidy/rooms.rs"));
        }
        let is_impure = |file: &str| is_in(file, "io") || is_in(file, "clock");
        violations.extend(house.ways(&files, is_impure, &format!("{room} is pure")));
        for file in files {
            for (path, line) in &house.uses.outside[file] {
                let is_impure = |name: &String| {
                    ["fs", "thread", "Mutex", "RwLock", "Condvar", "Instant", "SystemTime", "Cell"]
                        .contains(&name.as_str())
                        || name.starts_with("Atomic")
                        || name == "parking_lot"
                };
                if let Some(name) = path.iter().find(|name| is_impure(name)) {
                    let what = format!("{room} is pure, but here is {name}: hand in what it gives");
                    violations.push(in_src(house.name(file), *line, what));
                }
            }
        }
    }
    violations
}

/// The rooms of `PURE`.
pub(crate) fn impure_rooms(house: &House) -> Vec<Violation> {
    impure(house, PURE)
}

/// The constants of `format.md`, with the files and names that they have in the code.
const CONSTANTS: [(&str, &str, &str); 12] = [
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
    ("NUMBER_END", "limits.rs", "NUMBER_END"),
    ("TIME_END", "limits.rs", "TIME_END"),
];

/// What `format.md` says of each constant, and what the code has.
pub(crate) fn constants() -> [BTreeMap<String, u64>; 2] {
    let text = read("src/docs/format.md");
    let table = text.split("## Constants").nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = |line: &str| -> Option<(String, u64)> {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?.to_string();
        Some((name, cells.next()?.parse().ok()?))
    };
    let told = table.lines().filter_map(cells).collect();
    let in_code = CONSTANTS.map(|(name, file, constant)| {
        let values =
            Values::of(&[&read("src/format/mod.rs"), &read(&format!("src/format/{file}"))]);
        (name.to_string(), values.named(constant))
    });
    [told, BTreeMap::from(in_code)]
}

/// Constants and their expressions; those of the last file win.
struct Values(BTreeMap<String, Expr>);

impl Values {
    fn of(texts: &[&str]) -> Self {
        let items = texts.iter().flat_map(|text| syn::parse_file(text).unwrap().items);
        let constants = items.filter_map(|item| match item {
            Item::Const(item) => Some((item.ident.to_string(), *item.expr)),
            _ => None,
        });
        Self(constants.collect())
    }

    fn named(&self, name: &str) -> u64 {
        self.0.get(name).map_or_else(|| panic!("no constant {name}"), |expr| self.value(expr))
    }

    fn value(&self, expr: &Expr) -> u64 {
        match expr {
            Expr::Lit(syn::ExprLit { lit: Lit::Int(lit), .. }) => lit.base10_parse().unwrap(),
            Expr::Paren(expr) => self.value(&expr.expr),
            Expr::Cast(expr) => self.value(&expr.expr),
            // A newtype.
            Expr::Call(expr) if expr.args.len() == 1 => self.value(&expr.args[0]),
            Expr::Path(expr) => self.named(&expr.path.segments.last().unwrap().ident.to_string()),
            Expr::Binary(expr) => {
                let (left, right) = (self.value(&expr.left), self.value(&expr.right));
                match expr.op {
                    BinOp::Add(_) => left + right,
                    BinOp::Sub(_) => left - right,
                    BinOp::Mul(_) => left * right,
                    BinOp::Div(_) => left / right,
                    BinOp::Shl(_) => left << right,
                    _ => panic!("an operator that tidy does not know"),
                }
            }
            _ => panic!("a constant that tidy cannot work out: write it with numbers"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(violations: &[Violation]) -> Vec<usize> {
        violations.iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn wide_lines_are_found() {
        let (narrow, wide) = ("x".repeat(100), "x".repeat(101));
        let text = format!("//! A file.\n{narrow}\n{wide}\n/// | {narrow}\n// {wide}\n");
        assert_eq!(lines(&of_code("a.rs", &text)), [3, 4, 5]);
        let row = |cell: &str| format!("| a | b |\n| --- | --- |\n| {cell} | b |\n");
        assert_eq!(lines(&of_text("a.md", &row(&"x".repeat(92)))), [] as [usize; 0]);
        assert_eq!(lines(&of_text("a.md", &row(&"x".repeat(93)))), [3]);
        assert_eq!(lines(&of_text("a.md", &format!("```text\n{wide}\n```"))), [2]);
        assert_eq!(lines(&of_text("a.md", "caf\u{e9}")), [1]);
    }

    #[test]
    fn long_files_and_files_without_a_head_are_found() {
        let long = format!("//! A file.\n{}", "\n".repeat(500));
        assert_eq!(lines(&of_code("a.rs", &long)), [501]);
        assert_eq!(lines(&of_code("a.rs", "fn main() {}")), [1]);
    }

    #[test]
    fn names_of_files_that_are_gone_are_found() {
        let text =
            "See `io/mod.rs`, `tests/tidy/main.rs`.\n`io/gone.rs` and `lib.rs`\n```rs\n`*.rs`";
        assert_eq!(lines(&gone_files("a.md", text)), [2]);
        assert_eq!(lines(&gone_files("a.rs", "//! `mod.rs` beside it\n")), [1]);
    }

    #[test]
    fn unfinished_code_and_ignored_tests_are_found() {
        let text = "//! A file.\n\n#[test]\n#[ignore = \"slow\"]\nfn a() {}\nfn ignore() {}\n";
        assert_eq!(lines(&unfinished("a.rs", text)), [4]);
        let inner = "mod a { #[cfg_attr(unix, ignore)] fn b() {} }";
        assert_eq!(lines(&unfinished("a.rs", inner)), [1]);
        assert_eq!(lines(&unfinished("a.md", "```rust,ignore\n```")), [1]);
        assert_eq!(
            lines(&unfinished("a.rs", &format!("fn a() {{ {}) }}", concat!("todo", "!(")))),
            [1]
        );
        assert_eq!(lines(&unfinished("a.md", concat!("Later: TO", "DO"))), [1]);
    }

    #[test]
    fn strays_are_found_under_any_name() {
        let house = House::of_snippets(&[
            ("lib.rs", "mod a; mod clock; mod io;"),
            ("clock.rs", "use std::time::Instant as I; fn a() { I::now().elapsed(); }"),
            ("io/mod.rs", "use std::{fs, io}; use parking_lot::Mutex;"),
            (
                "a.rs",
                "use std::{fs as files, sync::{Arc, Mutex as M}};
                 use std::time as t;
                 fn a(then: t::Instant) { t::Instant::now(); }
                 fn b() { println!(\"{:?}\", std::time::SystemTime::now()); }
                 fn c(then: t::Instant) { assert!(then.elapsed().is_zero()); }
                 fn d() { unsafe { e() } }
                 #[cfg(test)] mod tests { use std::fs; }
                 #[allow(unsafe_code)] fn e() {}
                 // unsafe, std::fs
                 ",
            ),
        ]);
        let mut found = strays(&house);
        found.sort();
        assert_eq!(lines(&found), [1, 1, 3, 4, 5, 6, 8]);
        assert!(found.iter().all(|violation| violation.file == "src/a.rs"));
    }

    #[test]
    fn impurity_is_found() {
        let house = House::of_snippets(&[
            ("lib.rs", "mod a; mod b; mod c; mod clock; mod d;"),
            ("a.rs", "use std::sync::atomic::AtomicU64 as Counter;"),
            ("b.rs", "use crate::c::f;"),
            ("c.rs", "use crate::clock::now; pub(crate) fn f() {}"),
            ("clock.rs", "pub(crate) fn now() {}"),
            ("d.rs", "use std::sync::Arc; fn d() { let clock = 1; }"),
        ]);
        let broken = |room: &str| impure(&house, &[room]).len();
        assert_eq!([broken("a"), broken("b"), broken("c"), broken("d")], [1, 1, 1, 0]);
        assert_eq!(broken("nowhere"), 1);
    }

    #[test]
    fn constants_are_worked_out() {
        let values = Values::of(&[
            "const PAGE: u64 = 4_096;",
            "const A: u64 = PAGE * 2 + (1 << 4); const B: Offset = Offset(PAGE);",
        ]);
        assert_eq!((values.named("A"), values.named("B")), (8208, 4096));
    }
}
