//! The matrix: every recipe, target and family, in f32 and f16. Every form of a model gives what the f64 interpreter
//! makes of its parallel form, to rounding, however the tokens are fed.

use crate::support::{
    Bundle, Comparisons, Model, Side, engines, exact, ort, prompt, recipe_with_positions, tolerance,
};
use dijiang::recipes::PRESETS;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::recipe::{Decay, Feed, Local, Recipe, Wide};
use dijiang_format::target::Target;
use dijiang_runtime::{Decoder, LoadOptions, Runtime};
use std::path::PathBuf;

/// A fixture, and what to feed it.
struct Family {
    fixture: &'static str,
    chunk: u32,
    /// One and two tokens, around the edge of a chunk, and several chunks.
    lengths: &'static [usize],
    /// Three unequal rows; the first crosses the edge of a chunk.
    rows: [usize; 3],
}

impl Family {
    const fn rotary(fixture: &'static str) -> Self {
        Self { fixture, chunk: 64, lengths: &[1, 2, 63, 64, 65, 300], rows: [70, 41, 1] }
    }

    /// The OPT fixtures know 32 positions, so chunks and lengths are an eighth of the others'.
    const fn of_32_positions(fixture: &'static str) -> Self {
        Self { fixture, chunk: 8, lengths: &[1, 2, 7, 8, 9, 32], rows: [12, 5, 1] }
    }

    fn recipe(&self, name: &str) -> Recipe {
        // The longest text here has fewer tokens.
        Recipe { chunk: self.chunk, ..recipe_with_positions(name, 512) }
    }

    fn bundle(&self, recipe: &Recipe, target: Target, dtype: DType) -> Bundle {
        Bundle::of_fixture(self.fixture, recipe, target, dtype)
    }

    fn bundles(&self, recipe: &Recipe, dtype: DType) -> Vec<Bundle> {
        TARGETS.into_iter().map(|target| self.bundle(recipe, target, dtype)).collect()
    }

    /// Splits of the first row: at its ends, and before, at and after the edge of a chunk.
    fn portions(&self) -> Vec<Vec<usize>> {
        let (n, edge) = (self.rows[0], self.chunk as usize);
        let cuts = [1, 2, edge - 1, edge, edge + 1, n - 1];
        let three = vec![edge - 1, 2, n - edge - 1];
        cuts.into_iter().map(|cut| vec![cut, n - cut]).chain([three]).collect()
    }
}

const FAMILIES: [Family; 3] =
    [Family::rotary("llama"), Family::rotary("neox"), Family::of_32_positions("opt")];

/// Other forms of the same families: rotary scalings, biases, serial residuals, norms after the blocks.
const VARIANTS: [Family; 4] = [
    Family::rotary("llama-rope3"),
    Family::rotary("llama-linear"),
    Family::rotary("neox-serial"),
    Family::of_32_positions("opt-postnorm"),
];

/// The same, where no row is one token: a norm follows what is read of scores of both signs, and that of one token alone is
/// its score, which may be as near to zero as f16 rounds q and k. What is left has then either sign.
const FAMILIES_OF_ROWS: [Family; 3] = [
    Family { rows: [70, 41, 3], ..Family::rotary("llama") },
    Family { rows: [70, 41, 3], ..Family::rotary("neox") },
    Family { rows: [12, 5, 3], ..Family::of_32_positions("opt") },
];

/// One family for what no family changes: f16 and the ways of feeding of recipes that are `paper` with another feature map or
/// decay, and f16 fed in rows but for the recipes that are shipped first.
const ONE_FAMILY: [Family; 1] = [Family::rotary("llama")];

/// The recipe that others change one field of, and those which most bundles are of.
const FIRST: [&str; 4] = ["adaptive", "windows", "gated", "paper"];

fn is_paper_but_for_a_field(recipe: &str) -> bool {
    ["performer", "pff", "wpff", "elu", "cosformer", "decayed"].contains(&recipe)
}

/// What a recipe is tested with, fed whole.
fn whole(recipe: &str, dtype: DType) -> &'static [Family] {
    match is_paper_but_for_a_field(recipe) && dtype == DType::F16 {
        true => &ONE_FAMILY,
        false => &FAMILIES,
    }
}

/// What a recipe is tested with, fed in rows.
fn fed(recipe: &str, dtype: DType) -> &'static [Family] {
    match (recipe, dtype) {
        ("retnet", DType::F16) => &FAMILIES_OF_ROWS,
        (_, DType::F16) if !FIRST.contains(&recipe) => &ONE_FAMILY,
        _ if is_paper_but_for_a_field(recipe) => &ONE_FAMILY,
        _ => &FAMILIES,
    }
}

