//! GGUF files of the checkpoints of `fixtures/`, written by llama.cpp's own package (`make_gguf.py`): the same model as the
//! checkpoint, number by number. And files made to do harm.

use crate::support::home::Home;
use dijiang::checkpoint::{self, Checkpoint, CheckpointError, SourceModel};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::tensor::SharedBytes;
use dijiang_runtime::Tokenizer;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use tempfile::TempDir;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// A GGUF file, the checkpoint that it was made of, and what GGUF cannot say of that: with these keys of its config it is
/// the same model.
struct Pair {
    gguf: &'static str,
    checkpoint: &'static str,
    changes: &'static [(&'static str, &'static str)],
}

const fn same(name: &'static str) -> Pair {
    Pair { gguf: name, checkpoint: name, changes: &[] }
}

const fn with(name: &'static str, changes: &'static [(&'static str, &'static str)]) -> Pair {
    Pair { gguf: name, checkpoint: name, changes }
}

const PAIRS: &[Pair] = &[
    same("cohere"),
    same("falcon"),
    same("falcon-mqa"),
    same("gemma"),
    // The scale of its scores is that of its heads.
    with("gemma2", &[("query_pre_attn_scalar", "16")]),
    with("gemma3", &[("query_pre_attn_scalar", "12")]),
    with("gpt2", &[("scale_attn_by_inverse_layer_idx", "false")]),
    same("granite"),
    same("llama"),
    same("llama-linear"),
    same("llama-rope3"),
    with("mistral", &[("sliding_window", "null")]),
    same("neox"),
    same("neox-serial"),
    same("olmo2"),
    same("phi"),
    same("phi3"),
    same("phi3-short"),
    // No windows.
    with("qwen2", &[("use_sliding_window", "false"), ("layer_types", "null")]),
    same("qwen3"),
    // Every fourth layer does not rotate, and it has three.
    with("smollm3", &[("no_rope_layers", "[1, 1, 1]")]),
    same("stablelm"),
    same("stablelm-parallel"),
    with("starcoder2", &[("sliding_window", "null")]),
];

/// One more, taken and given back in f32.
const NORMS: f32 = 6e-8;
/// The factors of Llama 3's frequencies are stored in f32.
const LOGITS: f64 = 2e-5;

