//! Numbers without graphs: random draws, quantiles, least squares. What computes with a graph's values is in
//! [`crate::ir::eval`].

pub mod nnls;
pub mod quantile;
pub mod random;
