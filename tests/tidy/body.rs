//! What the body of a function calls and touches.

use crate::calls::{Calls, Function, Types};
use crate::modules::{ItemId, Target};
use proc_macro2::Ident;
use std::collections::BTreeMap;
use syn::parse::ParseStream;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Block, Expr, FnArg, Member, Pat, Stmt, Token};

/// A call, with the functions of this crate that it may be.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) targets: Vec<usize>,
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Body {
    pub(crate) calls: Vec<Call>,
    /// Types that values in it have or hold, with the first line.
    pub(crate) touches: BTreeMap<ItemId, usize>,
}

/// Names that the standard library has as well: alone they tell nothing.
const COMMON: &str = "
    all and and_then any append as_mut as_ref chain clear clone cmp collect contains
    count dedup deref drain drop end entry eq err expect extend filter find first flush
    fmt fold from get get_mut hash insert into is_empty is_none is_some iter iter_mut
    join keys last len load lock map max min new next ok or or_else park peek pop
    position push range read remove replace retain rev search send set skip sort split
    split_off start store sum swap take to_string try_from try_into try_lock unwrap
    values wait wake write zip
";

/// Reads twice: a variable may get its value below its use, in a loop.
pub(crate) fn read(calls: &Calls, function: usize) -> Body {
    let function = &calls.functions[function];
    let mut walk = Walk { calls, function, variables: BTreeMap::new(), body: Body::default() };
    for input in &function.signature.inputs {
        if let FnArg::Typed(input) = input {
            let types = walk.types_in(&input.ty);
            walk.bind(&input.pat, &types);
        }
    }
    walk.block(function.block);
    walk.body = Body::default();
    walk.block(function.block);
    walk.body
}

struct Walk<'a> {
    calls: &'a Calls<'a>,
    function: &'a Function<'a>,
    variables: BTreeMap<String, Types>,
    body: Body,
}

