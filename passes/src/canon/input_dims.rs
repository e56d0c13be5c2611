//! Matches: a dim of a graph input that has no number, where a `Concat`, a `Conv`, a `Split` or the other inputs say what it is
//! Becomes: the number that a `Concat` along another axis, the weight of a `Conv` or the sizes of a `Split` demand; the batch of
//! `input_ids`, in a mask, in a cache and in `token_type_ids`, which are as many; the past of the first cache, in the others;
//! past + sequence, under the mask
//! Exact: yes, for inputs that describe the same tokens: exporters give one length several names
//! Declines when: the past of another sequence is cached, or `decoder_input_ids` tell of a second one; of a mask, when a cache of
//! another layout grows, whose past is not known

use super::GraphRule;
use crate::ir::cache_input::{first_readers, grows_along, is_cache};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Applied, Patch, PatchError};
use crate::ir::shape::{Dim, Shape};
use dijiang_format::names::{IDS, MASK, SEGMENTS};
use std::collections::BTreeMap;

pub(super) struct InputDims;

impl GraphRule for InputDims {
    fn name(&self) -> &'static str {
        "input_dims"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let lengths = Lengths::of(graph);
        let split = split(graph);
        let told = graph.inputs().iter().filter_map(|input| {
            let old = graph.value(*input).ty.shape.as_ref()?;
            let mut joined = channels(graph, *input, joined(graph, *input, old));
            for dim in &mut joined {
                *dim = split.get(dim).cloned().unwrap_or_else(|| dim.clone());
            }
            let new = lengths.as_ref().map_or_else(|| joined.clone(), |l| l.told(graph, *input, &joined));
            (new != *old).then_some((*input, new))
        });
        let told: Vec<(ValueId, Shape)> = told.collect();
        if told.is_empty() {
            return Ok(None);
        }
        let mut patch = Patch::new(graph, self.name());
        for (input, shape) in told {
            let mut ty = graph.value(input).ty.clone();
            ty.shape = Some(shape);
            patch.set_input_type(input, ty);
        }
        let change = patch.finish();
        graph.apply(change).map(Some)
    }
}

/// Dims that are split into parts of sizes that are numbers, and their sums: the graph takes nothing else there.
fn split(graph: &Graph) -> BTreeMap<Dim, Dim> {
    let sum = |node: &Node| {
        let shape = graph.value(node.input(0)?).ty.shape.as_deref()?;
        let axis = resolve_axis(node.op.int("axis")?, shape.len()).ok()?;
        let sizes = graph.as_const(node.input(1)?)?.to_i64()?;
        let sum = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(u64::try_from(*size).ok()?))?;
        Some((shape[axis].clone(), Dim::Known(sum)))
    };
    let splits = graph.nodes().map(|(_, node)| node).filter(|node| node.op.is("Split"));
    splits.filter_map(sum).filter(|(dim, _)| matches!(dim, Dim::Sym(_))).collect()
}

/// The channels that the weight of a `Conv` demands of an input.
fn channels(graph: &Graph, input: ValueId, mut shape: Shape) -> Shape {
    let demanded = |node: &Node| {
        let is_conv = node.op.is("Conv") || node.op.is("ConvInteger");
        let weight = node.input(1).filter(|_| is_conv)?;
        let each = graph.value(weight).ty.shape.as_ref()?.get(1)?.known()?;
        each.checked_mul(u64::try_from(node.op.int("group")?).ok()?)
    };
    let found = first_readers(graph, input).into_iter().find_map(demanded);
    if let (Some(dim), Some(count)) = (shape.get_mut(1).filter(|dim| dim.known().is_none()), found) {
        *dim = Dim::Known(count);
    }
    shape
}

/// The numbers that a `Concat` demands of an input.
fn joined(graph: &Graph, input: ValueId, shape: &Shape) -> Shape {
    let mut shape = shape.clone();
    for user in &graph.value(input).uses {
        let Use::Node { node, .. } = user else { continue };
        let node = graph.node(*node);
        let Some(axis) = node.op.int("axis").filter(|_| node.op.is("Concat")) else { continue };
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        for other in node.inputs.iter().flatten().filter_map(|v| graph.value(*v).ty.shape.as_ref()) {
            for (i, (dim, other)) in (0..).zip(shape.iter_mut().zip(other)) {
                if i != axis && dim.known().is_none() && other.known().is_some() {
                    *dim = other.clone();
                }
            }
        }
    }
    shape
}

