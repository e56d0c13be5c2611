//! What a step takes of memory, told before it runs.
//!
//! A conversion says it itself (`convert --estimate`). Other steps are taken to need a multiple of the bundle's bytes,
//! and what runtimes and graphs take whatever the size. The multiples are for weights of two bytes, which runtimes hold
//! as f32 and packed for their products too: with weights of four bytes they are twice too careful.

use crate::batch::plan::{Job, Step, StepCommand};
use crate::bundle::model_files;
use crate::report::progress::Estimate;
use std::fs::DirEntry;
use std::path::Path;

/// Runtimes, graphs and logits, in round numbers.
const WORKING: u64 = 400_000_000;

/// Reading and compiling a source for its estimate.
pub(super) const LOOKING: u64 = 128_000_000;

/// Sessions of all forms in turn; those of softmax hold more.
const PROOF: u64 = 8;
const SOFTMAX_PROOF: u64 = 16;
/// One session: weights as f32, and packed.
const SERVING: u64 = 4;
/// The model that is fitted, beside the one that it is fitted to.
const CALIBRATION: u64 = 8;
/// Weights, gradients and two moments, as f32, and activations of a batch.
const TRAINING: u64 = 12;

/// How many times the bundle's bytes a step holds.
fn multiple(command: StepCommand, is_softmax: bool) -> u64 {
    match command {
        StepCommand::Convert | StepCommand::Quantize | StepCommand::Verify if is_softmax => SOFTMAX_PROOF,
        StepCommand::Convert | StepCommand::Quantize | StepCommand::Verify => PROOF,
        StepCommand::Eval | StepCommand::Bench => SERVING,
        StepCommand::Calibrate => CALIBRATION,
        StepCommand::Finetune => TRAINING,
    }
}

/// Bytes that a step takes, where a conversion has said this of the job, or where it could not say.
pub(super) fn of_step(job: &Job, step: &Step, told: Option<Estimate>) -> u64 {
    if let Some(told) = told.filter(|_| step.command == StepCommand::Convert) {
        return told.memory;
    }
    let there = || model_files::bytes(&job.bundle).unwrap_or(0);
    let bundle = told.map_or_else(there, |told| told.disk);
    // Where there is no bundle either, its source is about as large.
    let bundle = if bundle == 0 { bytes(&job.source) } else { bundle };
    let times = multiple(step.command, job.recipe == "softmax");
    WORKING.saturating_add(bundle.saturating_mul(times))
}

/// Of the files in a directory, or of a file.
fn bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |file| file.len());
    };
    let of = |entry: DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes(&entry.path()),
        _ => std::fs::metadata(entry.path()).map_or(0, |file| file.len()),
    };
    entries.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_the_bytes_of_its_files() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(home.path().join("train")).expect("it is made");
        std::fs::write(home.path().join("a"), "123").expect("it is written");
        std::fs::write(home.path().join("train/b"), "4567").expect("it is written");
        std::os::unix::fs::symlink(home.path(), home.path().join("loop")).expect("it is made");
        assert_eq!(bytes(&home.path().join("a")), 3);
        assert!((7..100_000).contains(&bytes(home.path())));
        assert_eq!(bytes(&home.path().join("none")), 0);
    }
}
