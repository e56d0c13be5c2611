//! Graphs of the kinds that are met outside decoders of one family: norms on queries and keys, quantised
//! weights, images. Each is written to a file, read back and converted with its proof; beside each one
//! that is nearly the same and must stay softmax.

use crate::support::ort::has_ort;
use dijiang::convert::{ConvertOptions, Converted, convert};
use dijiang::onnx::export::{ExportOptions, export};
use dijiang::onnx::import::import;
use dijiang::onnx::proto::{AttributeProto, DimValue, ModelProto, attribute_type};
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::verify::VerifyOptions;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::attention::patterns::{Found, find_sites};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::op::Op;
use dijiang_passes::ir::patch::Patch;
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::numeric::random::Random;
use prost::Message;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const HEADS: i64 = 2;
const DIM: i64 = 8;
const HIDDEN: u64 = 16;
const VOCAB: u64 = 32;

/// A graph in the making, with seeded weights.
struct Model<'p, 'g> {
    p: &'p mut Patch<'g>,
}

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

fn numbers(name: &str, count: u64, scale: f64) -> Vec<f32> {
    let mut random = Random::named(7, name);
    (0..count).map(|_| (random.normal() * scale) as f32).collect()
}

impl Model<'_, '_> {
    fn weight(&mut self, name: &str, dims: &[u64], scale: f64) -> ValueId {
        let tensor = Tensor::from_f32(dims, &numbers(name, dims.iter().product(), scale));
        self.p.weight(name, tensor)
    }

    /// Close to one, as a trained norm has it.
    fn gain(&mut self, name: &str, size: u64) -> ValueId {
        let near_one: Vec<f32> = numbers(name, size, 0.1).iter().map(|x| 1.0 + x).collect();
        self.p.weight(name, Tensor::from_f32(&[size], &near_one))
    }

    fn linear(&mut self, x: ValueId, name: &str, from: u64, to: u64) -> ValueId {
        let weight = self.weight(name, &[from, to], 0.4);
        self.p.matmul(x, weight)
    }

    /// A linear layer whose weight is stored in blocks of 4 bits.
    fn quantised(&mut self, x: ValueId, name: &str, level: i64) -> ValueId {
        let mut random = Random::named(7, name);
        let bytes = (0..HIDDEN * 8).map(|_| (random.next_u64() >> 32) as u8).collect();
        let packed = Tensor::from_bytes(DType::U8, vec![HIDDEN, 1, 8], bytes).expect("it fills its shape");
        let scales: Vec<f32> = numbers(name, HIDDEN, 0.02).iter().map(|x| 0.06 + x.abs()).collect();
        let packed = self.p.weight(&format!("{name}_Q4"), packed);
        let scales = self.p.weight(&format!("{name}_scales"), Tensor::from_f32(&[HIDDEN], &scales));
        let op = Op::in_domain("com.microsoft", "MatMulNBits")
            .with("K", HIDDEN as i64)
            .with("N", HIDDEN as i64)
            .with("accuracy_level", level)
            .with("bits", 4)
            .with("block_size", 16);
        self.p.node(op, &[x, packed, scales])
    }

    /// `[batch, heads, sequence, dim]`
    fn heads(&mut self, x: ValueId) -> ValueId {
        let split = self.p.reshape(x, &[0, 0, HEADS, DIM]);
        self.p.transpose(split, &[0, 2, 1, 3])
    }

    fn joined(&mut self, x: ValueId) -> ValueId {
        let turned = self.p.transpose(x, &[0, 2, 1, 3]);
        self.p.reshape(turned, &[0, 0, HEADS * DIM])
    }

    fn scores(&mut self, q: ValueId, k: ValueId) -> ValueId {
        let turned = self.p.transpose(k, &[0, 1, 3, 2]);
        self.p.matmul(q, turned)
    }

    fn mixed(&mut self, scores: ValueId, v: ValueId) -> ValueId {
        let probabilities = self.p.softmax(scores, -1);
        self.p.matmul(probabilities, v)
    }

    /// What is read of the values by scores and a mask, of all heads together.
    fn read(&mut self, scores: ValueId, mask: ValueId, v: ValueId) -> ValueId {
        let scores = self.p.add(scores, mask);
        let mixed = self.mixed(scores, v);
        self.joined(mixed)
    }

    fn number(&mut self, x: f64) -> ValueId {
        self.p.constant("number", Tensor::scalar(DType::F32, x))
    }

    /// Zero where a key is a token and no later than the query.
    fn causal(&mut self, mask: ValueId) -> ValueId {
        let one = self.p.constant("one", Tensor::scalar(DType::I64, 1.0));
        let is_token = self.p.equal(mask, one);
        let tokens = self.p.unsqueeze(is_token, &[1, 2]);
        let earlier = self.earlier(mask);
        let open = self.p.and(earlier, tokens);
        self.open_where(open)
    }

