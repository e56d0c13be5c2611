//! Weight files, indexes and configs made to do harm. Each is refused by the binary with one short line and exit code 2,
//! within 200 MB of memory, and nothing is written. What only looks odd is read, and told in one line.

use crate::support::home::Home;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");
const WEIGHTS: &str = "in/model.safetensors";
const INDEX: &str = "in/model.safetensors.index.json";
/// A shard of the fixture `llama-rope3`.
const SHARD: &str = "model-00001-of-00002.safetensors";
/// Bytes of a line, at most.
const LONGEST: usize = 1300;
const NAME_BYTES: usize = 64 << 10;

/// With a checkpoint called `in`.
fn with(fixture: &str) -> Home {
    let home = Home::empty();
    std::fs::create_dir(home.path("in")).expect("it is made");
    for entry in std::fs::read_dir(Path::new(FIXTURES).join(fixture)).expect("the fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), home.path("in").join(entry.file_name())).expect("a copy");
    }
    home
}

/// The limit is on memory of the process's own.
fn convert(home: &Home) -> Output {
    let script = r#"ulimit -d 204800 && exec timeout 20 "$0" convert in -o X --no-verify"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_dijiang")]).current_dir(home.0.path());
    command.stdin(Stdio::null()).output().expect("it runs")
}

/// What is said in so many lines, each of which is short and holds nothing that a terminal obeys.
#[track_caller]
fn said(output: &Output, lines: usize) -> String {
    let told = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(told.lines().count(), lines, "{told:.2000}");
    let is_plain = |c: char| c == '\n' || !(c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'));
    assert!(told.lines().all(|line| line.len() < LONGEST) && told.chars().all(is_plain), "{told:.2000}");
    told
}

#[track_caller]
fn refused(home: &Home, what: &str, expected: &str) {
    let start = Instant::now();
    let output = convert(home);
    assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", start.elapsed());
    let told = said(&output, 1);
    assert_eq!(output.status.code(), Some(2), "{what}: {told}");
    assert!(told.starts_with("error: in") && told.contains(expected), "{what}: {told}");
    let names: Vec<_> = std::fs::read_dir(home.0.path()).expect("it is there").flatten().collect();
    assert_eq!(names.len(), 1, "{what}: {names:?}");
}

/// The header of a weight file, and its elements.
fn parts(home: &Home, file: &str) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(home.path(file)).expect("it is there");
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    (header, bytes[8 + length..].to_vec())
}

fn put(home: &Home, file: &str, header: &str, elements: &[u8]) {
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [length.as_slice(), header.as_bytes(), elements].concat();
    std::fs::write(home.path(file), bytes).expect("it is written");
}

/// Adds tensors of one number.
fn add(home: &Home, file: &str, names: impl Iterator<Item = String>) {
    let (mut header, mut elements) = parts(home, file);
    for name in names {
        let at = elements.len();
        header[name] = json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]});
        elements.extend([0; 4]);
    }
    put(home, file, &header.to_string(), &elements);
}

/// An entry of the tensor that every family ends with.
fn entry(key: &str, value: Value) -> impl Fn(&Home) {
    let key = key.to_owned();
    move |home| {
        let (mut header, elements) = parts(home, WEIGHTS);
        header["model.norm.weight"][key.as_str()] = value.clone();
        put(home, WEIGHTS, &header.to_string(), &elements);
    }
}

fn long_name() -> String {
    "n".repeat(NAME_BYTES)
}

type Change = Box<dyn Fn(&Home)>;