fn build(path: &Path) -> SourceModel {
    let checkpoint = checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    checkpoint.build(Some(DType::F32)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn of_gguf(name: &str) -> SourceModel {
    build(&fixture("gguf").join(format!("{name}.gguf")))
}

/// A checkpoint of `fixtures/` whose config says something else; null takes a key away.
fn edited(folder: &str, changes: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(fixture(folder)).expect("the fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    for (key, value) in changes {
        config[*key] = serde_json::from_str(value).expect("JSON");
    }
    std::fs::write(&path, config.to_string()).expect("it is written");
    dir
}

/// The weights of a model, by name.
fn weights(model: &SourceModel) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let weights = model.graph.consts().filter(|(id, ..)| model.graph.value(*id).is_weight);
    weights.map(|(_, name, tensor)| (name.to_owned(), (tensor.dims().to_vec(), tensor.to_f32()))).collect()
}

/// The logits of the tokens that the checkpoint's reference has.
fn logits(model: &SourceModel, checkpoint: &str) -> Vec<f64> {
    let bytes = std::fs::read(fixture(checkpoint).join("reference.safetensors")).expect("a reference");
    let reference = SafeTensors::deserialize(&bytes).expect("safetensors");
    let ids = reference.tensor("input_ids").expect("ids");
    let [rows, length] = ids.shape()[..] else { panic!("ids of rank 2") };
    let ids: Vec<i64> = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let places: Vec<i64> = (0..rows).flat_map(|_| 0..length as i64).collect();
    let (graph, meta) = (&model.graph, &model.meta);
    let tokens = |values: Vec<i64>| Array::from_i64(&[rows, length], values).expect("values fill dims");
    let empty = [rows, meta.kv_heads as usize, 0, meta.head_dim as usize];
    let mut given = BTreeMap::new();
    let mut give = |name: &str, array: Array| given.insert(graph.input(name).expect("an input"), array);
    give("attention_mask", tokens(vec![1; ids.len()]));
    give("input_ids", tokens(ids));
    give("position_ids", tokens(places));
    for layer in 0..meta.layers {
        for part in ["key", "value"] {
            let nothing = Array::from_f64(&empty, Vec::new()).expect("nothing fills no room");
            give(&format!("past_key_values.{layer}.{part}"), nothing);
        }
    }
    let wanted = [graph.output("logits").expect("logits")];
    eval(graph, &given, &wanted).unwrap_or_else(|e| panic!("{checkpoint}: {e}")).remove(0).to_f64()
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    differences.fold(0.0, |w: f64, d| if d.is_nan() { f64::INFINITY } else { w.max(d) })
}

/// The first weight of a model that is another, and by how much.
fn first_other(found: &SourceModel, expected: &SourceModel, most: f32) -> Option<String> {
    let (found, expected) = (weights(found), weights(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    found.iter().find_map(|(name, (dims, numbers))| {
        let (other_dims, others) = &expected[name];
        assert_eq!(dims, other_dims, "{name}");
        let most = if name.contains("norm") { most } else { 0.0 };
        let far = numbers.iter().zip(others).find(|(x, y)| (**x - **y).abs() > most || x.is_nan());
        far.map(|(x, y)| format!("{name}: {x} for {y}"))
    })
}

#[test]
fn every_file_is_compared() {
    let entries = std::fs::read_dir(fixture("gguf")).expect("the fixtures");
    let names = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    names.retain(|name| name != "granite-q8_0" && !name.starts_with("tokenizer-"));
    names.sort();
    assert_eq!(names, PAIRS.iter().map(|pair| pair.gguf).collect::<Vec<_>>());
}

#[test]
fn a_gguf_file_is_the_model_that_it_was_made_of() {
    for Pair { gguf, checkpoint, changes } in PAIRS {
        let dir = edited(checkpoint, changes);
        let (found, expected) = (of_gguf(gguf), build(dir.path()));
        assert_eq!(first_other(&found, &expected, NORMS), None, "{gguf}");
        let difference = worst(&logits(&found, checkpoint), &logits(&expected, checkpoint));
        assert!(difference < LOGITS, "{gguf}: off by {difference:e}");
        assert_eq!(found.warnings, Vec::<String>::new(), "{gguf}");
        let [found, expected] = [&found.meta, &expected.meta];
        let of = |meta: &checkpoint::ModelMeta| {
            (meta.kv_heads, meta.head_dim, meta.vocab, meta.bos, meta.eos.clone(), meta.pad)
        };
        assert_eq!(of(found), of(expected), "{gguf}");
    }
}

/// What was changed in the checkpoint for the comparison is a change: of each the logits are others without it.
#[test]
fn what_gguf_cannot_say_shows_in_the_logits() {
    for Pair { gguf, checkpoint, changes } in PAIRS {
        if !changes.is_empty() {
            let dir = edited(checkpoint, &[]);
            let moved = worst(&logits(&of_gguf(gguf), checkpoint), &logits(&build(dir.path()), checkpoint));
            assert!(moved > 100.0 * LOGITS, "{gguf}: {moved:e}");
        }
    }
}

/// The numbers that the package reads, with what llama.cpp did to the rows undone.
#[test]
fn quantised_numbers_are_those_that_llama_cpp_reads() {
    let model = of_gguf("granite-q8_0");
    let bytes = std::fs::read(fixture("gguf/granite-q8_0.safetensors")).expect("the numbers");
    let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
    let found = weights(&model);
    assert_eq!(found.len(), expected.len());
    for (name, (_, numbers)) in found {
        let stored = expected.tensor(&name).expect("a tensor").data().as_chunks().0;
        let stored: Vec<f32> = stored.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(numbers, stored, "{name}");
    }
    let note = model.notes.first().expect("it is told");
    assert!(note.contains("14 tensors of Q8_0 were quantised, and are read as the f32 numbers"), "{note}");
}

/// The ids are those of sentencepiece, and those of the rules of llama.cpp.
#[test]
fn the_tokenizer_gives_the_same_ids() {
    for name in ["sentencepiece", "gpt-2", "llama-bpe", "qwen2", "smollm"] {
        let file = fixture("gguf").join(format!("tokenizer-{name}.gguf"));
        let model = checkpoint::open(&file).unwrap_or_else(|e| panic!("{e}"));
        let home = Home::empty();
        let path = model.texts().path("tokenizer.json", home.0.path()).expect("it is written");
        let tokenizer = Tokenizer::load(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = std::fs::read(file.with_extension("json")).expect("the ids");
        let expected: Vec<(String, Vec<i64>)> = serde_json::from_slice(&expected).expect("JSON");
        assert!(expected.len() >= 7);
        for (text, ids) in expected {
            assert_eq!(tokenizer.encode(&text).expect("ids"), ids, "{name}: {text:?}");
            let plain = !text.contains('<');
            if plain {
                let shown = tokenizer.decode(&ids).expect("a text");
                assert_eq!(shown, text, "{name}");
            }
        }
        let vocabulary = model.meta().vocab as usize;
        assert_eq!(tokenizer.vocabulary(), vocabulary, "{name}");
        assert_eq!(model.texts().lack(), None);
        assert_eq!(model.meta().eos.len(), if name == "sentencepiece" { 1 } else { 2 }, "{name}");
        assert_eq!(model.texts().find("chat_template.jinja").is_some(), name != "sentencepiece");
    }
}

/// Where a rule is not known, there is no tokenizer, and a conversion says so.
#[test]
fn a_tokenizer_that_is_not_known_is_told() {
    let home = Home::empty();
    let mut bytes = std::fs::read(fixture("gguf/tokenizer-qwen2.gguf")).expect("the fixture");
    let at = bytes.windows(5).rposition(|window| window == b"qwen2").expect("its rule");
    bytes[at..at + 5].copy_from_slice(b"qwen9");
    std::fs::write(home.path("model.gguf"), bytes).expect("it is written");
    let output = run(&home, "convert model.gguf -o bundle --recipe softmax --no-verify");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("warning: model.gguf: no tokenizer.json is made of it, which `generate` and training read texts with: tokenizer.ggml.pre is `qwen9`; known are gpt-2, gpt2, phi-2, llama-bpe, llama3, llama-v3, qwen2, smollm, starcoder (hint: put the tokenizer.json of the model it was made from beside it, and convert it again)"),
        "{told}"
    );
    assert!(!home.path("bundle/tokenizer.json").exists());
}

fn run(home: &Home, arguments: &str) -> Output {
    home.run(arguments)
}

#[track_caller]
fn refused(home: &Home, arguments: &str) -> String {
    let output = run(home, arguments);
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    told.trim_end().to_owned()
}

fn home_with(name: &str) -> Home {
    let home = Home::empty();
    std::fs::copy(fixture("gguf").join(format!("{name}.gguf")), home.path("model.gguf")).expect("a copy");
    home
}

#[test]
fn a_gguf_file_becomes_a_bundle() {
    let home = home_with("llama");
    let output = run(&home, "convert model.gguf -o bundle --recipe softmax --no-verify --json");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(home.path("bundle").join(name)).expect("a file")).expect("JSON")
    };
    let manifest = read("dijiang.json");
    assert_eq!(manifest["source"]["kind"], "checkpoint");
    let files = manifest["source"]["files"].as_array().expect("files");
    assert_eq!(files.iter().map(|f| f["name"].clone()).collect::<Vec<_>>(), [json!("model.gguf")]);
    assert_eq!(files[0]["sha256"].as_str().map(str::len), Some(64));
    let config = read("config.json");
    assert_eq!((&config["model_type"], &config["num_key_value_heads"]), (&json!("llama"), &json!(2)));
    assert!(!home.path("bundle/tokenizer.json").exists());
    assert!(run(&home, "inspect model.gguf --json").status.success());
    assert!(run(&home, "info bundle --json").status.success());
}

/// What lies beside the file is of its model, but for a config: the file is its own.
#[test]
fn a_tokenizer_beside_the_file_is_taken() {
    let home = home_with("llama");
    std::fs::copy(fixture("shakespeare/tokenizer.json"), home.path("tokenizer.json")).expect("a copy");
    std::fs::write(home.path("config.json"), "{}").expect("it is written");
    assert!(run(&home, "convert model.gguf -o bundle --recipe softmax --no-verify").status.success());
    let [made, beside] =
        ["bundle/tokenizer.json", "tokenizer.json"].map(|name| std::fs::read(home.path(name)));
    assert_eq!(made.expect("a copy"), beside.expect("it is there"));
    let config = std::fs::read_to_string(home.path("bundle/config.json")).expect("a config");
    assert!(config.contains("\"model_type\": \"llama\""), "{config}");
}

/// As some programs keep it: by its digest.
#[test]
fn a_file_is_known_by_what_it_begins_with() {
    let home = home_with("llama");
    std::fs::rename(home.path("model.gguf"), home.path("sha256-0a1b")).expect("another name");
    assert!(run(&home, "inspect sha256-0a1b --json").status.success());
    std::fs::write(home.path("other"), "GGU").expect("it is written");
    assert!(refused(&home, "inspect other").contains("other: this file is not an ONNX model"));
}

#[test]
fn no_weight_stays_in_a_gguf_file() {
    let home = home_with("llama");
    assert_eq!(
        refused(&home, "convert model.gguf -o bundle --recipe softmax --no-verify --link"),
        "error: model.gguf: no weight can stay in its file as it is (hint: leave --link out; only those of a safetensors checkpoint can)"
    );
}

/// A key, and its value with the type of that.
type Key = (String, Vec<u8>);

/// A file, part by part.
#[derive(Clone)]
struct File {
    version: u32,
    values: Vec<Key>,
    /// Name, dims as the file has them, type, offset.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn of_text(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

fn of_u32(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn of_list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), elements].concat()
}

