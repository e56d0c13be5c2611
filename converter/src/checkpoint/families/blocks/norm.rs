//! The norms of decoders, over the last axis, with what their weights mean.

use crate::checkpoint::build::Builder;
use crate::checkpoint::error::CheckpointError;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::op::Op;
use dijiang_passes::ir::tensor::Tensor;

/// A norm, and what it adds to a variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) epsilon: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// x / √(mean x² + ε) · w, in f32 up to the weight.
    Rms,
    /// The same times 1 + w, in f32 to the end.
    RmsFromOne,
    Layer,
    LayerWithoutBias,
}

/// What queries and keys are normalised over, in a head or before heads are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNorm {
    /// The modules of queries and of keys.
    pub(crate) names: [&'static str; 2],
    pub(crate) over: Over,
    pub(crate) norm: Norm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// All heads together.
    Width,
    /// Each head, with one weight for all of them.
    Head,
    /// Each head with a weight of its own, a row of `weight` `[heads, head_dim]`; without biases.
    OwnRow,
    /// The same, as `norms.{head}.weight` `[head_dim]`.
    OwnModule,
}

impl Norm {
    pub(crate) fn write(
        &self,
        b: &mut Builder<'_>,
        module: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        if self.kind == NormKind::Layer {
            return b.layer_norm(module, x, self.epsilon);
        }
        b.p.set_scope(module);
        let size = b.last_dim(x);
        let weight = b.weight(&format!("{module}.weight"), &[size])?;
        Ok(match self.kind {
            NormKind::RmsFromOne => self.plus_one(b, x, weight),
            NormKind::LayerWithoutBias => self.without_bias(b, x, weight),
            NormKind::Rms | NormKind::Layer => b.p.rms_norm(x, weight, self.epsilon),
        })
    }

    fn plus_one(&self, b: &mut Builder<'_>, x: ValueId, weight: ValueId) -> ValueId {
        let (dtype, p) = (b.dtype, &mut b.p);
        let [x, weight] = [x, weight].map(|value| p.cast(value, DType::F32));
        let gain = p.add_scalar(weight, 1.0);
        let normal = p.rms_norm(x, gain, self.epsilon);
        p.cast(normal, dtype)
    }

    fn without_bias(&self, b: &mut Builder<'_>, x: ValueId, weight: ValueId) -> ValueId {
        let op = Op::new("LayerNormalization").with("epsilon", self.epsilon as f32).with("axis", -1);
        b.p.node(op, &[x, weight])
    }
}

impl QkNorm {
    /// Of queries or keys `[batch, sequence, heads · head_dim]`, where it is over all of them.
    pub(crate) fn of_width(
        &self,
        b: &mut Builder<'_>,
        module: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        if self.over == Over::Width { self.norm.write(b, module, x) } else { Ok(x) }
    }

    /// Of queries or keys `[batch, heads, sequence, head_dim]`, where it is over a head.
    pub(crate) fn of_heads(
        &self,
        b: &mut Builder<'_>,
        module: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        match self.over {
            Over::Width => Ok(x),
            Over::Head => self.norm.write(b, module, x),
            Over::OwnRow | Over::OwnModule => self.own(b, module, x),
        }
    }

    fn own(&self, b: &mut Builder<'_>, module: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        b.p.set_scope(module);
        let (heads, dim) = (b.p.known_dim(x, 1), b.last_dim(x));
        let weights = match self.over {
            Over::OwnModule => {
                let mut rows = Vec::new();
                for head in 0..heads {
                    let weight = b.weight(&format!("{module}.norms.{head}.weight"), &[dim])?;
                    rows.push(b.p.unsqueeze(weight, &[0]));
                }
                b.p.concat(&rows, 0)
            }
            _ => b.weight(&format!("{module}.weight"), &[heads, dim])?,
        };
        let dtype = b.dtype;
        let [wide, weights] = [x, weights].map(|value| b.p.cast(value, DType::F32));
        let ones = b.p.constant("ones", Tensor::from_f32(&[dim], &vec![1.0; dim as usize]));
        let normal = self.norm.without_bias(b, wide, ones);
        let weights = b.p.unsqueeze(weights, &[1]);
        let weighed = b.p.mul(normal, weights);
        Ok(b.p.cast(weighed, dtype))
    }
}
