use std::path::Path;

use dijiang_format::dtype::DType;
use dijiang_runtime::{Device, DimSpec, HostTensor, Link, LoadOptions, Runtime, Session, TractRuntime};
use tract_onnx::pb::tensor_proto::DataType;

use crate::models::{self, Model};
use crate::{assert_close, ort, runtimes};

fn load_error(runtime: &dyn Runtime, path: &Path) -> String {
    let message = runtime.load(path, &LoadOptions::default()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    assert!(message.contains(&path.display().to_string()), "{message}");
    message
}

fn every_dtype() -> Vec<(&'static str, DataType, DType)> {
    vec![
        ("f64", DataType::Double, DType::F64),
        ("f32", DataType::Float, DType::F32),
        ("f16", DataType::Float16, DType::F16),
        ("i64", DataType::Int64, DType::I64),
        ("i32", DataType::Int32, DType::I32),
        ("i16", DataType::Int16, DType::I16),
        ("i8", DataType::Int8, DType::I8),
        ("u64", DataType::Uint64, DType::U64),
        ("u32", DataType::Uint32, DType::U32),
        ("u16", DataType::Uint16, DType::U16),
        ("u8", DataType::Uint8, DType::U8),
        ("bool", DataType::Bool, DType::Bool),
    ]
}

fn pattern(dtype: DType, rows: usize) -> HostTensor {
    let len = rows * 2 * dtype.size();
    let byte = |i: usize| if dtype == DType::Bool { i % 2 } else { i * 7 % 251 };
    HostTensor::new(dtype, vec![rows, 2], (0..len).map(|i| byte(i) as u8).collect()).unwrap()
}

fn check_echo(runtime: &dyn Runtime, dtypes: &[(&str, DataType, DType)]) {
    let dir = tempfile::tempdir().unwrap();
    let named: Vec<(&str, DataType)> = dtypes.iter().map(|&(name, onnx, _)| (name, onnx)).collect();
    let path = models::echo(&named).write(dir.path());
    let mut session = runtime.load(&path, &LoadOptions::default()).unwrap();
    for rows in [3, 1, 0] {
        let given: Vec<HostTensor> = dtypes.iter().map(|&(_, _, dtype)| pattern(dtype, rows)).collect();
        let inputs: Vec<(&str, &HostTensor)> = dtypes.iter().map(|d| d.0).zip(&given).collect();
        assert_eq!(session.run(&inputs).unwrap(), given, "{} with {rows} rows", runtime.name());
    }
}

#[test]
fn every_dtype_passes_through_unchanged() {
    for runtime in runtimes() {
        check_echo(runtime.as_ref(), &every_dtype());
    }
}

#[test]
fn onnx_runtime_passes_bf16_and_tract_says_that_it_cannot() {
    let bf16 = [("bf16", DataType::Bfloat16, DType::BF16)];
    if let Some(runtime) = ort() {
        check_echo(runtime.as_ref(), &bf16);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = models::echo(&[("bf16", DataType::Bfloat16)]).write(dir.path());
    let message = load_error(&TractRuntime, &path);
    assert!(message.to_lowercase().contains("bf16") || message.contains("Bfloat16"), "{message}");
}

#[test]
fn declared_shapes_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::decoder(models::ALL).write(dir.path());
    for runtime in runtimes() {
        let session = runtime.load(&path, &LoadOptions::default()).unwrap();
        let state = session.inputs().iter().find(|io| io.name == "past_key_values.1.key").unwrap();
        let open = |name: &str| DimSpec::Dynamic(Some(name.to_owned()));
        assert_eq!(
            state.shape,
            [open("batch"), DimSpec::Fixed(1), open("past"), DimSpec::Fixed(models::WIDTH)]
        );
        assert_eq!(state.shape_text(), "[batch, 1, past, 4]");
        assert_eq!(session.outputs()[0].name, "logits");
    }
}

#[test]
fn inputs_are_refused_in_the_same_words_by_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::echo(&[("x", DataType::Float)]).write(dir.path());
    let (good, wide) = (pattern(DType::F32, 1), HostTensor::zeros(DType::F32, &[1, 3]).unwrap());
    let cases: Vec<(Vec<(&str, &HostTensor)>, &str)> = vec![
        (vec![], "input `x` is missing; the model takes `x`"),
        (vec![("y", &good)], "the model has no input `y`; it takes `x`"),
        (vec![("x", &wide)], "input `x` has shape [1, 3], the model takes [n, 2]"),
    ];
    for runtime in runtimes() {
        let mut session = runtime.load(&path, &LoadOptions::default()).unwrap();
        for (inputs, expected) in &cases {
            assert_eq!(session.run(inputs).unwrap_err().to_string(), *expected, "{}", runtime.name());
        }
    }
}

