//! One attention spelled in random ways: what a conversion gives is what its source gives, or it is refused, and most
//! spellings may not be.
//!
//! The truth is the source in the f64 interpreter, every row of tokens alone and without a past. Beside it stand the
//! converted softmax model in ONNX Runtime (a prompt of rows of unequal lengths, then a token at a time) and the
//! linear model of the default recipe in the interpreter, whole against token by token.
#![expect(clippy::print_stderr, reason = "it says why a test is left out, and what was tried")]

use crate::support::decoder::write;
use crate::support::ort::has_ort;
use crate::support::spelling::{Spelling, VOCAB};
use dijiang::convert::{ConvertOptions, convert};
use dijiang::onnx::import::import;
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::serving::open;
use dijiang_format::manifest::Manifest;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_runtime::ServingOptions;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of tokens, and how many of each are decoded after the prompt.
#[derive(Debug, Clone)]
struct Text {
    rows: Vec<Vec<i64>>,
    decoded: usize,
}

/// f32 against f64 over one or two layers, relative to the largest logit; f32 has 24 bits, and a mask of -10000 that is
/// added to a score leaves it 10 behind the point: of scores of one some 1e-3, which weights of the same size take over.
const NEAR: f64 = 2e-3;

fn spelling() -> impl Strategy<Value = Spelling> {
    let sizes = (0..2_u8, 0..3_u8, 0..3_u8, 0..4_u8);
    let ways = (
        0..Spelling::PROJECTIONS,
        0..Spelling::POSITIONS,
        0..Spelling::KEYS,
        0..Spelling::REPEATS,
        0..Spelling::SCALES,
        0..Spelling::MASKS,
        0..Spelling::CLOSED,
        0..Spelling::SOFTMAXES,
    );
    (sizes, ways, any::<[bool; 3]>(), any::<u16>()).prop_map(|(sizes, ways, flags, seed)| {
        let (layers, kv_heads, shared_by, head_dim) = sizes;
        let (projection, positions, keys, repeats, scale, mask, closed, softmax) = ways;
        let [has_padding, has_past, is_turned_around] = flags;
        Spelling {
            layers,
            kv_heads,
            shared_by,
            head_dim,
            projection,
            positions,
            keys,
            repeats,
            scale,
            mask,
            closed,
            softmax,
            has_padding,
            has_past,
            is_turned_around,
            seed,
        }
    })
}

fn text() -> impl Strategy<Value = Text> {
    let row = prop::collection::vec(0..VOCAB, 1..7);
    (prop::collection::vec(row, 1..4), 0..3_usize).prop_map(|(rows, decoded)| Text { rows, decoded })
}

/// The logits of every token of a row that stands alone.
fn alone(graph: &Graph, row: &[i64]) -> Vec<Vec<f64>> {
    let n = row.len();
    let feed = |id: &ValueId| {
        let value = graph.value(*id);
        let array = match value.name.as_str() {
            "input_ids" => Array::from_i64(&[1, n], row.to_vec()),
            "attention_mask" => Array::from_i64(&[1, n], vec![1; n]),
            "position_ids" => Array::from_i64(&[1, n], (0..n as i64).collect()),
            _ => {
                let dims = value.ty.shape.iter().flatten().map(|d| d.known().unwrap_or(0) as usize);
                let dims: Vec<usize> = dims.enumerate().map(|(i, n)| if i == 0 { 1 } else { n }).collect();
                Array::from_f64(&dims, Vec::new())
            }
        };
        (*id, array.expect("values fill dims"))
    };
    let given: BTreeMap<ValueId, Array> = graph.inputs().iter().map(feed).collect();
    let logits = graph.output("logits").expect("logits");
    let found = eval(graph, &given, &[logits]).unwrap_or_else(|e| panic!("{e}")).remove(0);
    found.to_f64().chunks(VOCAB as usize).map(<[f64]>::to_vec).collect()
}

fn check(condition: bool, what: impl FnOnce() -> String) -> Result<(), TestCaseError> {
    if condition { Ok(()) } else { Err(TestCaseError::fail(what())) }
}

fn apart(found: &[f32], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
    worst.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most }) / scale
}

