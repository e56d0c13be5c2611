//! A bundle that is measured. What is measured is what is served.

use super::EvalError;
use super::answers::Likelihood;
use super::branches::Branches;
use super::question::Question;
use super::scoring::Asking;
use super::statistics::Measured;
use super::synthetic::{LEAST, LENGTHS, Making, Synthetic};
use crate::bundle::described;
use crate::report::progress::{Progress, Say};
use crate::serving;
use crate::train::data::{self, Texts, Windows};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::attention::branch_graph::Branch;
use dijiang_runtime::{Device, LoadOptions, Serving, ServingOptions, Tokenizer};
use std::path::{Path, PathBuf};

/// Tokens of a row of text where nothing is said.
const CONTEXT: u64 = 512;
/// Tokens of a question, at most, where neither call nor model says it.
const LONGEST: u64 = 2048;

/// How to measure.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Tokens per row of text or of a task without a file; the longest is the most that a question may have.
    pub contexts: Vec<u64>,
    /// Tokens of a text, at most; only complete rows are measured.
    pub max_tokens: Option<usize>,
    pub device: Device,
    pub threads: Option<usize>,
    /// Whether the whole text of every choice is fed, rather than once what they share.
    pub no_branching: bool,
}

impl EvalOptions {
    /// Tokens per row of text.
    pub fn contexts(&self) -> Vec<u64> {
        if self.contexts.is_empty() { vec![CONTEXT] } else { self.contexts.clone() }
    }
}

/// A figure of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub metric: &'static str,
    pub measured: Measured,
}

/// A bundle ready to be measured.
#[derive(Debug)]
pub struct Evaluator {
    serving: Serving,
    bundle: PathBuf,
    manifest: Manifest,
    options: EvalOptions,
}

impl Evaluator {
    pub fn new(bundle: &Path, options: &EvalOptions) -> Result<Self, EvalError> {
        for context in options.contexts() {
            let context = context as usize;
            if let Some(most) = options.max_tokens.filter(|most| *most < context) {
                return Err(EvalError::MaxTokens { most, context });
            }
        }
        let manifest = Manifest::read(bundle)?;
        let too_long = |positions: u64| options.contexts.iter().copied().find(|context| *context > positions);
        if let Some((positions, context)) = manifest.model.positions.and_then(|p| Some((p, too_long(p)?))) {
            return Err(EvalError::Positions { positions, context });
        }
        let EvalOptions { device, threads, .. } = *options;
        let serving = ServingOptions { device, threads, all_logits: true, ..ServingOptions::default() };
        Ok(Self {
            serving: serving::open(bundle, &serving)?,
            bundle: bundle.to_owned(),
            manifest,
            options: options.clone(),
        })
    }

    /// The perplexity over complete windows of a file, as fine-tuning validates.
    pub fn perplexity(
        &mut self,
        file: &Path,
        context: u64,
        progress: &mut dyn Progress,
    ) -> Result<Measured, EvalError> {
        let windows = self.windows(file, context)?;
        if let Some(said) = described::beyond(described::positions(&self.bundle), context) {
            progress.say(Say::Warning, &format!("{}: {said}", self.bundle.display()));
        }
        progress.items(&format!("{} at {context}", file.display()), windows.len() as u64);
        let (mut each, mut sum, mut n) = (Vec::new(), 0.0, 0);
        for window in windows {
            self.serving.start(1)?;
            let scores = self.serving.score(&[window])?.concat();
            let of_window = -scores.iter().map(|score| score.log_probability).sum::<f64>();
            each.push(of_window / scores.len() as f64);
            (sum, n) = (sum + of_window, n + scores.len());
            progress.advance(1);
        }
        Ok(Measured::perplexity(sum / n as f64, each, n))
    }

    /// The same without each branch of its attentions.
    pub fn branches(
        &mut self,
        file: &Path,
        context: u64,
        progress: &mut dyn Progress,
    ) -> Result<Vec<(Branch, Measured)>, EvalError> {
        let windows = self.windows(file, context)?;
        let EvalOptions { device, threads, .. } = self.options;
        let load = LoadOptions { device, threads, ..LoadOptions::default() };
        Branches::open(&self.bundle, context as usize, &load, progress)?.perplexities(&windows, progress)
    }

