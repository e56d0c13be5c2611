//! ONNX files made to do harm. Each is refused by the binary with one line and exit code 2, in less than
//! a second, within 200 MB of memory, and nothing is written. What only looks odd is read.

use crate::support::models::{
    BOOL, FLOAT, INT64, STRING, call, changed, function, graph, graph_attribute, int_attribute, node, opset,
    sound, tensor, text, value,
};
use dijiang::onnx::import::{Imported, import_bytes, open};
use dijiang::onnx::proto::{
    AttributeProto, DimValue, EXTERNAL, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    StringStringEntryProto, TensorProto,
};
use prost::Message;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MODEL: &str = "m.onnx";

/// A directory with a model in it.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("models").join(name)
    }

    /// Puts a file beside the model. What begins with `..` lies outside.
    fn file(self, name: &str, bytes: &[u8]) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(self.path("")).expect("a directory");
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
        self
    }

    fn model(self, model: &ModelProto) -> Self {
        self.file(MODEL, &model.encode_to_vec())
    }

    fn run(self, command: &str) -> Self {
        let status = Command::new("sh").args(["-c", command]).current_dir(self.path("")).status();
        assert!(status.expect("it runs").success());
        self
    }

    fn everything(&self) -> BTreeSet<PathBuf> {
        fn visit(directory: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let entry = entry.expect("an entry");
                if entry.file_type().expect("a type").is_dir() {
                    visit(&entry.path(), found);
                }
                found.insert(entry.path());
            }
        }
        let mut found = BTreeSet::new();
        visit(self.0.path(), &mut found);
        found
    }

    /// What the binary says of the model, which it must refuse.
    fn refused(&self) -> String {
        let before = self.everything();
        let start = Instant::now();
        let output = self.inspect();
        let took = start.elapsed();
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(output.stdout, b"");
        assert_eq!(self.everything(), before);
        let line = stderr.strip_suffix('\n').expect("a line");
        assert!(!line.contains('\n'), "{line}");
        line.strip_prefix("error: ").unwrap_or(line).to_owned()
    }

    /// The model is read or refused, and neither takes much.
    fn within_limits(&self, what: &str) {
        let start = Instant::now();
        let output = self.inspect();
        assert!(start.elapsed() < Duration::from_secs(1), "{what}: {:?}", start.elapsed());
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 2)), "{what}: {code:?} {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The limit is on memory of the process's own; mapped files do not count.
    fn inspect(&self) -> Output {
        Command::new("sh")
            .args(["-c", r#"ulimit -d 204800 && exec "$0" inspect m.onnx"#, env!("CARGO_BIN_EXE_dijiang")])
            .current_dir(self.path(""))
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    }

    fn read(&self) -> Imported {
        open(&self.path(MODEL)).expect("it is read")
    }
}

fn refused(model: &ModelProto) -> String {
    Home::new().model(model).refused()
}

fn refused_bytes(bytes: &[u8]) -> String {
    Home::new().file(MODEL, bytes).refused()
}

/// The weight lies in another file.
fn external(keys: &[(&str, &str)]) -> ModelProto {
    changed(|g| {
        let w = &mut g.initializer[0];
        w.raw_data = None;
        w.data_location = EXTERNAL;
        w.external_data = entries(keys);
    })
}

fn located(location: &str) -> ModelProto {
    external(&[("location", location)])
}

#[test]
fn a_sound_model_is_read() {
    let read = Home::new().model(&sound()).read();
    assert_eq!(read.notes, Vec::<String>::new());
    assert_eq!(read.graph.nodes().count(), 2);
}

// Files.

#[test]
fn external_data_in_the_parent_directory() {
    let home = Home::new().file("../w.bin", &[0; 64]).model(&located("../w.bin"));
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: the external data location `../w.bin` leaves the directory of the model file");
}

#[test]
fn external_data_through_a_directory_and_out_again() {
    let home = Home::new().file("../w.bin", &[0; 64]).file("a/b", &[]).model(&located("a/../../w.bin"));
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: the external data location `a/../../w.bin` leaves the directory of the model file");
}

#[test]
fn external_data_under_an_absolute_path() {
    insta::assert_snapshot!(refused(&located("/etc/passwd")), @"m.onnx: initialiser `w`: the external data location `/etc/passwd` leaves the directory of the model file");
}

#[test]
fn external_data_through_a_link_that_leaves() {
    let home = Home::new().file("../w.bin", &[0; 64]).model(&located("w.bin")).run("ln -s ../w.bin w.bin");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: it is a link that leaves the directory of the model file (hint: put the file itself there)");
}

#[test]
fn external_data_in_a_linked_directory_that_leaves() {
    let home = Home::new().file("../else/w.bin", &[0; 64]).model(&located("d/w.bin")).run("ln -s ../else d");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `d/w.bin`: it is a link that leaves the directory of the model file (hint: put the file itself there)");
}

#[test]
fn external_data_through_a_link_to_itself() {
    let home = Home::new().model(&located("w.bin")).run("ln -s w.bin w.bin");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: Too many levels of symbolic links (os error 40)");
}

#[test]
fn external_data_in_a_pipe() {
    let home = Home::new().model(&located("w.bin")).run("mkfifo w.bin");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: it is a pipe, a socket or a device, expected a regular file");
}

#[test]
fn external_data_in_a_directory() {
    let home = Home::new().file("w.bin/file", &[0; 64]).model(&located("w.bin"));
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: it is a directory, expected a regular file");
}

#[test]
fn external_data_in_the_models_own_directory() {
    insta::assert_snapshot!(refused(&located(".")), @"m.onnx: initialiser `w`: external data `.`: it is a directory, expected a regular file");
}

#[test]
fn external_data_in_a_device() {
    let home = Home::new().model(&located("w.bin")).run("ln -s /dev/zero w.bin");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: it is a link that leaves the directory of the model file (hint: put the file itself there)");
}

#[test]
fn external_data_in_the_model_itself() {
    insta::assert_snapshot!(refused(&located(MODEL)), @"m.onnx: initialiser `w`: external data `m.onnx`: it is the model file itself");
}

#[test]
fn external_data_in_the_model_by_another_name() {
    let home = Home::new().model(&located("w.bin")).run("ln m.onnx w.bin");
    insta::assert_snapshot!(home.refused(), @"m.onnx: initialiser `w`: external data `w.bin`: it is the model file itself");
}

#[test]
fn external_data_named_with_a_nul() {
    insta::assert_snapshot!(refused(&located("w\0.bin")), @r#"m.onnx: initialiser `w`: the external data location `w\u{0}.bin` holds a NUL"#);
}

#[test]
fn external_data_named_with_a_backslash() {
    insta::assert_snapshot!(refused(&located("..\\w.bin")), @r#"m.onnx: initialiser `w`: the external data location `..\w.bin` holds a backslash (hint: directories are separated by `/`)"#);
}

#[test]
fn external_data_without_a_name() {
    insta::assert_snapshot!(refused(&located("")), @"m.onnx: initialiser `w`: the external data location `` is empty");
    insta::assert_snapshot!(refused(&external(&[("offset", "0")])), @"m.onnx: initialiser `w`: its external data has no `location`");
}

#[test]
fn external_data_that_is_not_there() {
    insta::assert_snapshot!(refused(&located("w.bin")), @"m.onnx: initialiser `w`: external data `w.bin`: No such file or directory (os error 2) (hint: it must lie beside the model file; a model saved by an ONNX Runtime session needs the data of the model it was made of)");
}

#[test]
fn external_data_under_a_name_of_a_megabyte() {
    insta::assert_snapshot!(refused(&located(&"w".repeat(1 << 20))), @"m.onnx: initialiser `w`: external data `wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww…`: File name too long (os error 36)");
}

#[test]
fn external_data_of_the_wrong_extent() {
    let refused = |keys: &[(&str, &str)]| {
        let keys: Vec<_> = [("location", "w.bin")].into_iter().chain(keys.iter().copied()).collect();
        Home::new().file("w.bin", &[0; 96]).model(&external(&keys)).refused()
    };
    insta::assert_snapshot!(refused(&[("offset", "97")]), @"m.onnx: initialiser `w`: offset 97 lies past the end of `w.bin` (96 bytes)");
    insta::assert_snapshot!(refused(&[("offset", "64")]), @"m.onnx: initialiser `w`: 64 bytes at 64 lie past the end of `w.bin` (96 bytes)");
    insta::assert_snapshot!(refused(&[("offset", "33"), ("length", "64")]), @"m.onnx: initialiser `w`: 64 bytes at 33 lie past the end of `w.bin` (96 bytes)");
    insta::assert_snapshot!(refused(&[("offset", "-1")]), @"m.onnx: initialiser `w`: offset `-1` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("length", "-64")]), @"m.onnx: initialiser `w`: length `-64` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("offset", "18446744073709551615")]), @"m.onnx: initialiser `w`: offset 18446744073709551615 lies past the end of `w.bin` (96 bytes)");
    insta::assert_snapshot!(refused(&[("offset", "18446744073709551616")]), @"m.onnx: initialiser `w`: offset `18446744073709551616` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("offset", "18446744073709551615"), ("length", "64")]), @"m.onnx: initialiser `w`: offset 18446744073709551615 lies past the end of `w.bin` (96 bytes)");
    insta::assert_snapshot!(refused(&[("length", "64 bytes")]), @"m.onnx: initialiser `w`: length `64 bytes` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("length", "+64")]), @"m.onnx: initialiser `w`: length `+64` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("offset", "")]), @"m.onnx: initialiser `w`: offset `` of its external data is not a number of bytes");
    insta::assert_snapshot!(refused(&[("length", "60")]), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 60 are there");
    insta::assert_snapshot!(refused(&[("length", "96")]), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 96 are there");
}

#[test]
fn a_model_that_is_a_pipe_a_directory_or_a_device() {
    insta::assert_snapshot!(Home::new().file("else", &[]).run("mkfifo m.onnx").refused(), @"m.onnx: it is a pipe, a socket or a device, expected a regular file");
    insta::assert_snapshot!(Home::new().file("m.onnx/file", &[]).refused(), @"m.onnx: it is a directory, expected a regular file");
    insta::assert_snapshot!(Home::new().file("else", &[]).run("ln -s /dev/zero m.onnx").refused(), @"m.onnx: it is a pipe, a socket or a device, expected a regular file");
    insta::assert_snapshot!(Home::new().file("else", &[]).refused(), @"m.onnx: there is no such file or directory (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)");
}

/// Snapshots of a Hugging Face cache are directories of links.
#[test]
fn a_snapshot_of_a_cache_is_read() {
    let home = Home::new();
    let (blobs, snapshot) = (home.path("blobs"), home.path("snapshots/1/onnx"));
    let home = home.file("blobs/aa", &located("m.onnx_data").encode_to_vec()).file("blobs/bb", &[0; 64]);
    std::fs::create_dir_all(&snapshot).expect("a directory");
    for (name, blob) in [(MODEL, "aa"), ("m.onnx_data", "bb")] {
        symlink(Path::new("../../../blobs").join(blob), snapshot.join(name)).expect("a link");
    }
    assert_eq!(open(&snapshot.join(MODEL)).expect("it is read").graph.consts().count(), 1);
    // A link from there to elsewhere is still refused.
    std::fs::remove_file(blobs.join("bb")).expect("it goes");
    let home = home.file("elsewhere", &[0; 64]);
    symlink(home.path("elsewhere"), blobs.join("bb")).expect("a link");
    assert!(open(&snapshot.join(MODEL)).is_err());
}

/// A hard link is a file of the directory like any other: nothing tells where its other names are.
#[test]
fn a_hard_link_is_read() {
    let home = Home::new().file("../w.bin", &[0; 64]).model(&located("w.bin")).run("ln ../w.bin w.bin");
    assert_eq!(home.read().graph.consts().count(), 1);
}

#[test]
fn links_within_the_directory_and_dots_are_read() {
    let home =
        Home::new().file("d/w.bin", &[0; 64]).model(&located("./d/./v.bin")).run("ln -s w.bin d/v.bin");
    assert_eq!(home.read().graph.consts().count(), 1);
}

/// Neither offset nor length are required, and one may be there without the other.
#[test]
fn extents_that_are_left_out() {
    for keys in [vec![], vec![("offset", "32")], vec![("length", "64")]] {
        let keys: Vec<_> = [("location", "w.bin")].into_iter().chain(keys).collect();
        let home = Home::new().file("w.bin", &[0; 96]).model(&external(&keys));
        assert_eq!(home.read().graph.consts().count(), 1, "{keys:?}");
    }
}

#[test]
fn data_after_four_gigabytes_is_read() {
    let home = Home::new().model(&external(&[("location", "w.bin"), ("offset", "5368709120")]));
    let file = std::fs::File::create(home.path("w.bin")).expect("a file");
    file.set_len((5 << 30) + 64).expect("a file with a hole");
    std::os::unix::fs::FileExt::write_all_at(&file, &2f32.to_le_bytes(), 5 << 30).expect("it is written");
    let read = home.read();
    let w = read.graph.find_value("w").and_then(|w| read.graph.as_const(w)).expect("a constant").to_f64();
    assert_eq!(w[..2], [2.0, 0.0]);
}

// Bytes.

#[test]
fn an_empty_file() {
    insta::assert_snapshot!(refused_bytes(b""), @"m.onnx: it holds no graph (hint: is this an ONNX model?)");
}

#[test]
fn a_text_file() {
    insta::assert_snapshot!(refused_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), @"m.onnx: it is not an ONNX model, or is cut short (invalid wire type value: 6)");
}

#[test]
fn a_file_cut_short() {
    let bytes = sound().encode_to_vec();
    insta::assert_snapshot!(refused_bytes(&bytes[..bytes.len() / 2]), @"m.onnx: it is not an ONNX model, or is cut short (ModelProto.graph: buffer underflow)");
    insta::assert_snapshot!(refused_bytes(&bytes[..1]), @"m.onnx: it is not an ONNX model, or is cut short (ModelProto.ir_version: invalid varint)");
}

#[test]
fn random_bytes() {
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let bytes: Vec<u8> = (0..4096).map(|_| byte()).collect();
    insta::assert_snapshot!(refused_bytes(&bytes), @"m.onnx: it is not an ONNX model, or is cut short (ModelProto.domain: invalid wire type: Varint (expected LengthDelimited))");
}

#[test]
fn a_flipped_bit() {
    let mut bytes = sound().encode_to_vec();
    let at = bytes.windows(6).position(|w| w == b"MatMul").expect("it is there");
    bytes[at + 5] ^= 0x80;
    insta::assert_snapshot!(refused_bytes(&bytes), @"m.onnx: it is not an ONNX model, or is cut short (NodeProto.name: GraphProto.node: ModelProto.graph: invalid string value: data is not UTF-8 encoded)");
}

#[test]
fn lengths_that_overflow() {
    let longest = [0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    insta::assert_snapshot!(refused_bytes(&longest), @"m.onnx: it is not an ONNX model, or is cut short (ModelProto.graph: buffer underflow)");
    let endless = [0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    insta::assert_snapshot!(refused_bytes(&endless), @"m.onnx: it is not an ONNX model, or is cut short (ModelProto.graph: invalid varint)");
}

#[test]
fn deep_nesting() {
    let mut inner = sound().graph.expect("a graph");
    for _ in 0..200 {
        let mut branch = node("If", &["x"], &["y"]);
        branch.attribute = vec![graph_attribute("then_branch", inner)];
        inner = GraphProto { node: vec![branch], ..GraphProto::default() };
    }
    insta::assert_snapshot!(refused(&changed(|g| g.node = inner.node)), @"m.onnx: it is not an ONNX model, or is cut short (GraphProto.node and deeper: recursion limit reached)");
}

#[test]
fn names_of_several_lines() {
    let model = changed(|g| g.node[0].input[1] = "a\nb\rc\u{1b}[31m".to_owned());
    insta::assert_snapshot!(refused(&model), @r#"m.onnx: node `the MatMul` (MatMul): its input `a\nb\rc\u{1b}[31m` is not defined before it (hint: nothing computes it; an initialiser is missing)"#);
}

#[test]
fn millions_of_empty_messages() {
    // A node without anything takes two bytes in the file.
    let mut node_list = Vec::new();
    for _ in 0..4 << 20 {
        node_list.extend([0x0a, 0]);
    }
    let mut bytes = sound().encode_to_vec();
    bytes.push(0x3a);
    prost::encode_length_delimiter(node_list.len(), &mut bytes).expect("it fits");
    bytes.extend(node_list);
    insta::assert_snapshot!(refused_bytes(&bytes), @"m.onnx: its messages take 768 MB in memory, expected at most 8 times the 8388803 bytes of the file (hint: it is made of empty messages)");
}

fn entries(entries: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
    entries.iter().map(|(k, v)| StringStringEntryProto { key: text(k), value: text(v) }).collect()
}

fn with_functions(functions: Vec<FunctionProto>, op: &str) -> ModelProto {
    let model = changed(|g| g.node[1] = call(op, &["h"], &["y"]));
    ModelProto { functions, ..model }
}

#[test]
fn functions_that_call_each_other() {
    let f = function("F", vec![call("G", &["a"], &["b"])]);
    let g = function("G", vec![call("F", &["a"], &["b"])]);
    insta::assert_snapshot!(refused(&with_functions(vec![f, g], "F")), @"m.onnx: function `local.F`: it calls itself (local.F, then local.G and back)");
}

#[test]
fn a_function_that_calls_itself() {
    let f = function("F", vec![call("F", &["a"], &["b"])]);
    insta::assert_snapshot!(refused(&with_functions(vec![f], "F")), @"m.onnx: function `local.F`: it calls itself (local.F and back)");
}

#[test]
fn functions_that_expand_without_end() {
    let twice = |to: &str| vec![call(to, &["a"], &["m"]), call(to, &["m"], &["b"])];
    let mut functions = vec![function("F0", vec![node("Relu", &["a"], &["b"])])];
    functions.extend((1..60).map(|i| function(&format!("F{i}"), twice(&format!("F{}", i - 1)))));
    insta::assert_snapshot!(refused(&with_functions(functions, "F59")), @"m.onnx: function `local.F1`: the calls of functions expand to more than 16 MB of nodes");
}

#[test]
fn functions_that_are_there_twice_or_called_wrongly() {
    let f = function("F", vec![node("Relu", &["a"], &["b"])]);
    insta::assert_snapshot!(refused(&with_functions(vec![f.clone(), f.clone()], "F")), @"m.onnx: function `local.F`: it is there twice");
    let mut model = with_functions(vec![f.clone()], "F");
    graph(&mut model).node[1].input = vec![text("h"), text("h")];
    insta::assert_snapshot!(refused(&model), @"m.onnx: function `local.F`: it is called with 2 inputs, expected 1");
    let mut model = with_functions(vec![f.clone()], "F");
    graph(&mut model).node[1].output = vec![text("y"), text("z")];
    insta::assert_snapshot!(refused(&model), @"m.onnx: node `the F` (local.F): it has 2 outputs, but computes 1");
    let open = function("F", vec![node("Relu", &["h"], &["b"])]);
    insta::assert_snapshot!(refused(&with_functions(vec![open], "F")), @"m.onnx: node `the F/the Relu` (Relu): its input `h` is not defined before it (hint: nothing computes it; an initialiser is missing)");
    let old = FunctionProto { opset_import: vec![opset("", 7)], ..f };
    insta::assert_snapshot!(refused(&with_functions(vec![old], "F")), @"m.onnx: function `local.F`: opset 7 is not supported, expected 11 to 27 (hint: convert it with onnx.version_converter)");
}

// Tensors.

fn weight(change: impl FnOnce(&mut TensorProto)) -> ModelProto {
    changed(|g| change(&mut g.initializer[0]))
}

#[test]
fn dims_that_cannot_be() {
    insta::assert_snapshot!(refused(&weight(|w| w.dims = vec![-4, -4])), @"m.onnx: initialiser `w`: dims [-4, -4] are negative");
    insta::assert_snapshot!(refused(&weight(|w| w.dims = vec![i64::MIN, 4])), @"m.onnx: initialiser `w`: dims [-9223372036854775808, 4] are negative");
    insta::assert_snapshot!(refused(&weight(|w| w.dims = vec![i64::MAX, i64::MAX])), @"m.onnx: initialiser `w`: a tensor f32[9223372036854775807, 9223372036854775807] takes more than can be counted bytes, but 64 are there");
    insta::assert_snapshot!(refused(&weight(|w| w.dims = vec![1 << 25, 1 << 25])), @"m.onnx: initialiser `w`: a tensor f32[33554432, 33554432] takes 4503599627370496 bytes, but 64 are there");
    insta::assert_snapshot!(refused(&weight(|w| w.dims = vec![1 << 60, 0, 1 << 60])), @"m.onnx: initialiser `w`: a tensor f32[1152921504606846976, 0, 1152921504606846976] takes 0 bytes, but 64 are there");
    let input = |dims: &[i64]| changed(|g| g.input[0] = value("x", FLOAT, dims));
    insta::assert_snapshot!(refused(&input(&[-2, 4])), @"m.onnx: input `x`: dim -2 is negative");
    insta::assert_snapshot!(refused(&input(&[1 << 62, 1 << 62])), @"m.onnx: import: node `the MatMul` (MatMul): [4611686018427387904, 4611686018427387904] and [4, 4] do not multiply (inputs f32[4611686018427387904, 4611686018427387904], f32[4, 4])");
}

#[test]
fn constants_of_a_petabyte_are_not_made() {
    let sizes: Vec<u8> = [1i64 << 40, 1 << 40].iter().flat_map(|x| x.to_le_bytes()).collect();
    for op in ["ConstantOfShape", "Expand", "Tile"] {
        let inputs = if op == "ConstantOfShape" { vec!["sizes"] } else { vec!["one", "sizes"] };
        let model = changed(|g| {
            g.initializer.push(tensor("sizes", INT64, &[2], sizes.clone()));
            g.initializer.push(tensor("one", FLOAT, &[1, 1], vec![0; 4]));
            g.node = vec![node(op, &inputs, &["huge"]), node("Add", &["huge", "x"], &["y"])];
            g.input = vec![value("x", FLOAT, &[1])];
            g.output[0].r#type = None;
        });
        Home::new().model(&model).within_limits(op);
    }
}

/// Forty nodes, each of which doubles what the one before it computes.
#[test]
fn what_doubles_with_each_node_does_not_fill_the_memory() {
    let doubling = |first: &str, op: &str| {
        changed(|g| {
            let mut sizes = value("n", FLOAT, &[1, 4]);
            let shape =
                sizes.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).and_then(|t| t.shape.as_mut());
            shape.expect("a shape").dim[0].value = Some(DimValue::Param(text("rows")));
            g.input.push(sizes);
            g.initializer.push(tensor("c", INT64, &[2], vec![1; 16]));
            let mut last = text(first);
            g.node.clear();
            for i in 0..40 {
                let mut next = node(op, &[&last, &last], &[&format!("d{i}")]);
                if op == "Concat" {
                    next.attribute = vec![int_attribute("axis", 0)];
                }
                g.node.push(next);
                last = format!("d{i}");
            }
            g.output[0] = value(&last, 0, &[]);
        })
    };
    for (first, op) in [("n", "Concat"), ("c", "Concat"), ("w", "Concat"), ("c", "Add"), ("c", "Mul")] {
        Home::new().model(&doubling(first, op)).within_limits(op);
    }
}

#[test]
fn raw_data_of_the_wrong_length() {
    insta::assert_snapshot!(refused(&weight(|w| w.raw_data = Some(vec![0; 63].into()))), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 63 are there");
    insta::assert_snapshot!(refused(&weight(|w| w.raw_data = Some(vec![0; 65].into()))), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 65 are there");
    insta::assert_snapshot!(refused(&weight(|w| w.raw_data = None)), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 0 are there");
}

#[test]
fn element_types_that_are_not() {
    insta::assert_snapshot!(refused(&weight(|w| w.data_type = 99)), @"m.onnx: initialiser `w`: element type 99 (unknown) is not supported, expected a float, an integer or bool");
    insta::assert_snapshot!(refused(&weight(|w| w.data_type = 0)), @"m.onnx: initialiser `w`: element type 0 (undefined) is not supported, expected a float, an integer or bool");
    insta::assert_snapshot!(refused(&weight(|w| w.data_type = -1)), @"m.onnx: initialiser `w`: element type -1 (unknown) is not supported, expected a float, an integer or bool");
    insta::assert_snapshot!(refused(&weight(|w| w.data_type = 14)), @"m.onnx: initialiser `w`: element type 14 (complex64) is not supported, expected a float, an integer or bool");
    insta::assert_snapshot!(refused(&changed(|g| g.input[0] = value("x", 0, &[2, 4]))), @"m.onnx: input `x`: element type 0 (undefined) is not supported, expected a float, an integer or bool");
    insta::assert_snapshot!(refused(&changed(|g| g.input[0] = value("x", 99, &[2, 4]))), @"m.onnx: input `x`: element type 99 (unknown) is not supported, expected a float, an integer or bool");
}

#[test]
fn element_types_that_do_not_agree() {
    let listed = weight(|w| {
        w.raw_data = None;
        w.int64_data = vec![0; 16];
    });
    insta::assert_snapshot!(refused(&listed), @"m.onnx: initialiser `w`: a tensor f32[4, 4] takes 64 bytes, but 0 are there");
    let added = changed(|g| g.node[1] = node("Add", &["h", "n"], &["y"]));
    let mut added = added;
    graph(&mut added).initializer.push(tensor("n", INT64, &[1], vec![0; 8]));
    insta::assert_snapshot!(refused(&added), @"m.onnx: import: node `the Add` (Add): the inputs are f32 and i64 (inputs f32[2, 4], i64[1])");
    insta::assert_snapshot!(refused(&changed(|g| g.output[0] = value("y", INT64, &[2, 4]))), @"m.onnx: output `y`: it is declared i64, but its values are f32");
    insta::assert_snapshot!(refused(&changed(|g| g.input.push(value("w", INT64, &[4, 4])))), @"m.onnx: input `w`: it is declared i64, but its values are f32");
}

#[test]
fn strings_where_they_are_used() {
    let with = |used: bool| {
        changed(|g| {
            let string_data = tensor("names", STRING, &[1], Vec::new());
            g.initializer.push(string_data);
            if used {
                g.node[1] = node("Unheard", &["h", "names"], &["y"]);
            }
        })
    };
    assert_eq!(Home::new().model(&with(false)).read().graph.nodes().count(), 2);
    insta::assert_snapshot!(refused(&with(true)), @"m.onnx: node `the Unheard` (Unheard): its input `names`: strings are not supported");
}

#[test]
fn sparse_initialisers() {
    let values = Some(tensor("s", FLOAT, &[1], vec![0; 4]));
    let model = changed(|g| g.sparse_initializer.push(SparseTensorProto { values }));
    insta::assert_snapshot!(refused(&model), @"m.onnx: sparse initialiser `s` is not supported, expected a dense one (hint: make it dense with onnx.numpy_helper)");
}

#[test]
fn initialisers_that_are_there_twice_or_not_at_all() {
    insta::assert_snapshot!(refused(&changed(|g| g.initializer.push(g.initializer[0].clone()))), @"m.onnx: initialiser `w`: its name is defined twice");
    insta::assert_snapshot!(refused(&changed(|g| g.initializer.clear())), @"m.onnx: node `the MatMul` (MatMul): its input `w` is not defined before it (hint: nothing computes it; an initialiser is missing)");
    insta::assert_snapshot!(refused(&weight(|w| w.name.clear())), @"m.onnx: initialiser ``: it has no name");
}

#[test]
fn numbers_that_are_not_finite_are_noted() {
    let numbers: Vec<f32> =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().chain([1.0; 97]).collect();
    let raw = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let model = changed(|g| g.initializer[0] = tensor("w", FLOAT, &[4, 25], raw));
    let mut model = model;
    graph(&mut model).output[0].r#type = None;
    insta::assert_snapshot!(Home::new().model(&model).read().notes.join("\n"), @"weight `w` holds numbers that are not finite: 1 NaN and 2 infinite of 100");
}

// Graphs.

#[test]
fn cycles() {
    let model = changed(|g| g.node[0].input[0] = text("y"));
    insta::assert_snapshot!(refused(&model), @"m.onnx: node `the MatMul` (MatMul): its input `y` is not defined before it (hint: it lies on a cycle)");
    let model = changed(|g| g.node[1].input[0] = text("y"));
    insta::assert_snapshot!(refused(&model), @"m.onnx: node `the Relu` (Relu): its input `y` is not defined before it (hint: it lies on a cycle)");
}

#[test]
fn values_that_are_defined_twice() {
    let doubled = changed(|g| g.node.insert(1, node("Relu", &["x"], &["h"])));
    insta::assert_snapshot!(refused(&doubled), @"m.onnx: node `the Relu` (Relu): its output `h` is defined twice");
    insta::assert_snapshot!(refused(&changed(|g| g.node[0].output.push(text("h")))), @"m.onnx: node `the MatMul` (MatMul): its output `h` is defined twice");
    insta::assert_snapshot!(refused(&changed(|g| g.node[0].output[0] = text("x"))), @"m.onnx: node `the MatMul` (MatMul): its output `x` is defined twice");
    insta::assert_snapshot!(refused(&changed(|g| g.input.push(g.input[0].clone()))), @"m.onnx: input `x`: it is there twice");
    insta::assert_snapshot!(refused(&changed(|g| g.output.push(g.output[0].clone()))), @"m.onnx: output `y`: it is there twice");
}

#[test]
fn outputs_that_nothing_computes() {
    insta::assert_snapshot!(refused(&changed(|g| g.output[0].name = text("z"))), @"m.onnx: output `z`: nothing computes it");
}

#[test]
fn inputs_without_a_type_or_a_name() {
    insta::assert_snapshot!(refused(&changed(|g| g.input[0].r#type = None)), @"m.onnx: input `x`: it is not a tensor");
    insta::assert_snapshot!(refused(&changed(|g| g.input[0].name.clear())), @"m.onnx: input ``: it has no name");
}

#[test]
fn opsets_that_cannot_be_read() {
    let with = |opset_import| ModelProto { opset_import, ..sound() };
    insta::assert_snapshot!(refused(&with(vec![opset("", 10)])), @"m.onnx: opset 10 is not supported, expected 11 to 27 (hint: convert it with onnx.version_converter)");
    insta::assert_snapshot!(refused(&with(vec![opset("ai.onnx", 99)])), @"m.onnx: opset 99 is not supported, expected 11 to 27 (hint: convert it with onnx.version_converter)");
    insta::assert_snapshot!(refused(&with(vec![opset("", -1)])), @"m.onnx: opset -1 is not supported, expected 11 to 27 (hint: convert it with onnx.version_converter)");
    insta::assert_snapshot!(refused(&with(vec![opset("com.microsoft", 1)])), @"m.onnx: it says no opset of the standard operators (hint: `opset_import` is missing or has no entry for ai.onnx)");
    insta::assert_snapshot!(refused(&ModelProto { graph: None, ..sound() }), @"m.onnx: it holds no graph (hint: is this an ONNX model?)");
}

#[test]
fn unknown_operators_are_kept_and_noted() {
    let model = changed(|g| {
        g.node[1] = NodeProto { domain: text("com.acme"), ..node("Unheard", &["h"], &["z"]) };
        g.node.push(node("Relu", &["z"], &["y"]));
    });
    let read = Home::new().model(&model).read();
    assert!(read.graph.nodes().any(|(_, n)| n.op.qualified_name() == "com.acme.Unheard"));
    insta::assert_snapshot!(read.notes.join("\n"), @"operator com.acme.Unheard (1 node, first `the Unheard`) is not known: it is kept as it is, and nothing is inferred of its outputs");
}

#[test]
fn loops_and_open_branches() {
    let body = GraphProto { output: vec![value("h", FLOAT, &[2, 4])], ..GraphProto::default() };
    let with = |op: &str, input: &str, attributes: &[&str]| {
        changed(|g| {
            g.input.push(value("c", BOOL, &[]));
            g.node[1] = node(op, &[input], &["y"]);
            g.node[1].attribute = attributes.iter().map(|a| graph_attribute(a, body.clone())).collect();
        })
    };
    insta::assert_snapshot!(refused(&with("Loop", "h", &["body"])), @"m.onnx: node `the Loop` (Loop): attribute `body`: it is a subgraph, which is supported in If only (hint: export the model without loops)");
    insta::assert_snapshot!(refused(&with("Scan", "h", &["body"])), @"m.onnx: node `the Scan` (Scan): attribute `body`: it is a subgraph, which is supported in If only (hint: export the model without loops)");
    insta::assert_snapshot!(refused(&with("If", "c", &["then_branch", "else_branch"])), @"m.onnx: node `the If` (If): its condition `c` depends on the inputs, expected a constant or the input `use_cache_branch` (hint: export the model without branches, or make the condition a constant)");
    let mut constant = with("If", "t", &["else_branch"]);
    graph(&mut constant).initializer.push(tensor("t", BOOL, &[], vec![1]));
    insta::assert_snapshot!(refused(&constant), @"m.onnx: node `the If` (If): attribute `then_branch` is missing, or is no graph");
}

#[test]
fn attributes_that_are_wrong() {
    let with = |attribute: AttributeProto| {
        changed(|g| {
            g.node[1] = node("Concat", &["h"], &["y"]);
            g.node[1].attribute = vec![attribute];
        })
    };
    insta::assert_snapshot!(refused(&with(int_attribute("axis", i64::MAX))), @"m.onnx: import: node `the Concat` (Concat): axis 9223372036854775807 does not exist in rank 2 (inputs f32[2, 4])");
    insta::assert_snapshot!(refused(&with(int_attribute("axis", i64::MIN))), @"m.onnx: import: node `the Concat` (Concat): axis -9223372036854775808 does not exist in rank 2 (inputs f32[2, 4])");
    insta::assert_snapshot!(refused(&with(AttributeProto { r#type: 77, ..int_attribute("axis", 1) })), @"m.onnx: node `the Concat` (Concat): attribute `axis`: its type 77 is not supported");
    let referring = AttributeProto { ref_attr_name: text("axis"), ..int_attribute("axis", 1) };
    insta::assert_snapshot!(refused(&with(referring)), @"m.onnx: node `the Concat` (Concat): attribute `axis`: it refers to an attribute of a function");
    let mut twice = with(int_attribute("axis", 1));
    graph(&mut twice).node[1].attribute.push(int_attribute("axis", 0));
    insta::assert_snapshot!(refused(&twice), @"m.onnx: node `the Concat` (Concat): attribute `axis`: it is there twice");
}

#[test]
fn axes_that_do_not_exist() {
    for op in ["Softmax", "LogSoftmax"] {
        for axis in [2, -3, i64::MAX, i64::MIN] {
            let line = refused(&along(op, axis));
            let want =
                format!("node `the {op}` ({op}): axis {axis} does not exist in rank 2 (inputs f32[2, 4])");
            assert_eq!(line, format!("m.onnx: import: {want}"));
        }
        for axis in [1, -2] {
            assert!(import_bytes(along(op, axis).encode_to_vec().into(), Path::new(MODEL)).is_ok());
        }
    }
}

fn along(op: &str, axis: i64) -> ModelProto {
    changed(|g| {
        g.node[1] = node(op, &["h"], &["y"]);
        g.node[1].attribute = vec![int_attribute("axis", axis)];
    })
}

/// Every byte of a model in turn takes other values: whatever comes out, it does not end the process,
/// and takes no time.
#[test]
fn every_byte_changed() {
    let bytes = with_functions(vec![function("F", vec![node("Relu", &["a"], &["b"])])], "F").encode_to_vec();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x02, 0x08, 0x10, 0x40, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let start = Instant::now();
            if let Err(e) = import_bytes(changed.into(), Path::new(MODEL)) {
                assert!(!e.to_string().contains('\n'), "{e}");
            }
            assert!(start.elapsed() < Duration::from_secs(1), "byte {at} ^ {flip}");
        }
    }
}
