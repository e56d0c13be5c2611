//! Attention without an order: every query reads the same sums over all keys,
//! num = φ(q)ᵀ Σ_j φ(k_j) ⊗ v_j and den = φ(q)·Σ_j φ(k_j). Linear in the length, and no state.
//!
//! The parallel form computes the same as (φ(Q) φ(K)ᵀ) V.

use super::{Dims, Form, HeadOrder, Sums};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

/// From φ(q) `[batch, heads, n, m]`, φ(k) `[batch, kv_heads, keys, m]` and v `[batch, kv_heads, keys, value_dim]`.
pub(crate) fn lower(p: &mut Patch<'_>, form: Form, [q, k, v]: [ValueId; 3], d: Dims) -> Sums {
    let q = p.reshape(q, &[0, d.kv_heads, d.group(), -1, d.features]);
    let (k, v) = (p.unsqueeze(k, &[2]), p.unsqueeze(v, &[2]));
    let (num, den) = match form {
        Form::Parallel => {
            let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
            let weights = p.matmul(q, transposed);
            (p.matmul(weights, v), d.divides.then(|| p.reduce("ReduceSum", weights, &[-1], true)))
        }
        Form::Chunked(_) | Form::Segment(_) | Form::Operator(_) | Form::OneToken(_) => {
            let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
            let sums = p.matmul(transposed, v);
            let norms = d.divides.then(|| {
                let norms = p.reduce("ReduceSum", k, &[3], false);
                p.unsqueeze(norms, &[4])
            });
            (p.matmul(q, sums), norms.map(|norms| p.matmul(q, norms)))
        }
    };
    Sums {
        num: p.reshape(num, &[0, d.heads, -1, d.value_dim]),
        den: den.map(|den| p.reshape(den, &[0, d.heads, -1, 1])),
        order: HeadOrder::HeadMajor,
    }
}
