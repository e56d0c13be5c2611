//! Files that are written and read: nothing of others is touched, nothing is left behind, and what is missing or cut
//! short is named.

use crate::support::home::Home;
use crate::support::sealed::sealed;
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exits as expected, or all is told.
fn expect(code: i32, output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    out + &err
}

fn fixture(name: &str) -> String {
    format!("{FIXTURES}/{name}")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_of_somebody_else_stays() {
    let home = Home::empty();
    std::fs::create_dir(home.path(".X.tmp-notes")).expect("it is made");
    std::fs::create_dir(home.path(".X.tmp-4242")).expect("it is made");
    std::fs::write(home.path(".X.tmp-notes/thesis.tex"), "thesis").expect("it is written");
    for force in ["", " --force"] {
        expect(0, &home.run(&format!("convert {} -o X --no-verify{force}", fixture("llama"))));
    }
    assert_eq!(names(home.0.path()), [".X.tmp-4242", ".X.tmp-notes", "X"]);
    assert_eq!(names(&home.path(".X.tmp-notes")), ["thesis.tex"]);
}

/// Whatever starts the tests may ignore signals, which a child would then too.
fn begin(home: &Home, arguments: &str) -> Child {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM,HUP", env!("CARGO_BIN_EXE_dijiang")]);
    command.current_dir(home.0.path()).args(arguments.split_whitespace()).env_remove("DIJIANG_LOG");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Sends a signal once the child writes beside `X`.
fn signalled(home: &Home, signal: &str) -> Output {
    signalled_in(home, "", signal)
}

/// The same with `X` in a directory.
fn signalled_in(home: &Home, directory: &str, signal: &str) -> Output {
    let child = begin(home, &format!("convert {} -o {directory}X --force", fixture("llama")));
    let until = Instant::now() + Duration::from_mins(1);
    let beside = home.path(directory);
    let is_there = || beside.is_dir() && names(&beside).iter().any(|name| name.starts_with(".X.tmp-"));
    while !is_there() {
        assert!(Instant::now() < until, "it never began");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status();
    assert!(sent.expect("it runs").success());
    child.wait_with_output().expect("it ends")
}

#[test]
fn what_a_signal_ends_leaves_nothing() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let home = Home::empty();
        let told = expect(code, &signalled(&home, signal));
        assert_eq!(told, "interrupted: X was not written\n");
        assert_eq!(names(home.0.path()), [""; 0], "{signal}");
        std::fs::create_dir(home.path("old")).expect("it is made");
        let told = expect(code, &signalled_in(&home, "old/new/deep/", signal));
        assert_eq!(told, "interrupted: old/new/deep/X was not written\n");
        assert_eq!((names(home.0.path()), names(&home.path("old"))), (vec!["old".to_owned()], Vec::new()));
    }
    let home = Home::empty();
    expect(0, &home.run(&format!("convert {} -o X --no-verify", fixture("llama"))));
    let before = std::fs::read(home.path("X/dijiang.json")).expect("it is there");
    let told = expect(130, &signalled(&home, "INT"));
    assert_eq!(told, "interrupted: X is as it was\n");
    assert_eq!(names(home.0.path()), ["X"]);
    assert_eq!(std::fs::read(home.path("X/dijiang.json")).expect("it is there"), before);
}

#[test]
fn what_a_kill_leaves_goes_with_the_next_run() {
    let home = Home::empty();
    let killed = signalled(&home, "KILL");
    assert_eq!(killed.status.code(), None);
    assert!(!names(home.0.path()).is_empty(), "a kill leaves something");
    expect(0, &home.run(&format!("convert {} -o X --no-verify", fixture("llama"))));
    assert_eq!(names(home.0.path()), ["X"]);
}

#[test]
fn a_file_that_may_not_grow_is_an_error() {
    let home = Home::empty();
    for how in ["--no-verify", "--stop-after 3"] {
        let program = env!("CARGO_BIN_EXE_dijiang");
        let limited = format!("ulimit -f 8; '{program}' convert '{}' -o X {how}", fixture("shakespeare"));
        let output = Command::new("bash").arg("-c").arg(limited).current_dir(home.0.path()).output();
        let told = expect(2, &output.expect("it runs"));
        assert_eq!(
            told,
            "error: X/model.safetensors: File too large (os error 27) (hint: make room, or name another disk)\n",
            "{how}"
        );
        assert_eq!(names(home.0.path()), [""; 0], "{how}");
    }
}

#[test]
fn arguments_that_are_not_utf8_are_refused_before_anything_is_written() {
    let home = Home::empty();
    let (name, source) = (OsStr::from_bytes(b"J\xff"), fixture("llama"));
    let commands: [&[&OsStr]; 4] = [
        &["convert".as_ref(), source.as_ref(), "-o".as_ref(), name, "--json".as_ref()],
        &["verify".as_ref(), name, "--runtime".as_ref(), "tract".as_ref()],
        &["inspect".as_ref(), name],
        &["generate".as_ref(), "B".as_ref(), "--prompt".as_ref(), name],
    ];
    for arguments in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        let output = command.current_dir(home.0.path()).args(arguments).output().expect("it runs");
        let told = expect(2, &output);
        assert_eq!(
            told,
            "error: J\u{fffd}: this argument is not UTF-8, and cannot be told in JSON or in an ONNX file (hint: rename the file, or name it through a link)\n"
        );
        assert_eq!(names(home.0.path()), [""; 0]);
    }
}

