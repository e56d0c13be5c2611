//! The parallel form: A_ij = φ(q_i)·φ(k_j) exp(L_i - L_j) for j ≤ i, L the cumulative log decay;
//! num = A v + exp(L_i) φ(q_i)ᵀ S_0, and S = exp(L_T) S_0 + Σ_j exp(L_T - L_j) φ(k_j) ⊗ v_j.

use super::{HeadOrder, Lowered, Recurrence, RecurrentState, Sums, decay_of, lower_triangle};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence) -> Lowered {
    let d = r.dims;
    // The query heads of a group stand beside their key/value head: [batch, kv_heads, group, sequence, ·].
    let q = p.reshape(r.q, &[0, d.kv_heads, d.group(), -1, d.features]);
    let k = p.unsqueeze(r.k, &[2]);
    let v = p.unsqueeze(r.v, &[2]);
    let log = r.log_decay.map(|log| cumulative(p, log));

    let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
    let products = p.matmul(q, transposed);
    let time = p.shape_of(r.k, 2, 3);
    let time = p.squeeze(time, &[0]);
    let triangle = lower_triangle(p, time, false);
    let causal = p.mul(products, triangle);
    let weights = match log {
        Some(log) => {
            let (row, column) = (p.unsqueeze(log, &[4]), p.unsqueeze(log, &[3]));
            let between = p.sub(row, column);
            let decay = decay_of(p, between);
            p.mul(causal, decay)
        }
        None => causal,
    };
    let from_start = match log {
        Some(log) => {
            let decay = p.exp(log);
            let decay = p.unsqueeze(decay, &[4]);
            p.mul(q, decay)
        }
        None => q,
    };
    let s0 = p.unsqueeze(r.state.s, &[2]);
    let z0 = r.state.z.map(|z| p.unsqueeze(z, &[2, 4]));
    let (new, old) = (p.matmul(weights, v), p.matmul(from_start, s0));
    let num = p.add(new, old);
    let den = z0.map(|z0| {
        let (new, old) = (p.reduce("ReduceSum", weights, &[-1], true), p.matmul(from_start, z0));
        p.add(new, old)
    });
    Lowered {
        sums: Sums {
            num: p.reshape(num, &[0, d.heads, -1, d.value_dim]),
            den: den.map(|den| p.reshape(den, &[0, d.heads, -1, 1])),
            order: HeadOrder::HeadMajor,
        },
        state: last_state(p, r, log),
    }
}

/// The cumulative log decay, `[batch, kv_heads, 1, sequence]`.
fn cumulative(p: &mut Patch<'_>, log: ValueId) -> ValueId {
    let sum = p.cumsum(log, 2, false);
    p.unsqueeze(sum, &[2])
}

fn last_state(p: &mut Patch<'_>, r: &Recurrence, log: Option<ValueId>) -> RecurrentState {
    let (mut k, mut s0, mut z0) = (r.k, r.state.s, r.state.z);
    if let Some(log) = log {
        let log = p.squeeze(log, &[2]);
        let last = p.slice(log, 2, -1, i64::MAX);
        let until_end = p.sub(last, log);
        let decay = p.exp(until_end);
        let decay = p.unsqueeze(decay, &[3]);
        k = p.mul(k, decay);
        let whole = p.exp(last);
        z0 = z0.map(|z0| p.mul(z0, whole));
        let whole = p.unsqueeze(whole, &[3]);
        s0 = p.mul(s0, whole);
    }
    let transposed = p.transpose(k, &[0, 1, 3, 2]);
    let added = p.matmul(transposed, r.v);
    let s = p.add(s0, added);
    let z = z0.map(|z0| {
        let added = p.reduce("ReduceSum", k, &[2], false);
        p.add(z0, added)
    });
    RecurrentState { s, z }
}
