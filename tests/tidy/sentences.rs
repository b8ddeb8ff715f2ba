//! What can be said of the house in a sentence: each names the rooms and functions that it is
//! about, and fails if there are none.

use crate::calls::{Calls, Function, Reached};
use crate::house::House;
use crate::owners::Takes;
use crate::rooms::{is_in, is_in_any};
use crate::source::{Violation, in_src};
use std::collections::BTreeSet;

/// The rooms that the sentences are about.
pub(crate) struct About<'a> {
    /// What the engine's parts are that pop: a file, a type.
    pub(crate) pops: (&'a str, &'a str),
    pub(crate) engine_room: &'a str,
    pub(crate) serves_pop: &'a [&'a str],
    pub(crate) reclaim: &'a [&'a str],
    pub(crate) append: &'a [&'a str],
    /// Where pushes come in, from the handle to the engine's part for them.
    pub(crate) pushes: &'a [&'a str],
    /// What a push may ask of `reclaim`.
    pub(crate) asks: &'a [&'a str],
    /// What opens and closes an engine: a push may do that to the one of the dead letters.
    pub(crate) life: (&'a str, &'a [&'a str]),
    pub(crate) inspect: &'a [&'a str],
    pub(crate) dispatch: &'a [&'a str],
    pub(crate) compaction: &'a str,
    pub(crate) dead_letters: &'a str,
}

pub(crate) const HOUSE: About = About {
    pops: ("engine/consumers.rs", "Consumers"),
    engine_room: "engine",
    serves_pop: &["engine/dispatch", "engine/backlog"],
    reclaim: &["engine/reclaim"],
    append: &["engine/append"],
    pushes: &["queue/push.rs", "open_queue.rs", "engine/producers.rs"],
    asks: &["tidy_small_segments", "is_behind", "catch_up", "make_room", "copy_once"],
    life: ("engine/mod.rs", &["open", "close"]),
    inspect: &["engine/inspect"],
    dispatch: &["engine/dispatch"],
    compaction: "compaction",
    dead_letters: "dead_letters",
};