const TARGETS: [Target; 3] = [Target::Ort, Target::Portable, Target::Onnx27];

/// The interpreter against itself: f64 rounding only.
const EXACT: f64 = 1e-9;
/// The same where a Gelu is one operator again: its 1/√2 is then of f64, and in the other forms the source's of f32, which
/// comes to 5e-9 of the logits.
const FUSED: f64 = 1e-8;

/// Tokens fed after a padded batch.
const MORE: usize = 3;

/// A graph file, and whether tract has all of its operators.
struct Graph {
    label: String,
    file: PathBuf,
    in_tract: bool,
    /// Whether ONNX Runtime's own operators stand in it.
    is_fused: bool,
    /// What it computes in.
    dtype: DType,
}

impl Graph {
    /// The serving graph.
    fn served(bundle: &Bundle, dtype: DType) -> Self {
        let target = bundle.target;
        let file = bundle.file(files::MODEL);
        let (in_tract, is_fused) = (target == Target::Portable, target == Target::Ort);
        Self { label: format!("served {target}"), file, in_tract, is_fused, dtype }
    }

    /// One of the forms that every bundle holds. They compute in f32, whatever the weights are stored in.
    fn form(bundle: &Bundle, name: &'static str) -> Self {
        let (label, file) = (name.to_owned(), bundle.file(name));
        Self { label, file, in_tract: true, is_fused: false, dtype: DType::F32 }
    }

    fn runs_in(&self, engine: &dyn Runtime) -> bool {
        self.in_tract || engine.name() != "tract"
    }
}

/// Parallel = chunked = served, in the interpreter, ONNX Runtime and tract, at every length.
fn forms_agree(family: &Family, recipe: &Recipe, dtype: DType, found: &mut Comparisons) {
    let bundles = family.bundles(recipe, dtype);
    forms_are_the_same_for_every_target(&bundles);
    let parallel = Graph::form(&bundles[0], files::PARALLEL);
    let chunked = Graph::form(&bundles[0], files::CHUNKED);
    let graphs: Vec<Graph> =
        [parallel, chunked].into_iter().chain(bundles.iter().map(|b| Graph::served(b, dtype))).collect();
    let manifest = bundles[0].manifest();
    let texts = family.lengths.iter().map(|n| prompt(&manifest, *n, family.fixture));
    let truths: Vec<(Vec<i64>, Vec<f64>)> =
        texts.map(|row| (row.clone(), exact(&graphs[0].file, &row))).collect();
    let name = family.fixture;
    for graph in &graphs[1..] {
        for (row, truth) in &truths {
            let what = format!("{name}, {} tokens: {} in the interpreter", row.len(), graph.label);
            let limit = if graph.is_fused { FUSED } else { EXACT };
            found.compare_within(limit, &what, &exact(&graph.file, row), truth);
        }
    }
    for engine in engines() {
        for graph in graphs.iter().filter(|g| g.runs_in(engine.as_ref())) {
            let mut model = Model::load(engine.as_ref(), &graph.file);
            for (row, truth) in &truths {
                let what = format!("{name}, {} tokens: {} in {}", row.len(), graph.label, engine.name());
                found.compare_within(tolerance(graph.dtype), &what, &model.whole(row), truth);
            }
        }
    }
}

/// So that comparing them once is enough.
fn forms_are_the_same_for_every_target(bundles: &[Bundle]) {
    for file in [files::PARALLEL, files::CHUNKED, files::SOFTMAX, files::WEIGHTS] {
        for other in &bundles[1..] {
            assert!(bundles[0].bytes(file) == other.bytes(file), "{file} differs for {}", other.target);
        }
    }
}

/// Token by token = split anywhere = padded at either side = put aside and taken up again = all at once.
fn feeding_agrees(family: &Family, recipe: &Recipe, dtype: DType, found: &mut Comparisons) {
    for target in TARGETS {
        let bundle = family.bundle(recipe, target, dtype);
        let graph = Graph::served(&bundle, dtype);
        let texts = Texts::new(family, &bundle);
        for engine in engines().into_iter().filter(|e| graph.runs_in(e.as_ref())) {
            let place = format!("{}, {} in {}", family.fixture, graph.label, engine.name());
            let mut model = Model::load(engine.as_ref(), &graph.file);
            in_portions(&place, family, &texts, &mut model, found);
            padded(&place, &texts, &mut model, found);
            let other = Model::load(engine.as_ref(), &graph.file);
            put_aside(&place, &texts, &mut model, other, found);
        }
    }
}

