//! `dijiang quantize`: a bundle's own weights in four bits, trained or not.

use crate::support::decoder;
use crate::support::home::Home;
use crate::support::sealed::sealed;
use dijiang::bundle::lock::BundleLock;
use dijiang::convert::requantize::{RequantizeError, RequantizeOptions, requantize};
use dijiang::report::progress::{Estimate, Progress, Say, Silent};
use dijiang_format::quantization::Quantization;
use dijiang_runtime::temporary::Temporary;
use dijiang_runtime::{Engine, Serving, ServingOptions};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

impl Home {
    /// With the bundle `b` of a fixture in f32.
    fn with_b(fixture: &str, more: &str) -> Self {
        let home = Self::empty();
        home.convert(fixture, "b", more);
        home
    }

    fn is_silent(&self, arguments: &str) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        // Most fixtures have none.
        let said: Vec<&str> =
            said.lines().filter(|line| !line.contains("it has no tokenizer.json")).collect();
        assert_eq!((output.status.code(), said), (Some(0), Vec::new()), "{arguments}");
    }

    fn refused_without_out(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(!self.path("out").exists());
        String::from_utf8(output.stderr).expect("a text").trim_end().to_owned()
    }

    fn convert(&self, fixture: &str, bundle: &str, more: &str) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
        self.is_silent(&format!("convert {} -o {bundle} --dtype f32 --no-verify {more}", source.display()));
    }

    /// Logits after a prompt, of the bundle's form in standard operators.
    fn logits(&self, bundle: &str) -> Vec<f32> {
        let options = ServingOptions { engine: Engine::Tract, ..ServingOptions::default() };
        let mut serving = Serving::open(&self.path(bundle), &options).expect("it opens");
        serving.prefill(&[(0..40).map(|i| (i * 37 + 11) % 100).collect()]).expect("it runs");
        serving.logits().expect("logits").to_f32().expect("floats")
    }
}

fn apart(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    norm(&mut difference.into_iter()) / norm(&mut expected.iter().map(|b| f64::from(*b)))
}

/// Puts other weights into the bundle, as training does: what the conversion added, and the products of the MLPs.
fn train(home: &Home, bundle: &str) {
    let bytes = std::fs::read(home.path(bundle).join("model.safetensors")).expect("the weights");
    let stored = SafeTensors::deserialize(&bytes).expect("safetensors");
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32);
            let factor = if name.contains(".dijiang.") || name.contains(".mlp.") { 1.3 } else { 1.0 };
            let numbers = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) * factor);
            (name.to_owned(), tensor.shape().to_vec(), numbers.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = changed.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("it is laid out");
    std::fs::write(home.path("trained.safetensors"), file).expect("it is written");
    let output = home.run(&format!("import-weights {bundle} trained.safetensors"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn files(bundle: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(bundle).expect("a bundle").map(|e| e.expect("an entry"));
    let mut files: Vec<_> = entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("a file")))
        .collect();
    files.sort();
    files
}

#[test]
fn a_bundle_as_it_was_converted_becomes_the_conversion_to_four_bits() {
    for (fixture, more) in [
        ("shakespeare", "--seed 3"),
        ("llama", "--layers 1 --recipe decayed"),
        ("neox", "--recipe softmax"),
        ("opt", "--recipe paper"),
    ] {
        let home = Home::with_b(fixture, more);
        home.convert(fixture, "direct", &format!("{more} --weights int4"));
        home.is_silent("quantize b -o out --no-verify");
        let (found, expected) = (files(&home.path("out")), files(&home.path("direct")));
        let names = |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{fixture}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found == expected, "{fixture}: {}", found.0);
        }
    }
}

#[test]
fn what_was_trained_is_what_is_quantised() {
    let home = Home::with_b("shakespeare", "--recipe gated");
    home.is_silent("quantize b -o untrained --no-verify");
    let (before, untrained) = (home.logits("b"), home.logits("untrained"));
    train(&home, "b");
    // With its proof.
    home.is_silent("quantize b -o out");
    let (trained, found) = (home.logits("b"), home.logits("out"));
    // Four bits move the logits of a trained bundle no more than twice as far as those of an untrained one.
    let (usual, now) = (apart(&untrained, &before), apart(&found, &trained));
    assert!(now > 1e-3 && now < 2.0 * usual && usual < 0.07, "{now} and {usual}");
    // And training moved them further than that.
    let moved = apart(&found, &untrained);
    assert!(moved > 3.0 * now, "{moved} and {now}");
    let manifest = |bundle: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(home.path(bundle).join("dijiang.json")).expect("a manifest");
        serde_json::from_str(&text).expect("JSON")
    };
    let (float, four) = (manifest("b"), manifest("out"));
    assert_eq!(four["weights"], "int4");
    assert!(float["trained"].is_object());
    for key in ["source", "trained", "recipe", "seed", "sites", "dtype"] {
        assert_eq!(float[key], four[key], "{key}");
    }
    assert!(four["checks"].as_array().is_some_and(|checks| checks.len() > 5));
}

