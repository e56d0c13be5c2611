//! Long contexts: the released code dies past 5,000 tokens, and a cache grows without end. Here 20,000 tokens leave
//! finite numbers and a state as large as 16 do, and half precision is after 32,768 as far from f32 as after 512.

use crate::support::{Bundle, Comparisons, Model, ort, prompt, recipe, recipe_with_positions};
use dijiang::recipes::PRESETS;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::recipe::Slots;
use dijiang_format::target::Target;
use dijiang_runtime::{Decoder, HostDecoder};

const SHORT: usize = 16;
const LONG: usize = 20_000;
const SEGMENT: usize = 512;

/// Bytes of the carried tensors, which must hold finite numbers.
fn carried(decoder: &HostDecoder) -> usize {
    let state = decoder.state().expect("the state");
    let bytes = state.tensors.iter().map(|(name, tensor)| {
        let numbers = tensor.to_f32().expect("numbers");
        assert!(numbers.iter().all(|x| x.is_finite()), "{name} holds a number that is not finite");
        tensor.byte_len()
    });
    bytes.sum()
}

fn read(decoder: &mut HostDecoder, tokens: &[i64]) -> usize {
    decoder.start(1).expect("one sequence");
    let last =
        decoder.feed_segments(&[tokens.to_vec()], None, SEGMENT).expect("it runs").to_f32().expect("numbers");
    assert!(last.iter().all(|x| x.is_finite()), "after {} tokens a logit is not finite", tokens.len());
    carried(decoder)
}

#[test]
fn twenty_thousand_tokens_leave_finite_numbers_and_a_state_of_the_same_size() {
    let Some(engine) = ort() else { return };
    for (name, _) in PRESETS.iter().filter(|(name, _)| *name != "softmax") {
        let recipe = recipe_with_positions(name, LONG as u64);
        let bundle = Bundle::of_fixture("llama", &recipe, Target::Ort, DType::F16);
        let tokens = prompt(&bundle.manifest(), LONG, name);
        let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
        let few = read(&mut model.decoder, &tokens[..SHORT]);
        let many = read(&mut model.decoder, &tokens);
        assert_eq!(few, many, "{name}: bytes of the state after {SHORT} and after {LONG} tokens");
    }
}

/// Tokens of the comparison with f32, and after how many the logits are compared on the way.
const CONTEXT: usize = 32_768;
const STRIDE: usize = 4_096;

/// What a model gives on the way.
struct Along {
    /// After the first segment, and every [`STRIDE`] tokens.
    logits: Vec<Vec<f64>>,
    /// As they are carried at the end, by name.
    states: Vec<(String, Vec<f64>)>,
}

fn along(model: &mut Model, tokens: &[i64]) -> Along {
    let wide = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect::<Vec<f64>>();
    model.decoder.start(1).expect("one sequence");
    let ends = (1..=tokens.len() / STRIDE).map(|n| n * STRIDE);
    let (mut at, mut logits) = (0, Vec::new());
    for end in std::iter::once(SEGMENT).chain(ends) {
        let part = [tokens[at..end].to_vec()];
        let last = model.decoder.feed_segments(&part, None, SEGMENT).expect("it runs");
        logits.push(wide(last.to_f32().expect("numbers")));
        at = end;
    }
    let state = model.decoder.state().expect("the state").tensors;
    let states = state.into_iter().map(|(name, tensor)| (name, wide(tensor.to_f32().expect("numbers"))));
    Along { logits, states: states.collect() }
}

/// A few roundings of activations at 2⁻¹¹ in two layers, however long the text was: state and normaliser are f32 in
/// both, so that sums of 32,768 products lose no more than one product does.
const HALF: f64 = 2e-3;

#[test]
fn half_precision_is_as_near_to_f32_after_many_tokens_as_after_few() {
    let Some(engine) = ort() else { return };
    let mut found = Comparisons::within(HALF);
    for name in ["adaptive", "gated", "paper"] {
        let run = |dtype| {
            let bundle = Bundle::of_fixture("llama", &recipe(name), Target::Ort, dtype);
            let tokens = prompt(&bundle.manifest(), CONTEXT, name);
            let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
            along(&mut model, &tokens)
        };
        let (half, exact) = (run(DType::F16), run(DType::F32));
        for (n, (logits, expected)) in half.logits.iter().zip(&exact.logits).enumerate() {
            found.compare(
                &format!("{name}: logits after {} tokens", (n * STRIDE).max(SEGMENT)),
                logits,
                expected,
            );
        }
        assert!(!half.states.is_empty() && half.states.len() == exact.states.len());
        for ((place, numbers), (_, exact)) in half.states.iter().zip(&exact.states) {
            found.compare(&format!("{name}: {place} after {CONTEXT} tokens"), numbers, exact);
        }
    }
    found.finish("half_precision_is_as_near_to_f32_after_many_tokens_as_after_few");
}

/// A position that slots have no weights for is none that the graph computes something with.
#[test]
fn a_text_longer_than_the_positions_of_slots_is_an_error() {
    let Some(ort) = ort() else { return };
    let mut short = recipe("linformer");
    short.slots = short.slots.map(|slots| Slots { positions: Some(12), ..slots });
    let bundle = Bundle::of_fixture("llama", &short, Target::Ort, DType::F32);
    let mut model = Model::load(ort.as_ref(), &bundle.file(files::MODEL));
    let row = prompt(&bundle.manifest(), 13, "llama");
    assert!(model.whole(&row[..12]).iter().all(|logit| logit.is_finite()));
    let refused = model.decoder.feed(&[row[12..].to_vec()], None).expect_err("there is no such position");
    assert!(refused.to_string().contains("out of data bounds"), "{refused}");
}
