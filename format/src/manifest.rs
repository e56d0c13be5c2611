//! `dijiang.json`: what a bundle was made from, how, and what was checked.
//!
//! The text depends on nothing but the contents: no time, no path, no host.

use crate::digest::{self, Hasher, WeightDigests};
use crate::dtype::DType;
use crate::files;
use crate::place::NoBundle;
use crate::quantization::Quantization;
use crate::recipe::{MOST_CHUNK, Recipe};
use crate::regular;
use crate::seal;
use crate::target::Target;
use crate::weight_header::{LENGTH_BYTES, MOST_HEADER};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

/// The version of the manifest that is written and read.
pub const FORMAT: u64 = 1;

/// The entry that holds the digest of the file itself.
const SEAL: &str = "manifest_sha256";

/// The contents of `dijiang.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format_version: u64,
    pub dijiang_version: String,
    pub source: Source,
    pub model: Model,
    pub recipe: Recipe,
    pub target: Target,
    /// Element type of the weights.
    pub dtype: DType,
    /// How those of linear layers are stored, where it is not that element type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weights: Option<Quantization>,
    pub seed: u64,
    pub sites: Vec<Site>,
    /// Attentions that were not recognised, and so stay softmax.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub misses: Vec<Miss>,
    pub state: Vec<State>,
    /// The files that the conversion wrote, besides this one. Bundles of earlier versions name none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub files: Vec<BundleFile>,
    pub checks: Vec<Check>,
    /// There where the conversion was stopped on the way: the graph is for looking into it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopped_after: Option<u64>,
    /// The weight file, where it was trained since and imported.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trained: Option<SourceFile>,
    /// What trained it, and what of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub training: Option<Training>,
    /// What of the call is not told elsewhere. Earlier versions wrote none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub options: Option<Options>,
    /// What ran the graphs for the checks.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub runtimes: Vec<RuntimeVersion>,
    /// Weight files that are the source's own, as they are called in the bundle.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub linked: Vec<String>,
    /// Of the bundle's own weight file. Earlier versions wrote none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digests: Option<WeightDigests>,
}

/// What was converted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub kind: SourceKind,
    /// Element type of the weights there.
    pub dtype: DType,
    pub files: Vec<SourceFile>,
    /// Whether its attention was linear already: the sites have its parameters, and no softmax model stands behind them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub own_attention: bool,
    /// `owner/model@commit`, of a model of the Hugging Face hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Checkpoint,
    Onnx,
}

/// A file of the source, with the digest of all of it, and of a weight file's header, which names every tensor with its
/// type, shape and place. Earlier versions wrote one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Without its directory.
    pub name: String,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub safetensors_header_sha256: Option<String>,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "ListedFile")]
pub struct BundleFile {
    pub name: String,
    /// Earlier versions wrote neither this nor the digest, and a weight file that is being replaced has neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// As it is in a manifest: earlier versions wrote the name alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum ListedFile {
    Name(String),
    Whole { name: String, bytes: Option<u64>, sha256: Option<String> },
}

impl From<ListedFile> for BundleFile {
    fn from(listed: ListedFile) -> Self {
        match listed {
            ListedFile::Name(name) => Self { name, bytes: None, sha256: None },
            ListedFile::Whole { name, bytes, sha256 } => Self { name, bytes, sha256 },
        }
    }
}

impl BundleFile {
    /// A file of these bytes.
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        let sha256 = Some(digest::digest(bytes));
        Self { name: name.to_owned(), bytes: Some(bytes.len() as u64), sha256 }
    }
}

impl From<SourceFile> for BundleFile {
    fn from(file: SourceFile) -> Self {
        Self { name: file.name, bytes: Some(file.bytes), sha256: file.sha256 }
    }
}

/// What became of the weights after the conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Training {
    /// The commands that changed them, in their order, each with the version that ran it.
    pub runs: Vec<TrainingRun>,
    /// The tensors that they changed.
    pub tensors: BTreeSet<String>,
}

/// A command that changed weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingRun {
    pub command: String,
    pub dijiang_version: String,
}

