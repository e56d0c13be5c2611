//! What a conversion is refused for, and what would convert the model instead.

use super::ConvertError;
use crate::bundle::states::states;
use crate::checkpoint::ModelMeta;
use crate::recipes;
use dijiang_format::manifest::SourceKind;
use dijiang_format::names::{IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT};
use dijiang_format::place::{Place, bundle_of};
use dijiang_format::recipe::{Attention, Recipe};
use dijiang_format::words::counted;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::{
    AddedWeights, Options, Report, RewriteError, added_weights, rewrite,
};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::pipeline::{PassError, PipelineError};
use std::path::Path;

/// Whether `convert` with this recipe would do something to a canonical graph; the error is the one that it would
/// refuse it with.
pub fn would_convert(path: &Path, graph: &Graph, recipe: &Recipe) -> Result<(), ConvertError> {
    check_is_whole(graph, path)?;
    let mut made = graph.clone();
    let tried = tried(&mut made, recipe, None).map_err(PassError::from).map_err(PipelineError::from);
    let report = tried.map_err(|error| of_pipeline(path, error))?;
    check_linear(&report, graph, None, path)?;
    match report.without_cache {
        Some(kept) => Err(ConvertError::KeptWithoutCache { path: path.to_owned(), kept }),
        None => check_names(&made, path),
    }
}

/// The form that the default target serves.
const SERVED: Form = Form::Operator("com.microsoft");

/// What a recipe makes of the attentions of a canonical graph.
fn tried(graph: &mut Graph, recipe: &Recipe, layers: Option<&[usize]>) -> Result<Report, RewriteError> {
    rewrite(graph, &Options { recipe, form: SERVED, seed: 0, layers, added: None })
}

/// A graph with states is fed token by token, by names that every caller knows.
pub(super) fn check_names(model: &Graph, path: &Path) -> Result<(), ConvertError> {
    if states(model).is_empty() {
        return Ok(());
    }
    let path = path.to_owned();
    if model.input(IDS).is_none() {
        let inputs = model.inputs().iter().map(|v| model.value(*v).name.as_str());
        return Err(ConvertError::NoIds { path, inputs: named(inputs) });
    }
    check_inputs(model, &path)?;
    match model.output(LOGITS) {
        Some(_) => Ok(()),
        None => {
            let outputs = named(model.outputs().iter().map(|(name, _)| name.as_str()));
            Err(ConvertError::NoLogits { path, outputs })
        }
    }
}

/// What a graph reads besides tokens.
fn other_inputs(graph: &Graph) -> Vec<&str> {
    let names = graph.inputs().iter().map(|v| graph.value(*v).name.as_str());
    names.filter(|name| ![IDS, MASK, POSITIONS].contains(name) && !name.starts_with(PAST)).collect()
}

/// A graph with states is given nothing but tokens.
fn check_inputs(model: &Graph, path: &Path) -> Result<(), ConvertError> {
    let others = other_inputs(model);
    if others.is_empty() {
        return Ok(());
    }
    Err(ConvertError::OtherInputs { path: path.to_owned(), inputs: inputs_of(&others) })
}

/// What reads tokens and what another model made of others is half of a model, and what reads the tokens of two texts is two.
pub(super) fn check_is_whole(source: &Graph, path: &Path) -> Result<(), ConvertError> {
    let others = other_inputs(source);
    let of_decoder: Vec<&str> = others.iter().copied().filter(|name| name.starts_with(DECODER)).collect();
    let is_half = others.iter().any(|name| name.starts_with(ENCODER));
    let (what, inputs) = match source.input(IDS) {
        Some(_) if is_half => ("the decoder of an encoder-decoder model", others),
        Some(_) if !of_decoder.is_empty() => ("an encoder-decoder model", of_decoder),
        _ => return Ok(()),
    };
    Err(ConvertError::EncoderDecoder { path: path.to_owned(), what, inputs: inputs_of(&inputs) })
}

/// What the names of inputs begin with that the decoder behind an encoder reads.
const DECODER: &str = "decoder_";

/// What the names of inputs begin with that an encoder gives.
const ENCODER: &str = "encoder_";

fn inputs_of(names: &[&str]) -> String {
    format!("{} {}", if names.len() == 1 { "input" } else { "inputs" }, names.join(", "))
}

/// Names in a row, without those of states.
fn named<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let is_of_state = |name: &str| name.starts_with(PAST) || name.starts_with(PRESENT);
    names.filter(|name| !is_of_state(name)).collect::<Vec<_>>().join(", ")
}

