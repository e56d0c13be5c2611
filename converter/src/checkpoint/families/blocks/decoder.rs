//! A decoder by its description: what its layers are made of, and what their modules are called. A family fills the
//! description from a config, and the loop over the layers is here.

use super::activation::{Activation, activation};
use super::attention::{Attention, attention, capped, heads_first, split_heads};
use super::mask::Masks;
use super::norm::{Norm, NormKind, QkNorm};
use super::rope::{self, Pairs, Rope, Rotary};
use super::window::Windows;
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::{Builder, Inputs};
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::own_attention::{self, Sizes};
use crate::checkpoint::rope_config::RopeKeys;
use dijiang_passes::ir::graph::ValueId;

/// What a decoder is, apart from the sizes that every model has.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub(crate) names: Names,
    pub(crate) norm: Norm,
    pub(crate) norms: Norms,
    /// Whether attention and MLP stand side by side.
    pub(crate) is_parallel: bool,
    pub(crate) attention: SelfAttention,
    pub(crate) mlp: Mlp,
    pub(crate) rotary: Option<LayerRotary>,
    pub(crate) windows: Windows,
    pub(crate) embedding: Embedding,
    /// What the two changes of a layer are multiplied with.
    pub(crate) residual: f64,
    pub(crate) head: Head,
    /// Whether linear layers are stored as `[inner, outer]`, all of them with a bias.
    pub(crate) is_conv1d: bool,
}

/// What a family makes of a config.
pub(crate) type Describe = fn(&Config, &ModelMeta) -> Result<Decoder, CheckpointError>;

/// The modules of a decoder, and of a layer below its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) rotary: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) attention: &'static str,
    pub(crate) mlp: &'static str,
    pub(crate) last_norm: &'static str,
    pub(crate) head: &'static str,
}

/// The norms of a layer, where there are such. One before an MLP that stands beside the attention is of what the layer
/// reads; without it both read the same norm.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Norms {
    pub(crate) before_attention: Option<&'static str>,
    pub(crate) after_attention: Option<&'static str>,
    pub(crate) before_mlp: Option<&'static str>,
    pub(crate) after_mlp: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SelfAttention {
    pub(crate) sizes: Attention,
    /// Whether the scale of layer i is divided by i + 1.
    pub(crate) by_layer: bool,
    pub(crate) projections: Projections,
    pub(crate) out: &'static str,
    /// Whether queries, keys and values have biases, and the output.
    pub(crate) biases: [bool; 2],
    pub(crate) qk_norm: Option<QkNorm>,
    /// Whether a checkpoint may bring an attention of its own along.
    pub(crate) may_be_own: bool,
}

