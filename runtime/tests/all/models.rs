//! Small ONNX models, written through tract's own protobuf messages.

use std::path::{Path, PathBuf};

use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::{Tensor, Value};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
};

pub(crate) const VOCABULARY: usize = 7;
pub(crate) const WIDTH: usize = 4;

/// A dimension of a declared input: a name is open, a number is fixed.
pub(crate) fn dims(text: &str) -> Vec<Dimension> {
    let dim = |word: &str| match word.parse() {
        Ok(size) => dimension::Value::DimValue(size),
        Err(_) => dimension::Value::DimParam(word.to_owned()),
    };
    text.split_whitespace().map(|word| Dimension { value: Some(dim(word)), ..Default::default() }).collect()
}

/// A model under construction.
#[derive(Default)]
pub(crate) struct Model {
    graph: GraphProto,
}

impl Model {
    pub(crate) fn input(&mut self, name: &str, dtype: DataType, shape: &str) {
        self.graph.input.push(info(name, dtype, shape));
    }

    pub(crate) fn output(&mut self, name: &str, dtype: DataType, shape: &str) {
        self.graph.output.push(info(name, dtype, shape));
    }

    /// Adds a node; its only output is the last name.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            name: format!("make_{output}"),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            attribute: attributes,
            ..Default::default()
        });
    }

    /// Puts the last node's operator into another domain.
    pub(crate) fn in_domain(&mut self, domain: &str) {
        domain.clone_into(&mut self.graph.node.last_mut().unwrap().domain);
    }

    pub(crate) fn ints(&mut self, name: &str, values: &[i64]) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..Default::default()
        });
    }

    pub(crate) fn scalar(&mut self, name: &str, value: i64) {
        self.ints(name, &[value]);
        self.graph.initializer.last_mut().unwrap().dims.clear();
    }

    pub(crate) fn floats(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: shape.to_vec(),
            data_type: DataType::Float as i32,
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..Default::default()
        });
    }

    /// Moves the bytes of one initializer into a file, after some unrelated bytes.
    pub(crate) fn externalise(&mut self, name: &str, dir: &Path, location: &str) {
        let tensor = self.graph.initializer.iter_mut().find(|tensor| tensor.name == name).unwrap();
        let bytes = std::mem::take(&mut tensor.raw_data);
        let offset = 88;
        std::fs::write(dir.join(location), [vec![0xff; offset], bytes.clone()].concat()).unwrap();
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.data_location = Some(DataLocation::External as i32);
        tensor.external_data = vec![
            entry("location", location.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", bytes.len().to_string()),
        ];
    }

    pub(crate) fn write(self, dir: &Path) -> PathBuf {
        self.write_with_opset(dir, 17)
    }

    pub(crate) fn write_with_opset(mut self, dir: &Path, version: i64) -> PathBuf {
        "test".clone_into(&mut self.graph.name);
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![opset("", version), opset("com.microsoft", 1)],
            graph: Some(self.graph),
            ..Default::default()
        };
        let path = dir.join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        path
    }
}

fn info(name: &str, dtype: DataType, shape: &str) -> ValueInfoProto {
    let shape = Some(TensorShapeProto { dim: dims(shape) });
    let tensor = Tensor { elem_type: dtype as i32, shape };
    let r#type = Some(TypeProto { value: Some(Value::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..Default::default() }
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

/// Which parts the decoder graph of [`decoder`] has.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) fixed: bool,
    pub(crate) growing: bool,
    /// Without a mask and positions.
    pub(crate) bare: bool,
}

pub(crate) const ALL: Parts = Parts { fixed: true, growing: true, bare: false };
pub(crate) const LINEAR: Parts = Parts { fixed: true, growing: false, bare: false };
pub(crate) const CACHED: Parts = Parts { fixed: false, growing: true, bare: false };
pub(crate) const STATELESS: Parts = Parts { fixed: false, growing: false, bare: false };

/// A causal decoder: logits are the embeddings' inner products with the running sum of all embeddings so far, kept
/// as a sum (`recurrent_state`), as a list that is summed anew (`key`), or both, plus a hundredth of the position.
pub(crate) fn decoder(parts: Parts) -> Model {
    let mut m = Model::default();
    let table: Vec<f32> = (0..VOCABULARY * WIDTH).map(|i| ((i * 37 % 23) as f32 - 11.0) / 8.0).collect();
    m.floats("table", &[VOCABULARY as i64, WIDTH as i64], &table);
    m.ints("one", &[1]);
    m.scalar("axis_one", 1);
    m.ints("two", &[2]);
    m.ints("three", &[3]);
    m.ints("last", &[-1]);
    m.floats("hundredth", &[1], &[0.01]);
    m.input("input_ids", DataType::Int64, "batch tokens");
    m.output("logits", DataType::Float, &format!("batch tokens {VOCABULARY}"));
    m.node("Gather", &["table", "input_ids"], "embedded", vec![]);
    m.node("Shape", &["input_ids"], "ids_shape", vec![]);
    m.node("Gather", &["ids_shape", "one"], "token_count", vec![]);
    m.node("Neg", &["token_count"], "minus_tokens", vec![]);
    m.ints("to_the_end", &[i64::MAX]);
    let mut sum = if parts.bare { "embedded" } else { masked(&mut m, parts.growing) };
    if parts.fixed {
        sum = add_fixed(&mut m, sum);
    } else if !parts.growing {
        m.node("CumSum", &[sum, "axis_one"], "summed", vec![]);
        sum = "summed";
    }
    if parts.growing {
        let base = if parts.fixed { Some(sum) } else { None };
        sum = add_growing(&mut m, base, parts.bare);
    }
    m.node("Transpose", &["table"], "head", vec![]);
    if parts.bare {
        m.node("MatMul", &[sum, "head"], "logits", vec![]);
        return m;
    }
    m.node("MatMul", &[sum, "head"], "scores", vec![]);
    m.input("position_ids", DataType::Int64, "batch tokens");
    m.node("Cast", &["position_ids"], "positions", vec![int("to", DataType::Float as i64)]);
    m.node("Mul", &["positions", "hundredth"], "small_positions", vec![]);
    m.node("Unsqueeze", &["small_positions", "two"], "columns", vec![]);
    m.node("Add", &["scores", "columns"], "logits", vec![]);
    m
}

