//! States of the widths that ONNX Runtime's CUDA kernels for `LinearAttention` know: features in blocks of 64 and
//! values in blocks of 32, with zeros behind the model's own. Heads of 80 otherwise run many times slower there than
//! the numbers that zeros add.
//!
//! *Exact:* features that are zero leave their rows of the state zero, and values that are zero its columns. A state
//! that is given must hold zeros there, as an empty one does and any that the graph returned.

use crate::ir::graph::{Def, Graph, Node, Use, ValueId};
use crate::ir::infer::Type;
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::{StatePart, present_of};
use dijiang_format::widths::{STATE_MULTIPLES, padded};
use std::collections::BTreeMap;

/// Widens what is worth it: a width that would have to double is left alone. Returns whether anything was.
pub fn pad_states(graph: &mut Graph) -> Result<bool, PatchError> {
    let sites: Vec<PaddedState> =
        graph.inputs().iter().filter_map(|input| PaddedState::of(graph, *input)).collect();
    let change = {
        let mut p = Patch::new(graph, "state_padding");
        let mut padded = Padded::default();
        for site in &sites {
            match recurrence(graph, site) {
                Some(node) => site.widen(&mut p, &mut padded, node),
                None => site.cut(&mut p),
            }
            p.set_input_type(site.past, site.wide_type());
        }
        p.finish()
    };
    graph.apply(change)?;
    graph.refresh_types()?;
    Ok(!sites.is_empty())
}

/// One state, f32 `[batch, kv_heads, features, value_dim]`, or `[batch, kv_heads, features]` of a normaliser.
struct PaddedState {
    past: ValueId,
    dtype: DType,
    present: String,
    lead: [Dim; 2],
    /// Features, then values where it has any: before and after.
    widths: Vec<(u64, u64)>,
}

/// What was padded already, by its width, as two states read the same features.
type Padded = BTreeMap<(ValueId, u64), ValueId>;

impl PaddedState {
    fn of(graph: &Graph, past: ValueId) -> Option<Self> {
        let value = graph.value(past);
        let is_padded = [StatePart::Sums, StatePart::Normalizer].iter().any(|part| part.is_past(&value.name));
        let present = present_of(&value.name).filter(|_| is_padded)?;
        graph.output(&present)?;
        let [batch, heads @ Dim::Known(_), rest @ ..] = value.ty.shape.as_deref()? else { return None };
        if rest.len() == 1 && features_of(graph, &value.name).as_ref() != rest.first() {
            return None;
        }
        let known = |(dim, block): (&Dim, usize)| match dim {
            Dim::Known(width) => Some((*width, padded(*width as usize, block) as u64)),
            _ => None,
        };
        let widths = rest.iter().zip(STATE_MULTIPLES).map(known).collect::<Option<Vec<_>>>()?;
        let grows = widths.iter().any(|(own, wide)| own != wide);
        let lead = [batch.clone(), heads.clone()];
        (grows && widths.len() == rest.len()).then_some(Self {
            past,
            dtype: value.ty.dtype?,
            present,
            lead,
            widths,
        })
    }

    fn wide_type(&self) -> Type {
        let widths = self.widths.iter().map(|(_, wide)| Dim::Known(*wide));
        Type::new(self.dtype, self.lead.iter().cloned().chain(widths).collect::<Vec<_>>())
    }

    /// The graph computes with the model's own part of the state.
    fn cut(&self, p: &mut Patch<'_>) {
        let Some(present) = p.graph().output(&self.present) else { return };
        p.set_scope(&self.present);
        let own = (2..).zip(&self.widths).fold(self.past, |x, (axis, (own, wide))| match own == wide {
            true => x,
            false => p.slice(x, axis, 0, *own as i64),
        });
        p.replace(self.past, own);
        let missing: Vec<i64> = self.widths.iter().map(|(own, wide)| (wide - own) as i64).collect();
        let wide = zeros_behind(p, present, &missing);
        p.drop_output(&self.present);
        p.output(&self.present, wide);
    }

