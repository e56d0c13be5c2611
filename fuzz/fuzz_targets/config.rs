//! Any text as a `config.json`: a graph whose weights are declared and lie nowhere, or one line of error.
#![no_main]

use dijiang::checkpoint::weights_of_text;
use dijiang_format::dtype::DType;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::path::Path;

/// Layers of a graph, at most: with weights for any number of them, a config may ask for more than memory holds.
const MOST: u64 = 8;

fuzz_target!(|text: &[u8]| {
    let few = |value: &Value| value.as_u64().is_none_or(|layers| layers <= MOST);
    if let Ok(config) = serde_json::from_slice::<Value>(text)
        && !["num_hidden_layers", "n_layer"].iter().all(|key| config.get(key).is_none_or(few))
    {
        return;
    }
    if let Err(e) = weights_of_text(text, Path::new("nowhere/config.json"), DType::F32) {
        assert!(!e.to_string().contains('\n'), "{e}");
    }
});