/// What the sizes of a decoder's inputs go by.
struct Lengths {
    batch: Dim,
    sequence: Dim,
    /// None where there is no cache.
    past: Option<Dim>,
    /// What the mask covers, where that is known.
    total: Option<Dim>,
}

impl Lengths {
    fn of(graph: &Graph) -> Option<Self> {
        if graph.input("decoder_input_ids").is_some() {
            return None;
        }
        let ids = graph.value(graph.input(IDS)?);
        let [batch, sequence] = ids.ty.shape.as_deref()? else { return None };
        let cache = graph.inputs().iter().find(|v| is_cache(graph, **v));
        let past = cache.and_then(|v| graph.value(*v).ty.shape.as_ref()?.get(2).cloned());
        let grows = graph.inputs().iter().any(|v| grows_along(graph, *v).is_some());
        let total = match &past {
            Some(past) => Some(past.plus(sequence)),
            None => (!grows).then(|| sequence.clone()),
        };
        Some(Self { batch: batch.clone(), sequence: sequence.clone(), past, total })
    }

    fn told(&self, graph: &Graph, input: ValueId, shape: &Shape) -> Shape {
        let meant = match shape.len() {
            2 if graph.value(input).name == MASK => vec![Some(&self.batch), self.total.as_ref()],
            2 if graph.value(input).name == SEGMENTS => vec![Some(&self.batch), Some(&self.sequence)],
            4 if is_cache(graph, input) => vec![Some(&self.batch), None, self.past.as_ref(), None],
            _ => return shape.clone(),
        };
        shape.iter().zip(meant).map(|(dim, meant)| named(dim, meant)).collect()
    }
}

