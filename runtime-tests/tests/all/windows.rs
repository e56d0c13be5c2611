//! Attentions that have a window keep what they compute: what is served of them is softmax, however the tokens are fed and
//! padded, and however long the text is.

use crate::support::{
    Bundle, Comparisons, Model, Side, convert_to, exact, options, ort, prompt, recipe, tolerance,
};
use dijiang::convert::ConvertOptions;
use dijiang::verify::{Choice, VerifyOptions};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::recipe::Recipe;
use dijiang_format::target::Target;
use dijiang_runtime::{Decoder, Runtime, TractRuntime};
use std::path::Path;

/// A fixture, its window, and the layers that stay softmax: those that see all tokens.
struct Case {
    fixture: &'static str,
    window: usize,
    softmax_layers: &'static [usize],
}

const CASES: [Case; 3] = [
    Case { fixture: "mistral", window: 8, softmax_layers: &[] },
    Case { fixture: "ministral", window: 5, softmax_layers: &[1] },
    // Its scores are capped.
    Case { fixture: "gemma2", window: 6, softmax_layers: &[1] },
];

const TARGETS: [Target; 3] = [Target::Ort, Target::Portable, Target::Onnx27];
const RECIPES: [&str; 2] = ["adaptive", "gated"];

/// Tokens of three rows; the first is several windows long.
const ROWS: [usize; 3] = [45, 17, 1];
/// Tokens fed after a padded batch.
const MORE: usize = 7;

impl Case {
    fn recipe(&self, name: &str) -> Recipe {
        Recipe { softmax_layers: self.softmax_layers.to_vec(), ..recipe(name) }
    }

    /// Of the first row: token by token, at its ends, at the edges of the window, and in pieces of less and of more.
    fn portions(&self) -> Vec<Vec<usize>> {
        let (n, window) = (ROWS[0], self.window);
        let mut all: Vec<Vec<usize>> =
            [1, window - 1, window, window + 1, n - 1].into_iter().map(|cut| vec![cut, n - cut]).collect();
        for step in [1, 3, window, 2 * window + 1] {
            all.push((0..n).step_by(step).map(|at| step.min(n - at)).collect());
        }
        all
    }
}

/// Texts with some tokens to come, and what softmax gives for each of their tokens.
struct Texts {
    rows: Vec<Vec<i64>>,
    more: Vec<Vec<i64>>,
    truths: Vec<Vec<f64>>,
    vocab: usize,
}

impl Texts {
    fn new(case: &Case, bundle: &Bundle) -> Self {
        let manifest = bundle.manifest();
        let text = |n: usize| prompt(&manifest, n + MORE, &format!("{} {n}", case.fixture));
        let texts: Vec<Vec<i64>> = ROWS.into_iter().map(text).collect();
        let truths = texts.iter().map(|text| exact(&bundle.file(files::SOFTMAX), text)).collect();
        let (rows, more) =
            texts.iter().map(|t| t.split_at(t.len() - MORE)).map(|(a, b)| (a.to_vec(), b.to_vec())).unzip();
        Self { rows, more, truths, vocab: manifest.model.vocab as usize }
    }

    fn truth(&self, row: usize) -> &[f64] {
        &self.truths[row][..self.rows[row].len() * self.vocab]
    }

    fn truth_of_more(&self, row: usize) -> &[f64] {
        &self.truths[row][self.rows[row].len() * self.vocab..]
    }
}

fn in_portions(place: &str, case: &Case, texts: &Texts, model: &mut Model, found: &mut Comparisons) {
    found.compare(&format!("{place}: all at once"), &model.whole(&texts.rows[0]), texts.truth(0));
    for portions in case.portions() {
        let what = format!("{place}: in portions of {portions:?}");
        found.compare(&what, &model.portions(&texts.rows[0], &portions), texts.truth(0));
    }
}

fn padded(place: &str, texts: &Texts, model: &mut Model, found: &mut Comparisons) {
    for side in [Side::Left, Side::Right] {
        for (row, logits) in model.padded(&texts.rows, side).iter().enumerate() {
            found.compare(&format!("{place}: row {row} padded {side:?}"), logits, texts.truth(row));
        }
        for (row, logits) in model.feed_batch(&texts.more).iter().enumerate() {
            let what = format!("{place}: after row {row} padded {side:?}");
            found.compare(&what, logits, texts.truth_of_more(row));
        }
    }
}

