//! An ONNX model read as a graph in the normal form of the IR.
//!
//! Nothing large is copied: initialisers are views of the model file as it was read, or of its external data.

use super::external::ExternalFiles;
use super::functions::Functions;
use super::notes::Notes;
use super::proto::ModelProto;
use super::reader::{Reader, opset};
use super::wire::decoded_size;
use crate::report::message::one_line;
use bytes::Bytes;
use dijiang_format::regular;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::PatchError;
use dijiang_passes::ir::tensor::ReadError;
use prost::Message;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The opsets that can be read.
pub const OPSETS: RangeInclusive<i64> = 11..=27;

/// A model, and what is worth knowing of how it was read: a line for each.
#[derive(Debug)]
pub struct Imported {
    pub graph: Graph,
    pub notes: Vec<String>,
    /// The files of external data that it is made of, besides its own.
    pub files: Vec<PathBuf>,
}

/// Why a file could not be read, with the file. One line, whatever the file holds.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {}", one_line(&problem.to_string()))]
pub struct ImportError {
    pub file: String,
    pub problem: Box<ImportProblem>,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum ImportProblem {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it is not an ONNX model, or is cut short ({})", decode_reason(&.0.to_string()))]
    Decode(#[from] prost::DecodeError),
    #[error(
        "its messages take {megabytes} MB in memory, expected at most {MAX_GROWTH} times the {file} bytes of the file (hint: it is made of empty messages)"
    )]
    TooLarge { megabytes: usize, file: usize },
    #[error("it holds no graph (hint: is this an ONNX model?)")]
    NoGraph,
    #[error("opset {found} is not supported, expected {first} to {last} (hint: convert it with onnx.version_converter)", first = OPSETS.start(), last = OPSETS.end())]
    Opset { found: i64 },
    #[error(
        "it says no opset of the standard operators (hint: `opset_import` is missing or has no entry for ai.onnx)"
    )]
    NoOpset,
    #[error(
        "sparse initialiser `{name}` is not supported, expected a dense one (hint: make it dense with onnx.numpy_helper)"
    )]
    Sparse { name: String },
    #[error("function `{function}`: {reason}")]
    Function { function: String, reason: String },
    #[error("input `{name}`: {reason}")]
    Input { name: String, reason: String },
    #[error("output `{name}`: {reason}")]
    Output { name: String, reason: String },
    #[error("initialiser `{name}`: {reason}")]
    Initializer { name: String, reason: String },
    #[error("node `{node}` ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Graph(#[from] PatchError),
}

/// The decoder names every message around the mistake: what is deep is named by its two ends.
fn decode_reason(error: &str) -> String {
    let error = error.trim_start_matches("failed to decode Protobuf message: ");
    let parts: Vec<&str> = error.split(": ").collect();
    match parts.as_slice() {
        [first, .., last] if parts.len() > MAX_PLACES => format!("{first} and deeper: {last}"),
        _ => error.to_owned(),
    }
}

const MAX_PLACES: usize = 6;

/// Reads a model file and logs its notes. Its external data is looked for beside it, and nowhere else.
pub fn import(path: &Path) -> Result<Graph, ImportError> {
    let Imported { graph, notes, .. } = open(path)?;
    for note in notes {
        tracing::warn!("{}: {note}", path.display());
    }
    Ok(graph)
}

/// Reads a model file.
pub fn open(path: &Path) -> Result<Imported, ImportError> {
    let bytes = regular::read(path).map_err(|e| located(path, e.into()))?;
    import_bytes(Bytes::from(bytes), path)
}

/// Reads a model from memory; `path` is where its external data lies beside, and what errors name.
pub fn import_bytes(bytes: Bytes, path: &Path) -> Result<Imported, ImportError> {
    read(bytes, path).map_err(|problem| located(path, problem))
}

fn located(path: &Path, problem: ImportProblem) -> ImportError {
    ImportError { file: path.display().to_string(), problem: Box::new(problem) }
}

/// Memory that the messages of any model may take.
const FREE_SIZE: usize = 64 << 20;

/// Real models take at most a few times the bytes of their messages.
const MAX_GROWTH: usize = 8;

fn check_size(bytes: &[u8]) -> Result<(), ImportProblem> {
    let size = decoded_size(bytes);
    if size <= FREE_SIZE || size / MAX_GROWTH <= bytes.len() {
        return Ok(());
    }
    Err(ImportProblem::TooLarge { megabytes: size >> 20, file: bytes.len() })
}

/// The messages of a model file.
pub(super) fn decode_file(path: &Path) -> Result<ModelProto, ImportError> {
    let bytes = regular::read(path).map_err(|e| located(path, e.into()))?;
    decode(Bytes::from(bytes)).map_err(|problem| located(path, problem))
}

fn decode(bytes: Bytes) -> Result<ModelProto, ImportProblem> {
    check_size(&bytes)?;
    Ok(ModelProto::decode(bytes)?)
}

fn read(bytes: Bytes, path: &Path) -> Result<Imported, ImportProblem> {
    let model = decode(bytes)?;
    let Some(proto) = &model.graph else { return Err(ImportProblem::NoGraph) };
    let opset = opset(&model.opset_import)?.ok_or(ImportProblem::NoOpset)?;
    let functions = Functions::of(&model)
        .map_err(|function| ImportProblem::Function { function, reason: "it is there twice".to_owned() })?;
    let mut graph = Graph::new(&proto.name);
    let reader = Reader::new(&graph, proto, opset, functions, ExternalFiles::beside(path));
    let (change, notes, files): (_, Notes, _) = reader.read(proto)?;
    graph.apply(change)?;
    Ok(Imported { graph, notes: notes.finish(), files })
}
