//! Rotary position embedding (Su et al. 2021) in the rotate-half form, with the frequency scalings of
//! transformers' `modeling_rope_utils.py`.

use crate::checkpoint::build::Builder;
use crate::checkpoint::config::{Config, RopeConfig, RopeScaling};
use crate::checkpoint::error::CheckpointError;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::tensor::Tensor;
use std::f64::consts::TAU;

/// The cosines and sines of a graph, `[batch, 1, sequence, rotated]` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rope {
    cos: ValueId,
    sin: ValueId,
    /// How many features of a head are rotated, from the first.
    rotated: u64,
    head_dim: u64,
}

/// How many features of a head are rotated; an error where they do not form pairs.
pub(crate) fn rotated(config: &Config, rope: &RopeConfig, head_dim: u64) -> Result<u64, CheckpointError> {
    let rotated = (head_dim as f64 * rope.partial) as u64;
    if rotated == 0 || rotated % 2 == 1 || rotated > head_dim {
        let key = if rotated == head_dim { "head_dim" } else { "partial_rotary_factor" };
        let found = format!("such that {rotated} of {head_dim} features are rotated");
        return Err(config.bad(key, &found, "an even number of them, as they are rotated in pairs"));
    }
    Ok(rotated)
}

/// Writes cos and sin of `position · frequency`, once per graph. They are computed in f32: a position
/// times a frequency has no place in f16.
pub(crate) fn rope(
    b: &mut Builder<'_>,
    scope: &str,
    settings: &RopeConfig,
    head_dim: u64,
    positions: ValueId,
) -> Result<Rope, CheckpointError> {
    let rotated = rotated(b.config, settings, head_dim)?;
    let frequencies: Vec<f32> = frequencies(settings, rotated).into_iter().map(|f| f as f32).collect();
    let dtype = b.dtype;
    let p = &mut b.p;
    p.set_scope(scope);
    let frequencies = p.constant("inv_freq", Tensor::from_f32(&[rotated / 2], &frequencies));
    let positions = p.cast(positions, DType::F32);
    let positions = p.unsqueeze(positions, &[2]);
    let half = p.mul(positions, frequencies);
    let angles = p.concat(&[half, half], -1);
    let angles = p.unsqueeze(angles, &[1]);
    let cos = p.cos(angles);
    let sin = p.sin(angles);
    Ok(Rope { cos: p.cast(cos, dtype), sin: p.cast(sin, dtype), rotated, head_dim })
}

impl Rope {
    /// Rotates `[batch, heads, sequence, head_dim]`; features past the rotated ones stay as they are.
    pub(crate) fn rotate(&self, b: &mut Builder<'_>, x: ValueId) -> ValueId {
        let kept = self.head_dim - self.rotated;
        if kept == 0 {
            return self.rotate_all(b, x);
        }
        let parts = b.p.split(x, -1, &[self.rotated as i64, kept as i64]);
        let transposed = self.rotate_all(b, parts[0]);
        b.p.concat(&[transposed, parts[1]], -1)
    }

    fn rotate_all(&self, b: &mut Builder<'_>, x: ValueId) -> ValueId {
        let p = &mut b.p;
        let half = (self.rotated / 2) as i64;
        let straight = p.mul(x, self.cos);
        let parts = p.split(x, -1, &[half, half]);
        let negated = p.neg(parts[1]);
        let transposed = p.concat(&[negated, parts[0]], -1);
        let across = p.mul(transposed, self.sin);
        p.add(straight, across)
    }
}

/// The angle per position of each pair of features.
fn frequencies(settings: &RopeConfig, rotated: u64) -> Vec<f64> {
    let plain = (0..rotated).step_by(2).map(|i| settings.theta.powf(-(i as f64) / rotated as f64));
    plain.map(|f| scaled(f, settings.scaling)).collect()
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let turns = original * frequency / TAU;
            // How much of the frequency is kept: 0 below `low` turns within the original context,
            // 1 above `high`.
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (x, y) in found.iter().zip(expected) {
            assert!((x / y - 1.0).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    // The expected numbers come from a transcription of `_compute_*_parameters` of transformers 4.57
    // into plain Python, which branches where the code above clamps.

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let scaling = RopeScaling::Linear { factor: 2.0 };
        let settings = RopeConfig { theta: 10000.0, partial: 1.0, scaling };
        let expected = [
            0.5,
            0.107_721_734_501_594_2,
            0.023_207_944_168_063_897,
            0.005,
            0.001_077_217_345_015_942_1,
            0.000_232_079_441_680_638_87,
        ];
        close(&frequencies(&settings, 12), &expected);
    }

    #[test]
    fn llama3_scaling_keeps_short_wavelengths_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let settings = RopeConfig { theta: 500_000.0, partial: 1.0, scaling };
        let all = frequencies(&settings, 128);
        // Llama 3.1 8B: kept up to pair 28, interpolated from 29 to 34, divided from 35.
        let found: Vec<f64> = [0, 20, 28, 29, 30, 34, 35, 36, 63].into_iter().map(|i| all[i]).collect();
        let expected = [
            1.0,
            0.016_560_440_080_994_446,
            0.003_211_445_994_752_591_3,
            0.002_166_570_763_503_359,
            0.001_371_893_567_761_138_1,
            0.000_178_507_812_767_996_38,
            9.556_212_353_964_683e-5,
            7.784_655_273_932_45e-5,
            3.068_925_988_914_511e-7,
        ];
        close(&found, &expected);
    }

    #[test]
    fn llama3_scaling_of_a_short_head() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 };
        let settings = RopeConfig { theta: 1000.0, partial: 1.0, scaling };
        let expected = [
            1.0,
            0.193_871_077_181_054_73,
            0.022_228_492_625_486_533,
            0.009_373_677_616_655_697,
            0.003_952_847_075_210_474,
            0.001_666_901_790_204_155,
            0.000_702_926_656_487_936_4,
            0.000_296_421_713_207_706_87,
        ];
        close(&frequencies(&settings, 16), &expected);
    }
}
