//! The inference column of Table 1 of the paper (arXiv 2403.19928): throughput over that of the unconverted model.

/// Shapes whose ratio could be checked against a source; Table 1 has more, and they are left out until they can be.
const RATIOS: [(&str, f64); 2] = [("pythia-410m", 3.9), ("pythia-2.8b", 8.4)];

/// The paper's ratio for the shape that a name contains.
pub fn paper(name: &str) -> Option<(&'static str, f64)> {
    RATIOS.iter().find(|(shape, _)| name.contains(shape)).copied()
}