/// An error of compiling, with the source in front where it is one of the source.
pub(super) fn of_pipeline(path: &Path, error: PipelineError) -> ConvertError {
    match error {
        PipelineError::Pass(PassError::Rewrite(
            error @ (RewriteError::Positions { .. } | RewriteError::LooksBack { .. }),
        )) => ConvertError::FedByToken { path: path.to_owned(), source: error },
        other => ConvertError::Compile(other),
    }
}

/// A bundle is converted already, and so is what its graphs were made from: converting one of them again would leave
/// out what was added, and what was trained since.
pub(super) fn check_source(path: &Path) -> Result<(), ConvertError> {
    let what = match Place::of(path) {
        Place::Bundle => "a bundle",
        _ if path.is_file() && bundle_of(path).is_some() => "a graph of a bundle",
        _ => return Ok(()),
    };
    Err(ConvertError::Bundled { path: path.to_owned(), what })
}

/// We wrote the graph of a checkpoint ourselves, and know every attention in it.
pub(super) fn check_sites(report: &Report, meta: &ModelMeta, kind: SourceKind) -> Result<(), ConvertError> {
    let found = report.sites.len();
    if kind == SourceKind::Onnx || found == meta.expected_sites {
        return Ok(());
    }
    let miss = report
        .misses
        .first()
        .map_or_else(|| "no softmax came close".to_owned(), |m| format!("the closest at {m}"));
    Err(ConvertError::MissingSites { family: meta.family, found, expected: meta.expected_sites, miss })
}

/// A recipe that makes attention linear must find some to do it to, in the canonical graph `source`.
pub(super) fn check_linear(
    report: &Report,
    source: &Graph,
    layers: Option<&[usize]>,
    path: &Path,
) -> Result<(), ConvertError> {
    let misses: Vec<NearMiss> = report.missed().cloned().collect();
    let attentions = report.sites.len() + misses.len();
    let path = path.to_owned();
    if report.sites.is_empty() {
        return Err(ConvertError::NoSites { path, misses });
    }
    let kept = report.sites.iter().map(|site| Some((site.name.clone(), site.why_kept.clone()?)));
    let Some(kept) = kept.collect() else { return Ok(()) };
    let others = Others::of(source, layers);
    Err(ConvertError::NothingLinear { path, attentions, kept, others })
}

/// The recipes that make most attentions of a model linear, in the order of their table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    pub recipes: Vec<&'static str>,
    pub linear: usize,
}

impl Others {
    /// Tries every recipe that ships.
    fn of(graph: &Graph, layers: Option<&[usize]>) -> Self {
        let mut best = Self::default();
        for (name, _) in recipes::PRESETS {
            let recipe = recipes::load(name).ok().filter(|recipe| recipe.attention != Attention::Softmax);
            let report = recipe.and_then(|recipe| tried(&mut graph.clone(), &recipe, layers).ok());
            let report = report.filter(|report| report.without_cache.is_none());
            let linear = report.map_or(0, |r| r.sites.iter().filter(|site| site.why_kept.is_none()).count());
            if linear > best.linear {
                best = Self { recipes: Vec::new(), linear };
            }
            if linear > 0 && linear == best.linear {
                best.recipes.push(name);
            }
        }
        best
    }

    /// What to type instead.
    pub(super) fn hint(&self, attentions: usize) -> String {
        let Self { recipes, linear } = self;
        let Some((first, rest)) = recipes.split_first() else {
            return "--recipe softmax keeps them".to_owned();
        };
        let rest = match rest {
            [] => String::new(),
            [one] => format!(", and so does {one}"),
            [several @ .., last] => format!(", and so do {} and {last}", several.join(", ")),
        };
        format!("--recipe {first} converts {linear} of {}{rest}", counted(attentions, "attention"))
    }
}

/// Each reason once, with the first attention that stays for it.
pub(super) fn said(kept: &[(String, String)]) -> String {
    let is_first = |at: usize| kept[..at].iter().all(|(_, reason)| *reason != kept[at].1);
    let first = kept.iter().enumerate().filter(|(at, _)| is_first(*at)).map(|(_, kept)| kept);
    first.flat_map(|(name, reason)| ["; ", name, " stays softmax: ", reason]).collect()
}

/// What a bundle brings along must be what this version would add, number by number.
pub(super) fn check_added(model: &Graph, known: &AddedWeights, bundle: &Path) -> Result<(), ConvertError> {
    let added = added_weights(model);
    let is_there = |(name, tensor): (&String, &Tensor)| {
        let same = known.get(name).filter(|b| (b.dtype(), b.dims()) == (tensor.dtype(), tensor.dims()));
        same.is_some()
    };
    match added.len() == known.len() && added.iter().all(is_there) {
        true => Ok(()),
        false => Err(ConvertError::OldBundle { bundle: bundle.to_owned() }),
    }
}
