//! What is converted: a checkpoint or an ONNX graph, in one form.

use crate::bundle::link::MappedFile;
use crate::checkpoint::own_attention::OwnAttention;
use crate::checkpoint::{self, CheckpointError, Config, ModelMeta, Texts};
use crate::convert::inputs::{self, Input, InputError};
use crate::convert::manifest::copied;
use crate::hub::{self, HubModel};
use crate::onnx::import::{self, ImportError};
use crate::verify::reference;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::SourceKind;
use dijiang_format::place::NOTHING;
use dijiang_passes::attention::rewrite::inspect;
use dijiang_passes::attention::tables::most_tokens;
use dijiang_passes::canon::{CanonError, canonicalize};
use dijiang_passes::feature_map::added::is_added;
use dijiang_passes::ir::graph::{Graph, Use, ValueId};
use dijiang_passes::ir::shape::Dim;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A model that was read.
#[derive(Debug)]
pub struct Source {
    pub kind: SourceKind,
    pub graph: Graph,
    /// The graph before any clean-up.
    pub as_read: Graph,
    pub meta: ModelMeta,
    /// The element type of the graph's weights and activations.
    pub dtype: DType,
    /// The element type of the weights as they were stored.
    pub stored: DType,
    /// The files it came from, for their digests.
    pub files: Vec<Input>,
    /// The weight files that a bundle can link to: those of a checkpoint.
    pub maps: Vec<MappedFile>,
    /// The tokenizer and other texts.
    pub texts: Texts,
    /// What is worth knowing of how it was read.
    pub notes: Vec<String>,
    /// What is likely wrong with it.
    pub warnings: Vec<String>,
    /// How many tensors lie beside the model's that a conversion added, as in the weight file of a bundle. They are
    /// not read.
    pub added: usize,
    /// The attention that a checkpoint brings along, where it is not softmax: the graphs have softmax in its place.
    pub own_attention: Option<OwnAttention>,
    /// Its name on the Hugging Face hub and its commit, where it lies in the cache of that.
    pub hub: Option<String>,
}

/// A source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{}: {reason}", path.display())]
    Onnx { path: PathBuf, reason: String },
    #[error("{}: {NOTHING} (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)", path.display())]
    Nothing { path: PathBuf },
    #[error("{}: {NOTHING} (hint: `dijiang convert {} -o BUNDLE` downloads a model of the hub)", path.display(), path.display())]
    OnHub { path: PathBuf },
    #[error("{}: this file is not an ONNX model (hint: {})", path.display(), file_hint(path))]
    File { path: PathBuf },
}

/// Opens a checkpoint directory, a GGUF file, an `.onnx` file, or a directory that holds one. `dtype` asks for
/// another element type than the source's, which an ONNX graph does not take.
pub fn open(path: &Path, dtype: Option<DType>) -> Result<Source, SourceError> {
    match graph_of(path)? {
        Some(file) => open_onnx(&file, dtype),
        None => open_checkpoint(path, dtype),
    }
}

/// What is wrong with a source, as far as that shows without its weights or its graph.
pub(super) fn look(path: &Path) -> Result<(), SourceError> {
    match graph_of(path)? {
        Some(_) => Ok(()),
        None => Ok(checkpoint::look(path)?),
    }
}

/// The files that a conversion reads of a source: what it is made of, and what is taken from beside that. `data` names
/// the data of an ONNX file.
pub(crate) fn reads(
    path: &Path,
    data: impl Fn(&Path) -> BTreeSet<String>,
) -> Result<Vec<PathBuf>, SourceError> {
    let (dir, mut files) = match graph_of(path)? {
        Some(file) => {
            let dir = file.parent().unwrap_or(Path::new("")).to_owned();
            let data: Vec<PathBuf> = data(&file).iter().map(|name| dir.join(name)).collect();
            (dir, std::iter::once(file).chain(data).collect())
        }
        None => checkpoint::files(path)?,
    };
    // A GGUF file is its own config.
    let own_config = checkpoint::is_gguf(path).then(|| dir.join(files::CONFIG));
    files.extend(texts(&dir).filter(|path| Some(path) != own_config.as_ref()));
    files.extend(Some(dir.join(reference::FILE)).filter(|path| path.exists()));
    Ok(files)
}

