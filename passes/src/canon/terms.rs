//! The contents of small integer and boolean tensors, negative numbers included: what shape
//! arithmetic comes to where some dims are only symbols.

use crate::ir::graph::{Def, Graph, Node, ValueId};
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

/// Longest tensor that is followed.
const MAX_LEN: usize = 32;

/// One element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    Int(i64),
    /// A dim that is only known when the model runs; never negative.
    Dim(Dim),
    /// A dim of a value that has no name.
    DimOf(ValueId, usize),
    Unknown,
}

/// One dim of a value; `Unknown` where its rank is not known.
pub(super) fn dim_of(graph: &Graph, value: ValueId, axis: usize) -> Term {
    match graph.value(value).ty.shape.as_ref().and_then(|s| s.get(axis)) {
        Some(Dim::Unknown) => Term::DimOf(value, axis),
        Some(dim) => Term::from(dim),
        None => Term::Unknown,
    }
}

impl From<&Dim> for Term {
    fn from(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::Int),
            Dim::Sym(_) => Self::Dim(dim.clone()),
            Dim::Unknown => Self::Unknown,
        }
    }
}

/// The elements of every tensor of rank 0 or 1 that could be followed.
pub(super) struct Terms(BTreeMap<ValueId, Vec<Term>>);

impl Terms {
    pub(super) fn of(graph: &Graph) -> Self {
        let mut terms = Self(BTreeMap::new());
        for (id, value) in graph.values() {
            if let Some(known) = constant(graph, id) {
                terms.0.insert(id, known);
            } else if matches!(value.def, Def::Input) {
                terms.0.remove(&id);
            }
        }
        for id in graph.order() {
            let node = graph.node(id);
            if node.op.is("Split") {
                let parts = terms.parts(graph, node).unwrap_or_default();
                terms.0.extend(node.outputs.iter().copied().zip(parts));
            } else if let Some(known) = terms.node(graph, node).filter(|t| t.len() <= MAX_LEN) {
                terms.0.insert(node.outputs[0], known);
            }
        }
        terms
    }

    pub(super) fn get(&self, value: ValueId) -> Option<&[Term]> {
        self.0.get(&value).map(Vec::as_slice)
    }

    /// The elements, where all are numbers.
    pub(super) fn ints(&self, value: ValueId) -> Option<Vec<i64>> {
        let int = |t: &Term| if let Term::Int(n) = t { Some(*n) } else { None };
        self.get(value)?.iter().map(int).collect()
    }

    fn input(&self, node: &Node, slot: usize) -> Option<&[Term]> {
        self.get(node.input(slot)?)
    }

    fn node(&self, graph: &Graph, node: &Node) -> Option<Vec<Term>> {
        if !node.op.domain().is_empty() || !is_followed(graph, node.outputs[0]) {
            return None;
        }
        let pairs = |f: fn(&Term, &Term) -> Term| zip(self.input(node, 0)?, self.input(node, 1)?, f);
        match node.op.name() {
            "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" | "Cast" => {
                self.input(node, 0).map(<[Term]>::to_vec)
            }
            "Shape" => {
                let x = node.input(0)?;
                Some(shape_range(graph, node)?.map(|axis| dim_of(graph, x, axis)).collect())
            }
            "Gather" => self.gather(graph, node),
            "Concat" => {
                let parts = (0..node.inputs.len()).map(|i| self.input(node, i));
                Some(parts.collect::<Option<Vec<_>>>()?.concat())
            }
            "Slice" => self.slice(graph, node),
            "ConstantOfShape" => self.filled(graph, node),
            "Where" => self.choose(node),
            "Add" => pairs(|a, b| arithmetic(a, b, i64::checked_add, Dim::plus)),
            "Mul" => pairs(|a, b| arithmetic(a, b, i64::checked_mul, Dim::times)),
            "Sub" => pairs(difference),
            "Min" if node.inputs.len() == 2 => {
                pairs(|a, b| arithmetic(a, b, |a, b| Some(a.min(b)), Dim::least))
            }
            // Of a shape that is computed, an unknown number says less than the node that it is read from.
            "Max" if node.inputs.len() == 2 => pairs(larger).filter(|t| !t.contains(&Term::Unknown)),
            "Div" => pairs(quotient),
            "Equal" => pairs(equal),
            _ => None,
        }
    }

    fn gather(&self, graph: &Graph, node: &Node) -> Option<Vec<Term>> {
        let data = self.input(node, 0)?;
        let indices = graph.as_const(node.input(1)?)?.to_i64()?;
        let from_front = |i: &i64| usize::try_from(if *i < 0 { i + data.len() as i64 } else { *i }).ok();
        indices.iter().map(|i| data.get(from_front(i)?).cloned()).collect()
    }

    fn slice(&self, graph: &Graph, node: &Node) -> Option<Vec<Term>> {
        let data = self.input(node, 0)?;
        let int = |slot: usize| graph.as_const(node.input(slot)?)?.to_i64()?.first().copied();
        if node.input(4).is_some() && int(4) != Some(1) {
            return None;
        }
        let n = data.len() as i64;
        let bound = |x: i64| (if x < 0 { x.saturating_add(n) } else { x }).clamp(0, n) as usize;
        let (start, end) = (bound(int(1)?), bound(int(2)?));
        Some(data[start..end.max(start)].to_vec())
    }

