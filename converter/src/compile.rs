//! From a softmax graph to the graphs of a bundle: the serving graph, and the same model in the other
//! forms that verification compares it with.

use crate::target::Target;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::lower::grouped::group;
use dijiang_passes::attention::rewrite::{
    Drawn, Options, Report, RewriteError, drawn, drop_unused_inputs, rewrite,
};
use dijiang_passes::canon::{CanonError, Law as _, canonicalize};
use dijiang_passes::constant_factor::ConstantFactor;
use dijiang_passes::feature_blocks::cut_features;
use dijiang_passes::fuse::{fuse, fuse_for_many};
use dijiang_passes::int4;
use dijiang_passes::ir::dtype::DType;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::op::Op;
use dijiang_passes::ir::patch::{PatchError, Step};
use dijiang_passes::ir::verify::{Violation, verify};
use dijiang_passes::recipe::{Attention, Recipe};
use dijiang_passes::serving::{bind, one_token};
use dijiang_passes::state_padding::pad_states;
use dijiang_passes::widen::widen;
use dijiang_runtime::PREFILL_CHUNK;

/// The attentions that only ONNX Runtime has.
const ONLY_THERE: [&str; 2] = ["LinearAttention", "GroupQueryAttention"];

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

/// A model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error("after {stage} the graph is not well-formed, a bug of this compiler: {first}{more}")]
    Malformed { stage: &'static str, first: Box<Violation>, more: String },
}

/// Compiles a softmax graph.
pub fn compile(source: Graph, options: &CompileOptions<'_>) -> Result<Compiled, CompileError> {
    compile_with(source, options, None)
}

/// The same with new parameters that are there already, by name; others are drawn.
pub fn compile_with(
    mut source: Graph,
    options: &CompileOptions<'_>,
    drawn: Option<&Drawn>,
) -> Result<Compiled, CompileError> {
    check(&source, "reading the source")?;
    canonicalize(&mut source)?;
    check(&source, "the clean-ups")?;
    let (mut model, mut report) = lower(&source, options, options.target.form(options.recipe.chunk), drawn)?;
    serve_softmax(&mut model, &mut report, options)?;
    fuse_served(&mut model)?;
    check(&model, "fusing operators")?;
    Ok(Compiled { source, model, report })
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
    mut graph: Graph,
    options: &CompileOptions<'_>,
) -> Result<Partial, CompileError> {
    check(&graph, "reading the source")?;
    graph.stop_after(patches);
    let compiled = canonicalize(&mut graph)
        .map_err(CompileError::from)
        .and_then(|_| lower_here(&mut graph, options, options.target.form(options.recipe.chunk), None))
        .and_then(|_| fuse_served(&mut graph));
    if !graph.is_stopped() {
        compiled?;
    }
    graph.refresh_types()?;
    check(&graph, "the last patch")?;
    let (patches, last, stopped) = (graph.patches(), graph.last_patch().cloned(), graph.is_stopped());
    Ok(Partial { graph, patches, last, stopped })
}

impl Compiled {
    /// The graphs for bound memory, where the model has a state and all of it keeps its size.
    pub fn bound(&self, options: &CompileOptions<'_>) -> Result<Option<Bound>, CompileError> {
        let kept = self.report.sites.iter().any(|site| site.kept.is_some() || !site.cache);
        if options.target != Target::Ort || kept || self.report.missed().next().is_some() {
            return Ok(None);
        }
        let drawn = drawn(&self.model);
        let form = |form, last: bool| {
            let mut graph = lower(&self.source, options, form, Some(&drawn))?.0;
            if last {
                fuse_for_many(&mut graph)?;
                pad_states(&mut graph)?;
            } else {
                one_token(&mut graph)?;
                canonicalize(&mut graph)?;
                fuse(&mut graph)?;
                pad_states(&mut graph)?;
                cut_features(&mut graph)?;
            }
            let graph = bind(graph, last)?;
            check(&graph, "binding the weights")?;
            Ok::<_, CompileError>(graph)
        };
        let prefill = form(Form::Segment(PREFILL_CHUNK), true)?;
        Ok(Some(Bound { prefill, decode: form(options.target.form(options.recipe.chunk), false)? }))
    }

