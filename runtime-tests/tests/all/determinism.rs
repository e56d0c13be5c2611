//! The same source, recipe and seed give the same bytes; what is there is replaced only when asked.

use crate::support::{FIXTURES, convert_to, options, recipe};
use dijiang::convert::{ConvertError, ConvertOptions, convert};
use dijiang::recipes::PRESETS;
use dijiang::report::progress::Silent;
use dijiang::verify::VerifyOptions;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every file below a directory, by its path in there.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).expect("it lies below").to_owned();
                found.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// The names of the files that differ, or that only one side has.
fn differing(a: &Path, b: &Path) -> Vec<PathBuf> {
    let (a, b) = (files(a), files(b));
    let names = a.keys().chain(b.keys());
    let mut differing: Vec<PathBuf> = names.filter(|name| a.get(*name) != b.get(*name)).cloned().collect();
    differing.sort();
    differing.dedup();
    differing
}

/// What [`differing`] finds where nothing does.
const NONE: [PathBuf; 0] = [];

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// The files of a checkpoint in another place, as old as the copy.
fn copied(source: &Path, target: &Path) {
    for (name, bytes) in files(source) {
        std::fs::create_dir_all(target).expect("a directory");
        std::fs::write(target.join(name), bytes).expect("a copy");
    }
}

#[test]
fn every_recipe_gives_the_same_bytes_twice_and_from_another_place() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let elsewhere = home.path().join("a copy of the source");
    copied(&fixture("llama"), &elsewhere);
    for (name, _) in PRESETS {
        let (first, second) = (home.path().join(name), home.path().join("other").join(name));
        convert_to(&fixture("llama"), &first, &options(&recipe(name)));
        convert_to(&elsewhere, &second, &options(&recipe(name)));
        assert!(files(&first).len() > 4, "{name}");
        assert_eq!(differing(&first, &second), NONE, "{name}");
    }
}

#[test]
fn every_target_and_dtype_gives_the_same_bytes_twice() {
    let home = tempfile::tempdir().expect("a temporary directory");
    for target in [Target::Ort, Target::Portable, Target::Onnx27] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let options = ConvertOptions { target, dtype: Some(dtype), ..options(&recipe("adaptive")) };
            let place = |run: &str| home.path().join(format!("{run} {target} {}", dtype.name()));
            convert_to(&fixture("llama"), &place("first"), &options);
            convert_to(&fixture("llama"), &place("second"), &options);
            assert_eq!(differing(&place("first"), &place("second")), NONE, "{target} {dtype:?}");
        }
    }
}

#[test]
fn a_verified_bundle_differs_from_an_unverified_one_in_its_manifest_alone() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| home.path().join(name);
    let plain = options(&recipe("adaptive"));
    let verified = ConvertOptions { verify: Some(VerifyOptions::default()), ..plain.clone() };
    for name in ["first", "second"] {
        assert!(convert_to(&fixture("llama"), &place(name), &verified).written);
    }
    convert_to(&fixture("llama"), &place("plain"), &plain);
    assert_eq!(differing(&place("first"), &place("second")), NONE);
    assert_eq!(differing(&place("first"), &place("plain")), [Path::new(files::MANIFEST)]);
}

#[test]
fn another_seed_gives_other_weights() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| home.path().join(name);
    let seeded = |seed| ConvertOptions { seed, ..options(&recipe("performer")) };
    convert_to(&fixture("llama"), &place("0"), &seeded(0));
    convert_to(&fixture("llama"), &place("1"), &seeded(1));
    assert_eq!(
        differing(&place("0"), &place("1")),
        [Path::new(files::MANIFEST), Path::new(files::WEIGHTS)],
        "the graphs hold no weights"
    );
}

#[test]
fn an_old_bundle_is_replaced_with_force_only() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let (old, new, copy) = (home.path().join("bundle"), home.path().join("new"), home.path().join("copy"));
    convert_to(&fixture("llama"), &old, &options(&recipe("paper")));
    convert_to(&fixture("llama"), &copy, &options(&recipe("paper")));
    convert_to(&fixture("neox"), &new, &options(&recipe("adaptive")));

    let refused = convert(&fixture("neox"), &old, &options(&recipe("adaptive")), &mut Silent);
    assert!(matches!(refused, Err(ConvertError::Bundle(_))), "{refused:?}");
    assert_eq!(differing(&old, &copy), NONE);

    let force = ConvertOptions { force: true, ..options(&recipe("adaptive")) };
    convert_to(&fixture("neox"), &old, &force);
    assert_eq!(differing(&old, &new), NONE);
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("a directory").collect();
    assert_eq!(left.len(), 3, "{left:?}");
}
