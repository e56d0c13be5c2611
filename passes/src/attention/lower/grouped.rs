//! Softmax attention as ONNX Runtime serves it fastest: `com.microsoft::GroupQueryAttention`, flash attention where
//! there is a GPU, over a cache whose past and present may be one buffer.
//!
//! *Becomes:* q, k, v packed `[batch, sequence, heads · head_dim]`; the rotary embedding inside the operator where it
//! takes it, beside it as `RotaryEmbedding` where it does not, and as written where it was not recognised.
//! *Exact:* up to rounding. The operator counts the tokens of a row from its beginning and cannot leave out the first
//! ones, so that those of rows that are padded in front are moved there ([`super::tokens_first`]). A batch of several
//! rows goes on after its past by one token a call, and the operator refuses more.
//! A window of the tokens is the operator's own, which counts tokens too.
//! *Declines when:* an attention of the graph has no cache, another mask, or heads the operator does not take. The
//! graph is then left as it is, as caches of two kinds are served in two ways.

use super::tokens_first::{Marks, bring_tokens_first, recent_tokens};
use crate::attention::patterns::find_sites;
use crate::attention::site::AttentionSite;
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::TABLES;
use std::collections::BTreeMap;

/// The operator that writes the new keys and values into the cache it is given.
pub const DOMAIN: &str = "com.microsoft";
pub const OPERATOR: &str = "GroupQueryAttention";

/// What the pass calls itself, in errors and as the origin of its nodes.
const RULE: &str = "grouped_attention";

/// Positions that the tables of rotary embedding hold; the operators read them, and compute none.
pub const ROTARY_ROWS: u64 = 1 << 17;

/// What the operators ask of the sizes of heads: all of them of 8 values, and where they rotate of 16, the rotated
/// part too.
const ALIGNED: u64 = 8;
const ROTATES: u64 = 16;

/// Rewrites every attention of a graph, or says why it cannot.
pub fn group(graph: &mut Graph) -> Result<Option<String>, PatchError> {
    let found = find_sites(graph);
    if let Some(miss) = found.misses.iter().find(|miss| miss.is_attention) {
        return Ok(Some(format!("{:?} was not recognised", miss.node)));
    }
    let Some(first) = found.sites.first() else { return Ok(Some("it has no attention".to_owned())) };
    if let Some(reason) = found.sites.iter().find_map(|site| misfit(graph, site, first)) {
        return Ok(Some(reason));
    }
    let Some(mask) = first.mask.padding() else { return Ok(Some("it has no mask input".to_owned())) };
    let (change, recent) = {
        let mut writer = GroupWriter { p: Patch::new(graph, RULE), graph, tables: BTreeMap::new() };
        let counts = writer.counts(mask, first.q);
        found.sites.iter().for_each(|site| writer.write(site, counts));
        (writer.p.finish(), counts.recent)
    };
    graph.apply(change)?;
    bring_tokens_first(graph, Marks { mask, recent }, &|node| {
        node.origin == RULE && node.op.name() == OPERATOR
    })?;
    Ok(None)
}

fn misfit(graph: &Graph, site: &AttentionSite, first: &AttentionSite) -> Option<String> {
    let what = match site {
        _ if site.cache.is_none() => "it has no cache".to_owned(),
        _ if !site.mask.is_causal() || site.mask.padding().is_none() => {
            format!("its mask is {}", site.mask.name())
        }
        _ if site.mask.padding() != first.mask.padding() => "its mask is not that of the others".to_owned(),
        _ if site.head_dim != site.value_dim => {
            format!("keys have {} features and values {}", site.head_dim, site.value_dim)
        }
        _ if !site.head_dim.is_multiple_of(ALIGNED) => {
            format!("heads of {} features are not a multiple of {ALIGNED}", site.head_dim)
        }
        _ if !graph
            .value(site.q)
            .ty
            .dtype
            .is_some_and(|t| matches!(t, DType::F32 | DType::F16 | DType::BF16)) =>
        {
            "its element type is no float of 32 or 16 bits".to_owned()
        }
        _ => return None,
    };
    Some(format!("{}: {what}", site.name))
}

