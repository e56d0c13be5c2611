use dijiang_runtime::{
    Engine, HostDecoder, HostTensor, LoadOptions, Runtime, Serving, ServingOptions, TractRuntime, greedy,
};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

use crate::assert_close;
use crate::models::{self, ALL, CACHED, LINEAR, Parts};

const PROMPTS: [&[i64]; 3] = [&[1, 2, 6, 0, 3, 5, 4], &[3, 3], &[5, 0, 6, 2, 1]];
const KINDS: [Parts; 3] = [ALL, LINEAR, CACHED];

const MANIFEST: &str = r#"{
  "format_version": 1, "dijiang_version": "0.1.0", "source": {"kind": "onnx", "dtype": "f32", "files": []},
  "model": {"family": "onnx", "vocab": 7, "positions": null, "eos": []}, "recipe": {"name": "test"},
  "target": "ort", "dtype": "f32", "seed": 0,
  "sites": [{"name": "h", "layer": 0, "heads": 1, "kv_heads": 1, "head_dim": 4, "lowered": true}],
  "state": [], "checks": [], "digests": {"header": "00", "tensors": {"w": "DIGEST"}}
}"#;

/// A bundle of a test model, under the name by which tract finds it.
fn bundle(dir: &Path, parts: Parts) {
    bundle_of(dir, parts, "00");
}

/// The same with weights of a digest.
fn bundle_of(dir: &Path, parts: Parts, digest: &str) {
    let path = models::decoder(parts).write(dir);
    std::fs::rename(path, dir.join("chunked.onnx")).unwrap();
    std::fs::write(dir.join("dijiang.json"), MANIFEST.replace("DIGEST", digest)).unwrap();
}

fn open(dir: &Path, segment: usize) -> Serving {
    let options =
        ServingOptions { engine: Engine::Tract, segment: Some(segment), ..ServingOptions::default() };
    Serving::open(dir, &options).unwrap()
}

fn prompts() -> Vec<Vec<i64>> {
    PROMPTS.iter().map(|row| row.to_vec()).collect()
}

fn logits(serving: &mut Serving) -> Vec<f32> {
    serving.logits().unwrap().to_f32().unwrap()
}

/// The logits after all of a row's tokens, fed in one call to a graph driven by hand.
fn whole(dir: &Path, row: &[i64]) -> Vec<f32> {
    let session = TractRuntime.load(&dir.join("chunked.onnx"), &LoadOptions::default()).unwrap();
    let mut decoder = HostDecoder::new(session).unwrap();
    let all: HostTensor = decoder.feed(&[row.to_vec()], None).unwrap();
    all.slice(1, row.len() - 1, row.len()).unwrap().to_f32().unwrap()
}

#[test]
fn unequal_prompts_in_any_segments_are_served_as_if_alone() {
    for parts in KINDS {
        let dir = tempfile::tempdir().unwrap();
        bundle(dir.path(), parts);
        for segment in [1, 3, 512] {
            let mut serving = open(dir.path(), segment);
            serving.start(3).unwrap();
            let mut rows = prompts();
            let mut next = serving.prefill(&rows).unwrap();
            for _ in 0..3 {
                let expected: Vec<Vec<f32>> = rows.iter().map(|row| whole(dir.path(), row)).collect();
                // Sums of at most ten products, in another order.
                assert_close(&logits(&mut serving), &expected.concat(), 1e-5);
                let best: Vec<i64> = expected.iter().map(|row| greedy(row).unwrap() as i64).collect();
                assert_eq!(next, best);
                rows.iter_mut().zip(&next).for_each(|(row, token)| row.push(*token));
                next = serving.decode(&next).unwrap();
            }
        }
    }
}

#[test]
fn a_saved_state_goes_on_with_the_same_bits() {
    for parts in KINDS {
        let dir = tempfile::tempdir().unwrap();
        bundle(dir.path(), parts);
        let file = dir.path().join("state.safetensors");
        let mut serving = open(dir.path(), 3);
        serving.start(3).unwrap();
        let next = serving.prefill(&prompts()).unwrap();
        serving.save_state(&file).unwrap();
        let (before, seen) = (logits(&mut serving), serving.seen());
        serving.decode(&next).unwrap();
        let expected = logits(&mut serving);

        let mut other = open(dir.path(), 3);
        other.load_state(&file).unwrap();
        assert_eq!((logits(&mut other), other.seen(), other.batch()), (before, seen, 3));
        other.decode(&next).unwrap();
        assert_eq!(logits(&mut other), expected);
    }
}

