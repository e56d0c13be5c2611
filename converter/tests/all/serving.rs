//! The graphs that serve from bound memory against the serving graph, on the CPU, which runs both.
#![allow(clippy::print_stderr)]

use crate::support::served::{SAME, assert_within, convert_to, logits, or_skip};
use dijiang_runtime::{Engine, ModelIdentity, Serving, ServingOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

fn convert(fixture: &str, recipe: &str, into: &Path) -> PathBuf {
    convert_with(fixture, recipe, into, &[])
}

fn convert_with(fixture: &str, recipe: &str, into: &Path, more: &[&str]) -> PathBuf {
    let bundle = into.join(format!("{fixture}-{recipe}"));
    convert_to(&bundle, fixture, recipe, more);
    bundle
}

fn open(bundle: &Path, engine: Engine, segment: usize) -> Option<Serving> {
    let options =
        ServingOptions { engine, segment: Some(segment), threads: Some(1), ..ServingOptions::default() };
    or_skip(Serving::open(bundle, &options))
}

fn prompts() -> Vec<Vec<i64>> {
    [9, 1, 4].iter().map(|n| (0..*n).map(|i| (i * 7 + n) % 31).collect()).collect()
}

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32]) {
    assert_within(SAME, found, expected);
}

/// Weights that are inputs are read in f32; those of the serving graph meet activations that were rounded to bytes.
#[test]
fn bound_memory_serves_weights_of_four_bits() {
    const BYTES: f32 = 5e-2;
    let dir = tempfile::tempdir().expect("a directory");
    for fixture in ["llama", "neox", "opt"] {
        let bundle = convert_with(fixture, "adaptive", dir.path(), &["--weights", "int4"]);
        let Some(mut plain) = open(&bundle, Engine::Ort, 512) else { return };
        let mut bound = open(&bundle, Engine::OrtBound, 3).expect("it opens");
        for serving in [&mut plain, &mut bound] {
            serving.start(3).expect("it starts");
            serving.prefill(&prompts()).expect("it runs");
        }
        assert_within(BYTES, &logits(&bound), &logits(&plain));
        for serving in [&mut plain, &mut bound] {
            serving.decode(&[3, 4, 5]).expect("it runs");
        }
        assert_within(BYTES, &logits(&bound), &logits(&plain));
    }
}

#[test]
fn bound_memory_serves_the_numbers_of_the_serving_graph() {
    let dir = tempfile::tempdir().expect("a directory");
    for (fixture, recipe) in [
        ("llama", "adaptive"),
        ("neox", "adaptive"),
        ("opt", "adaptive"),
        ("llama", "windows"),
        ("llama", "gated"),
    ] {
        let bundle = convert(fixture, recipe, dir.path());
        let Some(mut plain) = open(&bundle, Engine::Ort, 512) else { return };
        // Segments to and fro once, an odd number of times, an even number of times, one token each.
        for segment in [16, 3, 5, 1] {
            let mut bound = open(&bundle, Engine::OrtBound, segment).expect("it opens");
            for serving in [&mut plain, &mut bound] {
                serving.start(3).expect("it starts");
            }
            // Bound memory counts the tokens of all rings once.
            if recipe == "gated" {
                assert_eq!(bound.state_bytes(), plain.state_bytes());
            }
            // The second prompts go on after the first.
            for _ in 0..2 {
                let expected = plain.prefill(&prompts()).expect("it runs");
                let mut next = bound.prefill(&prompts()).expect("it runs");
                assert_same(&logits(&bound), &logits(&plain));
                assert_eq!(next, expected);
                for _ in 0..4 {
                    let expected = plain.decode(&next).expect("it runs");
                    let found = bound.decode(&next).expect("it runs");
                    assert_same(&logits(&bound), &logits(&plain));
                    assert_eq!(found, expected);
                    next = found;
                }
            }
        }
    }
}

/// Each length of segments has a graph of its own, over the same states.
#[test]
fn prompts_of_all_lengths_go_on_from_one_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = convert("llama", "adaptive", dir.path());
    let Some(mut plain) = open(&bundle, Engine::Ort, 512) else { return };
    let mut bound = open(&bundle, Engine::OrtBound, 512).expect("it opens");
    // Segments of 256 tokens, two of 512, and 256 again.
    for length in [9, 600, 5] {
        let prompt = [(0..length).map(|i| i % 31).collect()];
        let expected = plain.prefill(&prompt).expect("it runs");
        assert_eq!(bound.prefill(&prompt).expect("it runs"), expected);
        assert_same(&logits(&bound), &logits(&plain));
    }
    assert_eq!(bound.seen(), 614);
}

