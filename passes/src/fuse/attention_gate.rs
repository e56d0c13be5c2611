//! Matches: `LinearAttention` whose log decay is −softplus(−x) and whose rate is a sigmoid, x and what the sigmoid reads
//! being the halves of one product with two weights as one
//! Becomes: `LinearAttentionGate`, one kernel, of that product with the first half of the weight negated
//! Exact: yes
//! Declines when: something else reads what lies between, or each feature has a decay of its own

use super::stored_product::{StoredProduct, product_before};
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use crate::serving_graph::join_weights::uncast;
use dijiang_format::dtype::DType;

pub(super) struct AttentionGate;

const DECAY: usize = 4;
const BETA: usize = 5;

impl GraphRule for AttentionGate {
    fn name(&self) -> &'static str {
        "attention_gate"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.name() != "LinearAttention" || node.outputs.is_empty() {
                return None;
            }
            let (decay, beta) = (node.input(DECAY)?, node.input(BETA)?);
            let outer = alone(w.graph, behind_reshapes(w.graph, decay)?, "Neg")?;
            let soft = alone(w.graph, outer.input(0)?, "Softplus")?;
            let inner = alone(w.graph, soft.input(0)?, "Neg")?;
            let open = alone(w.graph, behind_reshapes(w.graph, beta)?, "Sigmoid")?;
            let both = gates(w.graph, [inner.input(0)?, open.input(0)?])?;
            let ty = w.graph.value(decay).ty.clone();
            let heads = ty.shape.as_ref()?.last()?.known()? as usize;
            let fits = w.graph.value(beta).ty == ty && ty.dtype == Some(DType::F32);
            if !fits || both.rows != 2 * heads as i64 {
                return None;
            }
            let [decay, beta] = gated(w, &both, heads)?;
            let mut inputs: Vec<Option<ValueId>> =
                (0..node.inputs.len()).map(|slot| w.input(node, slot)).collect();
            (inputs[DECAY], inputs[BETA]) = (Some(decay), Some(beta));
            Some(w.patch.node_outputs(node.op.clone(), &inputs, node.outputs.len()))
        })
    }
}

fn gated(w: &mut Sweep<'_>, both: &StoredProduct, heads: usize) -> Option<[ValueId; 2]> {
    let weights = halves(w.graph, both.weight, heads)?;
    let biases = match both.bias {
        Some(bias) => Some(halves(w.graph, bias, heads)?),
        None => None,
    };
    let x = w.current(both.x);
    let p = &mut w.patch;
    let dtype = p.dtype(both.weight);
    let less = p.neg(weights[0]);
    let weight = p.concat(&[less, weights[1]], 0);
    let weight = p.cast(weight, dtype);
    let y = p.linear(x, weight, None);
    let y = p.cast(y, DType::F32);
    let bias = biases.map(|[a, b]| {
        let less = p.neg(a);
        p.concat(&[less, b], 0)
    });
    let y = bias.map_or(y, |bias| p.add(y, bias));
    let axis = p.rank(y) as i64 - 1;
    let [a, b]: [ValueId; 2] = p.split(y, axis, &[heads as i64; 2]).try_into().ok()?;
    let mut vector =
        |name: &str, value: f32| p.constant(name, Tensor::from_f32(&[heads as u64], &vec![value; heads]));
    let (none, scale) = (vector("no_bias", 0.0), vector("decay_scale", -1.0));
    let op = Op::in_domain("com.microsoft", "LinearAttentionGate");
    p.node_outputs(op, &[a, none, scale, b].map(Some), 2).try_into().ok()
}

/// The two weights, one after the other, that a value is, each with so many rows.
fn halves(graph: &Graph, value: ValueId, rows: usize) -> Option<[ValueId; 2]> {
    let join = graph.made_by(uncast(graph, value), "Concat").filter(|join| join.op.int("axis") == Some(0))?;
    let both: [ValueId; 2] = join.inputs.iter().copied().collect::<Option<Vec<_>>>()?.try_into().ok()?;
    let fits = |half: ValueId| {
        graph.value(half).ty.shape.as_ref().and_then(|dims| dims.first()?.known()) == Some(rows as u64)
    };
    both.iter().all(|half| fits(*half)).then_some(both)
}