impl File {
    /// A llama of one layer, 2 heads of 4 and 5 tokens.
    fn new() -> Self {
        let key = |name: &str, value: u32| (format!("llama.{name}"), of_u32(value));
        let epsilon = [6u32.to_le_bytes(), 1e-5f32.to_bits().to_le_bytes()].concat();
        let mut file = Self {
            version: 3,
            values: vec![
                ("general.architecture".to_owned(), of_text("llama")),
                key("block_count", 1),
                key("embedding_length", 8),
                key("attention.head_count", 2),
                key("attention.head_count_kv", 1),
                key("feed_forward_length", 6),
                key("context_length", 16),
                ("llama.attention.layer_norm_rms_epsilon".to_owned(), epsilon),
            ],
            tensors: Vec::new(),
            data: 0,
        };
        for (name, dims) in [
            ("token_embd", vec![8, 5]),
            ("output_norm", vec![8]),
            ("blk.0.attn_norm", vec![8]),
            ("blk.0.attn_q", vec![8, 8]),
            ("blk.0.attn_k", vec![8, 4]),
            ("blk.0.attn_v", vec![8, 4]),
            ("blk.0.attn_output", vec![8, 8]),
            ("blk.0.ffn_norm", vec![8]),
            ("blk.0.ffn_gate", vec![8, 6]),
            ("blk.0.ffn_up", vec![8, 6]),
            ("blk.0.ffn_down", vec![6, 8]),
        ] {
            let count: u64 = dims.iter().product();
            file.tensors.push((format!("{name}.weight"), dims, 0, file.data as u64));
            file.data = (file.data + count as usize * 4).next_multiple_of(32);
        }
        file
    }

