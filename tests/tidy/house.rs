//! The house: its files, modules, uses and owners, and the rules of rooms and circles.

use crate::modules::Modules;
use crate::owners::Owners;
use crate::rooms::{Rooms, is_in};
use crate::source::{Source, Violation, in_src};
use crate::uses::{Use, Uses};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// All that is known of a tree of sources.
pub(crate) struct House {
    pub(crate) sources: Vec<Source>,
    pub(crate) modules: Modules,
    pub(crate) uses: Uses,
    pub(crate) owners: Owners,
    /// From each file: what its uses lead to.
    reached: Vec<BTreeSet<usize>>,
}

impl House {
    pub(crate) fn new(mut sources: Vec<Source>) -> Self {
        let for_tests: Vec<String> =
            sources.iter().flat_map(|source| source.for_tests.clone()).collect();
        sources.retain(|source| !for_tests.iter().any(|path| is_in(&source.name, path)));
        let modules = Modules::of(&sources);
        let uses = Uses::of(&sources, &modules);
        let owners = Owners::of(&sources, &modules);
        let away = owners.impls_away().map(|away| (away.defined_in, away.file));
        let arrows: Vec<(usize, usize)> = uses.of_files.keys().copied().chain(away).collect();
        let reached = reached(sources.len(), &arrows);
        Self { sources, modules, uses, owners, reached }
    }

    #[cfg(test)]
    pub(crate) fn of_snippets(files: &[(&str, &str)]) -> Self {
        Self::new(files.iter().map(|(name, text)| Source::new(name, text)).collect())
    }

    pub(crate) fn name(&self, file: usize) -> &str {
        &self.sources[file].name
    }

    /// The files of a room.
    pub(crate) fn files_in(&self, room: &str) -> Vec<usize> {
        let files = 0..self.sources.len();
        files.filter(|file| is_in(self.name(*file), room)).collect()
    }

    /// Every file has a room and uses none that stands higher.
    pub(crate) fn uses_that_reach_up(&self, rooms: &Rooms) -> Vec<Violation> {
        let mut violations = self.uses.unclear.clone();
        for (&(from, to), uses) in &self.uses.of_files {
            let names = (self.name(from), self.name(to));
            let (Some(own), Some(other)) = (rooms.of(names.0), rooms.of(names.1)) else { continue };
            if other.1 >= own.1 {
                continue;
            }
            let what = |used: &Use| {
                format!(
                    "uses {} of {}, but room {} stands above room {}; move it down, or hand it in",
                    used.name, names.1, other.0, own.0
                )
            };
            let mut told = BTreeSet::new();
            let first = uses.iter().filter(|used| told.insert(&used.name));
            violations.extend(first.map(|used| in_src(names.0, used.line, what(used))));
        }
        violations
    }

    /// Files use each other in one direction: no way of uses leads back to where it began.
    ///
    /// A file that holds nothing but a part of its parent's type counts as that parent. Where
    /// methods of a type stand in another file, the type's file uses that one.
    pub(crate) fn circles(&self) -> Vec<Violation> {
        let arrows = self.arrows();
        let groups = groups(self.sources.len(), &arrows);
        let mut violations = Vec::new();
        for group in groups {
            let mut left = group.clone();
            while let Some(start) = left.first().copied() {
                let Some(circle) = shortest_circle(start, &group, &arrows) else { break };
                left.retain(|file| circle.iter().all(|arrow| arrow.0 != *file));
                violations.push(self.tell_circle(&circle, group.len(), &arrows));
            }
        }
        violations
    }

    /// Who uses whom, with a use as the witness.
    fn arrows(&self) -> Arrows {
        let whole = |file| self.owners.limb_of(file).unwrap_or(file);
        let mut arrows = Arrows::new();
        let mut add = |from: usize, to: usize, used: &Use| {
            if whole(from) != whole(to) {
                let seen = (from, to, used.clone());
                arrows.entry((whole(from), whole(to))).or_insert(seen);
            }
        };
        for (&(from, to), uses) in &self.uses.of_files {
            add(from, to, &uses[0]);
        }
        for away in self.owners.impls_away() {
            let name = format!("impl {}", away.type_name);
            add(away.defined_in, away.file, &Use { line: away.line, name });
        }
        arrows
    }

