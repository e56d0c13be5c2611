//! Non-negative least squares: coordinate descent (Franc, Hlaváč and Navara 2005) finds near which weights are zero, and the
//! active set method (Lawson and Hanson 1974) goes on from there to the solution.

/// Sweeps of coordinate descent; each lowers the objective.
const SWEEPS: usize = 400;
/// What a gradient at zero may be of the largest target and still be taken for none.
const TOLERANCE: f64 = 1e-10;
/// Changes of the set of weights that are not zero, as a multiple of their number: far more than are ever made.
const MOST_CHANGES: usize = 4;

/// w ≥ 0 that minimises ‖A w - b‖² + ridge·‖w‖², for row-major A with `columns` columns.
pub fn solve(a: &[f64], columns: usize, b: &[f64], ridge: f64) -> Vec<f64> {
    let (gram, right) = normal_equations(a, columns, b, ridge);
    descend(&gram, &right)
}

/// w ≥ 0 that minimises wᵀGw - 2 rᵀw, for a symmetric G with no negative eigenvalue. Where G has a zero one that matters, the
/// descent's last step stays.
pub fn descend(gram: &[f64], right: &[f64]) -> Vec<f64> {
    settle(gram, right, sweep(gram, right))
}

fn sweep(gram: &[f64], right: &[f64]) -> Vec<f64> {
    let columns = right.len();
    let mut w = vec![0.0; columns];
    // The gradient G w - r at w = 0.
    let mut gradient: Vec<f64> = right.iter().map(|r| -r).collect();
    for _ in 0..SWEEPS {
        for i in 0..columns {
            let curvature = gram[i * columns + i];
            if curvature <= 0.0 {
                continue;
            }
            let step = (w[i] - gradient[i] / curvature).max(0.0) - w[i];
            if step == 0.0 {
                continue;
            }
            w[i] += step;
            gradient.iter_mut().zip(&gram[i * columns..]).for_each(|(g, x)| *g += step * x);
        }
    }
    w
}

/// The solution, from weights near it.
fn settle(gram: &[f64], right: &[f64], near: Vec<f64>) -> Vec<f64> {
    let columns = right.len();
    let scale = right.iter().fold(0f64, |most, r| most.max(r.abs()));
    let mut open: Vec<bool> = near.iter().map(|w| *w > 0.0).collect();
    let mut w = near;
    for _ in 0..MOST_CHANGES * columns {
        let Some(wanted) = solved(gram, right, &open) else { return w };
        match first_to_close(&w, &wanted, &open) {
            Some(share) => {
                w.iter_mut().zip(&wanted).for_each(|(w, z)| *w += share * (z - *w));
                for (w, open) in w.iter_mut().zip(&mut open).filter(|(w, open)| **open && **w <= 0.0) {
                    (*w, *open) = (0.0, false);
                }
            }
            None => {
                w = wanted;
                match steepest(gram, right, &w, &open).filter(|(_, slope)| *slope > TOLERANCE * scale) {
                    Some((at, _)) => open[at] = true,
                    None => return w,
                }
            }
        }
    }
    w
}

/// How far on the way to what is wanted the first open weight is zero; none where all stay above.
fn first_to_close(w: &[f64], wanted: &[f64], open: &[bool]) -> Option<f64> {
    let closing = w.iter().zip(wanted).zip(open).filter(|((_, z), open)| **open && **z <= 0.0);
    closing.map(|((w, z), _)| if w > z { w / (w - z) } else { 0.0 }).min_by(f64::total_cmp)
}