/// `seqlens_k` i32 `[batch]`, the last position of each row, and `total_sequence_length` i32 `[]`.
#[derive(Clone, Copy)]
struct Counts {
    last: ValueId,
    total: ValueId,
    /// Which tokens of the call are none but padding, i64 `[batch, sequence]`.
    recent: ValueId,
}

struct GroupWriter<'g> {
    p: Patch<'g>,
    graph: &'g Graph,
    /// Cosines and sines by the frequencies and the element type.
    tables: BTreeMap<(ValueId, DType), [ValueId; 2]>,
}

impl GroupWriter<'_> {
    /// All that a call brings stands after the tokens of the past, padding too: it is written over when it turns out
    /// to be after the tokens.
    fn counts(&mut self, mask: ValueId, queries: ValueId) -> Counts {
        let by_token = self.by_token(queries);
        let p = &mut self.p;
        p.set_scope(RULE);
        let (ones, recent) = (p.cast(mask, DType::I64), recent_tokens(p, mask, by_token));
        let [all, new] = [ones, recent].map(|marks| p.reduce("ReduceSum", marks, &[1], false));
        let past = p.sub(all, new);
        let time = p.shape_of(by_token, 1, 2);
        let end = p.add(past, time);
        let last = p.add_scalar(end, -1.0);
        let total = p.shape_of(mask, 1, 2);
        let total = p.squeeze(total, &[0]);
        Counts { last: p.cast(last, DType::I32), total: p.cast(total, DType::I32), recent }
    }

    /// What has the tokens of a call on axis 1: an input, or else the queries before they are laid out by head.
    fn by_token(&mut self, queries: ValueId) -> ValueId {
        let shape = |v: ValueId| self.graph.value(v).ty.shape.as_deref();
        let time = shape(queries).and_then(|dims| dims.get(2));
        let holds = |v: &&ValueId| matches!(shape(**v), Some([_, own, ..]) if Some(own) == time);
        let input = self.graph.inputs().iter().find(holds).copied();
        input.unwrap_or_else(|| self.p.transpose(queries, &[0, 2, 1, 3]))
    }

    fn write(&mut self, site: &AttentionSite, counts: Counts) {
        let Some(cache) = &site.cache else { return };
        self.p.set_scope(&site.name);
        let rotary = self.rotary(site);
        let inside = rotary
            .as_ref()
            .filter(|r| r.rotated.is_multiple_of(ROTATES) && site.head_dim.is_multiple_of(ROTATES));
        let tables = rotary.as_ref().map(|r| self.tables(r));
        let (q, k) = rotary.as_ref().map_or((site.q, site.k), |r| (r.q, r.k));
        let [mut q, mut k, v] = [(q, site.heads), (k, site.kv_heads), (site.v, site.kv_heads)]
            .map(|(x, heads)| self.packed(x, heads * site.head_dim));
        if let (Some(rotary), Some(tables), None) = (&rotary, tables, inside) {
            q = self.rotated(q, rotary, tables, site.heads);
            k = self.rotated(k, rotary, tables, site.kv_heads);
        }
        let op = operator(site).with("do_rotary", i64::from(inside.is_some()));
        let dtype = self.p.dtype(site.q);
        let [past_key, past_value] = [cache.past_key, cache.past_value].map(|past| self.p.cast(past, dtype));
        let mut inputs = [q, k, v, past_key, past_value, counts.last, counts.total].map(Some).to_vec();
        if inside.is_some() {
            inputs.extend(tables.into_iter().flatten().map(Some));
        }
        let made = self.p.node_outputs(op, &inputs, 3);
        self.put(site, made[0]);
        for (name, present) in [(&cache.present_key, made[1]), (&cache.present_value, made[2])] {
            if let Some(old) = self.graph.output(name) {
                let dtype = self.p.dtype(old);
                let present = self.p.cast(present, dtype);
                self.p.replace(old, present);
            }
        }
    }

    /// The output for what the site computed, and past the packing that follows where it follows.
    fn put(&mut self, site: &AttentionSite, out: ValueId) {
        let width = (site.heads * site.head_dim) as i64;
        if let Some(packed) = packing_of(self.graph, site.out, width) {
            self.p.replace(packed, out);
            return;
        }
        let heads = self.p.reshape(out, &[0, 0, site.heads as i64, site.head_dim as i64]);
        let transposed = self.p.transpose(heads, &[0, 2, 1, 3]);
        self.p.replace(site.out, transposed);
    }

    /// `[batch, heads, sequence, dim]` as `[batch, sequence, heads · dim]`.
    fn packed(&mut self, x: ValueId, width: u64) -> ValueId {
        let by_token = match self.graph.made_by(x, "Transpose") {
            Some(node) if node.op.ints("perm") == Some(&[0, 2, 1, 3]) => node.input(0),
            _ => None,
        };
        let by_token = by_token.unwrap_or_else(|| self.p.transpose(x, &[0, 2, 1, 3]));
        let flat = self.graph.get_value(by_token).and_then(|_| self.graph.made_by(by_token, "Reshape"));
        if let Some(flat) = flat.and_then(|node| node.input(0)) {
            let shape = self.graph.value(flat).ty.shape.clone().unwrap_or_default();
            if shape.len() == 3 && shape[2].known() == Some(width) {
                return flat;
            }
        }
        self.p.reshape(by_token, &[0, 0, width as i64])
    }

    fn rotated(&mut self, x: ValueId, rotary: &Rotary, [cos, sin]: [ValueId; 2], heads: u64) -> ValueId {
        let op = Op::in_domain(DOMAIN, "RotaryEmbedding")
            .with("num_heads", heads as i64)
            .with("rotary_embedding_dim", rotary.rotated as i64);
        self.p.node(op, &[x, rotary.positions, cos, sin])
    }

    fn tables(&mut self, rotary: &Rotary) -> [ValueId; 2] {
        let dtype = self.graph.value(rotary.q).ty.dtype.unwrap_or(DType::F32);
        let key = (rotary.frequencies, dtype);
        if let Some(tables) = self.tables.get(&key) {
            return *tables;
        }
        let frequencies = self.graph.as_const(rotary.frequencies).map(Tensor::to_f64).unwrap_or_default();
        let index = self.tables.len();
        let mut table = |name: &str, of: fn(f64) -> f64| {
            let row =
                |row: u64| frequencies.iter().map(move |f| of(f64::from(row as f32 * *f as f32)) as f32);
            let values: Vec<f32> = (0..ROTARY_ROWS).flat_map(row).collect();
            let tensor = Tensor::from_f32(&[ROTARY_ROWS, frequencies.len() as u64], &values);
            self.p.weight(&format!("{TABLES}{index}.{name}"), tensor.cast(dtype))
        };
        let tables = [table("cos", f64::cos), table("sin", f64::sin)];
        self.tables.insert(key, tables);
        tables
    }

    /// The rotation of queries and keys, where both have the same and it is one that a table can hold.
    fn rotary(&self, site: &AttentionSite) -> Option<Rotary> {
        let (q, k) = (rotation(self.graph, site.q)?, rotation(self.graph, site.k)?);
        let same = q.cos == k.cos && q.sin == k.sin && q.rotated == k.rotated;
        let angles = angles(self.graph, q.cos, "Cos").filter(|_| same)?;
        if angles != self::angles(self.graph, q.sin, "Sin")? {
            return None;
        }
        let (positions, frequencies) = factors(self.graph, angles)?;
        Some(Rotary { q: q.x, k: k.x, rotated: q.rotated, positions, frequencies })
    }
}