    /// The operator computes with all of it.
    fn widen(&self, p: &mut Patch<'_>, padded: &mut Padded, node: &Node) {
        let (Some(heads), Some(kv_heads)) = (node.op.int("q_num_heads"), node.op.int("kv_num_heads")) else {
            return p.fail(format!("`{}` states no heads", node.name));
        };
        p.set_scope(&node.name);
        let (features, values) = (self.widths.first(), self.widths.get(1));
        let mut inputs = node.inputs.clone();
        for (slot, heads, width) in [(0, heads, features), (1, kv_heads, features), (2, kv_heads, values)] {
            if let (Some(Some(x)), Some(width)) = (inputs.get(slot).copied(), width) {
                let wide = *padded.entry((x, width.1)).or_insert_with(|| zeros_in_heads(p, x, heads, *width));
                inputs[slot] = Some(wide);
            }
        }
        let made = p.node_outputs(node.op.clone(), &inputs, 2);
        let y = match values {
            Some((own, wide)) if own != wide => {
                let (own, wide) = (*own as i64, *wide as i64);
                let apart = p.reshape(made[0], &[0, 0, heads, wide]);
                let cut = p.slice(apart, 3, 0, own);
                p.reshape(cut, &[0, 0, heads * own])
            }
            _ => made[0],
        };
        p.replace(node.outputs[0], y);
        let present = match self.widths.len() {
            1 => p.squeeze(made[1], &[3]),
            _ => made[1],
        };
        p.drop_output(&self.present);
        p.output(&self.present, present);
    }
}

/// The features of the sums that a normaliser of this name belongs to. A ring of keys and values has the name of one too.
fn features_of(graph: &Graph, normaliser: &str) -> Option<Dim> {
    let layer = normaliser.strip_suffix(StatePart::Normalizer.name())?;
    let sums = graph.input(&format!("{layer}{}", StatePart::Sums.name()))?;
    graph.value(sums).ty.shape.as_ref()?.get(2).cloned()
}

/// The operator that alone reads a state and makes the next one; a normaliser is that of values one wide. Its scale must
/// not depend on the features, and its decay must be one for all of a head's.
fn recurrence<'g>(graph: &'g Graph, state: &PaddedState) -> Option<&'g Node> {
    let only_user = |value: ValueId| match graph.value(value).uses[..] {
        [Use::Node { node, .. }] => Some(graph.node(node)),
        _ => None,
    };
    let mut node = only_user(state.past)?;
    if node.op.is("Unsqueeze") {
        node = only_user(node.outputs[0])?;
    }
    if (node.op.domain(), node.op.name()) != ("com.microsoft", "LinearAttention") {
        return None;
    }
    let read = graph.value(node.input(3)?);
    let reads = match read.def {
        Def::Input => state.widths.len() == 2,
        _ => state.widths.len() == 1 && read.ty.shape.as_deref()?.last() == Some(&Dim::Known(1)),
    };
    let (made, present) = (*node.outputs.get(1)?, graph.output(&state.present)?);
    let gives = made == present
        || graph.made_by(present, "Squeeze").is_some_and(|squeeze| squeeze.input(0) == Some(made));
    let decay = node
        .input(4)
        .map(|decay| graph.value(decay).ty.shape.as_deref().and_then(|dims| dims.last().cloned()));
    let is_per_head = decay.is_none_or(|width| width == Some(state.lead[1].clone()));
    let is_scaled = node.op.float("scale").is_some_and(|scale| scale != 0.0);
    (reads && gives && is_per_head && is_scaled).then_some(node)
}

/// `[batch, sequence, heads · own]` → `[batch, sequence, heads · wide]`
fn zeros_in_heads(p: &mut Patch<'_>, x: ValueId, heads: i64, (own, wide): (u64, u64)) -> ValueId {
    if own == wide {
        return x;
    }
    let apart = p.reshape(x, &[0, 0, heads, own as i64]);
    let padded = zeros_behind(p, apart, &[0, (wide - own) as i64]);
    p.reshape(padded, &[0, 0, heads * wide as i64])
}

