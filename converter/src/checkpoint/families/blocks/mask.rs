//! The additive masks of causal attention with padding and a cache: one of all earlier tokens, and one of those in a window.

use super::window::Windows;
use crate::checkpoint::build::{Builder, Inputs};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::tensor::Tensor;
use std::collections::BTreeMap;

/// What is added to the score of a hidden key. It is finite, so that a row of padding that may look
/// at nothing stays finite too.
const HIDDEN: f64 = -1e30;

/// The masks of a graph, each there once: f32 `[batch, 1, sequence, past + sequence]`, 0 where query i may look at key j,
/// which is where `j <= past + i` and the token at j is no padding; a large negative number elsewhere. In a window of W,
/// j must be one of the last W tokens up to i too, i itself among them. Padding between two tokens does not count, so that
/// a row gives what it gives alone wherever it is padded.
#[derive(Debug)]
pub(crate) struct Masks {
    /// By the tokens of the window.
    made: BTreeMap<Option<u64>, ValueId>,
    windows: Windows,
}

impl Masks {
    /// Writes the masks that layers with these windows read.
    pub(crate) fn write(b: &mut Builder<'_>, inputs: &Inputs, windows: Windows) -> Self {
        b.p.set_scope("mask");
        let visible = visible(b, inputs);
        let mut made = BTreeMap::new();
        for tokens in windows.kinds(b.meta.layers) {
            let seen = match tokens {
                None => visible,
                Some(tokens) => {
                    let near = near(b, inputs, tokens);
                    b.p.and(visible, near)
                }
            };
            made.insert(tokens, bias(b, seen));
        }
        Self { made, windows }
    }

    /// The same, where every layer sees all.
    pub(crate) fn full(b: &mut Builder<'_>, inputs: &Inputs) -> Self {
        Self::write(b, inputs, Windows::default())
    }

    /// The mask of a layer.
    pub(crate) fn of(&self, layer: u64) -> ValueId {
        self.made[&self.windows.of(layer)]
    }
}

/// bool `[batch, 1, sequence, past + sequence]`
fn visible(b: &mut Builder<'_>, inputs: &Inputs) -> ValueId {
    let p = &mut b.p;
    let total = p.shape_of(inputs.mask, 1, 2);
    let sequence = p.shape_of(inputs.ids, 1, 2);
    let past = p.sub(total, sequence);
    let total = p.squeeze(total, &[0]);
    let sequence = p.squeeze(sequence, &[0]);
    let keys = p.range(total);
    let queries = p.range(sequence);
    let queries = p.add(queries, past);
    let queries = p.unsqueeze(queries, &[1]);
    let causal = p.less_or_equal(keys, queries);
    let one = p.scalar_like(inputs.mask, 1.0);
    let present = p.equal(inputs.mask, one);
    let present = p.unsqueeze(present, &[1, 2]);
    p.and(causal, present)
}

/// Whether a key is one of the last tokens up to a query, bool `[batch, 1, sequence, past + sequence]`. Counts are f32,
/// which every runtime sums.
fn near(b: &mut Builder<'_>, inputs: &Inputs, tokens: u64) -> ValueId {
    let p = &mut b.p;
    let marks = p.cast(inputs.mask, DType::F32);
    let keys = p.cumsum(marks, 1, false);
    let sequence = p.shape_of(inputs.ids, 1, 2);
    let (start, end) = (p.neg(sequence), p.ints(&[i64::MAX]));
    let queries = p.slice_to(keys, 1, start, end);
    // States the dims again, which a slice from a computed bound does not.
    let like = p.shape_of(inputs.ids, 0, 2);
    let queries = p.reshape_to(queries, like);
    let (queries, keys) = (p.unsqueeze(queries, &[1, 3]), p.unsqueeze(keys, &[1, 2]));
    let age = p.sub(queries, keys);
    let window = p.scalar_like(age, tokens as f64);
    p.greater(window, age)
}

fn bias(b: &mut Builder<'_>, visible: ValueId) -> ValueId {
    let p = &mut b.p;
    let zero = p.constant("visible", Tensor::scalar(DType::F32, 0.0));
    let hidden = p.constant("hidden", Tensor::scalar(DType::F32, HIDDEN));
    p.select(visible, zero, hidden)
}
