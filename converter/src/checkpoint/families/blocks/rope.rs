//! Rotary position embedding (Su et al. 2021) in the rotate-half form, with the frequency scalings of
//! transformers' `modeling_rope_utils.py`.

use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::{LongRope, RopeConfig, RopeScaling, Yarn};
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
    pairs: Pairs,
    /// What products of rotated features are multiplied with. transformers multiplies the cosines and sines of both
    /// sides with its root; once and elsewhere it leaves the rotation one that an operator knows.
    factor: f64,
}

/// Which two features turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// One of each half.
    Halves,
    /// Neighbours. They are brought into halves, in queries and keys alike, which no product of the two sees.
    Neighbours,
}

/// How many features of a head are rotated; an error where they do not form pairs.
pub(crate) fn rotated(config: &Config, rope: &RopeConfig, head_dim: u64) -> Result<u64, CheckpointError> {
    let rotated = (head_dim as f64 * rope.partial) as u64;
    if rotated == 0 || rotated % 2 == 1 || rotated > head_dim {
        let key = if rotated == head_dim { "head_dim" } else { "partial_rotary_factor" };
        let found = format!("such that {rotated} of {head_dim} features are rotated");
        return Err(config.bad(key, &found, "an even number of them, as they are rotated in pairs"));
    }
    match &rope.scaling {
        RopeScaling::LongRope(LongRope { factors, .. }) if factors.len() as u64 != rotated / 2 => {
            let found = format!("a list of {}", factors.len());
            Err(config.bad(
                "short_factor and long_factor",
                &found,
                &format!("{}, one for each pair", rotated / 2),
            ))
        }
        _ => Ok(rotated),
    }
}

/// What is rotated, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) settings: RopeConfig,
    pub(crate) pairs: Pairs,
}

/// Writes cos and sin of `position · frequency`, once per graph. They are computed in f32: a position
/// times a frequency has no place in f16.
pub(crate) fn rope(
    b: &mut Builder<'_>,
    scope: &str,
    rotary: &Rotary,
    head_dim: u64,
    positions: ValueId,
) -> Result<Rope, CheckpointError> {
    let Rotary { settings, pairs } = rotary;
    let rotated = rotated(b.config, settings, head_dim)?;
    b.notes.extend(settings.scaling.note());
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
    let (cos, sin) = (p.cos(angles), p.sin(angles));
    let (cos, sin) = (p.cast(cos, dtype), p.cast(sin, dtype));
    let factor = settings.scaling.attention().powi(2);
    Ok(Rope { cos, sin, rotated, head_dim, pairs: *pairs, factor })
}

impl Rope {
    /// What scores are multiplied with, where all features are rotated.
    pub(crate) fn of_scores(&self) -> f64 {
        if self.rotated == self.head_dim { self.factor } else { 1.0 }
    }

    /// [`Self::rotate`] of queries, with the factor of those features that are rotated where not all are.
    pub(crate) fn rotate_queries(&self, b: &mut Builder<'_>, q: ValueId) -> ValueId {
        if self.factor == self.of_scores() {
            return self.rotate(b, q);
        }
        let row: Vec<f32> =
            (0..self.head_dim).map(|i| if i < self.rotated { self.factor as f32 } else { 1.0 }).collect();
        let row = b.p.constant("factors", Tensor::from_f32(&[self.head_dim], &row).cast(b.dtype));
        let q = b.p.mul(q, row);
        self.rotate(b, q)
    }

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
        let x = match self.pairs {
            Pairs::Halves => x,
            Pairs::Neighbours => {
                let apart = p.reshape(x, &[0, 0, -1, half, 2]);
                let halves = p.transpose(apart, &[0, 1, 2, 4, 3]);
                p.reshape(halves, &[0, 0, -1, 2 * half])
            }
        };
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
    let scaled = |(pair, frequency): (usize, f64)| match &settings.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            // How much of the frequency is kept: 0 below `low` turns within the original context, 1 above `high`.
            let kept = (original * frequency / TAU - low) / (high - low);
            between(frequency, *factor, kept)
        }
        RopeScaling::Yarn(yarn) => {
            let [first, last] = yarn_bounds(yarn, settings.theta, rotated as f64);
            // By the number of the pair: 1 up to the first bound, 0 from the last on.
            let kept = 1.0 - (pair as f64 - first) / (last - first);
            between(frequency, yarn.factor, kept)
        }
        RopeScaling::LongRope(long) => frequency / long.factors.get(pair).copied().unwrap_or(1.0),
    };
    plain.enumerate().map(scaled).collect()
}

