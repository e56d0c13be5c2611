//! How fast bundles are: prefill and decode over context and batch, memory, and the share of the device's
//! bandwidth that decoding reaches.

pub mod alone;
mod copy;
pub mod picture;
pub mod table1;
mod weights;

use crate::onnx::export::ExportError;
use crate::onnx::import::ImportError;
use crate::provenance::opened::NotAsWritten;
use crate::report::progress::Progress;
use crate::serving::{self, OpenError};
use dijiang_format::manifest::ManifestError;
use dijiang_runtime::{Device, OrtRuntime, RuntimeError, Serving, ServingOptions, memory_in_use};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub contexts: Vec<usize>,
    pub batches: Vec<usize>,
    pub device: Device,
    pub threads: Option<usize>,
    /// Each figure is the median of so many.
    pub runs: usize,
    /// Tokens decoded in a run.
    pub steps: usize,
    /// Prompt tokens fed at a time; as `generate` does where absent.
    pub segment: Option<usize>,
    /// Whether what serves a linear model on a GPU replays recorded runs.
    pub cuda_graph: bool,
    /// A directory for ONNX Runtime's profiles of the graphs.
    pub profile: Option<PathBuf>,
    pub phases: Vec<Phase>,
    /// This program, in whose processes the memory of figures on the CPU is measured ([`alone`]). Without it that is
    /// measured here, where a model takes again what the one before it left.
    pub program: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Prefill,
    Decode,
    /// The largest batch that decodes at a context.
    Largest,
}

impl Phase {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Largest => "largest",
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub bundle: String,
    pub phase: Phase,
    pub batch: usize,
    pub context: usize,
    /// Of all rows of the batch together; absent, with the other times, where it did not fit.
    pub tokens_per_second: Option<f64>,
    /// Of a row: in decoding the time between two of its tokens.
    pub ms_per_token: Option<f64>,
    /// Until the first new token: prefill only.
    pub first_token_ms: Option<f64>,
    /// More than before the model was loaded.
    pub memory_bytes: Option<u64>,
    pub state_bytes: Option<u64>,
    /// Bytes that a step reads over its time, as a share of what a copy on the device moves: decode only.
    pub bandwidth: Option<f64>,
    /// Why there is no figure.
    pub failed: Option<String>,
}

/// Nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{}: {reason}", path.display())]
    Model { path: PathBuf, reason: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// What one machine gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Bytes per second that a copy on the device reads and writes.
    pub copy_bandwidth: f64,
    pub rows: Vec<Row>,
}

/// Measures bundles on one device, all of them at one point before the next, so that what else the machine does
/// in the meantime falls on all alike.
pub fn bench(
    bundles: &[PathBuf],
    options: &BenchOptions,
    progress: &mut dyn Progress,
) -> Result<Measured, BenchError> {
    // What is no bundle is told without a runtime too.
    let weight_bytes = bundles.iter().map(|bundle| weights::read_bytes(bundle, options.device));
    let weight_bytes = weight_bytes.collect::<Result<Vec<_>, BenchError>>()?;
    let runtime = OrtRuntime::new()?;
    progress.stage("measuring a copy");
    let copy_bandwidth = copy::bandwidth(&runtime, options.device)?;
    let prepared = bundles.iter().zip(weight_bytes).map(|(bundle, weight_bytes)| {
        let name = bundle.display().to_string();
        Bench { name, bundle: bundle.clone(), weight_bytes, options, copy_bandwidth }
    });
    let prepared: Vec<Bench<'_>> = prepared.collect();
    if options.device != Device::Cpu {
        progress.stage("loading the libraries of the device");
        prepared.iter().for_each(Bench::warm_up);
    }
    let mut rows = Vec::new();
    for phase in &options.phases {
        for context in &options.contexts {
            for batch in batches(*phase, options) {
                for bench in &prepared {
                    progress.stage(&format!("{}: {}, {batch} × {context}", bench.name, phase.name()));
                    let row = bench.row(*phase, batch, *context);
                    rows.push(bench.with_memory_of_its_own(row));
                }
            }
        }
    }
    progress.done();
    Ok(Measured { copy_bandwidth, rows })
}

fn batches(phase: Phase, options: &BenchOptions) -> Vec<usize> {
    match phase {
        Phase::Prefill | Phase::Largest => vec![1],
        Phase::Decode => options.batches.clone(),
    }
}

struct Bench<'a> {
    name: String,
    bundle: PathBuf,
    /// Bytes of weights that a step reads.
    weight_bytes: u64,
    options: &'a BenchOptions,
    copy_bandwidth: f64,
}

/// Steps before the clock runs, in which memory is taken and kernels are chosen.
const WARM_UP: usize = 3;
/// The largest batch that is tried.
const MOST: usize = 1 << 16;

