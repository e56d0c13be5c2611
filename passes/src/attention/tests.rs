//! The pass against the definition: a direct f64 linear attention that shares nothing with the
//! lowerings but the parameters.

use super::branch_graph::{Branch, write_branches};
use super::kept_graph::write_kept;
use super::layer::{Layer, dot};
use super::lower::Form;
use super::rewrite::{AddedWeights, Options, Report, added_weights, rewrite};
use super::site::AttentionSite;
use crate::canon::canonicalize;
use crate::feature_map::{self, FeatureMap};
use crate::ir::eval::Array;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::tensor::Tensor;
use crate::ir::text::{parse, print};
use crate::ir::verify::verify;
use crate::numeric::random::Random;
use crate::testing::{self, HEAD_DIM, HEADS, KV_HEADS, noise, relative_error, run};
use dijiang_format::recipe::{
    Decay, Feed, Lengths, Local, MapSpec, Radial, Readout, Recipe, Rule, Slots, Wide,
};
use std::collections::BTreeMap;

fn recipe(kind: &str, decay: Decay, readout: Readout) -> Recipe {
    let takes_features = feature_map::find(kind).is_some_and(|map| map.fields().contains(&"features"));
    let map = MapSpec {
        kind: kind.to_owned(),
        features: if takes_features { 2 } else { 1 },
        signs: kind == "dct-softmax",
        lengths: Lengths::Quantiles,
        radial: Radial::Normal,
        positions: is_turned(kind).then_some(16),
        ..MapSpec::default()
    };
    Recipe { map, decay, readout, ..testing::recipe() }
}

fn is_turned(kind: &str) -> bool {
    feature_map::find(kind).is_some_and(FeatureMap::is_turned)
}

/// The authors' form, with weights for so many positions.
fn released(by_position: Option<u64>) -> Recipe {
    Recipe { by_position, ..recipe("dct-transposed", Decay::Released, Readout::GroupNorm) }
}

fn slots() -> Recipe {
    let slots = Some(Slots { count: 3, positions: Some(16) });
    Recipe { rule: Rule::Slots, slots, ..recipe("identity", Decay::None, Readout::Sum) }
}

fn delta(kind: &str, decay: Decay) -> Recipe {
    let mut recipe = Recipe { rule: Rule::Delta, ..recipe(kind, decay, Readout::Sum) };
    recipe.map.unit = !feature_map::find(kind).expect("a map").is_unit();
    recipe
}

pub(crate) fn lowered(recipe: &Recipe, form: Form) -> (Graph, Report) {
    lowered_from(decoder_of(recipe), recipe, form)
}

/// With positions, where the recipe reads them.
fn decoder_of(recipe: &Recipe) -> Graph {
    let reads_positions =
        recipe.by_position.is_some() || recipe.slots.is_some() || is_turned(&recipe.map.kind);
    if reads_positions { testing::placed_decoder() } else { testing::decoder() }
}

fn lowered_from(graph: Graph, recipe: &Recipe, form: Form) -> (Graph, Report) {
    lowered_with(graph, recipe, form, None)
}

fn lowered_with(
    mut graph: Graph,
    recipe: &Recipe,
    form: Form,
    added: Option<&AddedWeights>,
) -> (Graph, Report) {
    canonicalize(&mut graph).expect("it settles");
    let options = Options { recipe, form, seed: 5, layers: None, added };
    let report = rewrite(&mut graph, &options).expect("it rewrites");
    canonicalize(&mut graph).expect("it settles");
    assert_eq!(verify(&graph), []);
    (graph, report)
}

/// Inputs of `time` tokens for two rows; `pads` of row 0 are padding at the left.
pub(crate) fn inputs(recipe: &Recipe, time: usize, pads: usize) -> Vec<(&'static str, Array)> {
    let map = feature_map::find(&recipe.map.kind).expect("a map");
    let m = map.features(&recipe.map, HEAD_DIM as usize);
    let width = recipe.slots.map_or(HEAD_DIM as usize, |slots| slots.count as usize);
    let mask = (0..2 * time).map(|i| i64::from(i >= pads)).collect();
    let places: Vec<i64> =
        (0..time).map(|i| i.saturating_sub(pads)).chain(0..time).map(|i| i as i64).collect();
    let places = Array::from_i64(&[2, time], places).expect("positions");
    vec![
        ("hidden", noise(&[2, time, testing::HIDDEN as usize], 11)),
        ("attention_mask", Array::from_i64(&[2, time], mask).expect("a mask")),
        ("past_key_values.0.recurrent_state", zeros(&[2, KV_HEADS as usize, m, width])),
        ("past_key_values.0.conv_state", normaliser(recipe, m)),
        ("position_ids", places),
    ]
}

/// z of no tokens, or where nothing divides by it what is passed on as it is.
fn normaliser(recipe: &Recipe, features: usize) -> Array {
    if let Some(slots) = recipe.slots {
        return zeros(&[2, KV_HEADS as usize, slots.count as usize * HEAD_DIM as usize]);
    }
    match (recipe.readout, recipe.rule) {
        (Readout::Sum, Rule::Linear) => zeros(&[2, KV_HEADS as usize, features]),
        _ => noise(&[2, 1, 1], 12),
    }
}

fn zeros(dims: &[usize]) -> Array {
    Array::from_f64(dims, vec![0.0; dims.iter().product()]).expect("zeros")
}

const FORMS: [Form; 4] =
    [Form::Parallel, Form::Chunked(4), Form::Chunked(64), Form::Operator("com.microsoft")];

fn positive_maps() -> impl Iterator<Item = &'static dyn FeatureMap> {
    feature_map::MAPS.iter().copied().filter(|map| map.is_positive())
}

pub(crate) fn every_recipe() -> Vec<Recipe> {
    let maps = positive_maps().map(|m| recipe(m.name(), Decay::None, Readout::Sum));
    let decays = [Decay::Fixed, Decay::Learned].map(|d| recipe("dct-softmax", d, Readout::Sum));
    let readouts = [Decay::None, Decay::Fixed].map(|d| recipe("dct-softmax", d, Readout::GroupNorm));
    let retention = recipe("identity", Decay::Fixed, Readout::RmsNorm);
    let readouts = readouts.into_iter().chain([retention, released(None), released(Some(5))]);
    let deltas = [Decay::None, Decay::Fixed, Decay::Learned].map(|decay| delta("dct-unit", decay));
    let others = ["dct-softmax", "wdct-unit"].map(|kind| delta(kind, Decay::Learned));
    maps.chain(decays).chain(readouts).chain(deltas).chain(others).chain([slots()]).collect()
}

#[test]
fn all_forms_agree_for_every_recipe() {
    for recipe in every_recipe() {
        for (time, pads) in [(1, 0), (3, 0), (9, 2)] {
            let given = inputs(&recipe, time, pads);
            // All these lengths are whole chunks of 3, or less than one.
            let forms = [&FORMS[..], &[Form::Segment(3)]].concat();
            let results: Vec<_> = forms.iter().map(|form| run(&lowered(&recipe, *form).0, &given)).collect();
            for (form, result) in forms.iter().zip(&results).skip(1) {
                for (name, array) in result {
                    let error = relative_error(array, &results[0][name]);
                    assert!(error < 1e-9, "{} {form:?} T={time}: {name} differs by {error}", recipe.map.kind);
                }
            }
        }
    }
}

/// The interpreter does not round, so what is left of half precision is its scales, and the constant √scale in f16.
#[test]
fn half_precision_scales_the_sums_and_not_the_state() {
    const ROUNDED: f64 = 5e-4;
    for decay in [Decay::None, Decay::Fixed, Decay::Learned] {
        let recipe = recipe("dct-softmax", decay, Readout::Sum);
        let [plain, half] = [Form::Chunked(3), Form::Segment(3)]
            .map(|form| lowered_from(testing::half_decoder(), &recipe, form).0);
        for (time, pads, past) in [(3, 0, 0.0), (9, 2, 0.0), (9, 0, 1e6)] {
            let mut given = inputs(&recipe, time, pads);
            for (_, state) in &mut given[2..] {
                let values =
                    state.to_f64().iter().enumerate().map(|(i, _)| past * (1 + i % 7) as f64).collect();
                *state = Array::from_f64(state.shape(), values).expect("a state");
            }
            let (found, expected) = (run(&half, &given), run(&plain, &given));
            for (name, value) in &expected {
                let error = relative_error(&found[name], value);
                assert!(error < ROUNDED, "{decay:?} T={time} past {past}: {name} differs by {error}");
            }
        }
    }
}

