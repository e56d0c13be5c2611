//! The proof of a bundle fails where the bundle is wrong, and only there.

use crate::support::{Bundle, FIXTURES, ort, recipe};
use dijiang::onnx::proto::{ModelProto, NodeProto, TensorProto};
use dijiang::report::progress::Silent;
use dijiang::verify::{Choice, Verification, VerifyOptions, verify};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest};
use dijiang_format::recipe::{Local, Recipe};
use dijiang_format::serving::Device;
use dijiang_format::target::Target;
use prost::Message as _;
use std::path::Path;

/// A bundle that tract serves, and its proof in tract.
fn portable() -> Bundle {
    Bundle::of_fixture("llama", &recipe("adaptive"), Target::Portable, DType::F32)
}

fn prove(bundle: &Bundle, runtimes: Choice) -> Verification {
    let reference = Some(Path::new(FIXTURES).join("llama/reference.safetensors"));
    let options = VerifyOptions { runtimes, reference, ..VerifyOptions::default() };
    verify(&bundle.path(), &options, &mut Silent).unwrap_or_else(|e| panic!("{e}"))
}

/// The names of the checks that do not hold.
fn failing(found: &Verification) -> Vec<&str> {
    let failing: Vec<&str> = found.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
    assert_eq!(found.ok, failing.is_empty());
    failing
}

/// Changes a graph file.
fn damage(bundle: &Bundle, file: &str, change: impl FnOnce(&mut ModelProto)) {
    let mut model = ModelProto::decode(bundle.bytes(file).as_slice()).expect("an ONNX file");
    change(&mut model);
    put(bundle, file, &model.encode_to_vec());
}

/// Puts one graph file in the place of another.
fn swap(bundle: &Bundle, file: &str, by: &str) {
    put(bundle, file, &bundle.bytes(by));
}

/// Writes a file as if the bundle had been written with it: a digest that is another would tell without a comparison.
fn put(bundle: &Bundle, file: &str, bytes: &[u8]) {
    std::fs::write(bundle.file(file), bytes).expect("it is written");
    let mut manifest = Manifest::read(&bundle.path()).expect("the manifest");
    manifest.put_file(BundleFile::of(file, bytes));
    let text = manifest.to_json().expect("JSON");
    std::fs::write(bundle.file(files::MANIFEST), text).expect("it is written");
}

fn nodes(model: &mut ModelProto) -> &mut Vec<NodeProto> {
    &mut model.graph.as_mut().expect("a graph").node
}

#[test]
fn a_sound_bundle_passes() {
    let found = prove(&portable(), Choice::Tract);
    assert_eq!(failing(&found), [""; 0]);
    let required = found.checks.iter().filter(|c| c.limit.is_some()).count();
    assert!(required > 12, "only {required} checks");
}

#[test]
fn a_wrong_chunked_graph_differs_from_the_parallel_one() {
    let bundle = portable();
    swap(&bundle, files::CHUNKED, files::SOFTMAX);
    assert_eq!(failing(&prove(&bundle, Choice::Tract)), ["tract: chunked = parallel"]);
}

#[test]
fn a_wrong_parallel_graph_differs_from_all_others() {
    let bundle = portable();
    swap(&bundle, files::PARALLEL, files::SOFTMAX);
    let failing = prove(&bundle, Choice::Tract);
    assert_eq!(self::failing(&failing), ["tract: chunked = parallel", "tract: served = parallel"]);
}

#[test]
fn a_wrong_softmax_graph_differs_from_the_reference() {
    let bundle = portable();
    swap(&bundle, files::SOFTMAX, files::PARALLEL);
    assert_eq!(failing(&prove(&bundle, Choice::Tract)), ["tract: softmax = reference"]);
}

#[test]
fn a_wrong_state_shows_as_soon_as_it_is_carried() {
    let bundle = portable();
    damage(&bundle, files::MODEL, |model| {
        let exchange = |name: &mut String| match name.as_str() {
            "present.0.recurrent_state" => "present.1.recurrent_state".clone_into(name),
            "present.1.recurrent_state" => "present.0.recurrent_state".clone_into(name),
            _ => {}
        };
        nodes(model).iter_mut().flat_map(|n| n.output.iter_mut().chain(&mut n.input)).for_each(exchange);
    });
    let expected = [
        "tract: token by token = all at once",
        "tract: split at 1 = all at once",
        "tract: split at 64 = all at once",
        "tract: split at 69 = all at once",
    ];
    assert_eq!(failing(&prove(&bundle, Choice::Tract)), expected);
}