#[test]
fn a_state_file_of_fixed_size_whatever_was_fed() {
    let dir = tempfile::tempdir().unwrap();
    bundle(dir.path(), LINEAR);
    let size = |tokens: usize| {
        let file = dir.path().join(format!("{tokens}.safetensors"));
        let mut serving = open(dir.path(), 64);
        serving.prefill(&[vec![1; tokens]]).unwrap();
        serving.save_state(&file).unwrap();
        std::fs::metadata(file).unwrap().len()
    };
    assert_eq!(size(2), size(500));
}

#[test]
fn states_that_do_not_fit_are_refused_and_change_nothing() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    bundle(dir.path(), LINEAR);
    bundle(other.path(), CACHED);
    let (file, broken) = (dir.path().join("state"), dir.path().join("broken"));
    let mut serving = open(dir.path(), 3);
    serving.prefill(&[vec![1, 2]]).unwrap();
    serving.save_state(&file).unwrap();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&broken, &whole[..whole.len() - 1]).unwrap();

    let mut other = open(other.path(), 3);
    other.prefill(&[vec![5, 6, 1]]).unwrap();
    let before = logits(&mut other);
    for path in [&file, &broken, &dir.path().join("none")] {
        let message = other.load_state(path).unwrap_err().to_string();
        assert!(message.starts_with("state ") && message.contains("(hint: "), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    assert_eq!((logits(&mut other), other.seen()), (before, 3));
}

#[test]
fn a_state_of_another_model_of_the_same_shape_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let [one, same, other] = ["one", "same", "other"].map(|name| home.path().join(name));
    for (dir, digest) in [(&one, "00"), (&same, "00"), (&other, "01")] {
        std::fs::create_dir(dir).unwrap();
        bundle_of(dir, LINEAR, digest);
    }
    let file = home.path().join("state");
    let mut serving = open(&one, 3);
    serving.prefill(&[vec![1, 2]]).unwrap();
    serving.save_state(&file).unwrap();
    let before = logits(&mut serving);

    let mut other = open(&other, 3);
    other.prefill(&[vec![5, 6, 1]]).unwrap();
    let kept = logits(&mut other);
    let message = other.load_state(&file).unwrap_err().to_string();
    assert_eq!(
        message.replace(&home.path().display().to_string(), "DIR"),
        "state DIR/state: the model of bundle `one` wrote it, and `DIR/other` holds another (hint: `dijiang generate \
         DIR/other --prompt TEXT --save-state DIR/state` writes one of this model)"
    );
    assert_eq!((logits(&mut other), other.seen()), (kept, 3));
    // A copy of the bundle holds the same model, whatever it is called.
    let mut same = open(&same, 3);
    same.load_state(&file).unwrap();
    assert_eq!(logits(&mut same), before);
}

/// What an earlier version wrote is the same file without its metadata.
#[test]
fn a_state_of_an_earlier_version_opens_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    bundle(dir.path(), LINEAR);
    let file = dir.path().join("state");
    let mut serving = open(dir.path(), 3);
    serving.prefill(&[vec![1, 2]]).unwrap();
    serving.save_state(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let old = safetensors::serialize(whole.tensors(), None).unwrap();
    assert!(old.len() < bytes.len());
    std::fs::write(&file, old).unwrap();
    let mut other = open(dir.path(), 3);
    other.load_state(&file).unwrap();
    assert_eq!(logits(&mut other), logits(&mut serving));
    // Written anew, it says whose it is.
    other.save_state(&file).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

/// Bundles of earlier versions name no digests: their weights are read.
#[test]
fn bundles_without_digests_are_told_apart_by_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    bundle(dir.path(), LINEAR);
    let manifest = dir.path().join("dijiang.json");
    let text = std::fs::read_to_string(&manifest)
        .unwrap()
        .replace(r#", "digests": {"header": "00", "tensors": {"w": "00"}}"#, "");
    std::fs::write(&manifest, text).unwrap();
    let (file, weights) = (dir.path().join("state"), dir.path().join("model.safetensors"));
    let write = |text: &str| {
        let view = TensorView::new(Dtype::U8, vec![3], text.as_bytes()).unwrap();
        std::fs::write(&weights, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
    };
    write("one");
    let mut serving = open(dir.path(), 3);
    serving.prefill(&[vec![1, 2]]).unwrap();
    serving.save_state(&file).unwrap();
    open(dir.path(), 3).load_state(&file).unwrap();
    write("two");
    assert!(open(dir.path(), 3).load_state(&file).is_err());
}

#[test]
fn what_is_no_bundle_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = Serving::open(dir.path(), &ServingOptions::default()).unwrap_err().to_string();
    assert!(message.contains("dijiang.json") && message.contains("`dijiang convert "), "{message}");
}