/// The closed weight that lowers the objective most, and how steeply.
fn steepest(gram: &[f64], right: &[f64], w: &[f64], open: &[bool]) -> Option<(usize, f64)> {
    let slope = |i: usize| right[i] - dot(&gram[i * w.len()..(i + 1) * w.len()], w);
    let closed = (0..w.len()).filter(|i| !open[*i]).map(|i| (i, slope(i)));
    closed.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// G w = r over the open weights, and zeros; none where G is not positive there.
fn solved(gram: &[f64], right: &[f64], open: &[bool]) -> Option<Vec<f64>> {
    let at: Vec<usize> = (0..open.len()).filter(|i| open[*i]).collect();
    let (n, columns) = (at.len(), open.len());
    // Cholesky: G = L Lᵀ, row by row.
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let inner = dot(&l[i * n..i * n + j], &l[j * n..j * n + j]);
            let rest = gram[at[i] * columns + at[j]] - inner;
            l[i * n + j] = if i == j { (rest > 0.0).then(|| rest.sqrt())? } else { rest / l[j * n + j] };
        }
    }
    let mut x: Vec<f64> = at.iter().map(|i| right[*i]).collect();
    for i in 0..n {
        x[i] = (x[i] - dot(&l[i * n..i * n + i], &x[..i])) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let below: f64 = (i + 1..n).map(|j| l[j * n + i] * x[j]).sum();
        x[i] = (x[i] - below) / l[i * n + i];
    }
    let mut w = vec![0.0; columns];
    at.iter().zip(x).for_each(|(at, x)| w[*at] = x);
    Some(w)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// AᵀA + ridge·I and Aᵀb.
fn normal_equations(a: &[f64], columns: usize, b: &[f64], ridge: f64) -> (Vec<f64>, Vec<f64>) {
    let mut gram = vec![0.0; columns * columns];
    let mut right = vec![0.0; columns];
    for (row, target) in a.chunks_exact(columns).zip(b) {
        for i in 0..columns {
            right[i] += row[i] * target;
            for j in 0..columns {
                gram[i * columns + j] += row[i] * row[j];
            }
        }
    }
    for i in 0..columns {
        gram[i * columns + i] += ridge;
    }
    (gram, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::random::Random;

    #[test]
    fn an_exact_solution_is_found_and_a_negative_one_is_cut() {
        let a = [1.0, 0.0, 0.0, 2.0, 1.0, 1.0];
        let w = solve(&a, 2, &[3.0, 8.0, 7.0], 0.0);
        assert!((w[0] - 3.0).abs() < 1e-9 && (w[1] - 4.0).abs() < 1e-9, "{w:?}");
        // Without the bound the second weight would be -1; at zero the best first one is 1.
        let w = solve(&[1.0, 0.0, 0.0, 1.0], 2, &[1.0, -1.0], 0.0);
        assert_eq!(w, [1.0, 0.0]);
    }

    /// What holds of the solution and of nothing else: no slope along an open weight, and none upwards along a closed one.
    /// The columns are so alike that the descent alone is far from it.
    #[test]
    fn alike_columns_are_told_apart() {
        let (rows, columns) = (60, 40);
        let mut random = Random::named(3, "columns");
        let common: Vec<f64> = (0..rows).map(|_| random.normal().abs()).collect();
        let a: Vec<f64> = common
            .iter()
            .flat_map(|c| (0..columns).map(|_| c + 1e-2 * random.normal()).collect::<Vec<_>>())
            .collect();
        let b: Vec<f64> = common.iter().map(|c| c + 1e-2 * random.normal()).collect();
        let (gram, right) = normal_equations(&a, columns, &b, 1e-9);
        let slopes = |w: &[f64]| -> Vec<f64> {
            (0..columns).map(|i| right[i] - dot(&gram[i * columns..(i + 1) * columns], w)).collect()
        };
        let violated = |w: &[f64]| {
            let slopes = slopes(w);
            let of = |(w, slope): (&f64, &f64)| if *w > 0.0 { slope.abs() } else { slope.max(0.0) };
            w.iter().zip(&slopes).map(of).fold(0f64, f64::max)
        };
        let (swept, found) = (sweep(&gram, &right), descend(&gram, &right));
        assert!(found.iter().all(|w| *w >= 0.0));
        assert!(
            violated(&found) < 1e-7 && violated(&swept) > 1e-5,
            "{} {}",
            violated(&found),
            violated(&swept)
        );
    }
}