    fn value(mut self, key: &str, value: Vec<u8>) -> Self {
        self.values.retain(|(name, _)| name != key);
        self.values.push((key.to_owned(), value));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.values.retain(|(name, _)| name != key);
        self
    }

    fn tensor(mut self, name: &str, change: impl Fn(&mut (String, Vec<u64>, u32, u64))) -> Self {
        self.tensors.iter_mut().filter(|tensor| tensor.0 == name).for_each(change);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            out.extend(text(key));
            out.extend(value);
        }
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }
}

fn of_bytes(bytes: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    let bytes: SharedBytes = Arc::new(bytes);
    checkpoint::of_gguf_bytes(&bytes, Path::new("model.gguf"))
}

fn try_open(bytes: Vec<u8>) -> Result<(), String> {
    let checkpoint = of_bytes(bytes);
    let built = checkpoint.and_then(|checkpoint| checkpoint.build(Some(DType::F32)));
    built.map(|_| ()).map_err(|e| e.to_string())
}

#[track_caller]
fn wrong(file: &File, expected: &str) {
    wrong_bytes(file.bytes(), expected);
}

#[track_caller]
fn wrong_bytes(bytes: Vec<u8>, expected: &str) {
    let message = try_open(bytes).expect_err("it is refused");
    assert!(message.starts_with("model.gguf: ") && !message.contains('\n'), "{message}");
    assert!(message.contains(expected), "{message}\n{expected}");
}