/// Two rings of as many slots hold the same until they are full.
#[test]
fn a_ring_that_keeps_other_tokens_shows_beyond_it() {
    if ort().is_none() {
        return;
    }
    let of = |window, sinks| {
        let local = Some(Local { window, sinks });
        let recipe = Recipe { local, wide: None, ..recipe("windows") };
        Bundle::of_fixture("llama", &recipe, Target::Ort, DType::F32)
    };
    let bundle = of(90, 4);
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [""; 0]);
    put(&bundle, files::MODEL, &of(92, 2).bytes(files::MODEL));
    let beyond = "onnxruntime: served = parallel beyond a window of 94 slots";
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [beyond, &format!("{beyond} in two calls")]);
}

/// What is run on a device is told beside what is run anyway, or why it is not.
#[test]
fn a_device_that_is_named_has_rows_of_its_own() {
    let on = |bundle: &Bundle, runtimes| {
        let options = VerifyOptions { runtimes, device: Some(Device::Cpu), ..VerifyOptions::default() };
        let found = verify(&bundle.path(), &options, &mut Silent).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(failing(&found), [""; 0]);
        found
    };
    let skipped = |found: &Verification| {
        found.checks.iter().filter(|row| row.is_skipped() && row.name.ends_with("on cpu")).count()
    };
    assert_eq!(skipped(&on(&portable(), Choice::Tract)), 1);
    if ort().is_none() {
        return;
    }
    let found = on(&Bundle::of_fixture("llama", &recipe("adaptive"), Target::Ort, DType::F32), Choice::Ort);
    let rows = found.checks.iter().filter(|check| check.name.starts_with("onnxruntime on cpu: "));
    assert_eq!(
        rows.map(|check| check.name.as_str()).collect::<Vec<_>>(),
        [
            "onnxruntime on cpu: prompts as `generate` feeds them = parallel",
            "onnxruntime on cpu: tokens as `generate` feeds them = parallel",
            "onnxruntime on cpu: prefill.onnx in segments = parallel",
            "onnxruntime on cpu: decode.onnx token by token = parallel",
        ]
    );
    assert_eq!(skipped(&found), 0);
}

/// Padding after a row cannot reach it, so only a row that is padded at its left is wrong.
#[test]
fn a_serving_graph_that_sees_padding_fails_for_padded_rows() {
    let bundle = portable();
    damage(&bundle, files::MODEL, |model| {
        for node in nodes(model).iter_mut() {
            for input in node.input.iter_mut().filter(|input| *input == "attention_mask") {
                "all_ones".clone_into(input);
            }
        }
        let node = |op: &str, inputs: [&str; 2], output: &str| NodeProto {
            op_type: op.to_owned(),
            input: inputs.map(str::to_owned).to_vec(),
            output: vec![output.to_owned()],
            name: format!("make_{output}"),
            ..NodeProto::default()
        };
        let zeros = node("Sub", ["attention_mask", "attention_mask"], "all_zeros");
        let ones = node("Add", ["all_zeros", "just_one"], "all_ones");
        nodes(model).splice(0..0, [zeros, ones]);
        // 7 is i64.
        let one = TensorProto {
            name: "just_one".to_owned(),
            data_type: 7,
            raw_data: Some(1i64.to_le_bytes().to_vec().into()),
            ..TensorProto::default()
        };
        model.graph.as_mut().expect("a graph").initializer.push(one);
    });
    let expected = ["tract: served = parallel", "tract: padded left = alone"];
    assert_eq!(failing(&prove(&bundle, Choice::Tract)), expected);
}

/// The rows that compare what is served with the parallel form.
const SERVED_ROWS: [&str; 3] = [
    "onnxruntime: served = parallel",
    "onnxruntime: prompts as `generate` feeds them = parallel",
    "onnxruntime: tokens as `generate` feeds them = parallel",
];

/// One percent too much of one layer's attention is seen.
#[test]
fn a_wrong_attribute_of_the_operator_differs_from_the_parallel_graph() {
    if ort().is_none() {
        return;
    }
    let bundle = Bundle::of_fixture("llama", &recipe("adaptive"), Target::Ort, DType::F32);
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [""; 0]);
    damage(&bundle, files::MODEL, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "LinearAttention").expect("the operator");
        let scale = node.attribute.iter_mut().find(|a| a.name == "scale").expect("its scale");
        scale.f = scale.f.map(|scale| scale * 1.01);
    });
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), SERVED_ROWS);
}

