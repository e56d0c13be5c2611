//! Matches: queries and keys of a `LinearAttention` that are computed alike, head by head, from two neighbours of one
//! split
//! Becomes: the same computation once, over the heads of both, and a split after it; weights per head are joined
//! Exact: yes
//! Declines when: the two differ in a node or a number, or lengths are open

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, NodeId, ValueId};
use crate::ir::op::{Attr, Op};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use std::collections::BTreeMap;

pub(super) struct JoinedFeatures;

impl GraphRule for JoinedFeatures {
    fn name(&self) -> &'static str {
        "joined_features"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.name() == "LinearAttention" {
                join(w, node);
            }
            None
        })
    }
}

/// Where queries and keys lie packed.
const PACKED: usize = 2;

fn join(w: &mut Sweep<'_>, node: &Node) -> Option<()> {
    let (q, k) = (node.input(0)?, node.input(1)?);
    if q == k || !w.is_untouched(q) || !w.is_untouched(k) {
        return None;
    }
    let width = |value: ValueId| Some(w.graph.value(value).ty.shape.as_ref()?.get(PACKED)?.known()? as i64);
    let sizes = [width(q)?, width(k)?];
    let both = as_one(w, [q, k], PACKED)?;
    let parts = w.patch.split(both, PACKED as i64, &sizes);
    w.stand_for(q, parts[0]);
    w.stand_for(k, parts[1]);
    Some(())
}

/// Two values as one, the second after the first along an axis, where they are computed alike from neighbours of one split.
pub(super) fn as_one(w: &mut Sweep<'_>, pair: [ValueId; 2], axis: usize) -> Option<ValueId> {
    let mut joined = Joined::default();
    let both = both(w, pair, axis, &mut joined)?;
    for (old, new) in joined.source?.rest {
        w.stand_for(old, new);
    }
    Some(both)
}

/// The split that both come from, written anew with the two as one.
struct Source {
    split: NodeId,
    joined: ValueId,
    rest: Vec<(ValueId, ValueId)>,
}

/// What is joined so far.
#[derive(Default)]
struct Joined {
    source: Option<Source>,
    /// By the two values and the axis: many ways may lead to them.
    made: BTreeMap<([ValueId; 2], usize), ValueId>,
}

/// Both values as one, the second after the first along an axis.
fn both(w: &mut Sweep<'_>, pair: [ValueId; 2], axis: usize, joined: &mut Joined) -> Option<ValueId> {
    if let Some(made) = joined.made.get(&(pair, axis)) {
        return Some(*made);
    }
    let made = both_anew(w, pair, axis, joined)?;
    joined.made.insert((pair, axis), made);
    Some(made)
}