#[test]
fn a_file_made_here_is_read() {
    try_open(File::new().bytes()).expect("a model");
    let older = File { version: 2, ..File::new() };
    try_open(older.bytes()).expect("a model");
    // The output projection of a file that has one is its own.
    let mut untied = File::new();
    untied.tensors.push(("output.weight".to_owned(), vec![8, 5], 0, untied.data as u64));
    untied.data += 160;
    try_open(untied.bytes()).expect("a model");
}

#[test]
fn other_formats_are_refused_by_name() {
    wrong(&File { version: 1, ..File::new() }, "it is of GGUF version 1; expected 2 or 3");
    wrong(&File { version: 4, ..File::new() }, "it is of GGUF version 4; expected 2 or 3");
    wrong(&File { version: 3 << 24, ..File::new() }, "it is a big-endian GGUF file");
    wrong_bytes(
        b"lmgg\x01\0\0\0".to_vec(),
        "begins with `lmgg`; expected `GGUF` (hint: it is of a format before GGUF",
    );
    wrong_bytes(Vec::new(), "it begins with nothing; expected `GGUF`");
    wrong_bytes(b"PK\x03\x04".to_vec(), "it begins with `PK\\x03\\x04`");
    let pointer = b"version https://git-lfs.github.com/spec/v1\n".to_vec();
    wrong_bytes(pointer, "it is a pointer of Git LFS");
}

