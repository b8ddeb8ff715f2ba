//! Which functions a function calls, as far as names and written types tell.
//!
//! An expression has the types of this crate that it may be or hold: what fields, parameters and
//! return types name, through references, locks, options and collections. A method is looked for
//! in those. Where none of them has it, and all functions of that name that the caller's file can
//! know stand in one file, it is one of those. So more calls may be found than there are; a call is
//! missed only if its value's type is written nowhere near and its name is a common one.

use crate::body::{self, Body};
use crate::house::House;
use crate::modules::{ItemId, Target};
use crate::owners::Takes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use syn::{Fields, ImplItem, Item, ReturnType, TraitItem, Type};

pub(crate) type Types = BTreeSet<ItemId>;

/// A function with a body.
pub(crate) struct Function<'h> {
    pub(crate) file: usize,
    pub(crate) module: usize,
    /// The type or trait whose function it is.
    pub(crate) owner: Option<ItemId>,
    pub(crate) takes: Takes,
    pub(crate) name: String,
    pub(crate) signature: &'h syn::Signature,
    pub(crate) block: &'h syn::Block,
    /// What its result may be or hold.
    pub(crate) returns: Types,
    /// What its parameters and bounds name.
    pub(crate) hands_in: Types,
}

/// All functions of a house.
pub(crate) struct Calls<'h> {
    pub(crate) house: &'h House,
    pub(crate) functions: Vec<Function<'h>>,
    free: BTreeMap<ItemId, usize>,
    methods: BTreeMap<(ItemId, String), Vec<usize>>,
    by_name: BTreeMap<String, Vec<usize>>,
    /// Of a struct or variant: what its field may be or hold.
    fields: BTreeMap<(ItemId, String), Types>,
    /// Of an alias, a constant or a type that dereferences: what stands behind it.
    behind: BTreeMap<ItemId, Types>,
}

impl<'h> Calls<'h> {
    pub(crate) fn of(house: &'h House) -> Self {
        let mut calls = Self {
            house,
            functions: Vec::new(),
            free: BTreeMap::new(),
            methods: BTreeMap::new(),
            by_name: BTreeMap::new(),
            fields: BTreeMap::new(),
            behind: BTreeMap::new(),
        };
        for (file, source) in house.sources.iter().enumerate() {
            calls.read(house.modules.of_file(file), file, &source.syntax.items);
        }
        calls
    }

    fn read(&mut self, module: usize, file: usize, items: &'h [Item]) {
        let modules = &self.house.modules;
        for item in items {
            match item {
                Item::Mod(syn::ItemMod { ident, content: Some((_, items)), .. }) => {
                    self.read(modules.inline(module, &ident.to_string()), file, items);
                }
                Item::Fn(item) => {
                    let id = (module, item.sig.ident.to_string());
                    let added = self.add(module, file, None, (&item.sig, &item.block));
                    self.free.insert(id, added);
                }
                Item::Impl(item) => self.read_impl(module, file, item),
                Item::Trait(item) => {
                    let own = (module, item.ident.to_string());
                    for item in &item.items {
                        let TraitItem::Fn(syn::TraitItemFn { sig, default: Some(block), .. }) =
                            item
                        else {
                            continue;
                        };
                        self.add(module, file, Some(&own), (sig, block));
                    }
                }
                Item::Struct(item) => {
                    let own = (module, item.ident.to_string());
                    self.read_fields(module, &own, "", &item.fields);
                }
                Item::Enum(item) => {
                    let own = (module, item.ident.to_string());
                    for variant in &item.variants {
                        let prefix = format!("{}.", variant.ident);
                        self.read_fields(module, &own, &prefix, &variant.fields);
                    }
                }
                Item::Type(item) => self.stands_for(module, &item.ident, &item.ty),
                Item::Const(item) => self.stands_for(module, &item.ident, &item.ty),
                Item::Static(item) => self.stands_for(module, &item.ident, &item.ty),
                _ => {}
            }
        }
    }

    fn read_impl(&mut self, module: usize, file: usize, item: &'h syn::ItemImpl) {
        let modules = &self.house.modules;
        let Type::Path(path) = &*item.self_ty else { return };
        let Some(own) = self.named(module, &path.path) else { return };
        let of_trait = item.trait_.as_ref().and_then(|(path, _)| self.named(module, path));
        let is_deref = item.trait_.as_ref().is_some_and(|(path, _)| {
            path.segments.last().is_some_and(|segment| segment.ident == "Deref")
        });
        let mut associated = Types::new();
        for item in &item.items {
            if let ImplItem::Type(item) = item {
                associated.extend(modules.types_in(module, &item.ty, Some(&own)));
            }
        }
        if is_deref {
            self.behind.entry(own.clone()).or_default().extend(associated.clone());
        }
        for item in &item.items {
            let ImplItem::Fn(item) = item else { continue };
            let added = self.add(module, file, Some(&own), (&item.sig, &item.block));
            self.functions[added].returns.extend(associated.clone());
            if let Some(of_trait) = &of_trait {
                let key = (of_trait.clone(), item.sig.ident.to_string());
                self.methods.entry(key).or_default().push(added);
            }
        }
    }