#[test]
fn headers_that_cannot_be_are_refused() {
    let twice = |home: &Home| {
        let (header, elements) = parts(home, WEIGHTS);
        let first = r#"{"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#;
        put(home, WEIGHTS, &header.to_string().replacen('{', first, 1), &elements);
    };
    let deep = |home: &Home| put(home, WEIGHTS, &format!("{{\"a\":{}", "[".repeat(200_000)), b"");
    let endless = |home: &Home| {
        std::fs::write(home.path(WEIGHTS), 99_000_000_u64.to_le_bytes()).expect("it is written");
        let file = std::fs::File::options().write(true).open(home.path(WEIGHTS)).expect("it opens");
        file.set_len(5 << 30).expect("a file with a hole");
    };
    let inside = |home: &Home| add(home, WEIGHTS, std::iter::once(format!("model.{}", long_name())));
    let many = |home: &Home| add(home, WEIGHTS, (0..100_000).map(|i| format!("model.layers.0.mlp.{i}")));
    let control =
        |home: &Home| add(home, WEIGHTS, std::iter::once("model.\u{1b}[31m\n\r\u{2028}".to_owned()));
    let cases: Vec<(&str, Change, &str)> = vec![
        ("a shape that overflows", Box::new(entry("shape", json!([1_u64 << 63, 2]))), "header is broken: "),
        ("a shape of other elements", Box::new(entry("shape", json!([65]))), "header is broken: "),
        ("a negative dim", Box::new(entry("shape", json!([-1]))), "invalid value: integer `-1`"),
        ("a long shape", Box::new(entry("shape", json!(long_name()))), "invalid type: string \"nnn"),
        ("a long type", Box::new(entry("dtype", json!(long_name()))), "unknown variant `nnn"),
        ("offsets that end early", Box::new(entry("data_offsets", json!([8, 0]))), "`model.norm.weight`"),
        (
            "offsets that overflow",
            Box::new(entry("data_offsets", json!([0, u64::MAX]))),
            "`model.norm.weight`",
        ),
        ("offsets of another", Box::new(entry("data_offsets", json!([0, 128]))), "header is broken: "),
        ("a name that is there twice", Box::new(twice), "`model.norm.weight` is there twice"),
        ("deep nesting", Box::new(deep), "recursion limit exceeded"),
        ("a header of a hole", Box::new(endless), "expected value at line 1 column 1"),
        ("a name of 64 KB", Box::new(inside), "1 tensor (`model.nnn"),
        ("100,000 tensors", Box::new(many), "100000 tensors (`model.layers.0.mlp.0`, "),
        ("a name that a terminal obeys", Box::new(control), r"`model.\u{1b}[31m\n\r\u{2028}`"),
    ];
    for (what, change, expected) in cases {
        let home = with("llama");
        change(&home);
        refused(&home, what, expected);
    }
}

#[test]
fn what_lies_outside_the_model_is_told_in_one_short_line() {
    let home = with("llama");
    let odd = [long_name(), "x.\u{1b}[31m\n".to_owned()].into_iter();
    add(&home, WEIGHTS, odd.chain((0..100_000).map(|i| format!("extra.{i}"))));
    let output = convert(&home);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output, 2));
    // The other line is of the tokenizer that the fixture lacks.
    assert!(said(&output, 2).contains("100002 tensors (`extra.0`, `extra.1`, "));
}

fn index(home: &Home, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(home.path(INDEX)).expect("the index");
    let mut index: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut index["weight_map"]);
    std::fs::write(home.path(INDEX), index.to_string()).expect("it is written");
}

#[test]
fn shards_that_are_no_files_beside_the_index_are_refused() {
    let outside = "leaves the directory of the model file; expected the name of a file beside the index";
    let cases = [
        ("../x.safetensors", outside),
        ("/etc/passwd", outside),
        ("../in/model-00001-of-00002.safetensors", outside),
        ("", "shard `` is empty"),
        ("a\0b", "shard `a\\u{0}b` holds a NUL"),
        ("..\\x", "holds a backslash"),
        (".", "shard `.` is missing"),
        ("pipe", "shard `pipe` is missing"),
        ("a\u{1b}[31m\nb", "shard `a\\u{1b}[31m\\nb` is missing"),
    ];
    for (name, expected) in cases {
        let home = with("llama-rope3");
        assert!(Command::new("mkfifo").arg(home.path("in/pipe")).status().expect("it runs").success());
        index(&home, |map| {
            map.as_object_mut().expect("a map").values_mut().for_each(|shard| *shard = json!(name));
        });
        refused(&home, name, expected);
    }
    let home = with("llama-rope3");
    index(&home, |map| map["x"] = json!("s".repeat(1 << 20)));
    // A shard that is named for nothing that it holds comes first.
    refused(&home, "a name of a megabyte", "shard `sss");
}