    fn tell_circle(&self, circle: &[(usize, usize)], files: usize, arrows: &Arrows) -> Violation {
        let step = |arrow: &(usize, usize)| {
            let (from, to, Use { line, name }) = &arrows[arrow];
            let (from, to) = (self.name(*from), self.name(*to));
            if name.starts_with("impl ") {
                format!("{from} has methods in {to}:{line} ({name})")
            } else {
                format!("{from}:{line} uses {name} of {to}")
            }
        };
        let steps: Vec<String> = circle.iter().map(step).collect();
        let hint = match self.owners.why_no_limb(circle) {
            Some(why) => format!("; {why}"),
            None => "; move what both need into a file below them".to_string(),
        };
        let size = if files > circle.len() {
            format!("circle, the shortest here in a knot of {files} files: ")
        } else {
            "circle: ".to_string()
        };
        let (from, to, Use { line, name }) = &arrows[&circle[0]];
        let file = if name.starts_with("impl ") { to } else { from };
        in_src(self.name(*file), *line, size + &steps.join(", ") + &hint)
    }

    /// Whether uses lead from a file to another.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || self.reached[from].contains(&to)
    }

    /// The shortest way of uses from one of `files` to a file for which `is_end` holds, for each
    /// of `files` from which one leads there that passes no other.
    pub(crate) fn ways(
        &self,
        files: &[usize],
        is_end: impl Fn(&str) -> bool,
        rule: &str,
    ) -> Vec<Violation> {
        files.iter().filter_map(|start| self.way(*start, files, &is_end, rule)).collect()
    }

    fn way(
        &self,
        start: usize,
        others: &[usize],
        is_end: impl Fn(&str) -> bool,
        rule: &str,
    ) -> Option<Violation> {
        let mut came_from: BTreeMap<usize, (usize, &Use)> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for (next, used) in self.uses.from(at) {
                if others.contains(&next) || came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, (at, used));
                if !is_end(self.name(next)) {
                    queue.push_back(next);
                    continue;
                }
                let (mut steps, mut to, mut line) = (Vec::new(), next, 1);
                while let Some((from, used)) = came_from.get(&to) {
                    line = used.line;
                    let (from_name, to_name) = (self.name(*from), self.name(to));
                    steps.push(format!("{from_name}:{line} uses {} of {to_name}", used.name));
                    to = *from;
                }
                steps.reverse();
                let what = format!("{rule}, but {}", steps.join(", "));
                return Some(in_src(self.name(start), line, what));
            }
        }
        None
    }
}

/// From a file to another, by way of which of their parts, and for what.
type Arrows = BTreeMap<(usize, usize), (usize, usize, Use)>;

/// What can be reached from each file.
fn reached(files: usize, arrows: &[(usize, usize)]) -> Vec<BTreeSet<usize>> {
    let mut next = vec![Vec::new(); files];
    for (from, to) in arrows {
        next[*from].push(*to);
    }
    let from = |start: usize| {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![start]);
        while let Some(at) = stack.pop() {
            stack.extend(next[at].iter().filter(|to| seen.insert(**to)));
        }
        seen
    };
    (0..files).map(from).collect()
}

/// Sets of files of which each can be reached from each other.
fn groups(files: usize, arrows: &Arrows) -> Vec<BTreeSet<usize>> {
    let arrows: Vec<(usize, usize)> = arrows.keys().copied().collect();
    let reached = reached(files, &arrows);
    let group = |file: usize| {
        let back = reached[file].iter().filter(|other| reached[**other].contains(&file));
        back.copied().collect::<BTreeSet<usize>>()
    };
    let groups: BTreeSet<_> = (0..files).map(group).filter(|group| group.len() > 1).collect();
    groups.into_iter().collect()
}