/// The operator that computes a site.
fn operator(site: &AttentionSite) -> Op {
    let op = Op::in_domain(DOMAIN, OPERATOR)
        .with("num_heads", site.heads as i64)
        .with("kv_num_heads", site.kv_heads as i64)
        .with("scale", site.scale as f32);
    let op = match site.softcap {
        Some(cap) => op.with("softcap", cap as f32),
        None => op,
    };
    match site.mask.window() {
        Some(tokens) => op.with("local_window_size", i64::from(tokens)),
        None => op,
    }
}

/// Queries and keys before they are rotated, and by what.
struct Rotary {
    q: ValueId,
    k: ValueId,
    /// Features of a head that are rotated, from the first.
    rotated: u64,
    /// i64 `[batch, sequence]`
    positions: ValueId,
    /// f32 `[rotated / 2]`
    frequencies: ValueId,
}

/// What one value was rotated from, and the factors.
struct Rotation {
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    rotated: u64,
}

/// x · cos + (−x₂, x₁) · sin over all features, or over the first ones with the others after them.
fn rotation(graph: &Graph, value: ValueId) -> Option<Rotation> {
    let Some(joined) = graph.made_by(value, "Concat") else { return whole_rotation(graph, value) };
    let (rotated, kept) = (joined.input(0)?, joined.input(1)?);
    let inner = whole_rotation(graph, rotated)?;
    let (split, first) = graph.producer(inner.x)?;
    let is_rest = graph.producer(kept) == Some((split, 1)) && first == 0 && joined.inputs.len() == 2;
    let split = Some(graph.node(split)).filter(|node| node.op.is("Split") && is_rest)?;
    Some(Rotation { x: split.input(0)?, ..inner })
}