/// What a conversion was asked for, besides recipe, target, seed and the form of its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The element type that was asked for: the source's where it is `None`.
    pub dtype: Option<DType>,
    /// The layers that were to be rewritten: all where it is `None`.
    pub layers: Option<Vec<usize>>,
    /// Whether the training graphs were written too.
    pub train: bool,
    pub link: bool,
    /// Whether the bundle was verified before it was put in place.
    pub verify: bool,
}

/// A runtime of the checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVersion {
    pub name: String,
    pub version: String,
}

/// An attention of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub name: String,
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Whether it was rewritten: to the attention of the recipe, or, where it has a window, to that window alone with a
    /// state of its size, which computes what it did.
    pub lowered: bool,
    /// How many tokens a query sees, itself among them; all where it is `None`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<u32>,
}

impl Site {
    /// Whether it computes what the recipe says.
    pub fn is_linear(&self) -> bool {
        self.lowered && self.window.is_none()
    }

    /// Whether it computes what it did, with a state of the size of its window.
    pub fn keeps_window(&self) -> bool {
        self.lowered && self.window.is_some()
    }
}

/// An attention of the source that was not recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// The softmax, or the operator.
    pub node: String,
    /// The pattern that came closest.
    pub pattern: String,
    /// The value that stood in its way.
    pub place: String,
    pub reason: String,
}

/// A state that the serving graph takes and returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    /// Numbers, and names of the dims that are open.
    pub shape: Vec<Extent>,
    pub dtype: DType,
}

/// A dim of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Extent {
    Known(u64),
    Open(String),
}

/// A check that was made when the bundle was. What was measured is not kept: it differs with the
/// machine in the last digits, and the same conversion gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    /// None where it was not made.
    pub limit: Option<f64>,
    /// None where it was not made.
    pub ok: Option<bool>,
    /// Why it was not made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// What a runner must know of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub family: String,
    /// How many token ids there are.
    pub vocab: u64,
    /// Positions there are, where the model has a table of them.
    pub positions: Option<u64>,
    /// Every token that ends a text.
    pub eos: Vec<u64>,
}

/// Why a manifest, or a file it describes, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    NoBundle(NoBundle),
    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}: {reason} (hint: was it written by dijiang?)")]
    Json { file: String, reason: String },
    #[error(
        "{file}: `format_version` is {found}, expected {FORMAT} (hint: a newer dijiang wrote it, which opens it; or convert the model anew)"
    )]
    Version { file: String, found: u64 },
    #[error(
        "{file}: it was changed since it was written (hint: convert the model anew, or take the file from a copy of the bundle)"
    )]
    Changed { file: String },
    #[error("{file}: `recipe.chunk` is {found}, expected 1 to {MOST_CHUNK} (hint: convert the model anew)")]
    Chunk { file: String, found: u32 },
    #[error("{file}: it is not a safetensors file: a header of {header} bytes in a file of {bytes}")]
    Header { file: String, header: u64, bytes: u64 },
    #[error(
        "{file}: the conversion was stopped after patch {patches}, so this is not a complete model (hint: convert it without --stop-after; model.onnx alone runs in ONNX Runtime)"
    )]
    Stopped { file: String, patches: u64 },
    #[error(
        "{bundle}: its weights are in the source's own files, which are not touched (hint: convert the model anew, without --link)"
    )]
    Linked { bundle: String },
    #[error(
        "{bundle}: its weights are {}, which are served but not changed or handed on (hint: convert the model anew, without --weights)",
        weights.name()
    )]
    Quantized { bundle: String, weights: Quantization },
}

impl Manifest {
    /// What is known before anything is compiled.
    pub fn new(source: Source, model: Model, recipe: Recipe, target: Target, dtype: DType) -> Self {
        Self {
            format_version: FORMAT,
            dijiang_version: env!("CARGO_PKG_VERSION").to_owned(),
            source,
            model,
            recipe,
            target,
            dtype,
            weights: None,
            seed: 0,
            sites: Vec::new(),
            misses: Vec::new(),
            state: Vec::new(),
            files: Vec::new(),
            checks: Vec::new(),
            stopped_after: None,
            trained: None,
            training: None,
            options: None,
            runtimes: Vec::new(),
            linked: Vec::new(),
            digests: None,
        }
    }