/// Rows of unequal length, each with some tokens to come, and their logits.
struct Texts {
    rows: Vec<Vec<i64>>,
    more: Vec<Vec<i64>>,
    /// Of a row and its further tokens.
    truths: Vec<Vec<f64>>,
    vocab: usize,
}

impl Texts {
    fn new(family: &Family, bundle: &Bundle) -> Self {
        let manifest = bundle.manifest();
        let text = |n: usize| prompt(&manifest, n + MORE, &format!("{} {n}", family.fixture));
        let texts: Vec<Vec<i64>> = family.rows.into_iter().map(text).collect();
        let truths = texts.iter().map(|text| exact(&bundle.file(files::PARALLEL), text)).collect();
        let (rows, more) =
            texts.iter().map(|t| t.split_at(t.len() - MORE)).map(|(a, b)| (a.to_vec(), b.to_vec())).unzip();
        Self { rows, more, truths, vocab: manifest.model.vocab as usize }
    }

    /// Logits after each token of the row.
    fn truth(&self, row: usize) -> &[f64] {
        &self.truths[row][..self.rows[row].len() * self.vocab]
    }

    /// Logits after each token that comes after the row.
    fn truth_of_more(&self, row: usize) -> &[f64] {
        &self.truths[row][self.rows[row].len() * self.vocab..]
    }
}

fn in_portions(place: &str, family: &Family, texts: &Texts, model: &mut Model, found: &mut Comparisons) {
    let (row, truth) = (&texts.rows[0], texts.truth(0));
    found.compare(&format!("{place}: token by token"), &model.stepwise(row), truth);
    for portions in family.portions() {
        let what = format!("{place}: in portions of {portions:?}");
        found.compare(&what, &model.portions(row, &portions), truth);
    }
}

fn padded(place: &str, texts: &Texts, model: &mut Model, found: &mut Comparisons) {
    for side in [Side::Left, Side::Right] {
        let logits = model.padded(&texts.rows, side);
        for (row, logits) in logits.iter().enumerate() {
            let what = format!("{place}: row {row} padded {side:?}");
            found.compare(&what, logits, texts.truth(row));
        }
        let logits = model.feed_batch(&texts.more);
        for (row, logits) in logits.iter().enumerate() {
            let what = format!("{place}: after row {row} padded {side:?}");
            found.compare(&what, logits, texts.truth_of_more(row));
        }
    }
}

/// The state of a decoder, put into another one.
fn put_aside(place: &str, texts: &Texts, model: &mut Model, mut other: Model, found: &mut Comparisons) {
    model.whole(&texts.rows[0]);
    let state = model.decoder.state().unwrap_or_else(|e| panic!("{e}"));
    let (more, truth) = (&texts.more[0], texts.truth_of_more(0));
    found.compare(&format!("{place}: after a copy of the state"), &model.feed(more), truth);
    // Not into an empty decoder: what it held must go.
    other.whole(&texts.rows[1]);
    other.decoder.set_state(state, None).unwrap_or_else(|e| panic!("{e}"));
    found.compare(&format!("{place}: from the copied state"), &other.feed(more), truth);
}

/// ONNX Runtime with its optimisations off, in which the graph runs as it is written.
fn optimisations_change_nothing(family: &Family, recipe: &Recipe, dtype: DType, found: &mut Comparisons) {
    let Some(ort) = ort() else { return };
    let plain = LoadOptions { optimize: false, released_opsets_only: false, ..LoadOptions::default() };
    for bundle in family.bundles(recipe, dtype) {
        let row = prompt(&bundle.manifest(), family.rows[0], family.fixture);
        for name in [files::MODEL, files::CHUNKED, files::PARALLEL] {
            let file = bundle.file(name);
            let optimised = Model::load(ort.as_ref(), &file).whole(&row);
            let written = Model::load_with(ort.as_ref(), &file, &plain).whole(&row);
            let what = format!("{}, {} {name}: optimisations off", family.fixture, bundle.target);
            found.compare(&what, &written, &optimised);
        }
    }
}

type Check = fn(&Family, &Recipe, DType, &mut Comparisons);

fn check(what: Check, families: &[Family], recipe: &str, dtype: DType) {
    let mut found = Comparisons::within(tolerance(dtype));
    for family in families {
        what(family, &family.recipe(recipe), dtype, &mut found);
    }
    found.finish(&format!("{recipe}, {}", dtype.name()));
}

