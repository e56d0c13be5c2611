//! Hugging Face checkpoints: `config.json` and safetensors in, an ordinary softmax graph out. A [GGUF](gguf) file is
//! turned into the same two.
//!
//! Whatever the family, the graph has one form, so that one pattern finds its attention:
//! - inputs `input_ids` and `position_ids` i64 `[batch, sequence]`, `attention_mask` i64
//!   `[batch, past + sequence]`, and per layer `past_key_values.{i}.key` and `.value`
//!   `[batch, kv_heads, past, head_dim]`;
//! - outputs `logits` `[batch, sequence, vocab]`, and per layer `present.{i}.key` and `.value`
//!   `[batch, kv_heads, past + sequence, head_dim]`.
//!
//! Weights are called as in the checkpoint and are views of its files.

mod build;
mod config;
pub mod digests;
mod error;
mod extra;
mod families;
mod generation;
pub(crate) mod gguf;
mod keys;
pub(crate) mod own_attention;
mod refusals;
mod rope_config;
mod snapshot;
#[cfg(test)]
mod tests;
mod texts;
mod weights;

pub use config::Config;
pub use error::CheckpointError;
pub(crate) use error::all_listed;
pub(crate) use generation::take_tokens;
pub use gguf::{GgufError, is_gguf};
pub use texts::{Text, Texts};
pub use weights::{INDEX, read_header};
pub(crate) use weights::{SINGLE, shard_names};
pub(crate) use weights::{Stored, Weights};

use crate::bundle::link::MappedFile;
use build::{Builder, Finished};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::{SharedBytes, Tensor};
use families::Family;
use own_attention::OwnAttention;
use std::path::{Path, PathBuf};

/// An opened checkpoint: the config is read and understood, the weight files are opened.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    weights: Weights,
    family: &'static Family,
    meta: ModelMeta,
    dtype: DType,
    texts: Texts,
    /// What is to be told of how it was read.
    notes: Vec<String>,
}

/// A model as a graph.
#[derive(Debug, Clone)]
pub struct SourceModel {
    pub graph: Graph,
    pub meta: ModelMeta,
    /// The element type of weights, cache and logits.
    pub dtype: DType,
    /// What the checkpoint holds that the model does not use.
    pub warnings: Vec<String>,
    /// What is to be told of how it was built.
    pub notes: Vec<String>,
    /// The attention that the checkpoint brings along, where it is not softmax.
    pub own_attention: Option<OwnAttention>,
}

/// What a model is, apart from its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMeta {
    /// The file under `families/` that read it.
    pub family: &'static str,
    /// As in `config.json`.
    pub model_type: String,
    pub layers: u64,
    pub heads: u64,
    /// Heads of keys and values; fewer than `heads` under grouped-query attention.
    pub kv_heads: u64,
    pub head_dim: u64,
    pub hidden: u64,
    pub vocab: u64,
    /// The longest context trained on, where the config tells.
    pub max_positions: Option<u64>,
    /// Positions there are, where the model looks them up in a learned table.
    pub learned_positions: Option<u64>,
    pub bos: Option<u64>,
    /// Every token that ends a text.
    pub eos: Vec<u64>,
    pub pad: Option<u64>,
    /// How many attention sites the graph has; finding fewer is an error of the pattern.
    pub expected_sites: usize,
}

/// Opens a directory with `config.json` and safetensors, a snapshot of the Hugging Face cache, or a
/// cache folder `models--org--name`; or a GGUF file. No weight is read.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    if is_gguf(path) {
        return Checkpoint::of_gguf(gguf::open(path)?);
    }
    let dir = snapshot::resolve(path)?;
    let described = describe(&dir)?;
    let weights = Weights::open(&dir)?;
    Ok(Checkpoint::of(described, weights, Texts::new(dir)))
}

/// The same of the bytes of a GGUF file; `path` is what errors name.
pub fn of_gguf_bytes(bytes: &SharedBytes, path: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::of_gguf(gguf::read(bytes, path)?)
}

/// What a checkpoint says of itself beside its weights.
struct Described {
    config: Config,
    family: &'static Family,
    meta: ModelMeta,
    dtype: Option<DType>,
}

fn describe(dir: &Path) -> Result<Described, CheckpointError> {
    describe_config(Config::read(&dir.join("config.json"))?, dir)
}

/// What a config says, and what lies in `dir` of the tokens.
fn describe_config(config: Config, dir: &Path) -> Result<Described, CheckpointError> {
    let family = families::find(&config)?;
    let mut meta = (family.meta)(&config)?;
    take_tokens(dir, &mut meta)?;
    let dtype = config.dtype()?;
    Ok(Described { config, family, meta, dtype })
}

