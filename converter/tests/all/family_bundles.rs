//! Each family of checkpoints, converted with its proof: the softmax graph gives the reference of transformers in every
//! runtime, and what is made of it is one in all its forms, padded and token by token.

use crate::support::ort::has_ort;
use dijiang::convert::{ConvertOptions, Converted, convert};
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::verify::VerifyOptions;
use dijiang_format::dtype::DType;
use std::path::{Path, PathBuf};

/// The fixtures of families that are in no other test of bundles, and how many of their layers have a window.
const FAMILIES: [(&str, usize); 21] = [
    ("cohere", 0),
    ("falcon", 0),
    ("falcon-mqa", 0),
    ("falcon-serial", 0),
    ("gemma", 0),
    ("gemma2", 1),
    ("gemma3", 2),
    ("glm", 0),
    ("gpt2", 0),
    ("gptj", 0),
    ("granite", 0),
    ("olmo2", 0),
    ("phi", 0),
    ("phi3", 0),
    ("phi3-short", 2),
    ("qwen2", 2),
    ("qwen3", 0),
    ("smollm3", 0),
    ("stablelm", 0),
    ("stablelm-parallel", 0),
    ("starcoder2", 2),
];

fn options(recipe: &str, dtype: DType) -> ConvertOptions {
    ConvertOptions { dtype: Some(dtype), ..ConvertOptions::of(recipes::load(recipe).expect("a recipe")) }
}

fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(folder)
}

fn converted(folder: &str, options: &ConvertOptions) -> Converted {
    let dir = tempfile::tempdir().expect("a directory");
    let made = convert(&source(folder), &dir.path().join("bundle"), options, &mut Silent);
    made.unwrap_or_else(|e| panic!("{folder}, {}: {e}", options.recipe.map.kind))
}

/// Converts, and looks at every check.
fn proved(folder: &str, recipe: &str, dtype: DType) -> Converted {
    let reference = Some(source(folder).join("reference.safetensors"));
    let verify = Some(VerifyOptions { reference, ..VerifyOptions::default() });
    let made = converted(folder, &ConvertOptions { verify, ..options(recipe, dtype) });
    let verification = made.verification.as_ref().expect("it was asked for");
    assert!(verification.ok, "{folder}, {recipe}: {verification:#?}");
    let mut of_reference = verification.checks.iter().filter(|c| c.name.ends_with("softmax = reference"));
    // tract has no kernels of bf16, and without both the interpreter is asked.
    let ran = if has_ort() && dtype != DType::BF16 { 2 } else { 1 };
    let is_close = |limit: Option<f64>| dtype != DType::F32 || limit == Some(1e-4);
    assert_eq!(of_reference.clone().count(), ran, "{folder}, {recipe}: {verification:#?}");
    assert!(of_reference.all(|c| c.ok && is_close(c.limit)), "{folder}, {recipe}: {verification:#?}");
    made
}

/// The softmax graph, which gives the reference, is part of every bundle.
#[test]
fn every_family_converts_with_the_default_recipe() {
    for (folder, windows) in FAMILIES {
        let made = proved(folder, "adaptive", DType::F32);
        let kept = made.sites.iter().filter(|site| site.keeps_window()).count();
        let linear = made.sites.iter().filter(|site| site.is_linear()).count();
        assert_eq!((kept, linear), (windows, made.sites.len() - windows), "{folder}");
    }
}

/// Some of the other recipes and of half precision, as each takes seconds.
#[test]
fn families_convert_otherwise() {
    for (folder, recipe, dtype) in [
        ("gemma2", "softmax", DType::F32),
        ("gemma3", "paper", DType::F32),
        ("gemma3", "softmax", DType::BF16),
        ("qwen3", "adaptive", DType::F16),
    ] {
        proved(folder, recipe, dtype);
    }
}

/// What the source does and the bundle does not, or not for every text, is told.
#[test]
fn what_is_not_kept_is_told() {
    let told = |folder: &str, recipe: &str, what: &str| {
        let notes = converted(folder, &options(recipe, DType::F32)).notes;
        notes.iter().filter(|note| note.contains(what)).count()
    };
    let cap = "now capped its scores: ";
    assert_eq!(told("gemma2", "adaptive", cap), 1);
    assert_eq!(told("gemma2", "softmax", cap), 0);
    assert_eq!(told("gemma3", "adaptive", cap), 0);
    let long = "rope_type longrope: the long factors";
    assert_eq!(told("phi3", "softmax", long), 1);
    assert_eq!(told("phi3-short", "softmax", long), 0);
}