/// The product, with its bias, whose first and second half these values are, with reshapes between.
fn gates(graph: &Graph, halves: [ValueId; 2]) -> Option<StoredProduct> {
    let [a, b] = [behind_reshapes(graph, halves[0])?, behind_reshapes(graph, halves[1])?];
    let split = graph.made_by(a, "Split")?;
    let is_alone = |value: ValueId| graph.value(value).uses.len() == 1;
    if split.outputs != [a, b] || !is_alone(a) || !is_alone(b) {
        return None;
    }
    let whole = split.input(0)?;
    let y = behind_reshapes(graph, whole).filter(|y| is_alone(*y))?;
    // No axis but that of the split may be longer than the batch: the halves are then those of the rows.
    let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
    let (whole, leading) = (shape(whole)?, shape(y)?.first()?);
    let axis = split.op.int("axis").unwrap_or_default();
    let axis = usize::try_from(if axis < 0 { axis + whole.len() as i64 } else { axis }).ok()?;
    let product = product_before(graph, y)?;
    let is_theirs = whole.iter().enumerate().all(|(at, dim)| match at {
        at if at == axis => axis > 0 && dim.known() == u64::try_from(product.rows).ok(),
        0 => dim == leading && *dim != Dim::Unknown,
        _ => dim.known() == Some(1),
    });
    is_theirs.then_some(product)
}

fn behind_reshapes(graph: &Graph, value: ValueId) -> Option<ValueId> {
    match graph.made_by(value, "Reshape") {
        Some(reshape) if graph.value(value).uses.len() == 1 => behind_reshapes(graph, reshape.input(0)?),
        Some(_) => None,
        None => Some(value),
    }
}

/// The node that makes a value which one node reads.
fn alone<'g>(graph: &'g Graph, value: ValueId, name: &str) -> Option<&'g Node> {
    graph.made_by(value, name).filter(|_| graph.value(value).uses.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::AttentionGate;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

    fn text(read: &str) -> String {
        format!(
            r#"graph "g" {{
  input %q: f32[2, 1, 6]
  input %s: f32[2, 2, 3, 3]
  input %x: f32[2, 1, 4]
  weight %g: f32[2, 4] = random(1)
  weight %h: f32[2, 4] = random(2)
  weight %b: f32[2] = [0.5, -1.0]
  weight %c: f32[2] = [1.5, 0.25]
  const %column: i64[4] = [2, 4, 1, 1]
  const %row: i64[3] = [2, 1, 2]
  const %sizes: i64[2] = [2, 2]
  %gh = Concat(%g, %h) {{axis: 0}}
  %bc = Concat(%b, %c) {{axis: 0}}
  %t = Transpose(%gh) {{perm: [1, 0]}}
  %p = MatMul(%x, %t)
  %both = Add(%p, %bc)
  %r = Reshape(%both, %column)
  %a, %e = Split(%r, %sizes) {{axis: 1}}
  %n = Neg(%a)
  %soft = Softplus(%n)
  %d = Neg(%soft)
  %decay = Reshape(%d, %row)
  %open = Sigmoid(%e)
  %o = Reshape(%open, %row)
  %y, %z = com.microsoft.LinearAttention(%q, %q, %q, %s, %decay, %o) {{kv_num_heads: 2, q_num_heads: 2, scale: 1.0, update_rule: "gated_delta"}}
  output "y" %y
  output "z" %z
  output "read" %{read}
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 3] = [("q", &[2, 1, 6]), ("s", &[2, 2, 3, 3]), ("x", &[2, 1, 4])];

    #[test]
    fn both_gates_are_one_operator() {
        insta::assert_snapshot!(after(&AttentionGate, &text("z"), &INPUTS));
    }

    /// One of two heads, then the other: no halves of the product.
    #[test]
    fn parts_that_are_no_halves_stay() {
        let text = text("z")
            .replace("%column: i64[4] = [2, 4, 1, 1]", "%column: i64[4] = [2, 1, 2, 2]")
            .replace("%sizes: i64[2] = [2, 2]", "%sizes: i64[2] = [1, 1]")
            .replace("{axis: 1}", "{axis: 3}");
        assert_eq!(after(&AttentionGate, &text, &INPUTS), print(&parse(&text).expect("a graph")));
    }

    #[test]
    fn a_gate_that_is_read_stays() {
        for read in ["d", "open", "a", "both"] {
            let text = text(read);
            assert_eq!(
                after(&AttentionGate, &text, &INPUTS),
                print(&parse(&text).expect("a graph")),
                "{read}"
            );
        }
    }
}
