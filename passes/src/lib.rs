//! Graph in, graph out: the IR, its f64 oracle, and the rewrite of softmax attention into DiJiang's
//! frequency-domain kernel attention. No files, no protobuf, no runtime.

pub mod ir;
pub mod quantile;
pub mod random;
