//! The memory that one figure takes, in a process that does nothing else: what other models have left in a heap is taken
//! again, and hides what the next one takes.

use super::{Bench, BenchError, BenchOptions, Phase, Row};
use dijiang_runtime::OrtRuntime;
use std::path::Path;
use std::process::Command;

/// The option of `dijiang bench` that has it call [`measure`].
pub const OPTION: &str = "alone";

/// Bytes that the figure of a row takes, as a process of this program measures it.
pub(super) fn in_a_process(program: &Path, bundle: &Path, row: &Row, options: &BenchOptions) -> Option<u64> {
    let mut call = Command::new(program);
    call.arg("bench").arg(format!("--{OPTION}={}", row.phase.name()));
    call.arg(format!("--context={}", row.context)).arg(format!("--batch={}", row.batch));
    call.arg(format!("--steps={}", options.steps));
    call.args(options.threads.map(|threads| format!("--threads={threads}")));
    call.args(options.segment.map(|segment| format!("--segment={segment}")));
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let found = match call.arg("--").arg(bundle).output() {
        Ok(output) => told(&output.stdout).parse().map_err(|_| told(&output.stderr)),
        Err(e) => Err(e.to_string()),
    };
    let place = bundle.display();
    let warn = |why: &String| {
        tracing::warn!("{place}: the memory at {} tokens was not measured: {why}", row.context);
    };
    found.inspect_err(warn).ok()
}

/// Bytes that one figure takes: the first of the batches and contexts, of one run. `None` where the system does not say.
pub fn measure(bundle: &Path, phase: Phase, options: &BenchOptions) -> Result<Option<u64>, BenchError> {
    OrtRuntime::new()?;
    let options = BenchOptions { runs: 0, ..options.clone() };
    let first = |numbers: &[usize]| numbers.first().copied().unwrap_or(1);
    let (name, weight_bytes) = (bundle.display().to_string(), 0);
    let bench =
        Bench { name, bundle: bundle.to_owned(), weight_bytes, options: &options, copy_bandwidth: 1.0 };
    let row = bench.row(phase, first(&options.batches), first(&options.contexts));
    match row.failed {
        Some(reason) => Err(BenchError::Model { path: bundle.to_owned(), reason }),
        None => Ok(row.memory_bytes),
    }
}
