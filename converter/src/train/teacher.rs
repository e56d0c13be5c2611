//! The softmax model that a run learns from besides its data: frozen, and run on the same tokens before every
//! gradient. Its logits stay where the gradients' graph reads them.

use super::TrainError;
use super::trainer::{TrainerOptions, dims, element_type, write, write_as};
use super::weights::Weights;
use crate::onnx::import;
use crate::provenance::opened;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::feature_map::added::is_added;
use dijiang_passes::training::parameters::{ParameterLayout, Selection};
use dijiang_passes::training::specialize::TOKENS;
use dijiang_passes::training::step;
use dijiang_runtime::{DeviceTensor, OrtRuntime, Program};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The graph file, in the bundle's directory `train`.
const FILE: &str = "teacher.onnx";

/// Whose softmax model teaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The bundle's own, with the weights that it has before the run.
    Itself,
    Bundle(PathBuf),
}

/// As the command line has it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("self"),
            Self::Bundle(path) => path.display().fmt(f),
        }
    }
}

/// Whom a run is to learn from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The bundle's own softmax model where it is still the model as it came and attentions took the place of some of its;
    /// nobody otherwise.
    #[default]
    Auto,
    Nobody,
    One(Source),
}

impl FromStr for Wanted {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::Nobody,
            "self" => Self::One(Source::Itself),
            path => Self::One(Source::Bundle(path.into())),
        })
    }
}

/// What a run is to take from a teacher.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TeacherOptions {
    pub wanted: Wanted,
    /// The loss is cross-entropy and this much of KL(teacher ‖ model); [`WEIGHT`] where it is left out.
    pub weight: Option<f64>,
}

/// What a divergence counts for where a run does not say.
pub const WEIGHT: f64 = 0.5;

/// Who teaches, and for how much.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    pub source: Source,
    pub weight: f64,
}

impl TeacherOptions {
    /// What they come to for a bundle; none where nobody teaches.
    pub fn lesson(&self, manifest: &Manifest) -> Result<Option<Lesson>, TrainError> {
        let learns = manifest.sites.iter().any(|site| site.lowered);
        let source = match &self.wanted {
            Wanted::One(Source::Itself) if manifest.source.own_attention => {
                return Err(TrainError::NoSoftmax);
            }
            Wanted::One(source) => source.clone(),
            Wanted::Auto if learns && is_as_it_came(manifest) && !manifest.source.own_attention => {
                Source::Itself
            }
            Wanted::Auto | Wanted::Nobody => return self.nobody(),
        };
        Ok(Some(Lesson { source, weight: self.weight.unwrap_or(WEIGHT) }))
    }

    fn nobody(&self) -> Result<Option<Lesson>, TrainError> {
        match self.weight {
            Some(weight) => Err(TrainError::NobodyTeaches { weight }),
            None => Ok(None),
        }
    }
}

/// Whether earlier runs trained nothing but what the conversion added.
pub(crate) fn is_as_it_came(manifest: &Manifest) -> bool {
    manifest.training.iter().flat_map(|training| &training.tensors).all(|name| is_added(name))
}

/// A loaded teacher. Its program keeps its weights.
#[derive(Debug)]
pub struct Teacher {
    program: Program,
    logits: BTreeMap<String, DeviceTensor>,
}

impl Teacher {
    /// Loads the softmax model of `source` for the bundle in training; its graph is written into `dir`.
    pub fn load(
        runtime: &OrtRuntime,
        source: &Source,
        (trained, manifest): (&Path, &Manifest),
        dir: &Path,
        options: &TrainerOptions,
    ) -> Result<Self, TrainError> {
        let bundle = match source {
            Source::Itself => trained,
            Source::Bundle(path) => {
                fits(path, manifest, options.size.sequence as usize)?;
                path
            }
        };
        let mut model = import::import(&bundle.join(files::SOFTMAX))?;
        canonicalize(&mut model)?;
        let layout = ParameterLayout::of(&model, &Selection::Everything)?;
        if *source == Source::Itself {
            as_it_came(trained, manifest, &layout)?;
        }
        let weights = Weights::open(bundle, &layout)?;
        let graph = step::teacher(&model, &layout, options.size, options.precision)?;
        let path = write(dir, FILE, &graph)?;
        let mut program = Program::load(runtime, &path, &options.load(&path, options.records()))?;
        for group in &layout.groups {
            let dtype = options.precision.of_group(group);
            let vector = program.allocate(element_type(dtype), &[group.len()])?;
            write_as(&vector, dtype, &weights.flat(group)?)?;
            for (at, parameter) in group.offsets() {
                program.bind_input_part(&parameter.input(), &vector, at, &dims(parameter))?;
            }
        }
        let mut logits = BTreeMap::new();
        for io in program.outputs().to_vec() {
            let chunk = program.allocate_like(&io.name)?;
            program.bind_output(&io.name, &chunk)?;
            logits.insert(io.name, chunk);
        }
        Ok(Self { program, logits })
    }

    /// Reads the tokens from there.
    pub fn read_tokens_from(&mut self, tokens: &DeviceTensor) -> Result<(), TrainError> {
        Ok(self.program.bind_input(TOKENS, tokens)?)
    }

    /// Its logits by the names of the gradients' inputs.
    pub fn logits(&self) -> &BTreeMap<String, DeviceTensor> {
        &self.logits
    }

    pub fn run(&mut self) -> Result<(), TrainError> {
        Ok(self.program.run()?)
    }
}

/// Refuses a model that an earlier run trained: it is no longer the one that was converted, and what it lost is lost.
fn as_it_came(bundle: &Path, manifest: &Manifest, layout: &ParameterLayout) -> Result<(), TrainError> {
    let Some(training) = &manifest.training else { return Ok(()) };
    let mut trained = layout.parameters().filter(|parameter| training.tensors.contains(&parameter.name));
    match trained.next() {
        Some(first) => Err(TrainError::TeacherTrained {
            bundle: bundle.to_owned(),
            tensor: first.name.clone(),
            count: 1 + trained.count(),
        }),
        None => Ok(()),
    }
}

/// Refuses a teacher of other tokens, or of too few positions.
fn fits(bundle: &Path, trained: &Manifest, context: usize) -> Result<(), TrainError> {
    let teacher = Manifest::read(bundle)?;
    opened::check_whole(bundle, &teacher)?;
    let (found, expected) = (teacher.model.vocab, trained.model.vocab);
    if found != expected {
        return Err(TrainError::TeacherVocabulary { bundle: bundle.to_owned(), found, expected });
    }
    match teacher.model.positions.filter(|p| (*p as usize) < context) {
        Some(positions) => Err(TrainError::Positions { positions, context }),
        None => Ok(()),
    }
}
