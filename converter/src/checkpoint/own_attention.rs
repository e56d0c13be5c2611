//! Checkpoints of the authors' released code, which are linear already. Beside each attention of the model they hold, for H heads
//! of d channels, C = H·d and P positions,
//!
//! - `proj_matrix` `[d, d]`: features softmax(x P) of queries and keys, of all heads, without 1/√d;
//! - `D1`, `D2` `[1, H, P, 1]`: n_t = D1_t f(q_t)·Σ_{j≤t} D2_j f(k_j) v_j, which nothing divides;
//! - `group_norm.weight`, `group_norm.bias` `[C]`: of d groups of H consecutive channels of the merged heads;
//! - `W_G` `[C, C]`, `[in, out]`: what SiLU(x W_G) gates, x the input of the attention.
//!
//! They become the parameters of the recipe `released` with weights by position: with γ the decay that fits D2 best, which begins
//! as γ^-j, token j weighs D2_j γ^j and what token t reads D1_t γ^-t. These stay near one where D1 and D2 leave the range of f32.

use super::build::Builder;
use super::error::CheckpointError;
use dijiang_format::recipe::Recipe;
use dijiang_passes::attention::rewrite::AddedWeights;
use dijiang_passes::feature_map::added;
use dijiang_passes::ir::tensor::Tensor;

/// The recipe whose parameters they are.
pub(crate) const RECIPE: &str = "released";

/// What is called so in each layer.
const NAMES: [&str; 6] = ["proj_matrix", "D1", "D2", "group_norm.weight", "group_norm.bias", "W_G"];

/// The attention of a checkpoint that is not softmax.
#[derive(Debug, Clone)]
pub struct OwnAttention {
    /// How many positions have weights of their own.
    pub positions: u64,
    /// Its parameters, by the names that a conversion gives them.
    pub added: AddedWeights,
}

impl OwnAttention {
    /// What its parameters are those of.
    pub fn recipe(&self, released: Recipe) -> Recipe {
        Recipe { by_position: Some(self.positions), ..released }
    }

    /// What is to be told of a conversion.
    pub fn note(&self) -> String {
        format!(
            "the attention is the checkpoint's own, in the authors' released form; past its {} positions the last weights and the decay hold",
            self.positions
        )
    }
}

/// The sizes of an attention whose heads have keys and values of their own.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) heads: u64,
    pub(super) head_dim: u64,
}

/// Takes what the files hold for the attention `at`, where they hold something: all of it, in every layer.
pub(super) fn take(b: &mut Builder<'_>, at: &str, sizes: Sizes) -> Result<(), CheckpointError> {
    let is_there = NAMES.iter().any(|name| b.holds(&format!("{at}.{name}")));
    if !is_there && b.own_attention.is_none() {
        return Ok(());
    }
    let Sizes { heads, head_dim: d } = sizes;
    let width = heads * d;
    let positions = positions(b, at);
    let shapes: [&[u64]; 6] =
        [&[d, d], &[1, heads, positions, 1], &[1, heads, positions, 1], &[width], &[width], &[width, width]];
    let mut read = Vec::with_capacity(NAMES.len());
    for (name, shape) in NAMES.iter().zip(shapes) {
        read.push(numbers(b, &format!("{at}.{name}"), shape)?);
    }
    let [projection, d1, d2, weight, bias, gate] = &read[..] else { return Ok(()) };
    let positions_of = [positions, heads];
    let Weighed { log_decay, sums, values } = weighed(positions_of.map(|size| size as usize), d1, d2);
    let own = [
        ("omega", transposed(projection, d)),
        ("log_decay", tensor(&[heads, 1], &log_decay)),
        ("positions.sums", tensor(&positions_of, &sums)),
        ("positions.values", tensor(&positions_of, &values)),
        ("norm.weight", tensor(&[width], weight)),
        ("norm.bias", tensor(&[width], bias)),
        ("readout.weight", transposed(gate, width)),
    ];
    for (name, tensor) in &own {
        check_range(b, at, name, tensor)?;
    }
    let found = b.own_attention.get_or_insert_with(|| OwnAttention { positions, added: AddedWeights::new() });
    found.added.extend(own.map(|(name, tensor)| (added::name(at, None, name), tensor)));
    Ok(())
}

/// How many positions the layers before have weights for, or else this one, or else the config.
fn positions(b: &Builder<'_>, at: &str) -> u64 {
    let before = b.own_attention.as_ref().map(|own| own.positions);
    let here = || b.dims(&format!("{at}.D1")).and_then(|dims| dims.get(2).copied());
    before.or_else(here).or(b.meta.max_positions).unwrap_or_default()
}

