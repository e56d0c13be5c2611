//! One model by two ways: its checkpoint, and what another exporter made of it.

use crate::support::{Bundle, Comparisons, DECODERS, Model, Reference, exports, ort, recipe};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use std::path::Path;

/// What is asked of the two: constants that an exporter folded are rounded once more.
const SAME: f64 = 1e-4;

/// The logits of the converted model, row after row.
fn logits(source: &Path, recipe_name: &str, rows: &[Vec<i64>]) -> Vec<f64> {
    let engine = ort().expect("it was there before");
    let bundle = Bundle::of(source, &recipe(recipe_name), Target::Ort, DType::F32);
    let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
    rows.iter().flat_map(|row| model.whole(row)).collect()
}

#[test]
fn a_decoder_of_optimum_and_its_checkpoint_convert_to_the_same_model() {
    let (Some(_), Some(exports)) = (ort(), exports()) else { return };
    let mut comparisons = Comparisons::within(SAME);
    for name in DECODERS {
        let checkpoint = exports.join("ckpt").join(name);
        let rows = Reference::of_npz(&checkpoint.join("ref.npz")).rows;
        for recipe_name in ["adaptive", "gated", "paper", "released"] {
            let exported = exports.join(format!("{name}__optimum_past/model.onnx"));
            let (ours, theirs) =
                (logits(&checkpoint, recipe_name, &rows), logits(&exported, recipe_name, &rows));
            comparisons.compare(&format!("{name} {recipe_name}"), &theirs, &ours);
        }
    }
    comparisons.finish("two ways to one model");
}