#[test]
fn other_models_are_refused_by_name() {
    let key = "general.architecture";
    let read = "read are: command-r, falcon, gemma, gemma2, gemma3, gpt2, gptneox, granite, llama, olmo2, phi2, phi3, qwen2, qwen3, smollm3, stablelm, starcoder2";
    wrong(
        &File::new().value(key, of_text("mamba")),
        &format!("general.architecture `mamba` is not read of GGUF; {read}"),
    );
    wrong(&File::new().without(key), "key `general.architecture` is missing");
    wrong(&File::new().value("split.count", of_u32(3)), "it is one of 3 files of a split model");
    wrong(
        &File::new().value("general.type", of_text("adapter")),
        "key `general.type` is \"adapter\"; expected `model`",
    );
    wrong(&File::new().value("llama.expert_count", of_u32(8)), "num_local_experts `8` is not supported");
    wrong(
        &File::new().value("llama.attention.sliding_window", of_u32(8)),
        "sliding_window `8` is not supported",
    );
    wrong(
        &File::new().value("llama.rope.dimension_count", of_u32(2)),
        "key `llama.rope.dimension_count` is 2; expected 4",
    );
    wrong(
        &File::new().value("llama.attention.value_length", of_u32(8)),
        "key `llama.attention.value_length` is 8; expected 4",
    );
    wrong(
        &File::new().value("llama.rope.scaling.type", of_text("dynamic")),
        "key `llama.rope.scaling.type` is \"dynamic\"",
    );
    let causal = [&7u32.to_le_bytes()[..], &[0]].concat();
    wrong(
        &File::new().value("llama.attention.causal", causal),
        "key `llama.attention.causal` is false; expected true",
    );
    let by_layer = of_list(4, 2, &[2u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
    wrong(
        &File::new().value("llama.attention.head_count", by_layer),
        "is [2,4]; expected the same number for every layer",
    );
}

#[test]
fn a_key_that_says_nothing_known_is_told() {
    let file = File::new().value("llama.new.idea", of_u32(1));
    let model = of_bytes(file.bytes()).and_then(|checkpoint| checkpoint.build(None)).expect("a model");
    assert_eq!(
        model.warnings,
        ["model.gguf: `llama.new.idea`: llama reads no such key, and the model is built without"]
    );
}

#[test]
fn damaged_heads_are_refused_where_they_are_damaged() {
    let whole = File::new().bytes();
    let head = whole.len() - File::new().data;
    // Cut anywhere, it is no model, and says so.
    for length in (0..head).step_by(7).chain([whole.len() - 1]) {
        let message = try_open(whole[..length].to_vec()).expect_err("it is cut");
        assert!(message.contains("fetch it again"), "{length}: {message}");
    }
    let counts = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        bytes
    };
    wrong_bytes(counts(8), "the number of tensors at byte 8 is 1152921504606846976; expected at most");
    wrong_bytes(counts(16), "the number of keys at byte 16 is 1152921504606846976; expected at most");
    wrong_bytes(counts(24), "the file ends at byte");
    let with = |value: Vec<u8>| File::new().value("x", value);
    wrong(&with(99u32.to_le_bytes().to_vec()), "the type of key `x` at byte");
    wrong(&with(of_list(99, 1, &[0; 8])), "the type of key `x` at byte");
    wrong(&with(of_list(9, 1 << 40, &[0; 64])), "is a list of lists; expected a list of numbers or of texts");
    wrong(&with(of_list(8, 1 << 60, &[0; 64])), "key `x` at byte");
    wrong(&with(of_list(0, 1 << 60, &[0; 64])), "is 1152921504606846976; expected at most");
    wrong(
        &with([&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0xff, 0xfe]].concat()),
        "is no UTF-8; expected a text in UTF-8",
    );
    wrong(&with([&7u32.to_le_bytes()[..], &[2]].concat()), "is 2; expected a truth value, 0 or 1");
    let mut twice = File::new();
    twice.values.push(twice.values[1].clone());
    wrong(&twice, "key `llama.block_count` is there twice");
    wrong(
        &File::new().value("general.alignment", of_u32(24)),
        "key `general.alignment` is 24; expected a power of two",
    );
    wrong(
        &File::new().value("llama.block_count", of_text("one")),
        "key `llama.block_count` is \"one\"; expected a count",
    );
    wrong(
        &File::new().without("llama.block_count"),
        "key `llama.block_count` is missing; expected a positive integer",
    );
}

