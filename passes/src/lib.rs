//! Graph in, graph out: the IR, its f64 oracle, and the rewrite of softmax attention into DiJiang's
//! frequency-domain kernel attention. No files, no protobuf, no runtime.

pub mod attention;
pub mod autodiff;
pub mod canon;
pub mod feature_map;
pub mod fuse;
pub mod int4;
pub mod ir;
pub mod numeric;
pub mod pattern;
pub mod pipeline;
pub mod precision;
pub mod serving_graph;
pub mod training;

#[cfg(test)]
mod testing;