#[test]
fn a_pipe_takes_a_picture_and_stays_a_pipe() {
    let home = Home::empty();
    let line = r#"{"step":1,"tokens":8,"loss":1.5,"grad_norm":0.5,"lr":0.1,"tokens_per_second":9.0}"#;
    std::fs::write(home.path("m.jsonl"), format!("{line}\n")).expect("it is written");
    assert!(Command::new("mkfifo").arg(home.path("pipe")).status().expect("it runs").success());
    let reader = std::thread::spawn({
        let pipe = home.path("pipe");
        move || std::fs::read(pipe).expect("it is read")
    });
    expect(0, &home.run("plot m.jsonl -o pipe"));
    assert!(reader.join().expect("it ends").starts_with(b"<svg"));
    expect(0, &home.run("plot m.jsonl -o /dev/null"));
    expect(0, &home.run("plot m.jsonl -o p.svg"));
    let told = expect(2, &home.run("plot m.jsonl -o ."));
    assert_eq!(told, "error: .: it is a directory, expected a file\n");
    assert_eq!(names(home.0.path()), ["m.jsonl", "p.svg", "pipe"]);
}

/// Copies a checkpoint, called `in`.
fn copy_fixture(home: &Home, name: &str) {
    std::fs::create_dir(home.path("in")).expect("it is made");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{FIXTURES}/{name}/{file}"), home.path("in").join(file)).expect("a copy");
    }
}

/// A checkpoint whose weights are cut once it is open: the first file that is written tells when.
fn cut_while_converted(options: &str) -> (Output, Vec<String>) {
    let home = Home::empty();
    copy_fixture(&home, "shakespeare");
    let weights = home.path("in/model.safetensors");
    let child = begin(&home, &format!("convert in -o X {options}"));
    let until = Instant::now() + Duration::from_mins(1);
    while !names(home.0.path()).iter().any(|name| name.starts_with(".X.tmp-")) {
        assert!(Instant::now() < until, "it never began");
    }
    std::fs::File::options().write(true).open(weights).and_then(|f| f.set_len(1 << 16)).expect("it is cut");
    let output = child.wait_with_output().expect("it ends");
    (output, names(home.0.path()))
}

#[test]
fn a_source_that_is_cut_short_while_it_is_read_is_named() {
    for options in ["--no-verify", "--no-verify --dtype f32", "--no-verify --weights int4"] {
        let mut named = 0;
        for _ in 0..4 {
            let (output, left) = cut_while_converted(options);
            let told = text(&output.stderr);
            match output.status.code() {
                // It was faster.
                Some(0) => {}
                Some(2) => {
                    named += 1;
                    assert!(
                        told.starts_with("error: in/model.safetensors: it had ")
                            && told.contains(" bytes when it was opened, and has 65536 now (hint: "),
                        "{told}"
                    );
                    assert_eq!(left, ["in"], "{options}");
                }
                other => panic!("{options}: {other:?} {:?} {told}", output.status),
            }
        }
        assert!(named > 0, "{options}: it was always faster than the cut");
    }
}