#[test]
fn tensors_that_cannot_be_are_refused_by_name() {
    let q = "blk.0.attn_q.weight";
    wrong(&File::new().tensor(q, |t| t.3 = 1 << 40), "takes 256 bytes from byte 1099511");
    wrong(&File::new().tensor(q, |t| t.3 = u64::MAX - 31), "tensor `blk.0.attn_q.weight` at byte");
    wrong(&File::new().tensor(q, |t| t.3 += 4), "expected a multiple of 32");
    wrong(&File::new().tensor(q, |t| t.3 = 0), "begins within `");
    wrong(&File::new().tensor(q, |t| t.1 = vec![1 << 62, 1 << 62]), "takes more bytes than can be counted");
    wrong(
        &File::new().tensor(q, |t| t.1 = vec![1 << 63, 0]),
        "has shape [0, 9223372036854775808]; expected some numbers",
    );
    wrong(&File::new().tensor(q, |t| t.1 = vec![1; 9]), "the rank of tensor `blk.0.attn_q.weight` at byte");
    wrong(&File::new().tensor(q, |t| t.2 = 8), "has rows of 8; expected a multiple of 32, a block of Q8_0");
    wrong(
        &File::new().tensor(q, |t| t.2 = 777),
        "tensor `blk.0.attn_q.weight` is of type number 777; read are F32, F16, Q4_0,",
    );
    let other = File::new().tensor(q, |t| (t.1, t.2) = (vec![32, 2], 20));
    wrong(
        &other,
        "tensor `blk.0.attn_q.weight` is of type IQ4_NL; read are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, F64, BF16 (hint: `llama-quantize --allow-requantize FILE NEW Q8_0`",
    );
    wrong(
        &File::new().tensor(q, |t| t.1 = vec![8, 6]),
        "has 6 rows, which are not those of 2 heads and 1 key/value head",
    );
    wrong(
        &File::new().tensor(q, |t| t.1 = vec![64]),
        "tensor `blk.0.attn_q.weight` has shape [64]; expected [8, 8] from model.gguf",
    );
    wrong(&File::new().tensor(q, |t| t.1 = vec![]), "has 0 rows");
    wrong(
        &File::new().tensor(q, |t| t.0 = "blk.0.attn_sinks.weight".to_owned()),
        "1 tensor (`blk.0.attn_sinks.weight`), for which architecture llama has no place",
    );
    wrong(
        &File::new().tensor(q, |t| t.0 = "blk.00.attn_q.weight".to_owned()),
        "1 tensor (`blk.00.attn_q.weight`), for which",
    );
    wrong(
        &File::new().tensor(q, |t| t.0 = "blk.1.attn_q.weight".to_owned()),
        "tensor `blk.0.attn_q.weight` is missing; llama needs it with shape [8, 8]",
    );
    wrong(
        &File::new().tensor(q, |t| t.0 = "blk.0.attn_k.weight".to_owned()),
        "tensor `blk.0.attn_k.weight` is there twice",
    );
    let mut more = File::new().value("llama.attention.head_count", of_u32(u32::MAX));
    more = more.value("llama.attention.key_length", of_u32(4));
    assert!(try_open(more.bytes()).is_err());
    wrong(
        &File::new().value("llama.block_count", of_u32(2_000_000_000)),
        "tensor `blk.1.attn_norm.weight` is missing",
    );
}

/// A model that was cut short says so before anything is written.
#[test]
fn the_program_refuses_in_one_line() {
    let home = Home::empty();
    let bytes = File::new().bytes();
    std::fs::write(home.path("model.gguf"), &bytes[..bytes.len() - 40]).expect("it is written");
    let told = refused(&home, "convert model.gguf -o bundle");
    assert!(told.starts_with("error: model.gguf: tensor `blk.0.ffn_down.weight` at byte "), "{told}");
    assert!(told.ends_with("(hint: the file is damaged, fetch it again)"), "{told}");
    assert!(!home.path("bundle").exists());
}

/// Heads that claim much, each in a file that has it: read within the memory that other files are held to.
#[test]
fn a_long_head_takes_little_memory() {
    let heads: [(&str, Vec<Key>); 3] = [
        ("texts", vec![("x".to_owned(), of_list(8, 3_900_000, &vec![0; 8 * 3_900_000]))]),
        ("bytes", (0..60).map(|i| (format!("k{i}"), of_list(0, 500_000, &vec![0; 500_000]))).collect()),
        (
            "keys",
            (0..60_000).map(|i| (format!("k{i}"), [0u32.to_le_bytes().as_slice(), &[0]].concat())).collect(),
        ),
    ];
    for (what, values) in heads {
        let home = Home::empty();
        let mut file = File::new().without("llama.block_count");
        file.values.extend(values);
        std::fs::write(home.path("model.gguf"), file.bytes()).expect("it is written");
        let script = r#"ulimit -d 204800 && exec timeout 60 "$0" convert model.gguf -o X --no-verify"#;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_dijiang")]).current_dir(home.0.path());
        let output = command.output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: {told}");
        assert!(told.starts_with("error: model.gguf: key `llama.block_count` is missing"), "{what}: {told}");
    }
}
