//! Any bytes as a GGUF file: a graph that verifies and tensors of the size that they say, or one line of error.
#![no_main]

use dijiang::checkpoint::of_gguf_bytes;
use dijiang_passes::ir::tensor::SharedBytes;
use dijiang_passes::ir::verify::verify;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;

/// What is read of a tensor, at most: one of a short file may say that it is of many blocks, but none of more bytes.
const MOST: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let bytes: SharedBytes = Arc::new(bytes.to_vec());
    let read = of_gguf_bytes(&bytes, Path::new("nowhere/model.gguf"));
    let built = read.and_then(|checkpoint| {
        for (_, tensor) in checkpoint.tensors().filter(|(_, tensor)| tensor.byte_len() < MOST) {
            assert_eq!(tensor.bytes().len(), tensor.byte_len());
        }
        checkpoint.build(None)
    });
    match built {
        Ok(model) => assert_eq!(verify(&model.graph), []),
        Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
    }
});
