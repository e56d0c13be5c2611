//! Small ONNX models, message by message.

use dijiang::onnx::proto::{
    AttributeProto, DimValue, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    attribute_type,
};

pub(crate) const FLOAT: i32 = 1;
pub(crate) const INT64: i32 = 7;
pub(crate) const STRING: i32 = 8;
pub(crate) const BOOL: i32 = 9;

pub(crate) fn text(s: &str) -> String {
    s.to_owned()
}

pub(crate) fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|d| DimensionProto { value: Some(DimValue::Value(*d)) }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: text(name), r#type: Some(TypeProto { tensor_type }), doc_string: String::new() }
}

pub(crate) fn tensor(name: &str, data_type: i32, dims: &[i64], raw: Vec<u8>) -> TensorProto {
    let raw_data = Some(raw.into());
    TensorProto { name: text(name), data_type, dims: dims.to_vec(), raw_data, ..TensorProto::default() }
}

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: text(op),
        name: format!("the {op}"),
        input: inputs.iter().map(|i| text(i)).collect(),
        output: outputs.iter().map(|o| text(o)).collect(),
        ..NodeProto::default()
    }
}

pub(crate) fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    let r#type = attribute_type::GRAPH;
    AttributeProto { name: text(name), r#type, g: Some(graph), ..AttributeProto::default() }
}

pub(crate) fn int_attribute(name: &str, i: i64) -> AttributeProto {
    let r#type = attribute_type::INT;
    AttributeProto { name: text(name), r#type, i: Some(i), ..AttributeProto::default() }
}

pub(crate) fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: text(domain), version }
}

/// `y = relu(x · w)`
pub(crate) fn sound() -> ModelProto {
    let w = tensor("w", FLOAT, &[4, 4], vec![0; 64]);
    let graph = GraphProto {
        name: text("sound"),
        input: vec![value("x", FLOAT, &[2, 4])],
        output: vec![value("y", FLOAT, &[2, 4])],
        initializer: vec![w],
        node: vec![node("MatMul", &["x", "w"], &["h"]), node("Relu", &["h"], &["y"])],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![opset("", 17)],
        ..ModelProto::default()
    }
}

pub(crate) fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().expect("a graph")
}

pub(crate) fn changed(change: impl FnOnce(&mut GraphProto)) -> ModelProto {
    let mut model = sound();
    change(graph(&mut model));
    model
}

// Functions.

pub(crate) fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: text(name),
        domain: text("local"),
        input: vec![text("a")],
        output: vec![text("b")],
        node: nodes,
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..FunctionProto::default()
    }
}

pub(crate) fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: text("local"), ..node(name, inputs, outputs) }
}
