//! Names of types: each has one meaning, so no two types have one.

use crate::source::{Source, Violation, in_src};
use std::collections::BTreeMap;
use syn::Item;

/// Types whose name another type has.
pub(crate) fn with_two_meanings(sources: &[Source]) -> Vec<Violation> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut violations = Vec::new();
    for source in sources {
        for (name, line) in types_of(&source.syntax.items) {
            let place = format!("src/{}:{line}", source.name);
            if let Some(first) = known.get(&name) {
                let what = format!("{name} is the type at {first}; one name has one meaning");
                violations.push(in_src(&source.name, line, what));
            } else {
                known.insert(name, place);
            }
        }
    }
    violations
}

fn types_of(items: &[Item]) -> Vec<(String, usize)> {
    let mut types = Vec::new();
    for item in items {
        let ident = match item {
            Item::Struct(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Union(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Mod(module) => {
                types.extend(module.content.iter().flat_map(|(_, items)| types_of(items)));
                continue;
            }
            _ => continue,
        };
        types.push((ident.to_string(), ident.span().start().line));
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_two_meanings_is_found() {
        let sources = [
            Source::new("a.rs", "pub struct Place; mod inner { enum Step { Place } }"),
            Source::new("b.rs", "fn place() {}\n\ntrait Step {}\ntype Place = u8; struct Own;"),
        ];
        let found: Vec<_> = with_two_meanings(&sources).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "src/b.rs:3: Step is the type at src/a.rs:1; one name has one meaning",
                "src/b.rs:4: Place is the type at src/a.rs:1; one name has one meaning",
            ]
        );
    }
}
