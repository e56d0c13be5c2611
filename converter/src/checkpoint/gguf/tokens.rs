//! The tokens that begin, end and pad a text.

use super::config::Draft;
use super::header::Header;
use crate::checkpoint::error::CheckpointError;
use serde_json::json;

const FIRST: &str = "tokenizer.ggml.bos_token_id";
/// Of a text, of a turn and of a message.
const LAST: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const PAD: &str = "tokenizer.ggml.padding_token_id";

pub(super) fn describe(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    for (key, config) in [(FIRST, "bos_token_id"), (PAD, "pad_token_id")] {
        if let Some(token) = draft.header.count(key)? {
            draft.set(config, json!(token));
        }
    }
    let last = last(draft.header)?;
    if !last.is_empty() {
        draft.set("eos_token_id", json!(last));
    }
    Ok(())
}

/// Every token that ends a text.
fn last(header: &Header) -> Result<Vec<u64>, CheckpointError> {
    let mut all = Vec::new();
    for key in LAST {
        all.extend(header.count(key)?.filter(|token| !all.contains(token)));
    }
    Ok(all)
}
