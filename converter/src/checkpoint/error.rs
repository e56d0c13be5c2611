//! What can be wrong with a checkpoint.

use super::gguf::GgufError;
use crate::report::message::{one_line, shown};
use dijiang_format::words::counted;
use dijiang_passes::ir::patch::PatchError;
use dijiang_passes::ir::tensor::ReadError;
use std::path::PathBuf;

/// Why a checkpoint cannot be used. Every message is one line that names the place, what was found
/// there, what was expected, and where it helps, what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: no config.json here; expected a checkpoint directory as `save_pretrained` writes it{hint}", dir.display())]
    NoConfig { dir: PathBuf, hint: String },
    #[error("{}: no snapshot to read: {reason}; expected refs/main to name a folder of snapshots/", dir.display())]
    NoSnapshot { dir: PathBuf, reason: String },
    #[error("{}: no weights here; expected model.safetensors or model.safetensors.index.json{hint}", dir.display())]
    NoWeights { dir: PathBuf, hint: String },
    #[error("{}: not the JSON that was expected: {}", path.display(), one_line(&source.to_string()))]
    Json { path: PathBuf, source: serde_json::Error },

    #[error("{}: key `{key}` is missing; expected {expected}", path.display())]
    MissingKey { path: PathBuf, key: String, expected: &'static str },
    #[error("{}: key `{key}` is {found}; expected {expected}", path.display())]
    BadKey { path: PathBuf, key: String, found: String, expected: String },
    #[error("{}: {key} `{}` is not supported; supported: {supported}", path.display(), shown(found))]
    Unsupported { path: PathBuf, key: String, found: String, supported: String },
    #[error("{}: {key} is `{}`: {why}", path.display(), shown(found))]
    Refused { path: PathBuf, key: String, found: String, why: String },
    #[error("{}: `{key}` is {found} and {other} is {stated} (hint: leave one of them in the file)", path.display())]
    Contradiction { path: PathBuf, key: String, found: String, other: String, stated: String },
    #[error("{}: `{key}` is {found}, which {reader} does not read (hint: remove the key if it means nothing)", path.display())]
    UnreadKey { path: PathBuf, key: String, found: String, reader: String },

    #[error("{}: the safetensors header is broken: {} (hint: the file is damaged or is no safetensors file: fetch or write it again)", path.display(), one_line(reason))]
    Header { path: PathBuf, reason: String },
    #[error(
        "{}: the file has {found} bytes, but its header describes {expected}; it was cut short or damaged, fetch it again",
        path.display()
    )]
    WrongLength { path: PathBuf, found: u64, expected: u64 },
    #[error("{}: it is a pointer of Git LFS, and the weights are not here (hint: `git lfs pull` in its directory fetches them)", path.display())]
    Pointer { path: PathBuf },
    #[error("{}: shard `{}` is missing; the index names it for {}, fetch it again", index.display(), shown(shard), counted(*tensors, "tensor"))]
    MissingShard { index: PathBuf, shard: String, tensors: usize },
    #[error("{}: shard `{}` {problem}; expected the name of a file beside the index", index.display(), shown(shard))]
    ShardName { index: PathBuf, shard: String, problem: &'static str },
    #[error(
        "{}: tensor `{}` should be in shard `{}`, but is not there; index and shards do not belong together",
        index.display(), shown(tensor), shown(shard)
    )]
    NotInShard { index: PathBuf, shard: String, tensor: String },
    #[error(
        "{}: {} in shard `{}`, which the index does not name there; index and shards do not belong together (hint: fetch them again, or load the model with transformers and `save_pretrained` it)",
        index.display(), listed(names, *count), shown(shard)
    )]
    NotInIndex { index: PathBuf, shard: String, names: Vec<String>, count: usize },

    #[error("{}: tensor `{tensor}` is missing; {family} needs it with shape {expected:?}", dir.display())]
    MissingTensor { dir: PathBuf, tensor: String, family: &'static str, expected: Vec<u64> },
    #[error("{}: tensor `{}` has shape {found:?}; expected {expected:?} from {config}", path.display(), shown(tensor))]
    WrongShape { path: PathBuf, tensor: String, found: Vec<u64>, expected: Vec<u64>, config: Box<str> },
    #[error(
        "{}: tensor `{}` has element type {found}; expected f32, f16, bf16 or f64 (quantised weights are not read)",
        path.display(), shown(tensor)
    )]
    WeightDType { path: PathBuf, tensor: String, found: String },
    #[error(
        "{}: {}, for which {family} has no place: without {} it would be another model (hint: export the model to ONNX with its own code, and convert that)",
        place.display(), listed(names, *count), if *count == 1 { "it" } else { "them" }
    )]
    ExtraTensors { place: PathBuf, family: &'static str, names: Vec<String>, count: usize },
    #[error(
        "{}: tensor `{tensor}` is not `{tied}`, although `tie_word_embeddings` says so (hint: set it to false in config.json)",
        place.display()
    )]
    Untied { place: PathBuf, tensor: String, tied: String },

    #[error(
        "{}: tensor `{tensor}` has numbers that are not finite in f32 (hint: save the checkpoint in f32; D2 leaves the range of f16 from 350 positions on)",
        path.display()
    )]
    NotFinite { path: PathBuf, tensor: String },

    #[error(transparent)]
    Gguf(Box<GgufError>),

    #[error("the graph could not be built: {0}")]
    Graph(#[from] PatchError),
}

impl From<GgufError> for CheckpointError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}

/// How many names a message shows of a long list.
pub(super) const SHOWN: usize = 3;

/// [`listed`], of all names.
pub(crate) fn all_listed(names: &[String]) -> String {
    listed(&names[..names.len().min(SHOWN)], names.len())
}

/// ``2 tensors (`a`, `b`)``, or ``100 tensors (`a`, `b`, `c` and 97 more)``: `names` are the first of `count`.
pub(super) fn listed(names: &[String], count: usize) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", shown(name))).collect();
    let tensors = counted(count, "tensor");
    match count.saturating_sub(names.len()) {
        0 => format!("{tensors} ({})", quoted.join(", ")),
        more => format!("{tensors} ({} and {more} more)", quoted.join(", ")),
    }
}
