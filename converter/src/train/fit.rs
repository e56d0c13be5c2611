//! Calibration without gradients: the weight of each feature, by least squares on the queries and keys of the
//! softmax model in the bundle.

use super::TrainError;
use super::finetune::DIR;
use super::trainer::{self, TrainerOptions};
use dijiang_passes::attention::fit::{self, Fit, Window};
use dijiang_passes::attention::rewrite::Options;
use dijiang_passes::attention::sampling_graph::{SAMPLES, SampledSite, write_samples};
use dijiang_passes::feature_map::added::{self, is_added_to};
use dijiang_passes::feature_map::{self, FeatureMap, Numbers, Owner, ParameterSpec, Role};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::training::samples::sample_graph;
use dijiang_passes::training::specialize::TOKENS;
use dijiang_runtime::{DeviceTensor, HostTensor, LoadOptions, OrtRuntime, Program};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The graph file of a run, in the bundle's directory `train`.
const FILE: &str = "samples.onnx";

/// Windows that are sampled.
pub(super) const WINDOWS: usize = 4;

/// Queries of each window that are asked.
const QUERIES: usize = 64;

/// Steps in which frequencies are scaled, up or down as long as it lowers the error.
const SCALE: f64 = 1.25;
const SCALINGS: usize = 8;

/// What the fit brought.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Fitted {
    pub heads: usize,
    /// Relative squared error of the attention weights, the mean over heads, before and after.
    pub error_before: f64,
    pub error: f64,
    /// Whether it lowered the model's loss on what was sampled; otherwise all is as it was.
    pub kept: bool,
}

/// Parameters of linear attentions by name.
pub(super) type Values = BTreeMap<String, Tensor>;

/// New values for the parameters that can be fitted. `None` where the recipe's map has none.
pub(super) fn fit_features(
    bundle: &Path,
    (mut softmax, options): (Graph, &Options<'_>),
    current: &Values,
    windows: &[Vec<i64>],
    how: &TrainerOptions,
) -> Result<Option<(Fitted, Values)>, TrainError> {
    let Some(map) = feature_map::find(&options.recipe.map.kind).filter(|map| map.log_weights().is_some())
    else {
        return Ok(None);
    };
    let sites = write_samples(&mut softmax, options)?;
    let graph = sample_graph(&softmax, how.size.sequence, current.clone())?;
    let dir = bundle.join(DIR);
    std::fs::create_dir_all(&dir).map_err(|source| TrainError::Io { path: dir.clone(), source })?;
    let mut sampler = Sampler::new(&trainer::write(&dir, FILE, &graph)?, how)?;
    let samples = windows.iter().map(|w| sampler.sample(w)).collect::<Result<Vec<_>, _>>()?;
    let stride = (how.size.sequence as usize / QUERIES).max(1);
    let (mut values, mut errors) = (Values::new(), Vec::new());
    for site in &sites {
        let mut work = Fitting { map, sampled: site, samples: &samples, stride, values: current.clone() };
        errors.extend(work.fit());
        values.extend(work.values.into_iter().filter(|(name, _)| is_added_to(name, &site.name)));
    }
    let mean = |of: fn(&(f64, f64)) -> f64| errors.iter().map(of).sum::<f64>() / errors.len() as f64;
    let (error_before, error) = (mean(|e| e.0), mean(|e| e.1));
    Ok(Some((Fitted { heads: errors.len(), error_before, error, kept: false }, values)))
}

/// One attention site at work.
struct Fitting<'a> {
    map: &'static dyn FeatureMap,
    sampled: &'a SampledSite,
    samples: &'a [Samples],
    stride: usize,
    values: Values,
}

