//! Every checkpoint of `fixtures/`, built in f32 and run by the f64 interpreter, against the logits
//! that transformers gave.

use dijiang::checkpoint::{self, SourceModel};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::verify::verify;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The references were computed in f32, whose rounding reaches 1.2e-5 on logits of up to 19. The
/// gentlest mistakes are larger: another epsilon of the norms gives 1e-4, the other gelu 7e-4.
const TOLERANCE: f64 = 5e-5;

/// The interpreter against itself: f64 rounding only.
const EXACT: f64 = 1e-9;

/// The folders of `fixtures/` that hold a checkpoint with reference logits.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let entries = std::fs::read_dir(&root).expect("the fixtures are there");
    let mut folders: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    folders.retain(|f| f.join("reference.safetensors").is_file() && f.join("config.json").is_file());
    // Those of the authors' code hold no softmax.
    folders.retain(|f| !f.ends_with("authors") && !f.ends_with("authors-edited"));
    folders.sort();
    folders
}

fn build(folder: &Path) -> SourceModel {
    let checkpoint = checkpoint::open(folder).unwrap_or_else(|e| panic!("{e}"));
    checkpoint.build(Some(DType::F32)).unwrap_or_else(|e| panic!("{e}"))
}

/// Tokens of one length: `rows` texts side by side.
#[derive(Clone)]
struct Tokens {
    rows: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
}

struct Reference {
    tokens: Tokens,
    logits: Vec<f64>,
}

impl Reference {
    fn read(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("reference.safetensors")).expect("the reference is there");
        let file = SafeTensors::deserialize(&bytes).expect("the reference is safetensors");
        let ints = |name: &str| -> Vec<i64> {
            let data = file.tensor(name).expect("a tensor of the reference").data();
            data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
        };
        let rows = file.tensor("input_ids").expect("a tensor of the reference").shape()[0];
        let logits = file.tensor("logits").expect("a tensor of the reference").data();
        let logits = logits.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        let tokens = Tokens { rows, ids: ints("input_ids"), mask: ints("attention_mask") };
        Self { tokens, logits }
    }
}

impl Tokens {
    fn len(&self) -> usize {
        self.ids.len() / self.rows
    }

    /// The columns `range` of the ids, under the whole mask up to their end.
    fn part(&self, range: std::ops::Range<usize>) -> Self {
        let n = self.len();
        let pick = |all: &[i64], range: std::ops::Range<usize>| -> Vec<i64> {
            all.chunks(n).flat_map(|row| row[range.clone()].to_vec()).collect()
        };
        Self { rows: self.rows, ids: pick(&self.ids, range.clone()), mask: pick(&self.mask, 0..range.end) }
    }

    /// The same texts with `n` columns of padding in front.
    fn padded(&self, n: usize) -> Self {
        let pad = |all: &[i64], width: usize| -> Vec<i64> {
            all.chunks(width).flat_map(|row| [vec![0; n], row.to_vec()].concat()).collect()
        };
        let len = self.len();
        Self { rows: self.rows, ids: pad(&self.ids, len), mask: pad(&self.mask, len) }
    }

    /// Positions count the tokens that are no padding, as transformers does for left padding.
    fn positions(&self) -> Vec<i64> {
        let (n, total) = (self.len(), self.mask.len() / self.rows);
        let count = |row: &[i64]| -> Vec<i64> {
            let mut sum = 0;
            let counts = row.iter().map(|m| {
                sum += m;
                (sum - 1).max(0)
            });
            counts.collect()
        };
        self.mask.chunks(total).flat_map(|row| count(row)[total - n..].to_vec()).collect()
    }
}

/// Logits and the new cache, after `past` (nothing, or the cache of an earlier run).
fn run(model: &SourceModel, tokens: &Tokens, past: Option<&[Array]>) -> (Array, Vec<Array>) {
    let (graph, meta) = (&model.graph, &model.meta);
    let (rows, n) = (tokens.rows, tokens.len());
    let ints = |dims: &[usize], values: Vec<i64>| Array::from_i64(dims, values).expect("values fill dims");
    let empty = [rows, meta.kv_heads as usize, 0, meta.head_dim as usize];
    let mut given = BTreeMap::new();
    let mut give = |name: &str, array: Array| given.insert(graph.input(name).expect("an input"), array);
    give("input_ids", ints(&[rows, n], tokens.ids.clone()));
    give("attention_mask", ints(&[rows, tokens.mask.len() / rows], tokens.mask.clone()));
    give("position_ids", ints(&[rows, n], tokens.positions()));
    for (i, name) in cache_names(model, "past_key_values").iter().enumerate() {
        let none = || Array::from_f64(&empty, Vec::new()).expect("nothing fills no room");
        give(name, past.map_or_else(none, |p| p[i].clone()));
    }
    let names = [vec!["logits".to_owned()], cache_names(model, "present")].concat();
    let wanted: Vec<_> = names.iter().map(|n| graph.output(n).expect("an output")).collect();
    let mut results = eval(graph, &given, &wanted).unwrap_or_else(|e| panic!("{e}"));
    (results.remove(0), results)
}

