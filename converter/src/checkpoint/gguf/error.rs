//! What can be wrong with a GGUF file.

use crate::checkpoint::error::listed;
use crate::report::message::shown;
use std::path::PathBuf;

/// Why a GGUF file cannot be used. Every message is one line that names the file and the place in it, what was found there,
/// what was expected, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{}: it begins with {found}; expected `GGUF` (hint: {hint})", path.display())]
    Magic { path: PathBuf, found: String, hint: &'static str },
    #[error("{}: it is of GGUF version {found}; expected 2 or 3 (hint: convert the model to GGUF again with a newer llama.cpp)", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{}: it is a big-endian GGUF file, and little-endian ones alone are read (hint: `gguf_convert_endian.py FILE little` of the Python package gguf turns it around)", path.display())]
    BigEndian { path: PathBuf },
    #[error(
        "{}: the file ends at byte {size}, within {what} at byte {at}, which takes {wanted} bytes (hint: it was cut short or damaged, fetch it again)",
        path.display()
    )]
    Cut { path: PathBuf, what: String, at: u64, wanted: u64, size: u64 },
    #[error(
        "{}: {what} at byte {at} is {found}; expected {expected} (hint: the file is damaged or no model, fetch it again)",
        path.display()
    )]
    Broken { path: PathBuf, what: String, at: u64, found: String, expected: String },
    #[error("{}: {what} `{}` is there twice (hint: the file is damaged, fetch it again)", path.display(), shown(name))]
    Twice { path: PathBuf, what: &'static str, name: String },

    #[error("{}: key `{key}` is missing; expected {expected} (hint: convert the model to GGUF again with a newer llama.cpp)", path.display())]
    MissingKey { path: PathBuf, key: String, expected: &'static str },
    #[error("{}: key `{}` is {found}; expected {expected} (hint: {hint})", path.display(), shown(key))]
    BadKey { path: PathBuf, key: String, found: String, expected: String, hint: &'static str },
    #[error(
        "{}: general.architecture `{}` is not read of GGUF; read are: {read} (hint: convert the safetensors checkpoint that it was made from, where its family is supported)",
        path.display(), shown(found)
    )]
    Architecture { path: PathBuf, found: String, read: String },
    #[error(
        "{}: it is one of {count} files of a split model (hint: `llama-gguf-split --merge FIRST-FILE model.gguf` of llama.cpp joins them; then name that)",
        path.display()
    )]
    Split { path: PathBuf, count: u64 },

    #[error(
        "{}: tensor `{}` is of type {found}; read are {read} (hint: `llama-quantize --allow-requantize FILE NEW Q8_0` of llama.cpp writes it in another, or convert the model that was quantised)",
        path.display(), shown(tensor)
    )]
    TensorType { path: PathBuf, tensor: String, found: String, read: String },
    #[error("{}: tensor `{}` {problem} (hint: the file is damaged, fetch it again)", path.display(), shown(tensor))]
    Tensor { path: PathBuf, tensor: String, problem: String },
    #[error(
        "{}: {}, for which architecture {architecture} has no place: without {} it would be another model (hint: convert the safetensors checkpoint that it was made from)",
        path.display(), listed(names, *count), if *count == 1 { "it" } else { "them" }
    )]
    Unknown { path: PathBuf, architecture: &'static str, names: Vec<String>, count: usize },
}