#[test]
fn a_split_sequence_with_its_state_carried_equals_the_whole() {
    for recipe in every_recipe() {
        for form in FORMS {
            let (graph, _) = lowered(&recipe, form);
            let whole = run(&graph, &inputs(&recipe, 9, 2));
            let first = run(&graph, &cut(&inputs(&recipe, 9, 2), 0, 5));
            let mut rest = cut(&inputs(&recipe, 9, 2), 5, 9);
            rest[2].1 = first["present.0.recurrent_state"].clone();
            rest[3].1 = first["present.0.conv_state"].clone();
            let second = run(&graph, &rest);
            for name in ["present.0.recurrent_state", "present.0.conv_state"] {
                assert!(relative_error(&second[name], &whole[name]) < 1e-9, "{form:?} {name}");
            }
            let joined = [first["y"].to_f64(), second["y"].to_f64()];
            let direct = whole["y"].to_f64();
            let width = (HEADS * HEAD_DIM) as usize;
            for row in 0..2 {
                let want = &direct[row * 9 * width..(row + 1) * 9 * width];
                let got =
                    [&joined[0][row * 5 * width..][..5 * width], &joined[1][row * 4 * width..][..4 * width]];
                for (a, b) in got.concat().iter().zip(want) {
                    assert!((a - b).abs() < 1e-9, "{form:?}: {a} {b}");
                }
            }
        }
    }
}

/// Tokens `from..to` of `hidden` and `attention_mask`.
fn cut(given: &[(&'static str, Array)], from: usize, to: usize) -> Vec<(&'static str, Array)> {
    let slice = |a: &Array| -> Array {
        let range = ndarray::Slice::from(from..to);
        match a {
            Array::F(a) => Array::F(a.slice_axis(ndarray::Axis(1), range).to_owned()),
            Array::I(a) => Array::I(a.slice_axis(ndarray::Axis(1), range).to_owned()),
            Array::B(_) => unreachable!("no such input"),
        }
    };
    let tokens = |name: &str| ["hidden", "attention_mask", "position_ids"].contains(&name);
    given.iter().map(|(n, a)| (*n, if tokens(n) { slice(a) } else { a.clone() })).collect()
}

/// The definition, for a recipe with the sum readout: o_i = Σ_{j≤i} w_ij v_j / Σ_{j≤i} w_ij with
/// w_ij = φ(q_i)·φ(k_j) Π_{j<t≤i} a_t over the tokens that are not padding.
fn definition(
    recipe: &Recipe,
    graph: &Graph,
    given: &[(&'static str, Array)],
    log_a: &[f64],
    causal: bool,
) -> Vec<f64> {
    let layer = Layer::new(recipe, graph, given);
    let mut out = Vec::new();
    for (row, i) in (0..2).flat_map(|row| (0..layer.time).map(move |i| (row, i))) {
        for h in 0..HEADS as usize {
            let (q, shared) = (layer.query(row, i, h), Layer::shared(h));
            let (mut num, mut den) = (vec![0.0; HEAD_DIM as usize], 0.0);
            let last = if causal { i } else { layer.time - 1 };
            for j in (0..=last).filter(|j| layer.is_token(row, *j)) {
                let k = layer.key(row, j, shared);
                let steps = (j + 1..=last).filter(|t| layer.is_token(row, *t)).count() as f64;
                let weight = dot(&q, &k) * (steps * log_a[shared]).exp();
                den += weight;
                num.iter_mut().zip(layer.value(row, j, shared)).for_each(|(n, v)| *n += weight * v);
            }
            let least = feature_map::find(&recipe.map.kind).and_then(FeatureMap::least_sum).unwrap_or(0.0);
            let den = f64::max(den, least);
            out.extend(num.iter().map(|n| if den == 0.0 { 0.0 } else { n / den }));
        }
    }
    out
}

/// The definition takes √scale exactly; the graph holds it as f32.
const ROUNDED: f64 = 1e-6;

#[test]
fn every_map_computes_its_definition() {
    for map in positive_maps() {
        let recipe = recipe(map.name(), Decay::None, Readout::Sum);
        let given = inputs(&recipe, 7, 2);
        let (graph, _) = lowered(&recipe, Form::Parallel);
        let want = definition(&recipe, &graph, &given, &[0.0, 0.0], true);
        let got = run(&graph, &given)["y"].to_f64();
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < ROUNDED, "{}: {a} {b}", map.name());
        }
    }
}

#[test]
fn a_readout_that_normalises_computes_its_definition() {
    let recipes = [
        recipe("identity", Decay::Fixed, Readout::RmsNorm),
        recipe("dct-softmax", Decay::Fixed, Readout::GroupNorm),
        released(None),
        // Fewer positions than tokens: the last weights hold.
        released(Some(5)),
    ];
    for (recipe, form) in recipes.iter().flat_map(|recipe| FORMS.map(|form| (recipe, form))) {
        let given = inputs(recipe, 7, 0);
        let mut added = added_weights(&lowered(recipe, form).0);
        for (name, weight) in &mut added {
            if name.contains(".positions.") || name.contains(".norm.") {
                *weight = Tensor::from_f32(weight.dims(), &noise_of(weight, name));
            }
        }
        let (graph, _) = lowered_with(decoder_of(recipe), recipe, form, Some(&added));
        let want = Layer::new(recipe, &graph, &given).normalised();
        near(&run(&graph, &given)["y"].to_f64(), &want, &format!("{} {form:?}", recipe.map.kind));
    }
}

#[test]
fn slots_compute_their_definition() {
    let recipe = slots();
    for form in FORMS.into_iter().chain([Form::Segment(7)]) {
        let given = inputs(&recipe, 7, 2);
        let (graph, _) = lowered(&recipe, form);
        let want = Layer::new(&recipe, &graph, &given).slotted(3);
        near(&run(&graph, &given)["y"].to_f64(), &want, &format!("{form:?}"));
    }
}

/// As many numbers as a weight has, named after it.
fn noise_of(weight: &Tensor, name: &str) -> Vec<f32> {
    let mut random = Random::named(13, name);
    (0..weight.len()).map(|_| random.normal() as f32).collect()
}

#[test]
fn what_tells_tokens_apart_wants_positions() {
    for recipe in [released(Some(5)), recipe("cosformer", Decay::None, Readout::Sum), slots()] {
        let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
        let refused = rewrite(&mut testing::decoder(), &options).expect_err("there are none");
        assert_eq!(
            refused.to_string(),
            "the graph has no input `position_ids`, by which the recipe tells tokens apart (hint: export the model with it, or take another --recipe)"
        );
    }
}

#[test]
fn an_encoder_reads_both_ways_and_keeps_no_state() {
    // The encoder of the tests has no positions to turn by.
    for map in positive_maps().filter(|map| !map.is_turned()) {
        // There is no order that a decay could follow.
        let recipe = recipe(map.name(), Decay::Learned, Readout::Sum);
        let given: Vec<_> = inputs(&recipe, 7, 2).into_iter().take(2).collect();
        for form in FORMS {
            let (graph, report) = lowered_from(testing::encoder(), &recipe, form);
            assert_eq!((report.sites[0].mask, graph.outputs().len()), ("key padding", 1));
            let want = definition(&recipe, &graph, &given, &[0.0, 0.0], false);
            let got = run(&graph, &given)["y"].to_f64();
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() < ROUNDED, "{} {form:?}: {a} {b}", map.name());
            }
        }
    }
}

/// Gates that depend on the tokens, which at first they do not.
fn with_gates(recipe: &Recipe) -> AddedWeights {
    let (graph, _) = lowered(recipe, Form::Parallel);
    let is_gate = |name: &str| name.ends_with(".weight") || name.ends_with("dijiang.far");
    let gates = added_weights(&graph).into_iter().filter(|(name, _)| is_gate(name));
    let noisy = |(at, (name, tensor)): (usize, (String, Tensor))| {
        let dims: Vec<usize> = tensor.dims().iter().map(|n| *n as usize).collect();
        let values: Vec<f32> = noise(&dims, 40 + at as u64).to_f64().iter().map(|x| *x as f32).collect();
        (name, Tensor::from_f32(tensor.dims(), &values))
    };
    gates.enumerate().map(noisy).collect()
}