    /// Writes the same model in its other forms.
    pub fn forms(&self, options: &CompileOptions<'_>) -> Result<Forms, CompileError> {
        let softmax = widen(&self.source)?;
        if self.report.sites.iter().all(|site| site.kept.is_some()) {
            return Ok(Forms { softmax: in_any_runtime(softmax)?, linear: None });
        }
        let drawn = drawn(&self.model);
        let form = |form| in_any_runtime(lower(&softmax, options, form, Some(&drawn))?.0);
        let chunked = Form::Chunked(options.recipe.chunk);
        let (parallel, chunked) = rayon::join(|| form(Form::Parallel), || form(chunked));
        let linear = Some(LinearForms { parallel: parallel?, chunked: chunked? });
        Ok(Forms { softmax: in_any_runtime(softmax)?, linear })
    }
}

/// Last, as linear layers are recognised by their weights.
fn in_any_runtime(mut graph: Graph) -> Result<Graph, CompileError> {
    if int4::expand(&mut graph)? {
        canonicalize(&mut graph)?;
        check(&graph, "working out the weights of four bits")?;
    }
    Ok(graph)
}

fn lower(
    source: &Graph,
    options: &CompileOptions<'_>,
    form: Form,
    drawn: Option<&Drawn>,
) -> Result<(Graph, Report), CompileError> {
    let mut graph = source.clone();
    let report = lower_here(&mut graph, options, form, drawn)?;
    check(&graph, "the rewrite")?;
    Ok((graph, report))
}

fn lower_here(
    graph: &mut Graph,
    options: &CompileOptions<'_>,
    form: Form,
    drawn: Option<&Drawn>,
) -> Result<Report, CompileError> {
    let passes = Options { recipe: options.recipe, form, seed: options.seed, layers: options.layers, drawn };
    let report = rewrite(graph, &passes)?;
    canonicalize(graph)?;
    Ok(report)
}

/// A model that stays softmax altogether is served as the runtime serves it best. Where linear layers stand between,
/// their batches are padded at either side, which the runtime's operator does not allow.
fn serve_softmax(
    model: &mut Graph,
    report: &mut Report,
    options: &CompileOptions<'_>,
) -> Result<(), CompileError> {
    if options.recipe.attention != Attention::Softmax || !options.target.groups_softmax() {
        return Ok(());
    }
    match group(model)? {
        Some(reason) => report.notes.push(format!("softmax attention stays in plain operators: {reason}")),
        None => report.dropped_inputs.extend(drop_unused_inputs(model)?),
    }
    check(model, "grouping the attention")
}

/// A serving graph that only ONNX Runtime runs is written in what it runs fastest; others keep to standard operators.
/// So do those in half precision: between plain operators the CPU keeps f32, and fused ones round the residuals.
fn fuse_served(model: &mut Graph) -> Result<(), CompileError> {
    let only_there =
        |op: &Op| ONLY_THERE.iter().any(|name| (op.domain(), op.name()) == ("com.microsoft", *name));
    let half = |dtype: Option<DType>| matches!(dtype, Some(DType::F16 | DType::BF16));
    if model.nodes().any(|(_, node)| only_there(&node.op)) && !model.values().any(|(_, v)| half(v.ty.dtype)) {
        fuse(model)?;
        ConstantFactor.sweep(model)?;
        model.refresh_types()?;
    }
    Ok(())
}

fn check(graph: &Graph, stage: &'static str) -> Result<(), CompileError> {
    let mut violations = verify(graph).into_iter();
    let Some(first) = violations.next() else { return Ok(()) };
    let more = match violations.count() {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    Err(CompileError::Malformed { stage, first: Box::new(first), more })
}