/// What to name in place of a file that is no model.
fn file_hint(path: &Path) -> &'static str {
    let is_pickle =
        path.extension().is_some_and(|e| ["bin", "pt", "pth", "ckpt"].iter().any(|known| e == *known));
    match is_pickle {
        true => {
            "weights of PyTorch are not read; load them with transformers, and `save_pretrained` writes a directory to convert"
        }
        false => "a checkpoint is named by its directory",
    }
}

/// What lies beside a model and is copied.
fn texts(dir: &Path) -> impl Iterator<Item = PathBuf> {
    copied().map(|name| dir.join(name)).filter(|path| path.exists())
}

/// The ONNX file that a path of something means, or none where it means a checkpoint or a GGUF file.
fn graph_of(path: &Path) -> Result<Option<PathBuf>, SourceError> {
    let is_onnx = path.extension().is_some_and(|e| e == "onnx");
    if !path.exists() {
        let path = path.to_owned();
        return Err(if HubModel::named_by(&path).is_some() {
            SourceError::OnHub { path }
        } else {
            SourceError::Nothing { path }
        });
    }
    if checkpoint::is_gguf(path) {
        return Ok(None);
    }
    if path.is_file() && !is_onnx {
        return Err(SourceError::File { path: path.to_owned() });
    }
    onnx_file(path)
}

/// The ONNX file that a path means, or none where it means a checkpoint.
fn onnx_file(path: &Path) -> Result<Option<PathBuf>, SourceError> {
    if path.extension().is_some_and(|e| e == "onnx") {
        return Ok(Some(path.to_owned()));
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(None) };
    let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    found.sort();
    if found.iter().any(|f| f.extension().is_some_and(|e| e == "safetensors")) {
        return Ok(None);
    }
    found.retain(|f| f.extension().is_some_and(|e| e == "onnx"));
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        several => {
            let reason = format!("it holds {} ONNX files (hint: name one of them)", several.len());
            Err(SourceError::Onnx { path: path.to_owned(), reason })
        }
    }
}

fn open_checkpoint(path: &Path, dtype: Option<DType>) -> Result<Source, SourceError> {
    let checkpoint = checkpoint::open(path)?;
    let built = checkpoint.build(dtype)?;
    Ok(Source {
        kind: SourceKind::Checkpoint,
        as_read: built.graph.clone(),
        graph: built.graph,
        meta: built.meta,
        dtype: built.dtype,
        stored: checkpoint.dtype(),
        files: inputs::of_checkpoint(&checkpoint, copied())?,
        maps: checkpoint.maps().to_vec(),
        texts: checkpoint.texts().clone(),
        notes: built.notes.into_iter().chain(built.own_attention.iter().map(OwnAttention::note)).collect(),
        warnings: built.warnings,
        added: checkpoint.tensors().filter(|(name, _)| is_added(name)).count(),
        own_attention: built.own_attention,
        hub: hub::of_snapshot(path),
    })
}

fn open_onnx(file: &Path, dtype: Option<DType>) -> Result<Source, SourceError> {
    let fail = |reason: String| SourceError::Onnx { path: file.to_owned(), reason };
    let import::Imported { mut graph, notes, files } = import::open(file)?;
    let as_read = graph.clone();
    canonicalize(&mut graph)?;
    let own = main_dtype(&graph);
    if let Some(dtype) = dtype.filter(|d| *d != own) {
        return Err(fail(format!(
            "the graph computes in {own}, and cannot be turned into {dtype} (hint: leave --dtype out)"
        )));
    }
    let dir = file.parent().unwrap_or(Path::new("")).to_owned();
    let (meta, warnings) = describe(&graph, &dir)?;
    let files = std::iter::once(file.to_owned()).chain(files).chain(texts(&dir));
    Ok(Source {
        kind: SourceKind::Onnx,
        graph,
        as_read,
        meta,
        dtype: own,
        stored: own,
        files: files.map(|path| Input::at(&path)).collect::<Result<_, _>>()?,
        maps: Vec::new(),
        texts: Texts::new(dir),
        notes,
        warnings,
        added: 0,
        own_attention: None,
        hub: hub::of_snapshot(file),
    })
}

