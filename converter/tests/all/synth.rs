//! Random checkpoints are those of the published shapes, and convert like any other.

use dijiang::convert::{ConvertError, ConvertOptions, convert};
use dijiang::report::progress::Silent;
use dijiang::synth::shapes::{SHAPES, find};
use dijiang::synth::{SynthOptions, synth};
use dijiang::{checkpoint, recipes};
use dijiang_format::dtype::DType;
use std::path::Path;

/// Parameters as their authors count them: EleutherAI's table of Pythia's total parameters, and the sizes of the
/// published weight files in elements.
const PUBLISHED: [(&str, u64); 12] = [
    ("pythia-70m", 70_426_624),
    ("pythia-160m", 162_322_944),
    ("pythia-410m", 405_334_016),
    ("pythia-1b", 1_011_781_632),
    ("pythia-1.4b", 1_414_647_808),
    ("pythia-2.8b", 2_775_208_960),
    ("opt-350m", 331_196_416),
    ("tinyllama-1.1b", 1_100_048_384),
    ("llama2-7b", 6_738_415_616),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen3-0.6b", 596_049_920),
    ("gemma3-1b", 999_885_952),
];

#[test]
fn shapes_have_the_parameters_of_the_published_models() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    assert_eq!(SHAPES.len(), PUBLISHED.len());
    for (shape, (name, parameters)) in SHAPES.iter().zip(PUBLISHED) {
        std::fs::write(&path, shape.config(shape.layers, "float16").to_string()).expect("it is written");
        let weights = checkpoint::weights_of(&path, DType::F16).expect("the family reads it");
        let found: u64 = weights.iter().map(|(_, dims)| dims.iter().product::<u64>()).sum();
        assert_eq!((shape.name, found), (name, parameters));
    }
}

fn write(shape: &str, to: &Path, seed: u64) {
    let options = SynthOptions { dtype: DType::F16, seed, layers: Some(1) };
    synth(find(shape).expect("a shape"), to, &options, &mut Silent).expect("it is written");
}

#[test]
fn a_checkpoint_converts_and_its_numbers_are_those_of_the_seed() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    write("opt-350m", &at("a"), 1);
    write("opt-350m", &at("b"), 1);
    write("opt-350m", &at("c"), 2);
    let bytes = |name: &str| std::fs::read(at(name).join("model.safetensors")).expect("the weights");
    assert_eq!(bytes("a"), bytes("b"));
    assert_ne!(bytes("a"), bytes("c"));
    let options = ConvertOptions::of(recipes::load("adaptive").expect("the default recipe"));
    let full = ConvertOptions { free_space: |_| Ok(1_000_000), ..options.clone() };
    let refused = convert(&at("a"), &at("bundle"), &full, &mut Silent).expect_err("the disk is full");
    assert!(matches!(refused, ConvertError::NoRoom(_)), "{refused}");
    assert!(refused.to_string().contains(" MB, and 1 MB are free (hint: "), "{refused}");
    assert!(!at("bundle").exists());
    let converted = convert(&at("a"), &at("bundle"), &options, &mut Silent).expect("it converts");
    assert_eq!((converted.sites.len(), converted.dtype), (1, DType::F16));
    let warned = converted.warnings.iter().all(|warning| warning.contains("it has no tokenizer.json"));
    assert!(warned && converted.warnings.len() == 1, "{:?}", converted.warnings);
}

#[test]
fn weights_of_norms_are_one_and_matrices_have_the_deviation_of_a_fresh_model() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().join("model");
    write("pythia-70m", &at, 0);
    let model = checkpoint::open(&at).expect("it opens");
    for (name, tensor) in model.tensors() {
        let numbers = tensor.to_f64();
        if name.ends_with("norm.weight") {
            assert!(numbers.iter().all(|x| *x == 1.0), "{name}");
        } else if tensor.dims().len() == 2 {
            let n = numbers.len() as f64;
            let deviation = (numbers.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
            // Four deviations of the estimate: (kurtosis of the uniform, 1.8, less 1) / 4n, rooted; and f16 rounding.
            let tolerance = 0.02 * (4.0 * (0.8 / (4.0 * n)).sqrt() + 2f64.powi(-11));
            assert!((deviation - 0.02).abs() < tolerance, "{name}: {deviation}");
        }
    }
}
