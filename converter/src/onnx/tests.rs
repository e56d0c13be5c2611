//! What is written reads back, through our own reader and through an independent decoder.

use super::export::{ExportOptions, ExternalWeights, export};
use super::import::{import, import_bytes};
use super::proto::ModelProto;
use crate::bundle::weights::WeightFile;
use bytes::Bytes;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::op::Attr;
use dijiang_passes::ir::text::{parse, print};
use dijiang_passes::ir::verify::verify;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Every form of the table, and values that ONNX cannot name as the IR does.
const FORMS: &str = r#"graph "forms" {
  input %x: f32[batch, 4]
  weight %w: f32[4, 8] = random(3)
  %h = MatMul(%x, %w) "proj": f32[batch, 8]
  const %two: f32[] = [2.0]
  %h2 = Mul(%h, %two) "double": f32[batch, 8]
  %sum = ReduceSum(%h2) {axes: [-1], keepdims: 1} "sum": f32[batch, 1]
  %mean = ReduceMean(%h2) {axes: [-1], keepdims: 1} "mean": f32[batch, 1]
  %max = ReduceMax(%h2) {axes: [1], keepdims: 0} "max": f32[batch]
  %all = ReduceMax(%h2) {keepdims: 0} "all": f32[]
  %up = Unsqueeze(%max) {axes: [1]} "up": f32[batch, 1]
  %down = Squeeze(%sum) {axes: [-1]} "down": f32[batch]
  %half = Cast(%down) {to: "f16"} "half": f16[batch]
  %same = Cast(%half) {saturate: 1, to: "f32"} "same": f32[batch]
  %a, %b = Split(%h2) {axis: 1} "even": f32[batch, 4], f32[batch, 4]
  const %sizes: i64[2] = [3, 5]
  %c, %d = Split(%h2, %sizes) {axis: 1} "uneven": f32[batch, 3], f32[batch, 5]
  %clip = Clip(%a, _, %two) "clip": f32[batch, 4]
  %shape = Shape(%x) {end: 1, start: 0} "shape": i64[1]
  %fill = ConstantOfShape(%shape) {value: tensor i64[1]} "fill": i64[batch]
  %odd = com.microsoft.Unheard(%b) {alpha: 0.5, kind: "odd", list: [1, 2]} "opaque": ?[..]
  output "mean" %mean
  output "all" %all
  output "up" %up
  output "same" %same
  output "c" %c
  output "d" %d
  output "clip" %clip
  output "fill" %fill
  output "odd" %odd
}
"#;

/// The `LinearAttention` operator of ONNX Runtime.
const RECURRENT: &str = r#"graph "recurrent" {
  input %q: f32[batch, sequence, 8]
  input %k: f32[batch, sequence, 4]
  input %v: f32[batch, sequence, 4]
  input %past: f32[batch, 1, 4, 4]
  input %g: f32[batch, sequence, 1]
  %o, %present = com.microsoft.LinearAttention(%q, %k, %v, %past, %g) {kv_num_heads: 1, q_num_heads: 2, scale: 1.0, update_rule: "gated"} "attn": f32[batch, sequence, 8], f32[batch, 1, 4, 4]
  output "o" %o
  output "present" %present
}
"#;

fn graph(text: &str) -> Graph {
    parse(text).expect("the text is a graph")
}

/// A directory of its own for a test.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Writes graph and weight file; returns the path of the graph.
fn write(graph: &Graph, opset: i64, directory: &Path) -> PathBuf {
    let weights = graph.values().filter(|(_, v)| v.is_weight);
    let weights = weights.filter_map(|(_, v)| v.as_const().map(|t| (v.name.as_str(), t)));
    let file = WeightFile::plan(weights).expect("a layout");
    let mut out = File::create(directory.join("model.safetensors")).expect("a file");
    file.write(&mut out, &mut |_| ()).expect("it is written");
    let external = ExternalWeights { location: "model.safetensors", file: &file };
    let bytes = export(graph, &ExportOptions { opset, weights: Some(external) }).expect("it is written");
    let path = directory.join("model.onnx");
    std::fs::write(&path, bytes).expect("it is written");
    path
}

#[test]
fn what_is_written_reads_back_as_the_same_text() {
    for text in [FORMS, RECURRENT] {
        for opset in [17, 18, 19, 21, 27] {
            // A default that the opset has no attribute for is not written.
            let text = if opset < 19 { text.replace("saturate: 1, ", "") } else { text.to_owned() };
            let (directory, graph) = (directory(), graph(&text));
            let read = import(&write(&graph, opset, directory.path())).expect("it reads back");
            assert_eq!(print(&read), print(&graph), "opset {opset}");
            assert_eq!(verify(&read), []);
        }
    }
}

