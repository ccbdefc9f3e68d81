//! One file: where each mutant goes.

use std::collections::HashMap;

use proc_macro2::{LineColumn, Span, TokenStream};
use quote::{ToTokens, quote};
use serde::Deserialize;
use syn::{
    Arm, BinOp, Block, Expr, ExprBinary, ExprStruct, ExprUnary, File, Stmt, UnOp, parse_quote,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// One change, as cargo-mutants lists it.
#[derive(Deserialize)]
pub struct Mutant {
    /// Its number.
    pub id: usize,
    /// The file, from the root of the tree.
    pub file: String,
    genre: String,
    replacement: String,
    span: Place,
}

#[derive(Deserialize)]
struct Place {
    start: Position,
}

/// Lines and columns count from 1.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Hash)]
struct Position {
    line: usize,
    column: usize,
}

impl From<LineColumn> for Position {
    fn from(at: LineColumn) -> Position {
        Position { line: at.line, column: at.column + 1 }
    }
}

/// Knows the mutants of a file by what they change and where.
pub struct Weaver {
    mutants: HashMap<(Position, String), Vec<(usize, TokenStream)>>,
    woven: Vec<usize>,
}

impl Weaver {
    /// # Errors
    ///
    /// A replacement that is no Rust.
    pub fn new(mutants: Vec<Mutant>) -> Result<Weaver, Box<dyn std::error::Error>> {
        let mut by_place: HashMap<_, Vec<_>> = HashMap::new();
        for mutant in mutants {
            let replacement: TokenStream = mutant.replacement.parse()?;
            by_place
                .entry((mutant.span.start, mutant.genre))
                .or_default()
                .push((mutant.id, replacement));
        }
        Ok(Weaver { mutants: by_place, woven: Vec::new() })
    }

    /// The numbers of the mutants that found their place.
    pub fn weave(mut self, file: &mut File) -> Vec<usize> {
        self.visit_file_mut(file);
        self.woven.sort_unstable();
        self.woven
    }

    fn take(&mut self, at: Span, genre: &str) -> Vec<(usize, TokenStream)> {
        let key = (at.start().into(), genre.to_owned());
        let found = self.mutants.remove(&key).unwrap_or_default();
        self.woven.extend(found.iter().map(|(id, _)| id));
        found
    }

    fn body(&mut self, block: &mut Block) {
        let Some(first) = block.stmts.first() else { return };
        let switches = self.take(first.span(), "FnValue");
        let switches = switches.into_iter().map(|(id, value)| -> Stmt {
            parse_quote! { if crate::mutation::on(#id) { return #value; } }
        });
        let mut stmts: Vec<Stmt> = switches.collect();
        stmts.append(&mut block.stmts);
        block.stmts = stmts;
    }
}

/// A condition with `let` in it can't go into a block of its own.
fn has_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) if matches!(binary.op, BinOp::And(_)) => {
            has_let(&binary.left) || has_let(&binary.right)
        }
        _ => false,
    }
}

impl VisitMut for Weaver {
    fn visit_item_fn_mut(&mut self, item: &mut syn::ItemFn) {
        visit_mut::visit_item_fn_mut(self, item);
        self.body(&mut item.block);
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut syn::ImplItemFn) {
        visit_mut::visit_impl_item_fn_mut(self, item);
        self.body(&mut item.block);
    }

    fn visit_trait_item_fn_mut(&mut self, item: &mut syn::TraitItemFn) {
        visit_mut::visit_trait_item_fn_mut(self, item);
        if let Some(block) = &mut item.default {
            self.body(block);
        }
    }

    fn visit_arm_mut(&mut self, arm: &mut Arm) {
        let (at, guard_at) = (arm.span(), arm.guard.as_ref().map(|(_, guard)| guard.span()));
        visit_mut::visit_arm_mut(self, arm);
        if let (Some((_, guard)), Some(at)) = (&mut arm.guard, guard_at) {
            for (id, value) in self.take(at, "MatchArmGuard") {
                let was = guard.to_token_stream();
                **guard = parse_quote! { (if crate::mutation::on(#id) { #value } else { #was }) };
            }
        }
        for (id, _) in self.take(at, "MatchArm") {
            let condition: Expr = match &arm.guard {
                Some((_, guard)) => parse_quote! { !crate::mutation::on(#id) && (#guard) },
                None => parse_quote! { !crate::mutation::on(#id) },
            };
            arm.guard = Some((Default::default(), Box::new(condition)));
        }
    }

    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        let plain = expr.clone();
        visit_mut::visit_expr_mut(self, expr);
        // Only one mutant is on at a time, so the operands of a changed operator are as they were.
        let changed: Vec<(usize, Expr)> = match &plain {
            Expr::Binary(binary) if !has_let(&plain) => {
                let found = self.take(binary.op.span(), "BinaryOperator");
                let of = |op: TokenStream| -> Option<Expr> {
                    let op: BinOp = syn::parse2(op).ok()?;
                    Some(Expr::Binary(ExprBinary { op, ..binary.clone() }))
                };
                found.into_iter().filter_map(|(id, op)| Some((id, of(op)?))).collect()
            }
            Expr::Unary(ExprUnary { op: UnOp::Not(_) | UnOp::Neg(_), expr: inner, .. }) => {
                let found = self.take(plain.span(), "UnaryOperator");
                found.into_iter().map(|(id, _)| (id, (**inner).clone())).collect()
            }
            Expr::Struct(whole) => {
                let mut found = Vec::new();
                for (at, field) in whole.fields.iter().enumerate() {
                    for (id, _) in self.take(field.span(), "StructField") {
                        let fields = whole.fields.iter().enumerate();
                        let fields = fields.filter(|(i, _)| *i != at).map(|(_, f)| f.clone());
                        let without = ExprStruct { fields: fields.collect(), ..whole.clone() };
                        found.push((id, Expr::Struct(without)));
                    }
                }
                found
            }
            _ => Vec::new(),
        };
        for (id, other) in changed {
            let was = expr.to_token_stream();
            let other = quote! { #other };
            *expr = parse_quote! { (if crate::mutation::on(#id) { #other } else { #was }) };
        }
    }
}
