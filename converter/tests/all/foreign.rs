//! Models as others write them: old opsets, branches, functions, and constants in every spelling. What is
//! read is shown in the textual form, and where numbers matter they are evaluated.

use crate::support::models::{
    BOOL, FLOAT, INT64, call, changed, function, graph, graph_attribute, int_attribute, node, opset, sound,
    tensor, text, value,
};
use bytes::Bytes;
use dijiang::onnx::import::{Imported, import_bytes};
use dijiang::onnx::proto::{
    AttributeProto, EXTERNAL, FunctionProto, GraphProto, ModelProto, NodeProto, attribute_type,
};
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::text::print;
use dijiang_passes::ir::verify::verify;
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;

fn read(model: &ModelProto) -> Imported {
    let bytes = Bytes::from(model.encode_to_vec());
    let read = import_bytes(bytes, Path::new("m.onnx")).expect("it is read");
    assert_eq!(verify(&read.graph), []);
    read
}

fn refused(model: &ModelProto) -> String {
    let bytes = Bytes::from(model.encode_to_vec());
    import_bytes(bytes, Path::new("m.onnx")).expect_err("it is refused").to_string()
}

/// The graph's text, and its notes.
fn shown(model: &ModelProto) -> String {
    let read = read(model);
    let notes = read.notes.iter().map(|note| format!("note: {note}\n"));
    notes.fold(print(&read.graph), |all, note| all + &note)
}

