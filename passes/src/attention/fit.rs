//! Weights of features without gradients: the weighted quasi-Monte Carlo problem (Eq. 32) of one head, by
//! non-negative least squares on sampled queries and keys.
//!
//! Attention divides by its own sum, so what is to be met is not exp(q·k) but the share p_ij that key j has of
//! query i: a_ij = Σ_m w_m φ_m(q_i) φ_m(k_j) / N_i with N_i the sum of the numerators over the keys that i sees.
//! Every query then counts alike, and factors that a map leaves out (exp of ‖q‖²/2) do no harm. a_ij is not
//! linear in w: each round solves the problem of its tangent (Gauss and Newton's method).

use crate::numeric::nnls;

/// Problems solved one after the other; few bring anything after the first.
const ROUNDS: usize = 8;

/// Halvings of a step that does not lower the error.
const HALVINGS: usize = 6;

/// No weight falls below this part of the largest: one that is trained afterwards can come back.
const FLOOR: f64 = 1e-3;

/// Kept back from the fit, relative to the mean curvature: it decides where features are alike.
const RIDGE: f64 = 1e-4;

/// What one head saw of one text, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    pub head_dim: usize,
    pub features: usize,
    /// `[tokens, head_dim]`, each scaled by √scale.
    pub q: &'a [f32],
    pub k: &'a [f32],
    /// φ of them, `[tokens, features]`; those of a query up to a factor.
    pub phi_q: &'a [f32],
    pub phi_k: &'a [f32],
    /// log a_t, where the head forgets.
    pub log_decay: Option<&'a [f32]>,
}

/// Weights that multiply φ(q), and what they bring.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub weights: Vec<f64>,
    /// Σ (a_ij - p_ij)² / Σ p_ij², with weights of one and with these.
    pub before: f64,
    pub after: f64,
}