impl Bench<'_> {
    fn row(&self, phase: Phase, batch: usize, context: usize) -> Row {
        let empty = self.empty(phase, batch, context);
        let measured = match phase {
            Phase::Prefill => self.prefill(empty.clone()),
            Phase::Decode => self.decode(empty.clone()),
            Phase::Largest => self.largest(empty.clone()),
        };
        measured.unwrap_or_else(|e| Row { failed: Some(e.to_string()), ..empty })
    }

    fn empty(&self, phase: Phase, batch: usize, context: usize) -> Row {
        Row {
            bundle: self.name.clone(),
            phase,
            batch,
            context,
            tokens_per_second: None,
            ms_per_token: None,
            first_token_ms: None,
            memory_bytes: None,
            state_bytes: None,
            bandwidth: None,
            failed: None,
        }
    }

    /// Has the libraries of a device take what they keep, which is no figure's.
    fn warm_up(&self) {
        let first = |numbers: &[usize]| numbers.iter().copied().min().unwrap_or(1);
        let row = self.empty(Phase::Decode, 1, first(&self.options.contexts));
        if let Err(e) = self.decode(row) {
            tracing::debug!("{}: {e}", self.name);
        }
    }

    /// A model anew for each figure, as what one leaves in a runtime's memory pool would count for the next.
    fn open(&self) -> Result<Serving, OpenError> {
        let BenchOptions { device, threads, segment, cuda_graph, .. } = *self.options;
        let profile = self.options.profile.clone();
        let options =
            ServingOptions { device, threads, segment, cuda_graph, profile, ..ServingOptions::default() };
        // Its bytes were compared once for all figures.
        serving::open_any(&self.bundle, &options)
    }

    fn memory(&self) -> Option<u64> {
        memory_in_use(self.options.device)
    }

    fn with_memory_of_its_own(&self, row: Row) -> Row {
        match &self.options.program {
            Some(program) if self.options.device == Device::Cpu && row.memory_bytes.is_some() => {
                Row { memory_bytes: alone::in_a_process(program, &self.bundle, &row, self.options), ..row }
            }
            _ => row,
        }
    }

    fn prefill(&self, row: Row) -> Result<Row, OpenError> {
        let before = self.memory();
        let mut serving = self.open()?;
        // Any ids will do, and every model has these.
        let prompt = vec![(0..row.context).map(|i| (i % 97) as i64).collect()];
        let mut times = Vec::new();
        for run in 0..=self.options.runs {
            serving.start(row.batch)?;
            serving.reserve(row.context)?;
            let started = Instant::now();
            serving.prefill(&prompt)?;
            if run > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
        let seconds = median(times);
        Ok(Row {
            tokens_per_second: Some(row.context as f64 / seconds),
            ms_per_token: Some(seconds * 1e3 / row.context as f64),
            first_token_ms: Some(seconds * 1e3),
            memory_bytes: since(before, self.memory()),
            state_bytes: Some(serving.state_bytes() as u64),
            ..row
        })
    }

    fn decode(&self, row: Row) -> Result<Row, OpenError> {
        let before = self.memory();
        let capacity = row.context + self.options.steps.max(WARM_UP);
        let mut serving = self.open()?;
        serving.start(row.batch)?;
        serving.reserve(capacity)?;
        let mut tokens = vec![1; row.batch];
        let mut times = Vec::new();
        for run in 0..=self.options.runs {
            serving.skip_to(row.context)?;
            let steps = if run == 0 { WARM_UP } else { self.options.steps };
            let started = Instant::now();
            for _ in 0..steps {
                tokens = serving.decode(&tokens)?;
            }
            if run > 0 {
                times.push(started.elapsed().as_secs_f64() / steps as f64);
            }
        }
        let (seconds, state) = (median(times), serving.state_bytes() as u64);
        let read = (self.weight_bytes + state) as f64;
        Ok(Row {
            tokens_per_second: Some(row.batch as f64 / seconds),
            ms_per_token: Some(seconds * 1e3),
            memory_bytes: since(before, self.memory()),
            state_bytes: Some(state),
            bandwidth: Some(read / seconds / self.copy_bandwidth),
            ..row
        })
    }

    /// Doubles the batch, from the largest that is asked for, until it does not fit, then halves the gap down to a
    /// sixteenth.
    fn largest(&self, row: Row) -> Result<Row, OpenError> {
        let (mut fits, mut fails) = (0, MOST + 1);
        let mut best = None;
        let mut failed = None;
        let mut batch = self.options.batches.iter().copied().max().unwrap_or(1);
        while batch > fits && batch < fails {
            match self.decode(Row { batch, ..row.clone() }) {
                Ok(found) => {
                    fits = batch;
                    best = Some(found);
                }
                Err(e) => {
                    fails = batch;
                    failed = Some(e);
                }
            }
            batch = match fails > MOST {
                true => fits * 2,
                false if (fails - fits) * 16 > fails => usize::midpoint(fits, fails),
                false => fits,
            };
        }
        match (best, failed) {
            (Some(best), _) => Ok(best),
            (None, Some(e)) => Err(e),
            (None, None) => Ok(row),
        }
    }
}

fn since(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    before.zip(after).map(|(before, after)| after.saturating_sub(before))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => times[middle],
        _ => f64::midpoint(times[middle - 1], times[middle]),
    }
}

/// The row of another bundle that a row is compared with: of the same phase and context, and of the same batch
/// unless the batch is what was looked for.
pub fn counterpart<'a>(rows: &'a [Row], row: &Row, against: &Path) -> Option<&'a Row> {
    let against = against.display().to_string();
    let alike = |other: &&Row| {
        other.bundle == against
            && other.phase == row.phase
            && other.context == row.context
            && (other.batch == row.batch || row.phase == Phase::Largest)
    };
    rows.iter().find(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
