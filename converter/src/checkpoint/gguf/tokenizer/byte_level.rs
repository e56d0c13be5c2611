//! Byte-level BPE, as GPT-2 has it. Where a text is cut first is a rule of its own for each model, which the file only
//! names.

use super::{Not, Vocabulary};
use crate::checkpoint::gguf::value::Value;
use crate::report::message::shown;
use serde_json::{Value as Json, json};

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

/// How a text is cut before merges.
struct Pre {
    names: &'static [&'static str],
    cut: Cut,
    /// Whether a text is brought into the composed form first.
    composed: bool,
    /// Whether a piece that is a token is one, whatever its merges.
    whole: bool,
    /// Whether a text begins with a token of its own where no key tells.
    begins: bool,
}

enum Cut {
    /// By the expression of GPT-2, which the library has.
    Own,
    /// The same after each digit was cut off.
    Digits,
    By(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRES: &[Pre] = &[
    Pre { names: &["gpt-2", "gpt2", "phi-2"], cut: Cut::Own, composed: false, whole: false, begins: false },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cut: Cut::By(LLAMA3),
        composed: false,
        whole: true,
        begins: true,
    },
    Pre { names: &["qwen2"], cut: Cut::By(QWEN2), composed: true, whole: false, begins: false },
    Pre { names: &["smollm", "starcoder"], cut: Cut::Digits, composed: false, whole: false, begins: false },
];

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Json, Not> {
    let pre = pre(vocabulary)?;
    let Some(Value::Texts(merges)) = vocabulary.header.values.get(MERGES) else {
        return Err(Not(format!("it has no {MERGES}")));
    };
    let ids = vocabulary.ids()?;
    // Two tokens, whose joint is one too.
    let is_whole = |merge: &str| {
        let parts = merge.split_once(' ');
        parts.is_some_and(|(left, right)| {
            [left, right, &format!("{left}{right}")].iter().all(|part| ids.contains_key(*part))
        })
    };
    if let Some(odd) = merges.iter().find(|merge| !is_whole(merge)) {
        return Err(Not(format!("{MERGES} has `{}`; expected two tokens that make one", shown(odd))));
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let cut = match pre.cut {
        Cut::Own => byte_level(true),
        Cut::Digits => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)]})
        }
        Cut::By(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": if pre.composed { json!({"type": "NFC"}) } else { Json::Null },
        "pre_tokenizer": cut,
        "post_processor": vocabulary.template(pre.begins),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.whole, "vocab": ids, "merges": merges,
        },
    }))
}

fn pre(vocabulary: &Vocabulary<'_>) -> Result<&'static Pre, Not> {
    let Some(Value::Text(name)) = vocabulary.header.values.get(PRE) else {
        return Err(Not(format!("it has no {PRE}, which says how texts are cut")));
    };
    PRES.iter().find(|pre| pre.names.contains(&name.as_str())).ok_or_else(|| {
        let known: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        Not(format!("{PRE} is `{}`; known are {}", shown(name), known.join(", ")))
    })
}
