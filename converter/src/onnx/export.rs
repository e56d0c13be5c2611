//! A graph written as an ONNX model.
//!
//! The same graph and options give the same bytes. Weights stay outside, as external data in the
//! weight file: ONNX Runtime, tract and the ONNX checker all refuse a location that leaves the
//! directory of the graph file (by `..` or through a symbolic link), so a graph file lies beside
//! the weight file or above it.

use super::proto::{
    DimValue, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::unique::Unique;
use super::{attribute, dtype, external, forms, forms::Form, initializer};
use crate::bundle::weights::WeightFile;
use dijiang_passes::ir::graph::{Def, Graph, Node, ValueId};
use dijiang_passes::ir::infer::Type;
use dijiang_passes::ir::op::Attr;
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::tensor::Tensor;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// The opsets that can be written.
pub const OPSETS: RangeInclusive<i64> = 17..=27;

/// Largest protobuf message that runtimes read.
const MAX_BYTES: usize = i32::MAX as usize;

/// The file that weights are external data of.
#[derive(Clone, Copy, Debug)]
pub struct ExternalWeights<'a> {
    /// Path of the weight file, relative to the directory of the graph file.
    pub location: &'a str,
    pub file: &'a WeightFile,
}

/// How a graph is written.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// Version of `ai.onnx`, one of [`OPSETS`].
    pub opset: i64,
    /// Without one, weights are written into the graph file.
    pub weights: Option<ExternalWeights<'a>>,
}

/// Why a graph could not be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExportError {
    #[error("opset {0} cannot be written, expected {first} to {last}", first = OPSETS.start(), last = OPSETS.end())]
    Opset(i64),
    #[error("node `{node}` ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error("value `{name}`: {reason}")]
    Value { name: String, reason: String },
    #[error(
        "weight file location `{location}` {problem} (hint: ONNX Runtime refuses it; put the graph beside the weight file)"
    )]
    Location { location: String, problem: &'static str },
    #[error("graph `{0}`: some of its nodes lie on a cycle")]
    Cycle(String),
    #[error(
        "the model takes {0} bytes, more than the 2 GiB of a protobuf message (hint: keep its weights in a weight file)"
    )]
    TooLarge(usize),
}

/// The bytes of the model file.
pub fn export(graph: &Graph, options: &ExportOptions<'_>) -> Result<Vec<u8>, ExportError> {
    let model = to_model(graph, options)?;
    let size = model.encoded_len();
    if size > MAX_BYTES {
        return Err(ExportError::TooLarge(size));
    }
    Ok(model.encode_to_vec())
}

/// The message of the model file.
pub fn to_model(graph: &Graph, options: &ExportOptions<'_>) -> Result<ModelProto, ExportError> {
    if !OPSETS.contains(&options.opset) {
        return Err(ExportError::Opset(options.opset));
    }
    if let Some(weights) = options.weights
        && let Some(problem) = external::location_problem(weights.location)
    {
        return Err(ExportError::Location { location: weights.location.to_owned(), problem });
    }
    let names = Names::of(graph)?;
    let writer = GraphWriter {
        graph,
        options,
        names,
        nodes: Unique::default(),
        graph_proto: GraphProto::default(),
        axes: BTreeMap::new(),
    };
    Ok(ModelProto {
        ir_version: ir_version(options.opset),
        producer_name: "dijiang".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: opset_imports(graph, options.opset),
        graph: Some(writer.write()?),
        ..ModelProto::default()
    })
}

/// The IR version that was current when the opset was released (`onnx.helper.VERSION_TABLE`, onnx
/// 1.23). Opsets below 19 get 8, their own or an older one.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// The first opset, from `least` on, that has all standard operators of a graph.
pub fn opset_of(graph: &Graph, least: i64) -> i64 {
    let standard = graph.nodes().filter(|(_, node)| node.op.domain().is_empty());
    standard.map(|(_, node)| forms::first_opset(node.op.name())).fold(least, i64::max)
}

fn opset_imports(graph: &Graph, opset: i64) -> Vec<OperatorSetIdProto> {
    let others: BTreeSet<&str> =
        graph.nodes().map(|(_, n)| n.op.domain()).filter(|d| !d.is_empty()).collect();
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    std::iter::once(import("", opset)).chain(others.into_iter().map(|d| import(d, 1))).collect()
}

/// The name each value has in the file: that of the output where a node's value is returned once,
/// its own otherwise, changed where an output has that name.
struct Names {
    of: BTreeMap<ValueId, String>,
    taken: Unique,
}