#[test]
fn the_delta_rule_computes_its_definition_in_every_form() {
    for decay in [Decay::None, Decay::Fixed, Decay::Learned] {
        for kind in ["dct-unit", "wdct-unit", "dct-softmax"] {
            let recipe = delta(kind, decay);
            let added = with_gates(&recipe);
            for (time, pads) in [(1, 0), (3, 1), (21, 5)] {
                let given = inputs(&recipe, time, pads);
                for form in FORMS {
                    let graph = lowered_with(testing::decoder(), &recipe, form, Some(&added)).0;
                    let (out, state) = Layer::new(&recipe, &graph, &given).delta();
                    let found = run(&graph, &given);
                    for (name, want) in [("y", out), ("present.0.recurrent_state", state)] {
                        for (a, b) in found[name].to_f64().iter().zip(&want) {
                            assert!(
                                (a - b).abs() < ROUNDED,
                                "{kind} {decay:?} {form:?} T={time} {name}: {a} {b}"
                            );
                        }
                    }
                }
            }
        }
    }
}

const LOCAL: Local = Local { window: 3, sinks: 2 };

/// Masks of two rows: no padding, padding in front, behind, between and at every place, and a row of nothing else.
const MASKS: [[&str; 2]; 5] = [
    ["111111111111111", "111111111111111"],
    ["000001111111111", "011111111111111"],
    ["111111111100000", "111111111111110"],
    ["010100000110111", "100000000111101"],
    ["000000000000000", "111101111011110"],
];

fn with_window(recipe: Recipe, local: Local) -> Recipe {
    Recipe { local: Some(local), ..recipe }
}

/// Two rows with these masks, and no tokens before them.
fn masked(recipe: &Recipe, masks: [&str; 2]) -> Vec<(&'static str, Array)> {
    let time = masks[0].len();
    let mut given = inputs(recipe, time, 0);
    let marks = masks.concat().bytes().map(|mark| i64::from(mark == b'1')).collect();
    given[1].1 = Array::from_i64(&[2, time], marks).expect("a mask");
    let slots = recipe.local.expect("a window").slots() as usize;
    if recipe.rule == Rule::Linear {
        let m = recipe.map.features * HEAD_DIM as usize;
        given[2].1 = zeros(&[2, KV_HEADS as usize, m, HEAD_DIM as usize + 1]);
    }
    given[3].1 = zeros(&[2, KV_HEADS as usize, slots * 2 * HEAD_DIM as usize + 2]);
    given
}

/// The same with the states that graphs for bound memory have.
fn masked_apart(recipe: &Recipe, masks: [&str; 2]) -> Vec<(&'static str, Array)> {
    let mut given = masked(recipe, masks);
    given.truncate(3);
    let slots = recipe.local.expect("a window").slots() as usize;
    let [keys, values, count] = ring_names(recipe);
    for name in [keys, values] {
        given.push((name, zeros(&[2, KV_HEADS as usize, slots, HEAD_DIM as usize])));
    }
    given.push((count, zeros(&[2, 1])));
    given
}

/// The states of a ring.
fn ring_names(recipe: &Recipe) -> [&'static str; 3] {
    match recipe.local {
        Some(LOCAL) => [
            "past_key_values.0.ring_key.3.2",
            "past_key_values.0.ring_value.3.2",
            "past_key_values.ring.3.2.count",
        ],
        Some(Local { window: 1, sinks: 0 }) => [
            "past_key_values.0.ring_key.1.0",
            "past_key_values.0.ring_value.1.0",
            "past_key_values.ring.1.0.count",
        ],
        other => panic!("{other:?} has no name here"),
    }
}

/// What a graph for bound memory hands on.
fn handed_on(
    found: &BTreeMap<String, Array>,
    states: &[(&'static str, Array)],
) -> Vec<(&'static str, Array)> {
    let present = |name: &str| name.replace("past_key_values", "present");
    states.iter().map(|(name, _)| (*name, found[&present(name)].clone())).collect()
}

fn near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < ROUNDED, "{what} at {at}: {a} {b}");
    }
}

/// What the recurrence has is what has left the window.
fn recipes_of_leaving() -> [Recipe; 5] {
    let sums = |kind: &str, decay| recipe(kind, decay, Readout::Sum);
    let mut unit = sums("wdcf", Decay::None);
    unit.map.unit = true;
    [
        delta("dct-unit", Decay::Learned),
        sums("dct-softmax", Decay::Learned),
        sums("wdcf", Decay::Fixed),
        sums("prf", Decay::None),
        unit,
    ]
    .map(|recipe| Recipe { feed: Feed::Leaving, ..recipe })
}

#[test]
fn the_window_computes_its_definition_in_every_form() {
    let alone = Recipe { rule: Rule::None, ..delta("dct-unit", Decay::None) };
    for (recipe, local) in [
        (alone.clone(), LOCAL),
        (alone.clone(), Local { window: 1, sinks: 0 }),
        (alone, Local { window: 40, sinks: 1 }),
        (delta("dct-unit", Decay::Learned), LOCAL),
        (delta("wdct-unit", Decay::None), Local { window: 4, sinks: 0 }),
    ]
    .into_iter()
    .chain(recipes_of_leaving().map(|recipe| (recipe, LOCAL)))
    .chain(recipes_of_leaving().map(|recipe| (recipe, Local { window: 4, sinks: 0 })))
    {
        let recipe = with_window(recipe, local);
        let added = with_gates(&recipe);
        for (form, masks) in FORMS.into_iter().flat_map(|form| MASKS.map(|masks| (form, masks))) {
            let graph = lowered_with(testing::decoder(), &recipe, form, Some(&added)).0;
            let given = masked(&recipe, masks);
            let layer = Layer::new(&recipe, &graph, &given);
            let want = layer.beside(local);
            let what = format!("{:?} {:?} {local:?} {form:?} {masks:?}", recipe.rule, recipe.feed);
            near(&run(&graph, &given)["y"].to_f64(), &want, &what);
        }
    }
}

/// In calls of every length, the state handed on.
#[test]
fn a_ring_holds_what_later_calls_see() {
    let plain = delta("dct-unit", Decay::Learned);
    for recipe in recipes_of_leaving().into_iter().chain([plain]) {
        later_calls_see(&with_window(recipe, LOCAL));
    }
}

fn later_calls_see(recipe: &Recipe) {
    let added = with_gates(recipe);
    let width = (HEADS * HEAD_DIM) as usize;
    for (form, masks) in FORMS.into_iter().flat_map(|form| MASKS.map(|masks| (form, masks))) {
        let graph = lowered_with(testing::decoder(), recipe, form, Some(&added)).0;
        let given = masked(recipe, masks);
        let want = Layer::new(recipe, &graph, &given).beside(LOCAL);
        let time = masks[0].len();
        for step in [1, 2, 4, 7] {
            let (mut states, mut rows) = (given[2..].to_vec(), [Vec::new(), Vec::new()]);
            for from in (0..time).step_by(step) {
                let to = (from + step).min(time);
                let call = [cut(&given[..2], from, to), states.clone()].concat();
                let found = run(&graph, &call);
                for ((_, state), name) in
                    states.iter_mut().zip(["present.0.recurrent_state", "present.0.conv_state"])
                {
                    *state = found[name].clone();
                }
                let (y, each) = (found["y"].to_f64(), (to - from) * width);
                rows.iter_mut().enumerate().for_each(|(row, all)| all.extend(&y[row * each..][..each]));
            }
            near(
                &rows.concat(),
                &want,
                &format!("{} {form:?} {masks:?} in steps of {step}", recipe.map.kind),
            );
        }
    }
}

/// The graph of one token per row, which is never padding, goes on where that of segments stopped.
#[test]
fn a_token_at_a_time_is_the_same() {
    let plain = delta("dct-unit", Decay::Learned);
    let recipes = recipes_of_leaving().into_iter().chain([plain]);
    let locals = [LOCAL, Local { window: 1, sinks: 0 }];
    for (recipe, local) in recipes.flat_map(|recipe| locals.map(|local| (recipe.clone(), local))) {
        let recipe = with_window(recipe, local);
        let added = with_gates(&recipe);
        // Whole segments: the call of all tokens is three, and the first part one.
        let [many, one] = [Form::Segment(5), Form::OneToken("com.microsoft")]
            .map(|form| lowered_with(testing::decoder(), &recipe, form, Some(&added)).0);
        for masks in [["111111111111111"; 2], ["000011111111111", "111111111111111"]] {
            let given = masked_apart(&recipe, masks);
            let whole = Layer::new(&recipe, &many, &given).beside(local);
            let want = run(&many, &given);
            near(&want["y"].to_f64(), &whole, &format!("{local:?} {masks:?} segments"));
            let mut found = run(&many, &[cut(&given[..2], 0, 5), given[2..].to_vec()].concat());
            for at in 5..masks[0].len() {
                let states = handed_on(&found, &given[2..]);
                found = run(&one, &[cut(&given[..2], at, at + 1), states].concat());
            }
            for (name, state) in handed_on(&found, &given[2..]) {
                let want = &want[&name.replace("past_key_values", "present")];
                near(&state.to_f64(), &want.to_f64(), &format!("{local:?} {masks:?} {name}"));
            }
            let width = (HEADS * HEAD_DIM) as usize;
            let (y, last) = (want["y"].to_f64(), masks[0].len());
            let rows = [0, 1].map(|row| y[((row + 1) * last - 1) * width..][..width].to_vec());
            near(&found["y"].to_f64(), &rows.concat(), &format!("{local:?} {masks:?}"));
        }
    }
}