/// A frequency that is kept, divided by the factor, or between.
fn between(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    (1.0 - kept) * frequency / factor + kept * frequency
}

/// The pairs between which frequencies go from kept to divided.
fn yarn_bounds(yarn: &Yarn, theta: f64, rotated: f64) -> [f64; 2] {
    let pair = |turns: f64| rotated * (yarn.original / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (first, last) = match yarn.truncate {
        true => (pair(yarn.fast).floor(), pair(yarn.slow).ceil()),
        false => (pair(yarn.fast), pair(yarn.slow)),
    };
    let (first, last) = (first.max(0.0), last.min(rotated - 1.0));
    // Where both are one pair, it is the last that is kept.
    if first == last { [first, last + 0.001] } else { [first, last] }
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

    /// What transformers 5.17 gives, which computes in f32.
    fn close_to_f32(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (x, y) in found.iter().zip(expected) {
            assert!((x / y - 1.0).abs() < 2e-6, "{found:?} is not {expected:?}");
        }
    }

    fn yarn(original: f64, [fast, slow]: [f64; 2], truncate: bool) -> RopeScaling {
        RopeScaling::Yarn(Yarn { factor: 4.0, original, fast, slow, truncate, attention: 1.0 })
    }

    #[test]
    fn yarn_goes_from_kept_to_divided_between_its_bounds() {
        let of = |truncate| {
            let scaling = yarn(16.0, [2.0, 0.5], truncate);
            frequencies(&RopeConfig { theta: 1000.0, partial: 1.0, scaling }, 16)
        };
        let divided = [
            0.044_456_984_847_784_04,
            0.018_747_353_926_301_003,
            0.007_905_694_656_074_047,
            0.003_333_803_731_948_137_3,
            0.001_405_853_312_462_568_3,
            0.000_592_843_454_796_820_9,
        ];
        close_to_f32(&of(true), &[&[1.0, 0.263_560_324_907_302_86], &divided[..]].concat());
        close_to_f32(&of(false), &[&[1.0, 0.279_813_706_874_847_4], &divided[..]].concat());
        // Qwen2.5 with 131,072 positions.
        let scaling = yarn(32768.0, [32.0, 1.0], true);
        let all = frequencies(&RopeConfig { theta: 1e6, partial: 1.0, scaling }, 128);
        let found: Vec<f64> = [0, 20, 23, 24, 30, 35, 39, 40, 41, 63].into_iter().map(|i| all[i]).collect();
        let expected = [
            1.0,
            0.013_335_214_927_792_55,
            0.006_978_305_988_013_744,
            0.005_375_321_488_827_467,
            0.001_064_360_956_661_403_2,
            0.000_246_258_394_327_014_7,
            6.490_394_298_452_884e-5,
            4.445_698_505_151_085_6e-5,
            3.582_531_644_497_067e-5,
            3.102_344_408_034_696e-7,
        ];
        close_to_f32(&found, &expected);
    }

    #[test]
    fn longrope_divides_each_frequency_by_its_own_factor() {
        let long = LongRope { factors: vec![1.0, 4.0], is_long: true, original: 16.0, attention: 1.2 };
        let settings = RopeConfig { theta: 100.0, partial: 1.0, scaling: RopeScaling::LongRope(long) };
        close(&frequencies(&settings, 4), &[1.0, 0.025]);
    }
}