/// Whether [`open`] would take a path, as far as that shows without its weights.
pub(crate) fn look(path: &Path) -> Result<(), CheckpointError> {
    if is_gguf(path) {
        return open(path).map(drop);
    }
    let (dir, _) = files(path)?;
    describe(&dir).map(drop)
}

/// The directory that [`open`] reads, and the weight files there, with their index.
pub(crate) fn files(path: &Path) -> Result<(PathBuf, Vec<PathBuf>), CheckpointError> {
    if is_gguf(path) {
        return Ok((gguf::dir(path), vec![path.to_owned()]));
    }
    let dir = snapshot::resolve(path)?;
    let files = weights::files(&dir)?;
    Ok((dir, files))
}

/// The names and shapes of the weights that a `config.json` asks for, whether or not they are anywhere.
pub fn weights_of(config: &Path, dtype: DType) -> Result<Vec<(String, Vec<u64>)>, CheckpointError> {
    weights_of_config(Config::read(config)?, dtype)
}

/// The same of the text of a `config.json`; `path` is what errors name.
pub fn weights_of_text(
    text: &[u8],
    path: &Path,
    dtype: DType,
) -> Result<Vec<(String, Vec<u64>)>, CheckpointError> {
    weights_of_config(Config::parse(text, path)?, dtype)
}

fn weights_of_config(config: Config, dtype: DType) -> Result<Vec<(String, Vec<u64>)>, CheckpointError> {
    let family = families::find(&config)?;
    let meta = (family.meta)(&config)?;
    let weights = Weights::blank(config.path(), dtype)?;
    let described = Described { config, family, meta, dtype: Some(dtype) };
    let checkpoint = Checkpoint::of(described, weights, Texts::default());
    let graph = checkpoint.build(None)?.graph;
    let weights = graph.consts().filter(|(id, ..)| graph.value(*id).is_weight);
    Ok(weights.map(|(_, name, tensor)| (name.to_owned(), tensor.dims().to_vec())).collect())
}

impl Checkpoint {
    fn of(described: Described, weights: Weights, texts: Texts) -> Self {
        let Described { config, family, meta, dtype } = described;
        let dtype = dtype.or_else(|| weights.main_dtype()).unwrap_or(DType::F32);
        Self { config, weights, family, meta, dtype, texts, notes: Vec::new() }
    }

    fn of_gguf(opened: gguf::Opened) -> Result<Self, CheckpointError> {
        let gguf::Opened { config, weights, texts, notes } = opened;
        let described = describe_config(config, texts.dir())?;
        Ok(Self { notes, ..Self::of(described, weights, texts) })
    }

    /// The directory that was read: the snapshot, where a cache folder was given, or that of a GGUF file.
    pub fn dir(&self) -> &Path {
        &self.weights.dir
    }

    /// Its config, its tokenizer and what else is copied.
    pub fn texts(&self) -> &Texts {
        &self.texts
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it is a GGUF file.
    pub(crate) fn is_gguf(&self) -> bool {
        self.weights.gguf.is_some()
    }

    /// The weight files, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.weights.files
    }

    /// The same files, opened, where weights may stay in them.
    pub(crate) fn maps(&self) -> &[MappedFile] {
        &self.weights.maps
    }

    pub fn meta(&self) -> &ModelMeta {
        &self.meta
    }

    /// The element type of the checkpoint: what the config says, else what most bytes are stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tensors in the files, in the order of their names, as stored.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.weights.tensors()
    }

    /// Builds the softmax graph with weights in `dtype` (f32, f16 or bf16), by default the
    /// checkpoint's. Weights of another type are converted when they are read, not here.
    pub fn build(&self, dtype: Option<DType>) -> Result<SourceModel, CheckpointError> {
        let dtype = dtype.unwrap_or(self.dtype);
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(self.config.unsupported("element type", dtype.name(), "f32, f16, bf16"));
        }
        let mut graph = Graph::new(&self.meta.model_type);
        let mut builder = Builder::new(&graph, self, dtype);
        (self.family.build)(&mut builder)?;
        let Finished { change, told, notes: of_graph, own_attention } = builder.finish()?;
        graph.apply(change)?;
        let of_keys = keys::check(&self.config, self.family.name)?;
        let warnings = told.into_iter().chain(of_keys).collect();
        let notes = self.notes.iter().cloned().chain(of_graph).collect();
        Ok(SourceModel { graph, meta: self.meta.clone(), dtype, warnings, notes, own_attention })
    }
}
