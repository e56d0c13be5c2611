//! Mixed precision: matrix products in bf16, and what lies between them too where it only moves, adds or
//! multiplies; sums over many terms, norms, exponentials and the residual stream stay f32. Weights that sum to
//! one are rounded to bf16, and so is what is multiplied with bf16, such as decays. What is named exact stays f32.

use crate::canon::{CanonError, canonicalize};
use crate::ir::graph::{Def, Graph, Node, ValueId};
use crate::ir::patch::Patch;
use crate::ir::rebuild::{Rebuild, copy_input, copy_node, rebuild};
use dijiang_format::dtype::DType;
use dijiang_format::names::is_exact;

/// Take the element type of what they are given, if that is one type.
const FREE: [&str; 15] = [
    "Add",
    "Concat",
    "Expand",
    "Gather",
    "Mul",
    "Neg",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
];

/// Rewrites a forward graph.
pub fn mix(forward: &Graph) -> Result<Graph, CanonError> {
    let mut graph = rebuild(forward, "mixed_precision", &mut Mix)?;
    canonicalize(&mut graph)?;
    Ok(graph)
}

struct Mix;

impl Rebuild for Mix {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        // Casts are named apart from what they stand before.
        p.set_scope("mixed");
        copy_input(p, graph, id)
    }

    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        let to = match node.op.name() {
            // Decides its own type: of parameters, and of masks.
            "Cast" => return cast_node(p, graph, node, inputs),
            _ if is_exact(&node.name) => Some(DType::F32),
            "MatMul" => Some(DType::BF16),
            "Mul" if computes_in(p, inputs, DType::BF16) => Some(DType::BF16),
            "Softmax" => return rounded(p, graph, node, inputs),
            name if FREE.contains(&name) => common_type(p, inputs),
            _ => Some(DType::F32),
        };
        let Some(to) = to else { return copy_node(p, graph, node, inputs) };
        let inputs: Vec<Option<ValueId>> = inputs.iter().map(|v| v.map(|v| in_type(p, v, to))).collect();
        copy_node(p, graph, node, &inputs)
    }
}

/// bf16 where a value computed in it goes in and no value computed in f32 does.
fn common_type(p: &Patch<'_>, inputs: &[Option<ValueId>]) -> Option<DType> {
    let computed = inputs.iter().flatten().filter(|v| matches!(p.value(**v).def, Def::Output { .. }));
    let types: Vec<DType> = computed.filter_map(|v| p.ty(*v).dtype).filter(|d| d.is_float()).collect();
    if types.contains(&DType::F32) {
        return Some(DType::F32);
    }
    types.contains(&DType::BF16).then_some(DType::BF16)
}

fn computes_in(p: &Patch<'_>, inputs: &[Option<ValueId>], dtype: DType) -> bool {
    let computed = inputs.iter().flatten().filter(|v| matches!(p.value(**v).def, Def::Output { .. }));
    computed.into_iter().any(|v| p.ty(*v).dtype == Some(dtype))
}

/// In f32, and its outputs in bf16.
fn rounded(p: &mut Patch<'_>, graph: &Graph, node: &Node, inputs: &[Option<ValueId>]) -> Vec<ValueId> {
    let inputs: Vec<Option<ValueId>> = inputs.iter().map(|v| v.map(|v| in_type(p, v, DType::F32))).collect();
    let outputs = copy_node(p, graph, node, &inputs);
    outputs.into_iter().map(|v| p.cast(v, DType::BF16)).collect()
}

fn cast_node(p: &mut Patch<'_>, graph: &Graph, node: &Node, inputs: &[Option<ValueId>]) -> Vec<ValueId> {
    match inputs[0] {
        // A parameter that is read in bf16 is widened only where f32 is needed.
        Some(x) if p.ty(x).dtype == Some(DType::BF16) && node.op.str("to") == Some(DType::F32.name()) => {
            vec![x]
        }
        _ => copy_node(p, graph, node, inputs),
    }
}

/// A floating-point value in another floating-point type; others as they are.
fn in_type(p: &mut Patch<'_>, x: ValueId, to: DType) -> ValueId {
    match p.ty(x).dtype {
        Some(from) if from.is_float() => p.cast(x, to),
        _ => x,
    }
}