#[test]
fn weights_beside_the_model_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = models::decoder(models::STATELESS);
    let inside = model_logits(
        &models::decoder(models::STATELESS).write(tempfile::tempdir().unwrap().keep().as_path()),
    );
    model.externalise("table", dir.path(), "model.safetensors");
    assert_eq!(model_logits(&model.write(dir.path())), inside);
}

fn model_logits(path: &Path) -> Vec<Vec<f32>> {
    let tokens = HostTensor::from_i64(&[1, 3], &[1, 2, 3]).unwrap();
    let ones = HostTensor::from_i64(&[1, 3], &[1, 1, 1]).unwrap();
    let inputs = [("input_ids", &tokens), ("attention_mask", &ones), ("position_ids", &tokens)];
    let logits = |runtime: Box<dyn Runtime>| {
        let mut session = runtime.load(path, &LoadOptions::default()).unwrap();
        session.run(&inputs).unwrap()[0].to_f32().unwrap()
    };
    runtimes().into_iter().map(logits).collect()
}

#[test]
fn missing_and_broken_files_are_one_line_errors() {
    let dir = tempfile::tempdir().unwrap();
    for runtime in runtimes() {
        load_error(runtime.as_ref(), &dir.path().join("no.onnx"));
        for (name, bytes) in [("empty.onnx", &b""[..]), ("noise.onnx", b"this is no model at all")] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            load_error(runtime.as_ref(), &path);
        }
    }
}

#[test]
fn an_operator_of_another_domain_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    model.input("x", DataType::Float, "n");
    model.output("y", DataType::Float, "n");
    // tract has a Relu and must not take this one for it.
    model.node("Relu", &["x"], "y", vec![]);
    model.in_domain("com.microsoft");
    let path = model.write(dir.path());
    for runtime in runtimes() {
        let message = load_error(runtime.as_ref(), &path);
        assert!(message.contains("Relu") && message.contains("com.microsoft"), "{message}");
    }
}

#[test]
fn unoptimised_graphs_compute_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::decoder(models::STATELESS).write(dir.path());
    let tokens = HostTensor::from_i64(&[1, 4], &[1, 0, 5, 3]).unwrap();
    let ones = HostTensor::from_i64(&[1, 4], &[1; 4]).unwrap();
    let inputs = [("input_ids", &tokens), ("attention_mask", &ones), ("position_ids", &tokens)];
    for runtime in runtimes() {
        let run = |options: &LoadOptions| {
            let mut session = runtime.load(&path, options).unwrap();
            session.run(&inputs).unwrap()[0].to_f32().unwrap()
        };
        let as_written = LoadOptions { optimize: false, threads: Some(1), ..LoadOptions::default() };
        assert_close(&run(&as_written), &run(&LoadOptions::default()), 1e-5);
    }
}

#[test]
fn more_shapes_than_plans_are_kept_still_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::echo(&[("x", DataType::Float)]).write(dir.path());
    let mut session = TractRuntime.load(&path, &LoadOptions::default()).unwrap();
    for rows in (1..12).chain([1, 11, 5]) {
        let given = pattern(DType::F32, rows);
        assert_eq!(session.run(&[("x", &given)]).unwrap(), [given]);
    }
}

