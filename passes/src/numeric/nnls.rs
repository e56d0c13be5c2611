//! Non-negative least squares.

/// Sweeps of coordinate descent; each lowers the objective, and the fits here settle well before.
const SWEEPS: usize = 400;

/// w ≥ 0 that minimises ‖A w - b‖² + ridge·‖w‖², for row-major A with `columns` columns, by coordinate
/// descent on the normal equations (Franc, Hlaváč and Navara 2005).
pub fn solve(a: &[f64], columns: usize, b: &[f64], ridge: f64) -> Vec<f64> {
    let (gram, right) = normal_equations(a, columns, b, ridge);
    descend(&gram, &right)
}

/// w ≥ 0 that minimises wᵀGw - 2 rᵀw, for a symmetric G with no negative eigenvalue.
pub fn descend(gram: &[f64], right: &[f64]) -> Vec<f64> {
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

    #[test]
    fn an_exact_solution_is_found_and_a_negative_one_is_cut() {
        let a = [1.0, 0.0, 0.0, 2.0, 1.0, 1.0];
        let w = solve(&a, 2, &[3.0, 8.0, 7.0], 0.0);
        assert!((w[0] - 3.0).abs() < 1e-9 && (w[1] - 4.0).abs() < 1e-9, "{w:?}");
        // Without the bound the second weight would be -1; at zero the best first one is 1.
        let w = solve(&[1.0, 0.0, 0.0, 1.0], 2, &[1.0, -1.0], 0.0);
        assert_eq!(w, [1.0, 0.0]);
    }
}