    /// The text of the file. Its last entry is the digest of the text itself, so that no byte of it changes unnoticed.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        value[SEAL] = seal::UNSEALED.into();
        let mut text = serde_json::to_vec_pretty(&value)?;
        text.push(b'\n');
        seal::seal(&mut text, SEAL);
        String::from_utf8(text).map_err(serde::ser::Error::custom)
    }

    /// What is told of a file.
    pub fn file(&self, name: &str) -> Option<&BundleFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Tells of a file that was written. A manifest that lists no files has none of this one either.
    pub fn put_file(&mut self, written: BundleFile) {
        if self.files.is_empty() {
            return;
        }
        self.files.retain(|file| file.name != written.name);
        self.files.push(written);
        self.files.sort();
    }

    /// Adds a command that changed weights.
    pub fn add_training(&mut self, command: &str, tensors: impl IntoIterator<Item = String>) {
        let training = self.training.get_or_insert_default();
        let dijiang_version = env!("CARGO_PKG_VERSION").to_owned();
        training.runs.push(TrainingRun { command: command.to_owned(), dijiang_version });
        training.tensors.extend(tensors);
    }

    /// Reads the manifest of a bundle.
    pub fn read(bundle: &Path) -> Result<Self, ManifestError> {
        let path = bundle.join(files::MANIFEST);
        let file = path.display().to_string();
        let text = regular::read_to_string(&path).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => ManifestError::NoBundle(NoBundle::at(bundle)),
            _ => ManifestError::Io { file: file.clone(), source },
        })?;
        Self::parse(&text, &file)
    }

    /// Reads the manifest of a bundle whose weights can be changed or handed on: all its own, and floats.
    pub fn float_weights(bundle: &Path) -> Result<Self, ManifestError> {
        let manifest = Self::own_weights(bundle)?;
        match manifest.weights {
            None => Ok(manifest),
            Some(weights) => Err(ManifestError::Quantized { bundle: bundle.display().to_string(), weights }),
        }
    }

    /// Reads the manifest of a bundle whose weights are all in its own file.
    pub fn own_weights(bundle: &Path) -> Result<Self, ManifestError> {
        let manifest = Self::read(bundle)?;
        match manifest.linked.is_empty() {
            true => Ok(manifest),
            false => Err(ManifestError::Linked { bundle: bundle.display().to_string() }),
        }
    }

    /// The version is looked at first: other versions may have other fields.
    fn parse(text: &str, file: &str) -> Result<Self, ManifestError> {
        let json =
            |e: &serde_json::Error| ManifestError::Json { file: file.to_owned(), reason: e.to_string() };
        let Versioned { format_version: found } = serde_json::from_str(text).map_err(|e| json(&e))?;
        if found != FORMAT {
            return Err(ManifestError::Version { file: file.to_owned(), found });
        }
        let manifest: Self = serde_json::from_str(text).map_err(|e| json(&e))?;
        // Earlier versions wrote neither the seal nor the digests of files.
        let is_older = manifest.files.iter().all(|file| file.sha256.is_none());
        if !seal::holds(text.as_bytes(), SEAL).unwrap_or(is_older) {
            return Err(ManifestError::Changed { file: file.to_owned() });
        }
        // Everything that is sized by it trusts it.
        let chunk = manifest.recipe.chunk;
        if !(1..=MOST_CHUNK).contains(&chunk) {
            return Err(ManifestError::Chunk { file: file.to_owned(), found: chunk });
        }
        match manifest.stopped_after {
            Some(patches) => Err(ManifestError::Stopped { file: file.to_owned(), patches }),
            None => Ok(manifest),
        }
    }
}

#[derive(Deserialize)]
struct Versioned {
    format_version: u64,
}

