//! Matches: a split whose parts all become f32, with reshapes and rotations on the way
//! Becomes: one cast before the split; rotations are then in f32
//! Exact: yes, up to rounding, of which there is less
//! Declines when: a part is read in its own type too

use super::cut_alike;
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

pub(super) struct EarlyCast;

impl GraphRule for EarlyCast {
    fn name(&self) -> &'static str {
        "early_cast"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut tables = BTreeMap::new();
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.is("Split") {
                widen(w, node, &mut tables);
            }
            None
        })
    }
}

fn widen(w: &mut Sweep<'_>, split: &Node, tables: &mut BTreeMap<ValueId, ValueId>) -> Option<()> {
    let ways: Option<Vec<CastPath>> = split.outputs.iter().map(|part| way(w.graph, *part)).collect();
    let ways = ways.filter(|ways| ways.len() > 1)?;
    let x = w.input(split, 0)?;
    let wide = w.patch.cast(x, DType::F32);
    let parts = cut_alike(w, split, wide);
    for (way, part) in ways.iter().zip(parts) {
        let mut value = part;
        for id in &way.nodes {
            let node = w.graph.node(*id);
            let mut inputs = vec![value];
            for slot in 1..node.inputs.len() {
                let other = w.input(node, slot)?;
                let is_table = w.patch.ty(other).dtype == w.graph.value(split.outputs[0]).ty.dtype;
                inputs.push(match is_table {
                    true => *tables.entry(other).or_insert_with(|| w.patch.cast(other, DType::F32)),
                    false => other,
                });
            }
            value = w.patch.node(node.op.clone(), &inputs);
        }
        w.stand_for(way.cast, value);
    }
    Some(())
}

/// The nodes between a part and its cast, and what the cast gives.
struct CastPath {
    nodes: Vec<NodeId>,
    cast: ValueId,
}

fn way(graph: &Graph, part: ValueId) -> Option<CastPath> {
    let mut nodes = Vec::new();
    let mut value = part;
    loop {
        let [Use::Node { node: id, slot: 0 }] = graph.value(value).uses[..] else { return None };
        let node = graph.node(id);
        match (node.op.domain(), node.op.name()) {
            ("", "Cast") if node.op.str("to") == Some(DType::F32.name()) => {
                return Some(CastPath { nodes, cast: node.outputs[0] });
            }
            ("", "Reshape") | ("com.microsoft", "RotaryEmbedding") => nodes.push(id),
            _ => return None,
        }
        value = node.outputs[0];
    }
}

#[cfg(test)]
mod tests {
    use super::EarlyCast;
    use crate::fuse::tests::after;

    fn text(to: &str) -> String {
        r#"graph "g" {
  input %x: f16[batch, 1, 12]
  input %cos: f16[1, 2]
  input %sin: f16[1, 2]
  const %rows: i64[1] = [0]
  const %sizes: i64[2] = [8, 4]
  const %heads: i64[4] = [0, 2, 1, 4]
  %q, %v = Split(%x, %sizes) {axis: 2}
  %h = Reshape(%q, %heads)
  %t = com.microsoft.RotaryEmbedding(%h, %rows, %cos, %sin)
  %y = Cast(%t) {to: "f32"}
  %z = Cast(%v) {to: "%to"}
  output "y" %y
  output "z" %z
}"#
        .replace("%to", to)
    }

    const INPUTS: [(&str, &[usize]); 3] = [("x", &[2, 1, 12]), ("cos", &[1, 2]), ("sin", &[1, 2])];

    #[test]
    fn one_cast_goes_before_the_split() {
        insta::assert_snapshot!(after(&EarlyCast, &text("f32"), &INPUTS));
    }

    #[test]
    fn parts_of_another_type_stay() {
        insta::assert_snapshot!(after(&EarlyCast, &text("f64"), &INPUTS));
    }
}
