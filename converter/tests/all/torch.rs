//! `export-torch` and `import-weights`: what they write, and what they refuse with one line and nothing left behind.
//! The model itself is tested in runtime-tests/python/test_torch.py.

use crate::support::home::Home;
use crate::support::sealed::sealed;
use dijiang_format::dtype::DType;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

impl Home {
    /// `bundle`, made of a fixture.
    fn with(fixture: &str, options: &str) -> Self {
        let home = Self::empty();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
        home.fine(&format!("convert {} -o bundle --no-verify {options}", source.display()));
        home
    }

    /// The one object of a run that is fine.
    fn fine(&self, arguments: &str) -> Value {
        let output = self.run(&format!("{arguments} --json"));
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    /// The one line of a run that is refused and changes nothing.
    fn refused(&self, arguments: &str) -> String {
        let before = self.everything();
        let output = self.run(arguments);
        let line = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}");
        assert_eq!(self.everything(), before);
        line.strip_suffix('\n').expect("a complete line").to_owned()
    }

    /// Every file with its bytes.
    fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => open.push(path),
                    false => drop(found.insert(path.clone(), std::fs::read(path).expect("a file"))),
                }
            }
        }
        found
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).expect("the file")).expect("JSON")
    }

    fn weights(&self, name: &str) -> Tensors {
        let bytes = std::fs::read(self.path(name)).expect("the file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let one =
            |(name, t): (String, TensorView<'_>)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        file.tensors().into_iter().map(one).collect()
    }

    /// `new.safetensors`: the bundle's weights, changed.
    fn write(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = self.weights("bundle/model.safetensors");
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
        });
        let bytes = safetensors::serialize(views, None).expect("it is laid out");
        std::fs::write(self.path("new.safetensors"), bytes).expect("it is written");
    }

    fn import_refused(&self, change: impl FnOnce(&mut Tensors)) -> String {
        self.write(change);
        self.refused("import-weights bundle new.safetensors")
    }
}

/// As f32, with `value` as the first number.
fn with_first(tensors: &mut Tensors, name: &str, value: f32) {
    let (dtype, shape, data) = tensors.remove(name).expect("the tensor");
    let from = match dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        other => panic!("{other:?}"),
    };
    let dims = shape.iter().map(|d| *d as u64).collect();
    let tensor = dijiang_passes::ir::tensor::Tensor::from_bytes(from, dims, data).expect("a tensor");
    let mut numbers = tensor.cast(DType::F32).bytes().into_owned();
    numbers[..4].copy_from_slice(&value.to_le_bytes());
    tensors.insert(name.to_owned(), (Dtype::F32, shape, numbers));
}

const NORM: &str = "model.norm.weight";
const TABLE: &str = "model.embed_tokens.weight";

#[test]
fn the_bundle_gets_the_code_and_a_config_that_names_it() {
    let home = Home::with("llama", "--layers 1 --recipe released");
    let before = home.json("bundle/config.json");
    let told = home.fine("export-torch bundle");
    assert_eq!(
        told,
        json!({"bundle": "bundle", "code": "bundle/modeling_dijiang.py", "class": "DijiangLlamaForCausalLM"})
    );
    let code = include_bytes!("../../src/torch/modeling_dijiang.py");
    assert_eq!(std::fs::read(home.path("bundle/modeling_dijiang.py")).expect("the code"), code);
    let config = home.json("bundle/config.json");
    let kept = |key: &&String| !["architectures", "model_type"].contains(&key.as_str());
    for key in before.as_object().expect("an object").keys().filter(kept) {
        assert_eq!(config[key], before[key], "{key}");
    }
    assert_eq!(
        (&config["model_type"], &config["dijiang"]["linear_layers"]),
        (&json!("dijiang"), &json!([1]))
    );
    assert_eq!(config["dijiang"]["recipe"], home.json("bundle/dijiang.json")["recipe"]);
    assert_eq!(config["auto_map"]["AutoModelForCausalLM"], "modeling_dijiang.DijiangLlamaForCausalLM");
    let all = home.everything();
    home.fine("export-torch bundle");
    assert_eq!(home.everything(), all, "doing it again changes nothing");
}

