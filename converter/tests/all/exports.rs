//! 93 graphs from real exporters (`../shared/exports.tar.xz`): each is read, run by the f64
//! interpreter, cleaned up and run again, searched for attention, and compiled. Printed as tables of exporter by architecture. So are
//! nine of other versions and of runtimes that had optimised them (`../shared/exports2.tar.xz`). Without the archives there is
//! nothing to do.

#![expect(clippy::print_stderr, reason = "the tables are what the test is for")]

use dijiang::convert::compile::{CompileOptions, compile};
use dijiang::onnx::import;
use dijiang::recipes;
use dijiang_format::target::Target;
use dijiang_passes::attention::patterns::{Found, find_sites};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::verify::verify;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The references were computed in f32, as were the constants that exporters folded.
const TOLERANCE: f64 = 1e-4;

/// The clean-ups against the graph they were given: f64 rounding, and the factors of a Gelu (1/√2,
/// √(2/π)), which come to 3e-9 of the logits when they are written down in f32. So with the serving graph, where a Gelu
/// is one operator again.
const EXACT: f64 = 1e-8;

const HEAD_DIM: usize = 16;

/// The stages a graph goes through, in order.
const STAGES: [&str; 5] = ["imported", "evaluates", "canonical evaluates", "sites found", "converts"];

/// The forms of a linear model against each other: f64 rounding only.
const FORMS_AGREE: f64 = 1e-9;

/// An unpacked archive, or `None` where there is none.
fn unpacked(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let archive = root.join(format!("../shared/{name}.tar.xz"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    if !archive.is_file() {
        let asked = std::env::var_os("DIJIANG_REQUIRE_EXPORTS").is_some_and(|v| v == "1");
        assert!(!asked, "DIJIANG_REQUIRE_EXPORTS=1, and ../shared/{name}.tar.xz is not there");
        eprintln!("skipped: ../shared/{name}.tar.xz is not there");
        return None;
    }
    let unpacking = folder.with_extension("partial");
    std::fs::create_dir_all(&unpacking).expect("a folder for the archive");
    let done = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&unpacking).status();
    assert!(done.expect("tar runs").success(), "the archive does not unpack");
    std::fs::rename(&unpacking, &folder).expect("the folder is put in place");
    Some(folder)
}

/// One row of the index.
struct Export {
    dir: String,
    file: PathBuf,
    arch: String,
    sites: usize,
    /// Whether ONNX Runtime ran it for one row only.
    one_row: bool,
}

impl Export {
    /// `llama_gqa__dynamo23__sdpa` comes from `dynamo23__sdpa`.
    fn exporter(&self) -> &str {
        self.dir.split_once("__").map_or("", |(_, rest)| rest)
    }
}

fn index(folder: &Path) -> Vec<Export> {
    let text = std::fs::read_to_string(folder.join("index.json")).expect("the index is there");
    let rows: Vec<Value> = serde_json::from_str(&text).expect("the index is JSON");
    let text = |row: &Value, key: &str| row[key].as_str().expect("a string of the index").to_owned();
    let export = |row: &Value| Export {
        dir: text(row, "dir"),
        file: folder.join(text(row, "dir")).join(text(row, "file")),
        arch: text(row, "arch"),
        sites: row["attention_sites"].as_u64().expect("a number of the index") as usize,
        one_row: text(row, "reference_error").contains("b1:"),
    };
    rows.iter().map(export).collect()
}

/// The arrays of an uncompressed `.npz` file, by name.
fn npz(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let mut arrays = BTreeMap::new();
    let mut at = 0;
    while bytes[at..].starts_with(b"PK\x03\x04") {
        assert_eq!(u16_at(at + 8), 0, "an entry is compressed");
        let (name_len, extra_len) = (u16_at(at + 26), u16_at(at + 28));
        let name = String::from_utf8_lossy(&bytes[at + 30..at + 30 + name_len]).replace(".npy", "");
        let begin = at + 30 + name_len + extra_len;
        let (array, len) = npy(&bytes[begin..]);
        arrays.insert(name, array);
        at = begin + len;
    }
    arrays
}

/// The array at the head of `bytes`, and how many of them it takes.
fn npy(bytes: &[u8]) -> (Array, usize) {
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..10 + header_len]);
    let dims = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).expect("a shape").0;
    let dims: Vec<usize> = dims.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let (data, n) = (&bytes[10 + header_len..], dims.iter().product::<usize>());
    if header.contains("'<i8'") {
        let values = data.as_chunks().0[..n].iter().map(|b| i64::from_le_bytes(*b)).collect();
        return (Array::from_i64(&dims, values).expect("values fill dims"), 10 + header_len + 8 * n);
    }
    assert!(header.contains("'<f4'"), "{header}");
    let values = data.as_chunks().0[..n].iter().map(|b| f32::from_le_bytes(*b).into()).collect();
    (Array::from_f64(&dims, values).expect("values fill dims"), 10 + header_len + 4 * n)
}

