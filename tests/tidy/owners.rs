//! Who owns what: types, their fields, their methods, and where the `impl` blocks stand.

use crate::modules::{ItemId, Modules, Target};
use crate::rooms::{FIGURES, PLAIN, is_in_any};
use crate::source::{Source, Violation, in_src};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{FnArg, ImplItem, Item, ReceiverKind, ReturnType, Type, Visibility};

/// What a method takes of its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Takes {
    Nothing,
    Shared,
    Unique,
    Whole,
}

impl Takes {
    pub(crate) fn of(signature: &syn::Signature) -> Self {
        let Some(FnArg::Receiver(receiver)) = signature.inputs.first() else {
            return Self::Nothing;
        };
        match &receiver.kind {
            ReceiverKind::Reference(_, _, Some(_)) => Self::Unique,
            ReceiverKind::Reference(..) => Self::Shared,
            _ => Self::Whole,
        }
    }
}

#[derive(Debug)]
struct Method {
    name: String,
    takes: Takes,
    is_public: bool,
    returns: BTreeSet<ItemId>,
}

/// An `impl` block of a type of this crate.
#[derive(Debug)]
struct Impl {
    of: ItemId,
    /// The file that defines the type, and the one in which the block stands.
    defined_in: usize,
    file: usize,
    line: usize,
    is_inherent: bool,
    /// The file that defines its trait.
    trait_in: Option<usize>,
    methods: Vec<Method>,
    /// All it does is to make what this file defines out of what lies below: `Options::open`.
    is_door: bool,
}

#[derive(Debug)]
struct Struct {
    id: ItemId,
    file: usize,
    /// Names of the fields that other modules see, and the line of the first.
    visible: Vec<String>,
    line: usize,
    lock: Option<String>,
}

/// A block that stands in another file than its type.
#[derive(Debug)]
pub(crate) struct Away<'a> {
    pub(crate) type_name: &'a str,
    pub(crate) defined_in: usize,
    pub(crate) file: usize,
    pub(crate) line: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Owners {
    names: Vec<String>,
    impls: Vec<Impl>,
    structs: Vec<Struct>,
    /// Files that are a part of their parent's type, with the parent.
    limbs: BTreeMap<usize, usize>,
    /// Why a file with methods of its parent's type is not such a part.
    no_limbs: BTreeMap<(usize, usize), String>,
}

impl Owners {
    pub(crate) fn of(sources: &[Source], modules: &Modules) -> Self {
        let names = sources.iter().map(|source| source.name.clone()).collect();
        let mut owners = Self { names, ..Self::default() };
        for (file, source) in sources.iter().enumerate() {
            owners.read(modules, modules.of_file(file), file, &source.syntax.items);
        }
        for (file, source) in sources.iter().enumerate() {
            owners.find_limb(file, source, modules);
        }
        owners
    }

    fn read(&mut self, modules: &Modules, module: usize, file: usize, items: &[Item]) {
        for item in items {
            match item {
                Item::Mod(syn::ItemMod { ident, content: Some((_, items)), .. }) => {
                    self.read(modules, modules.inline(module, &ident.to_string()), file, items);
                }
                Item::Impl(item) => self.impls.extend(read_impl(modules, module, file, item)),
                Item::Struct(item) => self.structs.push(read_struct(module, file, item)),
                _ => {}
            }
        }
    }

    /// A child that holds nothing but `impl` blocks of its parent's types, and private helpers.
    fn find_limb(&mut self, file: usize, source: &Source, modules: &Modules) {
        let Some(parent) = modules.parent_file(file) else { return };
        let is_of_parent = |block: &&Impl| block.file == file && block.defined_in == parent;
        let Some(block) = self.impls.iter().find(is_of_parent) else { return };
        let other = source.syntax.items.iter().find_map(|item| {
            let (vis, name) = match item {
                Item::Use(item) => (&item.vis, "a re-export".to_string()),
                Item::Fn(item) => (&item.vis, item.sig.ident.to_string()),
                Item::Const(item) => (&item.vis, item.ident.to_string()),
                Item::Static(item) => (&item.vis, item.ident.to_string()),
                Item::Struct(item) => (&item.vis, item.ident.to_string()),
                Item::Enum(item) => (&item.vis, item.ident.to_string()),
                Item::Trait(item) => (&item.vis, item.ident.to_string()),
                Item::Type(item) => (&item.vis, item.ident.to_string()),
                Item::Impl(_) => return None,
                _ => return Some("what is neither an `impl` nor a private helper".to_string()),
            };
            (!matches!(vis, Visibility::Inherited)).then_some(name)
        });
        let is_foreign = |block: &&Impl| {
            block.file == file && ![parent, file].contains(&block.defined_in) && !block.is_door
        };
        let foreign = self.impls.iter().find(is_foreign);
        let other = other.or(foreign.map(|block| format!("impl {}", block.of.1)));
        let Some(other) = other else {
            self.limbs.insert(file, parent);
            return;
        };
        let names = (&self.names[file], &self.names[parent], &block.of.1);
        let why = format!(
            "{} has methods of {} of {} and {other}, so it is no mere part of that type",
            names.0, names.2, names.1
        );
        self.no_limbs.insert((file, parent), why);
    }