    /// Whether a key is no later than the query, of as many as `tokens` has columns.
    fn earlier(&mut self, tokens: ValueId) -> ValueId {
        let length = self.p.shape_of(tokens, 1, 2);
        let keys = self.p.range(length);
        let queries = self.p.unsqueeze(keys, &[1]);
        self.p.node(Op::new("LessOrEqual"), &[keys, queries])
    }

    fn open_where(&mut self, open: ValueId) -> ValueId {
        let (zero, closed) = (self.number(0.0), self.number(-1e30));
        self.p.select(open, zero, closed)
    }
}

fn built(name: &str, build: impl FnOnce(&mut Model<'_, '_>)) -> Graph {
    let mut graph = Graph::new(name);
    let change = {
        let mut patch = Patch::new(&graph, "wild");
        build(&mut Model { p: &mut patch });
        patch.finish()
    };
    graph.apply(change).expect("the graph is well-formed");
    graph
}

/// What `layer` makes of embedded tokens and of a causal bias, as logits.
fn decoder(layer: impl FnOnce(&mut Model<'_, '_>, ValueId, ValueId) -> ValueId) -> Graph {
    decoder_of(&sym("batch"), layer)
}

/// The same for so many rows.
fn decoder_of(rows: &Dim, layer: impl FnOnce(&mut Model<'_, '_>, ValueId, ValueId) -> ValueId) -> Graph {
    built("decoder", |m| {
        let ids = m.p.input("input_ids", DType::I64, vec![rows.clone(), sym("sequence")]);
        let mask = m.p.input("attention_mask", DType::I64, vec![rows.clone(), sym("sequence")]);
        let table = m.weight("model.embed_tokens.weight", &[VOCAB, HIDDEN], 1.0);
        let x = m.p.gather(table, ids, 0);
        let bias = m.causal(mask);
        let out = layer(m, x, bias);
        let sum = m.p.add(x, out);
        let logits = m.linear(sum, "lm_head.weight", HIDDEN, VOCAB);
        m.p.output("logits", logits);
    })
}

/// Queries and keys with a root-mean-square norm over each head; `scale` is `[1]`, or one for each head.
fn with_norms(scale: &[f32]) -> Graph {
    with_norms_of(&sym("batch"), scale)
}

fn with_norms_of(rows: &Dim, scale: &[f32]) -> Graph {
    decoder_of(rows, |m, x, bias| {
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let made = m.linear(x, &format!("model.layers.0.self_attn.{what}_proj.weight"), HIDDEN, HIDDEN);
            m.heads(made)
        });
        let [q, k] = [("q", q), ("k", k)].map(|(what, made)| {
            let gain = m.gain(&format!("model.layers.0.self_attn.{what}_norm.weight"), DIM as u64);
            m.p.rms_norm(made, gain, 1e-6)
        });
        let products = m.scores(q, k);
        let scale = Tensor::from_f32(&[scale.len() as u64, 1, 1], scale);
        let scale = m.p.constant("scale", scale);
        let scaled = m.p.mul(products, scale);
        let joined = m.read(scaled, bias, v);
        m.linear(joined, "model.layers.0.self_attn.o_proj.weight", HIDDEN, HIDDEN)
    })
}

/// What `look` makes of what an attention reads.
fn behind(look: fn(&mut Model<'_, '_>, ValueId) -> ValueId) -> Graph {
    decoder(|m, x, bias| {
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let made = m.linear(x, &format!("model.layers.0.self_attn.{what}_proj.weight"), HIDDEN, HIDDEN);
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, 0.35);
        let joined = m.read(scaled, bias, v);
        look(m, joined)
    })
}

/// The sum over the tokens so far.
fn summed(m: &mut Model<'_, '_>, x: ValueId) -> ValueId {
    let axis = m.p.constant("axis", Tensor::scalar(DType::I64, 1.0));
    m.p.node(Op::new("CumSum"), &[x, axis])
}

/// Divided by how many tokens a call has.
fn shared_out(m: &mut Model<'_, '_>, x: ValueId) -> ValueId {
    let tokens = m.p.shape_of(x, 1, 2);
    let tokens = m.p.cast(tokens, DType::F32);
    m.p.node(Op::new("Div"), &[x, tokens])
}

/// Each token beside the one before it.
fn shifted(m: &mut Model<'_, '_>, x: ValueId) -> ValueId {
    let before = m.p.slice(x, 1, 0, -1);
    let nothing = m.p.constant("nothing", Tensor::from_f32(&[1, 1, HIDDEN], &[0.0; HIDDEN as usize]));
    let rows = m.p.shape_of(x, 0, 1);
    let rest = m.p.ints(&[1, HIDDEN as i64]);
    let over = m.p.concat(&[rows, rest], 0);
    let first = m.p.expand(nothing, over);
    let shifted = m.p.concat(&[first, before], 1);
    m.p.add(x, shifted)
}

