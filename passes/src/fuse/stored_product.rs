//! Products of a value with what is stored, as several fusions look for them.

use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::Patch;
use crate::serving_graph::join_weights::is_stored;
use dijiang_format::dtype::DType;

pub(super) struct StoredProduct {
    pub(super) x: ValueId,
    /// `[out, in]`
    pub(super) weight: ValueId,
    /// The product without the bias.
    pub(super) product: ValueId,
    pub(super) rows: i64,
    pub(super) bias: Option<ValueId>,
    /// The product, with its bias.
    pub(super) y: ValueId,
    /// Whether the product is made f32 before the bias is added.
    pub(super) is_widened: bool,
}

impl StoredProduct {
    /// With a bias that is added in f32, if it has none of its own type.
    pub(super) fn with_late_bias(self, graph: &Graph) -> Self {
        if self.bias.is_some() {
            return self;
        }
        let wide = match graph.value(self.y).uses[..] {
            [Use::Node { node, slot: 0 }] if graph.node(node).op.is("Cast") => graph.node(node).outputs[0],
            _ => return self,
        };
        let is_f32 = graph.value(wide).ty.dtype == Some(DType::F32);
        match bias_of(graph, wide).filter(|_| is_f32) {
            Some((bias, y)) => Self { bias: Some(bias), y, is_widened: true, ..self },
            None => self,
        }
    }

    /// The same with another value, weight and bias: made f32 where this one is.
    pub(super) fn written(
        &self,
        p: &mut Patch<'_>,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
    ) -> ValueId {
        let y = p.linear(x, weight, None);
        let y = if self.is_widened { p.cast(y, DType::F32) } else { y };
        bias.map_or(y, |bias| p.add(y, bias))
    }
}

/// The sum of two biases, where there are any.
pub(super) fn bias_sum(p: &mut Patch<'_>, one: Option<ValueId>, other: Option<ValueId>) -> Option<ValueId> {
    match (one, other) {
        (Some(one), Some(other)) => Some(p.add(one, other)),
        (one, other) => one.or(other),
    }
}

/// The products that read a value, in the order of their reading.
pub(super) fn products_of(graph: &Graph, x: ValueId) -> Vec<StoredProduct> {
    let readers = graph.value(x).uses.iter().filter_map(|user| match user {
        Use::Node { node, slot: 0 } => stored_product(graph, graph.node(*node)),
        _ => None,
    });
    readers.collect()
}

/// The product that a value is, with its bias.
pub(super) fn product_before(graph: &Graph, y: ValueId) -> Option<StoredProduct> {
    let mut value = y;
    loop {
        let node = graph.node(graph.producer(value)?.0);
        if let Some(found) = stored_product(graph, node) {
            return Some(found.with_late_bias(graph)).filter(|found| found.y == y);
        }
        value = node.input(0).filter(|_| matches!(node.op.name(), "Add" | "Cast"))?;
    }
}

/// The bias that a value's only reader adds, and the sum.
fn bias_of(graph: &Graph, value: ValueId) -> Option<(ValueId, ValueId)> {
    let [Use::Node { node, slot: 0 }] = graph.value(value).uses[..] else { return None };
    let add = graph.node(node);
    let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
    // One number that is added to all is none: it cannot stand after others.
    let fits = |bias: ValueId| matches!(shape(bias), Some([width]) if shape(value).and_then(<[_]>::last) == Some(width));
    let is_bias = |bias: &ValueId| is_stored(graph, *bias) && fits(*bias);
    let bias = add.input(1).filter(|bias| add.op.is("Add") && is_bias(bias))?;
    Some((bias, add.outputs[0]))
}

/// What a node computes, where that is the product of a value with a weight `[out, in]`.
pub(super) fn stored_product(graph: &Graph, product: &Node) -> Option<StoredProduct> {
    let transposed = graph.made_by(product.input(1).filter(|_| product.op.is("MatMul"))?, "Transpose")?;
    let weight = transposed.input(0)?;
    let found = graph.value(weight);
    if !is_stored(graph, weight) || found.ty.rank() != Some(2) || transposed.op.ints("perm") != Some(&[1, 0])
    {
        return None;
    }
    let rows = found.ty.shape.as_ref()?[0].known()? as i64;
    let bare = product.outputs[0];
    let (bias, y) = bias_of(graph, bare).map_or((None, bare), |(bias, sum)| (Some(bias), sum));
    Some(StoredProduct { x: product.input(0)?, weight, product: bare, rows, bias, y, is_widened: false })
}