    /// The parent of which the file is a part.
    pub(crate) fn limb_of(&self, file: usize) -> Option<usize> {
        self.limbs.get(&file).copied()
    }

    /// If a child and its parent use each other: what else the child is.
    pub(crate) fn why_no_limb(&self, circle: &[(usize, usize)]) -> Option<&str> {
        circle.iter().find_map(|arrow| self.no_limbs.get(arrow)).map(String::as_str)
    }

    /// Inherent blocks that stand in another file than their type.
    pub(crate) fn impls_away(&self) -> impl Iterator<Item = Away<'_>> {
        let inherent = self.impls.iter().filter(|block| block.is_inherent);
        let away = inherent.filter(|block| block.file != block.defined_in && !block.is_door);
        away.map(|block| Away {
            type_name: &block.of.1,
            defined_in: block.defined_in,
            file: block.file,
            line: block.line,
        })
    }

    /// An `impl` stands in its type's file or in a child of it; that of a trait of this crate may
    /// stand at the trait.
    pub(crate) fn misplaced_impls(&self) -> Vec<Violation> {
        let misplaced = self.impls.iter().filter(|block| {
            let homes = [Some(block.defined_in), block.trait_in];
            let is_home = |home: &usize| self.is_child_of(block.file, *home);
            !block.is_door && !homes.iter().flatten().any(is_home)
        });
        let tell = |block: &Impl| {
            let (name, home) = (&block.of.1, &self.names[block.defined_in]);
            let what = format!(
                "impl of {name}, which {home} defines; put it there or into a child of that file"
            );
            in_src(&self.names[block.file], block.line, what)
        };
        misplaced.map(tell).collect()
    }

    fn is_child_of(&self, file: usize, parent: usize) -> bool {
        let (file, parent) = (&self.names[file], &self.names[parent]);
        let folder = parent.strip_suffix("/mod.rs").or(parent.strip_suffix(".rs")).unwrap();
        file == parent || folder != "lib" && file.starts_with(&format!("{folder}/"))
    }

    /// `Engine` has its methods in its file.
    pub(crate) fn engine_blocks(&self, engine: &str) -> Vec<Violation> {
        let inherent = self.impls.iter().filter(|block| block.is_inherent);
        let (own, away): (Vec<&Impl>, Vec<&Impl>) = inherent
            .filter(|block| block.of.1 == "Engine" && self.names[block.defined_in] == engine)
            .partition(|block| self.names[block.file] == engine);
        let tell = |block: &&Impl| {
            let what = format!(
                "{} methods of Engine outside {engine}: give them to the room that owns what they \
                 work on",
                block.methods.len()
            );
            in_src(&self.names[block.file], block.line, what)
        };
        let mut violations: Vec<Violation> = away.iter().map(tell).collect();
        if own.is_empty() {
            violations.push(in_src(engine, 1, "no impl Engine is here: name its file in main.rs"));
        }
        violations
    }

    /// No type has more methods than `most`, but for figures: one more is a getter more.
    pub(crate) fn types_with_many_methods(&self, most: usize) -> Vec<Violation> {
        let mut counts: BTreeMap<&ItemId, (usize, BTreeSet<usize>)> = BTreeMap::new();
        let is_figures = |block: &Impl| is_in_any(&self.names[block.defined_in], FIGURES);
        let blocks = self.impls.iter().filter(|block| block.is_inherent && !is_figures(block));
        for block in blocks {
            let count = counts.entry(&block.of).or_default();
            count.0 += block.methods.len();
            count.1.insert(block.file);
        }
        let many = counts.iter().filter(|(_, (count, _))| *count > most);
        let tell = |(id, (count, files)): (&&ItemId, &(usize, BTreeSet<usize>))| {
            let block = self.impls.iter().find(|block| block.of == **id).unwrap();
            let name = &self.names[block.defined_in];
            let what = format!(
                "{} has {count} methods in {} files, and {most} are allowed: it is two types",
                id.1,
                files.len(),
            );
            let own = block.file == block.defined_in;
            in_src(name, if own { block.line } else { 1 }, what)
        };
        many.map(tell).collect()
    }

    /// Fields that others see belong to plain data alone.
    pub(crate) fn open_fields(&self) -> Vec<Violation> {
        let open = self.structs.iter().filter(|item| !item.visible.is_empty());
        let told = open.filter_map(|item| {
            let name = &self.names[item.file];
            let blocks = self.impls.iter().filter(|block| block.of == item.id);
            let mut methods =
                blocks.flat_map(|block| block.methods.iter().map(move |method| (block, method)));
            let changes = methods.clone().find(|(_, method)| method.takes == Takes::Unique);
            let speaks =
                methods.find(|(block, method)| block.is_inherent && method.takes != Takes::Nothing);
            let why = match (&item.lock, changes, speaks) {
                (Some(lock), ..) => format!("it holds {lock}"),
                (_, Some((_, method)), _) => format!("{} takes &mut self", method.name),
                (_, _, Some((_, method))) if !is_in_any(name, PLAIN) => {
                    format!("it has methods ({}) and is in no room of plain data", method.name)
                }
                _ => return None,
            };
            let what = format!(
                "other modules see into {} ({}), but {why}: make its fields private",
                item.id.1,
                item.visible.join(" ")
            );
            Some(in_src(name, item.line, what))
        });
        told.collect()
    }
}