/// `meant`, unless nothing is known of it or `dim` is a number already.
fn named(dim: &Dim, meant: Option<&Dim>) -> Dim {
    match (dim, meant) {
        (Dim::Sym(_) | Dim::Unknown, Some(meant @ Dim::Sym(_))) => meant.clone(),
        _ => dim.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn lengths_of_the_same_tokens_have_one_name() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[b, total]
  input %past_0: f32[c, 2, past, width]
  input %past_1: f32[d, 2, other, 4]
  input %past_cross: f32[batch, 2, source, 4]
  input %new: f32[batch, 2, time, 4]
  const %ends: i64[1] = [9223372036854775807]
  const %one: i64[1] = [1]
  %p = Concat(%past_0, %new) {axis: 2}
  %q = Concat(%past_1, %new) {axis: -2}
  %r = Exp(%past_cross)
  %s = Shape(%past_0) {start: 2, end: 3}
  %m = Slice(%attention_mask, %s, %ends, %one)
  %e = Add(%m, %input_ids)
  output "p" %p
  output "q" %q
  output "another sequence" %r
  output "as long as the tokens" %e
}"#
        ));
    }

    #[test]
    fn channels_are_those_of_the_weight() {
        let text = r#"graph "g" {
  input %picture: f32[batch, channels, height, width]
  input %kernels: f32[8, 3, 2, 2]
  weight %w: f32[8, 3, 2, 2] = random(1)
  %y = Conv(%picture, %w) {strides: [2, 2]}
  %z = Conv(%picture, %kernels) {group: 2}
  output "y" %y
  output "z" %z
}"#;
        let one_group = after(&text.replace(" {group: 2}", ""));
        assert!(one_group.contains("%picture: f32[batch, 3, height, width]"), "{one_group}");
        let only = text.replace("  %y = Conv(%picture, %w) {strides: [2, 2]}\n", "");
        let only = only.replace("  output \"y\" %y\n", "");
        assert!(after(&only).contains("%picture: f32[batch, 6, height, width]"));
        let cast =
            only.replace("%z = Conv(%picture", "%half = Cast(%picture) {to: \"f32\"}\n  %z = Conv(%half");
        assert!(
            after(&cast.replace("%picture: f32", "%picture: f16")).contains("f16[batch, 6, height, width]")
        );
        let rounded = only
            .replace(
                "%z = Conv(%picture",
                "%q, %s, %o = DynamicQuantizeLinear(%picture)\n  %z = ConvInteger(%q",
            )
            .replace("%kernels: f32", "%kernels: i8");
        assert!(after(&rounded).contains("%picture: f32[batch, 6, height, width]"));
        let kernel = only.replace("Conv(%picture, %kernels) {group: 2}", "Conv(%kernels, %picture)");
        assert!(after(&kernel).contains("[batch, channels, height, width]"));
    }

    /// As adapters are exported that are chosen by sequence: with those that there were.
    #[test]
    fn what_is_split_into_parts_of_numbers_is_as_long_as_those() {
        let text = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[batch, time]
  input %x: f32[batch, time, 8]
  const %parts: i64[2] = [2, 1]
  %e = Add(%attention_mask, %input_ids)
  %y, %z = Split(%x, %parts) {axis: 0}
  output "e" %e
  output "y" %y
  output "z" %z
}"#;
        let told = after(text);
        assert!(
            told.contains("%attention_mask: i64[3, time]") && told.contains("%x: f32[3, time, 8]"),
            "{told}"
        );
        let halves =
            after(&text.replace("Split(%x, %parts) {axis: 0}", "Split(%x) {axis: 0, num_outputs: 2}"));
        assert!(halves.contains("%x: f32[batch, time, 8]"), "{halves}");
    }

    #[test]
    fn two_sequences_keep_their_names() {
        let text = r#"graph "g" {
  input %input_ids: i64[batch, source]
  input %attention_mask: i64[b, mask]
  input %decoder_input_ids: i64[batch, time]
  %e = Add(%attention_mask, %input_ids)
  output "e" %e
  output "decoder" %decoder_input_ids
}"#;
        assert!(after(text).contains("%attention_mask: i64[b, mask]"));
    }

    #[test]
    fn a_mask_beside_a_ring_is_as_long_as_the_tokens() {
        let text = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[b, total]
  input %past_key_values.0.ring_key.8.0: f32[batch, 2, 8, 4]
  input %new: f32[batch, 2, time, 4]
  const %ends: i64[1] = [9223372036854775807]
  const %start: i64[1] = [-8]
  const %axis: i64[1] = [2]
  %all = Concat(%past_key_values.0.ring_key.8.0, %new) {axis: 2}
  %last = Slice(%all, %start, %ends, %axis)
  %e = Add(%attention_mask, %input_ids)
  output "e" %e
  output "present.0.ring_key.8.0" %last
}"#;
        assert!(after(text).contains("%attention_mask: i64[batch, time]"));
    }

    #[test]
    fn a_mask_covers_a_cache_of_any_name() {
        let text = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[b, total]
  input %k_0: f32[c, 2, cached, 4]
  input %v_0: f32[d, 2, kept, 4]
  input %new: f32[batch, 2, time, 4]
  %k = Concat(%k_0, %new) {axis: 2}
  %v = Concat(%v_0, %new) {axis: 2}
  %e = Exp(%attention_mask)
  %i = Exp(%input_ids)
  output "e" %e
  output "i" %i
  output "k" %k
  output "v" %v
}"#;
        let found = after(text);
        assert!(found.contains("%attention_mask: i64[batch, cached + time]"), "{found}");
        assert!(found.contains("%v_0: f32[batch, 2, cached, 4]"), "{found}");
        // Tokens first: how many are cached is not known here, and the mask keeps its own length.
        let first = text
            .replace("2, cached", "cached, 2")
            .replace("2, kept", "kept, 2")
            .replace("2, time", "time, 2");
        let found = after(&first.replace("axis: 2", "axis: 1"));
        assert!(found.contains("%attention_mask: i64[batch, total]"), "{found}");
    }

    #[test]
    fn a_mask_without_a_cache_is_as_long_as_the_tokens() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[b, total]
  input %position_ids: i64[p, t]
  input %token_type_ids: i64[b, types]
  %e = Add(%attention_mask, %input_ids)
  %f = Add(%position_ids, %input_ids)
  %g = Add(%token_type_ids, %input_ids)
  output "e" %e
  output "as many as the tokens" %g
  output "positions may be of one row for all" %f
}"#
        ));
    }
}
