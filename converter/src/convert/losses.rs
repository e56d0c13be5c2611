//! A graph of losses that is run as it is, with an input that says what of the model is left out.

use super::{ConvertError, plan_weights, write_graph, write_weights};
use crate::report::progress::Progress;
use dijiang_format::target::PORTABLE_OPSET;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::loss::IGNORE;
use dijiang_passes::training::specialize::TOKENS;
use dijiang_passes::training::step::{COUNT, LABELS, LOSS_SUM};
use dijiang_runtime::{DeviceTensor, HostTensor, LoadOptions, OrtRuntime, Program, RuntimeError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "losses.onnx";

/// Writes the graph and its weights to a directory that is there for nothing else.
pub(crate) fn write_to(
    dir: &Path,
    graph: &Graph,
    progress: &mut dyn Progress,
) -> Result<PathBuf, ConvertError> {
    let weights = plan_weights(&[graph], &[])?;
    write_weights(dir, &weights, progress)?;
    write_graph(dir, FILE, PORTABLE_OPSET.max(18), graph, &weights)?;
    Ok(dir.join(FILE))
}

/// Rows of one kind: tokens, and what counts of them.
pub(crate) struct Rows {
    tokens: HostTensor,
    labels: HostTensor,
}

impl Rows {
    /// Rows of one length; what stands before `from` is not counted.
    pub(crate) fn new(rows: &[Vec<i64>], from: usize) -> Result<Self, RuntimeError> {
        let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
        let counted = rows.iter().flat_map(|row| {
            row.iter().enumerate().map(|(at, token)| if at < from { IGNORE } else { *token })
        });
        Ok(Self {
            tokens: HostTensor::from_i64(&shape, &rows.concat())?,
            labels: HostTensor::from_i64(&shape, &counted.collect::<Vec<_>>())?,
        })
    }
}

/// The graph, loaded.
pub(crate) struct LossProgram {
    program: Program,
    inputs: BTreeMap<String, DeviceTensor>,
    outputs: BTreeMap<&'static str, DeviceTensor>,
}

impl LossProgram {
    /// With an input beside tokens and labels.
    pub(crate) fn load(
        runtime: &OrtRuntime,
        path: &Path,
        options: &LoadOptions,
        beside: &str,
    ) -> Result<Self, RuntimeError> {
        let mut program = Program::load(runtime, path, options)?;
        let (mut inputs, mut outputs) = (BTreeMap::new(), BTreeMap::new());
        let named = |name: &str, io: &[dijiang_runtime::Io]| io.iter().any(|io| io.name == name);
        for name in [TOKENS, LABELS, beside].into_iter().filter(|name| named(name, program.inputs())) {
            inputs.insert(name.to_owned(), program.allocate_like(name)?);
        }
        inputs.iter().try_for_each(|(name, tensor)| program.bind_input(name, tensor))?;
        for io in program.outputs().to_vec() {
            let tensor = program.allocate_like(&io.name)?;
            program.bind_output(&io.name, &tensor)?;
            if let Some(name) = [LOSS_SUM, COUNT].into_iter().find(|name| *name == io.name) {
                outputs.insert(name, tensor);
            }
        }
        Ok(Self { program, inputs, outputs })
    }

    /// Sets a vector of f32, where the graph reads it.
    pub(crate) fn give_numbers(&self, name: &str, numbers: &[f32]) -> Result<(), RuntimeError> {
        self.give(name, &HostTensor::from_f32(&[numbers.len()], numbers)?)
    }

    fn give(&self, name: &str, numbers: &HostTensor) -> Result<(), RuntimeError> {
        self.inputs.get(name).map_or(Ok(()), |tensor| tensor.write(numbers))
    }

    /// The mean loss of a counted token, in nats.
    pub(crate) fn loss(&mut self, rows: &Rows) -> Result<f64, RuntimeError> {
        self.give(TOKENS, &rows.tokens)?;
        self.give(LABELS, &rows.labels)?;
        self.program.run()?;
        let number = |name: &str| {
            let Some(tensor) = self.outputs.get(name) else { return Ok(f64::NAN) };
            let numbers = tensor.read()?.to_f32()?;
            Ok::<_, RuntimeError>(numbers.first().copied().map_or(f64::NAN, f64::from))
        };
        Ok(number(LOSS_SUM)? / number(COUNT)?)
    }
}