/// The element type that most bytes of weights are stored in.
fn main_dtype(graph: &Graph) -> DType {
    let bytes = |dtype: DType| -> usize {
        graph.consts().filter(|(_, _, t)| t.dtype() == dtype).map(|(_, _, t)| t.byte_len()).sum()
    };
    [DType::F32, DType::F16, DType::BF16].into_iter().max_by_key(|d| bytes(*d)).unwrap_or(DType::F32)
}

/// What a graph tells of its model, and a config.json beside it; and what is wrong with that.
fn describe(graph: &Graph, dir: &Path) -> Result<(ModelMeta, Vec<String>), SourceError> {
    let report = inspect(graph);
    let attentions = report.sites.len() + report.missed().count();
    let first = report.sites.first();
    let (config, mut warnings) = config_beside(dir);
    let size = |key: &str| config.as_ref().and_then(|c| c.opt_size(key).ok().flatten());
    let max_positions = size("max_position_embeddings").or_else(|| size("n_positions"));
    let mut tokens = |key: &str| match config.as_ref().map(|c| c.tokens(key)) {
        Some(Ok(tokens)) => tokens,
        Some(Err(bad)) => {
            warnings.push(bad.to_string());
            Vec::new()
        }
        None => Vec::new(),
    };
    let mut meta = ModelMeta {
        family: "onnx",
        model_type: config.as_ref().and_then(|c| c.str("model_type").ok()).unwrap_or("onnx").to_owned(),
        layers: attentions as u64,
        heads: first.map_or(0, |s| s.heads),
        kv_heads: first.map_or(0, |s| s.kv_heads),
        head_dim: first.map_or(0, |s| s.head_dim),
        hidden: first.map_or(0, |s| s.heads * s.head_dim),
        vocab: vocabulary(graph).or_else(|| size("vocab_size")).unwrap_or(0),
        max_positions,
        // Without rotation, positions come from a table of that many rows.
        learned_positions: max_positions
            .filter(|_| first.is_some_and(|s| !s.rotary))
            .into_iter()
            .chain(most_tokens(graph))
            .min(),
        bos: tokens("bos_token_id").first().copied(),
        eos: tokens("eos_token_id"),
        pad: tokens("pad_token_id").first().copied(),
        expected_sites: attentions,
    };
    checkpoint::take_tokens(dir, &mut meta)?;
    Ok((meta, warnings))
}

/// The config of a graph's folder: one that cannot be read may be that of another program.
fn config_beside(dir: &Path) -> (Option<Config>, Vec<String>) {
    let path = dir.join("config.json");
    if !path.exists() {
        return (None, Vec::new());
    }
    match Config::read(&path) {
        Ok(config) => (Some(config), Vec::new()),
        Err(bad) => (None, vec![bad.to_string()]),
    }
}

/// How many token ids there are: the rows of the table that `input_ids` picks from, or else the width of
/// the logits. An encoder's output may be as wide as anything.
fn vocabulary(graph: &Graph) -> Option<u64> {
    let known =
        |v: ValueId, axis: fn(&[Dim]) -> Option<&Dim>| axis(graph.value(v).ty.shape.as_deref()?)?.known();
    let table = graph.input("input_ids").and_then(|ids| table_of(graph, ids));
    let rows = table.and_then(|table| known(table, <[Dim]>::first));
    rows.or_else(|| known(graph.output("logits")?, <[Dim]>::last))
}

/// The table whose rows `ids` picks, itself or cast.
fn table_of(graph: &Graph, ids: ValueId) -> Option<ValueId> {
    let users = graph.value(ids).uses.iter().filter_map(|user| match user {
        Use::Node { node, slot } => Some((graph.node(*node), *slot)),
        Use::GraphOutput(_) => None,
    });
    let mut tables = users.filter_map(|(node, slot)| match node.op.name() {
        "Gather" if slot == 1 && node.op.int("axis").unwrap_or(0) == 0 => node.input(0),
        "Cast" => table_of(graph, node.outputs[0]),
        _ => None,
    });
    tables.next()
}