/// The prompts of a text and the tokens after them, step by step, against the truth.
fn serves(bundle: &Path, text: &Text, truth: &[Vec<Vec<f64>>]) -> Result<(), TestCaseError> {
    let mut serving =
        open(bundle, &ServingOptions::default()).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let failed = |e: dijiang_runtime::RuntimeError| TestCaseError::fail(e.to_string());
    // A source without a cache keeps nothing of the tokens before a call.
    let keeps = !Manifest::read(bundle).expect("a manifest").state.is_empty();
    let decoded = if keeps { text.decoded } else { 0 };
    let prompts: Vec<Vec<i64>> =
        text.rows.iter().map(|row| row[..row.len().saturating_sub(decoded).max(1)].to_vec()).collect();
    serving.start(prompts.len()).map_err(failed)?;
    serving.prefill(&prompts).map_err(failed)?;
    for step in 0..=decoded {
        let logits = serving.logits().map_err(failed)?.to_f32().expect("numbers");
        for (row, found) in logits.chunks(VOCAB as usize).enumerate() {
            let at = prompts[row].len() + step - 1;
            let Some(expected) = truth[row].get(at) else { continue };
            let apart = apart(found, expected);
            check(apart < NEAR, || format!("row {row}, token {at} differs by {apart:.1e}"))?;
        }
        let next = |(row, prompt): (&Vec<i64>, &Vec<i64>)| row.get(prompt.len() + step).copied().unwrap_or(0);
        let next: Vec<i64> = text.rows.iter().zip(&prompts).map(next).collect();
        let refused = serving.decode(&next).err();
        check(refused.is_some() != keeps, || format!("a token after the prompt: {refused:?}"))?;
    }
    Ok(())
}

/// Whether it converted; an error where what came of it is wrong.
fn holds(spelling: &Spelling, text: &Text) -> Result<bool, TestCaseError> {
    let directory = tempfile::tempdir().expect("a directory");
    let model = write(&spelling.text(), directory.path());
    let source = import(&model).expect("it is read");
    let truth: Vec<Vec<Vec<f64>>> = text.rows.iter().map(|row| alone(&source, row)).collect();
    // What hides a key hides it from scores that are no larger: beyond them a source looks ahead itself.
    let hides = |(row, truth): (&Vec<i64>, &Vec<Vec<f64>>)| {
        let first: Vec<f32> = alone(&source, &row[..1]).concat().iter().map(|x| *x as f32).collect();
        apart(&first, &truth[0]) < NEAR
    };
    if !text.rows.iter().zip(&truth).all(hides) {
        return Ok(false);
    }
    let recipe = |name: &str| ConvertOptions::of(recipes::load(name).expect("a recipe"));
    let bundle = directory.path().join("softmax");
    if convert(&model, &bundle, &recipe("softmax"), &mut Silent).is_ok() {
        // Rows side by side are as long as each other where nothing says what is padding, or where positions are counted by
        // columns, padding too.
        let groups = if spelling.has_padding && spelling.knows_positions() { text.rows.len() } else { 1 };
        for (rows, truth) in text.rows.chunks(groups).zip(truth.chunks(groups)) {
            serves(&bundle, &Text { rows: rows.to_vec(), decoded: text.decoded }, truth)?;
        }
    }
    let linear = directory.path().join("linear");
    let converted = match convert(&model, &linear, &recipe(recipes::DEFAULT), &mut Silent) {
        Ok(converted) => converted,
        Err(e) => {
            check(!spelling.must_convert(), || format!("it is refused: {e}"))?;
            return Ok(false);
        }
    };
    let missed = converted.misses.first().map(NearMiss::to_string);
    check(missed.is_none() || !spelling.must_convert(), || format!("a layer is missed: {missed:?}"))?;
    let softmax = import(&linear.join("softmax.onnx")).expect("it is read");
    for (row, expected) in text.rows.iter().zip(&truth) {
        let found: Vec<f32> = alone(&softmax, row).concat().iter().map(|x| *x as f32).collect();
        let apart = apart(&found, &expected.concat());
        check(apart < NEAR, || format!("the softmax model differs by {apart:.1e}"))?;
    }
    Ok(converted.misses.is_empty())
}

/// `DIJIANG_SPELLINGS` says how many are tried, a hundred where it is not set, and `DIJIANG_SPELLINGS_SEED` which.
#[test]
fn what_converts_gives_what_its_source_gives() {
    if !has_ort() {
        eprintln!("skipped: there is no ONNX Runtime");
        return;
    }
    let number = |name: &str, otherwise: u32| {
        std::env::var(name).map_or(otherwise, |n| n.parse().unwrap_or_else(|e| panic!("{name}={n}: {e}")))
    };
    let cases = number("DIJIANG_SPELLINGS", 100);
    let seed = RngSeed::Fixed(number("DIJIANG_SPELLINGS_SEED", 1).into());
    let config = Config { cases, failure_persistence: None, rng_seed: seed, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let converted = Cell::new(0);
    let outcome = runner.run(&(spelling(), text()), |(spelling, text)| {
        converted.set(converted.get() + u32::from(holds(&spelling, &text)?));
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    eprintln!("{} of {cases} spellings converted", converted.get());
}