#[test]
fn an_index_that_is_not_of_its_shards_is_refused() {
    let apart = "index and shards do not belong together";
    let unnamed = format!("which the index does not name there; {apart}");
    let other = |home: &Home| {
        let name = "model.layers.0.self_attn.q_norm.weight".to_owned();
        add(home, &format!("in/{SHARD}"), std::iter::once(name));
    };
    let forgets =
        |home: &Home| index(home, |map| _ = map.as_object_mut().expect("a map").remove("model.norm.weight"));
    let twice = |home: &Home| {
        let text = std::fs::read_to_string(home.path(INDEX)).expect("the index");
        let text = text.replacen("\"weight_map\": {", "\"weight_map\": {\"model.norm.weight\": \"x\", ", 1);
        std::fs::write(home.path(INDEX), text).expect("it is written");
    };
    let many = |home: &Home| {
        index(home, |map| (0..100_000).for_each(|i| map[format!("extra.{i}")] = json!(SHARD)));
    };
    let cases: Vec<(&str, Change, &str)> = vec![
        ("a tensor of another model", Box::new(other), &unnamed),
        ("a tensor that it forgets", Box::new(forgets), &unnamed),
        ("a name that is there twice", Box::new(twice), "`model.norm.weight` is there twice"),
        ("100,000 tensors that are not there", Box::new(many), apart),
        ("a name of 64 KB", Box::new(|home| index(home, |map| map[long_name()] = json!(SHARD))), apart),
        ("a long map", Box::new(|home| index(home, |map| *map = json!(long_name()))), "invalid type: string"),
    ];
    for (what, change, expected) in cases {
        let home = with("llama-rope3");
        change(&home);
        refused(&home, what, expected);
    }
    // A buffer that old versions of the model's code saved is none of the model's tensors.
    let home = with("llama-rope3");
    add(
        &home,
        &format!("in/{SHARD}"),
        std::iter::once("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned()),
    );
    assert_eq!(convert(&home).status.code(), Some(0));
}

/// 3000 shards, and 100,000 tensors of one more that is not there.
#[test]
fn an_index_is_read_in_the_time_of_its_size() {
    let home = with("llama-rope3");
    let header = |i: u32| json!({format!("a.{i}"): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
    (0..3000).for_each(|i| put(&home, &format!("in/a{i}.safetensors"), &header(i).to_string(), &[0; 4]));
    index(&home, |map| {
        (0..3000).for_each(|i| map[format!("a.{i}")] = json!(format!("a{i}.safetensors")));
        (0..100_000).for_each(|i| map[format!("z.{i}")] = json!("z.safetensors"));
    });
    let start = Instant::now();
    refused(&home, "many shards", "shard `z.safetensors` is missing; the index names it for 100000 tensors");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// A pipe would be waited for without end, and a device read without end.
#[test]
fn texts_that_are_no_files_are_refused() {
    let expected = "it is a pipe, a socket or a device, expected a regular file";
    for name in ["generation_config.json", "tokenizer.json", "reference.safetensors"] {
        for make in ["mkfifo", "ln -sf /dev/zero"] {
            let home = with("shakespeare");
            let path = home.path("in").join(name);
            std::fs::remove_file(&path).expect("it was there");
            let script = format!("{make} '{}'", path.display());
            assert!(Command::new("sh").args(["-c", &script]).status().expect("it runs").success());
            let proved = name.starts_with("reference");
            let call = if proved { "convert in -o X" } else { "convert in -o X --no-verify" };
            let output = home.run(call);
            assert_eq!(output.status.code(), Some(2), "{make} {name}");
            assert!(said(&output, 1).contains(expected), "{make} {name}: {}", said(&output, 1));
            assert!(!home.path("X").exists());
        }
    }
    let home = with("shakespeare");
    assert_eq!(home.run("convert in -o X --no-verify --dtype f32").status.code(), Some(0));
    assert!(Command::new("mkfifo").arg(home.path("pipe")).status().expect("it runs").success());
    for (name, call) in [
        ("", "import-weights X pipe"),
        ("dijiang.json", "info X"),
        ("tokenizer.json", "generate X --prompt x --runtime tract"),
    ] {
        if !name.is_empty() {
            std::fs::rename(home.path("pipe"), home.path("X").join(name)).expect("it takes its place");
            assert!(Command::new("mkfifo").arg(home.path("pipe")).status().expect("it runs").success());
        }
        let output = home.run(call);
        assert_eq!(output.status.code(), Some(2), "{call}");
        assert!(said(&output, 1).contains(expected), "{call}: {}", said(&output, 1));
    }
}
