//! `If`: which branch is taken, where that can be known before the model runs.
//!
//! Decoders merged by older versions of optimum hold the step with a cache and the one without in the
//! two branches of one `If` over the input `use_cache_branch`. The one with the cache computes both
//! where the cache may be empty, so that input is fixed to true and is gone.

use super::proto::{GraphProto, NodeProto, ValueInfoProto};
use super::reader::Reader;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::op::Op;
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::tensor::Tensor;

const CACHE_INPUT: &str = "use_cache_branch";

/// What an input is fixed to: true for the one that chooses the branch with the cache.
pub(super) fn fixed_input(
    input: &ValueInfoProto,
    dtype: DType,
    shape: &[Dim],
    graph: &GraphProto,
) -> Option<Tensor> {
    let decides = graph.node.iter().any(|node| node.op_type == "If");
    let one = shape.iter().all(|d| *d == Dim::Known(1));
    if input.name != CACHE_INPUT || !decides || !one || dtype != DType::Bool {
        return None;
    }
    Tensor::from_bytes(DType::Bool, vec![1; shape.len()], vec![1]).ok()
}

pub(super) fn fixed_note(name: &str) -> String {
    format!("input `{}` is fixed to true, the branch with the cache, and is no input any more", shown(name))
}

pub(super) fn note(node: &str, taken: bool) -> String {
    format!("node `{}` (If): its condition is always {taken}; the other branch is left out", shown(node))
}

/// Whether the condition of an `If` is true.
pub(super) fn taken(reader: &Reader<'_>, proto: &NodeProto) -> Result<bool, String> {
    let [condition] = proto.input.as_slice() else {
        return Err(format!("{} inputs, expected 1", proto.input.len()));
    };
    let id = reader.value(condition)?.ok_or("its condition is missing")?;
    known(reader, id).ok_or_else(|| {
        format!(
            "its condition `{}` depends on the inputs, expected a constant or the input `{CACHE_INPUT}` (hint: export the model without branches, or make the condition a constant)",
            shown(condition)
        )
    })
}

/// The graph of the branch that is taken.
pub(super) fn graph(proto: &NodeProto, taken: bool) -> Result<&GraphProto, String> {
    let name = if taken { "then_branch" } else { "else_branch" };
    let branch = proto.attribute.iter().find(|a| a.name == name).and_then(|a| a.g.as_ref());
    branch.ok_or_else(|| format!("attribute `{name}` is missing, or is no graph"))
}

fn known(reader: &Reader<'_>, id: ValueId) -> Option<bool> {
    if let Some(truth) = reader.truths.get(&id) {
        return Some(*truth);
    }
    Some(reader.patch.value(id).as_const()?.single()? != 0.0)
}

/// Whether the one element that an operator computes is true, where it can be told from its inputs.
pub(super) fn truth(reader: &Reader<'_>, op: &Op, inputs: &[Option<ValueId>]) -> Option<bool> {
    if !op.domain().is_empty() {
        return None;
    }
    let input = |slot: usize| inputs.get(slot).copied().flatten();
    let truth = |slot| known(reader, input(slot)?);
    let number = |slot| match reader.patch.ty(input(slot)?).ints.as_deref() {
        Some([Dim::Known(n)]) => Some(*n),
        _ => None,
    };
    match op.name() {
        "Identity" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" => truth(0),
        "Not" => truth(0).map(|x| !x),
        "And" => Some(truth(0)? && truth(1)?),
        "Or" => Some(truth(0)? || truth(1)?),
        "Equal" => Some(number(0)? == number(1)?),
        "Greater" => Some(number(0)? > number(1)?),
        "Less" => Some(number(0)? < number(1)?),
        _ => None,
    }
}