#[test]
fn states_move_between_the_ways_to_serve() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = convert("llama", "adaptive", dir.path());
    move_states(&bundle, dir.path());
}

/// 96 features of a head become 128 in bound memory, with zeros after the model's own.
#[test]
fn padded_states_are_those_of_the_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = dir.path().join("wide.yaml");
    let gated = include_str!("../../src/recipes/gated.yaml");
    std::fs::write(&recipe, gated.replace("features: 2", "features: 6")).expect("it is written");
    let bundle = dir.path().join("bundle");
    convert_to(&bundle, "llama", recipe.to_str().expect("text"), &[]);
    let Some(mut plain) = open(&bundle, Engine::Ort, 512) else { return };
    let mut bound = open(&bundle, Engine::OrtBound, 4).expect("it opens");
    for serving in [&mut plain, &mut bound] {
        serving.start(3).expect("it starts");
    }
    assert_eq!(96 * bound.state_bytes(), 128 * plain.state_bytes());
    move_states(&bundle, dir.path());
}

/// A state that bound memory saves goes on in it and in the serving graph, whose state goes on in bound memory.
fn move_states(bundle: &Path, dir: &Path) {
    let Some(mut plain) = open(bundle, Engine::Ort, 512) else { return };
    let mut bound = open(bundle, Engine::OrtBound, 4).expect("it opens");
    let file = dir.join("state");
    bound.start(3).expect("it starts");
    let next = bound.prefill(&prompts()).expect("it runs");
    bound.save_state(&file).expect("it is saved");
    bound.decode(&next).expect("it runs");
    let expected = logits(&bound);

    plain.load_state(&file).expect("it loads");
    let back = dir.join("back");
    plain.save_state(&back).expect("it is saved");
    plain.decode(&next).expect("it runs");
    assert_same(&logits(&plain), &expected);

    for file in [file, back] {
        let mut again = open(bundle, Engine::OrtBound, 4).expect("it opens");
        again.load_state(&file).expect("it loads");
        assert_eq!((again.batch(), again.seen()), (3, 9));
        again.decode(&next).expect("it runs");
        assert_eq!(logits(&again), expected);
    }
}

#[test]
fn bound_memory_reads_the_files_that_a_bundle_links_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("model");
    std::fs::create_dir(&source).expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), source.join(name)).expect("it is copied");
    }
    let logits_of = |name: &str, link: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(dir.path()).args(["convert", "model", "-o", name, "--no-verify"]).args(link);
        assert!(command.output().expect("it starts").status.success());
        let mut bound = open(&dir.path().join(name), Engine::OrtBound, 4)?;
        bound.start(3).expect("it starts");
        bound.prefill(&prompts()).expect("it runs");
        Some(logits(&bound))
    };
    assert_eq!(logits_of("linked", &["--link"]), logits_of("whole", &[]));
    assert!(dir.path().join("linked/source-model.safetensors").exists());
}

/// Makes all numbers of a stored tensor NaN.
fn spoil(bundle: &Path, name: &str) {
    let path = bundle.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    assert_eq!(header[name]["dtype"], "F32");
    let place = |i: usize| header[name]["data_offsets"][i].as_u64().expect("a place") as usize;
    for number in bytes[8 + length..][place(0)..place(1)].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(path, bytes).expect("it is written");
}

#[test]
fn logits_that_are_no_numbers_are_an_error_in_either_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = convert("llama", "adaptive", dir.path());
    spoil(&bundle, "model.norm.weight");
    for engine in [Engine::Ort, Engine::OrtBound] {
        let Some(mut serving) = open(&bundle, engine, 4) else { return };
        serving.start(3).expect("it starts");
        let prefill = serving.prefill(&prompts()).expect_err("NaN").to_string();
        let decode = serving.decode(&[1, 2, 3]).expect_err("NaN").to_string();
        for message in [prefill, decode] {
            assert!(message.starts_with("logits hold NaN at token id 0;"), "{engine:?}: {message}");
        }
    }
}

