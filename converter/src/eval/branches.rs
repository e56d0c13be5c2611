//! What a text costs a model more where a branch of its attentions is left out.

use super::EvalError;
use super::statistics::Measured;
use crate::bundle::softmax_model::SoftmaxModel;
use crate::convert::losses::{LossProgram, Rows, write_to};
use crate::report::progress::Progress;
use dijiang_format::names::BRANCHES;
use dijiang_passes::attention::branch_graph::{Branch, write_branches};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::training::parameters::{ParameterLayout, Precision};
use dijiang_passes::training::specialize::Size;
use dijiang_passes::training::step::evaluation;
use dijiang_runtime::{LoadOptions, OrtRuntime};
use std::path::Path;

/// A model whose branches can be left out. All of it is computed in f32, over whole rows of one length.
pub(super) struct Branches {
    program: LossProgram,
    found: Vec<Branch>,
    context: usize,
    /// Has the graph's weights, which are gone with it.
    _dir: tempfile::TempDir,
}

impl Branches {
    pub(super) fn open(
        bundle: &Path,
        context: usize,
        load: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, EvalError> {
        let mut softmax = SoftmaxModel::open(bundle, true)?;
        let mut graph = std::mem::take(&mut softmax.graph);
        let found = write_branches(&mut graph, &softmax.options(context as u64))?;
        softmax.check_parameters(&graph)?;
        canonicalize(&mut graph)?;
        let nothing = ParameterLayout::default();
        let size = Size { batch: 1, sequence: context as u64 };
        let graph = evaluation(&graph, &nothing, size, Precision::F32)?;
        let dir = tempfile::Builder::new().prefix(".dijiang-eval-").tempdir();
        let dir = dir.map_err(|source| EvalError::Scratch { source })?;
        let path = write_to(dir.path(), &graph, progress)?;
        let program = LossProgram::load(&OrtRuntime::new()?, &path, load, BRANCHES)?;
        Ok(Self { program, found, context, _dir: dir })
    }

    /// The perplexity of the windows without each of the branches that there are.
    pub(super) fn perplexities(
        &mut self,
        windows: &[Vec<i64>],
        progress: &mut dyn Progress,
    ) -> Result<Vec<(Branch, Measured)>, EvalError> {
        progress.items(
            &format!("without a branch at {}", self.context),
            (windows.len() * self.found.len()) as u64,
        );
        let rows: Vec<Rows> = windows
            .iter()
            .map(|window| Rows::new(std::slice::from_ref(window), 0))
            .collect::<Result<_, _>>()?;
        let mut all = Vec::new();
        for branch in self.found.clone() {
            let numbers = Branch::ALL.map(|other| if other == branch { 0.0 } else { 1.0 });
            self.program.give_numbers(BRANCHES, &numbers)?;
            let mut each = Vec::new();
            for row in &rows {
                each.push(self.program.loss(row)?);
                progress.advance(1);
            }
            let mean = each.iter().sum::<f64>() / each.len() as f64;
            let tokens = windows.iter().map(|window| window.len() - 1).sum();
            all.push((branch, Measured::perplexity(mean, each, tokens)));
        }
        Ok(all)
    }
}