impl Walk<'_> {
    fn types_in(&self, ty: &syn::Type) -> Types {
        let owner = self.function.owner.as_ref();
        let types = self.calls.house.modules.types_in(self.function.module, ty, owner);
        self.calls.whole(&types)
    }

    fn block(&mut self, block: &Block) -> Types {
        let mut last = Types::new();
        for stmt in &block.stmts {
            last = match stmt {
                Stmt::Expr(expr, None) => self.types(expr),
                Stmt::Local(local) => {
                    let mut types = Types::new();
                    if let Some(init) = &local.init {
                        types = self.types(&init.expr);
                        if let Some((_, diverge)) = &init.diverge {
                            self.types(diverge);
                        }
                    }
                    self.bind(&local.pat, &types);
                    Types::new()
                }
                Stmt::Macro(stmt) => self.mac(&stmt.mac),
                other => {
                    self.visit_stmt(other);
                    Types::new()
                }
            };
        }
        last
    }

    /// What an expression may be or hold; notes the calls in it.
    fn types(&mut self, expr: &Expr) -> Types {
        let types = match expr {
            Expr::Path(expr) => self.path(&expr.path),
            Expr::Field(expr) => self.field(expr),
            Expr::MethodCall(expr) => self.method_call(expr),
            Expr::Call(expr) => self.call(expr),
            Expr::Reference(expr) => self.types(&expr.expr),
            Expr::Paren(expr) => self.types(&expr.expr),
            Expr::Group(expr) => self.types(&expr.expr),
            Expr::Try(expr) => self.types(&expr.expr),
            Expr::Unary(expr) => self.types(&expr.expr),
            Expr::Await(expr) => self.types(&expr.base),
            Expr::Index(expr) => {
                self.types(&expr.index);
                self.types(&expr.expr)
            }
            Expr::Block(expr) => self.block(&expr.block),
            Expr::Unsafe(expr) => self.block(&expr.block),
            Expr::If(expr) => self.branches(expr),
            Expr::Let(expr) => {
                let types = self.types(&expr.expr);
                self.bind(&expr.pat, &types);
                Types::new()
            }
            Expr::Match(expr) => self.arms(expr),
            Expr::ForLoop(expr) => {
                let types = self.types(&expr.expr);
                let items = self.items(&types);
                self.bind(&expr.pat, &items);
                self.block(&expr.body)
            }
            Expr::Closure(_) => self.argument(expr, &Types::new()),
            Expr::Struct(expr) => {
                expr.fields.iter().for_each(|field| drop(self.types(&field.expr)));
                expr.rest.iter().for_each(|rest| drop(self.types(rest)));
                self.path(&expr.path)
            }
            Expr::Tuple(expr) => expr.elems.iter().flat_map(|expr| self.types(expr)).collect(),
            Expr::Array(expr) => expr.elems.iter().flat_map(|expr| self.types(expr)).collect(),
            Expr::Assign(expr) => {
                let types = self.types(&expr.right);
                if let Some(name) = variable(&expr.left) {
                    self.variables.entry(name).or_default().extend(types);
                } else {
                    self.types(&expr.left);
                }
                Types::new()
            }
            Expr::Macro(expr) => self.mac(&expr.mac),
            other => {
                visit::visit_expr(self, other);
                Types::new()
            }
        };
        let types = self.calls.whole(&types);
        let line = line_of(expr);
        for id in &types {
            self.body.touches.entry(id.clone()).or_insert(line);
        }
        types
    }

    fn branches(&mut self, expr: &syn::ExprIf) -> Types {
        self.types(&expr.cond);
        let mut types = self.block(&expr.then_branch);
        if let Some((_, other)) = &expr.else_branch {
            types.extend(self.types(other));
        }
        types
    }

    fn arms(&mut self, expr: &syn::ExprMatch) -> Types {
        let types = self.types(&expr.expr);
        let mut all = Types::new();
        for arm in &expr.arms {
            self.bind(&arm.pat, &types);
            all.extend(self.types(&arm.body));
        }
        all
    }

    /// Of each element, where something can be iterated over.
    fn items(&self, types: &Types) -> Types {
        let next = types.iter().flat_map(|id| self.calls.methods(id, "next"));
        let items = next.flat_map(|next| &self.calls.functions[*next].returns);
        self.calls.whole(&types.iter().chain(items).cloned().collect())
    }

    /// An argument; a closure is given something of `hint`.
    fn argument(&mut self, expr: &Expr, hint: &Types) -> Types {
        let Expr::Closure(closure) = expr else { return self.types(expr) };
        for input in &closure.inputs {
            self.bind(input, hint);
        }
        self.types(&closure.body)
    }

    fn path(&mut self, path: &syn::Path) -> Types {
        let names: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let last = &path.segments[path.segments.len() - 1].ident;
        if let ([name], Some(types)) = (&names[..], self.variables.get(&names[0])) {
            debug_assert!(!name.is_empty());
            return types.clone();
        }
        if names == ["self"] {
            return self.function.owner.iter().cloned().collect();
        }
        let found = if names[0] == "Self" {
            self.function.owner.clone().map(|owner| Target::Item(owner, names[1..].to_vec()))
        } else {
            self.calls.house.modules.resolve(self.function.module, &names)
        };
        let (id, rest) = match found {
            Some(Target::Item(id, rest)) => (id, rest),
            Some(Target::Outside(_)) | None if names.len() > 1 => {
                self.note(last, &[]);
                return Types::new();
            }
            _ => return Types::new(),
        };
        let targets: Vec<usize> = match rest.first() {
            Some(name) => self.calls.methods(&id, name).to_vec(),
            None => self.calls.free(&id).into_iter().collect(),
        };
        if targets.is_empty() {
            return Types::from([id]);
        }
        self.note(last, &targets);
        self.returns(&targets)
    }

    fn returns(&self, targets: &[usize]) -> Types {
        targets.iter().flat_map(|target| self.calls.functions[*target].returns.clone()).collect()
    }

    fn note(&mut self, name: &Ident, targets: &[usize]) {
        let (name, line) = (name.to_string(), name.span().start().line);
        self.body.calls.push(Call { name, line, targets: targets.to_vec() });
    }

    fn field(&mut self, expr: &syn::ExprField) -> Types {
        let types = self.types(&expr.base);
        let name = member(&expr.member);
        let mut fields = types.iter().filter_map(|id| self.calls.field(id, &name)).peekable();
        // Of what a smart pointer or a tuple holds.
        if fields.peek().is_none() { types } else { fields.flatten().cloned().collect() }
    }

    fn call(&mut self, expr: &syn::ExprCall) -> Types {
        let before = self.body.calls.len();
        let mut types = self.types(&expr.func);
        let called = self.body.calls.get(before..).and_then(<[Call]>::last).cloned();
        let targets = called.map_or(Vec::new(), |call| call.targets);
        let is_variant = targets.is_empty();
        let hint = self.hands_in(&targets);
        for argument in &expr.args {
            let given = self.argument(argument, &hint);
            // `Some(x)`, `Arc::new(x)`, `mem::take(x)`.
            types.extend(given.into_iter().filter(|_| is_variant));
        }
        types
    }

    fn hands_in(&self, targets: &[usize]) -> Types {
        let types = targets.iter().flat_map(|target| &self.calls.functions[*target].hands_in);
        self.calls.whole(&types.cloned().collect())
    }

    fn method_call(&mut self, expr: &syn::ExprMethodCall) -> Types {
        let types = self.types(&expr.receiver);
        let name = expr.method.to_string();
        let found = types.iter().flat_map(|id| self.calls.methods(id, &name));
        let mut targets: Vec<usize> = found.copied().collect();
        if targets.is_empty() && COMMON.split_whitespace().all(|common| common != name) {
            let all = self.calls.of_one_file(&name, self.function.file);
            targets.extend(all.into_iter().filter(|id| self.calls.functions[*id].owner.is_some()));
        }
        targets.sort_unstable();
        targets.dedup();
        let mut hint = self.hands_in(&targets);
        if targets.is_empty() {
            hint.extend(self.items(&types));
        }
        let given: Types =
            expr.args.iter().flat_map(|argument| self.argument(argument, &hint)).collect();
        let mut result = self.returns(&targets);
        let is_generic = |target: &usize| {
            let generics = &self.calls.functions[*target].signature.generics;
            generics.type_params().next().is_some()
        };
        // `lock`, `iter`, `unwrap` give what was there; `map` gives what the closure does.
        if targets.is_empty() {
            result.extend(types);
        }
        if targets.is_empty() || targets.iter().any(is_generic) {
            result.extend(given);
        }
        self.note(&expr.method, &targets);
        result
    }

    fn bind(&mut self, pat: &Pat, types: &Types) {
        match pat {
            Pat::Ident(pat) => {
                let name = pat.ident.to_string();
                self.variables.entry(name).or_default().extend(types.iter().cloned());
                if let Some((_, pat)) = &pat.subpat {
                    self.bind(pat, types);
                }
            }
            Pat::Type(pat) => {
                let whole = types.union(&self.types_in(&pat.ty)).cloned().collect();
                self.bind(&pat.pat, &whole);
            }
            Pat::TupleStruct(pat) => {
                for (index, elem) in pat.elems.iter().enumerate() {
                    let inner = self.part(&pat.path, &index.to_string(), types);
                    self.bind(elem, &inner);
                }
            }
            Pat::Struct(pat) => {
                for field in &pat.fields {
                    let inner = self.part(&pat.path, &member(&field.member), types);
                    self.bind(&field.pat, &inner);
                }
            }
            Pat::Tuple(pat) => pat.elems.iter().for_each(|pat| self.bind(pat, types)),
            Pat::Slice(pat) => pat.elems.iter().for_each(|pat| self.bind(pat, types)),
            Pat::Or(pat) => pat.cases.iter().for_each(|pat| self.bind(pat, types)),
            Pat::Paren(pat) => self.bind(&pat.pat, types),
            Pat::Reference(pat) => self.bind(&pat.pat, types),
            Pat::Guard(pat) => {
                self.bind(&pat.pat, types);
                self.types(&pat.guard);
            }
            _ => {}
        }
    }

    /// What a field of a struct or variant may be; of another crate's, all that the whole may be.
    fn part(&self, path: &syn::Path, field: &str, types: &Types) -> Types {
        let mut names: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let found = if names[0] == "Self" {
            let rest = names.split_off(1);
            self.function.owner.clone().map(|owner| Target::Item(owner, rest))
        } else {
            self.calls.house.modules.resolve(self.function.module, &names)
        };
        let Some(Target::Item(id, rest)) = found else { return types.clone() };
        let prefix = rest.first().map_or(String::new(), |variant| format!("{variant}."));
        let part = self.calls.field(&id, &format!("{prefix}{field}"));
        part.map_or(types.clone(), |part| self.calls.whole(part))
    }

    fn mac(&mut self, mac: &syn::Macro) -> Types {
        let list = Punctuated::<Expr, Token![,]>::parse_terminated;
        if let Ok(exprs) = mac.parse_body_with(list) {
            return exprs.iter().flat_map(|expr| self.types(expr)).collect();
        }
        let matches = |input: ParseStream| {
            let expr: Expr = input.parse()?;
            input.parse::<Token![,]>()?;
            let pat = Pat::parse_multi_with_leading_vert(input)?;
            let guard = if input.peek(Token![if]) {
                input.parse::<Token![if]>()?;
                Some(input.parse::<Expr>()?)
            } else {
                None
            };
            input.parse::<Option<Token![,]>>()?;
            Ok((expr, pat, guard))
        };
        if let Ok((expr, pat, guard)) = mac.parse_body_with(matches) {
            let types = self.types(&expr);
            self.bind(&pat, &types);
            if let Some(guard) = guard {
                self.types(&guard);
            }
        }
        Types::new()
    }
}

impl Visit<'_> for Walk<'_> {
    fn visit_expr(&mut self, expr: &Expr) {
        self.types(expr);
    }

    fn visit_block(&mut self, block: &Block) {
        self.block(block);
    }
}

fn member(member: &Member) -> String {
    match member {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// The name, if the expression is one.
fn variable(expr: &Expr) -> Option<String> {
    let Expr::Path(path) = expr else { return None };
    path.path.get_ident().map(ToString::to_string)
}

/// The first line of what stands in it.
fn line_of(expr: &Expr) -> usize {
    struct First(Option<usize>);
    impl Visit<'_> for First {
        fn visit_ident(&mut self, ident: &Ident) {
            self.0.get_or_insert(ident.span().start().line);
        }
    }
    let mut first = First(None);
    first.visit_expr(expr);
    first.0.unwrap_or(1)
}
