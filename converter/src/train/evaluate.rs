//! Measuring a bundle on text: perplexity, and questions with several answers by their likelihood.

use super::data::{self, DataError, Texts, Windows};
use super::finetune::model_graph;
use super::{TrainError, memory, trainer};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::training::loss::IGNORE;
use dijiang_passes::training::parameters::{ParameterLayout, Precision};
use dijiang_passes::training::specialize::{Size, TOKENS};
use dijiang_passes::training::step::{COUNT, LABELS, LOSS_SUM, evaluation};
use dijiang_runtime::temporary::Temporary;
use dijiang_runtime::{Device, DeviceTensor, HostTensor, LoadOptions, OrtRuntime, Program, Tokenizer};
use std::path::{Path, PathBuf};

const FILE: &str = "likelihood.onnx";

/// How to measure.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Tokens per row.
    pub context: u64,
    /// Tokens of a text, at most; only whole rows are measured.
    pub max_tokens: Option<usize>,
    pub device: Device,
    pub threads: Option<usize>,
}

/// A measurement, and over how many tokens or questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub value: f64,
    pub n: usize,
}

/// A bundle ready to be measured.
#[derive(Debug)]
pub struct Evaluator {
    program: Program,
    tokens: DeviceTensor,
    labels: DeviceTensor,
    sum: DeviceTensor,
    count: DeviceTensor,
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
        let size = Size { batch: 1, sequence: options.context };
        memory::check(&manifest, size, options.device)?;
        let model = model_graph(bundle, &manifest, options.context)?;
        let graph = evaluation(&model, &ParameterLayout { groups: Vec::new() }, size, Precision::F32)?;
        // Nothing is put into a bundle that is only measured.
        let io = |source| TrainError::Io { path: std::env::temp_dir(), source };
        let dir = Temporary::scratch("dijiang-eval").map_err(io)?;
        let path = trainer::write(&dir.path(), FILE, &graph)?;
        let load = LoadOptions { threads: options.threads, device: options.device, ..LoadOptions::default() };
        let mut program = Program::load(&OrtRuntime::new()?, &path, &load)?;
        let [tokens, labels] = [TOKENS, LABELS].map(|name| {
            let tensor = program.allocate_like(name)?;
            program.bind_input(name, &tensor)?;
            Ok::<_, TrainError>(tensor)
        });
        let names: Vec<String> = program.outputs().iter().map(|io| io.name.clone()).collect();
        let (mut sum, mut count) = (None, None);
        for name in names {
            let tensor = program.allocate_like(&name)?;
            program.bind_output(&name, &tensor)?;
            match name.as_str() {
                LOSS_SUM => sum = Some(tensor),
                COUNT => count = Some(tensor),
                _ => {}
            }
        }
        let missing = || TrainError::Graph(dijiang_passes::training::TrainingError::NoLogits);
        Ok(Self {
            program,
            tokens: tokens?,
            labels: labels?,
            sum: sum.ok_or_else(missing)?,
            count: count.ok_or_else(missing)?,
            bundle: bundle.to_owned(),
            manifest,
            context,
            max_tokens: options.max_tokens,
        })
    }

    /// The negative log-likelihood of the tokens from `from` on, and how many they are.
    fn loss(&mut self, tokens: &[i64], from: usize) -> Result<(f64, usize), TrainError> {
        let mut ids = tokens.to_vec();
        ids.resize(self.context, 0);
        let counts = |at: usize| at >= from && at < tokens.len();
        let labels: Vec<i64> =
            ids.iter().enumerate().map(|(at, id)| if counts(at) { *id } else { IGNORE }).collect();
        let shape = [1, self.context];
        self.tokens.write(&HostTensor::from_i64(&shape, &ids)?)?;
        self.labels.write(&HostTensor::from_i64(&shape, &labels)?)?;
        self.program.run()?;
        Ok((trainer::number_in(&self.sum)?, trainer::number_in(&self.count)?.round() as usize))
    }

    /// The perplexity over whole windows of a file, as fine-tuning validates.
    pub fn perplexity(&mut self, file: &Path) -> Result<Measured, TrainError> {
        let context = self.context;
        let most = self.max_tokens.map(|most| most - most % context);
        let tokenizer = self.bundle.join(files::TOKENIZER);
        let model = &self.manifest.model;
        let texts = Texts { tokenizer: &tokenizer, end: model.eos.first().copied(), vocab: model.vocab };
        let stream = data::read(&[file.to_owned()], &texts, most)?;
        let windows = Windows::new(stream, context, 0)?.in_order(usize::MAX);
        let (mut sum, mut n) = (0.0, 0);
        for window in &windows {
            let (loss, count) = self.loss(window, 0)?;
            (sum, n) = (sum + loss, n + count);
        }
        Ok(Measured { value: (sum / n as f64).exp(), n })
    }

    /// The share of questions whose right choice is the likeliest after the context.
    pub fn accuracy(&mut self, file: &Path, most: Option<usize>) -> Result<Measured, TrainError> {
        let questions = read_questions(file, most)?;
        let path = self.bundle.join(files::TOKENIZER);
        let tokenizer = Tokenizer::load(&path)?;
        let mut right = 0;
        for question in &questions {
            let mut losses = Vec::new();
            for choice in &question.choices {
                let begin = tokenizer.encode(&question.context)?.len();
                let whole = tokenizer.encode(&format!("{}{choice}", question.context))?;
                // The end is what is asked for.
                let cut = whole.len().saturating_sub(self.context);
                losses.push(self.loss(&whole[cut..], begin.saturating_sub(cut))?.0);
            }
            let likeliest = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b]));
            right += usize::from(likeliest == Some(question.answer));
        }
        Ok(Measured { value: f64::from(right as u32) / questions.len() as f64, n: questions.len() })
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