#[test]
fn weights_come_back_bit_by_bit() {
    let (directory, graph) = (directory(), graph(FORMS));
    let path = write(&graph, 17, directory.path());
    let read = import(&path).expect("it reads back");
    let bytes =
        |g: &Graph| g.as_const(g.find_value("w").expect("it is there")).map(|t| t.bytes().into_owned());
    assert_eq!(bytes(&read), bytes(&graph));
}

#[test]
fn values_that_are_returned_under_other_names() {
    let text = r#"graph "names" {
  input %x: f32[2]
  weight %w: f32[2] = [1.0, 2.0]
  %y:0 = Add(%x, %w) "y": f32[2]
  %z = Exp(%y:0) "z": f32[2]
  output "z" %y:0
  output "again" %y:0
  output "exp" %z
  output "input" %x
}
"#;
    let directory = directory();
    let read = import(&write(&graph(text), 17, directory.path())).expect("it reads back");
    insta::assert_snapshot!(print(&read), @r#"
    graph "names" {
      input %x: f32[2]
      weight %w: f32[2] = [1.0, 2.0]
      %z = Add(%x, %w) "y": f32[2]
      %exp = Exp(%z) "z": f32[2]
      %again = Identity(%z) "output/again": f32[2]
      %input = Identity(%x) "output/input": f32[2]
      output "z" %z
      output "again" %again
      output "exp" %exp
      output "input" %input
    }
    "#);
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    let once = |_| export(&graph(FORMS), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let [first, second] = [0, 1].map(once);
    assert_eq!(first, second);
}

#[test]
fn an_independent_decoder_reads_the_same() {
    let graph = graph(FORMS);
    for opset in [17, 18, 21] {
        let directory = directory();
        let bytes = std::fs::read(write(&graph, opset, directory.path())).expect("it is there");
        let model = <onnx_protobuf::ModelProto as onnx_protobuf::Message>::parse_from_bytes(&bytes)
            .expect("it decodes");
        assert_eq!(model.producer_name, "dijiang");
        let imports: Vec<_> = model.opset_import.iter().map(|o| (o.domain.as_str(), o.version)).collect();
        assert_eq!(imports, [("", opset), ("com.microsoft", 1)]);
        compare(&graph, &model.graph, opset);
    }
}

fn compare(graph: &Graph, proto: &onnx_protobuf::GraphProto, opset: i64) {
    assert_eq!(proto.node.len(), graph.nodes().count());
    let name = |v: &Option<ValueId>| v.map_or(String::new(), |v| graph.value(v).name.clone());
    for (node, there) in graph.order().into_iter().map(|id| graph.node(id)).zip(&proto.node) {
        assert_eq!(there.name, node.name);
        assert_eq!((there.domain.as_str(), there.op_type.as_str()), (node.op.domain(), node.op.name()));
        let inputs: Vec<String> = node.inputs.iter().map(name).collect();
        assert_eq!(there.input[..inputs.len()], inputs);
        let outputs: Vec<String> = node.outputs.iter().map(|v| name(&Some(*v))).collect();
        assert_eq!(there.output, outputs);
        for (name, attr) in &node.op.attrs {
            let found = there.attribute.iter().find(|a| a.name == *name);
            match (found, attr) {
                (Some(a), Attr::Int(x)) => assert_eq!(a.i, *x),
                (Some(a), Attr::Float(x)) => assert_eq!(a.f.to_bits(), x.to_bits()),
                (Some(a), Attr::Ints(x)) => assert_eq!(a.ints, *x),
                (Some(a), Attr::Str(x)) if name == "to" => assert_eq!(a.i, if x == "f16" { 10 } else { 1 }),
                (Some(a), Attr::Str(x)) => assert_eq!(a.s, x.as_bytes()),
                (Some(a), Attr::Tensor(x)) => assert_eq!(a.t.raw_data, x.bytes().as_ref()),
                (Some(_), other) => panic!("{name}: {other}"),
                (None, Attr::Ints(x)) => assert_eq!(axes(proto, &there.input[1]), *x),
                (None, _) => assert!(name == "saturate" && opset < 19, "{name} is lost"),
            }
        }
    }
    let weight = proto.initializer.iter().find(|t| t.name == "w").expect("it is there");
    let keys: Vec<_> = weight.external_data.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
    assert_eq!(keys, [("location", "model.safetensors"), ("offset", "128"), ("length", "128")]);
    assert_eq!(weight.dims, [4, 8]);
}

fn axes(proto: &onnx_protobuf::GraphProto, name: &str) -> Vec<i64> {
    let axes = proto.initializer.iter().find(|t| t.name == *name).expect("the axes are a constant");
    axes.raw_data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}

#[test]
fn cut_or_scrambled_files_are_errors() {
    let bytes = export(&graph(FORMS), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    for end in 0..bytes.len() {
        let cut = Bytes::copy_from_slice(&bytes[..end]);
        if let Err(e) = import_bytes(cut, Path::new("cut.onnx")) {
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }
    let mut random = dijiang_passes::numeric::random::Random::new(1);
    for _ in 0..4000 {
        let mut scrambled = bytes.clone();
        for _ in 0..3 {
            let at = (random.uniform() * scrambled.len() as f64) as usize;
            scrambled[at] = (random.uniform() * 256.0) as u8;
        }
        let _ = import_bytes(scrambled.into(), Path::new("scrambled.onnx"));
    }
}

#[test]
fn import_errors_name_the_place() {
    let bytes = export(&graph(FORMS), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let model: ModelProto = prost::Message::decode(bytes.as_slice()).expect("it decodes");
    let refused = |change: fn(&mut ModelProto)| {
        let mut model = model.clone();
        change(&mut model);
        let bytes = prost::Message::encode_to_vec(&model).into();
        import_bytes(bytes, Path::new("m.onnx")).expect_err("it is refused").to_string()
    };
    assert_eq!(refused(|m| m.graph = None), "m.onnx: it holds no graph (hint: is this an ONNX model?)");
    assert_eq!(
        refused(|m| m.opset_import[0].version = 9),
        "m.onnx: opset 9 is not supported, expected 11 to 27 (hint: convert it with onnx.version_converter)"
    );
    assert_eq!(
        refused(|m| nodes(m)[2].attribute[0].name = "kept".to_owned()),
        "m.onnx: import: node `sum` (ReduceSum): no attribute `kept` is known (inputs f32[batch, 8])"
    );
    assert_eq!(
        refused(|m| nodes(m)[2].input[1] = "x".to_owned()),
        "m.onnx: node `sum` (ReduceSum): `axes` is computed (`x`), expected constants"
    );
    assert_eq!(
        refused(|m| nodes(m)[8].attribute[0].i = Some(8)),
        "m.onnx: node `half` (Cast): attribute `to`: element type 8 (string) is not supported, \
         expected a float, an integer or bool"
    );
}

/// What is read of a model after a change.
fn changed(edit: impl Fn(&mut ModelProto)) -> Graph {
    let bytes = export(&graph(FORMS), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let mut model: ModelProto = prost::Message::decode(bytes.as_slice()).expect("it decodes");
    edit(&mut model);
    let bytes = prost::Message::encode_to_vec(&model).into();
    import_bytes(bytes, Path::new("m.onnx")).expect("a graph").graph
}

#[test]
fn nodes_in_another_order_are_read() {
    assert_eq!(print(&changed(|m| nodes(m).swap(0, 1))), print(&changed(|_| {})));
}

/// A mask as some exporters have it, and an input of another name beside it.
#[test]
fn a_mask_of_booleans_takes_whole_numbers() {
    let text = r#"graph "masked" {
  input %attention_mask: bool[batch, sequence]
  input %other_mask: bool[batch, sequence]
  %y = And(%attention_mask, %other_mask) "both": bool[batch, sequence]
  output "y" %y
}"#;
    let bytes = export(&graph(text), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let read = import_bytes(bytes.into(), Path::new("m.onnx")).expect("a graph");
    let dtype = |name: &str| read.graph.input(name).and_then(|value| read.graph.value(value).ty.dtype);
    assert_eq!((dtype("attention_mask"), dtype("other_mask")), (Some(DType::I64), Some(DType::Bool)));
    let given = read.graph.input("attention_mask").expect("an input");
    let casts = read.graph.nodes().filter(|(_, node)| node.op.is("Cast") && node.input(0) == Some(given));
    assert_eq!(casts.map(|(_, node)| node.op.str("to")).collect::<Vec<_>>(), [Some("bool")]);
    assert!(read.notes.iter().any(|note| note.contains("in place of bool")), "{:?}", read.notes);
}

/// As older exporters write a constant that several nodes share.
#[test]
fn a_constant_that_is_passed_on_is_one() {
    let text = r#"graph "shared" {
  input %x: f32[batch, 8]
  weight %w: f32[8, 16] = random(1)
  const %sizes: i64[3] = [0, 4, 4]
  %again = Identity(%sizes) "again": i64[3]
  %kept = Identity(%w) "kept": f32[8, 16]
  %wide = MatMul(%x, %kept) "wide": f32[batch, 16]
  %y = Reshape(%wide, %again) "y": f32[batch, 4, 4]
  output "y" %y
}"#;
    let bytes = export(&graph(text), &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let read = import_bytes(bytes.into(), Path::new("m.onnx")).expect("a graph").graph;
    assert_eq!(read.nodes().filter(|(_, node)| node.op.is("Identity")).count(), 1, "a weight stays one");
    let (_, y) = read.outputs().first().expect("an output");
    assert_eq!(read.value(*y).ty.to_string(), "f32[batch, 4, 4]");
}

/// ONNX Runtime refuses a model in which two nodes have one name.
#[test]
fn nodes_of_one_name_are_written_with_names_of_their_own() {
    let named = changed(|m| nodes(m).iter_mut().for_each(|node| node.name = "same".to_owned()));
    let bytes = export(&named, &ExportOptions { opset: 18, weights: None }).expect("it is written");
    let mut model: ModelProto = prost::Message::decode(bytes.as_slice()).expect("it decodes");
    let names: std::collections::BTreeSet<&str> = nodes(&mut model).iter().map(|n| n.name.as_str()).collect();
    let count = names.len();
    assert!(names.contains("same") && names.contains("same_1"), "{names:?}");
    assert_eq!(count, nodes(&mut model).len());
}

fn nodes(model: &mut ModelProto) -> &mut Vec<super::proto::NodeProto> {
    &mut model.graph.as_mut().expect("a graph").node
}

#[test]
fn export_errors_name_the_place() {
    let options = |opset| ExportOptions { opset, weights: None };
    let standard = RECURRENT.replace("com.microsoft.", "");
    let clipped = FORMS.replace("saturate: 1", "saturate: 0");
    let cases = [
        (FORMS, 16, "opset 16 cannot be written, expected 17 to 27"),
        (
            standard.as_str(),
            21,
            "node `attn` (LinearAttention): it exists from opset 27 on, the model is opset 21",
        ),
        (
            clipped.as_str(),
            18,
            "node `same` (Cast): attribute `saturate` = 0: it exists from opset 19 on, the model is opset 18",
        ),
    ];
    for (text, opset, want) in cases {
        assert_eq!(export(&graph(text), &options(opset)).expect_err("it is refused").to_string(), want);
    }
    let empty = WeightFile::plan(std::iter::empty()).expect("a layout");
    for (location, want) in [
        ("model.safetensors", "value `w`: the weight is not in `model.safetensors`"),
        (
            "../model.safetensors",
            "weight file location `../model.safetensors` leaves the directory of the model file \
             (hint: ONNX Runtime refuses it; put the graph beside the weight file)",
        ),
    ] {
        let weights = Some(ExternalWeights { location, file: &empty });
        let e = export(&graph(FORMS), &ExportOptions { opset: 17, weights }).expect_err("it is refused");
        assert_eq!(e.to_string(), want);
    }
}

#[test]
fn external_data_stays_in_its_file_and_directory() {
    let directory = directory();
    let path = write(&graph(FORMS), 17, directory.path());
    let bytes = std::fs::read(&path).expect("it is there");
    let cases = [
        ("offset", "160", "128 bytes at 160 lie past the end of `model.safetensors` (256 bytes)"),
        ("offset", "257", "offset 257 lies past the end of `model.safetensors` (256 bytes)"),
        ("offset", "-1", "offset `-1` of its external data is not a number of bytes"),
        ("length", "x", "length `x` of its external data is not a number of bytes"),
        ("length", "64", "a tensor f32[4, 8] takes 128 bytes, but 64 are there"),
        ("location", "../w", "the external data location `../w` leaves the directory of the model file"),
        (
            "location",
            "/etc/passwd",
            "the external data location `/etc/passwd` leaves the directory of the model file",
        ),
        (
            "location",
            "gone",
            "external data `gone`: No such file or directory (os error 2) (hint: it must lie beside the model \
             file; a model saved by an ONNX Runtime session needs the data of the model it was made of)",
        ),
    ];
    for (key, value, want) in cases {
        let mut model: ModelProto = prost::Message::decode(bytes.as_slice()).expect("it decodes");
        let weight = model.graph.as_mut().expect("a graph").initializer.iter_mut().find(|t| t.name == "w");
        let entries = &mut weight.expect("it is there").external_data;
        entries.iter_mut().find(|e| e.key == key).expect("it is there").value = value.to_owned();
        let bytes = prost::Message::encode_to_vec(&model).into();
        let e = import_bytes(bytes, &path).expect_err("it is refused");
        assert_eq!(e.to_string(), format!("{}: initialiser `w`: {want}", path.display()));
    }
}
