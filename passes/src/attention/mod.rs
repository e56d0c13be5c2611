//! Softmax attention: found, put into one canonical form, and replaced by a linear recurrence.

pub mod branch_graph;
pub mod calibration_graph;
pub mod fit;
pub mod kept_graph;
mod lengths;
mod looks_back;
pub mod lower;
pub mod map_graph;
pub mod mask;
pub mod patterns;
mod plan;
mod position_tables;
mod positions;
pub mod rewrite;
pub mod sampling_graph;
pub mod scan_graph;
pub mod site;
mod site_writer;
mod softmaxes;
pub mod tables;
mod trial;

#[cfg(test)]
mod layer;
#[cfg(test)]
pub(crate) mod tests;
