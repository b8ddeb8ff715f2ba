//! The modules of the crate, and what a path in one of them names.

use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

/// An item: the module that defines it, and its name.
pub(crate) type ItemId = (usize, String);

/// What a path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Module(usize),
    /// An item, and what the path goes on with: a variant, a function of a type.
    Item(ItemId, Vec<String>),
    /// A path into another crate.
    Outside(Vec<String>),
}

/// The name in a `use` tree.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// `None` for a glob.
    pub(crate) name: Option<String>,
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    pub(crate) is_export: bool,
}

/// A module, in a file of its own or in another's.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// The file, as an index into the sources.
    pub(crate) file: Option<usize>,
    /// What a path may begin with in place of `crate`.
    path: Vec<String>,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// Names of items; of an enum, its variants.
    items: BTreeMap<String, BTreeSet<String>>,
    pub(crate) imports: Vec<Import>,
}

/// All modules; the first is the crate's.
#[derive(Debug)]
pub(crate) struct Modules(Vec<Module>);

impl Modules {
    pub(crate) fn of(sources: &[Source]) -> Self {
        let mut modules = Self(vec![Module::default()]);
        for (file, source) in sources.iter().enumerate() {
            let path = source.name.strip_suffix(".rs").unwrap();
            let path = path.strip_suffix("/mod").unwrap_or(path);
            let names = path.split('/').filter(|name| *name != "lib");
            let module = names.fold(0, |parent, name| modules.child(parent, name));
            modules.0[module].file = Some(file);
            modules.fill(module, file, &source.syntax.items);
        }
        modules
    }

    fn child(&mut self, parent: usize, name: &str) -> usize {
        if let Some(child) = self.0[parent].children.get(name) {
            return *child;
        }
        let child = self.0.len();
        let mut path = self.0[parent].path.clone();
        path.push(name.to_string());
        self.0.push(Module { parent: Some(parent), path, ..Module::default() });
        self.0[parent].children.insert(name.to_string(), child);
        child
    }

    fn fill(&mut self, module: usize, file: usize, items: &[Item]) {
        for item in items {
            let (name, variants) = match item {
                Item::Mod(item) => {
                    if let Some((_, items)) = &item.content {
                        let child = self.child(module, &item.ident.to_string());
                        self.0[child].file = Some(file);
                        self.fill(child, file, items);
                    }
                    continue;
                }
                Item::Enum(item) => {
                    let variants = item.variants.iter().map(|variant| variant.ident.to_string());
                    (&item.ident, variants.collect())
                }
                Item::Const(item) => (&item.ident, BTreeSet::new()),
                Item::Fn(item) => (&item.sig.ident, BTreeSet::new()),
                Item::Static(item) => (&item.ident, BTreeSet::new()),
                Item::Struct(item) => (&item.ident, BTreeSet::new()),
                Item::Trait(item) => (&item.ident, BTreeSet::new()),
                Item::Type(item) => (&item.ident, BTreeSet::new()),
                Item::Union(item) => (&item.ident, BTreeSet::new()),
                Item::Macro(syn::ItemMacro { ident: Some(ident), .. }) => (ident, BTreeSet::new()),
                _ => continue,
            };
            self.0[module].items.entry(name.to_string()).or_default().extend(variants);
        }
        // Those in functions, too.
        let mut imports = Imports(Vec::new());
        for item in items {
            imports.visit_item(item);
        }
        self.0[module].imports.extend(imports.0);
    }

    pub(crate) fn get(&self, module: usize) -> &Module {
        &self.0[module]
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, &Module)> {
        self.0.iter().enumerate()
    }

    /// The module that a file is, or that stands in it by that name.
    pub(crate) fn inline(&self, parent: usize, name: &str) -> usize {
        self.0[parent].children[name]
    }

    pub(crate) fn of_file(&self, file: usize) -> usize {
        self.0.iter().position(|module| module.file == Some(file)).unwrap()
    }

    /// The file of the module that holds this file's.
    pub(crate) fn parent_file(&self, file: usize) -> Option<usize> {
        self.0[self.0[self.of_file(file)].parent?].file
    }

    /// The types and traits of this crate that a type names, itself or as an argument; `Self` is
    /// `own`.
    pub(crate) fn types_in(
        &self,
        module: usize,
        ty: &syn::Type,
        own: Option<&ItemId>,
    ) -> BTreeSet<ItemId> {
        let mut names = Names { modules: self, module, own, found: BTreeSet::new() };
        names.visit_type(ty);
        names.found
    }

    /// Those that the parameters and bounds of a function name.
    pub(crate) fn types_in_signature(
        &self,
        module: usize,
        signature: &syn::Signature,
        own: Option<&ItemId>,
    ) -> BTreeSet<ItemId> {
        let mut names = Names { modules: self, module, own, found: BTreeSet::new() };
        names.visit_generics(&signature.generics);
        signature.inputs.iter().for_each(|input| names.visit_fn_arg(input));
        names.found
    }