/// 192 features are three blocks of 64, which one token's graph computes as heads of their own over the same state.
#[test]
fn features_in_blocks_serve_the_numbers_of_the_serving_graph() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = dir.path().join("wide.yaml");
    let text = "name: wide\nmap: {kind: dct-softmax, features: 12, signs: true}\ndecay: learned\n";
    std::fs::write(&recipe, text).expect("it is written");
    for fixture in ["llama", "neox"] {
        let bundle = dir.path().join(fixture);
        convert_to(&bundle, fixture, recipe.to_str().expect("a name"), &[]);
        let Some(mut plain) = open(&bundle, Engine::Ort, 16) else { return };
        let mut bound = open(&bundle, Engine::OrtBound, 16).expect("it opens");
        for serving in [&mut plain, &mut bound] {
            serving.start(3).expect("it starts");
        }
        let mut next = plain.prefill(&prompts()).expect("it runs");
        assert_eq!(bound.prefill(&prompts()).expect("it runs"), next);
        for _ in 0..4 {
            let found = bound.decode(&next).expect("it runs");
            next = plain.decode(&next).expect("it runs");
            assert_eq!(found, next);
            assert_same(&logits(&bound), &logits(&plain));
        }
        let file = dir.path().join("state");
        bound.save_state(&file).expect("it is saved");
        plain.load_state(&file).expect("a state of the same shape");
        assert_eq!(plain.decode(&next).expect("it runs"), bound.decode(&next).expect("it runs"));
    }
}

/// A state goes from one target to another, whose operators may read tables of their own beside the weights.
#[test]
fn a_state_is_of_its_model_in_every_target() {
    let dir = tempfile::tempdir().expect("a directory");
    for recipe in ["softmax", "paper"] {
        let bundle = |target: &str| {
            let bundle = dir.path().join(format!("{recipe}-{target}"));
            convert_to(&bundle, "llama", recipe, &["--target", target]);
            bundle
        };
        let (ort, portable) = (bundle("ort"), bundle("portable"));
        let identity = |bundle: &Path| ModelIdentity::of(bundle).expect("a bundle");
        assert_eq!(identity(&ort), identity(&portable), "{recipe}");
        assert_eq!(identity(&ort), identity(&bundle("onnx27")), "{recipe}");
        let [mut first, mut second] =
            [&ort, &portable].map(|bundle| open(bundle, Engine::Tract, 16).expect("tract opens it"));
        let mut next = first.prefill(&prompts()[..1]).expect("it runs");
        let file = dir.path().join("state");
        first.save_state(&file).expect("it is saved");
        second.load_state(&file).expect("a state of the same model");
        for _ in 0..4 {
            let found = second.decode(&next).expect("it runs");
            next = first.decode(&next).expect("it runs");
            assert_eq!(found, next);
            assert_same(&logits(&second), &logits(&first));
        }
    }
}

/// No weight says how positions are turned.
#[test]
fn a_state_of_other_positions_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama");
    let open = |theta: f64| {
        let source = dir.path().join(format!("source-{theta}"));
        std::fs::create_dir(&source).expect("a directory");
        for entry in std::fs::read_dir(&fixture).expect("the fixture") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), source.join(entry.file_name())).expect("a copy");
        }
        let path = source.join("config.json");
        let text = std::fs::read_to_string(&path).expect("the config");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        config["rope_theta"] = theta.into();
        std::fs::write(path, config.to_string()).expect("it is written");
        let bundle = dir.path().join(format!("bundle-{theta}"));
        convert_to(&bundle, source.to_str().expect("a name"), "paper", &[]);
        open(&bundle, Engine::Tract, 16).expect("tract opens it")
    };
    let (mut near, mut far) = (open(1e4), open(1e6));
    near.prefill(&prompts()[..1]).expect("it runs");
    let file = dir.path().join("state");
    near.save_state(&file).expect("it is saved");
    let error = far.load_state(&file).expect_err("it is another model's").to_string();
    assert!(error.contains("bundle-10000"), "{error}");
}

/// `fixtures/bundle-0.1.0`: a bundle, and the state after these tokens or their beginning.
#[test]
fn what_version_0_1_0_wrote_opens_as_it_is() {
    const TOKENS: [i64; 5] = [0, 1, 2, 0, 0];
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/bundle-0.1.0");
    for engine in [Engine::Tract, Engine::Ort] {
        let (Some(mut fresh), Some(mut resumed)) = (open(&bundle, engine, 64), open(&bundle, engine, 64))
        else {
            continue;
        };
        resumed.load_state(&bundle.join("state.safetensors")).expect("the state");
        let seen = resumed.seen();
        assert!((3..=TOKENS.len()).contains(&seen), "{seen}");
        fresh.start(1).expect("a row");
        fresh.prefill(&[TOKENS[..seen].to_vec()]).expect("tokens");
        assert_same(&logits(&resumed), &logits(&fresh));
        // The greedy text of that version: `abc` goes on with `aa` and then ends.
        fresh.start(1).expect("a row");
        assert_eq!(fresh.prefill(&[TOKENS[..3].to_vec()]).expect("a prompt"), [0]);
        assert_eq!(fresh.decode(&[0]).expect("a token"), [0]);
        assert_eq!(fresh.decode(&[0]).expect("a token"), [1]);
    }
}