impl Names {
    fn of(graph: &Graph) -> Result<Self, ExportError> {
        let mut names = Self { of: BTreeMap::new(), taken: [&String::new()].into_iter().collect() };
        for (output, value) in graph.outputs() {
            names.taken.take(output);
            if graph.producer(*value).is_some() {
                names.of.entry(*value).or_insert_with(|| output.clone());
            }
        }
        for (id, value) in graph.values() {
            if names.of.contains_key(&id) {
                continue;
            }
            let is_public = value.is_weight || matches!(value.def, Def::Input);
            if is_public && names.taken.is_taken(&value.name) {
                let reason = "an output of the graph has the same name".to_owned();
                return Err(ExportError::Value { name: value.name.clone(), reason });
            }
            let name = names.taken.fresh(&value.name);
            names.of.insert(id, name);
        }
        Ok(names)
    }
}

struct GraphWriter<'a> {
    graph: &'a Graph,
    options: &'a ExportOptions<'a>,
    names: Names,
    /// Names of nodes, which ONNX Runtime wants to be different.
    nodes: Unique,
    graph_proto: GraphProto,
    /// Names of the constants that hold axes.
    axes: BTreeMap<Vec<i64>, String>,
}

impl GraphWriter<'_> {
    fn write(mut self) -> Result<GraphProto, ExportError> {
        self.graph_proto.name.clone_from(&self.graph.name);
        self.inputs()?;
        self.constants()?;
        let order = self.graph.order();
        if order.len() != self.graph.nodes().count() {
            return Err(ExportError::Cycle(self.graph.name.clone()));
        }
        for id in order {
            self.node(self.graph.node(id))?;
        }
        self.outputs();
        Ok(self.graph_proto)
    }

    fn name(&self, value: ValueId) -> String {
        self.names.of.get(&value).cloned().unwrap_or_default()
    }

    fn inputs(&mut self) -> Result<(), ExportError> {
        for id in self.graph.inputs() {
            let value = self.graph.value(*id);
            if value.ty.dtype.is_none() || value.ty.shape.is_none() {
                let reason = format!("an input needs an element type and a rank, it is {}", value.ty);
                return Err(ExportError::Value { name: value.name.clone(), reason });
            }
            self.graph_proto.input.push(value_info(self.name(*id), &value.ty));
        }
        Ok(())
    }

    fn constants(&mut self) -> Result<(), ExportError> {
        for (id, name, tensor) in self.graph.consts() {
            let proto = match self.options.weights {
                Some(weights) if self.graph.value(id).is_weight => {
                    external(&self.name(id), name, tensor, weights)?
                }
                _ => initializer::inline(&self.name(id), tensor),
            };
            self.graph_proto.initializer.push(proto);
        }
        Ok(())
    }

    /// Every output under its name; values that already have another one pass through an `Identity`.
    fn outputs(&mut self) {
        for (name, value) in self.graph.outputs() {
            let source = self.name(*value);
            if source != *name {
                self.graph_proto.node.push(NodeProto {
                    input: vec![source],
                    output: vec![name.clone()],
                    name: self.nodes.fresh(&format!("output/{name}")),
                    op_type: "Identity".to_owned(),
                    ..NodeProto::default()
                });
            }
            self.graph_proto.output.push(value_info(name.clone(), &self.graph.value(*value).ty));
        }
    }

    fn node(&mut self, node: &Node) -> Result<(), ExportError> {
        let fail =
            |reason| Err(ExportError::Node { node: node.name.clone(), op: node.op.qualified_name(), reason });
        let (domain, op) = (node.op.domain(), node.op.name());
        let first = forms::first_opset(op);
        if domain.is_empty() && self.options.opset < first {
            return fail(format!(
                "it exists from opset {first} on, the model is opset {}",
                self.options.opset
            ));
        }
        let mut proto = NodeProto {
            input: node.inputs.iter().map(|v| v.map_or_else(String::new, |v| self.name(v))).collect(),
            output: node.outputs.iter().map(|v| self.name(*v)).collect(),
            name: self.nodes.fresh(&node.name),
            op_type: op.to_owned(),
            domain: domain.to_owned(),
            ..NodeProto::default()
        };
        for (name, attr) in &node.op.attrs {
            if let Err(reason) = self.attribute(node, name, attr, &mut proto) {
                return fail(format!("attribute `{name}` = {attr}: {reason}"));
            }
        }
        self.output_count(node, &mut proto);
        self.graph_proto.node.push(proto);
        Ok(())
    }

    fn attribute(
        &mut self,
        node: &Node,
        name: &str,
        attr: &Attr,
        proto: &mut NodeProto,
    ) -> Result<(), String> {
        let (op, opset) = (&node.op, self.options.opset);
        match (forms::find(op.domain(), op.name(), name), attr) {
            (Some(Form::InputSince { slot, since }), Attr::Ints(axes)) if opset >= since => {
                self.axes_input(slot, axes, proto);
            }
            (Some(Form::InputSince { since, .. }), Attr::Ints(axes)) if axes.is_empty() => {
                return Err(format!("no axes cannot be said before opset {since}"));
            }
            (Some(Form::AttributeSince(since)), _) if opset < since => {
                if !is_default(node, name, attr) {
                    return Err(format!("it exists from opset {since} on, the model is opset {opset}"));
                }
            }
            (Some(Form::ElementType), Attr::Str(to)) => {
                let to = to.parse().map_err(|e: dijiang_format::dtype::UnknownDType| e.to_string())?;
                proto.attribute.push(attribute::to_proto(name, &Attr::Int(dtype::to_number(to).into())));
            }
            (Some(Form::OutputCountSince(_)), _) => {}
            (_, Attr::Tensor(value)) if op.is("ConstantOfShape") => {
                // The spec wants one dim here; the number itself has rank 0 as often.
                let value = value.with_dims(vec![1]).map_err(|e| e.to_string())?;
                proto.attribute.push(attribute::to_proto(name, &Attr::Tensor(value)));
            }
            _ => proto.attribute.push(attribute::to_proto(name, attr)),
        }
        Ok(())
    }

    fn axes_input(&mut self, slot: usize, axes: &[i64], proto: &mut NodeProto) {
        if axes.is_empty() && forms::is_reduction(&proto.op_type) {
            proto.attribute.push(attribute::to_proto("noop_with_empty_axes", &Attr::Int(1)));
        }
        let name = match self.axes.get(axes) {
            Some(name) => name.clone(),
            None => self.axes_constant(axes),
        };
        proto.input.resize(slot, String::new());
        proto.input.push(name);
    }

    fn axes_constant(&mut self, axes: &[i64]) -> String {
        let listed: Vec<String> = axes.iter().map(i64::to_string).collect();
        let name = self.names.taken.fresh(&format!("axes/{}", listed.join(",")));
        let tensor = Tensor::from_i64(&[axes.len() as u64], axes);
        self.graph_proto.initializer.push(initializer::inline(&name, &tensor));
        self.axes.insert(axes.to_vec(), name.clone());
        name
    }

    fn output_count(&self, node: &Node, proto: &mut NodeProto) {
        for (name, form) in forms::of(node.op.domain(), node.op.name()) {
            let Form::OutputCountSince(since) = form else { continue };
            if self.options.opset >= since && node.input(1).is_none() {
                proto.attribute.push(attribute::to_proto(name, &Attr::Int(node.outputs.len() as i64)));
            }
        }
    }
}

