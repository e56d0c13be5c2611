//! What a bundle is, whether it still is what was written, and how it differs from another: the same input gives the
//! same bytes, and no byte changes unnoticed.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use crate::support::home::Home;
use crate::support::schema;
use dijiang_format::seal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn fixture(name: &str) -> String {
    format!("{}/../fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// With a bundle called X.
fn converted(fixture_name: &str, options: &str) -> Home {
    let home = Home::empty();
    let call = format!("convert {} -o X --no-verify {options}", fixture(fixture_name));
    expect(0, &home.run(&call));
    home
}

/// What was printed, by a run that ended with that code.
fn expect(code: i32, output: &Output) -> String {
    let told = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
    assert_eq!(output.status.code(), Some(code), "{told}");
    told
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Every file of a bundle with its mode.
fn files(bundle: &Path) -> BTreeMap<String, (Vec<u8>, u32)> {
    let entries = std::fs::read_dir(bundle).expect("a directory").map(|e| e.expect("an entry"));
    let one = |entry: std::fs::DirEntry| {
        let mode = entry.metadata().expect("a file").permissions().mode() & 0o777;
        let name = entry.file_name().into_string().expect("UTF-8");
        (name, (std::fs::read(entry.path()).expect("it is there"), mode))
    };
    entries.map(one).collect()
}

#[test]
fn places_threads_and_umasks_change_no_byte() {
    let home = Home::empty();
    let mut all = Vec::new();
    for (place, threads, umask) in
        [("a", "1", "022"), ("b/deep", "2", "022"), ("c", "1", "077"), ("d", "2", "077")]
    {
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &script,
            env!("CARGO_BIN_EXE_dijiang"),
            "convert",
            &fixture("shakespeare"),
            "-o",
            place,
        ]);
        command.args(["--no-verify", "--checksums"]).env("RAYON_NUM_THREADS", threads);
        expect(0, &command.current_dir(home.0.path()).output().expect("it starts"));
        let mask = u32::from_str_radix(umask, 8).expect("a number");
        let directory = home.path(place).metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!(directory, 0o777 & !mask, "{place}");
        let found = files(&home.path(place));
        assert!(found.len() > 8, "{:?}", found.keys());
        for (name, (_, mode)) in &found {
            assert_eq!(*mode, 0o666 & !mask, "{place}/{name}");
        }
        all.push(found.into_iter().map(|(name, (bytes, _))| (name, bytes)).collect::<BTreeMap<_, _>>());
    }
    for other in &all[1..] {
        let differing: Vec<&String> =
            all[0].keys().filter(|name| all[0].get(*name) != other.get(*name)).collect();
        assert_eq!((differing, other.len()), (Vec::new(), all[0].len()));
    }
}

#[test]
fn every_input_and_output_has_the_digest_of_its_bytes() {
    let home = Home::empty();
    std::fs::create_dir(home.path("in")).expect("it is made");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(Path::new(&fixture("shakespeare")).join(name), home.path("in").join(name))
            .expect("a copy");
    }
    expect(0, &home.run("convert in -o X --no-verify --link --checksums"));
    let sha256 = |path: &Path| {
        let output = Command::new("sha256sum").arg(path).output().expect("it starts");
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
    };
    let manifest = std::fs::read(home.path("X/dijiang.json")).expect("it is there");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    schema::check_value("dijiang", &manifest);
    let told = |list: &Value, directory: &Path| {
        let list = list.as_array().expect("a list").clone();
        for file in &list {
            let path = directory.join(file["name"].as_str().expect("a name"));
            assert_eq!(file["sha256"].as_str(), Some(sha256(&path).as_str()), "{}", path.display());
            assert_eq!(file["bytes"].as_u64(), path.metadata().ok().map(|file| file.len()));
        }
        list.iter().filter_map(|file| file["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let inputs = told(&manifest["source"]["files"], &home.path("in"));
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(inputs.contains(&name.to_owned()), "{inputs:?}");
    }
    let outputs = told(&manifest["files"], &home.path("X"));
    for name in ["model.onnx", "model.safetensors", "source-model.safetensors", "tokenizer.json"] {
        assert!(outputs.contains(&name.to_owned()), "{outputs:?}");
    }
    let sums = || {
        let mut command = Command::new("sha256sum");
        command.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(home.path("X"));
        command.output().expect("it starts").status.success()
    };
    assert!(sums());
    expect(0, &home.run("verify X --digests"));
    let path = home.path("X/config.json");
    std::fs::write(path, "{}").expect("it is written");
    assert!(!sums());
}

/// Runs with the file changed, and puts it back.
fn with_change(home: &Home, name: &str, change: impl FnOnce(&mut Vec<u8>), run: impl FnOnce()) {
    let path = home.path("X").join(name);
    let whole = std::fs::read(&path).expect("it is there");
    let mut bytes = whole.clone();
    change(&mut bytes);
    std::fs::write(&path, bytes).expect("it is written");
    run();
    std::fs::write(&path, whole).expect("it is written");
}

const GENERATE: &str = "generate X --prompt ROMEO: -n 2 --runtime tract";

#[test]
fn what_was_cut_or_edited_by_a_byte_is_refused_before_anything_is_served() {
    let home = converted("shakespeare", "");
    std::fs::write(home.path("text.txt"), "ROMEO: to be or not to be, that is the question. ".repeat(9))
        .expect("it is written");
    expect(0, &home.run(&format!("{GENERATE} --save-state s")));
    let refused = |call: &str, name: &str| {
        let output = home.run(call);
        let told = expect(2, &output);
        assert!(
            output.stdout.is_empty() && told.starts_with("error: ") && told.contains(name),
            "{call}: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    };
    let served = |name: &str| {
        refused(GENERATE, name);
        refused("eval X --perplexity text.txt --context 8", name);
    };
    for name in ["dijiang.json", "model.onnx", "chunked.onnx", "tokenizer.json", "model.safetensors"] {
        with_change(&home, name, |bytes| _ = bytes.pop(), || served(name));
        // The head of a weight file is its header.
        with_change(&home, name, |bytes| bytes[100] ^= 1, || served(name));
    }
    for name in ["dijiang.json", "model.onnx", "chunked.onnx", "tokenizer.json"] {
        let half = |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        };
        with_change(&home, name, half, || served(name));
    }
    let goes_on = "generate X --load-state s -n 2 --runtime tract";
    expect(0, &home.run(goes_on));
    for change in
        [|bytes: &mut Vec<u8>| _ = bytes.pop(), |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 1]
    {
        with_change(&home, "../s", change, || refused(goes_on, "state s: "));
    }
    expect(0, &home.run(GENERATE));
    let element = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 1;
    with_change(&home, "model.safetensors", element, || {
        served("model.safetensors");
        let told = expect(1, &home.run("verify X --digests"));
        assert!(told.contains("  model.safetensors differs: "), "{told}");
        let told = expect(2, &home.run("quantize X -o Y --no-verify"));
        assert!(told.contains("X/model.safetensors: its bytes are not those that were written"), "{told}");
    });
    expect(0, &home.run("quantize X -o Y --no-verify"));
}

/// What tells of a bundle, measures it, or makes another of it: none of it would say that a byte had changed.
#[test]
fn nothing_is_told_or_made_of_what_was_edited() {
    let home = converted("shakespeare", "--dtype f32");
    let text = fixture("shakespeare") + "/valid.txt";
    let train = format!("--data {text} --steps 1 --batch 2 --context 16 --validation-windows 1 --threads 1");
    std::fs::copy(home.path("X/model.safetensors"), home.path("w.safetensors")).expect("a copy");
    expect(0, &home.run(&format!("convert {} -o other --no-verify --dtype f32", fixture("shakespeare"))));
    let mut readers = vec!["info X".to_owned()];
    let mut makers = vec!["quantize X -o Y --no-verify".to_owned()];
    let mut trainers = Vec::new();
    makers.extend(["export-torch X", "import-weights X w.safetensors"].map(str::to_owned));
    if dijiang_runtime::OrtRuntime::new().is_ok() || std::env::var_os("DIJIANG_REQUIRE_ORT").is_some() {
        readers.push("bench X --context 8 --runs 1 --steps 1".to_owned());
        trainers.extend(["finetune X", "calibrate X"].map(|call| format!("{call} {train}")));
        trainers.push(format!("finetune other {train} --teacher X"));
    } else {
        eprintln!("skipped: training and bench, as ONNX Runtime was not found");
    }
    let before = files(&home.path("X"));
    let refused = |name: &str, calls: &[&[String]]| {
        for call in calls.iter().copied().flatten() {
            let output = home.run(call);
            let told = expect(2, &output);
            let head = format!("error: X/{name}: ");
            assert!(output.stdout.is_empty() && told.starts_with(&head), "{call}: {told}");
            assert!(told.lines().count() == 1 && told.contains("those that were written"), "{call}: {told}");
        }
    };
    let last = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 1;
    with_change(&home, "softmax.onnx", last, || refused("softmax.onnx", &[&readers, &makers, &trainers]));
    for name in ["model.onnx", "tokenizer.json"] {
        with_change(&home, name, last, || refused(name, &[&readers, &makers]));
    }
    with_change(&home, "config.json", last, || refused("config.json", &[&makers, &trainers]));
    // The other two neither read the elements nor give them new digests.
    with_change(&home, "model.safetensors", last, || {
        refused("model.safetensors", &[&makers[..1], &trainers]);
    });
    assert_eq!(files(&home.path("X")), before);
    // A proof says it in a row.
    for name in ["model.onnx", "tokenizer.json", "config.json"] {
        with_change(&home, name, last, || {
            let told = expect(1, &home.run("verify X --runtime tract"));
            let row = format!("  files that are not those dijiang.json names: {name} ");
            assert!(told.lines().any(|line| line.starts_with(&row) && line.contains("FAILED")), "{told}");
        });
    }
}

#[test]
fn digests_name_every_file_that_differs_is_missing_or_is_not_listed() {
    let home = converted("shakespeare", "--checksums");
    let told = expect(0, &home.run("verify X --digests"));
    let all = files(&home.path("X"));
    assert_eq!(told, format!("files: {} as written\n", all.len() - 1));
    for name in all.keys().filter(|name| *name != "dijiang.json") {
        let last = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("a byte") ^= 1;
        for change in [last, |bytes: &mut Vec<u8>| _ = bytes.pop()] {
            with_change(&home, name, change, || {
                let told = expect(1, &home.run("verify X --digests"));
                assert!(told.starts_with(&format!("  {name} differs: ")), "{told}");
                assert_eq!(told.lines().count(), 2, "{told}");
            });
        }
        if name == "SHA256SUMS" {
            continue;
        }
        std::fs::rename(home.path("X").join(name), home.path("aside")).expect("it is set aside");
        let told = expect(1, &home.run("verify X --digests"));
        assert!(told.starts_with(&format!("  {name} is missing\n")), "{told}");
        let found = object(&home.run("verify X --digests --json"));
        assert_eq!(found["ok"], false);
        std::fs::rename(home.path("aside"), home.path("X").join(name)).expect("it is put back");
    }
    // Another version may have written the same manifest otherwise.
    let path = home.path("X/dijiang.json");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let sums = std::fs::read_to_string(home.path("X/SHA256SUMS")).expect("it is there");
    let seal = serde_json::from_str::<Value>(&text).expect("JSON")["manifest_sha256"]
        .as_str()
        .expect("a seal")
        .to_owned();
    let mut other = (text.replace(&seal, seal::UNSEALED) + "\n").into_bytes();
    seal::seal(&mut other, "manifest_sha256");
    let other = String::from_utf8(other).expect("text");
    let digest = |text: &str| dijiang_format::digest::digest(text.as_bytes());
    std::fs::write(&path, &other).expect("it is written");
    std::fs::write(home.path("X/SHA256SUMS"), sums.replace(&digest(&text), &digest(&other)))
        .expect("it is written");
    expect(0, &home.run("verify X --digests"));
    std::fs::write(&path, text).expect("it is written");
    std::fs::write(home.path("X/SHA256SUMS"), sums).expect("it is written");
    std::fs::write(home.path("X/notes.txt"), "mine").expect("it is written");
    let told = expect(1, &home.run("verify X --digests"));
    assert!(told.starts_with("  notes.txt is not listed in dijiang.json\n"), "{told}");
    std::fs::remove_file(home.path("X/notes.txt")).expect("it was there");
    // What a killed run left is told, and is no fault of the bundle.
    let mut run = std::process::Command::new("true").spawn().expect("it starts");
    run.wait().expect("it ends");
    let left = home.path("X").join(format!(".dijiang.json.tmp-{}", run.id()));
    std::fs::DirBuilder::new().mode(0o700).create(&left).expect("it is made");
    let told = expect(0, &home.run("verify X --digests"));
    assert!(told.contains(" was left by a killed run, and goes with the next one\n"), "{told}");
    assert!(told.ends_with(", 1 left by a killed run\n"), "{told}");
    std::fs::remove_dir(&left).expect("it is there");
    // What training runs keep is no part of the model.
    std::fs::create_dir(home.path("X/train")).expect("it is made");
    expect(0, &home.run("verify X --digests"));
    let told = expect(2, &home.run("verify nowhere --digests"));
    assert!(told.starts_with("error: nowhere: "), "{told}");
}

#[test]
fn a_bundle_of_an_earlier_version_opens_and_says_that_it_has_no_digests() {
    let home = Home::empty();
    let old = fixture("bundle-0.1.0");
    // Where nothing could be compared, nothing holds.
    let refused = home.run(&format!("verify {old} --digests --report json=report.json"));
    let told = expect(2, &refused);
    let reason =
        format!("error: {old}: this bundle records no digests, and nothing could be compared (hint: ");
    assert!(told.starts_with(&reason), "{told}");
    let report = std::fs::read_to_string(home.path("report.json")).expect("a report");
    assert!(report.contains("\"error\""), "{report}");
    let told = expect(0, &home.run(&format!("info {old}")));
    assert!(told.contains("dijiang 0.1.0") && told.contains("1 linear"), "{told}");
    expect(0, &home.run(&format!("diff {old} {old}")));
}

/// The fixture's weights with another number, under the bundle's names.
fn other_weights(home: &Home) {
    let mut weights = std::fs::read(home.path("X/model.safetensors")).expect("it is there");
    let end = weights.len();
    weights[end - 4..].copy_from_slice(&3.5_f32.to_le_bytes());
    std::fs::write(home.path("w.safetensors"), weights).expect("it is written");
}

#[test]
fn what_training_changed_is_told_and_the_checksums_follow() {
    let home = converted("shakespeare", "--checksums --dtype f32");
    let before = object(&home.run("info X --json"));
    assert_eq!((&before["training"], &before["recipe"]), (&Value::Null, &Value::from("adaptive")));
    assert_eq!(before["linear"].as_array().map(Vec::len), Some(5));
    let size: u64 = files(&home.path("X")).values().map(|(bytes, _)| bytes.len() as u64).sum();
    assert_eq!(before["bytes"].as_u64(), Some(size));
    expect(0, &home.run(&format!("convert {} -o same --no-verify --dtype f32", fixture("shakespeare"))));
    assert_eq!(expect(0, &home.run("diff X same")), "the same\n");
    other_weights(&home);
    expect(0, &home.run("import-weights X w.safetensors"));
    let after = object(&home.run("info X --json"));
    let tensors = after["training"]["tensors"].as_array().expect("a list").clone();
    assert_eq!(
        (tensors.len(), &after["training"]["runs"][0]["command"]),
        (1, &Value::from("import-weights"))
    );
    expect(0, &home.run("verify X --digests"));
    expect(0, &home.run("export-torch X"));
    expect(0, &home.run("verify X --digests"));
    let found = home.run("diff same X --json");
    expect(1, &found);
    let found = object(&found);
    let names = |key: &str, of: &str| -> Vec<Value> {
        found[key].as_array().expect("a list").iter().map(|one| one[of].clone()).collect()
    };
    assert_eq!(names("files", "name"), ["config.json", "model.safetensors", "modeling_dijiang.py"]);
    assert_eq!((names("weights", "name"), found["graphs"].as_array().map(Vec::len)), (tensors, Some(0)));
    assert!(names("weights", "largest")[0].as_f64() > Some(0.0), "{found}");
    assert!(names("manifest", "place").contains(&Value::from("training.runs[0].command")), "{found}");
    assert!(found["numerics"].is_object() || found["skipped"].is_string(), "{found}");
}

#[test]
fn a_difference_of_graphs_is_told_by_operators_and_names() {
    let home = converted("llama", "--dtype f32");
    expect(
        0,
        &home.run(&format!("convert {} -o Y --no-verify --dtype f32 --recipe paper", fixture("llama"))),
    );
    let told = expect(1, &home.run("diff X Y"));
    assert!(told.contains("recipe.name: \"adaptive\" -> \"paper\"\n"), "{told}");
    assert!(told.contains("model.onnx: "), "{told}");
    let found = object(&home.run("diff X Y --json"));
    let graphs = found["graphs"].as_array().expect("a list");
    let model = graphs.iter().find(|graph| graph["file"] == "model.onnx").expect("the served graph");
    let counts = model["operators"].as_object().expect("counts");
    assert!(!counts.is_empty() && counts.values().all(|both| both[0] != both[1]), "{counts:?}");
    assert!(!model["only_a"].as_array().expect("nodes").is_empty(), "{model}");
    // The unconverted model is the same.
    assert!(!graphs.iter().any(|graph| graph["file"] == "softmax.onnx"), "{found}");
    let told = expect(2, &home.run("diff X nowhere"));
    assert!(told.starts_with("error: nowhere: "), "{told}");
}
