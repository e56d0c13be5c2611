//! From a softmax graph to the graphs of a bundle: the serving graph, and the same model in the other
//! forms that verification compares it with.

use crate::target::Target;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::{Options, Report, RewriteError, rewrite};
use dijiang_passes::canon::{CanonError, canonicalize};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::PatchError;
use dijiang_passes::ir::verify::{Violation, verify};
use dijiang_passes::recipe::Recipe;
use dijiang_passes::widen::widen;

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
    /// The serving graph.
    pub model: Graph,
    /// The model as it came in, in standard operators and f32 arithmetic, whatever its weights are
    /// stored in.
    pub softmax: Graph,
    /// None where nothing was rewritten.
    pub forms: Option<Forms>,
    pub report: Report,
}

/// What the serving graph computes, in standard operators and f32 arithmetic.
#[derive(Debug, Clone)]
pub struct Forms {
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
pub fn compile(mut source: Graph, options: &CompileOptions<'_>) -> Result<Compiled, CompileError> {
    check(&source, "reading the source")?;
    canonicalize(&mut source)?;
    check(&source, "the clean-ups")?;
    let softmax = widen(&source)?;
    let chunk = options.recipe.chunk;
    let (model, forms) = rayon::join(
        || lower(&source, options, options.target.form(chunk)),
        || {
            let parallel = lower(&softmax, options, Form::Parallel)?.0;
            let chunked = lower(&softmax, options, Form::Chunked(chunk))?.0;
            Ok::<_, CompileError>(Forms { parallel, chunked })
        },
    );
    let (model, report) = model?;
    let rewritten = report.sites.iter().any(|site| site.kept.is_none());
    let forms = if rewritten { Some(forms?) } else { None };
    Ok(Compiled { model, softmax, forms, report })
}

fn lower(source: &Graph, options: &CompileOptions<'_>, form: Form) -> Result<(Graph, Report), CompileError> {
    let mut graph = source.clone();
    let passes = Options { recipe: options.recipe, form, seed: options.seed, layers: options.layers };
    let report = rewrite(&mut graph, &passes)?;
    canonicalize(&mut graph)?;
    check(&graph, "the rewrite")?;
    Ok((graph, report))
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
