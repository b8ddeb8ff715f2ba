//! The files of this repository, and what they say once their tests are left out.

use std::fs;
use std::path::{Path, PathBuf};
use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, Expr, Field, Fields, ImplItem, Item, Meta, Stmt, TraitItem};

/// A file of Rust: its name below `src`, its text, and its syntax without tests.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
    /// The files of its modules that are for tests only, as paths without an ending.
    pub(crate) for_tests: Vec<String>,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let parsed = syn::parse_file(text);
        let mut syntax = parsed.unwrap_or_else(|error| panic!("{name} does not parse: {error}"));
        let path = name.strip_suffix(".rs").unwrap();
        let folder = path.strip_suffix("/mod").unwrap_or(path);
        let folder = if path == "lib" { String::new() } else { format!("{folder}/") };
        let for_tests = syntax.items.iter().filter_map(|item| match item {
            Item::Mod(item) if is_for_tests(&item.attrs) => Some(format!("{folder}{}", item.ident)),
            _ => None,
        });
        let mut for_tests: Vec<String> = for_tests.collect();
        for_tests.extend(is_for_tests(&syntax.attrs).then(|| path.to_string()));
        WithoutTests.visit_file_mut(&mut syntax);
        Self { name: name.to_string(), text: text.to_string(), syntax, for_tests }
    }
}

/// A break of a rule: where, and what to do about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Violation {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// In the file `name` below `src`.
pub(crate) fn in_src(name: &str, line: usize, what: impl Into<String>) -> Violation {
    Violation { file: format!("src/{name}"), line, what: what.into() }
}

/// Fails with a line for each violation.
pub(crate) fn assert_none(rule: &str, mut violations: Vec<Violation>) {
    violations.sort();
    violations.dedup();
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{rule}\n{}\nviolations: {}", lines.join("\n"), lines.len());
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names (from the root of the repository) and texts of the files below `folder` that end so.
pub(crate) fn texts(folder: &str, ending: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, ending: &str, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // A package of its own has a `target` of its own.
                if !path.ends_with("target") {
                    walk(&path, ending, into);
                }
            } else if path.to_str().unwrap().ends_with(ending) {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), ending, &mut paths);
    paths.sort();
    let named = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        let text = read(&name);
        (name, text)
    };
    paths.into_iter().map(named).collect()
}

/// All of `src`.
pub(crate) fn sources() -> Vec<Source> {
    let texts = texts("src", ".rs");
    texts.iter().map(|(name, text)| Source::new(&name["src/".len()..], text)).collect()
}

/// Whether what carries these attributes is compiled for tests only.
pub(crate) fn is_for_tests(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let is_cfg = attr.path().is_ident("cfg");
        attr.path().is_ident("test")
            || is_cfg && attr.parse_args::<Meta>().is_ok_and(|meta| !without_test(&meta).0)
    })
}

/// Whether a predicate can hold without `test`, and whether it can fail.
fn without_test(predicate: &Meta) -> (bool, bool) {
    let Meta::List(list) = predicate else {
        return (!predicate.path().is_ident("test"), true);
    };
    let parser = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
    let parts = list.parse_args_with(parser).unwrap();
    let parts: Vec<(bool, bool)> = parts.iter().map(without_test).collect();
    if list.path.is_ident("all") {
        (parts.iter().all(|part| part.0), parts.iter().any(|part| part.1))
    } else if list.path.is_ident("any") {
        (parts.iter().any(|part| part.0), parts.iter().all(|part| part.1))
    } else {
        assert!(list.path.is_ident("not") && parts.len() == 1, "a cfg that tidy does not know");
        (parts[0].1, parts[0].0)
    }
}

/// Takes out what is compiled for tests only.
struct WithoutTests;

impl VisitMut for WithoutTests {
    fn visit_file_mut(&mut self, file: &mut syn::File) {
        file.items.retain(|item| !is_for_tests(attrs_of(item)));
        visit_mut::visit_file_mut(self, file);
    }