/// Whatever the recipe says of layers that see all tokens.
fn recipes_of_others() -> [Recipe; 3] {
    let wide = with_window(delta("dct-unit", Decay::Learned), LOCAL);
    let alone = with_window(Recipe { rule: Rule::None, ..delta("dct-unit", Decay::None) }, LOCAL);
    [recipe("dct-softmax", Decay::Learned, Readout::Sum), wide, alone]
}

#[test]
fn a_window_of_the_source_is_that_window_in_every_form() {
    for (tokens, recipe) in [1, 3, 40].into_iter().zip(&recipes_of_others()) {
        let local = Local { window: tokens, sinks: 0 };
        let alone = with_window(Recipe { rule: Rule::None, ..testing::recipe() }, local);
        for form in FORMS {
            let (graph, report) = lowered_from(testing::windowed_decoder(tokens), recipe, form);
            let site = &report.sites[0];
            let told = (site.mask, site.window, site.why_kept.as_deref());
            assert_eq!(told, ("window + key padding", Some(tokens), None));
            assert!(added_weights(&graph).is_empty());
            for masks in MASKS {
                let given = masked(&alone, masks);
                let want = Layer::new(&alone, &graph, &given).near(local);
                near(&run(&graph, &given)["y"].to_f64(), &want, &format!("{tokens} {form:?} {masks:?}"));
            }
        }
    }
}

/// Where no padding stands between tokens, places are counts.
#[test]
fn a_window_of_the_source_gives_what_the_source_does() {
    let recipe = &recipes_of_others()[0];
    for tokens in [1, 4, 40] {
        let local = Local { window: tokens, sinks: 0 };
        let alone = with_window(Recipe { rule: Rule::None, ..testing::recipe() }, local);
        let source = testing::windowed_decoder(tokens);
        let (graph, _) = lowered_from(source.clone(), recipe, Form::Chunked(4));
        for masks in &MASKS[..3] {
            let given = masked(&alone, *masks);
            let empty = ["past_key_values.0.key", "past_key_values.0.value"]
                .map(|name| (name, zeros(&[2, KV_HEADS as usize, 0, HEAD_DIM as usize])));
            let was = run(&source, &[&given[..2], &empty[..]].concat())["y"].to_f64();
            let is = run(&graph, &given)["y"].to_f64();
            let width = (HEADS * HEAD_DIM) as usize;
            let marks = masks.concat();
            let of = |all: &[f64]| -> Vec<f64> {
                let tokens = marks.bytes().enumerate().filter(|(_, mark)| *mark == b'1');
                tokens.flat_map(|(at, _)| all[at * width..][..width].to_vec()).collect()
            };
            near(&of(&is), &of(&was), &format!("{local:?} {masks:?}"));
        }
    }
}

/// One layer as ONNX Runtime writes it: two query heads of 8 on one, `options` in the operator.
fn grouped(options: &str) -> Graph {
    let text = format!(
        r#"graph "grouped" {{
  input %hidden: f32[batch, sequence, 16]
  input %attention_mask: i64[batch, past + sequence]
  input %past_key_values.0.key: f32[batch, 1, past, 8]
  input %past_key_values.0.value: f32[batch, 1, past, 8]
  weight %h.0.attn.q_proj.weight: f32[16, 16] = random(1)
  weight %h.0.attn.k_proj.weight: f32[16, 8] = random(2)
  weight %h.0.attn.v_proj.weight: f32[16, 8] = random(3)
  const %one: i64[] = [1]
  %sums = ReduceSum(%attention_mask) {{axes: [1], keepdims: 0}}
  %last = Sub(%sums, %one)
  %counts = Cast(%last) {{to: "i32"}}
  %length = Shape(%attention_mask) {{start: 1, end: 2}}
  %scalar = Squeeze(%length) {{axes: [0]}}
  %total = Cast(%scalar) {{to: "i32"}}
  %q = MatMul(%hidden, %h.0.attn.q_proj.weight)
  %k = MatMul(%hidden, %h.0.attn.k_proj.weight)
  %v = MatMul(%hidden, %h.0.attn.v_proj.weight)
  %y, %keys, %values = com.microsoft.GroupQueryAttention(%q, %k, %v, %past_key_values.0.key, %past_key_values.0.value, %counts, %total) {{num_heads: 2, kv_num_heads: 1{options}}}
  output "y" %y
  output "present.0.key" %keys
  output "present.0.value" %values
}}"#
    );
    parse(&text).expect("it parses")
}

#[test]
fn the_window_of_an_operator_is_one() {
    let recipe = &recipes_of_others()[0];
    let time = 9;
    let tokens = [
        ("hidden", noise(&[2, time, 16], 11)),
        ("attention_mask", Array::from_i64(&[2, time], vec![1; 2 * time]).expect("a mask")),
    ];
    for window in [1, 4, 20] {
        let source = grouped(&format!(", local_window_size: {window}"));
        let (graph, report) = lowered_from(source.clone(), recipe, Form::Chunked(4));
        assert_eq!((report.sites[0].mask, report.sites[0].window), ("window + key padding", Some(window)));
        let empty = ["past_key_values.0.key", "past_key_values.0.value"];
        let ring = [
            ("past_key_values.0.conv_state", zeros(&[2, 1, window as usize * 16 + 2])),
            ("past_key_values.0.recurrent_state", zeros(&[2, 1, 1, 1])),
        ];
        let was = run(&source, &[&tokens[..], &empty.map(|name| (name, zeros(&[2, 1, 0, 8])))].concat());
        let is = run(&graph, &[&tokens[..], &ring].concat());
        near(&is["y"].to_f64(), &was["y"].to_f64(), &format!("a window of {window}"));
    }
    let (_, report) = lowered_from(grouped(""), recipe, Form::Chunked(4));
    assert_eq!((report.sites[0].mask, report.sites[0].window), ("causal + key padding", None));
}

/// The scores are bent as the source bends them in a window that stays, and what becomes linear is told of.
#[test]
fn a_soft_cap_is_kept_near_and_told_of_far() {
    let recipe = &recipes_of_others()[0];
    let time = 9;
    let tokens = [
        ("hidden", noise(&[2, time, 16], 11)),
        ("attention_mask", Array::from_i64(&[2, time], vec![1; 2 * time]).expect("a mask")),
    ];
    let empty = ["past_key_values.0.key", "past_key_values.0.value"].map(|name| (name, zeros(&[2, 1, 0, 8])));
    let ring = [
        ("past_key_values.0.conv_state", zeros(&[2, 1, 4 * 16 + 2])),
        ("past_key_values.0.recurrent_state", zeros(&[2, 1, 1, 1])),
    ];
    let source = grouped(", local_window_size: 4, softcap: 0.5");
    let was = run(&source, &[&tokens[..], &empty].concat())["y"].to_f64();
    for form in [Form::Parallel, Form::Chunked(4)] {
        let (graph, report) = lowered_from(source.clone(), recipe, form);
        assert_eq!((report.sites[0].softcap, report.notes.len()), (Some(0.5), 0));
        let is = run(&graph, &[&tokens[..], &ring].concat())["y"].to_f64();
        near(&is, &was, &format!("{form:?}"));
    }
    let other = run(&grouped(", local_window_size: 4"), &[&tokens[..], &empty].concat())["y"].to_f64();
    let apart = other.iter().zip(&was).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
    assert!(apart > 1e-2, "{apart}");
    let (_, report) = lowered_from(grouped(", softcap: 0.5"), recipe, Form::Chunked(4));
    assert_eq!((report.sites[0].softcap, report.sites[0].mask), (Some(0.5), "causal + key padding"));
    assert_eq!(
        report.notes,
        [
            "1 layer that is linear now capped its scores: the softmax over near tokens, where there is one, still does, and what is linear has no scores to cap"
        ]
    );
    let (_, report) = lowered_from(grouped(""), recipe, Form::Chunked(4));
    assert_eq!((report.sites[0].softcap, report.notes.len()), (None, 0));
}