#[test]
fn an_absent_gpu_is_an_error_and_no_fallback() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::echo(&[("x", DataType::Float)]).write(dir.path());
    // No machine has this many, so the test holds on one with GPUs too.
    let options = LoadOptions { device: Device::Cuda(4096), ..LoadOptions::default() };
    for runtime in runtimes() {
        let message = runtime.load(&path, &options).unwrap_err().to_string();
        assert!(message.contains("cannot use cuda:4096") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn unreleased_opsets_load_only_when_asked_for() {
    let Some(runtime) = ort() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = models::echo(&[("x", DataType::Float)]).write_with_opset(dir.path(), 27);
    let message = load_error(runtime.as_ref(), &path);
    assert!(message.contains("27"), "{message}");
    let options = LoadOptions { released_opsets_only: false, ..LoadOptions::default() };
    runtime.load(&path, &options).unwrap();
}

/// Feeds `[1, 2, 3]` and returns every output.
fn feed_123(session: &mut dyn Session, dtype: DType, before: Option<&HostTensor>) -> Vec<Vec<f32>> {
    let x = HostTensor::from_f32(&[1, 3], &[1.0, 2.0, 3.0]).unwrap().to_float(dtype).unwrap();
    let inputs: Vec<(&str, &HostTensor)> =
        before.map(|before| ("before", before)).into_iter().chain([("x", &x)]).collect();
    let outputs = session.run(&inputs).unwrap();
    assert!(outputs.iter().all(|output| output.dtype() == dtype));
    outputs.iter().map(|output| output.to_f32().unwrap()).collect()
}

#[test]
fn half_precision_graphs_run_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::running_product(DataType::Float16).write(dir.path());
    for runtime in runtimes() {
        let mut session = runtime.load(&path, &LoadOptions::default()).unwrap();
        let before = HostTensor::from_f32(&[1, 2], &[1.0, 2.0]).unwrap().to_float(DType::F16).unwrap();
        let found = feed_123(session.as_mut(), DType::F16, Some(&before));
        assert_eq!(found, [[7.0, 8.0], [6.0, 6.0]], "{}", runtime.name());
    }
}

#[test]
fn carried_outputs_come_back_as_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::running_product(DataType::Float).write(dir.path());
    let start = HostTensor::from_f32(&[1, 2], &[1.0, 2.0]).unwrap();
    for runtime in runtimes() {
        let mut session = runtime.load(&path, &LoadOptions::default()).unwrap();
        session.carry(&[Link { input: 0, output: 0 }], std::slice::from_ref(&start)).unwrap();
        assert_eq!(session.carried().unwrap(), std::slice::from_ref(&start));
        for step in [1.0, 2.0] {
            assert_eq!(feed_123(session.as_mut(), DType::F32, None), [[6.0, 6.0]]);
            assert_eq!(session.carried().unwrap()[0].to_f32().unwrap(), [1.0 + 6.0 * step, 2.0 + 6.0 * step]);
        }
        let refused = session.run(&[("before", &start), ("x", &start)]).unwrap_err().to_string();
        assert_eq!(refused, "the model has no input `before`; it takes `x`");
        assert_eq!(session.carried().unwrap()[0].to_f32().unwrap(), [13.0, 14.0]);
        session.carry(&[], &[]).unwrap();
        assert_eq!(feed_123(session.as_mut(), DType::F32, Some(&start)), [[7.0, 8.0], [6.0, 6.0]]);
    }
}

#[test]
fn a_failed_run_leaves_what_is_carried() {
    let dir = tempfile::tempdir().unwrap();
    let path = models::running_product(DataType::Float).write(dir.path());
    let start = HostTensor::from_f32(&[2, 2], &[1.0; 4]).unwrap();
    let x = HostTensor::from_f32(&[3, 3], &[1.0; 9]).unwrap();
    for runtime in runtimes() {
        let mut session = runtime.load(&path, &LoadOptions::default()).unwrap();
        session.carry(&[Link { input: 0, output: 0 }], std::slice::from_ref(&start)).unwrap();
        let message = session.run(&[("x", &x)]).unwrap_err().to_string();
        assert!(message.contains("failed to run") && !message.contains('\n'), "{message}");
        assert_eq!(session.carried().unwrap(), std::slice::from_ref(&start));
    }
}
