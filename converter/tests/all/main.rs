//! Tests of the library and of the program, in one binary: each links all of ONNX and tract, which takes longer than most of
//! them run.

mod action;
mod batch_cli;
mod batch_plan;
mod batch_run;
mod broken;
mod cli;
mod decoding;
mod evaluation;
mod exports;
mod families;
mod family_bundles;
mod files;
mod foreign;
mod gguf;
mod grouped;
mod hostile;
mod hostile_weights;
mod manners;
mod mixed;
mod outputs;
mod provenance;
mod quantize;
mod report;
mod reports;
mod scan;
mod serving;
mod sources;
mod spellings;
mod stop_after;
mod support;
mod synth;
mod torch;
mod training;
mod wild;
mod wild_files;