impl SourceFile {
    /// Describes a file; of a `.safetensors` file only the header is read.
    pub fn describe(path: &Path) -> Result<Self, ManifestError> {
        if path.extension().is_none_or(|e| e != "safetensors") {
            return Self::describe_whole(path);
        }
        let file = path.display().to_string();
        let io = |source| ManifestError::Io { file: file.clone(), source };
        let (mut open, described) = Self::open(path).map_err(io)?;
        let bytes = described.bytes;
        let mut length = [0; LENGTH_BYTES];
        open.read_exact(&mut length).map_err(io)?;
        let header = u64::from_le_bytes(length);
        if header > MOST_HEADER.min(bytes.saturating_sub(LENGTH_BYTES as u64)) {
            return Err(ManifestError::Header { file, header, bytes });
        }
        let digest = digest(&mut open.take(header)).map_err(io)?;
        Ok(Self { safetensors_header_sha256: Some(digest), ..described })
    }

    /// Describes a file by all of it, whatever it is.
    pub fn describe_whole(path: &Path) -> Result<Self, ManifestError> {
        let io = |source| ManifestError::Io { file: path.display().to_string(), source };
        let (mut open, described) = Self::open(path).map_err(io)?;
        Ok(Self { sha256: Some(digest(&mut open).map_err(io)?), ..described })
    }

    /// The file, and what there is to say before it is read.
    fn open(path: &Path) -> std::io::Result<(File, Self)> {
        let open = regular::open(path)?;
        let bytes = open.metadata()?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((open, Self { name, bytes, sha256: None, safetensors_header_sha256: None }))
    }
}