/// The numbers of a tensor, all of which are finite.
fn numbers(b: &mut Builder<'_>, name: &str, shape: &[u64]) -> Result<Vec<f64>, CheckpointError> {
    let found = b.stored(name, shape)?.to_f64();
    match found.iter().all(|x| x.is_finite()) {
        true => Ok(found),
        false => Err(b.not_finite(name)),
    }
}

/// Of what was worked out of them too.
fn check_range(b: &Builder<'_>, at: &str, name: &str, tensor: &Tensor) -> Result<(), CheckpointError> {
    let is_finite = tensor.to_f64().iter().all(|x| x.is_finite());
    let from = if name == "positions.values" { "D2" } else { "D1" };
    if is_finite { Ok(()) } else { Err(b.not_finite(&format!("{at}.{from}"))) }
}

fn tensor(dims: &[u64], values: &[f64]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::from_f32(dims, &values)
}

/// Of `[size, size]`.
fn transposed(rows: &[f64], size: u64) -> Tensor {
    let n = size as usize;
    let values: Vec<f64> = (0..n * n).map(|at| rows[at % n * n + at / n]).collect();
    tensor(&[size, size], &values)
}

/// D1 and D2 `[heads, positions]` as a decay `[heads]` and weights `[positions, heads]`.
struct Weighed {
    log_decay: Vec<f64>,
    sums: Vec<f64>,
    values: Vec<f64>,
}

fn weighed([positions, heads]: [usize; 2], d1: &[f64], d2: &[f64]) -> Weighed {
    // As it is stored, so that the weights make up for what is rounded.
    let log_decay: Vec<f64> = d2.chunks(positions).map(|row| f64::from(log_decay(row) as f32)).collect();
    let by_position = |of: &dyn Fn(usize, usize) -> f64| {
        (0..positions * heads).map(|place| of(place % heads, place / heads)).collect::<Vec<f64>>()
    };
    let sums = by_position(&|head, at| d1[head * positions + at] * (-log_decay[head] * at as f64).exp());
    let values = by_position(&|head, at| d2[head * positions + at] * (log_decay[head] * at as f64).exp());
    Weighed { log_decay, sums, values }
}

/// The logarithm of the γ ≤ 1 whose γ^-j follows the sizes of a row best, by least squares of their logarithms.
fn log_decay(row: &[f64]) -> f64 {
    let sizes = row.iter().enumerate().map(|(at, x)| (at as f64, x.abs().ln()));
    let points: Vec<(f64, f64)> = sizes.filter(|(_, log)| log.is_finite()).collect();
    let count = points.len().max(1) as f64;
    let mean = points.iter().fold([0.0, 0.0], |sum, (at, log)| [sum[0] + at / count, sum[1] + log / count]);
    let (mut product, mut square) = (0.0, 0.0);
    for (at, log) in &points {
        product += (at - mean[0]) * (log - mean[1]);
        square += (at - mean[0]).powi(2);
    }
    if square == 0.0 { 0.0 } else { (-product / square).min(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The authors' first D1 and D2, 2,048 positions of them, and the slowest and the fastest head.
    #[test]
    fn what_the_authors_begin_with_weighs_one() {
        let (positions, gammas) = (2048, [1.0 - 1.0 / 32.0, 1.0 - 1.0 / 512.0f64]);
        let powers = |sign: f64| -> Vec<f64> {
            gammas.iter().flat_map(|g| (0..positions).map(move |t| g.powf(sign * t as f64))).collect()
        };
        let Weighed { log_decay, sums, values } = weighed([positions, 2], &powers(1.0), &powers(-1.0));
        for (log, gamma) in log_decay.iter().zip(gammas) {
            // As far as f32 goes.
            assert!((log / gamma.ln() - 1.0).abs() < 1e-7, "{log} {gamma}");
        }
        // What f32 rounds of the decay adds up over so many positions.
        assert!(sums.iter().chain(&values).all(|x| (x - 1.0).abs() < 1e-5));
    }

    #[test]
    fn the_decay_is_at_most_one_and_passes_over_zeros() {
        assert_eq!(log_decay(&[1.0, 0.5, 0.25]), 0.0);
        assert_eq!(log_decay(&[3.0]), 0.0);
        assert!((log_decay(&[1.0, 0.0, -4.0, 8.0]) + 2f64.ln()).abs() < 1e-12);
    }
}