/// Embeddings with padding set to zero. With a cache the mask covers past and present, and its end is ours.
fn masked(m: &mut Model, growing: bool) -> &'static str {
    m.input("attention_mask", DataType::Int64, if growing { "batch total" } else { "batch tokens" });
    m.node("Cast", &["attention_mask"], "all_mask", vec![int("to", DataType::Float as i64)]);
    m.node("Slice", &["all_mask", "minus_tokens", "to_the_end", "one"], "now_mask", vec![]);
    m.node("Unsqueeze", &["now_mask", "two"], "now_column", vec![]);
    m.node("Mul", &["embedded", "now_column"], "real", vec![]);
    "real"
}

/// Adds `recurrent_state` [batch, 1, WIDTH, 1]; returns the running sum [batch, tokens, WIDTH].
fn add_fixed(m: &mut Model, real: &str) -> &'static str {
    let shape = format!("batch 1 {WIDTH} 1");
    m.input("past_key_values.0.recurrent_state", DataType::Float, &shape);
    m.output("present.0.recurrent_state", DataType::Float, &shape);
    m.node("CumSum", &[real, "axis_one"], "fresh_sum", vec![]);
    m.node("Squeeze", &["past_key_values.0.recurrent_state", "three"], "old_sum", vec![]);
    m.node("Add", &["fresh_sum", "old_sum"], "running_sum", vec![]);
    m.node("Slice", &["running_sum", "last", "to_the_end", "one"], "end_sum", vec![]);
    m.node("Unsqueeze", &["end_sum", "three"], "present.0.recurrent_state", vec![]);
    "running_sum"
}

/// Adds `key` [batch, 1, past, WIDTH] and sums it under the mask; returns the sum, added to `base`.
fn add_growing(m: &mut Model, base: Option<&str>, bare: bool) -> &'static str {
    m.input("past_key_values.1.key", DataType::Float, &format!("batch 1 past {WIDTH}"));
    m.output("present.1.key", DataType::Float, &format!("batch 1 total {WIDTH}"));
    m.node("Unsqueeze", &["embedded", "one"], "fresh_key", vec![]);
    m.node("Concat", &["past_key_values.1.key", "fresh_key"], "present.1.key", vec![int("axis", 2)]);
    m.node("Squeeze", &["present.1.key", "one"], "keys", vec![]);
    if bare {
        m.node("Identity", &["keys"], "real_keys", vec![]);
    } else {
        m.node("Unsqueeze", &["all_mask", "two"], "all_column", vec![]);
        m.node("Mul", &["keys", "all_column"], "real_keys", vec![]);
    }
    m.node("CumSum", &["real_keys", "axis_one"], "all_sums", vec![]);
    m.node("Slice", &["all_sums", "minus_tokens", "to_the_end", "one"], "now_sums", vec![]);
    match base {
        Some(base) => m.node("Add", &["now_sums", base], "both_sums", vec![]),
        None => m.node("Identity", &["now_sums"], "both_sums", vec![]),
    }
    "both_sums"
}

/// A decoder with a state that is declared to be of one size, and comes out longer by a row per token.
pub(crate) fn misdeclared() -> Model {
    let mut m = decoder(STATELESS);
    let shape = format!("batch 1 1 {WIDTH}");
    m.input("past_key_values.0.recurrent_state", DataType::Float, &shape);
    m.output("present.0.recurrent_state", DataType::Float, &shape);
    m.node("Unsqueeze", &["embedded", "one"], "rows", vec![]);
    let joined = ["past_key_values.0.recurrent_state", "rows"];
    m.node("Concat", &joined, "present.0.recurrent_state", vec![int("axis", 2)]);
    m
}

/// `y` is `x` times a matrix of ones, in the given float dtype, plus `before`; it replaces `before` as `after`.
pub(crate) fn running_product(dtype: DataType) -> Model {
    let mut m = Model::default();
    m.input("before", dtype, "n 2");
    m.input("x", dtype, "n 3");
    m.floats("ones_f32", &[3, 2], &[1.0; 6]);
    m.node("Cast", &["ones_f32"], "ones", vec![int("to", dtype as i64)]);
    m.node("MatMul", &["x", "ones"], "product", vec![]);
    m.node("Add", &["product", "before"], "after", vec![]);
    m.node("Identity", &["product"], "y", vec![]);
    m.output("after", dtype, "n 2");
    m.output("y", dtype, "n 2");
    m
}

/// Returns each input unchanged, one per dtype.
pub(crate) fn echo(dtypes: &[(&str, DataType)]) -> Model {
    let mut m = Model::default();
    for (name, dtype) in dtypes {
        m.input(name, *dtype, "n 2");
        m.output(&format!("{name}_out"), *dtype, "n 2");
        m.node("Identity", &[name], &format!("{name}_out"), vec![]);
    }
    m
}
