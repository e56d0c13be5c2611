//! The graphs of real bundles, read by a decoder that was generated from ONNX's own schema.

use crate::support::{Bundle, recipe};
use dijiang::onnx::proto;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use onnx_protobuf as second;
use onnx_protobuf::Message as _;
use safetensors::SafeTensors;

#[test]
fn a_generated_decoder_reads_what_ours_reads() {
    for (target, dtype) in
        [(Target::Ort, DType::F16), (Target::Portable, DType::F32), (Target::Onnx27, DType::BF16)]
    {
        for (fixture, preset) in [("llama", "adaptive"), ("neox", "released"), ("opt", "softmax")] {
            let bundle = Bundle::of_fixture(fixture, &recipe(preset), target, dtype);
            let forms = [files::SOFTMAX, files::PARALLEL, files::CHUNKED];
            let forms = forms.into_iter().filter(|_| preset != "softmax");
            for file in forms.chain([files::MODEL]) {
                compare(&bundle, file, &format!("{fixture}, {preset}, {target}: {file}"));
            }
        }
    }
}

fn compare(bundle: &Bundle, file: &str, place: &str) {
    let bytes = bundle.bytes(file);
    let theirs = second::ModelProto::parse_from_bytes(&bytes).unwrap_or_else(|e| panic!("{place}: {e}"));
    let ours: proto::ModelProto =
        prost::Message::decode(bytes.as_slice()).unwrap_or_else(|e| panic!("{place}: {e}"));
    assert_eq!(theirs.ir_version, ours.ir_version, "{place}");
    let opsets = theirs.opset_import.iter().map(|o| (o.domain.as_str(), o.version));
    assert!(opsets.eq(ours.opset_import.iter().map(|o| (o.domain.as_str(), o.version))), "{place}");
    let ours = ours.graph.expect("a graph");
    let theirs = &theirs.graph;
    assert!(!ours.node.is_empty() && ours.node.len() == theirs.node.len(), "{place}");
    for (ours, theirs) in ours.node.iter().zip(&theirs.node) {
        same_node(ours, theirs, place);
    }
    same_values(&ours.input, &theirs.input, place);
    same_values(&ours.output, &theirs.output, place);
    same_values(&ours.value_info, &theirs.value_info, place);
    assert_eq!(ours.initializer.len(), theirs.initializer.len(), "{place}");
    let weights = bundle.bytes(files::WEIGHTS);
    for (ours, theirs) in ours.initializer.iter().zip(&theirs.initializer) {
        same_tensor(ours, theirs, place);
        if !theirs.external_data.is_empty() {
            points_at_its_weight(theirs, &weights, place);
        }
    }
}

fn same_node(ours: &proto::NodeProto, theirs: &second::NodeProto, place: &str) {
    let place = format!("{place}, node {}", ours.name);
    assert_eq!(theirs.name, ours.name, "{place}");
    assert_eq!((&theirs.domain, &theirs.op_type), (&ours.domain, &ours.op_type), "{place}");
    assert_eq!((&theirs.input, &theirs.output), (&ours.input, &ours.output), "{place}");
    assert_eq!(theirs.attribute.len(), ours.attribute.len(), "{place}");
    for (ours, theirs) in ours.attribute.iter().zip(&theirs.attribute) {
        assert_eq!((&theirs.name, theirs.type_.value()), (&ours.name, ours.r#type), "{place}");
        assert_eq!(theirs.f.to_bits(), ours.f.unwrap_or_default().to_bits(), "{place}");
        assert_eq!(theirs.i, ours.i.unwrap_or_default(), "{place}");
        assert_eq!(theirs.s, ours.s.clone().unwrap_or_default(), "{place}");
        assert_eq!((&theirs.ints, &theirs.floats), (&ours.ints, &ours.floats), "{place}");
        assert_eq!(theirs.t.is_some(), ours.t.is_some(), "{place}");
        if let (Some(theirs), Some(ours)) = (theirs.t.as_ref(), &ours.t) {
            same_tensor(ours, theirs, &place);
        }
    }
}

fn same_tensor(ours: &proto::TensorProto, theirs: &second::TensorProto, place: &str) {
    let place = format!("{place}, tensor {}", ours.name);
    assert_eq!((&theirs.name, &theirs.dims), (&ours.name, &ours.dims), "{place}");
    assert_eq!(theirs.data_type, ours.data_type, "{place}");
    assert_eq!(theirs.data_location.value(), ours.data_location, "{place}");
    assert_eq!(theirs.raw_data, ours.raw_data.clone().unwrap_or_default(), "{place}");
    let entries = theirs.external_data.iter().map(|e| (&e.key, &e.value));
    assert!(entries.eq(ours.external_data.iter().map(|e| (&e.key, &e.value))), "{place}");
    // Elements lie in `raw_data` or outside, nowhere else.
    let lists = (theirs.float_data.len(), theirs.int32_data.len(), theirs.int64_data.len());
    assert_eq!(lists, (0, 0, 0), "{place}");
    let elements = theirs.dims.iter().product::<i64>();
    assert!(elements == 0 || theirs.raw_data.is_empty() != theirs.external_data.is_empty(), "{place}");
}

fn same_values(ours: &[proto::ValueInfoProto], theirs: &[second::ValueInfoProto], place: &str) {
    assert_eq!(theirs.len(), ours.len(), "{place}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        let tensor = theirs.type_.tensor_type();
        let ours_type = ours.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).expect("a tensor");
        assert_eq!((&theirs.name, tensor.elem_type), (&ours.name, ours_type.elem_type), "{place}");
        let open = |n: i64| if n == 0 { None } else { Some(n) };
        let theirs: Vec<(String, Option<i64>)> =
            tensor.shape.dim.iter().map(|d| (d.dim_param().to_owned(), open(d.dim_value()))).collect();
        let shape = ours_type.shape.as_ref().expect("a shape");
        let ours: Vec<(String, Option<i64>)> = shape
            .dim
            .iter()
            .map(|d| match &d.value {
                Some(proto::DimValue::Param(name)) => (name.clone(), None),
                Some(proto::DimValue::Value(n)) => (String::new(), open(*n)),
                None => (String::new(), None),
            })
            .collect();
        assert_eq!(theirs, ours, "{place}");
    }
}

/// The bytes that an initialiser points at are those of the weight of its name, as `safetensors` reads the file.
fn points_at_its_weight(tensor: &second::TensorProto, weights: &[u8], place: &str) {
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|e| e.key == key);
        found.unwrap_or_else(|| panic!("{place}: {} has no {key}", tensor.name)).value.clone()
    };
    assert_eq!(entry("location"), files::WEIGHTS, "{place}");
    let number = |key: &str| -> usize { entry(key).parse().expect("a number") };
    let bytes = &weights[number("offset")..number("offset") + number("length")];
    let file = SafeTensors::deserialize(weights).expect("a safetensors file");
    let view = file.tensor(&tensor.name).unwrap_or_else(|e| panic!("{place}: {}: {e}", tensor.name));
    assert!(view.data() == bytes, "{place}: {} points elsewhere", tensor.name);
    let dims: Vec<usize> = tensor.dims.iter().map(|d| *d as usize).collect();
    assert_eq!(view.shape(), dims, "{place}: {}", tensor.name);
}