impl Fitting<'_> {
    /// Scales frequencies, then fits weights; gives each query head's error before and after.
    fn fit(&mut self) -> Vec<(f64, f64)> {
        let heads = self.sampled.heads;
        let of_all = |site: &Self| -> Vec<f64> {
            (0..heads)
                .into_par_iter()
                .map(|h| site.with_windows(h, 1.0, |w| fit::error(w, site.stride)))
                .collect()
        };
        let before = of_all(self);
        if let Some(parameter) = self.map.frequencies() {
            self.scale(parameter);
        }
        let fits: Vec<Option<Fit>> = (0..heads)
            .into_par_iter()
            .map(|h| self.with_windows(h, 1.0, |w| fit::fit(w, self.stride)))
            .collect();
        let after = fits.iter().map(|f| f.as_ref().map_or(f64::NAN, |f| f.after));
        let errors = before.into_iter().zip(after).collect();
        if let Some(parameter) = self.map.log_weights() {
            let name = self.name(parameter, Role::Query);
            let logs = fits.iter().flatten().flat_map(|f| f.weights.iter().map(|w| w.ln()));
            let old = &self.values[&name];
            let new: Vec<f32> = old.to_f64().iter().zip(logs).map(|(o, log)| (o + log) as f32).collect();
            let new = Tensor::from_f32(old.dims(), &new);
            self.values.insert(name, new);
        }
        errors
    }

    /// Multiplies the frequencies of a key head and of the query heads that share it.
    fn scale(&mut self, parameter: &ParameterSpec) {
        let (heads, kv_heads) = (self.sampled.heads, self.sampled.kv_heads);
        let each = heads / kv_heads;
        let best: Vec<f64> = (0..kv_heads)
            .map(|g| {
                let error = |scale: f64| -> f64 {
                    let one = |h| self.with_windows(h, scale, |w| fit::error(w, self.stride));
                    (g * each..(g + 1) * each).into_par_iter().map(one).sum()
                };
                lowest(error)
            })
            .collect();
        for role in [Role::Query, Role::Key] {
            let name = self.name(parameter, role);
            let old = &self.values[&name];
            let numbers = old.to_f64();
            let part = numbers.len() / kv_heads;
            let new: Vec<f32> =
                numbers.iter().enumerate().map(|(i, x)| (x * best[i / part]) as f32).collect();
            let new = Tensor::from_f32(old.dims(), &new);
            self.values.insert(name, new);
        }
    }

    /// What a parameter of the map is called.
    fn name(&self, parameter: &ParameterSpec, role: Role) -> String {
        added::name(&self.sampled.name, parameter.role(role), parameter.name)
    }

    /// The parameters of one head, with its frequencies scaled.
    fn numbers(&self, role: Role, head: usize, heads: usize, scale: f64) -> Numbers {
        let mut numbers = Numbers::new();
        for parameter in self.map.parameters() {
            let all = self.values[&self.name(parameter, role)].to_f64();
            let mut part = match parameter.owner {
                Owner::Head => all[head * all.len() / heads..(head + 1) * all.len() / heads].to_vec(),
                Owner::Everyone => all,
            };
            if self.map.frequencies() == Some(parameter) {
                part.iter_mut().for_each(|x| *x *= scale);
            }
            numbers.insert(parameter.name, part);
        }
        numbers
    }

    fn with_windows<T>(&self, head: usize, scale: f64, then: impl FnOnce(&[Window<'_>]) -> T) -> T {
        let SampledSite { layer, heads, kv_heads, .. } = *self.sampled;
        let shared = head / (heads / kv_heads);
        let sides = [(Role::Query, head, heads), (Role::Key, shared, kv_heads)];
        let [of_query, of_key] = sides.map(|(role, head, heads)| self.numbers(role, head, heads, scale));
        let [q, k, log_decay] = SAMPLES.map(|name| format!("{name}{layer}"));
        let each: Vec<_> = self
            .samples
            .iter()
            .filter_map(|sample| {
                let (q, k) = (sample.get(&q)?, sample.get(&k)?);
                let dim = *q.shape.last()?;
                let phi = |x: &[f32], numbers: &Numbers, role| -> Vec<f32> {
                    let wide =
                        x.chunks_exact(dim).map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                    wide.flat_map(|x| self.map.eval(&x, numbers, role)).map(|x| x as f32).collect()
                };
                let (q, k) = (q.head(head), k.head(shared));
                let features = (phi(q, &of_query, Role::Query), phi(k, &of_key, Role::Key));
                Some((dim, q, k, features, sample.get(&log_decay).map(|log| log.head(shared))))
            })
            .collect();
        let windows: Vec<Window<'_>> = each
            .iter()
            .map(|(head_dim, q, k, (phi_q, phi_k), log_decay)| Window {
                head_dim: *head_dim,
                features: phi_q.len() / (q.len() / head_dim),
                q,
                k,
                phi_q,
                phi_k,
                log_decay: *log_decay,
            })
            .collect();
        then(&windows)
    }
}

/// The scale of the lowest error, one step after another away from 1.
fn lowest(error: impl Fn(f64) -> f64) -> f64 {
    let start = error(1.0);
    let walk = |step: f64| {
        let (mut best, mut scale) = (start, 1.0);
        for _ in 0..SCALINGS {
            let next = error(scale * step);
            if next.is_nan() || next >= best {
                break;
            }
            (best, scale) = (next, scale * step);
        }
        scale
    };
    match walk(SCALE) {
        up if up > 1.0 => up,
        _ => walk(SCALE.recip()),
    }
}

/// Samples of one window, by the name of the output.
type Samples = BTreeMap<String, HostNumbers>;

struct HostNumbers {
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl HostNumbers {
    /// Of the one row of the batch.
    fn head(&self, head: usize) -> &[f32] {
        let each = self.shape[2..].iter().product::<usize>();
        &self.numbers[head * each..(head + 1) * each]
    }
}

struct Sampler {
    program: Program,
    tokens: DeviceTensor,
    outputs: Vec<(String, DeviceTensor)>,
}

impl Sampler {
    fn new(path: &Path, how: &TrainerOptions) -> Result<Self, TrainError> {
        let load = LoadOptions { threads: how.threads, device: how.device, ..LoadOptions::default() };
        let mut program = Program::load(&OrtRuntime::new()?, path, &load)?;
        let tokens = program.allocate_like(TOKENS)?;
        program.bind_input(TOKENS, &tokens)?;
        let names: Vec<String> = program.outputs().iter().map(|io| io.name.clone()).collect();
        let mut outputs = Vec::new();
        for name in names {
            let tensor = program.allocate_like(&name)?;
            program.bind_output(&name, &tensor)?;
            outputs.push((name, tensor));
        }
        Ok(Self { program, tokens, outputs })
    }

    fn sample(&mut self, window: &[i64]) -> Result<Samples, TrainError> {
        self.tokens.write(&HostTensor::from_i64(&[1, window.len()], window)?)?;
        self.program.run()?;
        let read = |(name, tensor): &(String, DeviceTensor)| {
            let numbers = tensor.read()?.to_f32()?;
            Ok((name.clone(), HostNumbers { shape: tensor.shape().to_vec(), numbers }))
        };
        self.outputs.iter().map(read).collect()
    }
}