fn cache_names(model: &SourceModel, prefix: &str) -> Vec<String> {
    let parts = |i| [format!("{prefix}.{i}.key"), format!("{prefix}.{i}.value")];
    (0..model.meta.layers).flat_map(parts).collect()
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    // A NaN is as wrong as it gets.
    differences.fold(0.0, |w: f64, d| if d.is_nan() { f64::INFINITY } else { w.max(d) })
}

/// The last `n` columns of logits `[rows, length, vocab]`.
fn tail(logits: &Array, n: usize) -> Vec<f64> {
    let [_, length, vocab] = logits.shape() else { panic!("logits have rank 3") };
    logits.to_f64().chunks(length * vocab).flat_map(|row| row[(length - n) * vocab..].to_vec()).collect()
}

#[test]
fn there_are_fixtures() {
    assert!(fixtures().len() >= 30, "{:?}", fixtures());
}

#[test]
fn the_graphs_are_well_formed() {
    for folder in fixtures() {
        let model = build(&folder);
        assert_eq!(verify(&model.graph), [], "{}", folder.display());
        let softmaxes = model.graph.nodes().filter(|(_, n)| n.op.is("Softmax")).count();
        assert_eq!(softmaxes, model.meta.expected_sites);
    }
}

#[test]
fn the_logits_are_those_of_transformers() {
    for folder in fixtures() {
        let reference = Reference::read(&folder);
        let (logits, _) = run(&build(&folder), &reference.tokens, None);
        let difference = worst(&logits.to_f64(), &reference.logits);
        assert!(difference < TOLERANCE, "{}: off by {difference:e}", folder.display());
    }
}

#[test]
fn a_cache_changes_nothing() {
    for folder in fixtures() {
        let model = build(&folder);
        let Reference { tokens, .. } = Reference::read(&folder);
        let (whole, cache) = run(&model, &tokens, None);
        let (_, past) = run(&model, &tokens.part(0..5), None);
        let (rest, grown) = run(&model, &tokens.part(5..tokens.len()), Some(&past));
        let difference = worst(&tail(&whole, tokens.len() - 5), &rest.to_f64());
        assert!(difference < EXACT, "{}: logits are off by {difference:e}", folder.display());
        for (a, b) in cache.iter().zip(&grown) {
            let difference = worst(&a.to_f64(), &b.to_f64());
            assert!(difference < EXACT, "{}: the cache is off by {difference:e}", folder.display());
        }
    }
}

#[test]
fn padding_in_front_changes_nothing() {
    for folder in fixtures() {
        let model = build(&folder);
        let Reference { tokens, .. } = Reference::read(&folder);
        let (plain, _) = run(&model, &tokens, None);
        let (padded, _) = run(&model, &tokens.padded(3), None);
        assert!(padded.to_f64().iter().all(|x| x.is_finite()), "{}", folder.display());
        let difference = worst(&plain.to_f64(), &tail(&padded, tokens.len()));
        assert!(difference < EXACT, "{}: off by {difference:e}", folder.display());
    }
}

#[test]
fn every_element_type_builds() {
    for folder in fixtures() {
        let checkpoint = checkpoint::open(&folder).unwrap_or_else(|e| panic!("{e}"));
        for dtype in [DType::F16, DType::BF16] {
            let model = checkpoint.build(Some(dtype)).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(verify(&model.graph), [], "{}", folder.display());
            let logits = model.graph.output("logits").expect("an output");
            assert_eq!(model.graph.value(logits).ty.dtype, Some(dtype));
        }
    }
}

/// A checkpoint of `fixtures/` whose config says something else; null takes a key away.
fn edited(folder: &str, changes: &[(&str, Value)]) -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(folder);
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(&source).expect("the fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    for (key, value) in changes {
        let (parent, key) = key.rsplit_once('/').unwrap_or(("", key));
        let parent =
            if parent.is_empty() { Some(&mut config) } else { config.pointer_mut(&format!("/{parent}")) };
        parent.expect("an object")[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).expect("it is written");
    dir
}

/// How far the logits of an edited checkpoint are from the reference of the one that was not.
fn moved(folder: &str, changes: &[(&str, Value)]) -> f64 {
    let dir = edited(folder, changes);
    let reference = Reference::read(dir.path());
    let (logits, _) = run(&build(dir.path()), &reference.tokens, None);
    worst(&logits.to_f64(), &reference.logits)
}

