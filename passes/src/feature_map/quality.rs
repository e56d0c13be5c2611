//! How well a map stands for the kernel: φ(q)·φ(k) against exp(q·k) on random vectors.
//!
//! The paper's theorems 3.2 and 3.3 claim that fixed (quasi-Monte Carlo) features come closer than
//! random ones, and weighted ones closer still. This measures it.

use super::{Numbers, Role, dot, find};
use crate::numeric::nnls;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Setup {
    pub spec: MapSpec,
    pub head_dim: usize,
    /// Length of q and k.
    pub length: f64,
    /// Pairs (q, k).
    pub pairs: usize,
    pub seed: u64,
}

/// The relative error |φ(q)·φ(k) / exp(q·k) - 1|: its mean over pairs, and the bias, the mean of
/// φ(q)·φ(k) / exp(q·k) minus one.
#[derive(Debug, Clone, Copy)]
pub struct KernelError {
    pub mean: f64,
    pub bias: f64,
}

/// Measures a map as it starts. `None` for a map that is not called by a known name.
pub fn measure(setup: &Setup) -> Option<KernelError> {
    let features = Features::new(setup)?;
    let ones = vec![1.0; features.count];
    Some(features.error(&ones, &pairs(setup, "measured")))
}

/// Measures a map with non-negative weights per feature, fitted without gradients on other pairs
/// (the weighted quasi-Monte Carlo problem, Eq. 32): the `log_d` of `wpff` and `wdcf`.
pub fn measure_weighted(setup: &Setup) -> Option<KernelError> {
    let features = Features::new(setup)?;
    let fitted = pairs(setup, "fitted");
    let rows: Vec<f64> = fitted.iter().flat_map(|pair| features.ratios(pair)).collect();
    let ridge = 1e-6 * fitted.len() as f64;
    let weights = nnls::solve(&rows, features.count, &vec![1.0; fitted.len()], ridge);
    Some(features.error(&weights, &pairs(setup, "measured")))
}

type Pair = (Vec<f64>, Vec<f64>);

fn pairs(setup: &Setup, stream: &str) -> Vec<Pair> {
    let mut random = Random::named(setup.seed, stream);
    let mut vector = || -> Vec<f64> {
        let x: Vec<f64> = (0..setup.head_dim).map(|_| random.normal()).collect();
        let scale = setup.length / dot(&x, &x).sqrt();
        x.iter().map(|x| x * scale).collect()
    };
    (0..setup.pairs).map(|_| (vector(), vector())).collect()
}

struct Features {
    map: &'static dyn super::FeatureMap,
    numbers: Numbers,
    count: usize,
}

impl Features {
    fn new(setup: &Setup) -> Option<Self> {
        let map = find(&setup.spec.kind)?;
        let mut random = Random::named(setup.seed, "map");
        let drawn = map.initial(&setup.spec, 1, setup.head_dim, &mut random);
        let numbers =
            map.parameters().iter().zip(drawn).map(|(p, tensor)| (p.name, tensor.to_f64())).collect();
        Some(Self { map, numbers, count: map.features(&setup.spec, setup.head_dim) })
    }

    /// φ_i(q) φ_i(k) / exp(q·k), feature by feature. Both sides are taken as keys, whose scale is kept.
    fn ratios(&self, (q, k): &Pair) -> Vec<f64> {
        let kernel = dot(q, k).exp();
        let (q, k) = (self.map.eval(q, &self.numbers, Role::Key), self.map.eval(k, &self.numbers, Role::Key));
        q.iter().zip(&k).map(|(a, b)| a * b / kernel).collect()
    }

    fn error(&self, weights: &[f64], pairs: &[Pair]) -> KernelError {
        let ratios: Vec<f64> = pairs.iter().map(|pair| dot(&self.ratios(pair), weights)).collect();
        let n = ratios.len() as f64;
        KernelError {
            mean: ratios.iter().map(|r| (r - 1.0).abs()).sum::<f64>() / n,
            bias: ratios.iter().sum::<f64>() / n - 1.0,
        }
    }
}

/// A row of the table: its label, and the error at each number of features.
#[derive(Debug, Clone)]
pub struct Row {
    pub label: &'static str,
    pub errors: Vec<Cell>,
}

/// An error, averaged over seeds.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub error: KernelError,
    /// The standard error of its mean.
    pub spread: f64,
}