/// `x` of two axes and as many more as `missing` has, with so many zeros behind each of those.
fn zeros_behind(p: &mut Patch<'_>, x: ValueId, missing: &[i64]) -> ValueId {
    let pads: Vec<i64> = vec![0; missing.len() + 4].into_iter().chain(missing.iter().copied()).collect();
    let pads = p.ints(&pads);
    let dtype = p.dtype(x);
    let zero = p.constant("zero", Tensor::scalar(dtype, 0.0));
    p.node(Op::new("Pad"), &[x, pads, zero])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::eval::Array;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, relative_error, run};

    const DECODE: &str = r#"graph "g" {
  input %q: f32[batch, 1, 160]
  input %k: f32[batch, 1, 80]
  input %v: f32[batch, 1, 40]
  input %past_key_values.0.recurrent_state: f32[batch, 2, 40, 20]
  input %past_key_values.0.conv_state: f32[batch, 2, 40]
  input %ones: f32[batch, 1, 2]
  input %g: f32[batch, 1, 2]
  %y, %s = com.microsoft.LinearAttention(%q, %k, %v, %past_key_values.0.recurrent_state, %g) {kv_num_heads: 2, q_num_heads: 4, scale: 1.0, update_rule: "gated"}
  %z = Unsqueeze(%past_key_values.0.conv_state) {axes: [3]}
  %d, %u = com.microsoft.LinearAttention(%q, %k, %ones, %z, %g) {kv_num_heads: 2, q_num_heads: 4, scale: 1.0, update_rule: "gated"}
  %w = Squeeze(%u) {axes: [3]}
  output "y" %y
  output "d" %d
  output "present.0.recurrent_state" %s
  output "present.0.conv_state" %w
}"#;

    const PREFILL: &str = r#"graph "g" {
  input %k: f32[batch, 2, 40, sequence]
  input %v: f32[batch, 2, sequence, 20]
  input %past_key_values.0.recurrent_state: f32[batch, 2, 40, 20]
  %kv = MatMul(%k, %v)
  %s = Add(%past_key_values.0.recurrent_state, %kv)
  output "present.0.recurrent_state" %s
}"#;

    const S: &str = "past_key_values.0.recurrent_state";
    const Z: &str = "past_key_values.0.conv_state";

    /// `x` in a shape whose axes from the third on are longer.
    fn wide(x: &Array, shape: &[usize]) -> Array {
        let Array::F(values) = x else { panic!("floats") };
        let mut wide = ndarray::ArrayD::zeros(ndarray::IxDyn(shape));
        for (at, value) in values.indexed_iter() {
            wide[at] = *value;
        }
        Array::F(wide)
    }

    /// The graph after the pass, which must compute what it did before.
    fn after(text: &str, inputs: &[(&str, &[usize])]) -> String {
        let before = parse(text).expect("a graph");
        let mut graph = before.clone();
        assert!(pad_states(&mut graph).expect("a patch"));
        let given: Vec<(&str, Array)> =
            inputs.iter().zip(1..).map(|((name, dims), seed)| (*name, noise(dims, seed))).collect();
        let expected = run(&before, &given);
        let widened: Vec<(&str, Array)> = given
            .iter()
            .map(|(name, value)| match *name {
                S => (*name, wide(value, &[2, 2, 64, 32])),
                Z => (*name, wide(value, &[2, 2, 64])),
                _ => (*name, value.clone()),
            })
            .collect();
        let found = run(&graph, &widened);
        for (name, value) in &expected {
            let (name, value) = match name.as_str() {
                "present.0.recurrent_state" => (name, wide(value, &[2, 2, 64, 32])),
                "present.0.conv_state" => (name, wide(value, &[2, 2, 64])),
                _ => (name, value.clone()),
            };
            let error = relative_error(&found[name], &value);
            assert!(error < 1e-12, "{name}: {error:e}");
        }
        print(&graph)
    }

    const INPUTS: [(&str, &[usize]); 7] = [
        ("q", &[2, 1, 160]),
        ("k", &[2, 1, 80]),
        ("v", &[2, 1, 40]),
        (S, &[2, 2, 40, 20]),
        (Z, &[2, 2, 40]),
        ("ones", &[2, 1, 2]),
        ("g", &[2, 1, 2]),
    ];

    #[test]
    fn the_operator_computes_with_all_of_it() {
        insta::assert_snapshot!(after(DECODE, &INPUTS));
    }

    /// A scale that depends on the features, and a state that something else reads too.
    #[test]
    fn an_operator_that_padding_would_change_computes_with_its_part() {
        for (from, to) in [
            ("scale: 1.0", "scale: 0.0"),
            (
                "  output \"y\"",
                "  %n = Neg(%past_key_values.0.recurrent_state)\n  output \"n\" %n\n  output \"y\"",
            ),
        ] {
            let after = after(&DECODE.replace(from, to), &INPUTS);
            assert!(
                after.contains("%past_key_values.0.recurrent_state, %present.0.recurrent_state/ints"),
                "{after}"
            );
        }
    }

    #[test]
    fn other_graphs_compute_with_their_part() {
        let inputs: [(&str, &[usize]); 3] =
            [("k", &[2, 2, 40, 5]), ("v", &[2, 2, 5, 20]), (S, &[2, 2, 40, 20])];
        insta::assert_snapshot!(after(PREFILL, &inputs));
    }

    /// Whole blocks, widths that would double, and what is no state.
    #[test]
    fn others_stay() {
        for (from, to) in [("40", "64"), ("40", "32"), ("past_key_values", "other")] {
            let text = PREFILL.replace(from, to).replace("20]", "64]");
            let mut graph = parse(&text).expect("a graph");
            assert!(!pad_states(&mut graph).expect("a patch"), "{text}");
            assert_eq!(print(&graph), print(&parse(&text).expect("a graph")));
        }
    }
}