    /// The file that defines what was found.
    pub(crate) fn file_of(&self, target: &Target) -> Option<usize> {
        match target {
            Target::Module(module) | Target::Item((module, _), _) => self.0[*module].file,
            Target::Outside(_) => None,
        }
    }

    /// What `path` names in `module`; `None` if it is local, or begins with another crate's name.
    pub(crate) fn resolve(&self, module: usize, path: &[String]) -> Option<Target> {
        self.find(module, path, &mut BTreeSet::new())
    }

    fn find(
        &self,
        module: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String, bool)>,
    ) -> Option<Target> {
        let mut at = module;
        let mut rest = path;
        let mut is_first = true;
        while let Some((name, others)) = rest.split_first() {
            let found = match (name.as_str(), is_first) {
                ("crate", true) => Target::Module(0),
                ("self", true) if !others.is_empty() => Target::Module(at),
                ("super", _) => Target::Module(self.0[at].parent?),
                _ => self.find_name(at, name, !others.is_empty(), seen)?,
            };
            // `super::super` may follow, and `self::super`.
            is_first = false;
            match found {
                Target::Module(module) => (at, rest) = (module, others),
                Target::Item(id, mut more) => {
                    more.extend_from_slice(others);
                    return Some(Target::Item(id, more));
                }
                Target::Outside(mut whole) => {
                    whole.extend_from_slice(others);
                    return Some(Target::Outside(whole));
                }
            }
        }
        (!path.is_empty()).then_some(Target::Module(at))
    }

    /// What `name` is in `module`: of a module and an item of that name, the module if `more`
    /// follows in the path.
    fn find_name(
        &self,
        module: usize,
        name: &str,
        more: bool,
        seen: &mut BTreeSet<(usize, String, bool)>,
    ) -> Option<Target> {
        if !seen.insert((module, name.to_string(), more)) {
            return None;
        }
        let here = &self.0[module];
        let item = here.items.get(name).map(|_| Target::Item((module, name.into()), Vec::new()));
        let child = here.children.get(name).map(|child| Target::Module(*child));
        let (first, second) = if more { (child, item) } else { (item, child) };
        if first.is_some() {
            return first;
        }
        let named = here.imports.iter().filter(|import| import.name.as_deref() == Some(name));
        for import in named {
            let found = self.find_import(module, import, more, seen);
            if found.is_some() {
                return found;
            }
            let is_own = ["crate", "self", "super"].contains(&import.path[0].as_str());
            if !is_own && (import.path.len() > 1 || import.path[0] != name) {
                return Some(Target::Outside(import.path.clone()));
            }
        }
        if second.is_some() {
            return second;
        }
        for glob in here.imports.iter().filter(|import| import.name.is_none()) {
            let found = match self.find(module, &glob.path, seen) {
                Some(Target::Module(glob)) => self.find_name(glob, name, more, seen),
                Some(Target::Item(id, rest)) => {
                    let is_variant = rest.is_empty() && self.0[id.0].items[&id.1].contains(name);
                    is_variant.then(|| Target::Item(id, vec![name.to_string()]))
                }
                Some(Target::Outside(_)) | None => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// An import names all that has its name: a module and a function, say.
    fn find_import(
        &self,
        module: usize,
        import: &Import,
        more: bool,
        seen: &mut BTreeSet<(usize, String, bool)>,
    ) -> Option<Target> {
        let (last, before) = import.path.split_last()?;
        if before.is_empty() {
            return self.find(module, &import.path, seen);
        }
        match self.find(module, before, seen)? {
            Target::Module(parent) if last != "super" => self.find_name(parent, last, more, seen),
            _ => self.find(module, &import.path, seen),
        }
    }
}

struct Names<'a> {
    modules: &'a Modules,
    module: usize,
    own: Option<&'a ItemId>,
    found: BTreeSet<ItemId>,
}

impl Visit<'_> for Names<'_> {
    fn visit_path(&mut self, path: &syn::Path) {
        let names: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names[0] == "Self" {
            self.found.extend(self.own.cloned());
        } else if let Some(Target::Item(id, _)) = self.modules.resolve(self.module, &names) {
            self.found.insert(id);
        }
        visit::visit_path(self, path);
    }
}

/// Gathers the `use` trees of a module, and not those of modules in it.
struct Imports(Vec<Import>);

impl Visit<'_> for Imports {
    fn visit_item_mod(&mut self, _: &syn::ItemMod) {}

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        let is_export = !matches!(item.vis, Visibility::Inherited);
        // `::name` is another crate's, whatever stands here.
        let mut path = Vec::from_iter(item.leading_colon.as_ref().map(|_| String::new()));
        let line = item.use_token.span.start().line;
        flatten(&item.tree, line, &mut path, &mut |name, path, line| {
            self.0.push(Import { name, path, line, is_export });
        });
        visit::visit_item_use(self, item);
    }
}

