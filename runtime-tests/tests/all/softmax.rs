//! The recipe `softmax` keeps the model as it is, so its logits are those that transformers gave.

use crate::support::{Bundle, DECODERS, FIXTURES, Model, Reference, engines, exports, recipe};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use dijiang_runtime::Runtime;
use std::path::Path;

/// Largest difference of a logit. Both sides compute in f32, in another order: 2e-5 was seen on logits of up to 19.
/// The gentlest mistakes are as large as this or larger: another epsilon of the norms gives 1e-4, the other gelu 7e-4.
const LOGIT: f64 = 1e-4;

#[test]
fn fixtures_give_the_logits_of_transformers() {
    let entries = std::fs::read_dir(FIXTURES).expect("the fixtures");
    let mut folders: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    // Those of the authors' code hold no softmax.
    let is_softmax = |folder: &Path| !folder.ends_with("authors") && !folder.ends_with("authors-edited");
    folders.retain(|folder| folder.join("reference.safetensors").is_file() && is_softmax(folder));
    folders.sort();
    assert_eq!(folders.len(), 31, "{folders:?}");
    for folder in folders {
        gives(&folder, &Reference::of_fixture(&folder));
    }
}

#[test]
fn checkpoints_of_the_exports_give_the_logits_of_transformers() {
    let Some(exports) = exports() else { return };
    for name in DECODERS {
        let folder = exports.join("ckpt").join(name);
        gives(&folder, &Reference::of_npz(&folder.join("ref.npz")));
    }
}

/// In every runtime, all at once and token by token; target `ort` has an operator of its own for it, which a conversion
/// compares with this form.
fn gives(folder: &Path, reference: &Reference) {
    let bundle = Bundle::of(folder, &recipe("softmax"), Target::Portable, DType::F32);
    for engine in engines() {
        let mut model = Model::load(engine.as_ref(), &bundle.file(files::MODEL));
        model.reset(reference.rows.len());
        let whole = model.feed_batch(&reference.rows).concat();
        close(engine.as_ref(), folder, "whole", &whole, &reference.logits);
        let row = &reference.rows[0];
        let logits = &reference.logits[..reference.logits.len() / reference.rows.len()];
        // tract prepares a plan for every length of a growing cache.
        let steps = if engine.name() == "tract" { 4.min(row.len()) } else { row.len() };
        let few = model.stepwise(&row[..steps]);
        close(engine.as_ref(), folder, "token by token", &few, &logits[..few.len()]);
    }
}

fn close(engine: &dyn Runtime, folder: &Path, how: &str, found: &[f64], expected: &[f64]) {
    let place = format!("{} {how} in {}", folder.display(), engine.name());
    assert_eq!(found.len(), expected.len(), "{place}");
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is larger than anything here.
    let worst = differences.fold(0f64, |worst, d| if d <= worst { worst } else { d });
    eprintln!("{place}: {worst:.1e}");
    assert!(worst <= LOGIT, "{place}: {worst:.2e}, not within {LOGIT:.0e}");
}
