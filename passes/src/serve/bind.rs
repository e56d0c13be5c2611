//! A serving graph for memory that is bound once: its weights are inputs, so that several graphs share one copy on
//! a device, and it gives the likeliest next token, so that a few bytes come back instead of all logits.
//!
//! *Exact:* the logits of the last token of each row are those of the graph before.

use crate::attention::lower::tokens_first::recent_tokens;
use crate::ir::graph::{Def, Graph, ValueId};
use crate::ir::infer::Type;
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};
use crate::ir::shape::Dim;
use crate::ir::walk::{depth_first, inputs_of};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LOGITS, MASK, NEXT, POSITIONS};

/// Makes inputs of the weights, by their names.
pub fn weights_as_inputs(graph: &Graph) -> Result<Graph, PatchError> {
    rebuild(graph, "weights_as_inputs", &mut WeightsAsInputs)
}

/// States that each call brings one token per row, which is never padding.
pub fn one_token(graph: &mut Graph) -> Result<(), PatchError> {
    state_lengths(graph)?;
    graph.refresh_types()?;
    drop_mask(graph)?;
    graph.refresh_types()
}

fn state_lengths(graph: &mut Graph) -> Result<(), PatchError> {
    let change = {
        let mut p = Patch::new(graph, "one_token");
        for input in graph.inputs() {
            let value = graph.value(*input);
            let (Some(dtype), Some([batch, _])) = (value.ty.dtype, value.ty.shape.as_deref()) else {
                continue;
            };
            if [IDS, MASK, POSITIONS].contains(&value.name.as_str()) {
                p.set_input_type(*input, Type::new(dtype, vec![batch.clone(), Dim::Known(1)]));
            }
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

fn drop_mask(graph: &mut Graph) -> Result<(), PatchError> {
    let (Some(ids), Some(mask)) = (graph.input(IDS), graph.input(MASK)) else { return Ok(()) };
    let change = {
        let mut p = Patch::new(graph, "drop_mask");
        p.set_scope(MASK);
        let one = p.scalar_like(mask, 1.0);
        let shape = p.shape_of(ids, 0, 2);
        let ones = p.expand(one, shape);
        p.replace(mask, ones);
        p.drop_input(mask);
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

/// Leaves of the logits those after the last token of each row, `[batch, 1, vocabulary]`; rows are then padded at the
/// right. Without a mask nothing is padding.
pub fn keep_last(graph: &mut Graph) -> Result<(), PatchError> {
    let Some(logits) = graph.output(LOGITS) else { return Ok(()) };
    let mask = graph.input(MASK);
    let head = graph
        .made_by(logits, "MatMul")
        .cloned()
        .filter(|head| head.input(1).is_some_and(|weight| is_fixed(graph, weight)));
    // Of a mask of all tokens, the past included, the last ones are those of the call.
    let calls = graph.input(IDS).filter(|ids| mask.is_some_and(|mask| differ(graph, *ids, mask)));
    let change = {
        let mut p = Patch::new(graph, "keep_last");
        p.set_scope("last");
        let mask = match (mask, calls) {
            (Some(mask), Some(ids)) => Some(recent_tokens(&mut p, mask, ids)),
            (mask, _) => mask,
        };
        match head.as_ref().and_then(|head| Some((head.input(0)?, head.input(1)?))) {
            Some((hidden, weight)) => {
                let hidden = at_last(&mut p, hidden, mask);
                let kept = p.matmul(hidden, weight);
                p.drop_output(LOGITS);
                p.output(LOGITS, kept);
            }
            None => {
                let kept = at_last(&mut p, logits, mask);
                p.drop_output(LOGITS);
                p.output(LOGITS, kept);
            }
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

/// Whether a value is made of constants alone.
pub(crate) fn is_fixed(graph: &Graph, value: ValueId) -> bool {
    depth_first(value, |v| inputs_of(graph, v)).all(|v| !matches!(graph.value(v).def, Def::Input))
}

/// Whether two inputs have different numbers of columns.
fn differ(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    let columns = |id: ValueId| graph.value(id).ty.shape.as_deref().and_then(|dims| dims.get(1).cloned());
    columns(a) != columns(b)
}

/// `[batch, sequence, ·]` → `[batch, 1, ·]`: a product with a row of zeros and a one, which any device has.
fn at_last(p: &mut Patch<'_>, x: ValueId, mask: Option<ValueId>) -> ValueId {
    let Some(mask) = mask else { return p.slice(x, 1, -1, i64::MAX) };
    let tokens = p.cast(mask, DType::I64);
    let count = p.reduce("ReduceSum", tokens, &[1], true);
    let last = p.add_scalar(count, -1.0);
    let length = p.shape_of(x, 1, 2);
    let length = p.squeeze(length, &[0]);
    let places = p.range(length);
    let chosen = p.node(Op::new("Equal"), &[places, last]);
    let dtype = p.dtype(x);
    let chosen = p.cast(chosen, dtype);
    let chosen = p.unsqueeze(chosen, &[1]);
    p.matmul(chosen, x)
}

/// Adds [`NEXT`].
pub fn name_next(graph: &mut Graph) -> Result<(), PatchError> {
    let Some(logits) = graph.output(LOGITS) else { return Ok(()) };
    let change = {
        let mut p = Patch::new(graph, "name_next");
        p.set_scope(NEXT);
        // No device compares bf16.
        let wide = p.cast(logits, DType::F32);
        let best = p.node(Op::new("ArgMax").with("axis", -1i64).with("keepdims", 0i64), &[wide]);
        // A sum is NaN where a term is, and whatever is compared with NaN is not.
        let sum = p.reduce("ReduceSum", wide, &[-1], false);
        let lost = p.node(Op::new("IsNaN"), &[sum]);
        let none = p.scalar_like(best, -1.0);
        let next = p.select(lost, none, best);
        p.output(NEXT, next);
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

struct WeightsAsInputs;

impl Rebuild for WeightsAsInputs {
    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        match graph.value(id).is_weight {
            true => self.input(p, graph, id),
            false => copy_constant(p, graph, id),
        }
    }
}
