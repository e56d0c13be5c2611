//! Checkpoints of the authors' released code give what that code computes, by a reference in f64 that shares nothing with the
//! conversion (`runtime-tests/python/make_authors.py`): whole, in portions and token by token, before and after the last of
//! their positions.

use crate::support::{
    Bundle, Comparisons, FIXTURES, Model, Reference, convert_to, engines, exact, options, recipe_in_chunks,
    tolerance,
};
use dijiang::convert::ConvertOptions;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::recipe::Recipe;
use dijiang_format::target::Target;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::path::Path;

/// Groups within heads, and groups that straddle them, with D1 and D2 that were edited.
const FOLDERS: [&str; 2] = ["authors", "authors-edited"];

/// The reference is stored in f32, and its positions end before its texts do.
const STORED: f64 = 1e-6;

/// As the checkpoint brings it along, with chunks that a text is several of.
fn released() -> Recipe {
    recipe_in_chunks("released", 8)
}

#[test]
fn every_form_gives_the_reference() {
    let mut found = Comparisons::within(tolerance(DType::F32));
    for folder in FOLDERS {
        let reference = Reference::of_fixture(&Path::new(FIXTURES).join(folder));
        for target in [Target::Ort, Target::Portable, Target::Onnx27] {
            let bundle = Bundle::of_fixture(folder, &released(), target, DType::F32);
            gives(&bundle, &reference, folder, &mut found);
        }
    }
    found.finish("the authors' checkpoints");
}

fn gives(bundle: &Bundle, reference: &Reference, folder: &str, found: &mut Comparisons) {
    let (row, width) = (&reference.rows[0], reference.logits.len() / reference.rows.len());
    let truth = &reference.logits[..width];
    for name in [files::PARALLEL, files::CHUNKED, files::MODEL] {
        let what = format!("{folder}, {} {name} in the interpreter", bundle.target);
        found.compare_within(STORED, &what, &exact(&bundle.file(name), row), truth);
    }
    for engine in engines() {
        for name in [files::PARALLEL, files::CHUNKED, files::MODEL] {
            if name == files::MODEL && engine.name() == "tract" && bundle.target != Target::Portable {
                continue;
            }
            let mut model = Model::load(engine.as_ref(), &bundle.file(name));
            let what = format!("{folder}, {} {name} in {}", bundle.target, engine.name());
            model.reset(reference.rows.len());
            let whole = model.feed_batch(&reference.rows).concat();
            found.compare(&format!("{what}, whole"), &whole, &reference.logits);
            let sevens: Vec<usize> = row.chunks(7).map(<[i64]>::len).collect();
            found.compare(&format!("{what}, by sevens"), &model.portions(row, &sevens), truth);
            found.compare(&format!("{what}, token by token"), &model.stepwise(row), truth);
        }
    }
}

/// The near miss: one number of D2, D1 or the matrix that is another, and the reference is not met.
#[test]
fn every_tensor_matters() {
    let folder = Path::new(FIXTURES).join("authors-edited");
    let reference = Reference::of_fixture(&folder);
    let truth = &reference.logits[..reference.logits.len() / reference.rows.len()];
    for name in ["proj_matrix", "D1", "D2", "W_G", "group_norm.weight", "group_norm.bias"] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let model = home.path().join("model");
        std::fs::create_dir(&model).expect("a directory");
        std::fs::copy(folder.join("config.json"), model.join("config.json")).expect("a copy");
        let weights = std::fs::read(folder.join("model.safetensors")).expect("the weights");
        let tensor = format!("gpt_neox.layers.1.attention.{name}");
        std::fs::write(model.join("model.safetensors"), with_first_doubled(&weights, &tensor))
            .expect("it is written");
        let target = home.path().join("bundle");
        convert_to(&model, &target, &options(&released()));
        let logits = exact(&target.join(files::PARALLEL), &reference.rows[0]);
        let apart = logits.iter().zip(truth).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart > 1e-3, "{name}: {apart:.1e}");
    }
}

/// The file with the first number of a tensor of f32 doubled.
fn with_first_doubled(file: &[u8], name: &str) -> Vec<u8> {
    let all = SafeTensors::deserialize(file).expect("safetensors");
    let tensor = all.tensor(name).expect("the tensor");
    let mut data = tensor.data().to_vec();
    let first = f32::from_le_bytes([data[0], data[1], data[2], data[3]]);
    data[..4].copy_from_slice(&(2.0 * first).to_le_bytes());
    let view = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), &data).expect("a tensor");
    let tensors = all.tensors().into_iter().map(|(n, t)| if n == name { (n, view.clone()) } else { (n, t) });
    safetensors::serialize(tensors, None).expect("it is laid out")
}

/// Whoever asks for nothing gets it too.
#[test]
fn it_is_the_default_of_such_a_checkpoint() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let how = ConvertOptions { is_default_recipe: true, ..options(&crate::support::recipe("adaptive")) };
    let source = Path::new(FIXTURES).join("authors");
    let converted = convert_to(&source, &home.path().join("bundle"), &how);
    assert_eq!((converted.recipe.name.as_str(), converted.recipe.by_position), ("released", Some(20)));
}