/// Each key that is special about a family changes the logits of its fixture, so that reading it wrongly would show.
#[test]
fn what_is_special_about_a_family_shows_in_its_logits() {
    let turns = json!(["full_attention", "sliding_attention"]);
    let cases: [(&str, &str, Value); 47] = [
        ("qwen2", "sliding_window", json!(5)),
        ("qwen2", "sliding_window", json!(7)),
        ("qwen2", "layer_types", json!(["full_attention", "full_attention", "sliding_attention"])),
        ("qwen2", "rope_parameters/factor", json!(2.0)),
        ("qwen2", "rope_parameters/beta_fast", json!(0.4)),
        ("qwen2", "rope_parameters/beta_slow", json!(0.1)),
        ("qwen2", "rope_parameters/attention_factor", json!(1.0)),
        ("qwen2", "rope_parameters/original_max_position_embeddings", json!(32)),
        ("qwen2", "rope_parameters/rope_theta", json!(10000.0)),
        ("qwen3", "rope_parameters/rope_theta", json!(1000.0)),
        ("qwen3", "rms_norm_eps", json!(1e-3)),
        ("smollm3", "no_rope_layers", json!([1, 1, 1])),
        ("smollm3", "no_rope_layers", json!([0, 1, 1])),
        ("phi3", "rope_parameters/long_factor", json!([1.5, 3.5, 1.0])),
        ("phi3", "rope_parameters/attention_factor", json!(1.0)),
        // No more positions than the original ones: the short factors.
        ("phi3", "max_position_embeddings", json!(16)),
        ("phi3-short", "rope_parameters/short_factor", json!([1.0, 1.1, 2.0, 1.3])),
        ("phi3-short", "sliding_window", json!(6)),
        ("phi3-short", "sliding_window", json!(8)),
        ("phi3-short", "sliding_window", Value::Null),
        ("granite", "embedding_multiplier", json!(1.0)),
        ("granite", "attention_multiplier", json!(0.35)),
        ("granite", "residual_multiplier", json!(1.0)),
        ("granite", "logits_scaling", json!(1.0)),
        ("olmo2", "rms_norm_eps", json!(1e-2)),
        ("gemma", "hidden_act", json!("silu")),
        ("gemma2", "attn_logit_softcapping", json!(2.2)),
        ("gemma2", "attn_logit_softcapping", Value::Null),
        ("gemma2", "final_logit_softcapping", json!(7.0)),
        ("gemma2", "final_logit_softcapping", Value::Null),
        ("gemma2", "query_pre_attn_scalar", json!(16)),
        ("gemma2", "sliding_window", json!(7)),
        ("gemma2", "layer_types", turns),
        ("gemma3", "query_pre_attn_scalar", json!(16)),
        ("gemma3", "sliding_window", json!(7)),
        ("gemma3", "rope_parameters/full_attention/factor", json!(4.0)),
        ("gemma3", "rope_parameters/full_attention/rope_theta", json!(1000.0)),
        ("gemma3", "rope_parameters/sliding_attention/rope_theta", json!(10000.0)),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(false)),
        ("gpt2", "scale_attn_weights", json!(false)),
        ("gpt2", "activation_function", json!("relu")),
        ("gptj", "rotary_dim", json!(8)),
        ("phi", "hidden_act", json!("relu")),
        ("starcoder2", "sliding_window", json!(5)),
        ("starcoder2", "sliding_window", Value::Null),
        ("cohere", "logit_scale", json!(0.0625)),
        ("glm", "rope_parameters/rope_theta", json!(1000.0)),
    ];
    for (folder, key, value) in cases {
        let moved = moved(folder, &[(key, value.clone())]);
        // A hundred times what rounding comes to.
        assert!(moved > 100.0 * TOLERANCE, "{folder}, {key} {value}: {moved:e}");
    }
    let halved =
        [("partial_rotary_factor", json!(0.5)), ("rope_parameters/partial_rotary_factor", json!(0.5))];
    assert!(moved("stablelm", &halved) > 100.0 * TOLERANCE);
    assert!(moved("stablelm-parallel", &halved) < TOLERANCE);
}

/// The same model by other keys, as earlier versions of transformers write them or as their defaults are.
#[test]
fn other_spellings_are_the_same_model() {
    let yarn = json!({
        "type": "yarn", "factor": 4.0, "beta_fast": 2, "beta_slow": 0.5, "original_max_position_embeddings": 16,
    });
    let cases: [(&str, &[(&str, Value)]); 10] = [
        ("gemma", &[("hidden_act", json!("silu")), ("hidden_activation", json!("gelu_pytorch_tanh"))]),
        ("qwen2", &[("layer_types", Value::Null)]),
        ("qwen2", &[("rope_parameters", Value::Null), ("rope_scaling", yarn), ("rope_theta", json!(1000.0))]),
        ("smollm3", &[("no_rope_layers", Value::Null)]),
        // What the short factors are is read by no text of this model, and the long ones by none of the other.
        ("phi3", &[("rope_parameters/short_factor", json!([9.0, 9.0, 9.0]))]),
        ("phi3-short", &[("rope_parameters/long_factor", json!([9.0, 9.0, 9.0, 9.0]))]),
        ("gemma2", &[("layer_types", Value::Null)]),
        ("gemma3", &[("layer_types", Value::Null), ("sliding_window_pattern", json!(3))]),
        (
            "gemma3",
            &[
                ("rope_parameters", Value::Null),
                ("rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
                ("rope_theta", json!(10000.0)),
                ("rope_local_base_freq", json!(100.0)),
            ],
        ),
        // A window as long as there are positions is none that shows.
        ("phi3", &[("sliding_window", json!(262_144))]),
    ];
    for (folder, changes) in cases {
        let moved = moved(folder, changes);
        assert!(moved < TOLERANCE, "{folder}, {changes:?}: {moved:e}");
    }
}
