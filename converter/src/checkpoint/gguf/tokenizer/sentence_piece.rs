//! SentencePiece's BPE with bytes for what it does not know. The file has a score for each token: of two neighbours the pair
//! is merged first whose token has the highest, which makes a list of merges.

use super::{Kind, Not, Vocabulary};
use crate::checkpoint::gguf::value::Value;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

const SCORES: &str = "tokenizer.ggml.scores";
const CHARMAP: &str = "tokenizer.ggml.precompiled_charsmap";
/// Stands for a space.
const SPACE: &str = "\u{2581}";
const BYTES: usize = 256;

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Json, Not> {
    let header = vocabulary.header;
    if header.values.contains_key(CHARMAP) || vocabulary.flag("remove_extra_whitespaces", false) {
        return Err(Not("it changes the letters of a text by a table first".to_owned()));
    }
    if vocabulary.kinds.iter().filter(|kind| **kind == Kind::Byte).count() != BYTES {
        return Err(Not(format!("it has not the {BYTES} tokens of single bytes")));
    }
    let Some(Value::Floats(scores)) = header.values.get(SCORES) else {
        return Err(Not(format!("it has no {SCORES}")));
    };
    let unknown = vocabulary.iter().find(|(.., kind)| *kind == Kind::Unknown).map(|(_, token, _)| token);
    let prefix = vocabulary.flag("add_space_prefix", true);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, space]}),
        false => space,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": vocabulary.template(true),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.ids()?, "merges": merges(vocabulary, scores)?,
        },
    }))
}

/// Every way to put a token together from two, those of the highest scores first. Of two ways to the same token the one
/// with the longer beginning comes first, as transformers has it.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Result<Vec<[String; 2]>, Not> {
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| !score.is_finite()) {
        return Err(Not(format!("{SCORES} has not a number for each token")));
    }
    let normal = vocabulary.iter().filter(|(.., kind)| *kind == Kind::Normal);
    let pieces: BTreeMap<&str, f32> = normal.map(|(id, token, _)| (token, scores[id])).collect();
    let mut found: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (id, token, kind) in vocabulary.iter() {
        if kind != Kind::Normal {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let whole = cuts.filter(|(left, right)| pieces.contains_key(left) && pieces.contains_key(right));
        found.extend(whole.map(|(left, right)| (scores[id], left.chars().count(), left, right)));
    }
    let mut different: Vec<u32> = found.iter().map(|(score, ..)| score.to_bits()).collect();
    different.sort_unstable();
    different.dedup();
    if found.len() > 1 && different.len() == 1 {
        return Err(Not(format!("{SCORES} are all the same, and say nothing of an order")));
    }
    // A stable sort: equal ones stay in the order of their ids.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    Ok(found.into_iter().map(|(_, _, left, right)| [left.to_owned(), right.to_owned()]).collect())
}
