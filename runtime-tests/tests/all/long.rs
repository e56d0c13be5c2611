//! Long contexts: the released code dies past 5,000 tokens, and a cache grows without end. Here 20,000 tokens leave
//! finite numbers and a state as large as 16 do.

use crate::support::{Bundle, Model, ort, prompt, recipe};
use dijiang::bundle::layout;
use dijiang::recipes::PRESETS;
use dijiang::target::Target;
use dijiang_passes::ir::dtype::DType;
use dijiang_runtime::Decoder;

const SHORT: usize = 16;
const LONG: usize = 20_000;
const SEGMENT: usize = 512;

/// Bytes of the carried tensors, which must hold finite numbers.
fn carried(decoder: &Decoder) -> usize {
    let state = decoder.state().expect("the state");
    let bytes = state.tensors.iter().map(|(name, tensor)| {
        let numbers = tensor.to_f32().expect("numbers");
        assert!(numbers.iter().all(|x| x.is_finite()), "{name} holds a number that is not finite");
        tensor.byte_len()
    });
    bytes.sum()
}

fn read(decoder: &mut Decoder, tokens: &[i64]) -> usize {
    decoder.reset(1).expect("one sequence");
    let last =
        decoder.prefill(&[tokens.to_vec()], None, SEGMENT).expect("it runs").to_f32().expect("numbers");
    assert!(last.iter().all(|x| x.is_finite()), "after {} tokens a logit is not finite", tokens.len());
    carried(decoder)
}

#[test]
fn twenty_thousand_tokens_leave_finite_numbers_and_a_state_of_the_same_size() {
    let Some(engine) = ort() else { return };
    for (name, _) in PRESETS.iter().filter(|(name, _)| *name != "softmax") {
        let bundle = Bundle::of_fixture("llama", &recipe(name), Target::Ort, DType::F16);
        let tokens = prompt(&bundle.manifest(), LONG, name);
        let mut model = Model::load(engine.as_ref(), &bundle.file(layout::MODEL));
        let few = read(&mut model.decoder, &tokens[..SHORT]);
        let many = read(&mut model.decoder, &tokens);
        assert_eq!(few, many, "{name}: bytes of the state after {SHORT} and after {LONG} tokens");
    }
}
