//! An ONNX model read as a graph in the normal form of the IR.
//!
//! Nothing large is copied: initialisers are views of the mapped model file or of its external data.

use super::proto::{
    AttributeProto, DimValue, DimensionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use super::{attribute, dtype, forms, forms::Form, initializer};
use bytes::Bytes;
use dijiang_passes::ir::dtype::DType;
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::op::{Attr, Op};
use dijiang_passes::ir::patch::{Change, Patch, PatchError};
use dijiang_passes::ir::shape::{Dim, Shape};
use dijiang_passes::ir::tensor::Tensor;
use initializer::ExternalFiles;
use prost::Message;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

/// The opsets that can be read.
pub const OPSETS: RangeInclusive<i64> = 13..=27;

/// A float initialiser in the model file with more elements than this is a weight.
const MAX_SMALL: usize = 64;

/// Why a file could not be read, with the file.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct ImportError {
    pub file: String,
    pub problem: Box<ImportProblem>,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum ImportProblem {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it is not an ONNX model, or is cut short ({0})")]
    Decode(#[from] prost::DecodeError),
    #[error("it holds no graph (hint: is this an ONNX model?)")]
    NoGraph,
    #[error("opset {found} is not supported, expected {first} to {last} (hint: convert it with onnx.version_converter)", first = OPSETS.start(), last = OPSETS.end())]
    Opset { found: i64 },
    #[error("it holds {0}, which are not supported")]
    Unsupported(&'static str),
    #[error("input `{name}`: {reason}")]
    Input { name: String, reason: String },
    #[error("output `{name}`: {reason}")]
    Output { name: String, reason: String },
    #[error("initialiser `{name}`: {reason}")]
    Initializer { name: String, reason: String },
    #[error("node `{node}` ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error(transparent)]
    Graph(#[from] PatchError),
}

/// Reads a model file. Its external data is looked for beside it, and nowhere else.
pub fn import(path: &Path) -> Result<Graph, ImportError> {
    let bytes = initializer::map(path).map_err(|e| located(path, e.into()))?;
    import_bytes(Bytes::from_owner(bytes), path)
}

/// Reads a model from memory; `path` is where its external data lies beside, and what errors name.
pub fn import_bytes(bytes: Bytes, path: &Path) -> Result<Graph, ImportError> {
    read(bytes, path).map_err(|problem| located(path, problem))
}

fn located(path: &Path, problem: ImportProblem) -> ImportError {
    ImportError { file: path.display().to_string(), problem: Box::new(problem) }
}

fn read(bytes: Bytes, path: &Path) -> Result<Graph, ImportProblem> {
    let model = ModelProto::decode(bytes)?;
    let Some(proto) = &model.graph else { return Err(ImportProblem::NoGraph) };
    if !model.functions.is_empty() {
        return Err(ImportProblem::Unsupported("functions"));
    }
    if !proto.sparse_initializer.is_empty() {
        return Err(ImportProblem::Unsupported("sparse initialisers"));
    }
    let mut graph = Graph::new(&proto.name);
    let change = change(&graph, proto, opset(&model)?, ExternalFiles::beside(path))?;
    graph.apply(change)?;
    Ok(graph)
}

fn change(
    graph: &Graph,
    proto: &GraphProto,
    opset: i64,
    files: ExternalFiles,
) -> Result<Change, ImportProblem> {
    let patch = Patch::new(graph, "import");
    let mut reader = Reader { patch, opset, files, values: BTreeMap::new(), unnamed: 0 };
    reader.initializers(proto)?;
    reader.inputs(proto)?;
    for node in &proto.node {
        reader.node(node)?;
    }
    reader.outputs(proto)?;
    Ok(reader.patch.finish())
}

fn opset(model: &ModelProto) -> Result<i64, ImportProblem> {
    let ours = model.opset_import.iter().find(|o| domain(&o.domain).is_empty());
    let found = ours.map_or(0, |o| o.version);
    if OPSETS.contains(&found) { Ok(found) } else { Err(ImportProblem::Opset { found }) }
}

/// The domain of the standard operators has two spellings.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

struct Reader<'g> {
    patch: Patch<'g>,
    opset: i64,
    files: ExternalFiles,
    /// Values by name, as far as the file has defined them.
    values: BTreeMap<String, ValueId>,
    unnamed: usize,
}

impl Reader<'_> {
    fn initializers(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        for init in &proto.initializer {
            let name = &init.name;
            let fail = |reason| ImportProblem::Initializer { name: name.clone(), reason };
            let tensor = self.files.read(init).map_err(fail)?;
            let id = if is_weight(init, &tensor) {
                self.patch.weight(name, tensor)
            } else {
                self.patch.named_constant(name, tensor)
            };
            self.values.insert(name.clone(), id);
        }
        Ok(())
    }

    /// Before IR version 4 initialisers are listed as inputs too; they are constants all the same.
    fn inputs(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        for input in &proto.input {
            if self.values.contains_key(&input.name) {
                continue;
            }
            let fail = |reason| ImportProblem::Input { name: input.name.clone(), reason };
            let (dtype, shape) = input_type(input).map_err(fail)?;
            let id = self.patch.input(&input.name, dtype, shape);
            self.values.insert(input.name.clone(), id);
        }
        Ok(())
    }

    fn outputs(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        for output in &proto.output {
            let Some(id) = self.values.get(&output.name) else {
                let reason = "nothing computes it".to_owned();
                return Err(ImportProblem::Output { name: output.name.clone(), reason });
            };
            self.patch.output(&output.name, *id);
        }
        Ok(())
    }

    fn node(&mut self, proto: &NodeProto) -> Result<(), ImportProblem> {
        let name = self.node_name(proto);
        let fail = |reason| {
            let op = Op::in_domain(domain(&proto.domain), &proto.op_type).qualified_name();
            ImportProblem::Node { node: name.clone(), op, reason }
        };
        if proto.op_type == "Constant" && domain(&proto.domain).is_empty() {
            return self.constant(proto).map_err(fail);
        }
        let mut inputs = Vec::new();
        for input in &proto.input {
            inputs.push(self.value(input).map_err(fail)?);
        }
        let op = self.op(proto, &mut inputs).map_err(fail)?;
        while inputs.last().is_some_and(Option::is_none) {
            inputs.pop();
        }
        self.add(&name, op, &inputs, &proto.output);
        Ok(())
    }

    fn node_name(&mut self, proto: &NodeProto) -> String {
        if !proto.name.is_empty() {
            return proto.name.clone();
        }
        self.unnamed += 1;
        format!("{}_{}", proto.op_type, self.unnamed)
    }

    fn value(&self, name: &str) -> Result<Option<ValueId>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        let id = self.values.get(name).copied();
        id.map(Some).ok_or_else(|| format!("its input `{name}` is not defined before it"))
    }

    fn add(&mut self, name: &str, op: Op, inputs: &[Option<ValueId>], outputs: &[String]) {
        // Outputs that are left out still need names, which the file cannot contain.
        let label = |(slot, output): (usize, &String)| match output.as_str() {
            "" => format!("{name}:unused{slot}"),
            output => output.to_owned(),
        };
        let labels: Vec<String> = outputs.iter().enumerate().map(label).collect();
        let ids = self.patch.named_node(name, op, inputs, labels.clone());
        self.values.extend(labels.into_iter().zip(ids));
    }

    /// A `Constant` node, in any of its forms that hold numbers.
    fn constant(&mut self, proto: &NodeProto) -> Result<(), String> {
        let ([output], [attr]) = (proto.output.as_slice(), proto.attribute.as_slice()) else {
            return Err("expected one output and one attribute".to_owned());
        };
        let read = attribute::from_proto(attr).map_err(|e| format!("attribute `{}`: {e}", attr.name))?;
        let tensor = match (attr.name.as_str(), read) {
            ("value", Attr::Tensor(tensor)) => tensor,
            ("value_int", Attr::Int(x)) => Tensor::from_i64(&[], &[x]),
            ("value_ints", Attr::Ints(x)) => Tensor::from_i64(&[x.len() as u64], &x),
            ("value_float", Attr::Float(x)) => Tensor::from_f32(&[], &[x]),
            ("value_floats", Attr::Floats(x)) => Tensor::from_f32(&[x.len() as u64], &x),
            (name, _) => return Err(format!("attribute `{name}` is not supported")),
        };
        let id = self.patch.named_constant(output, tensor);
        self.values.insert(output.clone(), id);
        Ok(())
    }

    /// The operator in normal form. Takes away the inputs that become attributes.
    fn op(&self, proto: &NodeProto, inputs: &mut [Option<ValueId>]) -> Result<Op, String> {
        let mut op = Op::in_domain(domain(&proto.domain), &proto.op_type);
        for attr in &proto.attribute {
            read_attribute(attr, proto, &mut op).map_err(|e| format!("attribute `{}`: {e}", attr.name))?;
        }
        for (name, form) in forms::of(domain(&proto.domain), &proto.op_type) {
            if let Form::InputSince { slot, since } = form
                && self.opset >= since
            {
                self.input_to_attribute(name, slot, &mut op, inputs)?;
            }
        }
        self.implicit(&mut op, inputs)?;
        Ok(op)
    }

    fn input_to_attribute(
        &self,
        name: &str,
        slot: usize,
        op: &mut Op,
        inputs: &mut [Option<ValueId>],
    ) -> Result<(), String> {
        let Some(input) = inputs.get_mut(slot).and_then(Option::take) else { return Ok(()) };
        let value = self.patch.value(input);
        let ints = value.as_const().and_then(Tensor::to_i64);
        let ints =
            ints.ok_or_else(|| format!("`{name}` is computed (`{}`), expected constants", value.name))?;
        // No axes mean all of them, unless `noop_with_empty_axes` has said otherwise.
        if !ints.is_empty() || !forms::is_reduction(op.name()) {
            op.attrs.insert(name.to_owned(), Attr::Ints(ints));
        }
        Ok(())
    }

    /// What ONNX leaves to be derived from the rank, and the IR says.
    fn implicit(&self, op: &mut Op, inputs: &[Option<ValueId>]) -> Result<(), String> {
        let shape = inputs.first().copied().flatten().and_then(|v| self.patch.ty(v).shape.clone());
        let missing = |name: &str| !op.attrs.contains_key(name);
        let (name, ints): (_, Vec<i64>) = match op.name() {
            "Transpose" if op.is("Transpose") && missing("perm") => {
                let shape = shape.ok_or("without `perm` the rank of its input must be known")?;
                ("perm", (0..shape.len() as i64).rev().collect())
            }
            "Squeeze" if op.is("Squeeze") && missing("axes") => {
                let dims: Option<Vec<u64>> = shape.and_then(|s| s.iter().map(Dim::known).collect());
                let dims = dims.ok_or("without `axes` the dims of its input must be known")?;
                ("axes", (0..).zip(&dims).filter(|(_, d)| **d == 1).map(|(axis, _)| axis).collect())
            }
            _ => return Ok(()),
        };
        op.attrs.insert(name.to_owned(), Attr::Ints(ints));
        Ok(())
    }
}

/// One attribute in normal form. Whether the operator knows it is the operator table's to say.
fn read_attribute(attr: &AttributeProto, proto: &NodeProto, op: &mut Op) -> Result<(), String> {
    let value = attribute::from_proto(attr)?;
    let name = attr.name.as_str();
    let value = match (forms::find(op.domain(), op.name(), name), value) {
        (Some(Form::ElementType), Attr::Int(number)) => {
            let number = i32::try_from(number).unwrap_or_default();
            Attr::Str(dtype::from_number(number)?.name().to_owned())
        }
        (Some(Form::OutputCountSince(_)), Attr::Int(n)) => {
            if n != proto.output.len() as i64 {
                return Err(format!("it is {n}, but the node has {} outputs", proto.output.len()));
            }
            return Ok(());
        }
        (None, Attr::Int(noop)) if name == "noop_with_empty_axes" && forms::is_reduction(op.name()) => {
            if noop != 0 {
                op.attrs.insert("axes".to_owned(), Attr::Ints(Vec::new()));
            }
            return Ok(());
        }
        (_, value) => value,
    };
    op.attrs.insert(name.to_owned(), value);
    Ok(())
}

fn is_weight(proto: &TensorProto, tensor: &Tensor) -> bool {
    proto.data_location == super::proto::EXTERNAL || (tensor.dtype().is_float() && tensor.len() > MAX_SMALL)
}

fn input_type(info: &ValueInfoProto) -> Result<(DType, Shape), String> {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let tensor = tensor.ok_or("it is not a tensor")?;
    let dtype = dtype::from_number(tensor.elem_type)?;
    let shape = tensor.shape.as_ref().ok_or("its rank is missing")?;
    let dims: Result<Shape, String> = shape.dim.iter().map(dim).collect();
    Ok((dtype, dims?))
}

fn dim(proto: &DimensionProto) -> Result<Dim, String> {
    match &proto.value {
        Some(DimValue::Param(name)) if !name.is_empty() => Ok(Dim::sym(name)),
        // Some exporters write -1 where a dim is not known.
        None | Some(DimValue::Param(_) | DimValue::Value(-1)) => Ok(Dim::Unknown),
        Some(DimValue::Value(n)) => {
            u64::try_from(*n).map(Dim::Known).map_err(|_| format!("dim {n} is negative"))
        }
    }
}