fn read_impl(modules: &Modules, module: usize, file: usize, item: &syn::ItemImpl) -> Option<Impl> {
    let named = |path: &syn::Path| {
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        modules.resolve(module, &names.collect::<Vec<_>>())
    };
    let of = match &*item.self_ty {
        Type::Path(path) => named(&path.path),
        Type::TraitObject(object) => object.bounds.iter().find_map(|bound| match bound {
            syn::TypeParamBound::Trait(bound) => named(&bound.path),
            _ => None,
        }),
        _ => None,
    };
    let Some(Target::Item(of, _)) = of else { return None };
    let defined_in = modules.get(of.0).file?;
    let is_inherent = item.trait_.is_none();
    let of_trait = item.trait_.as_ref().and_then(|(path, _)| named(path));
    let trait_in = of_trait.and_then(|target| modules.file_of(&target));
    let methods = item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(item) => Some(Method {
            name: item.sig.ident.to_string(),
            takes: Takes::of(&item.sig),
            is_public: matches!(item.vis, Visibility::Public(_)),
            returns: match &item.sig.output {
                ReturnType::Type(_, ty) => modules.types_in(module, ty, Some(&of)),
                ReturnType::Default => BTreeSet::new(),
            },
        }),
        _ => None,
    });
    let methods: Vec<Method> = methods.collect();
    let makes = |method: &Method| {
        method.is_public && method.returns.iter().any(|made| modules.get(made.0).file == Some(file))
    };
    let is_away = is_inherent && file != defined_in && !methods.is_empty();
    let is_door = is_away && methods.iter().all(makes);
    let line = item.impl_token.span.start().line;
    Some(Impl { of, defined_in, file, line, is_inherent, trait_in, methods, is_door })
}

fn read_struct(module: usize, file: usize, item: &syn::ItemStruct) -> Struct {
    let fields = item.fields.iter().enumerate();
    let seen = fields.filter(|(_, field)| !matches!(field.vis, Visibility::Inherited));
    let named = seen.map(|(index, field)| {
        let name = field.ident.as_ref();
        name.map_or((index.to_string(), None), |name| (name.to_string(), Some(name.span())))
    });
    let (visible, spans): (Vec<String>, Vec<_>) = named.unzip();
    let span = spans.first().copied().flatten().unwrap_or(item.ident.span());
    let mut locks = Locks(None);
    item.fields.iter().for_each(|field| locks.visit_type(&field.ty));
    let id = (module, item.ident.to_string());
    Struct { id, file, visible, line: span.start().line, lock: locks.0 }
}

/// Finds what several threads may change, or what can be changed through a shared reference.
struct Locks(Option<String>);

impl Visit<'_> for Locks {
    fn visit_ident(&mut self, ident: &proc_macro2::Ident) {
        let name = ident.to_string();
        let words =
            ["Mutex", "RwLock", "Condvar", "MutexGuard", "RefCell", "Cell", "OnceLock", "OnceCell"];
        if words.contains(&name.as_str()) || name.starts_with("Atomic") {
            self.0.get_or_insert(name);
        }
        visit::visit_ident(self, ident);
    }
}