/// The error of a head with weights of one.
pub fn error(windows: &[Window<'_>], stride: usize) -> f64 {
    let queries: Vec<Query> = windows.iter().flat_map(|w| queries(w, stride)).collect();
    let ones = vec![1.0; windows.first().map_or(0, |w| w.features)];
    queries.iter().map(|q| q.error(&ones)).sum::<f64>() / queries.iter().map(|q| q.size).sum::<f64>()
}

/// Fits the weights of a head. Every `stride`-th token asks.
pub fn fit(windows: &[Window<'_>], stride: usize) -> Option<Fit> {
    let m = windows.first()?.features;
    let queries: Vec<Query> = windows.iter().flat_map(|w| queries(w, stride)).collect();
    let size: f64 = queries.iter().map(|q| q.size).sum();
    let error = |w: &[f64]| queries.iter().map(|q| q.error(w)).sum::<f64>() / size;
    let mut weights = vec![1.0; m];
    let before = error(&weights);
    let mut after = before;
    for _ in 0..ROUNDS {
        let Some(found) = solve(&queries, &weights) else { break };
        let toward = |part: f64| -> Vec<f64> {
            let between = weights.iter().zip(&found).map(|(w, f)| w + part * (f - w));
            scaled(between.collect())
        };
        let steps = (0..HALVINGS).map(|n| toward(0.5_f64.powi(n as i32)));
        let Some((error, next)) = steps.map(|w| (error(&w), w)).find(|(e, _)| *e < after) else { break };
        (after, weights) = (error, next);
    }
    Some(Fit { weights, before, after })
}

/// A common factor changes nothing: the largest becomes one.
fn scaled(weights: Vec<f64>) -> Vec<f64> {
    let most = weights.iter().copied().fold(0.0, f64::max);
    weights.into_iter().map(|x| (x / most).max(FLOOR)).collect()
}

/// A query, with sums over the keys that it sees.
struct Query {
    /// φ(q), f.
    features: Vec<f64>,
    /// Σ_j φ(k_j).
    sums: Vec<f64>,
    /// Σ_j φ(k_j) φ(k_j)ᵀ.
    products: Vec<f64>,
    /// Σ_j p_ij φ(k_j).
    wanted: Vec<f64>,
    /// Σ_j p_ij².
    size: f64,
}

impl Query {
    /// Σ_m w_m f_m z_m = N.
    fn total(&self, w: &[f64]) -> f64 {
        self.features.iter().zip(w).zip(&self.sums).map(|((f, w), z)| f * w * z).sum()
    }

    /// f / N, f ⊙ w / N = x, and Σ_j a_ij φ(k_j).
    fn shares(&self, w: &[f64]) -> [Vec<f64>; 3] {
        let total = self.total(w);
        let ones: Vec<f64> = self.features.iter().map(|f| f / total).collect();
        let x: Vec<f64> = ones.iter().zip(w).map(|(o, w)| o * w).collect();
        let had = self.products.chunks_exact(x.len()).map(|row| inner(row, &x)).collect();
        [ones, x, had]
    }

    /// Σ_j (a_ij - p_ij)².
    fn error(&self, w: &[f64]) -> f64 {
        let [_, x, had] = self.shares(w);
        inner(&had, &x) - 2.0 * inner(&self.wanted, &x) + self.size
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The weights that are best where the shares are taken as linear around `w`: d a_ij / d w_m is
/// f_m / N (φ_m(k_j) - a_ij z_m).
fn solve(queries: &[Query], w: &[f64]) -> Option<Vec<f64>> {
    let m = w.len();
    let (mut gram, mut right) = (vec![0.0; m * m], vec![0.0; m]);
    for query in queries {
        let [ones, x, had] = query.shares(w);
        let (square, met) = (inner(&had, &x), inner(&query.wanted, &x));
        for i in 0..m {
            let z = query.sums[i];
            right[i] += ones[i] * (query.wanted[i] - had[i] + (square - met) * z);
            let products = &query.products[i * m..(i + 1) * m];
            for (j, g) in gram[i * m..(i + 1) * m].iter_mut().enumerate() {
                let own = products[j] - had[i] * query.sums[j] - z * had[j] + square * z * query.sums[j];
                *g += ones[i] * own * ones[j];
            }
        }
    }
    let mean = (0..m).map(|i| gram[i * m + i]).sum::<f64>() / m as f64;
    for i in 0..m {
        gram[i * m + i] += RIDGE * mean;
        right[i] += inner(&gram[i * m..(i + 1) * m], w);
    }
    let found = nnls::descend(&gram, &right);
    let most = found.iter().copied().fold(0.0, f64::max);
    (found.iter().all(|x| x.is_finite()) && most > 0.0).then_some(found)
}

fn queries(window: &Window<'_>, stride: usize) -> Vec<Query> {
    let m = window.features;
    let row = |x: &[f32], at: usize, n: usize| -> Vec<f64> {
        x[at * n..(at + 1) * n].iter().map(|x| f64::from(*x)).collect()
    };
    let tokens = window.phi_k.len() / m;
    let keys: Vec<Vec<f64>> = (0..tokens).map(|j| row(window.k, j, window.head_dim)).collect();
    let features: Vec<Vec<f64>> = (0..tokens).map(|j| row(window.phi_k, j, m)).collect();
    let (mut sums, mut products) = (vec![0.0; m], vec![0.0; m * m]);
    let mut found = Vec::new();
    for i in 0..tokens {
        let keep = window.log_decay.map_or(1.0, |log| f64::from(log[i]).exp());
        add(&mut sums, &mut products, &features[i], keep);
        if i % stride != stride - 1 {
            continue;
        }
        let q = row(window.q, i, window.head_dim);
        let shares = softmax(keys[..=i].iter().map(|k| inner(&q, k)).collect());
        let mut wanted = vec![0.0; m];
        let mut kept = 1.0;
        for j in (0..=i).rev() {
            wanted.iter_mut().zip(&features[j]).for_each(|(w, f)| *w += shares[j] * kept * f);
            kept *= window.log_decay.map_or(1.0, |log| f64::from(log[j]).exp());
        }
        found.push(Query {
            features: row(window.phi_q, i, m),
            sums: sums.clone(),
            products: products.clone(),
            wanted,
            size: shares.iter().map(|p| p * p).sum(),
        });
    }
    found
}

/// One more key in the sums, after what was there has decayed.
fn add(sums: &mut [f64], products: &mut [f64], features: &[f64], keep: f64) {
    for ((sum, row), f) in sums.iter_mut().zip(products.chunks_exact_mut(features.len())).zip(features) {
        *sum = *sum * keep + f;
        row.iter_mut().zip(features).for_each(|(p, g)| *p = *p * keep * keep + f * g);
    }
}

fn softmax(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.into_iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|x| x / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::random::Random;

    struct Texts {
        q: Vec<f32>,
        k: Vec<f32>,
        phi_q: Vec<f32>,
        phi_k: Vec<f32>,
        log_decay: Vec<f32>,
    }

    const TOKENS: usize = 12;

    fn texts(seed: u64, omega: &[[f64; 2]]) -> Texts {
        let mut random = Random::new(seed);
        let mut vectors = || -> Vec<f32> { (0..TOKENS * 2).map(|_| random.normal() as f32).collect() };
        let (q, k) = (vectors(), vectors());
        let phi = |x: &[f32]| -> Vec<f32> {
            let feature =
                |x: &[f32], w: &[f64; 2]| (f64::from(x[0]) * w[0] + f64::from(x[1]) * w[1]).exp() as f32;
            x.chunks_exact(2).flat_map(|x| omega.iter().map(move |w| feature(x, w))).collect()
        };
        let (phi_q, phi_k) = (phi(&q), phi(&k));
        let log_decay = (0..TOKENS).map(|t| -0.01 * t as f32).collect();
        Texts { q, k, phi_q, phi_k, log_decay }
    }

    fn window(texts: &Texts, features: usize, decays: bool) -> Window<'_> {
        Window {
            head_dim: 2,
            features,
            q: &texts.q,
            k: &texts.k,
            phi_q: &texts.phi_q,
            phi_k: &texts.phi_k,
            log_decay: decays.then_some(&texts.log_decay),
        }
    }

    /// The error as it is defined, key by key.
    fn plain_error(window: &Window<'_>, weights: &[f64]) -> f64 {
        let (m, d) = (window.features, window.head_dim);
        let (mut error, mut size) = (0.0, 0.0);
        for i in 0..TOKENS {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
            let of = |x, j: usize, n: usize| -> &[f32] {
                let x: &[f32] = x;
                &x[j * n..(j + 1) * n]
            };
            let exact: Vec<f64> =
                (0..=i).map(|j| dot(of(window.q, i, d), of(window.k, j, d)).exp()).collect();
            let linear: Vec<f64> = (0..=i)
                .map(|j| {
                    let pairs = of(window.phi_q, i, m).iter().zip(of(window.phi_k, j, m)).zip(weights);
                    let sum: f64 = pairs.map(|((a, b), w)| f64::from(*a) * f64::from(*b) * w).sum();
                    let log = window
                        .log_decay
                        .map_or(0.0, |log| log[j + 1..=i].iter().map(|x| f64::from(*x)).sum());
                    sum * f64::exp(log)
                })
                .collect();
            let (exact_sum, linear_sum): (f64, f64) = (exact.iter().sum(), linear.iter().sum());
            for (e, l) in exact.iter().zip(&linear) {
                error += (e / exact_sum - l / linear_sum).powi(2);
                size += (e / exact_sum).powi(2);
            }
        }
        error / size
    }

    const OMEGA: [[f64; 2]; 3] = [[1.2, 0.3], [-0.9, 0.8], [0.1, -1.4]];

    #[test]
    fn the_errors_are_those_of_the_definition() {
        for decays in [false, true] {
            let texts = texts(5, &OMEGA);
            let window = window(&texts, 3, decays);
            let fit = fit(&[window], 1).expect("there is a window");
            let plain = [plain_error(&window, &[1.0; 3]), plain_error(&window, &fit.weights)];
            // f32 products in the test's own scores.
            assert!((fit.before - plain[0]).abs() < 1e-5, "{fit:?} {plain:?}");
            assert!((fit.after - plain[1]).abs() < 1e-5, "{fit:?} {plain:?}");
        }
    }

    /// A grid over the two ratios of three weights, which is all there is to choose.
    #[test]
    fn the_fit_comes_near_the_best_of_all_weights() {
        for seed in 0..6 {
            let texts = texts(seed, &OMEGA);
            let window = window(&texts, 3, false);
            let fit = fit(&[window], 1).expect("there is a window");
            let steps = || (0..49).map(|i| 10_f64.powf(-3.0 + f64::from(i) / 8.0));
            let all = steps().flat_map(|a| steps().map(move |b| [1.0, a, b]));
            let best = all.map(|w| plain_error(&window, &w)).fold(f64::INFINITY, f64::min);
            assert!(fit.after <= fit.before);
            let part = (fit.before - fit.after) / (fit.before - best);
            assert!(part > 0.9, "seed {seed}: {fit:?}, best {best}");
        }
    }
}
