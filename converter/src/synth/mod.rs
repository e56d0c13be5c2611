//! Random checkpoints of published shapes: speed does not depend on the values.

pub mod shapes;

use crate::bundle::atomic::{BundleError, NewBundle};
use crate::bundle::weights::{LayoutError, WeightFile};
use crate::checkpoint::{self, CheckpointError};
use crate::report::progress::Progress;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_passes::ir::tensor::{SharedBytes, Tensor, TensorSizeError};
use dijiang_passes::numeric::random::Random;
use rayon::prelude::*;
use shapes::Shape;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct SynthOptions {
    pub dtype: DType,
    pub seed: u64,
    /// The shape's own where it is `None`.
    pub layers: Option<u64>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub tensors: usize,
    pub parameters: u64,
    pub bytes: u64,
}

/// A checkpoint could not be made; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// Writes `config.json` and `model.safetensors` of a shape into a directory that is not there yet.
///
/// All matrices are windows of one pool of random numbers that is as large as the largest of them, so that
/// memory does not grow with the model.
pub fn synth(
    shape: &Shape,
    target: &Path,
    options: &SynthOptions,
    progress: &mut dyn Progress,
) -> Result<Written, SynthError> {
    progress.stage("laying out the checkpoint");
    let directory = NewBundle::begin(target, false)?;
    let config = shape.config(options.layers.unwrap_or(shape.layers), torch_name(options.dtype));
    let path = directory.path().join(files::CONFIG);
    let io = |path: &Path| {
        let path = path.display().to_string();
        |source| SynthError::Io { path, source }
    };
    std::fs::write(&path, format!("{config:#}\n")).map_err(io(&path))?;
    let weights = checkpoint::weights_of(&path, options.dtype)?;
    let pool = Pool::new(&weights, options);
    let tensors: Vec<(&str, Tensor)> = weights
        .iter()
        .map(|(name, dims)| Ok((name.as_str(), pool.tensor(name, dims)?)))
        .collect::<Result<_, SynthError>>()?;
    let file = WeightFile::plan(tensors.iter().map(|(name, tensor)| (*name, tensor)))?;
    progress.bytes("writing the weights", file.size());
    let path = directory.path().join(files::WEIGHTS);
    let mut out = File::create(&path).map_err(io(&path))?;
    file.write(&mut out, &mut |bytes| progress.advance(bytes)).map_err(io(&path))?;
    drop(out);
    progress.stage("making it durable");
    directory.commit()?;
    progress.done();
    let parameters = tensors.iter().map(|(_, tensor)| tensor.len() as u64).sum();
    Ok(Written { tensors: tensors.len(), parameters, bytes: file.size() })
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// Random numbers, and ones for the weights of norms.
struct Pool {
    random: SharedBytes,
    ones: SharedBytes,
    options: SynthOptions,
}

/// The deviation that GPT-2 and its successors begin with.
const DEVIATION: f32 = 0.02;
/// Numbers drawn from one stream, so that threads can share the work.
const PIECE: usize = 1 << 16;

impl Pool {
    fn new(weights: &[(String, Vec<u64>)], options: &SynthOptions) -> Self {
        let count = |dims: &[u64]| dims.iter().product::<u64>() as usize;
        let largest = weights.iter().map(|(_, dims)| count(dims)).max().unwrap_or(0);
        let vector = weights.iter().filter(|(_, dims)| dims.len() == 1).map(|(_, dims)| count(dims)).max();
        let size = options.dtype.size();
        let mut random = vec![0; largest * size];
        random.par_chunks_mut(PIECE * size).enumerate().for_each(|(piece, bytes)| {
            let mut stream = Random::named(options.seed, &format!("synth.{piece}"));
            bytes.chunks_mut(size).for_each(|at| put(options.dtype, spread(&mut stream), at));
        });
        let mut ones = vec![0; vector.unwrap_or(0) * size];
        ones.chunks_mut(size).for_each(|at| put(options.dtype, 1.0, at));
        Self { random: Arc::new(random), ones: Arc::new(ones), options: *options }
    }

    fn tensor(&self, name: &str, dims: &[u64]) -> Result<Tensor, TensorSizeError> {
        let size = self.options.dtype.size();
        let bytes = dims.iter().product::<u64>() as usize * size;
        let is_scale = dims.len() == 1 && name.ends_with("norm.weight");
        let owner = if is_scale { &self.ones } else { &self.random };
        // Each tensor has a window of its own, so that layers differ.
        let room = ((**owner).as_ref().len() - bytes) / size;
        let at = Random::named(self.options.seed, name).next_u64() % (room as u64 + 1);
        Tensor::view(self.options.dtype, dims.to_vec(), owner.clone(), at as usize * size, bytes)
    }
}

/// Uniform with the deviation wanted: as good as normal here, and cheaper.
fn spread(stream: &mut Random) -> f32 {
    (stream.uniform() as f32 - 0.5) * 12f32.sqrt() * DEVIATION
}

fn put(dtype: DType, value: f32, at: &mut [u8]) {
    match dtype {
        DType::F16 => at.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        DType::BF16 => at.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        _ => at.copy_from_slice(&value.to_le_bytes()),
    }
}