#[test]
fn bundles_without_pytorch_code_are_refused() {
    let home = Home::with("llama", "");
    insta::assert_snapshot!(home.refused("export-torch nowhere"), @"error: nowhere: there is no such file or directory (hint: a bundle is what `dijiang convert MODEL -o nowhere` writes)");
    let set = |key: &str, inner: &str, value: &str| {
        let mut manifest = home.json("bundle/dijiang.json");
        manifest[key][inner] = json!(value);
        std::fs::write(home.path("bundle/dijiang.json"), sealed(manifest)).expect("it is written");
    };
    set("model", "family", "mamba");
    insta::assert_snapshot!(home.refused("export-torch bundle"), @"error: bundle: there is no PyTorch code for the family `mamba` (there is for: gpt_neox, llama, ministral, mistral, opt)");
    set("source", "kind", "onnx");
    insta::assert_snapshot!(home.refused("export-torch bundle"), @"error: bundle: it was made from an ONNX graph, and there is PyTorch code for checkpoints only (hint: convert the checkpoint)");
    set("source", "kind", "checkpoint");
    set("model", "family", "llama");
    std::fs::remove_file(home.path("bundle/config.json")).expect("it was there");
    insta::assert_snapshot!(home.refused("export-torch bundle"), @"error: bundle/config.json: cannot be read: No such file or directory (os error 2) (hint: is the path right, and is its directory there?)");
}

#[test]
fn trained_weights_take_the_place_of_the_old() {
    let home = Home::with("llama", "");
    let before = home.everything();
    home.write(|tensors| with_first(tensors, NORM, 2.0));
    let told = home.fine("import-weights bundle new.safetensors");
    let (_, _, numbers) = &home.weights("bundle/model.safetensors")[NORM];
    // 2 in bf16.
    assert_eq!(numbers[..2], [0x00, 0x40]);
    assert_eq!(told["cast"], json!([{"from": "f32", "to": "bf16", "tensors": 1}]));
    let trained = &home.json("bundle/dijiang.json")["trained"];
    assert_eq!((&trained["name"], &trained["sha256"]), (&json!("model.safetensors"), &told["sha256"]));
    for (path, bytes) in home.everything() {
        let name = path.file_name().expect("a name").to_string_lossy();
        let is_same = before.get(&path) == Some(&bytes);
        assert_eq!(
            is_same,
            !["model.safetensors", "dijiang.json", "new.safetensors"].contains(&&*name),
            "{name}"
        );
    }
    // Their own place is a good place too.
    home.fine("import-weights bundle bundle");
}