#[test]
fn a_window_longer_than_a_ring_stays() {
    let (_, report) =
        lowered_from(testing::windowed_decoder(20_000), &delta("dct-unit", Decay::None), Form::Chunked(64));
    assert_eq!(
        report.sites[0].why_kept.as_deref(),
        Some("it sees a window of 20000 tokens, and a ring holds at most 16384")
    );
}

/// What a graph gives for `given` fed `step` tokens at a time, from states that hold nothing.
fn fed(graph: &Graph, given: &[(&'static str, Array)], step: usize, outputs: &[&str]) -> Vec<Vec<f64>> {
    let is_state = |name: &String| name.starts_with("past_key_values.");
    let empty = |name: String| {
        let value = graph.value(graph.input(&name).expect("an input"));
        let dims: Vec<usize> =
            value.ty.shape.iter().flatten().map(|dim| dim.known().unwrap_or(2) as usize).collect();
        (name, zeros(&dims))
    };
    let names = graph.inputs().iter().map(|v| graph.value(*v).name.clone());
    let mut states: Vec<(String, Array)> = names.filter(is_state).map(empty).collect();
    let time = given[0].1.shape()[1];
    let width = (HEADS * HEAD_DIM) as usize;
    let mut rows = vec![[Vec::new(), Vec::new()]; outputs.len()];
    for from in (0..time).step_by(step) {
        let to = (from + step).min(time);
        let mut call: Vec<(&str, Array)> = cut(given, from, to);
        call.extend(states.iter().map(|(name, array)| (name.as_str(), array.clone())));
        let found = run(graph, &call);
        for (output, rows) in outputs.iter().zip(&mut rows) {
            let (y, each) = (found[*output].to_f64(), (to - from) * width);
            rows.iter_mut().enumerate().for_each(|(row, all)| all.extend(&y[row * each..][..each]));
        }
        for (name, state) in &mut states {
            *state = found[&name.replace("past_key_values", "present")].clone();
        }
    }
    rows.iter().map(|rows| rows.concat()).collect()
}

/// The windows of the first two have as many slots, and those of the last two are as long.
#[test]
fn each_window_counts_for_itself() {
    const OUTPUTS: [&str; 3] = ["y", "y.1", "y.2"];
    let recipe = with_window(Recipe { rule: Rule::None, ..testing::recipe() }, LOCAL);
    let locals = [Local { window: 5, sinks: 0 }, LOCAL, Local { window: 3, sinks: 0 }];
    let forms = [&FORMS[..], &[Form::Segment(4)]].concat();
    for form in forms {
        let (graph, report) = lowered_from(testing::windows_beside(5, 3), &recipe, form);
        let windows: Vec<Option<u32>> = report.sites.iter().map(|site| site.window).collect();
        assert_eq!(windows, [Some(5), None, Some(3)]);
        for (masks, step) in MASKS.iter().zip([4, 1, 15, 4, 7]) {
            let given = masked(&recipe, *masks);
            let layer = Layer::new(&recipe, &graph, &given);
            let found = fed(&graph, &given[..2], step, &OUTPUTS);
            for (found, local) in found.iter().zip(locals) {
                near(found, &layer.near(local), &format!("{form:?} {masks:?} {local:?} by {step}"));
            }
        }
    }
}

#[test]
fn rings_of_bound_memory_say_what_they_see() {
    let recipe = with_window(delta("dct-unit", Decay::Learned), LOCAL);
    let (graph, _) = lowered_from(testing::windows_beside(5, 3), &recipe, Form::Segment(4));
    let names = graph.inputs().iter().map(|v| graph.value(*v).name.as_str());
    let states: Vec<&str> = names.filter_map(|name| name.strip_prefix("past_key_values.")).collect();
    assert_eq!(
        states,
        [
            "0.ring_key.5.0",
            "0.ring_value.5.0",
            "ring.5.0.count",
            "1.recurrent_state",
            "1.ring_key.3.2",
            "1.ring_value.3.2",
            "ring.3.2.count",
            "2.ring_key.3.0",
            "2.ring_value.3.0",
            "ring.3.0.count",
        ]
    );
}

/// Only the layer that sees all tokens has something to learn.
#[test]
fn a_window_is_not_calibrated() {
    let recipe = with_window(delta("dct-unit", Decay::Learned), LOCAL);
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
    let source = || {
        let mut graph = testing::windows_beside(5, 3);
        canonicalize(&mut graph).expect("it settles");
        graph
    };
    let layers = super::calibration_graph::write_beside(&mut source(), &options).expect("it is written");
    assert_eq!(layers, [1]);
    let sites = super::sampling_graph::write_samples(&mut source(), &options).expect("it is written");
    assert_eq!(sites.iter().map(|site| site.layer).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_order_is_no_encoders() {
    let (_, report) = lowered_from(testing::encoder(), &delta("dct-unit", Decay::None), Form::Chunked(64));
    assert_eq!(
        report.sites[0].why_kept.as_deref(),
        Some("its mask is key padding, and the delta rule follows the order of the tokens")
    );
}

#[test]
fn fixed_decay_computes_its_definition() {
    let recipe = recipe("dct-softmax", Decay::Fixed, Readout::Sum);
    let given = inputs(&recipe, 7, 2);
    let (graph, _) = lowered(&recipe, Form::Chunked(4));
    let rounded = |x: f64| f64::from(x as f32);
    let log_a = [rounded((1f64 - 1.0 / 32.0).ln()), rounded((1f64 - 1.0 / 64.0).ln())];
    let want = definition(&recipe, &graph, &given, &log_a, true);
    let got = run(&graph, &given)["y"].to_f64();
    for (a, b) in got.iter().zip(&want) {
        assert!((a - b).abs() < ROUNDED, "{a} {b}");
    }
}

#[test]
fn the_rewritten_graph_in_text() {
    let recipe = recipe("dct-softmax", Decay::Learned, Readout::Sum);
    insta::assert_snapshot!("source", print(&testing::decoder()));
    insta::assert_snapshot!("operator", print(&lowered(&recipe, Form::Operator("com.microsoft")).0));
    insta::assert_snapshot!("parallel", print(&lowered(&recipe, Form::Parallel).0));
    insta::assert_snapshot!(
        "segment",
        print(&lowered_from(testing::half_decoder(), &recipe, Form::Segment(64)).0)
    );
    insta::assert_snapshot!("chunked", print(&lowered(&recipe, Form::Chunked(64)).0));
}

#[test]
fn the_site_and_what_the_report_says() {
    let recipe = recipe("wdcf", Decay::None, Readout::Sum);
    let (_, report) = lowered(&recipe, Form::Parallel);
    insta::assert_debug_snapshot!(report);
}

/// A change to the source text, and the line the closest miss must read.
fn miss_after(from: &str, to: &str) -> String {
    let text = print(&testing::decoder());
    assert!(text.contains(from), "the test graph holds no {from:?}");
    // Weights of more than 16 elements read back as zeros, which does not matter here.
    let graph = parse(&text.replace(from, to)).expect("it parses");
    let found = super::patterns::find_sites(&graph);
    assert_eq!(found.sites.len(), 0, "no site must be found");
    found.misses.iter().map(|miss| format!("{miss}\n")).collect::<Vec<_>>().concat()
}

/// The one site of the source text with some of its lines changed.
fn site_after(changes: &[(&str, &str)]) -> AttentionSite {
    let mut graph = changed(changes);
    canonicalize(&mut graph).expect("it settles");
    let mut found = super::patterns::find_sites(&graph);
    assert_eq!(found.sites.len(), 1, "{:?}", found.misses);
    found.sites.remove(0)
}

fn changed(changes: &[(&str, &str)]) -> Graph {
    let text = changes.iter().fold(print(&testing::decoder()), |text, (from, to)| {
        assert!(text.contains(from), "the test graph holds no {from:?}");
        text.replace(from, to)
    });
    parse(&text).expect("it parses")
}

/// Keys and values of one product, cut by a `Gather` over heads.
fn picked(axis: &str, indices: &str) -> Option<ValueId> {
    let product = "%h.0.attn/MatMul_2:0 = MatMul(%hidden, %h.0.attn/Transpose_4:0) \"h.0.attn/MatMul_2\": f32[batch, sequence, 16]";
    let both = "weight %both: f32[16, 32] = random(1)\n  %h.0.attn/MatMul_2:0 = MatMul(%hidden, %both)";
    let heads = "%h.0.attn/Reshape_2:0 = Reshape(%h.0.attn/MatMul_2:0, %h.0.attn/ints_2) \"h.0.attn/Reshape_2\": f32[batch, sequence, 2, 8]";
    let pick = format!(
        "{indices}\n  const %h.0.attn/four: i64[4] = [0, 0, 4, 8]\n  %all = Reshape(%h.0.attn/MatMul_2:0, %h.0.attn/four)\n  %h.0.attn/Reshape_2:0 = Gather(%all, %picked) {{axis: {axis}}}"
    );
    site_after(&[(product, both), (heads, &pick)]).hidden.map(|hidden| hidden.value)
}

#[test]
fn values_may_be_heads_of_a_wider_product() {
    assert!(picked("2", "const %picked: i64[2] = [2, 3]").is_some());
    assert!(picked("-2", "const %picked: i64[2] = [2, 3]").is_some());
    // Which heads they are may depend on the tokens.
    assert_eq!(picked("2", "input %picked: i64[2]"), None);
}

/// Values by a product of whole numbers, with and without the rounding: the forms of a model have the same names.
#[test]
fn values_may_be_of_whole_numbers() {
    let product = "%h.0.attn/MatMul_2:0 = MatMul(%hidden, %h.0.attn/Transpose_4:0) \"h.0.attn/MatMul_2\": f32[batch, sequence, 16]";
    let whole = "const %h.0.attn.v.weight_quantized: i8[16, 16] = elided
  const %tenth: f32[] = [0.1]
  %rounded, %rate, %middle = DynamicQuantizeLinear(%hidden) \"round\"
  %sums = MatMulInteger(%rounded, %h.0.attn.v.weight_quantized, %middle) \"sums\"
  %wide = Cast(%sums) {to: \"f32\"} \"wide\"
  %rates = Mul(%rate, %tenth) \"rates\"
  %h.0.attn/MatMul_2:0 = Mul(%wide, %rates) \"h.0.attn/MatMul_2\"";
    let mut graph = changed(&[(product, whole)]);
    canonicalize(&mut graph).expect("it settles");
    let wide = crate::precision::widen::widen(&graph).expect("it widens");
    let mut clean = wide.clone();
    canonicalize(&mut clean).expect("it settles");
    for graph in [graph, wide, clean] {
        let site = super::patterns::find_sites(&graph).sites.remove(0);
        assert_eq!(site.name, "h.0.attn");
        assert_eq!(site.hidden.map(|hidden| hidden.value), graph.input("hidden"));
    }
}

const PAST_KEY: (&str, &str) =
    ("%past_key_values.0.key: f32[batch, 2, past, 8]\n", "%past_key_values.0.key: f64[batch, 2, past, 8]\n");
const JOINED: (&str, &str) = (
    "%h.0.attn/Concat:0 = Concat(%past_key_values.0.key,",
    "%cast_in = Cast(%past_key_values.0.key) {to: \"f32\"}\n  %h.0.attn/Concat:0 = Concat(%cast_in,",
);

/// A cache may be carried in another element type than the graph computes in.
#[test]
fn a_cache_is_one_through_casts() {
    let present = (
        "output \"present.0.key\" %h.0.attn/Concat:0",
        "%out = Cast(%h.0.attn/Concat:0) {to: \"f64\"}\n  output \"present.0.key\" %out",
    );
    let changes = [PAST_KEY, JOINED, present];
    let cache = site_after(&changes).cache.expect("a cache");
    assert_eq!([cache.present_key, cache.present_value], ["present.0.key", "present.0.value"]);
    let recipe = recipe("dct-softmax", Decay::None, Readout::Sum);
    let (graph, report) = lowered_from(changed(&changes), &recipe, Form::Chunked(4));
    assert!(report.sites[0].why_kept.is_none());
    assert_eq!(report.dropped_inputs, ["past_key_values.0.key", "past_key_values.0.value"]);
    assert!(graph.output("present.0.key").is_none());
}

#[test]
fn what_is_returned_otherwise_is_no_cache() {
    let present = (
        "output \"present.0.key\" %h.0.attn/Concat:0",
        "%out = Neg(%h.0.attn/Concat:0)\n  output \"present.0.key\" %out",
    );
    let found = super::patterns::find_sites(&changed(&[PAST_KEY, JOINED, present]));
    let miss = found.misses.first().expect("a miss").to_string();
    assert!(miss.ends_with(": the cache is not a graph output"), "{miss}");
}

#[test]
fn near_misses_say_why() {
    let cases = [
        (
            "the softmax runs over queries",
            "{axis: -1} \"h.0.attn/Softmax\"",
            "{axis: 2} \"h.0.attn/Softmax\"",
        ),
        ("strictly causal", "LessOrEqual(", "Less("),
        (
            "a past that is not the cache as it came",
            "%h.0.attn/Unsqueeze:0 = Unsqueeze(%h.0.attn/Concat:0)",
            "%half = Neg(%h.0.attn/Concat:0)\n  %h.0.attn/Unsqueeze:0 = Unsqueeze(%half)",
        ),
        ("a bias, not a mask", "f32[] = [-1e30]", "f32[] = [-2.0]"),
        (
            "weights of 8 bits",
            "%h.0.attn/MatMul_4:0 = MatMul(%h.0.attn/Softmax:0,",
            "%r = QuantizeLinear(%h.0.attn/Softmax:0, %h.0.attn/scalar) \"round\"\n  %w = DequantizeLinear(%r, %h.0.attn/scalar)\n  %h.0.attn/MatMul_4:0 = MatMul(%w,",
        ),
        (
            "keys that an unknown operator makes",
            "%h.0.attn/MatMul_1:0 = MatMul(%hidden, %h.0.attn/Transpose_2:0) \"h.0.attn/MatMul_1\": f32[batch, sequence, 16]",
            "%h.0.attn/MatMul_1:0 = com.example.Linear(%hidden, %h.0.attn/Transpose_2:0) \"mine\"",
        ),
    ];
    let lines: Vec<String> =
        cases.iter().map(|(what, from, to)| format!("{what}\n  {}", miss_after(from, to))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn only_a_readout_that_divides_carries_a_normaliser() {
    let others = [Readout::GroupNorm, Readout::RmsNorm].map(|readout| (readout, 1, Some(1)));
    for (readout, operators, width) in [(Readout::Sum, 2, None)].into_iter().chain(others) {
        let recipe = recipe("dct-softmax", Decay::Fixed, readout);
        let (graph, _) = lowered(&recipe, Form::Operator("com.microsoft"));
        let found = graph.nodes().filter(|(_, node)| node.op.name() == "LinearAttention").count();
        assert_eq!(found, operators, "{readout:?}");
        let [past, present] = ["past_key_values.0.conv_state", "present.0.conv_state"];
        let (past, present) = (graph.input(past).expect("it is there"), graph.output(present));
        // onnxruntime-genai asks for three axes.
        let shape = graph.value(past).ty.shape.clone().expect("a shape");
        assert_eq!((shape.len(), present == Some(past)), (3, width.is_some()), "{readout:?}");
        assert!(width.is_none_or(|width| shape[1..].iter().all(|dim| dim.known() == Some(width))));
    }
}

/// The decoder with a value added to itself forty times over in front of what reads `at`.
fn doubled(at: &str, value: &str, first: &str) -> Graph {
    let (text, times) = (print(&testing::decoder()), 40);
    assert!(text.contains(at), "the test graph holds no {at:?}");
    let chain = crate::ir::walk::tests::doubled("first", "twice", times);
    let read = at.replace(value, &format!("%twice{times}"));
    parse(&text.replace(at, &format!("  %first = {first}({value})\n{chain}{read}"))).expect("it parses")
}

/// 2^40 ways lead through each of them.
#[test]
fn values_added_to_themselves_are_looked_at_once() {
    let scores = doubled("  %h.0.attn/Add:0 = Add(%h.0.attn/Mul:0", "%h.0.attn/Mul:0", "Identity");
    let values =
        doubled("  %h.0.attn/Reshape_2:0 = Reshape(%h.0.attn/MatMul_2:0", "%h.0.attn/MatMul_2:0", "Tanh");
    for (mut graph, scale) in [(scores, 40), (values, 0)] {
        let found = super::patterns::find_sites(&graph).sites;
        assert_eq!(found.len(), 1);
        let want = (HEAD_DIM as f64).powf(-0.5) * f64::from(scale).exp2();
        assert!((found[0].scale / want - 1.0).abs() < ROUNDED, "{} {want}", found[0].scale);
        canonicalize(&mut graph).expect("it settles");
        let recipe = recipe("wdcf", Decay::None, Readout::Sum);
        let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
        let report = rewrite(&mut graph, &options).expect("it rewrites");
        assert_eq!(report.sites[0].why_kept, None);
    }
}

/// The decoder with a second layer like the first, whose probabilities are an output: it is missed.
fn first_is_missed() -> Graph {
    let text = print(&testing::decoder());
    let of_layer =
        |line: &&str| line.contains("h.0.attn") || line.contains(".0.key") || line.contains(".0.value");
    let twin: Vec<String> = text
        .lines()
        .filter(of_layer)
        .map(|line| {
            let line = line.replace("h.0.attn", "h.1.attn").replace("output \"y\"", "output \"y.1\"");
            line.replace("past_key_values.0", "past_key_values.1").replace("present.0", "present.1")
        })
        .collect();
    let end = text.rfind('}').expect("a graph");
    let missed = "  output \"weights\" %h.0.attn/Softmax:0";
    let mut graph = parse(&format!("{}{}\n{missed}\n}}", &text[..end], twin.join("\n"))).expect("it parses");
    canonicalize(&mut graph).expect("it settles");
    graph
}

#[test]
fn a_layer_has_one_number_where_the_first_is_missed() {
    let source = first_is_missed();
    let recipe = recipe("wdcf", Decay::None, Readout::Sum);
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
    let sites = super::patterns::find_sites(&source).sites;
    assert_eq!(sites.iter().map(|site| site.layer).collect::<Vec<_>>(), [1]);

    let mut rewritten = source.clone();
    let report = rewrite(&mut rewritten, &options).expect("it rewrites");
    assert_eq!((report.sites[0].layer, report.misses.len()), (1, 1));
    let parameters = super::rewrite::added_weights(&rewritten);
    assert!(rewritten.input("past_key_values.1.recurrent_state").is_some());

    let mut both = source.clone();
    let layers = super::calibration_graph::write_beside(&mut both, &options).expect("it is written");
    assert_eq!(layers, [1]);
    assert!(both.output("attention.linear.1").is_some() && both.output("attention.softmax.1").is_some());
    // Parameters are drawn by the layer's number: the same numbers in both.
    let added = super::rewrite::added_weights(&both);
    let bytes = |added: &super::rewrite::AddedWeights| -> Vec<(String, Vec<f64>)> {
        added.iter().map(|(name, tensor)| (name.clone(), tensor.to_f64())).collect()
    };
    assert_eq!(bytes(&added), bytes(&parameters));

    let mut sampled = source;
    let sites = super::sampling_graph::write_samples(&mut sampled, &options).expect("it is written");
    assert_eq!((sites.len(), sites[0].layer), (1, 1));
    assert!(sampled.output("sample.q.1").is_some());
}

/// A window that a graph is given is that of the definition by counts.
#[test]
fn a_scanned_layer_sees_as_far_as_it_is_told() {
    let local = Local { window: 3, sinks: 2 };
    let alone = Recipe { rule: Rule::None, local: Some(local), ..testing::recipe() };
    let options = Options { recipe: &alone, form: Form::Parallel, seed: 5, layers: None, added: None };
    let mut scanned = testing::decoder();
    canonicalize(&mut scanned).expect("it settles");
    assert_eq!(
        super::scan_graph::write_windows(&mut scanned, &options).expect("it is written"),
        (vec![0], 1)
    );
    canonicalize(&mut scanned).expect("it settles");
    assert_eq!(verify(&scanned), []);
    let ones = ["111111111", "111111111"];
    let given = masked(&alone, ones);
    let seen = |window: f64| {
        let mut given = given.clone();
        given.push(("windows", Array::from_f64(&[1], vec![window]).expect("a window")));
        run(&scanned, &given)["y"].clone()
    };
    let near = &run(&lowered(&alone, Form::Parallel).0, &given)["y"];
    assert!(relative_error(&seen(3.0), near) < 1e-9);
    assert!(relative_error(&seen(4.0), near) > 1e-3, "another window is another attention");
    let everything = Recipe { local: Some(Local { window: 9, sinks: 0 }), ..alone.clone() };
    let all = &run(&lowered(&everything, Form::Parallel).0, &masked(&everything, ones))["y"];
    assert!(relative_error(&seen(1e6), all) < 1e-9);
}

/// What a layer gives is affine in what its branches read, and with both it is what the recipe says.
#[test]
fn branches_are_left_out_one_at_a_time() {
    let local = Some(Local { window: 3, sinks: 2 });
    let mixed = Recipe { local, ..delta("dct-unit", Decay::Learned) };
    let joined = Recipe { rule: Rule::Linear, feed: Feed::Leaving, local, ..testing::recipe() };
    for recipe in [mixed, joined] {
        let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
        let mut graph = decoder_of(&recipe);
        canonicalize(&mut graph).expect("it settles");
        let branches = write_branches(&mut graph, &options).expect("it is written");
        assert_eq!(branches, [Branch::Linear, Branch::Window]);
        canonicalize(&mut graph).expect("it settles");
        assert_eq!(verify(&graph), []);
        let given = masked(&recipe, ["111111111", "111111111"]);
        let with = |numbers: [f64; 3]| {
            let mut given = given.clone();
            given.push(("branches", Array::from_f64(&[3], numbers.to_vec()).expect("three numbers")));
            run(&graph, &given)["y"].clone()
        };
        let both = with([1.0, 1.0, 1.0]);
        assert!(relative_error(&both, &run(&lowered(&recipe, Form::Parallel).0, &given)["y"]) < 1e-9);
        let [window, linear, none] = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]].map(with);
        let [both, window, linear, none] = [both, window, linear, none].map(|array| array.to_f64());
        let apart = |i: usize| (window[i] - none[i]) + (linear[i] - none[i]) + none[i] - both[i];
        assert!((0..both.len()).all(|i| apart(i).abs() < 1e-9), "{recipe:?}");
        for other in [&window, &linear] {
            assert!((0..both.len()).any(|i| (other[i] - both[i]).abs() > 1e-3), "{recipe:?}");
        }
    }
}

/// Two rows of nine tokens and nothing before them, with a number for `name`, as a graph takes it.
fn all_at_once<'g>(graph: &'g Graph, name: &'static str, numbers: &[f64]) -> Vec<(&'g str, Array)> {
    let local = Some(Local { window: 9, sinks: 0 });
    let recipe = Recipe { rule: Rule::None, local, ..testing::recipe() };
    let mut given: Vec<(&str, Array)> = masked(&recipe, ["111111111", "111111111"]);
    given.push((name, Array::from_f64(&[numbers.len()], numbers.to_vec()).expect("numbers")));
    given.retain(|(name, _)| !name.starts_with("past") && graph.input(name).is_some());
    for input in graph.inputs().iter().map(|input| graph.value(*input)).filter(|v| v.name.starts_with("past"))
    {
        let sizes = input.ty.shape.iter().flatten().skip(1).map(|dim| dim.known().unwrap_or(0) as usize);
        given.push((input.name.as_str(), zeros(&[2].into_iter().chain(sizes).collect::<Vec<_>>())));
    }
    given
}

fn softmax() -> Graph {
    let mut source = testing::decoder();
    canonicalize(&mut source).expect("it settles");
    source
}

#[test]
fn a_layer_that_stays_softmax_is_a_branch_too() {
    let recipe = Recipe { softmax_layers: vec![0], ..delta("dct-unit", Decay::Learned) };
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
    let (source, mut graph) = (softmax(), softmax());
    assert_eq!(write_branches(&mut graph, &options).expect("it is written"), [Branch::Softmax]);
    canonicalize(&mut graph).expect("it settles");
    let with = |numbers: [f64; 3]| run(&graph, &all_at_once(&graph, "branches", &numbers))["y"].clone();
    let expected = &run(&source, &all_at_once(&source, "none", &[]))["y"];
    assert!(relative_error(&with([0.0, 0.0, 1.0]), expected) < 1e-9);
    assert!(relative_error(&with([1.0, 1.0, 0.0]), expected) > 1e-3);
}

/// A layer of a bundle is as it is served, or as it came.
#[test]
fn a_layer_is_softmax_where_it_is_kept() {
    let recipe = delta("dct-unit", Decay::Learned);
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
    let (source, mut graph) = (softmax(), softmax());
    assert_eq!(write_kept(&mut graph, &options).expect("it is written"), (vec![0], 1));
    canonicalize(&mut graph).expect("it settles");
    assert_eq!(verify(&graph), []);
    let with = |kept: f64| run(&graph, &all_at_once(&graph, "kept", &[kept]))["y"].clone();
    let expected = &run(&source, &all_at_once(&source, "none", &[]))["y"];
    assert!(relative_error(&with(1.0), expected) < 1e-9);
    let served = lowered(&recipe, Form::Parallel).0;
    let given = all_at_once(&served, "none", &[]);
    assert!(relative_error(&with(0.0), &run(&served, &given)["y"]) < 1e-9);
    assert!(relative_error(&with(0.0), expected) > 1e-3, "another attention");
}

/// Calibration has nothing to train where a layer has a window alone.
#[test]
fn a_wide_layer_has_no_parameters() {
    let wide = Wide { window: 4, one_in: 1, layers: Some(vec![0]) };
    let local = Some(Local { window: 3, sinks: 2 });
    let recipe = Recipe { local, wide: Some(wide), ..delta("dct-unit", Decay::Learned) };
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers: None, added: None };
    let (rewritten, report) = lowered(&recipe, Form::Parallel);
    assert_eq!(report.sites[0].why_kept, None);
    assert!(super::rewrite::added_weights(&rewritten).is_empty());
    let mut source = testing::decoder();
    canonicalize(&mut source).expect("it settles");
    assert_eq!(super::calibration_graph::write_beside(&mut source, &options).expect("it is written"), [0; 0]);
    let beyond = Wide { window: 4, one_in: 1, layers: Some(vec![1]) };
    let error = rewrite(
        &mut source,
        &Options { recipe: &Recipe { wide: Some(beyond), ..recipe.clone() }, ..options },
    );
    let error = error.expect_err("there is no such layer").to_string();
    assert_eq!(error, "layer 1 does not exist: the model has layers 0 to 0");
}

/// Two layers without a cache over embedded tokens and their places.
fn without_cache(places: &str) -> Graph {
    let layer = |n: usize, x: &str| {
        let part = |part: &str| {
            format!(
                "  weight %h.{n}.attn.{part}.weight: f32[16, 16] = random({n})
  %{part}{n} = MatMul(%{x}, %h.{n}.attn.{part}.weight)
  %{part}{n}r = Reshape(%{part}{n}, %heads)
  %{part}{n}t = Transpose(%{part}{n}r) {{perm: [0, 2, 1, 3]}}\n"
            )
        };
        format!(
            "{}{}{}  %k{n}T = Transpose(%k{n}t) {{perm: [0, 1, 3, 2]}}
  %s{n} = MatMul(%q{n}t, %k{n}T)
  %m{n} = Add(%s{n}, %bias)
  %p{n} = Softmax(%m{n}) {{axis: -1}} \"p{n}\"
  %o{n} = MatMul(%p{n}, %v{n}t)
  %o{n}t = Transpose(%o{n}) {{perm: [0, 2, 1, 3]}}
  %o{n}r = Reshape(%o{n}t, %flat)
  %y{n} = Add(%{x}, %o{n}r)\n",
            part("q"),
            part("k"),
            part("v"),
        )
    };
    let text = format!(
        r#"graph "g" {{
  input %input_ids: i64[batch, sequence]
  input %position_ids: i64[batch, sequence]
  weight %embed: f32[20, 16] = random(1)
  weight %table: f32[64, 16] = random(2)
  const %heads: i64[4] = [0, 0, 2, 8]
  const %flat: i64[3] = [0, 0, 16]
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %clear: f32[] = [0.0]
  const %shut: f32[] = [-1e30]
  %given = Shape(%input_ids) {{start: 1, end: 2}}
  %time = Squeeze(%given) {{axes: [0]}}
  %range = Range(%zero, %time, %one) "range"
  %rows = Unsqueeze(%range) {{axes: [1]}}
  %earlier = LessOrEqual(%range, %rows)
  %bias = Where(%earlier, %clear, %shut)
  %tokens = Gather(%embed, %input_ids) {{axis: 0}}
  %places = Gather(%table, %{places}) {{axis: 0}} "places"
  %x = Add(%tokens, %places)
{}{}  output "y" %y1
}}"#,
        layer(0, "x"),
        layer(1, "y0")
    );
    let mut graph = parse(&text).expect("it parses");
    canonicalize(&mut graph).expect("it settles");
    graph
}

fn rewritten(mut graph: Graph, layers: Option<&[usize]>) -> Result<Report, String> {
    let recipe = recipe("wdcf", Decay::None, Readout::Sum);
    let options = Options { recipe: &recipe, form: Form::Parallel, seed: 5, layers, added: None };
    rewrite(&mut graph, &options).map_err(|e| e.to_string())
}

#[test]
fn positions_that_would_begin_again_at_every_call_are_refused() {
    let text = print(&without_cache("range")).replace("  input %position_ids: i64[batch, sequence]\n", "");
    let text = text.replace("elided", "random(1)");
    // As a GPT of one's own has them. What the first attention reads is their sum with the tokens.
    let moved = rewritten(parse(&text).expect("it parses"), None).expect("the caller counts them");
    assert_eq!((moved.added_inputs, moved.sites.len()), (vec!["position_ids".to_owned()], 2));
    let text = text.replace("  weight %table", "  weight %scale: f32[16] = random(4)\n  weight %table");
    let normed = "  %scaled = LayerNormalization(%places, %scale) {axis: -1, epsilon: 1e-5} \"scaled\"\n  %x = Add(%tokens, %scaled)";
    let graph = parse(&text.replace("  %x = Add(%tokens, %places)", normed)).expect("it parses");
    let refused = rewritten(graph, None).expect_err("it is refused");
    assert_eq!(
        refused,
        "the graph counts positions from the first token of each call, at \"scaled\" (hint: export the model with the input `position_ids`, or keep its attention with --recipe softmax)"
    );
    let carried = rewritten(without_cache("position_ids"), None).expect("the caller counts them");
    assert_eq!(carried.sites.len(), 2);
}

/// A model without the input of positions, that takes so many tokens a call.
fn fixed(tokens: u64, places: &str) -> Result<Report, String> {
    let text = print(&without_cache("range")).replace("sequence]", &format!("{tokens}]"));
    let text = text.replace(&format!("  input %position_ids: i64[batch, {tokens}]\n"), "");
    let text = text.replace("%table, %range", &format!("%table, %{places}")).replace("elided", "random(1)");
    // What was inferred of the other length.
    let untyped = |line: &str| {
        line.rsplit_once("\": ").map_or_else(|| line.to_owned(), |(node, _)| format!("{node}\""))
    };
    let lines = text.lines().map(|line| if line.contains(" = ") { untyped(line) } else { line.to_owned() });
    let mut graph = parse(&lines.collect::<Vec<_>>().join("\n")).expect("it parses");
    canonicalize(&mut graph).expect("it settles");
    rewritten(graph, None)
}

#[test]
fn positions_that_are_constants_are_refused_where_a_call_has_so_many_tokens() {
    let refused = fixed(12, "range").expect_err("it is refused");
    assert_eq!(
        refused,
        "the graph counts positions from the first token of each call, at \"places\" (hint: export the model with the input `position_ids`, or keep its attention with --recipe softmax)"
    );
    let carried = fixed(12, "input_ids").expect("it has no positions");
    assert_eq!(
        carried.notes,
        [
            "every call has 12 tokens, and no input says where they stand: positions that the model holds as constants begin again at every call"
        ]
    );
    let one = fixed(1, "input_ids").expect("a token is a call");
    assert_eq!(one.notes, Vec::<String>::new());
}

#[test]
fn a_kept_layer_without_a_cache_is_told() {
    let told = |graph, layers: Option<&[usize]>| {
        rewritten(graph, layers).expect("it rewrites").without_cache.map(|kept| kept.to_string())
    };
    let kept = told(without_cache("position_ids"), Some(&[1])).expect("the first stays");
    assert_eq!(
        kept,
        "attention \"h.0.attn\" stays softmax (the layer was not asked for), and a kept layer has no cache here: it does not see the tokens of earlier calls"
    );
    assert_eq!(told(without_cache("position_ids"), None), None);
    // One with a cache sees them.
    assert_eq!(told(first_is_missed(), None), None);
    // What a pattern does not recognise has no cache either.
    let text = print(&without_cache("position_ids")).replace("elided", "random(1)");
    let missed = text.replace("  output \"y\"", "  output \"weights\" %p0\n  output \"y\"");
    let kept = told(parse(&missed).expect("it parses"), None).expect("the first stays");
    assert_eq!(
        kept,
        "attention \"p0\" stays softmax (its attention weights are the output \"weights\" too, and a linear attention has none), and a kept layer has no cache here: it does not see the tokens of earlier calls"
    );
}
