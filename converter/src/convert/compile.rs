//! From a softmax graph to the graphs of a bundle: the serving graph, and the same model in the other
//! forms that verification compares it with. Which passes make which graph is in [`dijiang_passes::pipeline::table`].

use dijiang_format::files;
use dijiang_format::recipe::Recipe;
use dijiang_format::target::Target;
use dijiang_passes::attention::rewrite::{AddedWeights, Report, added_weights};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::Step;
use dijiang_passes::pipeline::table::passes;
use dijiang_passes::pipeline::{Conversion, Pass, PassRun, PipelineError, pipeline, prepare, run};

/// How to compile.
#[derive(Debug, Clone)]
pub struct CompileOptions<'a> {
    pub recipe: &'a Recipe,
    pub target: Target,
    pub seed: u64,
    /// Layers to rewrite; all where it is `None`.
    pub layers: Option<&'a [usize]>,
}

/// What became of a model.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The model as it came in, cleaned up.
    pub source: Graph,
    /// The serving graph. All weights of the bundle are in it or in the source.
    pub model: Graph,
    pub report: Report,
    /// What each pass did to the serving graph.
    pub runs: Vec<PassRun>,
}

/// The graphs that the serving graph is compared with: standard operators and f32 arithmetic, whatever
/// the weights are stored in.
#[derive(Debug, Clone)]
pub struct Forms {
    /// The source.
    pub softmax: Graph,
    /// None where nothing was rewritten.
    pub linear: Option<LinearForms>,
}

/// The serving graph as two, over one copy of the weights that the caller binds.
#[derive(Debug, Clone)]
pub struct Bound {
    pub prefill: Graph,
    pub decode: Graph,
}

/// What the serving graph computes.
#[derive(Debug, Clone)]
pub struct LinearForms {
    pub parallel: Graph,
    pub chunked: Graph,
}

/// Compiles a softmax graph.
pub fn compile(source: Graph, options: &CompileOptions<'_>) -> Result<Compiled, PipelineError> {
    compile_with(source, options, None)
}

/// The same with new parameters that are there already, by name; others are new.
pub fn compile_with(
    mut source: Graph,
    options: &CompileOptions<'_>,
    added: Option<&AddedWeights>,
) -> Result<Compiled, PipelineError> {
    let mut conversion = options.conversion(added);
    let mut runs = prepare(&mut source, &mut conversion)?;
    let mut model = source.clone();
    runs.extend(run(&mut model, pipeline(files::MODEL, options.target)?, &mut conversion)?);
    Ok(Compiled { source, model, report: conversion.report, runs })
}

/// A model after its first patches.
#[derive(Debug, Clone)]
pub struct Partial {
    pub graph: Graph,
    pub patches: usize,
    /// The last patch that was applied.
    pub last: Option<Step>,
    /// Whether there are more.
    pub stopped: bool,
}

/// Compiles to the serving graph, but no further than `patches` patches.
pub fn compile_first(
    patches: usize,
    (mut graph, added): (Graph, Option<&AddedWeights>),
    options: &CompileOptions<'_>,
) -> Result<Partial, PipelineError> {
    let mut conversion = options.conversion(added);
    graph.stop_after(patches);
    prepare(&mut graph, &mut conversion)?;
    if !graph.is_stopped() {
        run(&mut graph, pipeline(files::MODEL, options.target)?, &mut conversion)?;
    }
    let (patches, last, stopped) = (graph.patches(), graph.last_patch().cloned(), graph.is_stopped());
    Ok(Partial { graph, patches, last, stopped })
}

impl<'a> CompileOptions<'a> {
    fn conversion(&self, added: Option<&'a AddedWeights>) -> Conversion<'a> {
        let Self { recipe, seed, layers, .. } = *self;
        Conversion { recipe, seed, layers, added, report: Report::default() }
    }
}

impl Compiled {
    /// The graphs for bound memory, where the model has a state and all of it keeps its size.
    pub fn bound(&self, options: &CompileOptions<'_>) -> Result<Option<Bound>, PipelineError> {
        let sites = &self.report.sites;
        let kept = sites.is_empty() || sites.iter().any(|site| site.why_kept.is_some() || !site.cache);
        let (Some(prefill), Some(decode)) =
            (passes(files::PREFILL, options.target), passes(files::DECODE, options.target))
        else {
            return Ok(None);
        };
        if kept || self.report.missed().next().is_some() {
            return Ok(None);
        }
        let added = added_weights(&self.model);
        let made = |passes| self.made(passes, options, &added);
        Ok(Some(Bound { prefill: made(prefill)?, decode: made(decode)? }))
    }

    /// Writes the same model in its other forms.
    pub fn forms(&self, options: &CompileOptions<'_>) -> Result<Forms, PipelineError> {
        let added = added_weights(&self.model);
        let made = |graph| self.made(pipeline(graph, options.target)?, options, &added);
        let softmax = made(files::SOFTMAX)?;
        if self.report.sites.iter().all(|site| site.why_kept.is_some()) {
            return Ok(Forms { softmax, linear: None });
        }
        let (parallel, chunked) = rayon::join(|| made(files::PARALLEL), || made(files::CHUNKED));
        Ok(Forms { softmax, linear: Some(LinearForms { parallel: parallel?, chunked: chunked? }) })
    }

    fn made(
        &self,
        passes: &[&dyn Pass],
        options: &CompileOptions<'_>,
        added: &AddedWeights,
    ) -> Result<Graph, PipelineError> {
        let mut graph = self.source.clone();
        run(&mut graph, passes, &mut options.conversion(Some(added)))?;
        Ok(graph)
    }
}