fn floats_attribute(name: &str, floats: Vec<f32>) -> AttributeProto {
    let r#type = attribute_type::FLOATS;
    AttributeProto { name: text(name), r#type, floats, ..AttributeProto::default() }
}

fn ints_attribute(name: &str, ints: Vec<i64>) -> AttributeProto {
    let r#type = attribute_type::INTS;
    AttributeProto { name: text(name), r#type, ints, ..AttributeProto::default() }
}

fn float_attribute(name: &str, f: f32) -> AttributeProto {
    let r#type = attribute_type::FLOAT;
    AttributeProto { name: text(name), r#type, f: Some(f), ..AttributeProto::default() }
}

fn reference(name: &str, to: &str, r#type: i32) -> AttributeProto {
    AttributeProto { name: text(name), ref_attr_name: text(to), r#type, ..AttributeProto::default() }
}

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

fn ints(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// `y` is one node of `x`, under an opset.
fn single(version: i64, dims: &[i64], node: NodeProto) -> ModelProto {
    let graph = GraphProto {
        name: text("single"),
        input: vec![value("x", FLOAT, dims)],
        output: vec![value("y", FLOAT, dims)],
        node: vec![node],
        ..GraphProto::default()
    };
    ModelProto { graph: Some(graph), opset_import: vec![opset("", version)], ..ModelProto::default() }
}

// Old opsets.

#[test]
fn softmax_before_opset_13_works_on_a_matrix() {
    let softmax = |axis: Option<i64>| {
        let attributes = axis.map(|a| int_attribute("axis", a)).into_iter().collect();
        with(node("Softmax", &["x"], &["y"]), attributes)
    };
    insta::assert_snapshot!(shown(&single(12, &[2, 3, 4], softmax(Some(1)))), @r#"
    graph "single" {
      input %x: f32[2, 3, 4]
      const %"the Softmax:sizes": i64[2] = [0, -1]
      %"the Softmax:flatten" = Reshape(%x, %"the Softmax:sizes") "the Softmax:flatten": f32[2, 12]
      %"the Softmax:flat" = Softmax(%"the Softmax:flatten") {axis: -1} "the Softmax:flat": f32[2, 12]
      %"the Softmax:shape" = Shape(%x) "the Softmax:shape": i64[3]
      %y = Reshape(%"the Softmax:flat", %"the Softmax:shape") "the Softmax": f32[2, 3, 4]
      output "y" %y
    }
    "#);
    insta::assert_snapshot!(shown(&single(12, &[2, 3, 4], softmax(Some(2)))), @r#"
    graph "single" {
      input %x: f32[2, 3, 4]
      %y = Softmax(%x) {axis: 2} "the Softmax": f32[2, 3, 4]
      output "y" %y
    }
    "#);
    insta::assert_snapshot!(shown(&single(11, &[2, 3], softmax(None))), @r#"
    graph "single" {
      input %x: f32[2, 3]
      %y = Softmax(%x) {axis: 1} "the Softmax": f32[2, 3]
      output "y" %y
    }
    "#);
    insta::assert_snapshot!(shown(&single(13, &[2, 3, 4], softmax(None))), @r#"
    graph "single" {
      input %x: f32[2, 3, 4]
      %y = Softmax(%x) "the Softmax": f32[2, 3, 4]
      output "y" %y
    }
    "#);
}

#[test]
fn a_flattened_softmax_sums_to_one_over_all_it_flattens() {
    let model = single(11, &[2, 3, 4], with(node("Softmax", &["x"], &["y"]), vec![int_attribute("axis", 1)]));
    let read = read(&model);
    let x = Array::from_f64(&[2, 3, 4], (0..24).map(|i| f64::from(i * 7 % 10) * 0.1).collect())
        .expect("24 numbers");
    let (input, output) = (read.graph.inputs()[0], read.graph.outputs()[0].1);
    let y = eval(&read.graph, &BTreeMap::from([(input, x)]), &[output]).expect("it runs");
    let sums: Vec<f64> = y[0].to_f64().chunks(12).map(|row| row.iter().sum()).collect();
    assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-12), "{sums:?}");
}

#[test]
fn axes_and_sizes_were_attributes() {
    let squeezed = with(node("Squeeze", &["x"], &["y"]), vec![ints_attribute("axes", vec![1])]);
    let mut model = single(11, &[2, 1, 4], squeezed);
    graph(&mut model).output[0].r#type = None;
    insta::assert_snapshot!(shown(&model), @r#"
    graph "single" {
      input %x: f32[2, 1, 4]
      %y = Squeeze(%x) {axes: [1]} "the Squeeze": f32[2, 4]
      output "y" %y
    }
    "#);
    let split = with(
        node("Split", &["x"], &["y", "z"]),
        vec![int_attribute("axis", 1), ints_attribute("split", vec![1, 3])],
    );
    let mut model = single(12, &[2, 4], split);
    graph(&mut model).output[0].r#type = None;
    graph(&mut model).output.push(value("z", FLOAT, &[2, 3]));
    insta::assert_snapshot!(shown(&model), @r#"
    graph "single" {
      input %x: f32[2, 4]
      const %"the Split:input1": i64[2] = [1, 3]
      %y, %z = Split(%x, %"the Split:input1") {axis: 1} "the Split": f32[2, 1], f32[2, 3]
      output "y" %y
      output "z" %z
    }
    "#);
}

#[test]
fn the_ratio_of_dropout_was_an_attribute() {
    let dropout = with(node("Dropout", &["x"], &["y"]), vec![float_attribute("ratio", 0.1)]);
    insta::assert_snapshot!(shown(&single(11, &[2], dropout)), @r#"
    graph "single" {
      input %x: f32[2]
      const %"the Dropout:input1": f32[] = [0.1]
      %y = Dropout(%x, %"the Dropout:input1") "the Dropout": f32[2]
      output "y" %y
    }
    "#);
}

#[test]
fn operators_whose_meaning_changes_later_are_noted() {
    let grid = single(16, &[1, 1, 2, 2], node("GridSample", &["x", "x"], &["y"]));
    insta::assert_snapshot!(read(&grid).notes.join("\n"), @r"
    node `the GridSample` (GridSample): it is kept as opset 16 writes it, and opset 20 writes it otherwise
    operator GridSample (1 node, first `the GridSample`) is not known: it is kept as it is, and nothing is inferred of its outputs
    ");
}

// Branches.

/// `y = relu(h)` in one branch and `y = exp(h)` in the other; both call their value `inner`.
fn branching(condition: &str) -> ModelProto {
    let branch = |op: &str| GraphProto {
        node: vec![node(op, &["h"], &["inner"])],
        output: vec![value("inner", FLOAT, &[2, 4])],
        ..GraphProto::default()
    };
    changed(|g| {
        g.node[1] = with(
            node("If", &[condition], &["y"]),
            vec![
                graph_attribute("then_branch", branch("Relu")),
                graph_attribute("else_branch", branch("Exp")),
            ],
        );
    })
}

#[test]
fn the_branch_with_the_cache_is_taken() {
    let mut model = branching("use_cache_branch");
    graph(&mut model).input.push(value("use_cache_branch", BOOL, &[1]));
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %inner = Relu(%h) "the Relu": f32[2, 4]
      output "y" %inner
    }
    note: input `use_cache_branch` is fixed to true, the branch with the cache, and is no input any more
    note: node `the If` (If): its condition is always true; the other branch is left out
    "#);
}

#[test]
fn a_branch_is_taken_where_the_condition_is_known() {
    let mut model = branching("c");
    graph(&mut model).initializer.push(tensor("c", BOOL, &[], vec![0]));
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %inner = Exp(%h) "the Exp": f32[2, 4]
      output "y" %inner
    }
    note: node `the If` (If): its condition is always false; the other branch is left out
    "#);
}

/// What exporters make of `squeeze`: a test of a dim that is known.
#[test]
fn a_branch_is_taken_where_shapes_decide() {
    let mut model = branching("not_two");
    let g = graph(&mut model);
    g.initializer.push(tensor("zero", INT64, &[], ints(&[0])));
    g.initializer.push(tensor("two", INT64, &[], ints(&[2])));
    g.node.splice(
        1..1,
        [
            node("Shape", &["x"], &["shape"]),
            node("Gather", &["shape", "zero"], &["rows"]),
            node("Equal", &["rows", "two"], &["is_two"]),
            node("Not", &["is_two"], &["not_two"]),
        ],
    );
    let read = read(&model);
    assert!(read.graph.nodes().any(|(_, n)| n.op.is("Exp")));
    insta::assert_snapshot!(read.notes.join("\n"), @"node `the If` (If): its condition is always false; the other branch is left out");
}

#[test]
fn a_branch_has_initialisers_and_names_of_its_own() {
    let mut model = branching("c");
    let g = graph(&mut model);
    g.initializer.push(tensor("c", BOOL, &[], vec![1]));
    // The name that the branch uses is defined later outside.
    g.node.push(node("Neg", &["y"], &["inner"]));
    g.output[0].name = text("inner");
    let branch = g.node[1].attribute[0].g.as_mut().expect("a branch");
    branch.initializer.push(tensor("b", FLOAT, &[1], vec![0; 4]));
    branch.node.push(node("Add", &["inner", "b"], &["sum"]));
    branch.output[0].name = text("sum");
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %inner_1 = Relu(%h) "the Relu": f32[2, 4]
      const %b: f32[1] = [0.0]
      %sum = Add(%inner_1, %b) "the Add": f32[2, 4]
      %inner = Neg(%sum) "the Neg": f32[2, 4]
      output "inner" %inner
    }
    note: node `the If` (If): its condition is always true; the other branch is left out
    "#);
}

// Functions.

fn calling(functions: Vec<FunctionProto>, calls: Vec<NodeProto>) -> ModelProto {
    let model = changed(|g| {
        g.node.truncate(1);
        g.node.extend(calls);
    });
    ModelProto { functions, ..model }
}

#[test]
fn functions_are_put_in_place_with_their_attributes() {
    let body = vec![
        with(node("LeakyRelu", &["a"], &["m"]), vec![reference("alpha", "slope", attribute_type::FLOAT)]),
        with(node("Softmax", &["m"], &["b"]), vec![reference("axis", "along", attribute_type::INT)]),
    ];
    let f = FunctionProto {
        attribute: vec![text("along")],
        attribute_proto: vec![float_attribute("slope", 0.5)],
        ..function("F", body)
    };
    let calls = vec![
        NodeProto { name: text("one"), ..with(call("F", &["h"], &["z"]), vec![int_attribute("along", 0)]) },
        NodeProto {
            name: text("two"),
            ..with(call("F", &["z"], &["y"]), vec![float_attribute("slope", 0.25)])
        },
    ];
    insta::assert_snapshot!(shown(&calling(vec![f], calls)), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %one/m = LeakyRelu(%h) {alpha: 0.5} "one/the LeakyRelu": f32[2, 4]
      %one/b = Softmax(%one/m) {axis: 0} "one/the Softmax": f32[2, 4]
      %two/m = LeakyRelu(%one/b) {alpha: 0.25} "two/the LeakyRelu": f32[2, 4]
      %two/b = Softmax(%two/m) "two/the Softmax": f32[2, 4]
      output "y" %two/b
    }
    "#);
}

#[test]
fn functions_call_others_and_leave_inputs_out() {
    let inner = FunctionProto {
        input: vec![text("a"), text("low"), text("high")],
        ..function("Inner", vec![node("Clip", &["a", "low", "high"], &["b"])])
    };
    let outer = function("Outer", vec![call("Inner", &["a"], &["b"])]);
    let calls = vec![call("Outer", &["h"], &["y"])];
    insta::assert_snapshot!(shown(&calling(vec![inner, outer], calls)), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %"the Outer/the Inner/b" = Clip(%h) "the Outer/the Inner/the Clip": f32[2, 4]
      output "y" %"the Outer/the Inner/b"
    }
    "#);
}

#[test]
fn functions_may_be_written_for_another_opset() {
    let body = vec![with(node("Softmax", &["a"], &["b"]), vec![int_attribute("axis", 0)])];
    let f = FunctionProto { opset_import: vec![opset("", 12)], ..function("F", body) };
    insta::assert_snapshot!(shown(&calling(vec![f], vec![call("F", &["h"], &["y"])])), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      const %"the F/the Softmax:sizes": i64[1] = [-1]
      %"the F/the Softmax:flatten" = Reshape(%h, %"the F/the Softmax:sizes") "the F/the Softmax:flatten": f32[8]
      %"the F/the Softmax:flat" = Softmax(%"the F/the Softmax:flatten") {axis: -1} "the F/the Softmax:flat": f32[8]
      %"the F/the Softmax:shape" = Shape(%h) "the F/the Softmax:shape": i64[2]
      %"the F/b" = Reshape(%"the F/the Softmax:flat", %"the F/the Softmax:shape") "the F/the Softmax": f32[2, 4]
      output "y" %"the F/b"
    }
    "#);
}

#[test]
fn overloads_are_told_apart() {
    let one = FunctionProto { overload: text("1"), ..function("F", vec![node("Relu", &["a"], &["b"])]) };
    let two = FunctionProto { overload: text("2"), ..function("F", vec![node("Exp", &["a"], &["b"])]) };
    let called = NodeProto { overload: text("2"), ..call("F", &["h"], &["y"]) };
    let read = read(&calling(vec![one, two], vec![called]));
    assert!(read.graph.nodes().any(|(_, n)| n.op.is("Exp")));
}

// Constants, inputs, outputs.

#[test]
fn constants_in_every_spelling() {
    let constant =
        |attribute: AttributeProto, output: &str| with(node("Constant", &[], &[output]), vec![attribute]);
    let of_tensor = AttributeProto {
        name: text("value"),
        r#type: attribute_type::TENSOR,
        t: Some(tensor("", INT64, &[1], ints(&[7]))),
        ..AttributeProto::default()
    };
    let model = changed(|g| {
        let constants = vec![
            constant(of_tensor, "a"),
            constant(int_attribute("value_int", 3), "b"),
            constant(ints_attribute("value_ints", vec![1, 2]), "c"),
            constant(float_attribute("value_float", 0.5), "d"),
            constant(floats_attribute("value_floats", vec![1.0, 2.0]), "e"),
        ];
        g.node.splice(0..0, constants);
        g.output.extend(["a", "b", "c", "d", "e"].map(|name| value(name, 0, &[])));
    });
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %y = Relu(%h) "the Relu": f32[2, 4]
      output "y" %y
      const %a: i64[1] = [7]
      output "a" %a
      const %b: i64[] = [3]
      output "b" %b
      const %c: i64[2] = [1, 2]
      output "c" %c
      const %d: f32[] = [0.5]
      output "d" %d
      const %e: f32[2] = [1.0, 2.0]
      output "e" %e
    }
    "#);
}

#[test]
fn constants_that_hold_no_numbers() {
    let with_constant = |attribute: AttributeProto| {
        changed(|g| {
            g.node.insert(0, with(node("Constant", &[], &["s"]), vec![attribute]));
            g.node[2] = node("Unheard", &["h", "s"], &["y"]);
        })
    };
    let string = AttributeProto { r#type: attribute_type::STRING, ..reference("value_string", "", 0) };
    insta::assert_snapshot!(refused(&with_constant(string.clone())), @"m.onnx: node `the Unheard` (Unheard): its input `s`: strings are not supported");
    let sparse = AttributeProto { name: text("sparse_value"), r#type: 11, ..AttributeProto::default() };
    insta::assert_snapshot!(refused(&with_constant(sparse)), @"m.onnx: node `the Constant` (Constant): attribute `sparse_value`: its type 11 is not supported");
    let mut unused = with_constant(string);
    graph(&mut unused).node[2].input.pop();
    assert_eq!(read(&unused).graph.nodes().count(), 2);
}

#[test]
fn inputs_with_defaults_and_inputs_that_nothing_uses() {
    let model = changed(|g| {
        g.input.push(value("w", FLOAT, &[4, 4]));
        g.input.push(value("unused", INT64, &[1]));
    });
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      input %unused: i64[1]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %y = Relu(%h) "the Relu": f32[2, 4]
      output "y" %y
    }
    note: inputs with initialisers are constants and no inputs any more: 1, first `w`
    "#);
}

#[test]
fn an_output_that_is_an_input() {
    let model = changed(|g| g.output.push(value("x", FLOAT, &[2, 4])));
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "the MatMul": f32[2, 4]
      %y = Relu(%h) "the Relu": f32[2, 4]
      output "y" %y
      output "x" %x
    }
    "#);
}

#[test]
fn nodes_may_share_a_name_and_leave_outputs_out() {
    let model = changed(|g| {
        g.node[0].name = text("same");
        g.node[1] = NodeProto { name: text("same"), ..node("Dropout", &["h"], &["y", ""]) };
    });
    insta::assert_snapshot!(shown(&model), @r#"
    graph "sound" {
      input %x: f32[2, 4]
      const %w: f32[4, 4] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      %h = MatMul(%x, %w) "same": f32[2, 4]
      %y, %same:unused1 = Dropout(%h) "same": f32[2, 4], bool[2, 4]
      output "y" %y
    }
    "#);
    assert_eq!(read(&sound()).graph.nodes().count(), 2);
}

/// The models that the fuzzers begin with. Run it with `--ignored` after a change here.
#[test]
#[ignore = "writes fuzz/seeds"]
fn seeds_of_the_fuzzers() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let along = vec![reference("axis", "along", attribute_type::INT)];
    let f = FunctionProto {
        attribute: vec![text("along")],
        ..function("F", vec![with(node("Softmax", &["a"], &["b"]), along)])
    };
    let called = with(call("F", &["h"], &["y"]), vec![int_attribute("along", 0)]);
    let mut cache = branching("use_cache_branch");
    graph(&mut cache).input.push(value("use_cache_branch", BOOL, &[1]));
    let external = changed(|g| {
        g.initializer[0].data_location = EXTERNAL;
        g.initializer[0].raw_data = None;
    });
    let models = [
        ("sound", sound()),
        ("function", calling(vec![f], vec![called])),
        ("branch", cache),
        ("softmax", single(11, &[2, 3, 4], with(node("Softmax", &["x"], &["y"]), vec![]))),
        ("external", external),
    ];
    for (name, model) in models {
        std::fs::write(seeds.join("onnx").join(name), model.encode_to_vec()).expect("it is written");
    }
    let view =
        |n: usize| safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![n], &[0; 6][..2 * n]);
    for n in 0..3 {
        let tensors: Vec<_> = (0..n).map(|i| (format!("t.{i}"), view(i + 1).expect("a view"))).collect();
        let bytes = safetensors::serialize(tensors, None).expect("it is written");
        std::fs::write(seeds.join("safetensors").join(n.to_string()), bytes).expect("it is written");
    }
}