impl About<'_> {
    /// What serves a pop uses nothing of `reclaim`, and no function that `Consumers::pop...` calls
    /// touches it.
    pub(crate) fn a_pop_does_no_upkeep(&self, house: &House) -> Vec<Violation> {
        let rule = "a pop does no upkeep";
        let mut violations = missing(house, &[self.serves_pop, self.reclaim].concat(), rule);
        let is_reclaim = |file: &str| is_in_any(file, self.reclaim);
        violations.extend(house.ways(&files(house, self.serves_pop), is_reclaim, rule));
        let calls = Calls::of(house);
        let roots = roots(&calls, |function| {
            let (file, owner) = self.pops;
            let is_owner = function.owner.as_ref().is_some_and(|of| of.1 == owner);
            is_owner && house.name(function.file) == file && function.name.starts_with("pop")
        });
        if roots.is_empty() {
            let (file, owner) = self.pops;
            let what = format!("{rule}: no method of {owner} is called `pop...`; name them so");
            violations.push(in_src(file, 1, what));
        }
        let file_of = |function: usize| house.name(calls.functions[function].file);
        for reached in calls.reached(&roots, |function| is_reclaim(file_of(function))) {
            let touched = reached.body.touches.iter().filter_map(|(id, line)| {
                let file = house.name(house.modules.get(id.0).file?);
                is_reclaim(file).then(|| (*line, format!("touches {} of {file}", id.1)))
            });
            let called = reached.body.calls.iter().filter_map(|call| {
                let target = call.targets.iter().find(|target| is_reclaim(file_of(**target)))?;
                let (name, file) = (calls.tell(*target), file_of(*target));
                Some((call.line, format!("calls {name} of {file}")))
            });
            let mut lines = BTreeSet::new();
            let broken = called.chain(touched).filter(|(line, _)| lines.insert(*line));
            violations.extend(broken.map(|(line, what)| tell(&calls, &reached, line, rule, &what)));
        }
        violations
    }

    /// Nothing below the dead letters knows them.
    pub(crate) fn the_engine_knows_no_dead_letters(&self, house: &House) -> Vec<Violation> {
        let rule = "an engine opens no other queue";
        let mut violations = missing(house, &[self.engine_room, self.dead_letters], rule);
        let is_other = |file: &str| is_in(file, self.dead_letters);
        violations.extend(house.ways(&files(house, &[self.engine_room]), is_other, rule));
        violations
    }

    /// What appends uses neither `reclaim` nor compaction, and what `push...` calls asks `reclaim`
    /// for nothing but what is named here.
    pub(crate) fn a_push_leads_no_compaction(&self, house: &House) -> Vec<Violation> {
        let rule = "a push asks, and leads no compaction of its own accord";
        let rooms = [self.append, self.reclaim, &[self.compaction]].concat();
        let mut violations = missing(house, &rooms, rule);
        let is_other = |file: &str| is_in_any(file, self.reclaim) || is_in(file, self.compaction);
        violations.extend(house.ways(&files(house, self.append), is_other, rule));
        let calls = Calls::of(house);
        for file in self.pushes {
            let of_file = roots(&calls, |function| {
                house.name(function.file) == *file && function.name.starts_with("push")
            });
            if of_file.is_empty() {
                let what = format!("{rule}: no function is called `push...`; name them so");
                violations.push(in_src(file, 1, what));
            }
            let is_one = |target: usize| is_other(house.name(calls.functions[target].file));
            let is_life = |target: usize| {
                let Function { file, name, .. } = &calls.functions[target];
                house.name(*file) == self.life.0 && self.life.1.contains(&&**name)
            };
            for reached in calls.reached(&of_file, |target| is_one(target) || is_life(target)) {
                for call in &reached.body.calls {
                    let may_ask = self.asks.contains(&&*call.name);
                    let mut targets = call.targets.iter().filter(|target| is_one(**target));
                    let Some(target) = targets.next().filter(|_| !may_ask) else { continue };
                    let what = format!("calls {}, which is not to be asked", calls.tell(*target));
                    violations.push(tell(&calls, &reached, call.line, rule, &what));
                }
            }
        }
        violations
    }

    /// What only looks calls nothing that stores, by whatever way, and nothing of
    /// `dispatch` that takes `&mut self`, and so nothing of the backlog that it owns.
    pub(crate) fn looking_changes_nothing(&self, house: &House) -> Vec<Violation> {
        let rule = "looking changes nothing";
        let mut violations = missing(house, &[self.inspect, self.dispatch].concat(), rule);
        let calls = Calls::of(house);
        let is_looking = |file: usize| is_in_any(house.name(file), self.inspect);
        let roots = roots(&calls, |function| is_looking(function.file));
        let changes = |target: &usize| {
            let target = &calls.functions[*target];
            target.takes == Takes::Unique
                && is_in_any(house.name(target.file), self.dispatch)
                && !is_looking(target.file)
        };
        let is_store = |target: usize| calls.functions[target].name.starts_with("store");
        for reached in calls.reached(&roots, |target| is_store(target) || changes(&target)) {
            let looks = is_looking(calls.functions[reached.function].file);
            for call in &reached.body.calls {
                let is_atomic =
                    call.name.starts_with("fetch_") || call.name.starts_with("compare_exchange");
                let is_own = looks || !call.targets.is_empty();
                let what = if call.name.starts_with("store") && is_own || is_atomic && looks {
                    format!("stores by {}", call.name)
                } else if let Some(target) = call.targets.iter().find(|target| changes(target)) {
                    format!("calls {}, which takes &mut self", calls.tell(*target))
                } else {
                    continue;
                };
                violations.push(tell(&calls, &reached, call.line, rule, &what));
            }
        }
        violations
    }
}