impl Cell {
    fn of(errors: &[KernelError]) -> Self {
        let n = errors.len() as f64;
        let mean = |f: fn(&KernelError) -> f64| errors.iter().map(f).sum::<f64>() / n;
        let error = KernelError { mean: mean(|e| e.mean), bias: mean(|e| e.bias) };
        let squares: f64 = errors.iter().map(|e| (e.mean - error.mean).powi(2)).sum();
        Self { error, spread: (squares / (n - 1.0).max(1.0) / n).sqrt() }
    }
}

/// The table of `docs/kernel-quality.md`: each map over m = `multiples` · head_dim, averaged over seeds.
pub fn table(head_dim: usize, length: f64, multiples: &[usize], seeds: u64) -> Vec<Row> {
    use dijiang_format::recipe::{Lengths, Radial, Rows};
    type Measure = fn(&Setup) -> Option<KernelError>;
    let rows: [(&str, &str, Lengths, Radial, Measure); 6] = [
        ("prf, Monte Carlo (Eq. 5)", "prf", Lengths::Sampled, Radial::Normal, measure),
        ("pff as printed, Monte Carlo", "pff", Lengths::Sampled, Radial::Normal, measure),
        ("pff as printed, quasi-Monte Carlo (Eq. 9)", "pff", Lengths::Quantiles, Radial::Normal, measure),
        ("pff with chi lengths, Monte Carlo", "pff", Lengths::Sampled, Radial::Chi, measure),
        ("pff with chi lengths, quasi-Monte Carlo", "pff", Lengths::Quantiles, Radial::Chi, measure),
        (
            "wpff with chi lengths, D fitted (Eq. 10, 32)",
            "wpff",
            Lengths::Quantiles,
            Radial::Chi,
            measure_weighted,
        ),
    ];
    rows.into_iter()
        .map(|(label, kind, lengths, radial, measure)| {
            let at = |features: &usize| {
                let errors: Vec<KernelError> = (0..seeds)
                    .filter_map(|seed| {
                        let kind = kind.to_owned();
                        let rows = Rows::Independent;
                        let spec = MapSpec {
                            kind,
                            features: *features,
                            lengths,
                            radial,
                            rows,
                            ..MapSpec::default()
                        };
                        measure(&Setup { spec, head_dim, length, pairs: 1000, seed })
                    })
                    .collect();
                Cell::of(&errors)
            };
            Row { label, errors: multiples.iter().map(at).collect() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::recipe::{Lengths, Radial, Rows};

    fn mean(
        rows: Rows,
        kind: &str,
        lengths: Lengths,
        radial: Radial,
        measure: fn(&Setup) -> Option<KernelError>,
    ) -> KernelError {
        let seeds = 0..6;
        let errors: Vec<KernelError> = seeds
            .clone()
            .map(|seed| {
                let kind = kind.to_owned();
                let spec = MapSpec { kind, features: 4, lengths, radial, rows, ..MapSpec::default() };
                measure(&Setup { spec, head_dim: 16, length: 1.0, pairs: 300, seed }).expect("a known map")
            })
            .collect();
        let n = errors.len() as f64;
        KernelError {
            mean: errors.iter().map(|e| e.mean).sum::<f64>() / n,
            bias: errors.iter().map(|e| e.bias).sum::<f64>() / n,
        }
    }

    /// What holds of theorems 3.2 and 3.3, and what does not; docs/kernel-quality.md has the table.
    #[test]
    fn fixed_features_beat_random_ones_and_weighted_ones_beat_both() {
        let rows = Rows::Independent;
        let random = mean(rows, "prf", Lengths::Sampled, Radial::Normal, measure);
        let fixed = mean(rows, "pff", Lengths::Quantiles, Radial::Chi, measure);
        let weighted = mean(rows, "wpff", Lengths::Quantiles, Radial::Chi, measure_weighted);
        assert!(fixed.mean < random.mean, "{fixed:?} {random:?}");
        // Orthogonal rows are what fixed features have too.
        let orthogonal = mean(Rows::Orthogonal, "prf", Lengths::Sampled, Radial::Normal, measure);
        assert!(orthogonal.mean < random.mean, "{orthogonal:?} {random:?}");
        assert!(weighted.mean < 0.8 * fixed.mean, "{weighted:?} {fixed:?}");
        assert!(fixed.bias.abs() < 0.05, "{fixed:?}");
    }

    /// Eq. 9 as printed does not approximate exp(q·k): it lacks most of the kernel's mass at any m.
    #[test]
    fn the_printed_form_is_biased() {
        let printed = mean(Rows::default(), "pff", Lengths::Quantiles, Radial::Normal, measure);
        assert!(printed.bias < -0.8, "{printed:?}");
    }
}