/// All linear layers of the attention in blocks of 4 bits; the values through an operator that nobody
/// knows where `unknown`.
fn with_quantised_weights(level: i64, unknown: bool) -> Graph {
    decoder(|m, x, bias| {
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let name = format!("model.layers.0.self_attn.{what}_proj.weight");
            let made = match unknown && what == "v" {
                true => m.p.node(Op::in_domain("com.example", "Linear"), &[x]),
                false => m.quantised(x, &name, level),
            };
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let joined = m.read(scaled, bias, v);
        m.quantised(joined, "model.layers.0.self_attn.o_proj.weight", level)
    })
}

/// Finds where an answer begins: one number for each token. Every linear layer of the attention is as `linear` writes it.
fn reader(sizes: &[Dim; 2], linear: fn(&mut Model<'_, '_>, ValueId, &str) -> ValueId) -> Graph {
    built("reader", |m| {
        let ids = m.p.input("input_ids", DType::I64, sizes.to_vec());
        let mask = m.p.input("attention_mask", DType::I64, sizes.to_vec());
        let table = m.weight("embeddings.weight", &[VOCAB, HIDDEN], 1.0);
        let x = m.p.gather(table, ids, 0);
        let one = m.p.constant("one", Tensor::scalar(DType::I64, 1.0));
        let is_token = m.p.equal(mask, one);
        let tokens = m.p.unsqueeze(is_token, &[1, 2]);
        let (zero, closed) = (m.number(0.0), m.number(-1e30));
        let bias = m.p.select(tokens, zero, closed);
        let [q, k, v] = ["query", "key", "value"].map(|what| {
            let made = linear(m, x, &format!("layers.0.attention.{what}.weight"));
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let joined = m.read(scaled, bias, v);
        let out = linear(m, joined, "layers.0.attention.output.weight");
        let sum = m.p.add(x, out);
        let spans = m.linear(sum, "spans.weight", HIDDEN, 1);
        let begins = m.p.squeeze(spans, &[2]);
        m.p.output("start_logits", begins);
    })
}

fn plain(m: &mut Model<'_, '_>, x: ValueId, name: &str) -> ValueId {
    m.linear(x, name, HIDDEN, HIDDEN)
}

/// The same, of which the last one takes two sequences and no other number of them.
fn of_two(m: &mut Model<'_, '_>, x: ValueId, name: &str) -> ValueId {
    let y = plain(m, x, name);
    if !name.contains("output") {
        return y;
    }
    let laid = m.p.reshape(y, &[2, -1, HIDDEN as i64]);
    m.p.add(y, laid)
}

/// A linear layer of whole numbers, to which what comes is rounded.
fn rounded(m: &mut Model<'_, '_>, x: ValueId, name: &str) -> ValueId {
    let mut random = Random::named(7, name);
    let bytes = (0..HIDDEN * HIDDEN).map(|_| (random.next_u64() >> 32) as u8).collect();
    let weight = Tensor::from_bytes(DType::I8, vec![HIDDEN, HIDDEN], bytes).expect("it fills its shape");
    let weight = m.p.weight(&format!("{name}_quantized"), weight);
    let rounding = m.p.node_outputs(Op::new("DynamicQuantizeLinear"), &[Some(x)], 3);
    let product = m.p.node(Op::new("MatMulInteger"), &[rounding[0], weight, rounding[2]]);
    let scale = m.number(0.005);
    let scales = m.p.mul(rounding[1], scale);
    let wide = m.p.cast(product, DType::F32);
    m.p.mul(wide, scales)
}

/// A decoder that reads what another model gives it, under this name.
fn led_by(name: &str) -> Graph {
    decoder(|m, x, bias| {
        let given = m.p.input(name, DType::F32, vec![sym("batch"), sym("source"), Dim::Known(HIDDEN)]);
        let mean = m.p.reduce("ReduceMean", given, &[1], true);
        let led = m.p.add(x, mean);
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let made = plain(m, led, &format!("model.layers.0.self_attn.{what}_proj.weight"));
            m.heads(made)
        });
        let products = m.scores(q, k);
        let joined = m.read(products, bias, v);
        plain(m, joined, "model.layers.0.self_attn.o_proj.weight")
    })
}

/// A decoder with an input of one whole number for each token. Where it `opens`, tokens of the number 1 see each other
/// whichever is the earlier; else it is looked up as tokens are.
fn with_kinds(name: &str, opens: bool) -> Graph {
    decoder(|m, x, bias| {
        let kinds = m.p.input(name, DType::I64, vec![sym("batch"), sym("sequence")]);
        let (x, bias) = match opens {
            true => {
                let one = m.p.constant("one", Tensor::scalar(DType::I64, 1.0));
                let is_one = m.p.equal(kinds, one);
                let (keys, queries) = (m.p.unsqueeze(is_one, &[1, 2]), m.p.unsqueeze(is_one, &[1, 3]));
                let (both, open) = (m.p.and(keys, queries), m.number(0.0));
                (x, m.p.select(both, open, bias))
            }
            false => {
                let table = m.weight("model.embed_kinds.weight", &[2, HIDDEN], 0.5);
                let rows = m.p.gather(table, kinds, 0);
                (m.p.add(x, rows), bias)
            }
        };
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let made = plain(m, x, &format!("model.layers.0.self_attn.{what}_proj.weight"));
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let joined = m.read(scaled, bias, v);
        plain(m, joined, "model.layers.0.self_attn.o_proj.weight")
    })
}

