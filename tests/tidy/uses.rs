//! What each file uses of others: by `use` trees, and by paths in code, types, patterns, macros
//! and attributes.

use crate::modules::{Modules, Target};
use crate::source::{Source, Violation, in_src};
use proc_macro2::{Ident, TokenStream, TokenTree};
use std::collections::BTreeMap;
use syn::visit::{self, Visit};
use syn::{Attribute, Meta};

/// A use of something in another file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Use {
    pub(crate) line: usize,
    /// What is used, or the module's name.
    pub(crate) name: String,
}

/// What the files of a tree use.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// From a file to another: the uses, in the order of lines.
    pub(crate) of_files: BTreeMap<(usize, usize), Vec<Use>>,
    /// Paths into other crates, with their lines, file by file.
    pub(crate) outside: Vec<Vec<(Vec<String>, usize)>>,
    /// Methods that are called, with their lines, file by file.
    pub(crate) methods: Vec<Vec<(String, usize)>>,
    /// Paths of this crate that name nothing: this test does not understand them.
    pub(crate) unclear: Vec<Violation>,
}

impl Uses {
    pub(crate) fn of(sources: &[Source], modules: &Modules) -> Self {
        let mut uses = Self {
            outside: vec![Vec::new(); sources.len()],
            methods: vec![Vec::new(); sources.len()],
            ..Self::default()
        };
        for (_, module) in modules.all().filter(|(_, module)| module.file.is_none()) {
            assert!(module.imports.is_empty(), "a module without a file");
        }
        for (file, source) in sources.iter().enumerate() {
            let module = modules.of_file(file);
            let mut finder = Finder { source, file, module, modules, uses: &mut uses };
            finder.visit_file(&source.syntax);
        }
        for (module, file) in modules.all().filter_map(|(id, module)| Some((id, module.file?))) {
            let source = &sources[file];
            let mut finder = Finder { source, file, module, modules, uses: &mut uses };
            finder.imports();
        }
        uses.of_files.values_mut().for_each(|list| list.sort());
        uses
    }

    /// The files that `file` uses.
    pub(crate) fn from(&self, file: usize) -> impl Iterator<Item = (usize, &Use)> {
        let all = self.of_files.range((file, 0)..=(file, usize::MAX));
        all.map(|((_, to), uses)| (*to, &uses[0]))
    }
}

struct Finder<'a> {
    source: &'a Source,
    file: usize,
    module: usize,
    modules: &'a Modules,
    uses: &'a mut Uses,
}

impl Finder<'_> {
    /// What an import names is used; an imported module is used where a path goes on from it.
    fn imports(&mut self) {
        for import in &self.modules.get(self.module).imports {
            let target = self.modules.resolve(self.module, &import.path);
            let is_module = matches!(target, Some(Target::Module(_)));
            if is_module && import.name.is_some() && !import.is_export {
                continue;
            }
            self.note(target, &import.path, import.line);
        }
    }

    fn note(&mut self, target: Option<Target>, path: &[String], line: usize) {
        let name = path.last().unwrap().clone();
        let starts_here = ["crate", "self", "super"].contains(&path[0].as_str());
        let target = match target {
            Some(Target::Outside(whole)) => {
                self.uses.outside[self.file].push((whole, line));
                return;
            }
            Some(target) => target,
            None if starts_here && path.len() > 1 => {
                let what = format!("tidy finds no {}; name it by its module", path.join("::"));
                self.uses.unclear.push(in_src(&self.source.name, line, what));
                return;
            }
            None => {
                let path = path.iter().filter(|name| !name.is_empty()).cloned().collect();
                self.uses.outside[self.file].push((path, line));
                return;
            }
        };
        let Some(to) = self.modules.file_of(&target).filter(|to| *to != self.file) else { return };
        let name = match target {
            Target::Item((_, item), _) => item,
            _ => name,
        };
        self.uses.of_files.entry((self.file, to)).or_default().push(Use { line, name });
    }

    fn path(&mut self, path: &[String], line: usize) {
        let target = self.modules.resolve(self.module, path);
        // A module alone is no value: it is a variable of that name.
        if !matches!(target, Some(Target::Module(_))) && path != ["self"] && path != ["Self"] {
            self.note(target, path, line);
        }
    }

    /// Paths and method calls in what a macro is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<Ident> = Vec::new();
        let (mut colons, mut dots) = (0, 0);
        let mut method = None;
        for token in tokens {
            if let (Some(name), TokenTree::Group(_)) = (method.take(), &token) {
                self.method(&name);
            }
            let goes_on = colons == 2;
            let mark = if let TokenTree::Punct(punct) = &token { punct.as_char() } else { ' ' };
            if !(goes_on && matches!(token, TokenTree::Ident(_)) || mark == ':') {
                self.end_path(&mut path);
            }
            match token {
                // A range has two dots.
                TokenTree::Ident(ident) if dots == 1 => method = Some(ident),
                TokenTree::Ident(ident) => path.push(ident),
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
            colons = if mark == ':' { colons + 1 } else { 0 };
            dots = if mark == '.' { dots + 1 } else { 0 };
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Vec<Ident>) {
        if let Some(first) = path.first() {
            let line = first.span().start().line;
            let names: Vec<String> = path.iter().map(ToString::to_string).collect();
            self.path(&names, line);
            path.clear();
        }
    }

    fn method(&mut self, name: &Ident) {
        let line = name.span().start().line;
        self.uses.methods[self.file].push((name.to_string(), line));
    }
}

impl Visit<'_> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        let outer = self.module;
        if item.content.is_some() {
            self.module = self.modules.inline(outer, &item.ident.to_string());
        }
        let is_elsewhere = item.attrs.iter().any(|attr| attr.path().is_ident("path"));
        if is_elsewhere {
            let line = item.ident.span().start().line;
            let what = "#[path]: put the file where its module is";
            self.uses.unclear.push(in_src(&self.source.name, line, what));
        }
        visit::visit_item_mod(self, item);
        self.module = outer;
    }

    /// Imports are taken from the module.
    fn visit_item_use(&mut self, _: &syn::ItemUse) {}

    /// `pub(super)` is no use.
    fn visit_visibility(&mut self, _: &syn::Visibility) {}

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        let first = path.leading_colon.as_ref().map(|_| String::new());
        let line = path.segments[0].ident.span().start().line;
        self.path(&first.into_iter().chain(names).collect::<Vec<_>>(), line);
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &syn::ExprMethodCall) {
        self.method(&call.method);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, mac: &syn::Macro) {
        self.tokens(mac.tokens.clone());
        visit::visit_macro(self, mac);
    }

    /// `#[serde(with = "crate::format::bytes")]` is a use.
    fn visit_attribute(&mut self, attr: &Attribute) {
        let Meta::List(list) = &attr.meta else { return };
        if ["cfg", "cfg_attr", "allow", "expect", "doc"].iter().any(|name| list.path.is_ident(name))
        {
            return;
        }
        self.tokens(list.tokens.clone());
        for token in list.tokens.clone() {
            let TokenTree::Literal(literal) = token else { continue };
            let line = literal.span().start().line;
            let text = literal.to_string();
            let names: Vec<String> =
                text.trim_matches('"').split("::").map(str::to_string).collect();
            if names.len() > 1 && ["crate", "self", "super"].contains(&names[0].as_str()) {
                self.path(&names, line);
            }
        }
    }
}
