//! Graph in, graph out: the IR, its f64 oracle, and the rewrite of softmax attention into DiJiang's
//! frequency-domain kernel attention. No files, no protobuf, no runtime.

pub mod attention;
pub mod autodiff;
pub mod canon;
pub mod constant_factor;
pub mod feature_blocks;
pub mod feature_map;
pub mod fuse;
pub mod int4;
pub mod ir;
mod joined;
pub mod nnls;
pub mod pattern;
pub mod quantile;
pub mod random;
pub mod rebuild;
pub mod recipe;
pub mod serving;
pub mod state_padding;
pub mod training;
pub mod widen;

#[cfg(test)]
mod testing;