/// A decoder that looks its positions up in a table of so many rows, with a mask for padding or without.
fn with_positions(rows: u64, is_masked: bool) -> Graph {
    built("positions", |m| {
        let shape = vec![sym("batch"), sym("sequence")];
        let ids = m.p.input("input_ids", DType::I64, shape.clone());
        let bias = match is_masked {
            true => {
                let mask = m.p.input("attention_mask", DType::I64, shape);
                m.causal(mask)
            }
            false => {
                let earlier = m.earlier(ids);
                m.open_where(earlier)
            }
        };
        let table = m.weight("model.embed_tokens.weight", &[VOCAB, HIDDEN], 1.0);
        let words = m.p.gather(table, ids, 0);
        let length = m.p.shape_of(ids, 1, 2);
        let counted = m.p.range(length);
        let places = m.p.unsqueeze(counted, &[0]);
        let table = m.weight("model.embed_positions.weight", &[rows, HIDDEN], 1.0);
        let positions = m.p.gather(table, places, 0);
        let x = m.p.add(words, positions);
        let [q, k, v] = ["q", "k", "v"].map(|what| {
            let made = plain(m, x, &format!("model.layers.0.self_attn.{what}_proj.weight"));
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let joined = m.read(scaled, bias, v);
        let out = plain(m, joined, "model.layers.0.self_attn.o_proj.weight");
        let sum = m.p.add(x, out);
        let logits = m.linear(sum, "lm_head.weight", HIDDEN, VOCAB);
        m.p.output("logits", logits);
    })
}

/// One weight for queries, keys and values, as PyTorch's own module has it: it reads the tokens with the batch behind them,
/// and its parts lie in front. Where `first`, all tokens see the values of the first one.
fn with_tokens_in_front(first: bool) -> Graph {
    decoder(|m, x, bias| {
        let turned = m.p.transpose(x, &[1, 0, 2]);
        let all = m.linear(turned, "model.layers.0.self_attn.in_proj_weight", HIDDEN, 3 * HIDDEN);
        let apart = m.p.reshape(all, &[0, 0, 3, HIDDEN as i64]);
        let parts = m.p.transpose(apart, &[2, 0, 1, 3]);
        let [q, k, v] = [0.0, 1.0, 2.0].map(|part| {
            let part = m.p.constant("part", Tensor::scalar(DType::I64, part));
            let picked = m.p.gather(parts, part, 0);
            let split = m.p.reshape(picked, &[0, 0, HEADS, DIM]);
            m.p.transpose(split, &[1, 2, 0, 3])
        });
        let v = match first {
            true => {
                let (one, size) = (m.p.slice(v, 2, 0, 1), m.p.shape_of(v, 0, 4));
                m.p.expand(one, size)
            }
            false => v,
        };
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let joined = m.read(scaled, bias, v);
        plain(m, joined, "model.layers.0.self_attn.out_proj.weight")
    })
}

/// The file of a graph in which no dim has a name.
fn unnamed(graph: &Graph) -> Vec<u8> {
    let bytes = export(graph, &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let mut model = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    let inputs = model.graph.iter_mut().flat_map(|graph| &mut graph.input);
    let tensors = inputs.filter_map(|input| input.r#type.as_mut()?.tensor_type.as_mut());
    for dim in tensors.filter_map(|tensor| tensor.shape.as_mut()).flat_map(|shape| &mut shape.dim) {
        dim.value.take_if(|value| matches!(value, DimValue::Param(_)));
    }
    model.encode_to_vec()
}

/// Nine patches of a picture, with a class token in front; a mask as exporters write it for no mask, that
/// hides the class token where `hidden`.
fn vision(hidden: bool) -> Graph {
    const TOKENS: u64 = 10;
    built("vision", |m| {
        let known = [Dim::Known(3), Dim::Known(12), Dim::Known(12)];
        let shape: Vec<Dim> = [sym("batch")].into_iter().chain(known).collect();
        let picture = m.p.input("pixel_values", DType::F32, shape);
        let kernel = m.weight("embeddings.projection.weight", &[HIDDEN, 3, 4, 4], 0.2);
        let conv =
            Op::new("Conv").with("strides", [4i64, 4].as_slice()).with("kernel_shape", [4i64, 4].as_slice());
        let patches = m.p.node(conv, &[picture, kernel]);
        let flat = m.p.reshape(patches, &[0, 0, -1]);
        let tokens = m.p.transpose(flat, &[0, 2, 1]);
        let class = m.weight("embeddings.cls_token", &[1, 1, HIDDEN], 1.0);
        let batch = m.p.shape_of(picture, 0, 1);
        let ones = m.p.ints(&[1, 1]);
        let one_each = m.p.concat(&[batch, ones], 0);
        let classes = m.p.expand(class, one_each);
        let all = m.p.concat(&[classes, tokens], 1);
        let positions = m.weight("embeddings.position_embeddings", &[1, TOKENS, HIDDEN], 0.3);
        let x = m.p.add(all, positions);
        let (gain, shift) =
            (m.gain("layers.0.norm.weight", HIDDEN), m.weight("layers.0.norm.bias", &[HIDDEN], 0.1));
        let normal = m.p.layer_norm(x, gain, shift, 1e-5);
        let [q, k, v] = ["query", "key", "value"].map(|what| {
            let made = m.linear(normal, &format!("layers.0.attention.{what}.weight"), HIDDEN, HIDDEN);
            m.heads(made)
        });
        let products = m.scores(q, k);
        let scaled = m.p.mul_scalar(products, (DIM as f64).sqrt().recip());
        let seen: Vec<u8> = (0..TOKENS * TOKENS).map(|i| u8::from(!hidden || i % TOKENS != 0)).collect();
        let seen =
            Tensor::from_bytes(DType::Bool, vec![1, 1, TOKENS, TOKENS], seen).expect("it fills its shape");
        let seen = m.p.constant("seen", seen);
        let (zero, closed) = (m.number(0.0), m.number(-1e30));
        let bias = m.p.select(seen, zero, closed);
        let joined = m.read(scaled, bias, v);
        let out = m.linear(joined, "layers.0.attention.output.weight", HIDDEN, HIDDEN);
        let sum = m.p.add(x, out);
        m.p.output("last_hidden_state", sum);
    })
}

/// A recogniser of text in pictures: features along a line, one packed product, a softmax without a mask
/// and with `axis` spelled out, and an older opset.
fn recogniser(axis: i64) -> ModelProto {
    const WIDTH: u64 = 12;
    let graph = built("recogniser", |m| {
        let known = [Dim::Known(3), Dim::Known(4), Dim::Known(WIDTH)];
        let shape: Vec<Dim> = [sym("batch")].into_iter().chain(known).collect();
        let picture = m.p.input("x", DType::F32, shape);
        let kernel = m.weight("conv.w", &[HIDDEN, 3, 4, 3], 0.2);
        let conv = Op::new("Conv")
            .with("kernel_shape", [4i64, 3].as_slice())
            .with("pads", [0i64, 1, 0, 1].as_slice());
        let features = m.p.node(conv, &[picture, kernel]);
        let norm = [
            m.gain("norm.w", HIDDEN),
            m.weight("norm.b", &[HIDDEN], 0.1),
            m.weight("norm.m", &[HIDDEN], 0.1),
            m.gain("norm.v", HIDDEN),
        ];
        let [gain, shift, mean, variance] = norm;
        let features = m.p.node(Op::new("BatchNormalization"), &[features, gain, shift, mean, variance]);
        let pool = Op::new("AveragePool")
            .with("kernel_shape", [1i64, 2].as_slice())
            .with("strides", [1i64, 2].as_slice());
        let features = m.p.node(pool, &[features]);
        let front = m.p.shape_of(features, 0, 2);
        let rest = m.p.ints(&[-1]);
        let sizes = m.p.concat(&[front, rest], 0);
        let flat = m.p.reshape_to(features, sizes);
        let x = m.p.transpose(flat, &[0, 2, 1]);
        let packed = m.linear(x, "linear.w", HIDDEN, 3 * HIDDEN);
        let length = m.p.shape_of(x, 1, 2);
        let (zero, parts) = (m.p.ints(&[0]), m.p.ints(&[3, HEADS, DIM]));
        let sizes = m.p.concat(&[zero, length, parts], 0);
        let split = m.p.reshape_to(packed, sizes);
        let turned = m.p.transpose(split, &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| {
            let part = m.p.slice(turned, 0, i, i + 1);
            m.p.squeeze(part, &[0])
        });
        let q = m.p.mul_scalar(q, (DIM as f64).sqrt().recip());
        let scores = m.scores(q, k);
        let probabilities = m.p.softmax(scores, axis);
        let mixed = m.p.matmul(probabilities, v);
        let joined = m.joined(mixed);
        let out = m.linear(joined, "out.w", HIDDEN, VOCAB);
        m.p.output("scores", out);
    });
    let bytes = export(&graph, &ExportOptions { opset: 17, weights: None }).expect("it is written");
    older(ModelProto::decode(bytes.as_slice()).expect("it is a model"))
}

/// The model under opset 12, where `Squeeze` takes its axes as an attribute.
fn older(mut model: ModelProto) -> ModelProto {
    for import in model.opset_import.iter_mut().filter(|o| o.domain.is_empty()) {
        import.version = 12;
    }
    let graph = model.graph.as_mut().expect("a graph");
    for node in graph.node.iter_mut().filter(|n| n.op_type == "Squeeze") {
        node.input.truncate(1);
        node.attribute.push(AttributeProto {
            name: "axes".to_owned(),
            r#type: attribute_type::INTS,
            ints: vec![0],
            ..AttributeProto::default()
        });
    }
    model
}

struct Home(TempDir);

impl Home {
    fn with(graph: &Graph) -> Self {
        let bytes = export(graph, &ExportOptions { opset: 18, weights: None }).expect("it is written");
        Self::of(&bytes)
    }

    fn of(bytes: &[u8]) -> Self {
        let home = Self(tempfile::tempdir().expect("a directory"));
        std::fs::write(home.source(), bytes).expect("it is written");
        home
    }

    fn source(&self) -> PathBuf {
        self.0.path().join("model.onnx")
    }

    fn bundle(&self) -> PathBuf {
        self.0.path().join("bundle")
    }

    fn found(&self) -> Found {
        let mut graph = import(&self.source()).expect("it is read");
        canonicalize(&mut graph).expect("it is cleaned up");
        find_sites(&graph)
    }

    fn miss(&self) -> String {
        let found = self.found();
        assert_eq!(found.sites.len(), 0);
        found.misses.first().expect("a softmax that stays").miss.to_string()
    }

    /// Converts with the default recipe and its proof, which must hold; the one site must be linear.
    fn converted(&self) -> Converted {
        let options = ConvertOptions {
            verify: Some(VerifyOptions::default()),
            ..ConvertOptions::of(recipes::load(recipes::DEFAULT).expect("the default recipe"))
        };
        let converted = convert(&self.source(), &self.bundle(), &options, &mut Silent).expect("it converts");
        let verification = converted.verification.as_ref().expect("it was asked for");
        assert!(verification.ok, "{verification:#?}");
        assert_eq!(converted.sites.len(), 1);
        assert_eq!(converted.sites[0].why_kept, None);
        converted
    }

    fn refusal(&self) -> String {
        let options = ConvertOptions {
            verify: Some(VerifyOptions::default()),
            ..ConvertOptions::of(recipes::load(recipes::DEFAULT).expect("the default recipe"))
        };
        let made = convert(&self.source(), &self.bundle(), &options, &mut Silent);
        made.expect_err("it is refused").to_string()
    }

    fn checks(&self) -> Vec<String> {
        let verification = self.converted().verification.expect("it was asked for");
        verification.checks.into_iter().map(|check| check.name).collect()
    }
}

#[test]
fn norms_of_queries_and_keys_belong_to_the_features() {
    let home = Home::with(&with_norms(&[0.35]));
    let site = home.found().sites.remove(0);
    assert_eq!((site.heads, site.mask.name()), (2, "causal + key padding"));
    assert!((site.scale - 0.35).abs() < 1e-6);
    home.converted();
}

#[test]
fn a_scale_for_each_head_goes_into_the_queries() {
    let home = Home::with(&with_norms(&[0.35, 0.7]));
    assert_eq!(home.found().sites[0].scale, 1.0);
    home.converted();
}

#[test]
fn quantised_weights_are_served_as_they_are() {
    let home = Home::with(&with_quantised_weights(0, false));
    if !has_ort() {
        return;
    }
    home.converted();
    let before = quantised(&home.source());
    assert_eq!(before.len(), 4);
    assert_eq!(quantised(&home.bundle().join(files::MODEL)), before);
    // The other forms work the same weights out in standard operators.
    for file in [files::PARALLEL, files::CHUNKED, files::SOFTMAX] {
        assert_eq!(quantised(&home.bundle().join(file)), [], "{file}");
    }
}

/// Attributes, packed weight and scales of every quantised product, by the name of the weight.
fn quantised(file: &Path) -> Vec<(String, String, Vec<f64>, Vec<f64>)> {
    let graph = import(file).expect("it is read");
    let products = graph.nodes().filter(|(_, n)| n.op.name() == "MatMulNBits");
    let mut found: Vec<_> = products
        .map(|(_, node)| {
            let constant = |slot| {
                let value = graph.value(node.input(slot).expect("an input"));
                (value.name.clone(), value.as_const().expect("a constant").to_f64())
            };
            let ((name, packed), (_, scales)) = (constant(1), constant(2));
            (name, format!("{:?}", node.op.attrs), packed, scales)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The forms compute in f32 all the same; what serves is farther from them.
#[test]
fn products_that_round_their_activations_are_held_to_bytes() {
    let home = Home::with(&with_quantised_weights(4, false));
    if !has_ort() {
        return;
    }
    let verification = home.converted().verification.expect("it was asked for");
    let limit = |name: &str| verification.checks.iter().find(|c| c.name == name).and_then(|c| c.limit);
    assert_eq!(limit("onnxruntime: chunked = parallel"), Some(1e-4));
    assert_eq!(limit("onnxruntime: served = parallel"), Some(5e-2));
}

#[test]
fn values_of_an_unknown_operator_may_be_of_any_length() {
    let miss = Home::with(&with_quantised_weights(0, true)).miss();
    let want = "its shape is not known, as operator com.example.Linear, node \"";
    assert!(miss.contains(want), "{miss}");
}

#[test]
fn patches_of_a_picture() {
    let home = Home::with(&vision(false));
    assert_eq!(home.found().sites[0].mask.name(), "none");
    let checks = home.checks();
    assert!(
        checks.iter().any(|c| c.ends_with("= f64 interpreter") || c.starts_with("f64 interpreter")),
        "{checks:?}"
    );
}

#[test]
fn a_token_that_nobody_sees_is_another_mask() {
    let miss = Home::with(&vision(true)).miss();
    let want = "the mask is neither causal nor key padding nor a window: in head 0, query 0 does not see key 0 after 0 past tokens";
    assert!(miss.contains(want), "{miss}");
}

#[test]
fn a_recogniser_of_an_older_opset() {
    let home = Home::of(&recogniser(3).encode_to_vec());
    assert_eq!(home.found().sites[0].mask.name(), "none");
    home.converted();
}

/// Under opset 12 it runs over all axes from this one on.
#[test]
fn a_softmax_over_heads_is_none() {
    let miss = Home::of(&recogniser(1).encode_to_vec()).miss();
    let reshape = "operator Reshape, node \"Softmax/Reshape\", stands between the softmax and the product with the values";
    assert!(miss.contains(reshape), "{miss}");
}

/// Why a row of the proof was left out; none where it was not.
fn why_skipped(converted: &Converted, row: &str) -> Option<String> {
    let checks = &converted.verification.as_ref().expect("it was asked for").checks;
    let found = checks.iter().find(|check| check.name.starts_with(row)).expect("a row of that name");
    found.reason.clone().filter(|_| found.is_skipped())
}

#[test]
fn one_number_for_each_token_is_compared_token_by_token() {
    let home = Home::with(&reader(&[sym("batch"), sym("sequence")], plain));
    let converted = home.converted();
    if has_ort() {
        assert_eq!(why_skipped(&converted, "onnxruntime: padded right = alone"), None);
    }
    assert_eq!(why_skipped(&converted, "tract: padded right = alone"), None);
}

#[test]
fn sizes_without_names_are_told_apart() {
    let home = Home::of(&unnamed(&reader(&[sym("batch"), sym("sequence")], plain)));
    assert_eq!(home.found().sites[0].mask.name(), "key padding");
    home.converted();
}

/// As it is exported without dynamic axes.
#[test]
fn a_graph_of_one_length_is_proved_at_that() {
    let converted = Home::with(&reader(&[Dim::Known(1), Dim::Known(11)], plain)).converted();
    assert_eq!(
        why_skipped(&converted, "padding in tract").as_deref(),
        Some("the graph takes exactly 11 tokens")
    );
}

#[test]
fn a_graph_of_one_sequence_is_proved_with_that() {
    let converted = Home::with(&with_norms_of(&Dim::Known(1), &[0.35])).converted();
    if has_ort() {
        let why = why_skipped(&converted, "padding in onnxruntime");
        assert_eq!(why.as_deref(), Some("the graph takes exactly 1 sequence"));
    }
}

#[test]
fn a_graph_of_two_sequences_is_not_proved() {
    let error = Home::with(&with_norms_of(&Dim::Known(2), &[0.35])).refusal();
    assert!(error.contains("it takes exactly 2 sequences at a time"), "{error}");
    assert!(error.ends_with("with --no-verify)"), "{error}");
}

/// Its export holds the number of sequences that it was traced with.
#[test]
fn a_graph_that_does_not_run_as_it_came_is_told() {
    if has_ort() {
        let error = Home::with(&reader(&[sym("batch"), sym("sequence")], of_two)).refusal();
        let told = "the model does not run in onnxruntime with 1 sequence of 70 tokens, as it came: ";
        assert!(error.contains(told), "{error}");
    }
}

/// The forms compute without that rounding, and what serves with it.
#[test]
fn activations_that_are_rounded_as_they_come() {
    let home = Home::with(&reader(&[sym("batch"), sym("sequence")], rounded));
    let site = home.found().sites.remove(0);
    assert_eq!((site.heads, site.mask.name(), site.hidden.is_some()), (2, "key padding", true));
    if !has_ort() {
        return;
    }
    let verification = home.converted().verification.expect("it was asked for");
    let limit = |name: &str| verification.checks.iter().find(|c| c.name == name).and_then(|c| c.limit);
    assert_eq!(limit("onnxruntime: chunked = parallel"), Some(1e-4));
    assert_eq!(limit("onnxruntime: served = parallel"), Some(5e-2));
    let operators = |file: &str| -> Vec<String> {
        let graph = import(&home.bundle().join(file)).expect("it is read");
        graph.nodes().map(|(_, node)| node.op.name().to_owned()).collect()
    };
    let is_rounded = |file: &str| operators(file).iter().any(|op| op == "MatMulInteger");
    assert!(is_rounded(files::MODEL));
    assert!([files::PARALLEL, files::CHUNKED, files::SOFTMAX].iter().all(|file| !is_rounded(file)));
}

/// What is computed of a hidden state beside an attention.
type Look = fn(&mut Model<'_, '_>, ValueId) -> ValueId;

/// A state holds what an attention needs of earlier tokens, and nothing else does.
#[test]
fn what_looks_back_outside_an_attention_is_told() {
    let looks: [(Look, &str); 3] = [(summed, "CumSum"), (shared_out, "Div"), (shifted, "Slice")];
    for (look, op) in looks {
        let error = Home::with(&behind(look)).refusal();
        let told =
            format!("({op}) looks from token to token, or at how many there are, outside an attention");
        assert!(error.contains(&told), "{error}");
    }
    Home::with(&behind(|m, x| m.p.mul_scalar(x, 0.5))).converted();
}

/// It has no state that a device could hold.
#[test]
fn a_model_without_an_attention_is_written_as_it_is() {
    let graph = built("classifier", |m| {
        let ids = m.p.input("input_ids", DType::I64, vec![sym("batch"), sym("sequence")]);
        let table = m.weight("model.embed_tokens.weight", &[VOCAB, HIDDEN], 1.0);
        let x = m.p.gather(table, ids, 0);
        let logits = m.linear(x, "lm_head.weight", HIDDEN, VOCAB);
        m.p.output("logits", logits);
    });
    let home = Home::with(&graph);
    let error = home.refusal();
    assert!(error.contains("no attention was found in it: no softmax that weighs"), "{error}");
    let kept = ConvertOptions::of(recipes::load("softmax").expect("the recipe"));
    convert(&home.source(), &home.bundle(), &kept, &mut Silent).expect("it converts");
    assert!(home.bundle().join(files::MODEL).is_file());
    assert!(!home.bundle().join(files::PREFILL).exists() && !home.bundle().join(files::DECODE).exists());
}

#[test]
fn what_values_are_projected_from_is_found_behind_a_transpose() {
    let home = Home::with(&with_tokens_in_front(false));
    assert!(home.found().sites[0].hidden.is_some());
    home.converted();
    assert!(Home::with(&with_tokens_in_front(true)).found().sites.is_empty());
}

/// Nothing could tell padding from tokens.
#[test]
fn a_graph_without_a_mask_is_proved_without_padding() {
    let home = Home::with(&with_positions(128, false));
    assert_eq!(home.found().sites[0].mask.name(), "causal");
    let converted = home.converted();
    if has_ort() {
        let why = why_skipped(&converted, "padding in onnxruntime");
        assert_eq!(why.as_deref(), Some("the graph takes no attention_mask"));
    }
}

/// The prompts of the proof have no more tokens than the table has rows, and neither has a text later.
#[test]
fn a_table_of_few_positions_is_not_read_beyond_its_end() {
    let positions = |rows: u64| {
        let home = Home::with(&with_positions(rows, true));
        home.converted();
        Manifest::read(&home.bundle()).expect("it is written").model.positions
    };
    assert_eq!(positions(20), Some(20));
    assert_eq!(positions(5000), None);
}

/// Whatever the proof feeds, which is one kind of token alone.
#[test]
fn an_input_that_opens_a_mask_is_told() {
    let miss = Home::with(&with_kinds("token_type_ids", true)).miss();
    let want = "which keys a query sees depends on the input `token_type_ids`";
    assert!(miss.ends_with(want), "{miss}");
    let beside = Home::with(&with_kinds("token_type_ids", false)).found();
    assert_eq!(beside.sites[0].mask.name(), "causal + key padding");
}

#[test]
fn an_input_that_the_proof_does_not_know_is_told() {
    let home = Home::with(&with_kinds("segment_ids", true));
    let options = ConvertOptions {
        verify: Some(VerifyOptions::default()),
        ..ConvertOptions::of(recipes::load("softmax").expect("a recipe"))
    };
    let made = convert(&home.source(), &home.bundle(), &options, &mut Silent);
    let error = made.expect_err("it is refused").to_string();
    let want = "does not know what the input `segment_ids` holds (hint: --no-verify leaves the proof out)";
    assert!(error.ends_with(want), "{error}");
}

#[test]
fn half_of_a_model_is_told() {
    let error = Home::with(&led_by("encoder_hidden_states")).refusal();
    let want = "it is the decoder of an encoder-decoder model, by its input encoder_hidden_states";
    assert!(error.contains(want), "{error}");
    let error = Home::with(&led_by("decoder_input_ids")).refusal();
    let want =
        "it is an encoder-decoder model, by its input decoder_input_ids, and such models are not converted";
    assert!(error.contains(want), "{error}");
    let error = Home::with(&led_by("style")).refusal();
    assert!(error.contains("and nothing gives it its input style (hint: "), "{error}");
}
