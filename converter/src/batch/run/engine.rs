//! The ONNX Runtime that steps find: what they prove and measure depends on it.

use crate::batch::plan::{Step, StepCommand};
use dijiang_runtime::OrtRuntime;
use std::sync::OnceLock;

/// What it is called among the things that a step reads.
pub(super) const NAME: &str = "ONNX Runtime";

/// Looked for once, where a step needs it.
#[derive(Debug, Default)]
pub(super) struct Engine(OnceLock<String>);

impl Engine {
    /// Its version.
    pub(super) fn version(&self) -> &str {
        self.0.get_or_init(|| OrtRuntime::installed().unwrap_or_else(|| "missing".to_owned()))
    }
}

/// Whether a step may run anything there.
pub(super) fn is_used(step: &Step) -> bool {
    let has = |option: &str| step.arguments.iter().any(|argument| argument == option);
    let is_of_tract = step.arguments.windows(2).any(|pair| pair == ["--runtime", "tract"]);
    match step.command {
        StepCommand::Convert | StepCommand::Quantize => !has("--no-verify"),
        StepCommand::Verify => !has("--digests") && !is_of_tract,
        StepCommand::Calibrate | StepCommand::Finetune | StepCommand::Eval | StepCommand::Bench => true,
    }
}
