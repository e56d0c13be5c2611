//! Numbers without graphs: random draws, quantiles, least squares. The evaluation of graphs is in
//! [`crate::ir::eval`].

pub mod nnls;
pub mod quantile;
pub mod random;