fn whole_rotation(graph: &Graph, value: ValueId) -> Option<Rotation> {
    let sum = graph.made_by(value, "Add")?;
    let straight = graph.made_by(sum.input(0)?, "Mul")?;
    let across = graph.made_by(sum.input(1)?, "Mul")?;
    let x = straight.input(0)?;
    let halves = graph.made_by(across.input(0)?, "Concat")?;
    let negated = graph.made_by(halves.input(0)?, "Neg")?.input(0)?;
    let (split, second) = graph.producer(negated)?;
    let turns = graph.producer(halves.input(1)?) == Some((split, 0))
        && second == 1
        && is_split_of(graph.node(split), x)
        && halves.inputs.len() == 2;
    let rotated = graph.value(x).ty.shape.as_ref()?.get(3)?.known()?;
    turns.then_some(Rotation { x, cos: straight.input(1)?, sin: across.input(1)?, rotated })
}

/// The axis is the last, and the halves are equal, as otherwise the sum would have no shape.
fn is_split_of(node: &Node, x: ValueId) -> bool {
    node.op.is("Split") && node.input(0) == Some(x) && matches!(node.op.int("axis"), Some(-1 | 3))
}

/// What the cosine or the sine is of.
fn angles(graph: &Graph, value: ValueId, function: &str) -> Option<ValueId> {
    let value = graph.made_by(value, "Cast").map_or(Some(value), |cast| cast.input(0))?;
    graph.made_by(value, function)?.input(0)
}

/// Positions and frequencies whose product, twice side by side, the angles are.
fn factors(graph: &Graph, angles: ValueId) -> Option<(ValueId, ValueId)> {
    let both = graph.made_by(angles, "Unsqueeze")?.input(0)?;
    let both = graph.made_by(both, "Concat")?;
    let half = both.input(0).filter(|half| both.inputs.len() == 2 && both.input(1) == Some(*half))?;
    let product = graph.made_by(half, "Mul")?;
    let frequencies = product.input(1).filter(|v| graph.as_const(*v).is_some_and(|c| c.dims().len() == 1))?;
    let positions = graph.made_by(product.input(0)?, "Unsqueeze")?.input(0)?;
    let positions = graph.made_by(positions, "Cast")?.input(0)?;
    let ty = &graph.value(positions).ty;
    let fits = ty.dtype == Some(DType::I64) && ty.shape.as_ref().is_some_and(|s| s.len() == 2);
    fits.then_some((positions, frequencies))
}

/// `Reshape(Transpose(out))` to `[batch, sequence, width]`, where nothing else reads `out`.
fn packing_of(graph: &Graph, out: ValueId, width: i64) -> Option<ValueId> {
    let transposed = graph.node(only_user(graph, out)?);
    let turns = transposed.op.is("Transpose") && transposed.op.ints("perm") == Some(&[0, 2, 1, 3]);
    let flat = graph.node(only_user(graph, transposed.outputs[0]).filter(|_| turns)?);
    let shape = graph.as_const(flat.input(1).filter(|_| flat.op.is("Reshape"))?)?.to_i64()?;
    (shape == [0, 0, width]).then(|| flat.outputs[0])
}