/// Whether the attribute says what would happen without it.
fn is_default(node: &Node, name: &str, attr: &Attr) -> bool {
    let mut bare = node.op.clone();
    bare.attrs.remove(name);
    match attr {
        Attr::Int(x) => bare.int(name) == Some(*x),
        Attr::Str(x) => bare.str(name) == Some(x),
        _ => false,
    }
}

fn external(
    name: &str,
    weight: &str,
    tensor: &Tensor,
    weights: ExternalWeights<'_>,
) -> Result<TensorProto, ExportError> {
    let fail = |reason: String| Err(ExportError::Value { name: weight.to_owned(), reason });
    let (location, place) = match weights.file.elsewhere(weight) {
        Some(place) => (place.location.as_str(), Some((place.offset, place.length))),
        None => (weights.location, weights.file.layout(weight)),
    };
    match place {
        None => fail(format!("the weight is not in `{location}`")),
        Some((_, length)) if length != tensor.byte_len() as u64 => {
            fail(format!("the weight is {tensor:?}, but takes {length} bytes in `{location}`"))
        }
        Some((offset, _)) => Ok(initializer::external(name, tensor, location, offset)),
    }
}

fn value_info(name: String, ty: &Type) -> ValueInfoProto {
    let tensor = |elem_type| TensorTypeProto { elem_type, shape: ty.shape.as_deref().map(shape) };
    let tensor_type = ty.dtype.map(dtype::to_number).map(tensor);
    let r#type = tensor_type.map(|t| TypeProto { tensor_type: Some(t) });
    ValueInfoProto { name, r#type, ..ValueInfoProto::default() }
}

fn shape(dims: &[Dim]) -> TensorShapeProto {
    let value = |dim: &Dim| match dim {
        Dim::Known(n) => Some(DimValue::Value(*n as i64)),
        Dim::Sym(symbol) => Some(DimValue::Param(symbol.name().to_owned())),
        Dim::Unknown => None,
    };
    TensorShapeProto { dim: dims.iter().map(|d| DimensionProto { value: value(d) }).collect() }
}