    /// What each output of a `Split` holds.
    fn parts(&self, graph: &Graph, node: &Node) -> Option<Vec<Vec<Term>>> {
        let mut rest = self.input(node, 0)?;
        let part = |output: &ValueId| {
            let size = graph.value(*output).ty.shape.as_deref()?.first()?.known()?;
            let (part, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
            rest = after;
            Some(part.to_vec())
        };
        node.outputs.iter().map(part).collect()
    }

    fn filled(&self, graph: &Graph, node: &Node) -> Option<Vec<Term>> {
        let Term::Int(len) = self.input(node, 0)?.first().unwrap_or(&Term::Int(1)).clone() else {
            return None;
        };
        let len = usize::try_from(len).ok().filter(|n| *n <= MAX_LEN)?;
        let value = match node.op.attrs.get("value") {
            Some(crate::ir::op::Attr::Tensor(t)) => t.to_i64()?.first().copied()?,
            _ => return None,
        };
        is_followed(graph, node.outputs[0]).then(|| vec![Term::Int(value); len])
    }

    fn choose(&self, node: &Node) -> Option<Vec<Term>> {
        let (yes, no) = (self.input(node, 1)?, self.input(node, 2)?);
        let condition = self.input(node, 0)?;
        let len = condition.len().max(yes.len()).max(no.len());
        let at = |terms: &[Term], i: usize| -> Option<Term> {
            if terms.len() == 1 { terms.first().cloned() } else { terms.get(i).cloned() }
        };
        (0..len)
            .map(|i| match at(condition, i)? {
                Term::Int(0) => at(no, i),
                Term::Int(_) => at(yes, i),
                _ if at(yes, i) == at(no, i) => at(no, i),
                _ => Some(Term::Unknown),
            })
            .collect()
    }
}

fn constant(graph: &Graph, id: ValueId) -> Option<Vec<Term>> {
    let tensor = graph.as_const(id)?;
    if tensor.dtype().is_float() || tensor.dims().len() > 1 || tensor.len() > MAX_LEN {
        return None;
    }
    Some(tensor.to_i64()?.into_iter().map(Term::Int).collect())
}

/// Integers and booleans of rank 0 or 1.
fn is_followed(graph: &Graph, value: ValueId) -> bool {
    let ty = &graph.value(value).ty;
    ty.dtype.is_some_and(|d| d.is_int() || d == DType::Bool) && ty.rank().is_some_and(|r| r <= 1)
}

/// The axes that a `Shape` node reads.
fn shape_range(graph: &Graph, node: &Node) -> Option<std::ops::Range<usize>> {
    let n = graph.value(node.input(0)?).ty.rank()? as i64;
    let bound = |name: &str| {
        let x = node.op.int(name)?;
        Some((if x < 0 { x.saturating_add(n) } else { x }).clamp(0, n) as usize)
    };
    let (start, end) = (bound("start")?, bound("end")?);
    Some(start..end.max(start))
}

fn zip(a: &[Term], b: &[Term], f: fn(&Term, &Term) -> Term) -> Option<Vec<Term>> {
    match (a, b) {
        ([a], b) => Some(b.iter().map(|b| f(a, b)).collect()),
        (a, [b]) => Some(a.iter().map(|a| f(a, b)).collect()),
        (a, b) if a.len() == b.len() => Some(a.iter().zip(b).map(|(a, b)| f(a, b)).collect()),
        _ => None,
    }
}

fn arithmetic(a: &Term, b: &Term, ints: fn(i64, i64) -> Option<i64>, dims: fn(&Dim, &Dim) -> Dim) -> Term {
    let dim = |t: &Term| match t {
        Term::Int(n) => u64::try_from(*n).map_or(Dim::Unknown, Dim::Known),
        Term::Dim(d) => d.clone(),
        Term::DimOf(..) | Term::Unknown => Dim::Unknown,
    };
    match (a, b) {
        (Term::Int(a), Term::Int(b)) => ints(*a, *b).map_or(Term::Unknown, Term::Int),
        (a, b) => Term::from(&dims(&dim(a), &dim(b))),
    }
}

fn difference(a: &Term, b: &Term) -> Term {
    match (a, b) {
        (Term::Int(a), Term::Int(b)) => a.checked_sub(*b).map_or(Term::Unknown, Term::Int),
        (a, Term::Int(0)) => a.clone(),
        (Term::Dim(a), Term::Dim(b)) => Term::from(&a.minus(b)),
        (a, b) if a == b && *a != Term::Unknown => Term::Int(0),
        _ => Term::Unknown,
    }
}

fn larger(a: &Term, b: &Term) -> Term {
    match (a, b) {
        // No dim is negative.
        (Term::Int(least), dim @ (Term::Dim(_) | Term::DimOf(..)))
        | (dim @ (Term::Dim(_) | Term::DimOf(..)), Term::Int(least))
            if *least < 1 =>
        {
            dim.clone()
        }
        (a, b) => arithmetic(a, b, |a, b| Some(a.max(b)), Dim::most),
    }
}

fn quotient(a: &Term, b: &Term) -> Term {
    match (a, b) {
        (Term::Int(a), Term::Int(b)) => a.checked_div(*b).map_or(Term::Unknown, Term::Int),
        (a, Term::Int(1)) => a.clone(),
        _ => Term::Unknown,
    }
}

fn equal(a: &Term, b: &Term) -> Term {
    match (a, b) {
        (Term::Int(a), Term::Int(b)) => Term::Int(i64::from(a == b)),
        (Term::Dim(_) | Term::DimOf(..), Term::Int(n)) | (Term::Int(n), Term::Dim(_) | Term::DimOf(..))
            if *n < 0 =>
        {
            Term::Int(0)
        }
        (a, b) if a == b && *a != Term::Unknown => Term::Int(1),
        _ => Term::Unknown,
    }
}