/// The tests of each recipe, in a module of its name.
macro_rules! matrix {
    ($($recipe:ident),*) => {
        const TESTED: &[&str] = &[$(stringify!($recipe)),*];
        $(mod $recipe {
            use super::*;

            const RECIPE: &str = stringify!($recipe);

            #[test]
            fn forms_agree_in_f32() {
                check(forms_agree, whole(RECIPE, DType::F32), RECIPE, DType::F32);
            }

            #[test]
            fn forms_agree_in_f16() {
                check(forms_agree, whole(RECIPE, DType::F16), RECIPE, DType::F16);
            }

            #[test]
            fn feeding_agrees_in_f32() {
                check(feeding_agrees, fed(RECIPE, DType::F32), RECIPE, DType::F32);
            }

            #[test]
            fn feeding_agrees_in_f16() {
                check(feeding_agrees, fed(RECIPE, DType::F16), RECIPE, DType::F16);
            }
        })*
    };
}

matrix!(
    adaptive, windows, gated, paper, released, performer, pff, wpff, decayed, elu, cosformer, retnet,
    linformer
);

#[test]
fn every_linear_preset_is_tested() {
    let presets: Vec<&str> =
        PRESETS.iter().map(|(name, _)| *name).filter(|name| *name != "softmax").collect();
    assert_eq!(presets, TESTED);
}

mod variants {
    use super::*;
    use dijiang::recipes::DEFAULT;

    #[test]
    fn forms_agree_in_f32() {
        check(forms_agree, &VARIANTS, DEFAULT, DType::F32);
    }

    #[test]
    fn forms_agree_in_f16() {
        check(forms_agree, &VARIANTS, DEFAULT, DType::F16);
    }

    #[test]
    fn feeding_agrees_in_f32() {
        check(feeding_agrees, &VARIANTS, DEFAULT, DType::F32);
    }

    #[test]
    fn onnx_runtime_gives_the_same_without_optimisations_in_f32() {
        if ort().is_some() {
            check(optimisations_change_nothing, &FAMILIES, DEFAULT, DType::F32);
        }
    }

    #[test]
    fn onnx_runtime_gives_the_same_without_optimisations_in_f16() {
        if ort().is_some() {
            check(optimisations_change_nothing, &FAMILIES, DEFAULT, DType::F16);
        }
    }

    /// One layer with a long window and nothing beside it, and one with a short window beside its recurrence.
    fn with_a_wide_layer(family: &Family) -> Recipe {
        let wide = Wide { window: 70, one_in: 5, layers: Some(vec![1]) };
        Recipe { local: Some(Local { window: 16, sinks: 2 }), wide: Some(wide), ..family.recipe("adaptive") }
    }

    #[test]
    fn forms_and_feeding_agree_where_a_layer_is_wide() {
        let family = Family::rotary("llama");
        for dtype in [DType::F32, DType::F16] {
            let mut found = Comparisons::within(tolerance(dtype));
            forms_agree(&family, &with_a_wide_layer(&family), dtype, &mut found);
            feeding_agrees(&family, &with_a_wide_layer(&family), dtype, &mut found);
            found.finish("one layer of two is wide");
        }
    }

    /// The delta rule, bounded features in one normalisation with the window, and exponential ones. That every form of all
    /// maps computes its definition, the tests of the compiler say.
    fn of_what_leaves(family: &Family) -> [(Recipe, DType); 3] {
        let near = |name: &str| Recipe {
            local: Some(Local { window: 16, sinks: 2 }),
            wide: None,
            feed: Feed::Leaving,
            ..family.recipe(name)
        };
        let bounded = family.recipe("adaptive").both_ways.expect("features of encoders");
        let joined = Recipe { map: bounded, decay: Decay::Learned, ..near("paper") };
        [(near("adaptive"), DType::F16), (joined, DType::F16), (near("paper"), DType::F32)]
    }

    #[test]
    fn forms_and_feeding_agree_where_what_leaves_the_window_is_fed() {
        let family = Family::rotary("llama");
        for (recipe, dtype) in of_what_leaves(&family) {
            let mut found = Comparisons::within(tolerance(dtype));
            forms_agree(&family, &recipe, dtype, &mut found);
            feeding_agrees(&family, &recipe, dtype, &mut found);
            found.finish(&format!("{}, {}, what leaves", recipe.name, dtype.name()));
        }
    }

    /// A layer that stays softmax, with a cache that grows beside a state that does not.
    #[test]
    fn feeding_agrees_where_a_layer_stays_softmax() {
        let family = Family::rotary("llama");
        let recipe = Recipe { softmax_layers: vec![1], ..family.recipe(DEFAULT) };
        let mut found = Comparisons::within(tolerance(DType::F32));
        feeding_agrees(&family, &recipe, DType::F32, &mut found);
        found.finish("one layer of two stays softmax");
    }
}
