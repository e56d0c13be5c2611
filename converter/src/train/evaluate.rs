//! Measuring a bundle on text: perplexity, and questions with several answers by their likelihood. What is measured is
//! what is served.

use super::TrainError;
use super::data::{self, DataError, Texts, Windows};
use crate::serving;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_runtime::{Device, Serving, ServingOptions, Tokenizer};
use std::path::{Path, PathBuf};

/// How to measure.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Tokens per row.
    pub context: u64,
    /// Tokens of a text, at most; only complete rows are measured.
    pub max_tokens: Option<usize>,
    pub device: Device,
    pub threads: Option<usize>,
}

/// A measurement, and over how many tokens or questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub value: f64,
    pub n: usize,
    /// Of the value, over windows or questions; absent where there is only one.
    pub standard_error: Option<f64>,
    /// What each window or question gave: the negative log-likelihood of a token there, on average, or 1 for a right
    /// answer and 0 for a wrong one.
    pub each: Vec<f64>,
}

/// Mean and standard error of some numbers; no error of less than two.
pub fn mean(each: &[f64]) -> (f64, Option<f64>) {
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    let squares: f64 = each.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (each.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()))
}

/// A bundle ready to be measured.
#[derive(Debug)]
pub struct Evaluator {
    serving: Serving,
    bundle: PathBuf,
    manifest: Manifest,
    context: usize,
    max_tokens: Option<usize>,
}

impl Evaluator {
    pub fn new(bundle: &Path, options: &EvalOptions) -> Result<Self, TrainError> {
        let context = options.context as usize;
        if let Some(most) = options.max_tokens.filter(|most| *most < context) {
            return Err(TrainError::MaxTokens { most, context });
        }
        let manifest = Manifest::read(bundle)?;
        if let Some(positions) = manifest.model.positions.filter(|p| *p < options.context) {
            return Err(TrainError::Positions { positions, context });
        }
        let EvalOptions { device, threads, .. } = *options;
        let serving = ServingOptions { device, threads, all_logits: true, ..ServingOptions::default() };
        Ok(Self {
            serving: serving::open(bundle, &serving)?,
            bundle: bundle.to_owned(),
            manifest,
            context,
            max_tokens: options.max_tokens,
        })
    }

    /// The log-likelihoods of the tokens of a row, from the second on.
    fn scores(&mut self, tokens: &[i64]) -> Result<Vec<f64>, TrainError> {
        self.serving.start(1)?;
        Ok(self.serving.score(&[tokens.to_vec()])?.concat())
    }

    /// The perplexity over complete windows of a file, as fine-tuning validates.
    pub fn perplexity(&mut self, file: &Path) -> Result<Measured, TrainError> {
        let context = self.context;
        let most = self.max_tokens.map(|most| most - most % context);
        let tokenizer = self.bundle.join(files::TOKENIZER);
        let model = &self.manifest.model;
        let texts = Texts { tokenizer: &tokenizer, end: model.eos.first().copied(), vocab: model.vocab };
        let stream = data::read(&[file.to_owned()], &texts, most)?;
        let windows = Windows::new(stream, context, 0)?.in_order(usize::MAX);
        let (mut each, mut sum, mut n) = (Vec::new(), 0.0, 0);
        for window in &windows {
            let scores = self.scores(window)?;
            let of_window = -scores.iter().sum::<f64>();
            each.push(of_window / scores.len() as f64);
            (sum, n) = (sum + of_window, n + scores.len());
        }
        let value = (sum / n as f64).exp();
        // That of a logarithm is relative.
        let standard_error = mean(&each).1.map(|error| error * value);
        Ok(Measured { value, n, standard_error, each })
    }

    /// The share of questions whose right choice is the likeliest after the context.
    pub fn accuracy(&mut self, file: &Path, most: Option<usize>) -> Result<Measured, TrainError> {
        let questions = read_questions(file, most)?;
        let path = self.bundle.join(files::TOKENIZER);
        let tokenizer = Tokenizer::load(&path)?;
        let mut each = Vec::new();
        for question in &questions {
            let mut likelihoods = Vec::new();
            for choice in &question.choices {
                let begin = tokenizer.encode(&question.context)?.len();
                let all = tokenizer.encode(&format!("{}{choice}", question.context))?;
                // The end is what is asked for.
                let cut = all.len().saturating_sub(self.context);
                let scores = self.scores(&all[cut..])?;
                // Nothing predicts the first token, so that scores begin with the second.
                let from = begin.saturating_sub(cut).saturating_sub(1).min(scores.len());
                likelihoods.push(scores[from..].iter().sum::<f64>());
            }
            let likeliest = (0..likelihoods.len())
                .max_by(|a, b| likelihoods[*a].total_cmp(&likelihoods[*b]).then(b.cmp(a)));
            each.push(f64::from(u8::from(likeliest == Some(question.answer))));
        }
        let (value, standard_error) = mean(&each);
        Ok(Measured { value, n: each.len(), standard_error, each })
    }
}

/// A line of a task's file.
#[derive(Debug, serde::Deserialize)]
struct Question {
    context: String,
    /// What may follow it, with the space between.
    choices: Vec<String>,
    /// Which of them does, from 0.
    answer: usize,
}

fn read_questions(file: &Path, most: Option<usize>) -> Result<Vec<Question>, TrainError> {
    let path = || file.to_owned();
    let text = std::fs::read_to_string(file).map_err(|source| DataError::Io { path: path(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(at, line): (usize, &str)| {
        let bad = |reason: String| DataError::Question { path: path(), line: at + 1, reason };
        let question: Question = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        if question.context.is_empty() {
            return Err(bad("the context is empty: nothing predicts the first token".to_owned()));
        }
        if question.answer >= question.choices.len() {
            let (answer, choices) = (question.answer, question.choices.len());
            return Err(bad(format!("answer {answer} of {choices} choices")));
        }
        Ok(question)
    };
    let questions = lines.take(most.unwrap_or(usize::MAX)).map(read).collect::<Result<Vec<_>, _>>()?;
    if questions.is_empty() {
        return Err(DataError::Empty { path: path() }.into());
    }
    Ok(questions)
}