/// How queries, keys and values are projected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Projections {
    Apart([&'static str; 3]),
    /// By one module: all queries, all keys, all values.
    Blocks(&'static str),
    /// By one module: each key/value head's queries, its key and its value.
    Groups(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Mlp {
    pub(crate) kind: MlpKind,
    pub(crate) act: Activation,
    pub(crate) width: u64,
    pub(crate) bias: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum MlpKind {
    /// `down(act(gate(x)) * up(x))`, by the names of the three.
    Gated([&'static str; 3]),
    /// The same with gate and up in one module.
    Joined([&'static str; 2]),
    /// `down(act(up(x)))`
    Plain([&'static str; 2]),
}

/// What each layer rotates queries and keys by.
#[derive(Debug, Clone)]
pub(crate) struct LayerRotary {
    pub(crate) far: Rotary,
    /// Of layers with a window, where they have their own.
    pub(crate) near: Option<Rotary>,
    pub(crate) skips: Skips,
}

/// The layers that do not rotate.
#[derive(Debug, Clone)]
pub(crate) enum Skips {
    None,
    /// The last of so many, and of so many after these.
    Each(u64),
    /// Of each layer, whether it rotates.
    Listed(Vec<bool>),
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Embedding {
    pub(crate) scale: EmbeddingScale,
    /// The table of positions, where they are learned.
    pub(crate) positions: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum EmbeddingScale {
    #[default]
    None,
    /// Rounded to the element type first.
    Rounded(f64),
    By(f64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) tied: bool,
    pub(crate) bias: bool,
    pub(crate) scale: f64,
    pub(crate) softcap: Option<f64>,
}

/// What a config means that leaves keys out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usual {
    pub(crate) rope: RopeKeys,
    pub(crate) epsilon: f64,
    pub(crate) tied: bool,
}

impl Usual {
    pub(crate) const LLAMA: Self = Self { rope: RopeKeys::USUAL, epsilon: 1e-6, tied: false };
}

impl Names {
    pub(crate) const LLAMA: Self = Self {
        embedding: "model.embed_tokens",
        rotary: "model.rotary_emb",
        layers: "model.layers",
        attention: "self_attn",
        mlp: "mlp",
        last_norm: "model.norm",
        head: "lm_head",
    };
}

impl Head {
    pub(crate) fn read(config: &Config, tied: bool) -> Result<Self, CheckpointError> {
        let tied = config.bool_or("tie_word_embeddings", tied)?;
        Ok(Self { tied, bias: false, scale: 1.0, softcap: None })
    }
}

impl SelfAttention {
    /// With four modules of Llama's names.
    pub(crate) fn apart(meta: &ModelMeta, biases: [bool; 2]) -> Self {
        Self {
            sizes: Attention::of(meta),
            by_layer: false,
            projections: Projections::Apart(["q_proj", "k_proj", "v_proj"]),
            out: "o_proj",
            biases,
            qk_norm: None,
            may_be_own: false,
        }
    }
}

impl LayerRotary {
    /// The same in every layer.
    pub(crate) fn read(config: &Config, keys: &RopeKeys) -> Result<Self, CheckpointError> {
        let far = Rotary { settings: config.rope(keys)?, pairs: Pairs::Halves };
        Ok(Self { far, near: None, skips: Skips::None })
    }
}

impl Skips {
    fn has(&self, layer: u64) -> bool {
        match self {
            Self::None => false,
            Self::Each(n) => (layer + 1).is_multiple_of(*n),
            Self::Listed(rotates) => !rotates.get(layer as usize).copied().unwrap_or(true),
        }
    }
}

impl Decoder {
    /// What Llama's keys say: other families are this with something changed.
    pub(crate) fn usual(config: &Config, meta: &ModelMeta, usual: &Usual) -> Result<Self, CheckpointError> {
        let attention_bias = config.bool_or("attention_bias", false)?;
        Ok(Self {
            names: Names::LLAMA,
            norm: Norm { kind: NormKind::Rms, epsilon: config.f64_or("rms_norm_eps", usual.epsilon)? },
            norms: Norms {
                before_attention: Some("input_layernorm"),
                before_mlp: Some("post_attention_layernorm"),
                ..Norms::default()
            },
            is_parallel: false,
            attention: SelfAttention::apart(meta, [attention_bias; 2]),
            mlp: Mlp {
                kind: MlpKind::Gated(["gate_proj", "up_proj", "down_proj"]),
                act: activation(config, "hidden_act", "silu")?,
                width: config.size("intermediate_size")?,
                bias: config.bool_or("mlp_bias", false)?,
            },
            rotary: Some(LayerRotary::read(config, &usual.rope)?),
            windows: Windows::default(),
            embedding: Embedding::default(),
            residual: 1.0,
            head: Head::read(config, usual.tied)?,
            is_conv1d: false,
        })
    }

    /// What can be said of a description before there are weights.
    pub(crate) fn check(&self, config: &Config, meta: &ModelMeta) -> Result<(), CheckpointError> {
        let rotary = self.rotary.iter().flat_map(|rotary| [Some(&rotary.far), rotary.near.as_ref()]);
        rotary.flatten().try_for_each(|r| rope::rotated(config, &r.settings, meta.head_dim).map(drop))
    }
}

/// Writes the graph of a description.
pub(crate) fn build(b: &mut Builder<'_>, describe: Describe) -> Result<(), CheckpointError> {
    let decoder = describe(b.config, b.meta)?;
    let Decoder { names, head, .. } = &decoder;
    if head.tied {
        b.tie(names.embedding, names.head);
    }
    let inputs = b.inputs();
    let writer = Writer::new(b, &decoder, &inputs)?;
    let mut x = writer.embed(b, &inputs)?;
    for layer in 0..b.meta.layers {
        x = writer.layer(b, layer, x)?;
    }
    x = decoder.norm.write(b, names.last_norm, x)?;
    let logits = writer.logits(b, x)?;
    b.outputs(logits);
    Ok(())
}

struct Writer<'d> {
    decoder: &'d Decoder,
    far: Option<Rope>,
    near: Option<Rope>,
    masks: Masks,
}

impl<'d> Writer<'d> {
    fn new(b: &mut Builder<'_>, decoder: &'d Decoder, inputs: &Inputs) -> Result<Self, CheckpointError> {
        let scope = decoder.names.rotary;
        let head_dim = b.meta.head_dim;
        let mut rope = |scope: &str, rotary: Option<&Rotary>| {
            rotary.map(|rotary| rope::rope(b, scope, rotary, head_dim, inputs.positions)).transpose()
        };
        let far = rope(scope, decoder.rotary.as_ref().map(|rotary| &rotary.far))?;
        let near = decoder.rotary.as_ref().and_then(|rotary| rotary.near.as_ref());
        let near = rope(&format!("{scope}_local"), near)?;
        let masks = Masks::write(b, inputs, decoder.windows.clone());
        Ok(Self { decoder, far, near, masks })
    }

    fn embed(&self, b: &mut Builder<'_>, inputs: &Inputs) -> Result<ValueId, CheckpointError> {
        let Decoder { names, embedding, .. } = self.decoder;
        let (vocab, hidden) = (b.meta.vocab, b.meta.hidden);
        let x = b.embedding(names.embedding, inputs.ids, vocab, hidden)?;
        let x = match embedding.scale {
            EmbeddingScale::None => x,
            EmbeddingScale::Rounded(scale) => b.p.mul_scalar(x, scale),
            EmbeddingScale::By(scale) => b.p.scale_by(x, scale),
        };
        let Some(table) = embedding.positions else { return Ok(x) };
        let rows = b.meta.learned_positions.unwrap_or_default();
        let positions = b.embedding(table, inputs.positions, rows, hidden)?;
        Ok(b.p.add(x, positions))
    }

    fn layer(&self, b: &mut Builder<'_>, layer: u64, x: ValueId) -> Result<ValueId, CheckpointError> {
        let Decoder { names, norms, is_parallel, .. } = self.decoder;
        let at = format!("{}.{layer}", names.layers);
        let normal = self.norm(b, &at, norms.before_attention, x)?;
        let attended = self.self_attention(b, layer, &format!("{at}.{}", names.attention), normal)?;
        let attended = self.norm(b, &at, norms.after_attention, attended)?;
        let after = self.add(b, &at, x, attended);
        let seen = match (is_parallel, norms.before_mlp) {
            (false, name) => self.norm(b, &at, name, after)?,
            (true, Some(_)) => self.norm(b, &at, norms.before_mlp, x)?,
            (true, None) => normal,
        };
        let moved = self.mlp(b, &format!("{at}.{}", names.mlp), seen)?;
        let moved = self.norm(b, &at, norms.after_mlp, moved)?;
        Ok(self.add(b, &at, after, moved))
    }

    fn norm(
        &self,
        b: &mut Builder<'_>,
        at: &str,
        name: Option<&str>,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        name.map_or(Ok(x), |name| self.decoder.norm.write(b, &format!("{at}.{name}"), x))
    }

    fn add(&self, b: &mut Builder<'_>, at: &str, x: ValueId, change: ValueId) -> ValueId {
        b.p.set_scope(at);
        let change = match self.decoder.residual {
            1.0 => change,
            by => b.p.scale_by(change, by),
        };
        b.residual(at, x, change)
    }

    /// A linear layer to so many features, with or without a bias.
    fn linear(
        &self,
        b: &mut Builder<'_>,
        module: &str,
        x: ValueId,
        (outer, bias): (u64, bool),
    ) -> Result<ValueId, CheckpointError> {
        if self.decoder.is_conv1d { b.conv1d(module, x, outer) } else { b.linear(module, x, outer, bias) }
    }

    fn self_attention(
        &self,
        b: &mut Builder<'_>,
        layer: u64,
        at: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        let SelfAttention { sizes, by_layer, out, biases, may_be_own, .. } = &self.decoder.attention;
        if *may_be_own {
            own_attention::take(b, at, Sizes { heads: sizes.heads, head_dim: sizes.head_dim })?;
        }
        let [q, k, v] = self.projected(b, at, x)?;
        let [q, k] = self.normalised(b, at, [q, k])?;
        let rope = self.rope_of(layer);
        let [q, k] = match rope {
            Some(rope) => [rope.rotate_queries(b, q), rope.rotate(b, k)],
            None => [q, k],
        };
        let scale = if *by_layer { sizes.scale / (layer + 1) as f64 } else { sizes.scale };
        let scale = scale * rope.map_or(1.0, |rope| rope.of_scores());
        let sizes = Attention { scale, ..*sizes };
        let joined = attention(b, &sizes, layer, [q, k, v], self.masks.of(layer));
        let hidden = b.meta.hidden;
        self.linear(b, &format!("{at}.{out}"), joined, (hidden, biases[1]))
    }

    fn rope_of(&self, layer: u64) -> Option<Rope> {
        let rotary = self.decoder.rotary.as_ref()?;
        if rotary.skips.has(layer) {
            return None;
        }
        let near = self.near.filter(|_| self.decoder.windows.of(layer).is_some());
        near.or(self.far)
    }

    /// Queries, keys and values, `[batch, heads, sequence, head_dim]`.
    fn projected(&self, b: &mut Builder<'_>, at: &str, x: ValueId) -> Result<[ValueId; 3], CheckpointError> {
        let SelfAttention { sizes, projections, biases, .. } = &self.decoder.attention;
        let Attention { heads, kv_heads, head_dim, .. } = *sizes;
        let counts = [heads, kv_heads, kv_heads];
        let all = (counts.iter().sum::<u64>() * head_dim, biases[0]);
        match projections {
            Projections::Apart([q, k, v]) => Ok([
                self.apart(b, at, x, (q, heads))?,
                self.apart(b, at, x, (k, kv_heads))?,
                self.apart(b, at, x, (v, kv_heads))?,
            ]),
            Projections::Blocks(name) => {
                let joined = self.linear(b, &format!("{at}.{name}"), x, all)?;
                b.p.set_scope(at);
                let parts = b.p.split(joined, -1, &counts.map(|n| (n * head_dim) as i64));
                Ok([0, 1, 2].map(|i| split_heads(b, parts[i], counts[i], head_dim)))
            }
            Projections::Groups(name) => {
                let joined = self.linear(b, &format!("{at}.{name}"), x, all)?;
                b.p.set_scope(at);
                let (group, d) = ((heads / kv_heads) as i64, head_dim as i64);
                let joined = b.p.reshape(joined, &[0, 0, kv_heads as i64, (group + 2) * d]);
                let parts = b.p.split(joined, -1, &[group * d, d, d]);
                let q = match group {
                    1 => parts[0],
                    _ => b.p.reshape(parts[0], &[0, 0, heads as i64, d]),
                };
                Ok([q, parts[1], parts[2]].map(|part| heads_first(b, part)))
            }
        }
    }

    fn apart(
        &self,
        b: &mut Builder<'_>,
        at: &str,
        x: ValueId,
        (name, heads): (&str, u64),
    ) -> Result<ValueId, CheckpointError> {
        let SelfAttention { sizes, projections, biases, qk_norm, .. } = &self.decoder.attention;
        let mut y = self.linear(b, &format!("{at}.{name}"), x, (heads * sizes.head_dim, biases[0]))?;
        if let (Some(norm), Projections::Apart(names)) = (qk_norm, projections) {
            let own = names.iter().zip(norm.names).find(|(projection, _)| **projection == name);
            if let Some((_, own)) = own {
                y = norm.of_width(b, &format!("{at}.{own}"), y)?;
            }
        }
        b.p.set_scope(at);
        Ok(split_heads(b, y, heads, sizes.head_dim))
    }

    fn normalised(
        &self,
        b: &mut Builder<'_>,
        at: &str,
        [q, k]: [ValueId; 2],
    ) -> Result<[ValueId; 2], CheckpointError> {
        let Some(norm) = &self.decoder.attention.qk_norm else { return Ok([q, k]) };
        let q = norm.of_heads(b, &format!("{at}.{}", norm.names[0]), q)?;
        let k = norm.of_heads(b, &format!("{at}.{}", norm.names[1]), k)?;
        b.p.set_scope(at);
        Ok([q, k])
    }

    fn mlp(&self, b: &mut Builder<'_>, at: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        let Mlp { kind, act, width, bias } = &self.decoder.mlp;
        let (inner, down) = match kind {
            MlpKind::Gated([gate, up, down]) => {
                let gate = self.linear(b, &format!("{at}.{gate}"), x, (*width, *bias))?;
                b.p.set_scope(at);
                let gate = act(&mut b.p, gate);
                let up = self.linear(b, &format!("{at}.{up}"), x, (*width, *bias))?;
                b.p.set_scope(at);
                (b.p.mul(gate, up), down)
            }
            MlpKind::Joined([joined, down]) => {
                let both = self.linear(b, &format!("{at}.{joined}"), x, (2 * width, *bias))?;
                b.p.set_scope(at);
                let parts = b.p.split(both, -1, &[*width as i64; 2]);
                let gate = act(&mut b.p, parts[0]);
                (b.p.mul(gate, parts[1]), down)
            }
            MlpKind::Plain([up, down]) => {
                let up = self.linear(b, &format!("{at}.{up}"), x, (*width, *bias))?;
                b.p.set_scope(at);
                (act(&mut b.p, up), down)
            }
        };
        let hidden = b.meta.hidden;
        self.linear(b, &format!("{at}.{down}"), inner, (hidden, *bias))
    }

    fn logits(&self, b: &mut Builder<'_>, x: ValueId) -> Result<ValueId, CheckpointError> {
        let Decoder { names, head, .. } = self.decoder;
        let mut logits = b.logits(names.head, if head.tied { names.embedding } else { names.head }, x)?;
        if head.bias {
            let vocab = b.meta.vocab;
            let bias = b.weight(&format!("{}.bias", names.head), &[vocab])?;
            logits = b.p.add(logits, bias);
        }
        if head.scale != 1.0 {
            logits = b.p.scale_by(logits, head.scale);
        }
        Ok(head.softcap.map_or(logits, |cap| capped(&mut b.p, logits, cap)))
    }
}
