//! The recurrent form: a `LinearAttention` operator for S, and where the readout divides a second one with values of 1
//! for the normaliser z, so that the state of S keeps the width of the values.

use super::{HeadOrder, Lowered, Recurrence, RecurrentState, Sums};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, domain: &'static str) -> Lowered {
    let d = r.dims;
    let q = pack(p, r.q, d.heads * d.features);
    let k = pack(p, r.k, d.kv_heads * d.features);
    let v = pack(p, r.v, d.kv_heads * d.value_dim);
    let tokens = r.valid.map(|valid| p.unsqueeze(valid, &[2]));
    let v = tokens.map_or(v, |tokens| p.mul(v, tokens));
    let decay = r.log_decay.map(|log| p.transpose(log, &[0, 2, 1]));
    let beta = r.beta.map(|beta| p.transpose(beta, &[0, 2, 1]));
    let op = Op::in_domain(domain, "LinearAttention")
        .with("q_num_heads", d.heads)
        .with("kv_num_heads", d.kv_heads)
        .with("update_rule", update_rule(r))
        .with("scale", 1.0f32);
    let run = |p: &mut Patch<'_>, values: ValueId, state: ValueId| {
        let mut inputs = vec![Some(q), Some(k), Some(values), Some(state)];
        if decay.is_some() || beta.is_some() {
            inputs.push(decay);
        }
        inputs.extend(beta.map(Some));
        p.node_outputs(op.clone(), &inputs, 2)
    };
    let s = run(p, v, r.state.s);
    let z = r.state.z.map(|z| {
        let ones = match tokens {
            Some(tokens) => repeat(p, tokens, d.kv_heads),
            None => ones(p, v, d.kv_heads),
        };
        let z0 = p.unsqueeze(z, &[3]);
        run(p, ones, z0)
    });
    Lowered {
        sums: Sums {
            num: p.reshape(s[0], &[0, 0, d.heads, d.value_dim]),
            den: z.as_ref().map(|z| p.unsqueeze(z[0], &[3])),
            order: HeadOrder::TokenMajor,
        },
        state: RecurrentState { s: s[1], z: z.map(|z| p.squeeze(z[1], &[3])) },
    }
}

/// As the operator calls it.
fn update_rule(r: &Recurrence) -> &'static str {
    match (r.log_decay.is_some(), r.beta.is_some()) {
        (false, false) => "linear",
        (true, false) => "gated",
        (false, true) => "delta",
        (true, true) => "gated_delta",
    }
}

/// `[batch, heads, sequence, width]` → `[batch, sequence, heads · width]`
fn pack(p: &mut Patch<'_>, x: ValueId, packed: i64) -> ValueId {
    let transposed = p.transpose(x, &[0, 2, 1, 3]);
    p.reshape(transposed, &[0, 0, packed])
}

/// `[batch, sequence, 1]` → `[batch, sequence, count]`, the same for all layers.
fn repeat(p: &mut Patch<'_>, x: ValueId, count: i64) -> ValueId {
    let shape = p.ints(&[1, 1, count]);
    p.expand(x, shape)
}

/// `[batch, sequence, kv_heads]`, like the packed values.
fn ones(p: &mut Patch<'_>, like: ValueId, kv_heads: i64) -> ValueId {
    let lead = p.shape_of(like, 0, 2);
    let last = p.ints(&[kv_heads]);
    let shape = p.concat(&[lead, last], 0);
    let one = p.constant("one", Tensor::scalar(DType::F32, 1.0));
    p.expand(one, shape)
}