#[test]
fn a_bundle_is_quantised_in_its_own_place() {
    let home = Home::with_b("shakespeare", "");
    home.is_silent("quantize b -o apart --no-verify");
    home.is_silent("quantize b -o b --force --no-verify");
    assert_eq!(files(&home.path("b")), files(&home.path("apart")));
}

#[test]
fn bundles_that_cannot_be_quantised_are_refused() {
    let home = Home::with_b("shakespeare", "");
    let target = "int4 weights are read by ONNX Runtime's own operators, which target `portable` has not (hint: --target ort)";
    home.convert("shakespeare", "portable", "--target portable");
    assert_eq!(home.refused_without_out("quantize portable -o out"), format!("error: portable: {target}"));
    home.is_silent("quantize b -o four --no-verify");
    let twice = home.refused_without_out("quantize four -o out");
    assert!(twice.starts_with("error: four: its weights are int4"), "{twice}");
    decoder::write(&decoder::text(|layer| layer), home.0.path());
    home.is_silent("convert m.onnx -o graph --no-verify");
    assert_eq!(
        home.refused_without_out("quantize graph -o out"),
        "error: graph: it was made from an ONNX graph, which is not in it (hint: convert the graph with --weights int4)"
    );
    home.is_silent("export-torch b");
    let exported = home.refused_without_out("quantize b -o out");
    assert!(
        exported.starts_with("error: b: its config.json is that of the PyTorch model (hint: "),
        "{exported}"
    );
    home.convert("shakespeare", "old", "--recipe gated");
    let path = home.path("old").join("dijiang.json");
    let text = std::fs::read_to_string(&path).expect("a manifest");
    let text = text.replace("\"features\": 2", "\"features\": 4");
    let text = sealed(serde_json::from_str(&text).expect("JSON"));
    std::fs::write(&path, text).expect("it is written");
    assert_eq!(
        home.refused_without_out("quantize old -o out"),
        "error: old: what its conversion added is not what this version adds (hint: convert the model anew)"
    );
}

/// Puts other weights into a bundle while it is compiled.
struct Trains<'a>(&'a Home);

impl Progress for Trains<'_> {
    fn estimate(&mut self, _: &Estimate) {}

    fn stage(&mut self, what: &str) {
        if what == "compiling" {
            train(self.0, "b");
        }
    }

    fn bytes(&mut self, _: &str, _: u64) {}

    fn advance(&mut self, _: u64) {}

    fn say(&mut self, _: Say, _: &str) {}

    fn done(&mut self) {}
}

#[test]
fn a_bundle_that_another_command_writes_is_not_replaced_by_what_it_was() {
    let home = Home::with_b("shakespeare", "");
    let bundle = home.path("b");
    let quantize = |target: &str, progress: &mut dyn Progress| {
        let options =
            RequantizeOptions { weights: Quantization::Int4, force: true, checksums: false, verify: None };
        requantize(&bundle, &home.path(target), &options, progress).map(|_| ()).expect_err("it is refused")
    };
    let error = quantize("out", &mut Trains(&home)).to_string();
    assert!(error.contains("another file took its place since it was opened (hint: "), "{error}");
    assert!(!home.path("out").exists());
    // It is locked before anything of it is read.
    let lock = BundleLock::acquire(&bundle).expect("nobody holds it");
    std::fs::write(bundle.join("dijiang.json"), "half a mani").expect("it is written");
    let error = quantize("b", &mut Silent);
    assert!(matches!(error, RequantizeError::Lock(_)), "{error}");
    drop(lock);
    assert!(matches!(quantize("b", &mut Silent), RequantizeError::Manifest(_)));
}

#[test]
fn what_a_kill_left_goes_where_the_bundle_is_quantized_already() {
    let home = Home::with_b("llama", "--weights int4");
    Temporary::directory(&home.path("b")).expect("it is begun").leave();
    let left = || std::fs::read_dir(home.0.path()).expect("it is read").count();
    assert_eq!(left(), 2);
    home.refused_without_out("quantize b -o b --force");
    assert_eq!(left(), 1);
}