#[test]
fn checks_of_other_weights_are_forgotten() {
    let home = Home::with("llama", "");
    let mut manifest = home.json("bundle/dijiang.json");
    manifest["checks"] = json!([{"name": "chunked", "limit": 1e-4, "ok": true}]);
    std::fs::write(home.path("bundle/dijiang.json"), sealed(manifest)).expect("it is written");
    home.fine("import-weights bundle bundle/model.safetensors");
    assert_eq!(home.json("bundle/dijiang.json")["checks"], json!([]));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let home = Home::with("llama", "");
    insta::assert_snapshot!(home.refused("import-weights bundle nowhere.safetensors"), @"error: nowhere.safetensors: there is no such file or directory (hint: `dijiang import-weights --help` says what FILE takes)");
    insta::assert_snapshot!(home.import_refused(|t| drop(t.remove(NORM))), @"error: new.safetensors: tensor `model.norm.weight` is missing; the bundle has it with shape [64]");
    insta::assert_snapshot!(home.import_refused(|t| drop(t.insert("model.extra".to_owned(), t[NORM].clone()))), @"error: new.safetensors: the bundle has no tensor `model.extra`");
    insta::assert_snapshot!(home.import_refused(|t| drop(t.insert(format!("module.{NORM}"), t[NORM].clone()))), @"error: new.safetensors: the bundle has no tensor `module.model.norm.weight` (hint: save the model inside the wrapper that adds `module.`)");
    let reshape = |t: &mut Tensors| t.get_mut(NORM).expect("the tensor").1 = vec![8, 8];
    insta::assert_snapshot!(home.import_refused(reshape), @"error: new.safetensors: tensor `model.norm.weight` has shape [8, 8]; the bundle has [64]");
    let retype = |t: &mut Tensors| t.get_mut(NORM).expect("the tensor").0 = Dtype::I16;
    insta::assert_snapshot!(home.import_refused(retype), @"error: new.safetensors: tensor `model.norm.weight` has element type i16; expected f32, f16, bf16 or f64");
    insta::assert_snapshot!(home.import_refused(|t| with_first(t, NORM, f32::NAN)), @"error: new.safetensors: tensor `model.norm.weight` holds NaN or infinity (hint: did the training diverge?)");
    std::fs::write(home.path("new.safetensors"), [0; 4]).expect("it is written");
    insta::assert_snapshot!(home.refused("import-weights bundle new.safetensors"), @"error: new.safetensors: the safetensors header is broken: 4 bytes hold no header length (hint: the file is damaged or is no safetensors file: fetch or write it again)");
}

#[test]
fn numbers_too_large_for_the_stored_type_are_refused() {
    let home = Home::with("llama", "--dtype f16");
    insta::assert_snapshot!(home.import_refused(|t| with_first(t, NORM, 1e5)), @"error: new.safetensors: tensor `model.norm.weight` holds a number too large for f16, which the bundle stores");
    home.write(|t| with_first(t, NORM, 65504.0));
    home.fine("import-weights bundle new.safetensors");
}

#[test]
fn a_tied_projection_must_be_its_table() {
    let home = Home::with("llama", "");
    let head = "lm_head.weight";
    home.write(|t| drop(t.insert(head.to_owned(), t[TABLE].clone())));
    home.fine("import-weights bundle new.safetensors");
    let untied = |t: &mut Tensors| {
        let mut other = t[TABLE].clone();
        other.2[0] ^= 1;
        t.insert(head.to_owned(), other);
    };
    insta::assert_snapshot!(home.import_refused(untied), @"error: new.safetensors: tensor `lm_head.weight` is not what `model.embed_tokens.weight` is, and the model has one table for both (hint: train with them tied)");
}

/// The same names and shapes, but another map.
#[test]
fn weights_of_another_conversion_are_refused() {
    let home = Home::with("llama", "--recipe pff");
    home.fine("export-torch bundle");
    std::fs::create_dir(home.path("trained")).expect("a directory");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(home.path("bundle").join(name), home.path("trained").join(name)).expect("a copy");
    }
    home.fine("import-weights bundle trained");
    let mut config = home.json("trained/config.json");
    config["dijiang"]["recipe"]["map"]["radial"] = json!("normal");
    std::fs::write(home.path("trained/config.json"), config.to_string()).expect("it is written");
    insta::assert_snapshot!(home.refused("import-weights bundle trained"), @"error: trained/config.json: `dijiang.recipe` is not that of the bundle: these weights were trained from another conversion");
}

#[test]
fn a_layout_of_other_hands_is_refused() {
    let home = Home::with("llama", "");
    home.write(|_| ());
    std::fs::copy(home.path("new.safetensors"), home.path("bundle/model.safetensors")).expect("a copy");
    // As an earlier version wrote it, which lists no sizes.
    let mut manifest = home.json("bundle/dijiang.json");
    manifest["files"] = json!([]);
    std::fs::write(home.path("bundle/dijiang.json"), sealed(manifest)).expect("it is written");
    insta::assert_snapshot!(home.refused("import-weights bundle new.safetensors"), @"error: bundle/model.safetensors: its layout is not that of this version (hint: convert the model anew)");
}
