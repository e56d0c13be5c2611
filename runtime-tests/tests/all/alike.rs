//! Keys that are alike, which random tokens never show: powers of what the delta rule inverts grow without end then, though
//! the inverse stays small. And prompts around the edges of the window.

use crate::support::{Bundle, Comparisons, Model, engines, exact, prompt, recipe, tolerance};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use dijiang_runtime::Runtime;
use safetensors::SafeTensors;

/// More than a chunk, and than a window and its sinks.
const MANY: usize = 150;

/// Every served graph and form, on rows, against the parallel form in f64.
fn compare(bundle: &Bundle, rows: &[Vec<i64>], what: &str) {
    let truths: Vec<Vec<f64>> = rows.iter().map(|row| exact(&bundle.file(files::PARALLEL), row)).collect();
    let mut found = Comparisons::within(tolerance(DType::F32));
    for engine in engines() {
        for name in [files::PARALLEL, files::CHUNKED, files::MODEL]
            .into_iter()
            .filter(|name| runs(engine.as_ref(), name))
        {
            let mut model = Model::load(engine.as_ref(), &bundle.file(name));
            for (row, truth) in rows.iter().zip(&truths) {
                let place = format!("{what}, {} tokens: {name} in {}", row.len(), engine.name());
                found.compare(&place, &model.whole(row), truth);
                found.compare(&format!("{place}, token by token"), &model.stepwise(row), truth);
            }
        }
    }
    found.finish(what);
}

/// tract has no operator for what target `ort` serves.
fn runs(engine: &dyn Runtime, name: &str) -> bool {
    engine.name() != "tract" || name == files::CHUNKED
}

fn bundle() -> Bundle {
    Bundle::of_fixture("llama", &recipe("adaptive"), Target::Ort, DType::F32)
}

/// Decays and rates of writing become one whatever the hidden state is.
fn open_gates(bundle: &Bundle) {
    let path = bundle.file(files::WEIGHTS);
    let mut bytes = std::fs::read(&path).expect("the weights");
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let gates = header
        .tensors()
        .into_iter()
        .filter(|(name, _)| name.contains(".dijiang.gate.") || name.contains(".dijiang.beta."));
    let places: Vec<(bool, usize, usize)> = gates
        .map(|(name, info)| {
            (name.ends_with("bias"), begin + info.data_offsets.0, begin + info.data_offsets.1)
        })
        .collect();
    assert!(!places.is_empty(), "the recipe has gates");
    for (is_bias, from, to) in places {
        let value = if is_bias { 40f32 } else { 0.0 };
        bytes[from..to].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&value.to_le_bytes()));
    }
    std::fs::write(&path, bytes).expect("it is written");
}

#[test]
fn one_token_again_and_again_is_the_same_in_every_form() {
    compare(&bundle(), &[vec![7; MANY]], "one token repeated");
}

#[test]
fn equal_keys_that_are_written_whole_and_never_decay_are_the_same_in_every_form() {
    let bundle = bundle();
    open_gates(&bundle);
    let two: Vec<i64> = (0..MANY as i64).map(|at| 3 + at % 2).collect();
    compare(&bundle, &[vec![7; MANY], two], "open gates");
}

#[test]
fn prompts_around_the_edges_of_a_window_and_its_sinks_are_the_same_in_every_form() {
    let bundle = bundle();
    let rows: Vec<Vec<i64>> =
        [1, 3, 4, 5, 63, 64, 65, 68, 69].map(|n| prompt(&bundle.manifest(), n, "edges")).to_vec();
    compare(&bundle, &rows, "edges");
}