fn only_user(graph: &Graph, value: ValueId) -> Option<NodeId> {
    match graph.value(value).uses.as_slice() {
        [Use::Node { node, .. }] => Some(*node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canon::canonicalize;
    use crate::ir::eval::Array;
    use crate::ir::shape::Dim;
    use crate::ir::text::print;
    use crate::ir::verify::verify;
    use crate::testing::{decoder, encoder, noise, relative_error, run, windowed_decoder};

    fn plain() -> Graph {
        let mut graph = decoder();
        canonicalize(&mut graph).expect("it settles");
        graph
    }

    #[test]
    fn attention_becomes_one_operator() {
        let mut graph = plain();
        assert_eq!(group(&mut graph).expect("a patch"), None);
        assert!(verify(&graph).is_empty());
        insta::assert_snapshot!(print(&graph));
    }

    #[test]
    fn the_numbers_stay_with_a_past_and_without() {
        let (mut graph, plain) = (plain(), plain());
        group(&mut graph).expect("a patch");
        for (past, time) in [(0, 5), (3, 1), (4, 3)] {
            let ones = Array::I(ndarray::ArrayD::ones(vec![2, past + time]));
            let inputs = [
                ("hidden", noise(&[2, time, 16], 1)),
                ("attention_mask", ones),
                ("past_key_values.0.key", noise(&[2, 2, past, 8], 2)),
                ("past_key_values.0.value", noise(&[2, 2, past, 8], 3)),
            ];
            let (found, expected) = (run(&graph, &inputs), run(&plain, &inputs));
            for (name, value) in &expected {
                // Both in f64; the scale is kept in f32 by both.
                let error = relative_error(&found[name], value);
                assert!(error < 1e-7, "{name} after {past}: {error:e}");
            }
        }
    }

    /// What the tokens of both rows come to, padding left out: a prompt, then a token, each call with what the one
    /// before returned. `pads` are where the two rows are padded, at the front or at the end.
    fn generated(graph: &Graph, pads: [&[usize]; 2]) -> Vec<f64> {
        let mut mask: Vec<Vec<i64>> =
            pads.iter().map(|pads| (0..5).map(|t| i64::from(!pads.contains(&t))).collect()).collect();
        let mut caches = [noise(&[2, 2, 0, 8], 0), noise(&[2, 2, 0, 8], 0)];
        let mut found = Vec::new();
        for (call, time) in [(1, 5), (2, 1), (3, 1)] {
            if call > 1 {
                mask.iter_mut().for_each(|row| row.push(1));
            }
            let width = mask[0].len();
            let marks = Array::from_i64(&[2, width], mask.concat()).expect("a mask");
            let inputs = [
                ("hidden", noise(&[2, time, 16], call)),
                ("attention_mask", marks),
                ("past_key_values.0.key", caches[0].clone()),
                ("past_key_values.0.value", caches[1].clone()),
            ];
            let mut out = run(graph, &inputs);
            caches = ["key", "value"].map(|part| out.remove(&format!("present.0.{part}")).expect("a cache"));
            let y = out["y"].to_f64();
            let rows = y.chunks(y.len() / (2 * time)).enumerate();
            let is_token = |at: usize| mask[at / time][width - time + at % time] == 1;
            found.extend(rows.filter(|(at, _)| is_token(*at)).flat_map(|(_, row)| row.to_vec()));
        }
        found
    }

    const PADS: [[&[usize]; 2]; 4] =
        [[&[0, 1], &[]], [&[0, 1, 2, 3], &[4]], [&[0, 4], &[3, 4]], [&[], &[0, 1, 2]]];

    fn moves(graph: &Graph) -> usize {
        let around = graph.nodes().filter(|(_, node)| node.origin == super::super::tokens_first::RULE);
        around.filter(|(_, node)| node.op.is("Gather")).count()
    }

    #[test]
    fn rows_may_be_padded_in_front_and_behind() {
        let (mut graph, plain) = (plain(), plain());
        group(&mut graph).expect("a patch");
        assert_eq!(moves(&graph), 2, "of what is given and of what is returned");
        check_padded(&graph, &plain);
    }

    /// Something but attention looks from token to token.
    #[test]
    fn what_mixes_tokens_elsewhere_is_left_in_order() {
        let mixing = || {
            let mut graph = plain();
            let change = {
                let mut p = Patch::new(&graph, "test");
                let hidden = graph.input("hidden").expect("an input");
                let before = p.cumsum(hidden, 1, false);
                p.output("sums", before);
                p.finish()
            };
            graph.apply(change).expect("a patch");
            graph
        };
        let (mut graph, plain) = (mixing(), mixing());
        group(&mut graph).expect("a patch");
        assert_eq!(moves(&graph), 4, "queries, keys, values and what is returned");
        check_padded(&graph, &plain);
    }

    /// The last product of a further output reads an input itself, which is not moved.
    #[test]
    fn a_product_of_an_input_stays_in_order() {
        let with_product = || {
            let mut graph = plain();
            let change = {
                let mut p = Patch::new(&graph, "test");
                let hidden = graph.input("hidden").expect("an input");
                let weight = Tensor::from_f32(&[3, 16], &(0..48u8).map(f32::from).collect::<Vec<_>>());
                let weight = p.weight("aux.weight", weight);
                let aux = p.linear(hidden, weight, None);
                p.output("aux", aux);
                p.finish()
            };
            graph.apply(change).expect("a patch");
            graph
        };
        let (mut graph, plain) = (with_product(), with_product());
        group(&mut graph).expect("a patch");
        assert_eq!(moves(&graph), 3, "of what is given and of both that are returned");
        check_padded(&graph, &plain);
        let inputs = padded_in_front();
        assert_eq!(run(&graph, &inputs)["aux"], run(&plain, &inputs)["aux"]);
    }

    /// Rows of a width that is no number cannot be moved where they come in.
    #[test]
    fn an_input_of_any_width_is_left_in_order() {
        let with_input = || {
            let mut graph = plain();
            let change = {
                let mut p = Patch::new(&graph, "test");
                let hidden = graph.input("hidden").expect("an input");
                let shape = [p.dim(hidden, 0), p.dim(hidden, 1), Dim::sym("width")];
                let other = p.input("other", DType::F32, shape);
                let sums = p.reduce("ReduceSum", other, &[2], true);
                p.output("sums", sums);
                p.finish()
            };
            graph.apply(change).expect("a patch");
            graph
        };
        let (mut graph, plain) = (with_input(), with_input());
        assert_eq!(group(&mut graph).expect("a patch"), None);
        assert!(verify(&graph).is_empty());
        assert_eq!(moves(&graph), 4, "queries, keys, values and what is returned");
        let inputs = [padded_in_front(), vec![("other", noise(&[2, 5, 3], 2))]].concat();
        assert_eq!(run(&graph, &inputs)["sums"], run(&plain, &inputs)["sums"]);
    }

    /// A prompt whose first row is padded in front.
    fn padded_in_front() -> Vec<(&'static str, Array)> {
        let mask = Array::from_i64(&[2, 5], vec![0, 0, 1, 1, 1, 1, 1, 1, 1, 1]).expect("a mask");
        vec![
            ("hidden", noise(&[2, 5, 16], 1)),
            ("attention_mask", mask),
            ("past_key_values.0.key", noise(&[2, 2, 0, 8], 0)),
            ("past_key_values.0.value", noise(&[2, 2, 0, 8], 0)),
        ]
    }

    fn check_padded(graph: &Graph, plain: &Graph) {
        assert!(verify(graph).is_empty());
        for pads in PADS {
            let (found, expected) = (generated(graph, pads), generated(plain, pads));
            assert_eq!(found.len(), expected.len());
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-6, "{pads:?}: {apart:e}");
        }
    }

    /// The plain form counts places, the operator tokens: they differ where padding stands between.
    #[test]
    fn a_window_is_the_operators() {
        for tokens in [1, 2, 3, 6] {
            let windowed = || {
                let mut graph = windowed_decoder(tokens);
                canonicalize(&mut graph).expect("it settles");
                graph
            };
            let (mut graph, plain) = (windowed(), windowed());
            assert_eq!(group(&mut graph).expect("a patch"), None);
            assert!(print(&graph).contains(&format!("local_window_size: {tokens}")));
            let in_front: [[&[usize]; 2]; 2] = [[&[0, 1], &[]], [&[0, 1, 2, 3], &[0]]];
            for pads in in_front {
                let (found, expected) = (generated(&graph, pads), generated(&plain, pads));
                let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(apart < 1e-6, "{tokens} {pads:?}: {apart:e}");
            }
        }
    }

    #[test]
    fn an_encoder_stays() {
        let mut graph = encoder();
        canonicalize(&mut graph).expect("it settles");
        let before = print(&graph);
        let reason = group(&mut graph).expect("no patch").expect("a reason");
        assert_eq!(reason, "h.0.attn: it has no cache");
        assert_eq!(print(&graph), before);
    }
}