/// Padding between the tokens of the first two rows, in two calls.
fn padded_between(place: &str, texts: &Texts, model: &mut Model, found: &mut Comparisons) {
    let columns = texts.rows[0].len() + 20;
    // Every third column, until all tokens have their place.
    let mask = |row: &[i64]| -> Vec<i64> {
        let mut left = row.len();
        let marks = (0..columns).map(|at| {
            let is_token = left > 0 && (at % 3 != 1 || columns - at <= left);
            left -= usize::from(is_token);
            i64::from(is_token)
        });
        marks.collect()
    };
    let ids = |row: &[i64], mask: &[i64]| -> Vec<i64> {
        let mut tokens = row.iter();
        mask.iter().map(|mark| if *mark == 1 { tokens.next().copied().unwrap_or(0) } else { 0 }).collect()
    };
    let rows = &texts.rows[..2];
    let masks: Vec<Vec<i64>> = rows.iter().map(|row| mask(row)).collect();
    let all: Vec<Vec<i64>> = rows.iter().zip(&masks).map(|(row, mask)| ids(row, mask)).collect();
    let mut given = vec![Vec::new(); rows.len()];
    model.reset(rows.len());
    for (from, to) in [(0, 31), (31, columns)] {
        let part = |rows: &[Vec<i64>]| rows.iter().map(|row| row[from..to].to_vec()).collect::<Vec<_>>();
        let logits = model.decoder.feed(&part(&all), Some(&part(&masks))).unwrap_or_else(|e| panic!("{e}"));
        let logits = logits.to_f32().unwrap_or_else(|e| panic!("{e}"));
        for (row, logits) in logits.chunks_exact((to - from) * texts.vocab).enumerate() {
            let tokens = logits.chunks_exact(texts.vocab).zip(&masks[row][from..to]);
            let tokens = tokens.filter(|(_, mark)| **mark == 1);
            given[row].extend(tokens.flat_map(|(logits, _)| logits.iter().map(|x| f64::from(*x))));
        }
    }
    for (row, logits) in given.iter().enumerate() {
        found.compare(&format!("{place}: row {row} padded between"), logits, texts.truth(row));
    }
}

fn served(case: &Case, recipe: &str, dtype: DType, found: &mut Comparisons) {
    for target in TARGETS {
        let bundle = Bundle::of_fixture(case.fixture, &case.recipe(recipe), target, dtype);
        let texts = Texts::new(case, &bundle);
        // tract prepares a plan for every length of a growing cache.
        let in_tract = target == Target::Portable && case.softmax_layers.is_empty();
        let tract: Option<Box<dyn Runtime>> = in_tract.then(|| Box::new(TractRuntime) as Box<dyn Runtime>);
        for engine in ort().into_iter().chain(tract) {
            let place = format!("{}, {recipe}, {target} in {}", case.fixture, engine.name());
            let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
            in_portions(&place, case, &texts, &mut model, found);
            padded(&place, &texts, &mut model, found);
            padded_between(&place, &texts, &mut model, found);
        }
    }
}

fn check(dtype: DType) {
    let mut found = Comparisons::within(tolerance(dtype));
    for (case, recipe) in CASES.iter().flat_map(|case| RECIPES.map(|recipe| (case, recipe))) {
        served(case, recipe, dtype, &mut found);
    }
    found.finish(&format!("windows, {}", dtype.name()));
}

#[test]
fn what_is_served_is_softmax_in_f32() {
    check(DType::F32);
}

#[test]
fn what_is_served_is_softmax_in_f16() {
    check(DType::F16);
}

#[test]
fn the_state_of_a_window_keeps_its_size() {
    let Some(engine) = ort() else { return };
    for target in TARGETS {
        let bundle = Bundle::of_fixture("mistral", &recipe("adaptive"), target, DType::F32);
        let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
        let tokens = prompt(&bundle.manifest(), 500, "long");
        let bytes = [1, 8, 9, 500].map(|n| {
            model.whole(&tokens[..n]);
            model.decoder.state_bytes()
        });
        // Two layers of two heads, with eight keys and values of 16 numbers, and the count in two; and a number that
        // nothing reads.
        assert_eq!(bytes, [2 * (2 * (8 * 32 + 2) + 1) * 4; 4], "{target}");
    }
}

/// The proof, of the graphs for bound memory too, and the row that compares with softmax where nothing else changed.
#[test]
fn the_proof_of_windows_holds() {
    let runtimes = if ort().is_some() { Choice::All } else { Choice::Tract };
    for (fixture, recipe_name) in ["mistral", "ministral"]
        .iter()
        .flat_map(|f| RECIPES.iter().chain(&["softmax"]).map(move |r| (*f, *r)))
    {
        for (target, dtype) in TARGETS.iter().flat_map(|t| [DType::F32, DType::F16].map(|d| (*t, d))) {
            let verify = Some(VerifyOptions { runtimes, ..VerifyOptions::default() });
            let home = tempfile::tempdir().expect("a directory");
            let source = Path::new(crate::support::FIXTURES).join(fixture);
            let how = ConvertOptions { target, dtype: Some(dtype), verify, ..options(&recipe(recipe_name)) };
            let converted = convert_to(&source, &home.path().join("bundle"), &how);
            let place = format!("{fixture}, {recipe_name}, {target}, {dtype}");
            let checks = converted.verification.expect("it was asked for").checks;
            let failed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
            assert!(failed.is_empty(), "{place}: {failed:#?}");
            let has = |end: &str| checks.iter().any(|check| check.name.ends_with(end));
            let is_exact = fixture == "mistral" && recipe_name != "softmax";
            assert_eq!(has(": parallel = softmax"), is_exact, "{place}: {checks:#?}");
            let is_bound = target == Target::Ort && recipe_name != "softmax" && runtimes == Choice::All;
            assert_eq!(has("decode.onnx token by token = parallel"), is_bound, "{place}: {checks:#?}");
        }
    }
}