    /// The complete windows of a file.
    fn windows(&self, file: &Path, context: u64) -> Result<Vec<Vec<i64>>, EvalError> {
        if let Some(positions) = self.manifest.model.positions.filter(|positions| *positions < context) {
            return Err(EvalError::Positions { positions, context });
        }
        let context = context as usize;
        let most = self.options.max_tokens.map(|most| most - most % context);
        let tokenizer = self.bundle.join(files::TOKENIZER);
        let model = &self.manifest.model;
        let texts = Texts { tokenizer: &tokenizer, end: model.eos.first().copied(), vocab: model.vocab };
        let stream = data::read(&[file.to_owned()], &texts, most)?;
        Ok(Windows::new(stream, context, 0)?.in_order(usize::MAX))
    }

    /// How likely each choice of each question is.
    pub fn ask(
        &mut self,
        name: &str,
        questions: &[Question],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<Likelihood>>, EvalError> {
        progress.items(name, questions.len() as u64);
        let tokenizer = Tokenizer::load(&self.bundle.join(files::TOKENIZER))?;
        let most = self.longest() as usize;
        let branches = !self.options.no_branching;
        let serving = &mut self.serving;
        Ok(Asking { serving, tokenizer: &tokenizer, most, branches }.likelihoods(questions, progress)?)
    }

    /// The lengths of rows that a task without a file has.
    pub fn lengths(&self) -> Vec<u64> {
        match self.options.contexts.as_slice() {
            [] => LENGTHS.into_iter().filter(|length| *length <= self.longest()).collect(),
            given => given.to_vec(),
        }
    }

    /// A task without a file over rows of one length, `limit` at most.
    pub fn synthetic(
        &mut self,
        what: Synthetic,
        (length, limit): (u64, usize),
        progress: &mut dyn Progress,
    ) -> Result<Vec<Figure>, EvalError> {
        let length = length as usize;
        let vocabulary = self.vocabulary()?;
        if length < LEAST {
            return Err(EvalError::Length { what: what.name(), length });
        }
        if what.keys(length) > vocabulary {
            return Err(EvalError::Keys { length, keys: what.keys(length), vocabulary });
        }
        let rows = what.rows(Making { length, limit, vocabulary });
        progress.items(&format!("{} at {length}", what.name()), rows.len() as u64);
        let (mut hits, mut losses, mut n) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            let scores = self.serving.score_branches(&[row])?.concat();
            match what {
                Synthetic::Copy => {
                    let scores = scores.concat();
                    let share = scores.iter().filter(|score| score.is_likeliest).count();
                    hits.push(share as f64 / scores.len() as f64);
                    losses.push(-scores.iter().map(|s| s.log_probability).sum::<f64>() / scores.len() as f64);
                    n += scores.len();
                }
                Synthetic::Recall => {
                    let values: Vec<_> = scores.iter().filter_map(|scores| scores.last()).collect();
                    hits.extend(values.iter().map(|value| f64::from(u8::from(value.is_likeliest))));
                    losses.extend(values.iter().map(|value| -value.log_probability));
                    n += values.len();
                }
            }
            progress.advance(1);
        }
        let figure = |metric, each| Figure { metric, measured: Measured::mean(each, n) };
        Ok(vec![figure("acc", hits), figure("negative_log_likelihood", losses)])
    }

    /// Tokens that a question may have: as the call says, or the model.
    fn longest(&self) -> u64 {
        let given = self.options.contexts.iter().copied().max();
        given
            .or(self.manifest.model.positions)
            .or_else(|| described::positions(&self.bundle))
            .unwrap_or(LONGEST)
    }

    /// Tokens that the model knows; an ONNX source may not say, and its tokenizer then does.
    fn vocabulary(&self) -> Result<usize, EvalError> {
        match self.manifest.model.vocab {
            0 => Ok(Tokenizer::load(&self.bundle.join(files::TOKENIZER))?.vocabulary()),
            known => Ok(known as usize),
        }
    }
}