fn both_anew(w: &mut Sweep<'_>, [a, b]: [ValueId; 2], axis: usize, joined: &mut Joined) -> Option<ValueId> {
    let graph = w.graph;
    if graph.value(a).is_weight && graph.value(b).is_weight {
        let fits = axis == 0 && graph.value(a).ty.rank() == graph.value(b).ty.rank();
        return fits.then(|| w.patch.concat(&[a, b], 0));
    }
    let ((one, first), (other, second)) = (graph.producer(a)?, graph.producer(b)?);
    if one == other {
        return neighbours(w, one, [first, second], axis, joined);
    }
    let (one, other) = (graph.node(one), graph.node(other));
    let op = same_op(&one.op, &other.op)?;
    if one.outputs.len() != 1 || one.inputs.len() != other.inputs.len() {
        return None;
    }
    let pair = |slot: usize| Some([one.input(slot)?, other.input(slot)?]);
    let rank = |value: ValueId| graph.value(value).ty.rank();
    let whole = rank(a)?;
    match (op.domain(), op.name()) {
        ("", "Reshape") => {
            let from = axis_before(graph, one, axis)?;
            let x = both(w, pair(0)?, from, joined)?;
            let target = joined_shape(graph, [a, b], axis)?;
            Some(w.patch.reshape(x, &target))
        }
        ("", "Transpose") => {
            let from = *op.ints("perm")?.get(axis)? as usize;
            let x = both(w, pair(0)?, from, joined)?;
            Some(w.patch.node(op, &[x]))
        }
        ("", "Unsqueeze") => {
            let after = op.ints("axes")?.iter().all(|new| *new > axis as i64);
            let x = both(w, pair(0).filter(|_| after)?, axis, joined)?;
            Some(w.patch.node(op, &[x]))
        }
        ("", "Softmax") => {
            let over_last = matches!(op.int("axis"), Some(last) if last == -1 || last == whole as i64 - 1);
            let x = both(w, pair(0).filter(|_| over_last && axis + 1 < whole)?, axis, joined)?;
            Some(w.patch.node(op, &[x]))
        }
        ("", "SimplifiedLayerNormalization") if axis + 1 < whole => {
            let over_last = matches!(op.int("axis"), Some(last) if last == -1 || last == whole as i64 - 1);
            let [weight, twin] = pair(1)?;
            let weight = w.current((over_last && weight == twin).then_some(weight)?);
            let x = both(w, pair(0)?, axis, joined)?;
            Some(w.patch.node(op, &[x, weight]))
        }
        ("com.microsoft", "RotaryEmbedding") if axis == 1 && whole == 4 => {
            let x = both(w, pair(0)?, axis, joined)?;
            let mut inputs = vec![x];
            for slot in 1..one.inputs.len() {
                let [table, twin] = pair(slot)?;
                inputs.push(w.current((table == twin).then_some(table)?));
            }
            Some(w.patch.node(op, &inputs))
        }
        ("", "Cast") => {
            let x = both(w, pair(0)?, axis, joined)?;
            Some(w.patch.node(op, &[x]))
        }
        ("", "Add" | "Mul" | "MatMul") => {
            // The last two axes of a product are summed over, or made by one side.
            if op.is("MatMul") && axis + 2 >= whole {
                return None;
            }
            let mut inputs = Vec::new();
            for slot in 0..2 {
                let [x, twin] = pair(slot)?;
                let own = (axis + rank(x)?).checked_sub(whole);
                inputs.push(match own.filter(|_| graph.as_scalar(x).is_none()) {
                    Some(own) => both(w, [x, twin], own, joined)?,
                    None => (graph.as_scalar(x)? == graph.as_scalar(twin)?).then(|| w.current(x))?,
                });
            }
            Some(w.patch.node(op, &inputs))
        }
        _ => None,
    }
}

/// One operator for both; of heads it counts those of both.
fn same_op(a: &Op, b: &Op) -> Option<Op> {
    const HEADS: &str = "num_heads";
    let alike = a.qualified_name() == b.qualified_name() && a.attrs.len() == b.attrs.len();
    let mut op = a.clone();
    for (name, attr) in &a.attrs {
        let twin = b.attrs.get(name)?;
        match (attr, twin) {
            (Attr::Int(x), Attr::Int(y)) if name == HEADS => op = op.with(HEADS, x + y),
            _ if attr.to_string() != twin.to_string() => return None,
            _ => {}
        }
    }
    alike.then_some(op)
}

/// Two neighbours of a split along the axis.
fn neighbours(
    w: &mut Sweep<'_>,
    split: NodeId,
    [first, second]: [u32; 2],
    axis: usize,
    Joined { source, .. }: &mut Joined,
) -> Option<ValueId> {
    let node = w.graph.node(split);
    let rank = w.graph.value(node.input(0)?).ty.rank()? as i64;
    let along = matches!(node.op.int("axis"), Some(own) if own == axis as i64 || own + rank == axis as i64);
    if !node.op.is("Split") || !along || second != first + 1 {
        return None;
    }
    if let Some(source) = source {
        return (source.split == split).then_some(source.joined);
    }
    if !node.outputs.iter().all(|part| w.is_untouched(*part)) {
        return None;
    }
    let size = |part: &ValueId| Some(w.graph.value(*part).ty.shape.as_ref()?.get(axis)?.known()? as i64);
    let mut sizes: Vec<i64> = node.outputs.iter().map(size).collect::<Option<_>>()?;
    let place = first as usize;
    let taken = sizes.remove(place + 1);
    sizes[place] += taken;
    let x = w.input(node, 0)?;
    if sizes.len() == 1 {
        *source = Some(Source { split, joined: x, rest: Vec::new() });
        return Some(x);
    }
    let mut parts = w.patch.split(x, axis as i64, &sizes);
    let joined = parts.remove(place);
    let others = node.outputs.iter().enumerate().filter(|(i, _)| *i != place && *i != place + 1);
    let rest = others.map(|(_, old)| *old).zip(parts).collect();
    *source = Some(Source { split, joined, rest });
    Some(joined)
}

