//! The files of a bundle.
//!
//! Every graph file lies in the bundle's own directory: ONNX Runtime, tract and the ONNX checker
//! refuse external data outside the directory of the graph, so a graph in a subdirectory could not
//! point at the one weight file. What holds no weights may lie deeper.

use std::path::Path;

/// What was converted, and how.
pub const MANIFEST: &str = "dijiang.json";
/// Every weight.
pub const WEIGHTS: &str = "model.safetensors";
/// The serving graph.
pub const MODEL: &str = "model.onnx";
/// Serves prompts from bound memory, a segment at a time.
pub const PREFILL: &str = "prefill.onnx";
/// Serves one token per row from bound memory.
pub const DECODE: &str = "decode.onnx";
/// The unconverted model, which verification compares with.
pub const SOFTMAX: &str = "softmax.onnx";
/// The converted model with every position at once.
pub const PARALLEL: &str = "parallel.onnx";
/// The converted model in chunks.
pub const CHUNKED: &str = "chunked.onnx";
/// The model's own description.
pub const CONFIG: &str = "config.json";
/// The tokenizer, as the `tokenizers` library reads it.
pub const TOKENIZER: &str = "tokenizer.json";
/// The code of the PyTorch model, where it was exported.
pub const TORCH: &str = "modeling_dijiang.py";
/// The digests of all files, as `sha256sum` reads them, where they were asked for.
pub const CHECKSUMS: &str = "SHA256SUMS";
/// What training runs write into a bundle for themselves: no part of the model.
pub const RUNS: &str = "train";
/// What the names of weight files begin with that are the source's own, in a bundle that links to them: so that none is
/// taken for the bundle's own.
pub const LINKED: &str = "source-";

/// Whether no manifest lists what is called so: itself, what is made of it, and what training runs keep for themselves.
pub fn is_beside(name: &str) -> bool {
    [MANIFEST, CHECKSUMS, RUNS].contains(&name)
}

/// Whether a name is that of a weight file that the bundle links to.
pub fn is_linked(name: &str) -> bool {
    name.starts_with(LINKED) && name.ends_with(".safetensors")
}

/// Whether a name is that of a graph.
pub fn is_graph(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "onnx")
}

/// What onnxruntime-genai reads.
pub const GENAI_CONFIG: &str = "genai_config.json";