/// The leading rows of an array.
fn head(array: &Array, rows: usize) -> Array {
    let mut dims = array.shape().to_vec();
    let each: usize = dims[1..].iter().product();
    dims[0] = rows;
    let part = match array {
        Array::I(a) => Array::from_i64(&dims, a.iter().copied().take(rows * each).collect()),
        other => Array::from_f64(&dims, other.to_f64().into_iter().take(rows * each).collect()),
    };
    part.expect("values fill dims")
}

/// Tokens, what is real of them and of a past, and how long and how wide that is.
struct Text {
    tokens: Array,
    mask: Array,
    past: usize,
    head_dim: usize,
}

impl Text {
    /// The same tokens after a past of 2, the end of the second row padding.
    fn after_a_past(&self, padding: usize) -> Self {
        let (rows, past) = (self.tokens.shape()[0], 2);
        let width = self.mask.shape()[1] + past;
        let real = |i: usize| i64::from(i < width || i % width < width - padding);
        let mask = Array::from_i64(&[rows, width], (0..rows * width).map(real).collect());
        Self { tokens: self.tokens.clone(), mask: mask.expect("values fill dims"), past, ..*self }
    }
}

/// What each input is fed. The past holds small numbers of both signs.
fn feeds(graph: &Graph, text: &Text) -> Result<BTreeMap<ValueId, Array>, String> {
    let (rows, time) = (text.tokens.shape()[0], text.tokens.shape()[1]);
    let past = if has_past(graph) { text.past } else { 0 };
    let feed = |id: ValueId| {
        let value = graph.value(id);
        let per_token = |f: &dyn Fn(usize) -> i64| {
            Array::from_i64(&[rows, time], (0..rows * time).map(|i| f(i % time)).collect())
        };
        let array = match value.name.as_str() {
            "input_ids" => Ok(text.tokens.clone()),
            "attention_mask" => Ok(columns(&text.mask, text.past - past)),
            "position_ids" => per_token(&|i| (past + i) as i64),
            "token_type_ids" => per_token(&|_| 0),
            name if name.ends_with("_state") => no_state(rows, value.ty.shape.as_deref()),
            name if name.starts_with("past") => {
                let heads = match value.ty.shape.as_deref() {
                    Some([_, Dim::Known(heads), _, _]) => *heads as usize,
                    other => return Err(format!("`{name}` is {other:?}")),
                };
                let dim = text.head_dim;
                let values = (0..rows * heads * past * dim).map(|i| ((i * 7) % 13) as f64 / 13.0 - 0.5);
                Array::from_f64(&[rows, heads, past, dim], values.collect())
            }
            name => Err(format!("nothing is known of input `{name}`")),
        };
        Ok((id, array?))
    };
    graph.inputs().iter().map(|id| feed(*id)).collect()
}

fn has_past(graph: &Graph) -> bool {
    graph.inputs().iter().any(|id| graph.value(*id).name.starts_with("past"))
}

/// The state of linear attention before the first token.
fn no_state(rows: usize, shape: Option<&[Dim]>) -> Result<Array, String> {
    let sizes = shape.unwrap_or_default().iter().skip(1).map(|d| d.known().unwrap_or(0) as usize);
    let dims: Vec<usize> = std::iter::once(rows).chain(sizes).collect();
    Array::from_f64(&dims, vec![0.0; dims.iter().product()])
}

/// A matrix of integers without its first columns.
fn columns(array: &Array, first: usize) -> Array {
    let (rows, width) = (array.shape()[0], array.shape()[1]);
    let all: Vec<i64> = array.as_i().expect("integers").iter().copied().collect();
    let kept = all.chunks(width).flat_map(|row| row[first..].to_vec()).collect();
    Array::from_i64(&[rows, width - first], kept).expect("values fill dims")
}

fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64()
        .iter()
        .zip(b.to_f64())
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn run(graph: &Graph, text: &Text) -> Result<Vec<Array>, String> {
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|(_, v)| *v).collect();
    eval(graph, &feeds(graph, text)?, &wanted).map_err(|e| e.to_string())
}

/// Compares every output with what another graph gave, by its largest number.
fn same(before: &[Array], after: &[Array], limit: f64) -> Result<f64, String> {
    let mut worst = 0.0_f64;
    for (old, new) in before.iter().zip(after) {
        if old.shape() != new.shape() {
            return Err(format!("{:?} became {:?}", old.shape(), new.shape()));
        }
        let scale = old.to_f64().iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
        worst = worst.max(difference(new, old) / scale);
    }
    within(worst, limit)
}

fn within(error: f64, limit: f64) -> Result<f64, String> {
    if error <= limit { Ok(error) } else { Err(format!("differs by {error:.2e}")) }
}

/// What each stage that was reached gave.
fn check(export: &Export, reference: &BTreeMap<String, Array>) -> Vec<Result<String, String>> {
    let rows = if export.one_row { 1 } else { 2 };
    let part = |name: &str| head(&reference[name], rows);
    let text = Text { tokens: part("input_ids"), mask: part("attention_mask"), past: 0, head_dim: HEAD_DIM };
    let mut graph = match import::import(&export.file) {
        Ok(graph) => graph,
        Err(e) => return vec![Err(e.to_string())],
    };
    let mut stages = vec![Ok(format!("{}", graph.nodes().count()))];
    let before = run(&graph, &text);
    stages.push(before.as_ref().map_err(Clone::clone).and_then(|outputs| {
        let name = if graph.outputs()[0].0 == "logits" { "logits" } else { "last_hidden" };
        within(difference(&outputs[0], &part(name)), TOLERANCE).map(|e| format!("{e:.0e}"))
    }));
    if before.is_ok() {
        stages.push(canonical(&mut graph, &text));
        let sites = find_sites(&graph);
        stages.push(all_sites(export, &sites));
        if !sites.sites.is_empty() {
            stages.push(converts(graph, &text));
        }
    }
    stages
}

fn all_sites(export: &Export, found: &Found) -> Result<String, String> {
    let count = found.sites.len();
    if count == export.sites {
        return Ok(count.to_string());
    }
    let miss =
        found.misses.first().map_or_else(|| "no softmax came close".to_owned(), |m| m.miss.to_string());
    Err(format!("{count} of {}: {miss}", export.sites))
}

/// Compiles with the default recipe, and compares the forms of the linear model.
fn converts(graph: Graph, text: &Text) -> Result<String, String> {
    let recipe = recipes::load(recipes::DEFAULT).map_err(|e| e.to_string())?;
    let how = CompileOptions { recipe: &recipe, target: Target::Ort, seed: 0, layers: None };
    let compiled = compile(graph, &how).map_err(|e| e.to_string())?;
    let linear = compiled.forms(&how).map_err(|e| e.to_string())?.linear.ok_or("nothing was rewritten")?;
    let parallel = run(&linear.parallel, text)?;
    let mut worst = 0.0_f64;
    for (form, limit) in [(&linear.chunked, FORMS_AGREE), (&compiled.model, EXACT)] {
        worst = worst.max(same(&parallel, &run(form, text)?, limit)?);
    }
    Ok(format!("{worst:.0e}"))
}

/// The reference's text, and one with a past and padding; a star where it has no padding.
fn canonical(graph: &mut Graph, text: &Text) -> Result<String, String> {
    let (padded, plain) = (text.after_a_past(3), text.after_a_past(0));
    // GroupQueryAttention takes no padding after a past that is followed by several tokens.
    let (last, after, mark) = match run(graph, &padded) {
        Ok(outputs) => (&padded, outputs, ""),
        Err(_) => (&plain, run(graph, &plain)?, "*"),
    };
    let before = [(text, run(graph, text)?), (last, after)];
    canonicalize(graph).map_err(|e| e.to_string())?;
    if let Some(violation) = verify(graph).first() {
        return Err(violation.to_string());
    }
    let mut worst = 0.0_f64;
    for (text, before) in &before {
        worst = worst.max(same(before, &run(graph, text)?, EXACT)?);
    }
    Ok(format!("{} {worst:.0e}{mark}", graph.nodes().count()))
}