fn digest(from: &mut dyn std::io::Read) -> std::io::Result<String> {
    let mut hasher = Hasher::default();
    hasher.read(from)?;
    Ok(hasher.finish())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest() -> Manifest {
        let file = SourceFile {
            name: "model.safetensors".to_owned(),
            bytes: 269_060_552,
            sha256: None,
            safetensors_header_sha256: Some("00ff".to_owned()),
        };
        let site = Site {
            name: "h.0/attn".to_owned(),
            layer: 0,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            lowered: true,
            window: None,
        };
        let shape = vec![Extent::Open("batch".to_owned()), Extent::Known(3)];
        let name = "past_key_values.0.conv_state".to_owned();
        let source = Source {
            kind: SourceKind::Checkpoint,
            dtype: DType::F32,
            files: vec![file],
            own_attention: false,
            hub: None,
        };
        let model = Model { family: "llama".to_owned(), vocab: 49152, positions: None, eos: vec![2] };
        let recipe = serde_json::from_str(r#"{"name": "paper"}"#).expect("a recipe");
        Manifest {
            sites: vec![site],
            state: vec![State { name, shape, dtype: DType::F32 }],
            checks: vec![
                Check { name: "chunked".to_owned(), limit: Some(1e-4), ok: Some(true), skipped: None },
                Check { name: "all".to_owned(), limit: None, ok: None, skipped: Some("none".to_owned()) },
            ],
            ..Manifest::new(source, model, recipe, Target::Ort, DType::F32)
        }
    }

    /// Such a manifest of a model of one attention.
    pub(crate) fn manifest_of(dtype: DType, lowered: bool) -> Manifest {
        let mut manifest = Manifest { dtype, ..manifest() };
        manifest.sites[0].lowered = lowered;
        manifest
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        let text = manifest().to_json().expect("it is written");
        assert_eq!(Manifest::parse(&text, "dijiang.json").expect("it reads"), manifest());
        insta::assert_snapshot!(text);
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let text = manifest().to_json().expect("it is written");
        let error =
            |text: &str| Manifest::parse(text, "b/dijiang.json").expect_err("it is refused").to_string();
        assert_eq!(
            error(&text.replace("\"format_version\": 1", "\"format_version\": 2")),
            "b/dijiang.json: `format_version` is 2, expected 1 (hint: a newer dijiang wrote it, which opens it; or convert the model anew)"
        );
        assert_eq!(
            error(&text.replace("\"seed\": 0,", "")),
            "b/dijiang.json: missing field `seed` at line 75 column 1 (hint: was it written by dijiang?)"
        );
        for chunk in [0, 100_000] {
            let mut manifest = manifest();
            manifest.recipe.chunk = chunk;
            assert_eq!(
                error(&manifest.to_json().expect("it is written")),
                format!(
                    "b/dijiang.json: `recipe.chunk` is {chunk}, expected 1 to 65536 (hint: convert the model anew)"
                )
            );
        }
        assert_eq!(
            error("{"),
            "b/dijiang.json: EOF while parsing an object at line 1 column 1 (hint: was it written by dijiang?)"
        );
    }

    #[test]
    fn no_byte_of_it_changes_unnoticed() {
        let mut manifest = manifest();
        manifest.files = vec![BundleFile::of("model.onnx", b"graph")];
        let text = manifest.to_json().expect("it is written");
        assert_eq!(Manifest::parse(&text, "b").expect("it reads"), manifest);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).expect("it is text");
            let error = Manifest::parse(&changed, "b/dijiang.json").expect_err(&format!("byte {at}"));
            assert!(error.to_string().starts_with("b/dijiang.json: "), "{error}");
            // Without its last byte, the end of the line, it is another file too.
            assert!(Manifest::parse(&text[..at], "b/dijiang.json").is_err(), "{at}");
        }
    }

    #[test]
    fn files_of_earlier_versions_have_names_alone() {
        let listed: Vec<BundleFile> =
            serde_json::from_str(r#"["a.onnx", {"name": "b", "bytes": 1, "sha256": "00"}]"#).expect("files");
        let older = BundleFile { name: "a.onnx".to_owned(), bytes: None, sha256: None };
        assert_eq!((&listed[0], listed[1].bytes), (&older, Some(1)));
        // Who knows no files is not told of one.
        let mut manifest = manifest();
        manifest.put_file(listed[1].clone());
        assert!(manifest.files.is_empty());
        manifest.files = vec![older];
        manifest.put_file(listed[1].clone());
        manifest.put_file(BundleFile::of("a.onnx", b""));
        assert_eq!(manifest.files.iter().map(|file| file.bytes).collect::<Vec<_>>(), [Some(0), Some(1)]);
    }

    #[test]
    fn misses_read_back_and_what_was_stopped_is_no_bundle() {
        let miss = |text: &str| Miss {
            node: format!("{text}/Softmax"),
            pattern: "decomposed".to_owned(),
            place: text.to_owned(),
            reason: "it is no mask".to_owned(),
        };
        let whole = Manifest { misses: vec![miss("a"), miss("b")], ..manifest() };
        let text = whole.to_json().expect("it is written");
        assert_eq!(Manifest::parse(&text, "dijiang.json").expect("it reads"), whole);
        let text = Manifest { stopped_after: Some(7), ..manifest() }.to_json().expect("it is written");
        assert_eq!(
            Manifest::parse(&text, "b/dijiang.json").expect_err("it is refused").to_string(),
            "b/dijiang.json: the conversion was stopped after patch 7, so this is not a complete model (hint: convert it without --stop-after; model.onnx alone runs in ONNX Runtime)"
        );
    }

    #[test]
    fn only_the_header_of_a_weight_file_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let weights = directory.path().join("w.safetensors");
        let write = |elements: &[u8]| {
            let bytes = [&2u64.to_le_bytes()[..], b"{}", elements].concat();
            std::fs::write(&weights, bytes).expect("it is written");
            SourceFile::describe(&weights).expect("it is described")
        };
        let (a, b) = (write(b"ab"), write(b"cd"));
        assert_eq!(a, b);
        let empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(a.safetensors_header_sha256.as_deref(), Some(empty_object));
        let text = directory.path().join("config.json");
        std::fs::write(&text, "{}").expect("it is written");
        assert_eq!(
            SourceFile::describe(&text).expect("it is described").sha256.as_deref(),
            Some(empty_object)
        );
        std::fs::write(&weights, [0xff; 16]).expect("it is written");
        assert!(SourceFile::describe(&weights).is_err());
    }
}