#[cfg(test)]
mod tests {
    use crate::house::House;
    use crate::source::Violation;

    const NONE: [&str; 0] = [];

    fn told(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(|found| format!("{}:{}", found.file, found.line)).collect()
    }

    #[test]
    fn an_impl_away_from_its_type_is_found() {
        let house = House::of_snippets(&[
            ("x/mod.rs", "pub(crate) struct X; pub(crate) trait T {} impl X {} struct Lone;"),
            ("x/part/deep.rs", "use crate::x::X; impl X {} impl super::super::Lone {}"),
            ("y.rs", "use crate::x as away; type Same = away::X;\nimpl away::X { fn f() {} }"),
            (
                "z.rs",
                "use crate::x::{T, X};\nimpl Drop for X { fn drop(&mut self) {} }\nstruct Z;
             impl T for Z {} impl Drop for Z { fn drop(&mut self) {} } impl From<Z> for u8 {}",
            ),
            ("lib.rs", "struct Root;"),
            ("w.rs", "mod inner { use super::super::Root;\nimpl Root {} }"),
        ]);
        let mut found = house.owners.misplaced_impls();
        found.sort();
        assert_eq!(told(&found), ["src/w.rs:2", "src/y.rs:2", "src/z.rs:2"]);
    }

    #[test]
    fn a_door_makes_what_its_file_defines() {
        let door = |block: &str| {
            let text = format!("use crate::low::Low; pub struct High(Low); {block}");
            let files = [("low.rs", "pub struct Low;"), ("high.rs", text.as_str())];
            let house = House::of_snippets(&files);
            (house.owners.misplaced_impls().len(), house.circles().len())
        };
        assert_eq!(door("impl Low { pub fn open(self) -> Result<High> { High(self) } }"), (0, 0));
        assert_eq!(door("impl Low { pub fn open(self) -> u8 { 0 } }"), (1, 1));
        assert_eq!(door("impl Low { pub(crate) fn open(self) -> High { High(self) } }"), (1, 1));
    }

    #[test]
    fn fields_that_others_see_are_found() {
        let open = |room: &str, text: &str| {
            let house = House::of_snippets(&[(room, text)]);
            house.owners.open_fields().len()
        };
        let plain = "pub(crate) struct S { pub(crate) a: u8, pub(super) b: u8 }";
        let changes = "struct S { pub(super) a: u8 } impl S { fn a(&mut self) {} }";
        let iterates =
            "struct S { pub(super) a: u8 } impl Iterator for S { fn next(&mut self) {} }";
        let locks = "struct S { pub(super) a: u8, b: Arc<Mutex<u8>> }";
        let counts = "pub struct S(pub AtomicU64);";
        let tells = "struct S { pub(super) a: u8 } impl S { fn a(&self) {} }";
        let is_made = "struct S { pub(super) a: u8 } impl S { fn new() -> Self { S { a: 1 } } }";
        let hidden = "struct S { a: Mutex<u8> } impl S { fn a(&mut self) {} }";
        for text in [changes, iterates, locks, counts] {
            assert_eq!((open("engine/a.rs", text), open("format/a.rs", text)), (1, 1), "{text}");
        }
        for text in [plain, is_made, hidden] {
            assert_eq!((open("engine/a.rs", text), open("format/a.rs", text)), (0, 0), "{text}");
        }
        assert_eq!((open("engine/a.rs", tells), open("format/a.rs", tells)), (1, 0));
    }

    #[test]
    fn large_types_and_a_scattered_engine_are_found() {
        let methods = |from: usize, to: usize| {
            let methods = (from..to).map(|index| format!("fn f{index}(&self) {{}}"));
            methods.collect::<Vec<_>>().join(" ")
        };
        let own = format!("pub(crate) struct Engine; impl Engine {{ {} }}", methods(0, 2));
        let more = format!("use super::Engine;\nimpl Engine {{ {} }}", methods(2, 4));
        let files = [("engine/mod.rs", own.as_str()), ("engine/more.rs", more.as_str())];
        let owners = House::of_snippets(&files).owners;
        assert_eq!(told(&owners.types_with_many_methods(4)), NONE);
        assert_eq!(told(&owners.types_with_many_methods(3)), ["src/engine/mod.rs:1"]);
        assert_eq!(told(&owners.engine_blocks("engine/mod.rs")), ["src/engine/more.rs:2"]);
        assert_eq!(told(&owners.engine_blocks("engine.rs")), ["src/engine.rs:1"]);
    }
}