fn tell(calls: &Calls, reached: &Reached, line: usize, rule: &str, what: &str) -> Violation {
    let function = &calls.functions[reached.function];
    in_src(calls.house.name(function.file), line, format!("{rule}, but {} {what}", reached.way))
}

/// A sentence about a room that is not there says nothing.
fn missing(house: &House, rooms: &[&str], rule: &str) -> Vec<Violation> {
    let missing = rooms.iter().filter(|room| house.files_in(room).is_empty());
    let what = |room: &&str| {
        in_src(room, 1, format!("{rule}: no such room; name the right one in sentences.rs"))
    };
    missing.map(what).collect()
}

fn files(house: &House, rooms: &[&str]) -> Vec<usize> {
    rooms.iter().flat_map(|room| house.files_in(room)).collect()
}

fn roots(calls: &Calls, is_root: impl Fn(&Function) -> bool) -> Vec<usize> {
    let all = 0..calls.functions.len();
    all.filter(|function| is_root(&calls.functions[*function])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About<'_> = About {
        pops: ("engine/mod.rs", "Engine"),
        pushes: &["engine/producers.rs"],
        asks: &["ask"],
        ..HOUSE
    };

    const LIB: (&str, &str) = ("lib.rs", "mod engine; mod dead_letters; mod compaction; mod log;");
    const BACKLOG: (&str, &str) = ("engine/backlog.rs", "pub(crate) struct Backlog;");
    const COMPACTION: (&str, &str) = ("compaction.rs", "pub(crate) fn plan() {}");
    const LETTERS: (&str, &str) = ("dead_letters.rs", "pub(crate) struct Letters;");
    const LOG: (&str, &str) = (
        "log.rs",
        "pub(crate) struct Mapped; impl Mapped {
             pub(crate) fn store_slot(&self) {} pub(crate) fn slot(&self) {}
             pub(crate) fn heal(&self) { self.store_slot(); }
         }",
    );
    const APPEND: (&str, &str) = ("engine/append.rs", "pub(crate) struct Append;");
    const PRODUCERS: (&str, &str) = (
        "engine/producers.rs",
        "use super::reclaim::Reclaim; use super::Engine;
         pub(crate) struct Producers(Reclaim); impl Producers {
             pub(crate) fn push(&self) { self.0.ask(); self.beside() }
             fn beside(&self) { Engine::open().close() }
             fn other(&self) { Reclaim::tidy(&x) }
         }",
    );
    const INSPECT: (&str, &str) = ("engine/inspect.rs", "");
    const RECLAIM: (&str, &str) = (
        "engine/reclaim.rs",
        "use super::backlog::Backlog; pub(crate) struct Reclaim(Backlog); impl Reclaim {
             pub(crate) fn ask(&self) {} pub(crate) fn run(&mut self) {}
             pub(crate) fn tidy(backlog: &Backlog) {}
         }",
    );
    const DISPATCH: (&str, &str) = (
        "engine/dispatch.rs",
        "use super::backlog::Backlog; use crate::log::Mapped;
         pub(crate) struct Dispatch { backlog: Backlog, mapped: Option<Mapped> } impl Dispatch {
             pub(crate) fn next(&mut self) -> Option<&Mapped> { self.mapped.as_ref() }
             pub(crate) fn len(&self) -> usize { 0 }
             pub(crate) fn note(&mut self) {}
             pub(crate) fn mapped(&self) -> &Mapped { self.mapped.as_ref().unwrap() }
         }",
    );
    const ENGINE: &str = "pub(crate) mod inspect; mod append; mod backlog; mod dispatch;
         mod reclaim; mod producers;
         use append::Append; use dispatch::Dispatch; use reclaim::Reclaim; use std::sync::Arc;
         pub(crate) struct Engine { append: Append, dispatch: Arc<Mutex<Dispatch>>,
             reclaim: Padded<Mutex<Reclaim>> }
         struct Padded<T>(T);
         fn help(engine: &Engine) { let part = &engine.reclaim; part.lock(); }";

    /// The house with an `impl Engine`, and with other files in place of its own.
    fn house(methods: &str, others: &[(&str, &str)]) -> House {
        let engine = format!(
            "{ENGINE} impl Engine {{
             pub(crate) fn open() -> Engine {{ Reclaim::tidy(&x); }}
             pub(crate) fn close(&self) {{ self.reclaim.0.lock().run(); }}
             {methods}
             }}"
        );
        let all =
            [LIB, BACKLOG, COMPACTION, LETTERS, LOG, APPEND, INSPECT, RECLAIM, DISPATCH, PRODUCERS];
        let mut files: Vec<(&str, &str)> = all.to_vec();
        files.push(("engine/mod.rs", &engine));
        files.retain(|(name, _)| others.iter().all(|(other, _)| other != name));
        files.extend(others);
        House::of_snippets(&files)
    }

    const POP: &str = "pub(crate) fn pop(&self) { self.dispatch.lock().next(); }";

    #[test]
    fn a_house_that_keeps_them_has_no_violations() {
        let house = house(POP, &[]);
        assert_eq!(ABOUT.a_pop_does_no_upkeep(&house), []);
        assert_eq!(ABOUT.the_engine_knows_no_dead_letters(&house), []);
        assert_eq!(ABOUT.a_push_leads_no_compaction(&house), []);
        assert_eq!(ABOUT.looking_changes_nothing(&house), []);
    }

    #[test]
    fn a_pop_that_does_upkeep_is_found_by_whatever_way() {
        for methods in [
            "pub(crate) fn pop(&self) { self.reclaim.0.lock().run(); }",
            "pub(crate) fn pop_wait(&self) { self.later() } fn later(&self) { self.reclaim.0; }",
            "pub(crate) fn pop(&self) { help(self); }",
            "pub(crate) fn pop(&self) { Self::later(self) } fn later(&self) { help(self) }",
            "pub(crate) fn pop(&self) { let some = Some(1).map(|_| self.later()); }
             fn later(&self) -> u8 { let Self { reclaim, .. } = self; reclaim.lock(); 1 }",
            "pub(crate) fn pop_batch(&self) { while matches!(self.later(), Some(1)) {} }
             fn later(&self) -> Option<u8> { Reclaim::tidy(&x); None }",
            "pub(crate) fn pop(&self) { (0..2).for_each(|_| { assert!(self.later()); }) }
             fn later(&self) -> bool { crate::engine::reclaim::Reclaim::tidy; true }",
            "pub(crate) fn pop(&self) { let me = Arc::new(self); let f = Self::later; f(me); }
             fn later(&self) { self.reclaim.0.lock().ask() }",
        ] {
            let found = ABOUT.a_pop_does_no_upkeep(&house(methods, &[]));
            assert!(!found.is_empty(), "{methods}");
            assert!(found.iter().all(|found| found.file == "src/engine/mod.rs" && found.line > 1));
        }
        let elsewhere =
            format!("{POP} pub(crate) fn run_due(&self) {{ self.reclaim.0.lock().run(); }}");
        assert_eq!(ABOUT.a_pop_does_no_upkeep(&house(&elsewhere, &[])), []);
    }

    #[test]
    fn what_serves_a_pop_reaches_no_upkeep() {
        let through = [
            ("engine/backlog.rs", "use super::line::Line; pub(crate) struct Backlog(Line);"),
            ("engine/line.rs", "pub(crate) struct Line(super::reclaim::Reclaim);"),
        ];
        let found = ABOUT.a_pop_does_no_upkeep(&house(POP, &through));
        assert_eq!(
            found[0].to_string(),
            "src/engine/backlog.rs:1: a pop does no upkeep, but engine/backlog.rs:1 uses Line of \
             engine/line.rs, engine/line.rs:1 uses Reclaim of engine/reclaim.rs"
        );
    }

    #[test]
    fn an_engine_that_knows_dead_letters_is_found() {
        let text = "use crate::dead_letters::Letters; pub(crate) struct Append(Letters);";
        let house = house(POP, &[("engine/append.rs", text)]);
        let found = ABOUT.the_engine_knows_no_dead_letters(&house);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].file, "src/engine/append.rs");
    }

    #[test]
    fn a_push_that_reclaims_or_compacts_is_found() {
        for text in [
            "pub(crate) struct Append; fn f() { super::reclaim::Reclaim::tidy(&x) }",
            "pub(crate) struct Append; fn f() { crate::compaction::plan() }",
        ] {
            let found =
                ABOUT.a_push_leads_no_compaction(&house(POP, &[("engine/append.rs", text)]));
            assert_eq!(found.len(), 1, "{text}");
        }
        for body in
            ["self.0.run()", "self.other()", "Reclaim::tidy(&x)", "crate::compaction::plan()"]
        {
            let text = PRODUCERS.1.replace("self.0.ask()", body);
            let found =
                ABOUT.a_push_leads_no_compaction(&house(POP, &[("engine/producers.rs", &text)]));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
    }

    #[test]
    fn looking_that_changes_is_found_by_whatever_way() {
        let looks = |text: &str| {
            let head = "use super::dispatch::Dispatch; use crate::log::Mapped; use super::Engine;";
            let text = format!("{head}\n{text}");
            ABOUT.looking_changes_nothing(&house(POP, &[("engine/inspect.rs", &text)]))
        };
        for text in [
            "fn a(mapped: &Mapped) { mapped.store_slot(); }",
            "fn a(dispatch: &Dispatch) { dispatch.mapped().heal(); }",
            "fn a(all: &[Mapped]) { for (_, one) in all.iter().enumerate() { one.heal(); } }",
            "fn a(engine: &Engine) { engine.dispatch.lock().mapped().heal() }",
            "fn a(x: u8) { unknown(x).heal(); }",
            "fn a(word: &std::sync::atomic::AtomicU64) { word.store(1, R); }",
            "fn a(word: &std::sync::atomic::AtomicU64) { word.fetch_add(1, R); }",
            "fn a(dispatch: &mut Dispatch) { dispatch.note(); }",
            "struct Look<'a> { part: &'a mut Dispatch }
             impl Look<'_> { fn a(&mut self) { self.part.next(); } }",
            "fn a(engine: &Engine) { let Some(one) = b(engine) else { return }; one.heal() }
             fn b(engine: &Engine) -> Option<&Mapped> { None }",
            "fn a(engine: &Engine) { with(|part| part.next()) } fn with(f: impl Fn(&Dispatch)) {}",
        ] {
            assert_eq!(looks(text).len(), 1, "{text}: {:?}", looks(text));
        }
        for text in [
            "fn a(dispatch: &Dispatch) { dispatch.len(); dispatch.mapped().slot(); }",
            "fn a(mut all: std::slice::Iter<u8>) { all.next(); }",
            "struct Look; impl Iterator for Look { fn next(&mut self) { self.on() } }
             impl Look { fn on(&mut self) {} }",
        ] {
            assert_eq!(looks(text), [], "{text}");
        }
    }

    #[test]
    fn a_sentence_about_nothing_fails() {
        let house = House::of_snippets(&[("engine/mod.rs", "struct Engine;")]);
        assert_eq!(ABOUT.a_pop_does_no_upkeep(&house).len(), 4);
        assert_eq!(ABOUT.the_engine_knows_no_dead_letters(&house).len(), 1);
        assert_eq!(ABOUT.a_push_leads_no_compaction(&house).len(), 4);
        assert_eq!(ABOUT.looking_changes_nothing(&house).len(), 2);
    }
}
