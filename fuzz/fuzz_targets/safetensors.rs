//! Any bytes as a safetensors file: views that lie within it, or an error.
#![no_main]

use dijiang::checkpoint::read_header;
use dijiang_passes::ir::tensor::SharedBytes;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let bytes: SharedBytes = Arc::new(bytes.to_vec());
    let Ok(tensors) = read_header(&bytes, Path::new("model.safetensors")) else { return };
    for tensor in tensors.values().flatten() {
        assert_eq!(tensor.bytes().len(), tensor.byte_len());
    }
});
