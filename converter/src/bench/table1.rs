//! The inference column of Table 1 of the paper (arXiv 2403.19928): throughput over that of the unconverted model.

/// Shapes whose ratio is known here, at second hand: the table itself was not at hand. Its other rows are left out.
const RATIOS: [(&str, f64); 2] = [("pythia-410m", 3.9), ("pythia-2.8b", 8.4)];

/// The paper's ratio for the shape that a name contains.
pub fn paper(name: &str) -> Option<(&'static str, f64)> {
    RATIOS.iter().find(|(shape, _)| name.contains(shape)).copied()
}
