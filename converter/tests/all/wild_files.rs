//! Small models of kinds that were refused or wrong once (`../shared/wild`): each is converted with its proof, or refused in
//! the words of its row.
//!
//! Without the folder the test says so and does nothing.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use crate::support::ort::has_ort;
use dijiang::convert::{ConvertError, ConvertOptions, Converted, convert};
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::verify::{Choice, VerifyOptions};
use std::path::{Path, PathBuf};

/// What comes of a model.
enum Comes {
    /// So many of its attentions are linear, and so many keep their windows; the proof holds.
    Of(usize, usize),
    /// It is refused, and the error or a miss says this.
    Refused(&'static str),
}
use Comes::{Of, Refused};

/// A folder, the recipe, and what comes of it.
const MODELS: &[(&str, &str, Comes)] = &[
    ("K02_q_distilbert_dynint8", recipes::DEFAULT, Of(2, 0)),
    ("K02_q_distilbert_dynint8", "softmax", Of(0, 0)),
    (
        "K02_q_vit_qdq_static",
        recipes::DEFAULT,
        Refused("its weights are rounded to whole numbers by QuantizeLinear"),
    ),
    ("K04_cu_static_bert__leg14", recipes::DEFAULT, Of(2, 0)),
    ("K04_v_fixed_b1_qw", recipes::DEFAULT, Of(2, 0)),
    ("K05_v_anon_dims_db", recipes::DEFAULT, Of(2, 0)),
    ("K06_op_vit_cls", recipes::DEFAULT, Of(2, 0)),
    ("K06_ox_dinov2__leg17_eager", recipes::DEFAULT, Of(2, 0)),
    ("K07_op_bert_qa", recipes::DEFAULT, Of(2, 0)),
    (
        "K12_cu_einsum_causal__leg17",
        recipes::DEFAULT,
        Refused("served token by token, by its output `logits`; its outputs are out"),
    ),
    (
        "K12_cu_padids_1__leg17",
        recipes::DEFAULT,
        Refused("its mask is worked out from the tokens in `input_ids`"),
    ),
    ("K13_op_glm_past", recipes::DEFAULT, Of(2, 0)),
    ("K14_lg_gpt_neo_local__leg17_eager", recipes::DEFAULT, Of(1, 1)),
    (
        "K15_op_bart_past_decoder_model",
        recipes::DEFAULT,
        Refused("it is the decoder of an encoder-decoder model"),
    ),
    ("K17_q2_qwen2past_ortfp16_keepio", recipes::DEFAULT, Of(2, 0)),
    ("K17_q2_qwen2past_ortfp16_keepio", "softmax", Of(0, 0)),
    ("K18_op_falcon_mqa_past", recipes::DEFAULT, Of(2, 0)),
];

fn folder() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/wild");
    let found = path.is_dir().then_some(path);
    if found.is_none() {
        eprintln!("skipped: ../shared/wild is not there");
    }
    found
}

fn converted(source: &Path, recipe: &str) -> Result<Converted, String> {
    let home = tempfile::tempdir().expect("a directory");
    let options = ConvertOptions {
        verify: Some(VerifyOptions { runtimes: Choice::Ort, ..VerifyOptions::default() }),
        ..ConvertOptions::of(recipes::load(recipe).expect("a recipe"))
    };
    convert(source, &home.path().join("bundle"), &options, &mut Silent).map_err(|error| words(&error))
}

/// The error, and why attentions were not recognised.
fn words(error: &ConvertError) -> String {
    let misses: Vec<String> = match error {
        ConvertError::NoSites { misses, .. } => misses.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    format!("{error}; {}", misses.join("; "))
}

/// What differs from the row; none where nothing does.
fn differs(source: &Path, recipe: &str, comes: &Comes) -> Option<String> {
    match (converted(source, recipe), comes) {
        (Ok(made), Of(linear, windows)) => {
            let found = [
                made.sites.iter().filter(|site| site.is_linear()).count(),
                made.sites.iter().filter(|site| site.keeps_window()).count(),
            ];
            let proof = made.verification.as_ref();
            let failed = proof.into_iter().flat_map(|proof| &proof.checks).filter(|check| !check.ok);
            let failed: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
            let is_so = found == [*linear, *windows] && proof.is_some_and(|proof| proof.ok);
            (!is_so).then(|| format!("{found:?} are linear and keep windows, failed: {failed:?}"))
        }
        (Err(error), Refused(what)) => (!error.contains(what)).then(|| format!("it is refused: {error}")),
        (Ok(_), Refused(what)) => Some(format!("it converts, expected a refusal: {what}")),
        (Err(error), Of(..)) => Some(format!("it is refused: {error}")),
    }
}

#[test]
fn models_from_elsewhere_convert_or_are_refused_in_words() {
    let Some(folder) = folder() else { return };
    if !has_ort() {
        return;
    }
    let mut wrong = Vec::new();
    for (name, recipe, comes) in MODELS {
        let source = folder.join(name);
        if !source.is_dir() {
            eprintln!("skipped: ../shared/wild/{name} is not there");
            continue;
        }
        wrong.extend(differs(&source, recipe, comes).map(|how| format!("{name}, {recipe}: {how}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