    fn visit_item_mod_mut(&mut self, module: &mut syn::ItemMod) {
        if let Some((_, items)) = &mut module.content {
            items.retain(|item| !is_for_tests(attrs_of(item)));
        }
        visit_mut::visit_item_mod_mut(self, module);
    }

    fn visit_item_impl_mut(&mut self, item: &mut syn::ItemImpl) {
        item.items.retain(|item| match item {
            ImplItem::Fn(item) => !is_for_tests(&item.attrs),
            ImplItem::Const(item) => !is_for_tests(&item.attrs),
            ImplItem::Type(item) => !is_for_tests(&item.attrs),
            _ => true,
        });
        visit_mut::visit_item_impl_mut(self, item);
    }

    fn visit_item_trait_mut(&mut self, item: &mut syn::ItemTrait) {
        item.items.retain(|item| match item {
            TraitItem::Fn(item) => !is_for_tests(&item.attrs),
            _ => true,
        });
        visit_mut::visit_item_trait_mut(self, item);
    }

    fn visit_fields_mut(&mut self, fields: &mut Fields) {
        let keep = |field: &Field| !is_for_tests(&field.attrs);
        let list = match fields {
            Fields::Named(fields) => &mut fields.named,
            Fields::Unnamed(fields) => &mut fields.unnamed,
            Fields::Unit => return,
        };
        *list = std::mem::take(list).into_iter().filter(keep).collect();
        visit_mut::visit_fields_mut(self, fields);
    }

    fn visit_expr_struct_mut(&mut self, expr: &mut syn::ExprStruct) {
        let fields = std::mem::take(&mut expr.fields).into_iter();
        expr.fields = fields.filter(|field| !is_for_tests(&field.attrs)).collect();
        visit_mut::visit_expr_struct_mut(self, expr);
    }

    fn visit_expr_match_mut(&mut self, expr: &mut syn::ExprMatch) {
        expr.arms.retain(|arm| !is_for_tests(&arm.attrs));
        visit_mut::visit_expr_match_mut(self, expr);
    }

    fn visit_block_mut(&mut self, block: &mut syn::Block) {
        block.stmts.retain(|stmt| {
            let attrs = match stmt {
                Stmt::Local(local) => &local.attrs,
                Stmt::Item(item) => attrs_of(item),
                Stmt::Macro(stmt) => &stmt.attrs,
                Stmt::Expr(Expr::Block(expr), _) => &expr.attrs,
                Stmt::Expr(Expr::Call(expr), _) => &expr.attrs,
                Stmt::Expr(Expr::MethodCall(expr), _) => &expr.attrs,
                Stmt::Expr(Expr::If(expr), _) => &expr.attrs,
                Stmt::Expr(Expr::Assign(expr), _) => &expr.attrs,
                Stmt::Expr(..) => return true,
            };
            !is_for_tests(attrs)
        });
        visit_mut::visit_block_mut(self, block);
    }
}

/// The attributes of an item.
pub(crate) fn attrs_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_left_out_and_features_are_not() {
        let source = Source::new(
            "a.rs",
            "#[cfg(test)] mod tests {}
             #[cfg(all(test, feature = \"fault-injection\"))] mod more;
             #[cfg(any(test, feature = \"x\"))] fn kept() {}
             #[cfg(feature = \"x\")] fn kept_too() { #[cfg(test)] let a = 1; let b = 2; }
             #[cfg(not(test))] fn and_this() {}
             #[cfg(not(any(test, unix)))] fn windows() {}
             struct S { #[cfg(test)] a: u8, b: u8 }
             impl S { #[cfg(test)] fn a() {} fn b() {} }",
        );
        assert_eq!(source.syntax.items.len(), 6);
        let Item::Fn(function) = &source.syntax.items[1] else { panic!("a function") };
        assert_eq!(function.block.stmts.len(), 1);
        let Item::Struct(item) = &source.syntax.items[4] else { panic!("a struct") };
        assert_eq!(item.fields.len(), 1);
        let Item::Impl(item) = &source.syntax.items[5] else { panic!("an impl") };
        assert_eq!(item.items.len(), 1);
    }
}