/// The axis of a reshape's input that is cut up into, or merged to, one axis of what it gives: dims of 1 aside, the
/// same stand before both.
fn axis_before(graph: &Graph, reshape: &Node, axis: usize) -> Option<usize> {
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let (from, to) = (shape(reshape.input(0)?)?, shape(reshape.outputs[0])?);
    let one = Dim::Known(1);
    let before = |dims: &[Dim], axis: usize| -> Vec<Dim> {
        dims[..axis].iter().filter(|dim| **dim != one).cloned().collect()
    };
    (0..from.len()).find(|own| from[*own] != one && before(&from, *own) == before(&to, axis))
}

fn joined_shape(graph: &Graph, [a, b]: [ValueId; 2], axis: usize) -> Option<Vec<i64>> {
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let (a, b) = (shape(a)?, shape(b)?);
    let size = |i: usize| match (i, a[i].known(), b.get(i)?.known()) {
        (_, Some(x), Some(y)) if i == axis => Some((x + y) as i64),
        (_, Some(x), Some(y)) => (x == y).then_some(x as i64),
        // The batch, which no reshape here touches.
        (0, None, None) => Some(0),
        _ => None,
    };
    (0..a.len()).map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::JoinedFeatures;
    use crate::fuse::tests::after;

    fn text(factor: &str) -> String {
        r#"graph "g" {
  input %x: f32[batch, 1, 16]
  input %s: f32[batch, 1, 2, 4]
  weight %wq: f32[2, 2, 4] = [1.0, 0.5, 1.0, 0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 1.0, 0.0, 0.5, -1.0, 0.0, 1.0, 0.0]
  weight %wk: f32[1, 2, 4] = [0.0, 1.0, 0.0, 2.0, 1.0, 0.5, 1.0, 0.0]
  weight %dq: f32[2, 2] = [0.0, 1.0, 0.5, -1.0]
  weight %dk: f32[1, 2] = [0.5, 0.0]
  const %sizes: i64[3] = [8, 4, 4]
  const %query_heads: i64[4] = [0, 2, 1, 4]
  const %key_heads: i64[4] = [0, 1, 1, 4]
  const %packed_queries: i64[3] = [0, 1, 4]
  const %packed_keys: i64[3] = [0, 1, 2]
  const %scale: f32[] = [0.5]
  const %factor: f32[] = [%number]
  %q, %k, %v = Split(%x, %sizes) {axis: -1}
  %q1 = Reshape(%q, %query_heads)
  %k1 = Reshape(%k, %key_heads)
  %q2 = Mul(%q1, %scale)
  %k2 = Mul(%k1, %factor)
  %tq = Transpose(%wq) {perm: [0, 2, 1]}
  %tk = Transpose(%wk) {perm: [0, 2, 1]}
  %q3 = MatMul(%q2, %tq)
  %k3 = MatMul(%k2, %tk)
  %uq = Unsqueeze(%dq) {axes: [1]}
  %uk = Unsqueeze(%dk) {axes: [1]}
  %q4 = Add(%q3, %uq)
  %k4 = Add(%k3, %uk)
  %q5 = Softmax(%q4) {axis: -1}
  %k5 = Softmax(%k4) {axis: -1}
  %q6 = Reshape(%q5, %packed_queries)
  %k6 = Reshape(%k5, %packed_keys)
  %y, %t = com.microsoft.LinearAttention(%q6, %k6, %v, %s) {kv_num_heads: 1, q_num_heads: 2, scale: 1.0, update_rule: "linear"}
  output "y" %y
  output "t" %t
}"#
        .replace("%number", factor)
    }

    const INPUTS: [(&str, &[usize]); 2] = [("x", &[2, 1, 16]), ("s", &[2, 1, 2, 4])];

    #[test]
    fn heads_of_queries_and_keys_go_through_one_map() {
        insta::assert_snapshot!(after(&JoinedFeatures, &text("0.5"), &INPUTS));
    }

    #[test]
    fn another_factor_keeps_them_apart() {
        insta::assert_snapshot!(after(&JoinedFeatures, &text("0.25"), &INPUTS));
    }
}