/// Each file that a bundle lists, deleted in turn.
#[test]
fn verify_fails_by_name_for_every_file_that_is_missing() {
    let home = Home::empty();
    copy_fixture(&home, "llama");
    expect(0, &home.run("convert in -o X --no-verify --link"));
    let manifest = std::fs::read(home.path("X/dijiang.json")).expect("it is there");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let files: Vec<&str> = manifest["files"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|file| file["name"].as_str())
        .collect();
    let there: Vec<String> =
        names(&home.path("X")).into_iter().filter(|name| name != "dijiang.json").collect();
    assert_eq!(files, there, "it lists all that is there");
    assert!(files.contains(&"decode.onnx") && files.contains(&"source-model.safetensors"), "{files:?}");
    for file in files {
        std::fs::rename(home.path("X").join(file), home.path("aside")).expect("it is set aside");
        let told = expect(1, &home.run("verify X --runtime tract"));
        let row = told.lines().find(|line| line.contains("missing files"));
        assert!(
            row.is_some_and(|row| row.starts_with(&format!("  missing files: {file} "))),
            "{file}: {told}"
        );
        assert!(row.is_some_and(|row| row.ends_with("1  FAILED   not at most 0")), "{file}: {told}");
        assert!(told.contains(&format!("failed (missing files: {file}")), "{file}: {told}");
        std::fs::rename(home.path("aside"), home.path("X").join(file)).expect("it is put back");
    }
    expect(0, &home.run("verify X --runtime tract"));
}

fn edit(home: &Home, change: impl FnOnce(&mut Value)) {
    let path = home.path("X/dijiang.json");
    let mut manifest: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("it is there")).expect("JSON");
    change(&mut manifest);
    std::fs::write(path, sealed(manifest)).expect("it is written");
}

#[test]
fn verify_says_what_it_did_not_check() {
    let home = Home::empty();
    expect(0, &home.run(&format!("convert {} -o X --no-verify --dtype bf16", fixture("llama"))));
    let told = expect(0, &home.run("verify X --runtime tract"));
    let summary = told.lines().last().expect("a line");
    assert!(summary.starts_with("all ") && summary.ends_with(" checks held, 2 skipped"), "{told}");
    let skipped = told.lines().rev().nth(1).expect("a line");
    assert_eq!(
        skipped,
        "  2 checks skipped: everything in ONNX Runtime (only tract was asked for); everything in tract (it reads no bf16)"
    );
    let found = expect(0, &home.run("verify X --runtime tract --json"));
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let rows = found["checks"].as_array().expect("rows");
    let skipped: Vec<&Value> = rows.iter().filter(|row| row["status"] == "skipped").collect();
    assert_eq!(skipped.len(), 2);
    for row in &skipped {
        assert!(row["ok"].is_null() && row["measured"].is_null() && row["reason"].is_string(), "{row}");
    }
    // The manifest names the states that a runner must carry.
    edit(&home, |manifest| manifest["state"] = Value::Array(Vec::new()));
    let told = expect(1, &home.run("verify X --runtime tract"));
    assert!(told.contains("states in which dijiang.json and model.onnx differ"), "{told}");
    assert!(told.contains("past_key_values.0."), "{told}");
}

/// Without a runtime the f64 interpreter is compared with the reference.
#[test]
fn a_wrong_reference_is_found_without_a_runtime() {
    let home = Home::empty();
    expect(0, &home.run(&format!("convert {} -o X --no-verify --dtype bf16", fixture("llama"))));
    let reference = fixture("llama/reference.safetensors");
    let told = expect(0, &home.run(&format!("verify X --runtime tract --reference {reference}")));
    assert!(told.contains("f64 interpreter: softmax = reference"), "{told}");
    let mut bytes = std::fs::read(reference).expect("it is there");
    let end = bytes.len();
    bytes[end - 4000..].fill(0x40);
    std::fs::write(home.path("wrong.safetensors"), bytes).expect("it is written");
    let told = expect(1, &home.run("verify X --runtime tract --reference wrong.safetensors"));
    assert!(
        told.contains("1 of ") && told.contains("checks failed (f64 interpreter: softmax = reference"),
        "{told}"
    );
}

#[test]
fn weights_other_than_those_that_were_trained_are_found() {
    let home = Home::empty();
    expect(0, &home.run(&format!("convert {} -o X --no-verify --dtype f32", fixture("llama"))));
    std::fs::copy(home.path("X/model.safetensors"), home.path("w.safetensors")).expect("a copy");
    expect(0, &home.run("import-weights X w.safetensors"));
    expect(0, &home.run("verify X --runtime tract"));
    let path = home.path("X/model.safetensors");
    let mut bytes = std::fs::read(&path).expect("it is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).expect("it is written");
    let told = expect(1, &home.run("verify X --runtime tract"));
    let row = told.lines().find(|line| line.contains("weights that are not those dijiang.json names"));
    assert!(
        row.is_some_and(
            |row| row.contains("names: model.norm.weight ") && row.ends_with("1  FAILED   not at most 0")
        ),
        "{told}"
    );
}