/// The arrows of the shortest way from `start` back to it.
fn shortest_circle(
    start: usize,
    group: &BTreeSet<usize>,
    arrows: &Arrows,
) -> Option<Vec<(usize, usize)>> {
    let mut came_from = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (&(from, to), _) in arrows.range((at, 0)..=(at, usize::MAX)) {
            if !group.contains(&to) || came_from.contains_key(&to) {
                continue;
            }
            came_from.insert(to, from);
            if to != start {
                queue.push_back(to);
                continue;
            }
            let mut circle = vec![(from, to)];
            while circle[circle.len() - 1].0 != start {
                let at = circle[circle.len() - 1].0;
                circle.push((came_from[&at], at));
            }
            circle.reverse();
            return Some(circle);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(ToString::to_string).collect()
    }

    /// How often `low.rs` with this text reaches up.
    fn reaches_up(low: &str) -> usize {
        let house = House::of_snippets(&[
            ("lib.rs", "mod top; mod low; mod facade; mod deep;"),
            ("top.rs", "pub(crate) struct Top; pub(crate) fn go() {} pub(crate) enum Kind { A }"),
            ("facade.rs", "pub(crate) use crate::top::Top as Face;"),
            ("deep.rs", "pub(crate) trait Deep {}"),
            ("low.rs", low),
        ]);
        let rooms = Rooms::new(&["lib", "top facade", "low", "deep"]);
        let violations = house.uses_that_reach_up(&rooms);
        let in_low = |violation: &&Violation| violation.file == "src/low.rs";
        violations.iter().filter(in_low).count()
    }

    #[test]
    fn every_way_to_reach_up_is_found() {
        for low in [
            "use crate::top::Top;",
            "use crate::{deep::Deep, top::{self, Top as Renamed}};",
            "use super::top::*;",
            "use crate::top as t; fn f() { t::go(); }",
            "use crate::facade::Face;",
            "fn f(top: &crate::top::Top) {}",
            "fn f() { crate::top::go(); }",
            "fn f() { use crate::top::go; go(); }",
            "fn f() -> Vec<Option<crate::top::Top>> { Vec::new() }",
            "fn f() { assert!(matches!(kind(), crate::top::Kind::A)); }",
            "fn f() { println!(\"{}\", 0..crate::top::go()); }",
            "fn f(kind: u8) { match kind { crate::top::GO => {} _ => {} } }
             use crate::top::go as GO;",
            "pub(crate) use crate::top;",
            "impl crate::deep::Deep for crate::top::Top {}",
            "mod inner { use super::super::top::go; }",
            "use crate::top::go as away; mod inner { fn f() { crate::low::away(); } }",
            "#[cfg(feature = \"fault-injection\")] use crate::top::Top;",
            "#[cfg(any(test, unix))] fn f() { crate::top::go(); }",
            "struct S { #[serde(with = \"crate::top::go\")] field: u8 }",
            "struct S<T: Fn(crate::top::Top)>(T);",
            "fn f() { crate::nowhere::go(); }",
        ] {
            assert!(reaches_up(low) > 0, "{low}");
        }
    }

    #[test]
    fn what_looks_like_reaching_up_is_not() {
        for low in [
            "use crate::deep::Deep; use std::fmt;",
            "pub(super) fn f() {} pub(in crate::top) fn g() {}",
            "#[cfg(test)] mod tests { use crate::top::Top; }",
            "#[cfg(all(test, unix))] use crate::top::Top;",
            "/// As [`crate::top::Top`].\nfn f() {}",
            "// crate::top::go\nconst A: &str = \"crate::top::go\";",
            "fn f(top: u8) { let go = top; go + self::g(top) } fn g(x: u8) -> u8 { x }",
        ] {
            assert_eq!(reaches_up(low), 0, "{low}");
        }
    }

    #[test]
    fn files_for_tests_are_left_out() {
        let house = House::of_snippets(&[
            ("lib.rs", "mod top; mod low;"),
            ("low/mod.rs", "#[cfg(all(test, unix))] mod trial; mod real;"),
            ("low/trial.rs", "mod more; use crate::top::Top;"),
            ("low/trial/more.rs", "use crate::top::Top;"),
            ("low/real.rs", "#[cfg(test)] mod tests { use crate::top::Top; }"),
            ("low/whole.rs", "#![cfg(test)] use crate::top::Top;"),
            ("top.rs", "pub(crate) struct Top;"),
        ]);
        assert_eq!(house.sources.len(), 4);
        assert_eq!(house.uses_that_reach_up(&Rooms::new(&["top", "low"])), []);
    }

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        told(&House::of_snippets(files).circles())
    }

    #[test]
    fn circles_are_told_as_a_way() {
        let found = circles(&[
            ("a.rs", "use crate::b::B;\npub(crate) struct A;"),
            ("b.rs", "\nuse super::c::C;\npub(crate) struct B;"),
            ("c.rs", "fn c() { crate::a::A; }\npub(crate) struct C;"),
            ("d.rs", "use crate::a::A;"),
        ]);
        assert_eq!(
            found,
            ["src/a.rs:1: circle: a.rs:1 uses B of b.rs, b.rs:2 uses C of c.rs, c.rs:1 uses A of \
              a.rs; move what both need into a file below them"]
        );
    }

    #[test]
    fn each_file_of_a_knot_is_told_once() {
        let found = circles(&[
            ("a.rs", "use crate::{b::B, c::C}; pub(crate) struct A;"),
            ("b.rs", "use crate::a::A; pub(crate) struct B;"),
            ("c.rs", "use crate::a::A; pub(crate) struct C;"),
        ]);
        assert_eq!(found.len(), 2);
        assert!(found[1].contains("a knot of 3 files"), "{}", found[1]);
    }

    #[test]
    fn a_parent_and_its_child_are_two() {
        let child = "use super::Shared; pub(crate) struct Child(Shared);";
        let files = [("x/mod.rs", "pub(crate) struct Shared;"), ("x/child.rs", child)];
        assert_eq!(circles(&files).len(), 0, "a child may use its parent");
        let parent = "mod child; pub(crate) use child::Child; pub(crate) struct Shared;";
        assert_eq!(circles(&[("x/mod.rs", parent), ("x/child.rs", child)]).len(), 1);
        assert_eq!(circles(&[("x.rs", parent), ("x/child.rs", child)]).len(), 1);
        let parent = "mod child; fn f() { child::make(); } pub(crate) struct Shared;";
        let child = "use super::Shared; pub(super) fn make() -> Shared { Shared }";
        assert_eq!(circles(&[("x.rs", parent), ("x/child.rs", child)]).len(), 1);
    }

    #[test]
    fn a_part_of_its_parents_type_counts_as_the_parent() {
        let parent = "mod part; pub(crate) struct X; impl X { fn a(&self) { self.b() } }";
        let part = "use super::X; impl X { pub(super) fn b(&self) { c() } } fn c() {}";
        assert_eq!(circles(&[("x.rs", parent), ("x/part.rs", part)]).len(), 0);
        assert_eq!(circles(&[("x/mod.rs", parent), ("x/part.rs", part)]).len(), 0);
        // What it uses, the parent uses.
        let part = "use super::X; use crate::y::Y; impl X { pub(super) fn b(&self) { Y; } }";
        let other = ("y.rs", "use crate::x::X; pub(crate) struct Y;");
        assert_eq!(circles(&[("x.rs", parent), ("x/part.rs", part), other]).len(), 1);
    }

    #[test]
    fn a_file_with_more_than_a_part_is_no_part() {
        let parent = "mod part; pub(crate) struct X;";
        let part = "use super::X; impl X { fn b(&self) {} } pub(super) struct More;";
        let found = circles(&[("x.rs", parent), ("x/part.rs", part)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("has methods of X of x.rs and More"), "{}", found[0]);
        // In a folder of its own it is none, either.
        let part = "use crate::x::X; impl X { fn b(&self) {} }";
        assert_eq!(circles(&[("x.rs", parent), ("x/y/part.rs", part)]).len(), 1);
        assert_eq!(circles(&[("x.rs", parent), ("z.rs", part)]).len(), 1);
    }
}