/// Tells of each name in a tree: what it is called here, its path, its line.
fn flatten(
    tree: &UseTree,
    line: usize,
    path: &mut Vec<String>,
    found: &mut impl FnMut(Option<String>, Vec<String>, usize),
) {
    let line_of = |ident: &proc_macro2::Ident| ident.span().start().line;
    let mut leaf = |ident: &proc_macro2::Ident, name: String| {
        let mut whole = path.clone();
        if ident == "self" && !whole.is_empty() {
            let name = if name == "self" { whole[whole.len() - 1].clone() } else { name };
            found(Some(name), whole, line_of(ident));
        } else {
            whole.push(ident.to_string());
            found(Some(name), whole, line_of(ident));
        }
    };
    match tree {
        UseTree::Name(tree) => leaf(&tree.ident, tree.ident.to_string()),
        UseTree::Rename(tree) => leaf(&tree.ident, tree.rename.to_string()),
        UseTree::Glob(_) => found(None, path.clone(), line),
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            flatten(&tree.tree, line_of(&tree.ident), path, found);
            path.pop();
        }
        UseTree::Group(tree) => {
            tree.items.iter().for_each(|tree| flatten(tree, line, path, found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `path` names in the module of `file`, as `file::Item::rest` or `file`.
    fn named(files: &[(&str, &str)], file: &str, path: &str) -> String {
        let sources: Vec<Source> =
            files.iter().map(|(name, text)| Source::new(name, text)).collect();
        let modules = Modules::of(&sources);
        let from = sources.iter().position(|source| source.name == file).unwrap();
        let path: Vec<String> = path.split("::").map(str::to_string).collect();
        let Some(target) = modules.resolve(modules.of_file(from), &path) else {
            return "nothing".to_string();
        };
        if let Target::Outside(path) = target {
            return path.join("::");
        }
        let file = &sources[modules.file_of(&target).unwrap()].name;
        match target {
            Target::Module(_) | Target::Outside(_) => file.clone(),
            Target::Item((_, name), rest) if rest.is_empty() => format!("{file}::{name}"),
            Target::Item((_, name), rest) => format!("{file}::{name}::{}", rest.join("::")),
        }
    }

    const HOUSE: &[(&str, &str)] = &[
        ("lib.rs", "mod a; mod b; mod c; pub use a::deep::Deep;"),
        ("a/mod.rs", "mod deep; pub(crate) use deep::{Deep as Renamed, *}; fn own() {}"),
        ("a/deep.rs", "pub(crate) struct Deep; pub(crate) enum E { One, Two } fn deep() {}"),
        ("b.rs", "use crate::a::{self, Renamed, deep as far}; use crate::a::E::*;"),
        (
            "c.rs",
            "use std::io::{self, Read as R}; mod inner { use super::*; } use crate::b::*;
             fn c() { use super::a::E as F; }",
        ),
    ];

    #[test]
    fn paths_lead_to_the_file_that_defines() {
        for (file, path, what) in [
            ("b.rs", "crate::a::deep::Deep", "a/deep.rs::Deep"),
            ("b.rs", "crate::a::Renamed", "a/deep.rs::Deep"),
            ("b.rs", "crate::Deep", "a/deep.rs::Deep"),
            ("b.rs", "super::a::E::One", "a/deep.rs::E::One"),
            ("b.rs", "One", "a/deep.rs::E::One"),
            ("b.rs", "Renamed::new", "a/deep.rs::Deep::new"),
            ("b.rs", "a::own", "a/mod.rs::own"),
            ("b.rs", "far::Deep", "a/deep.rs::Deep"),
            ("b.rs", "a", "a/mod.rs"),
            ("a/deep.rs", "super::own", "a/mod.rs::own"),
            ("a/deep.rs", "super::super::b", "b.rs"),
            ("a/deep.rs", "self::E", "a/deep.rs::E"),
            ("c.rs", "Renamed", "a/deep.rs::Deep"),
            ("c.rs", "F::Two", "a/deep.rs::E::Two"),
            ("c.rs", "self::inner::c", "c.rs::c"),
            ("c.rs", "std::mem::take", "nothing"),
            ("c.rs", "io::Error", "std::io::Error"),
            ("c.rs", "super::c::R", "std::io::Read"),
            ("c.rs", "self", "nothing"),
            ("c.rs", "Self", "nothing"),
            ("c.rs", "crate::nowhere::X", "nothing"),
        ] {
            assert_eq!(named(HOUSE, file, path), what, "{path} in {file}");
        }
    }

    #[test]
    fn a_module_and_a_function_may_have_one_name() {
        let files = [
            ("lib.rs", "mod log; mod user; mod other;"),
            ("log.rs", "pub(crate) mod scan;"),
            ("log/scan.rs", "pub(crate) fn scan() {} pub(crate) struct Scanned;"),
            ("user.rs", "use crate::log::scan::{Scanned, scan};"),
            ("other.rs", "use crate::log::scan;"),
        ];
        assert_eq!(named(&files, "user.rs", "scan"), "log/scan.rs::scan");
        assert_eq!(named(&files, "other.rs", "scan::scan"), "log/scan.rs::scan");
        assert_eq!(named(&files, "other.rs", "scan"), "log/scan.rs");
    }
}