    fn named(&self, module: usize, path: &syn::Path) -> Option<ItemId> {
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        match self.house.modules.resolve(module, &names.collect::<Vec<_>>()) {
            Some(Target::Item(id, _)) => Some(id),
            _ => None,
        }
    }

    fn add(
        &mut self,
        module: usize,
        file: usize,
        owner: Option<&ItemId>,
        (signature, block): (&'h syn::Signature, &'h syn::Block),
    ) -> usize {
        let modules = &self.house.modules;
        let name = signature.ident.to_string();
        let returns = match &signature.output {
            ReturnType::Type(_, ty) => modules.types_in(module, ty, owner),
            ReturnType::Default => Types::new(),
        };
        let id = self.functions.len();
        self.functions.push(Function {
            file,
            module,
            owner: owner.cloned(),
            takes: Takes::of(signature),
            signature,
            block,
            returns,
            hands_in: modules.types_in_signature(module, signature, owner),
            name: name.clone(),
        });
        if let Some(owner) = owner {
            self.methods.entry((owner.clone(), name.clone())).or_default().push(id);
        }
        self.by_name.entry(name).or_default().push(id);
        id
    }

    fn read_fields(&mut self, module: usize, own: &ItemId, prefix: &str, fields: &Fields) {
        for (index, field) in fields.iter().enumerate() {
            let name = field.ident.as_ref().map_or(index.to_string(), ToString::to_string);
            let types = self.house.modules.types_in(module, &field.ty, Some(own));
            self.fields.insert((own.clone(), format!("{prefix}{name}")), types);
        }
    }

    fn stands_for(&mut self, module: usize, name: &proc_macro2::Ident, ty: &Type) {
        let types = self.house.modules.types_in(module, ty, None);
        self.behind.insert((module, name.to_string()), types);
    }

    /// With what stands behind aliases and smart pointers.
    pub(crate) fn whole(&self, types: &Types) -> Types {
        let mut whole = types.clone();
        let mut left: Vec<ItemId> = types.iter().cloned().collect();
        while let Some(id) = left.pop() {
            for behind in self.behind.get(&id).into_iter().flatten() {
                if whole.insert(behind.clone()) {
                    left.push(behind.clone());
                }
            }
        }
        whole
    }

    pub(crate) fn free(&self, id: &ItemId) -> Option<usize> {
        self.free.get(id).copied()
    }

    pub(crate) fn methods(&self, of: &ItemId, name: &str) -> &[usize] {
        self.methods.get(&(of.clone(), name.to_string())).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn field(&self, of: &ItemId, name: &str) -> Option<&Types> {
        self.fields.get(&(of.clone(), name.to_string()))
    }

    /// The functions of a name that a file may call, if all of those stand in one file. A file
    /// has no values of types that none of the files it uses, and they use, names.
    pub(crate) fn of_one_file(&self, name: &str, caller: usize) -> Vec<usize> {
        let all = self.by_name.get(name).into_iter().flatten().copied();
        let file = |function: &usize| self.functions[*function].file;
        let known: Vec<usize> =
            all.filter(|function| self.house.reaches(caller, file(function))).collect();
        let is_one = known.windows(2).all(|pair| file(&pair[0]) == file(&pair[1]));
        if is_one { known } else { Vec::new() }
    }

    /// What is called from `roots`, by way of functions that are no `end`.
    pub(crate) fn reached(&self, roots: &[usize], is_end: impl Fn(usize) -> bool) -> Vec<Reached> {
        let mut seen: BTreeSet<usize> = roots.iter().copied().collect();
        let mut queue: VecDeque<_> = roots.iter().map(|root| (*root, self.tell(*root))).collect();
        let mut reached = Vec::new();
        while let Some((function, way)) = queue.pop_front() {
            let body = body::read(self, function);
            let targets = body.calls.iter().flat_map(|call| &call.targets);
            for target in targets.filter(|target| !is_end(**target)) {
                if seen.insert(*target) {
                    queue.push_back((*target, format!("{way} -> {}", self.tell(*target))));
                }
            }
            reached.push(Reached { function, body, way });
        }
        reached
    }

    /// A function as a reader knows it.
    pub(crate) fn tell(&self, function: usize) -> String {
        let function = &self.functions[function];
        let owner = function.owner.as_ref().map_or(String::new(), |owner| owner.1.clone() + "::");
        owner + &function.name
    }
}

/// A function that is called from where one began.
pub(crate) struct Reached {
    pub(crate) function: usize,
    pub(crate) body: Body,
    /// From the first function to this one.
    pub(crate) way: String,
}