/// Exporters down, architectures across, one table per stage.
fn table(results: &BTreeMap<(String, String), Vec<Result<String, String>>>, stage: usize) -> String {
    let archs: BTreeSet<&String> = results.keys().map(|(_, arch)| arch).collect();
    let exporters: BTreeSet<&String> = results.keys().map(|(exporter, _)| exporter).collect();
    let mut out = format!("{:<34}", STAGES[stage]);
    for arch in &archs {
        let _ = write!(out, "{arch:>12}");
    }
    for exporter in exporters {
        let _ = write!(out, "\n{exporter:<34}");
        for arch in &archs {
            let stages = results.get(&(exporter.clone(), (*arch).clone()));
            let cell = match stages.map(|s| s.get(stage)) {
                None => "",
                Some(None) => "not reached",
                Some(Some(Ok(found))) => found,
                Some(Some(Err(_))) => "FAILED",
            };
            let _ = write!(out, "{cell:>12}");
        }
    }
    out
}

#[test]
fn every_export_is_read_cleaned_up_and_converted() {
    let Some(folder) = unpacked("exports") else { return };
    let mut references = BTreeMap::new();
    let mut results = BTreeMap::new();
    let mut failures = Vec::new();
    for export in index(&folder) {
        let reference = references
            .entry(export.arch.clone())
            .or_insert_with(|| npz(&folder.join("ckpt").join(&export.arch).join("ref.npz")));
        let stages = check(&export, reference);
        for (i, stage) in STAGES.iter().enumerate() {
            if let Some(Err(e)) = stages.get(i) {
                failures.push(format!("{} ({stage}): {e}", export.dir));
            }
        }
        results.insert((export.exporter().to_owned(), export.arch.clone()), stages);
    }
    for stage in 0..STAGES.len() {
        eprintln!("{}\n", table(&results, stage));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Whether weights are stored in operators that the interpreter does not know.
fn is_packed(dir: &str) -> bool {
    dir.contains("int4")
}

/// Holds a graph to the reference, as it came and with its softmax, and cleans it up.
fn kept(graph: &mut Graph, text: &Text, reference: &Array) -> Result<(), String> {
    within(difference(&run(graph, text)?[0], reference), TOLERANCE)?;
    canonical(graph, text)?;
    let recipe = recipes::load("softmax").map_err(|e| e.to_string())?;
    let how = CompileOptions { recipe: &recipe, target: Target::Portable, seed: 0, layers: None };
    let softmax = compile(graph.clone(), &how).map_err(|e| e.to_string())?;
    within(difference(&run(&softmax.model, text)?[0], reference), TOLERANCE).map(|_| ())
}

/// What came of one export of the second archive: as it came and with its softmax it gives what the reference holds, and it
/// converts.
fn second(export: &Export, reference: &BTreeMap<String, Array>) -> Result<String, String> {
    let all = |name: &str| reference[name].clone();
    let head_dim = if export.arch == "qwen3_gqa" { 2 * HEAD_DIM } else { HEAD_DIM };
    let text = Text { tokens: all("input_ids"), mask: all("attention_mask"), past: 0, head_dim };
    let mut graph = import::import(&export.file).map_err(|e| e.to_string())?;
    match is_packed(&export.dir) {
        true => _ = canonicalize(&mut graph).map_err(|e| e.to_string())?,
        false => kept(&mut graph, &text, &reference["logits"])?,
    }
    let count = all_sites(export, &find_sites(&graph))?;
    if is_packed(&export.dir) { Ok(format!("{count} found")) } else { converts(graph, &text) }
}

#[test]
fn exports_of_other_versions_and_runtimes_are_converted() {
    let Some(folder) = unpacked("exports2").map(|folder| folder.join("exports2")) else { return };
    let mut dirs: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("__"))
        .collect();
    dirs.sort();
    let mut failures = Vec::new();
    for dir in &dirs {
        let arch = dir.split("__").next().unwrap_or_default().to_owned();
        let reference = npz(&folder.join("ckpt").join(&arch).join("ref.npz"));
        let file = folder.join(dir).join("model.onnx");
        let export = Export { dir: dir.clone(), file, arch, sites: 2, one_row: false };
        match second(&export, &reference) {
            Ok(found) => eprintln!("{dir}: {found}"),
            Err(why) => failures.push(format!("{dir}: {why}")),
        }
    }
    assert!(failures.is_empty() && dirs.len() == 9, "{} failures:\n{}", failures.len(), failures.join("\n"));
}
