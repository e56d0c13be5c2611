//! Every checkpoint of `fixtures/`, built in f32 and run by the f64 interpreter, against the logits
//! that transformers gave.

use dijiang::checkpoint::{self, SourceModel};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::verify::verify;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    assert!(fixtures().len() >= 7, "{:?}", fixtures());
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