/// The measure of a check.
fn measured(found: &Verification, name: &str) -> f64 {
    found.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{:#?}", found.checks)).measured
}

/// A serving graph in half precision reads cosines and sines that are rounded, which is no error of it.
#[test]
fn rounded_rotary_tables_pass_and_wrong_ones_do_not() {
    let exactly = "f64 interpreter: served = softmax";
    for dtype in [DType::BF16, DType::F16] {
        let bundle = Bundle::of_fixture("llama", &recipe("softmax"), Target::Ort, dtype);
        let found = prove(&bundle, Choice::Tract);
        assert_eq!(failing(&found), [""; 0], "{dtype}");
        // Both in f64, and the same numbers are rounded: 1.8e-3 in bf16 where they are not.
        let apart = measured(&found, exactly);
        assert!(apart < 1e-6, "{dtype}: {apart:e}");
        damage(&bundle, files::MODEL, |model| {
            let attention = nodes(model).iter_mut().find(|n| n.op_type == "GroupQueryAttention");
            let node = attention.expect("the operator");
            let scale = node.attribute.iter_mut().find(|a| a.name == "scale").expect("its scale");
            scale.f = scale.f.map(|scale| scale * 1.01);
        });
        assert_eq!(failing(&prove(&bundle, Choice::Tract)), [exactly], "{dtype}");
    }
}

#[test]
fn an_operator_without_its_decay_differs_from_the_parallel_graph() {
    if ort().is_none() {
        return;
    }
    let bundle = Bundle::of_fixture("llama", &recipe("decayed"), Target::Ort, DType::F32);
    damage(&bundle, files::MODEL, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "LinearAttention").expect("the operator");
        let rule = node.attribute.iter_mut().find(|a| a.name == "update_rule").expect("its rule");
        assert_eq!(rule.s.as_deref(), Some(b"gated".as_slice()));
        rule.s = Some("linear".into());
        node.input.truncate(4);
    });
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), SERVED_ROWS);
}

/// One percent too much of one layer's attention, in the graphs that serve from bound memory.
#[test]
fn wrong_graphs_for_bound_memory_differ_from_the_parallel_graph() {
    if ort().is_none() {
        return;
    }
    let bundle = Bundle::of_fixture("llama", &recipe("adaptive"), Target::Ort, DType::F32);
    damage(&bundle, files::DECODE, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "LinearAttention").expect("the operator");
        let scale = node.attribute.iter_mut().find(|a| a.name == "scale").expect("its scale");
        scale.f = scale.f.map(|scale| scale * 1.01);
    });
    let decode = "onnxruntime: decode.onnx token by token = parallel";
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [decode]);
    damage(&bundle, files::PREFILL, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "Softmax").expect("features");
        node.op_type = "LogSoftmax".to_owned();
    });
    let prefill = "onnxruntime: prefill.onnx in segments = parallel";
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [prefill, decode]);
}

/// In half precision the limit is what rounding does to the model.
#[test]
fn wrong_graphs_for_bound_memory_are_told_from_rounding() {
    if ort().is_none() {
        return;
    }
    let bundle = Bundle::of_fixture("llama", &recipe("gated"), Target::Ort, DType::F16);
    let found = prove(&bundle, Choice::Ort);
    assert_eq!(failing(&found), [""; 0]);
    let [prefill, decode] = ["prefill.onnx in segments", "decode.onnx token by token"]
        .map(|name| format!("onnxruntime: {name} = parallel"));
    for name in [&prefill, &decode] {
        let check = found.checks.iter().find(|c| c.name == *name).expect("the check");
        let limit = check.limit.expect("a limit");
        // The graph rounds, and its limit is no more than some roundings of 2⁻¹¹.
        assert!(check.measured > limit / 32.0 && limit <= 16.0 / 2048.0, "{name}: {check:?}");
    }
    damage(&bundle, files::DECODE, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "LinearAttention").expect("the operator");
        let scale = node.attribute.iter_mut().find(|a| a.name == "scale").expect("its scale");
        scale.f = scale.f.map(|scale| scale * 1.05);
    });
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [decode.as_str()]);
    damage(&bundle, files::PREFILL, |model| {
        let node = nodes(model).iter_mut().find(|n| n.op_type == "Softmax").expect("features");
        node.op_type = "LogSoftmax".to_owned();
    });
    assert_eq!(failing(&prove(&bundle, Choice::Ort)), [prefill.as_str(), decode.as_str()]);
}
