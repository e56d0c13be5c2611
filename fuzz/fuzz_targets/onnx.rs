//! Any bytes as an ONNX file: a graph that verifies, or one line of error.
#![no_main]

use bytes::Bytes;
use dijiang::onnx::import::import_bytes;
use dijiang_passes::ir::verify::verify;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    match import_bytes(Bytes::copy_from_slice(bytes), Path::new("nowhere/model.onnx")) {
        Ok(read) => assert_eq!(verify(&read.graph), []),
        Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
    }
});
