//! `--recipe softmax --target ort`: the serving graph has ONNX Runtime's grouped attention in it, and gives the logits
//! of the plain form, all at once and token by token.

use dijiang::convert::{ConvertOptions, convert};
use dijiang::onnx::import::import;
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::verify::{Choice, VerifyOptions};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use dijiang_passes::ir::graph::Graph;
use std::path::{Path, PathBuf};

fn converted(fixture: &str, target: Target, at: &Path) -> Graph {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
    let runtimes = if dijiang_runtime::OrtRuntime::new().is_ok() { Choice::Ort } else { Choice::Tract };
    let required = std::env::var("DIJIANG_REQUIRE_ORT").is_ok_and(|v| v == "1");
    assert!(!required || runtimes == Choice::Ort, "ONNX Runtime is required");
    let options = ConvertOptions {
        target,
        dtype: Some(DType::F32),
        force: true,
        verify: Some(VerifyOptions { runtimes, ..VerifyOptions::default() }),
        ..ConvertOptions::of(recipes::load("softmax").expect("a preset"))
    };
    let result = convert(&source, at, &options, &mut Silent).expect("it converts");
    let verification = result.verification.expect("it was verified");
    assert!(verification.ok, "{fixture}: {:#?}", verification.checks);
    if runtimes == Choice::Ort {
        let names: Vec<&str> = verification.checks.iter().map(|c| c.name.as_str()).collect();
        let padded = ["left", "right"].map(|side| format!("onnxruntime: padded {side} = alone"));
        let [left, right] = padded.each_ref().map(String::as_str);
        for name in
            ["onnxruntime: served = softmax", "onnxruntime: token by token = all at once", left, right]
        {
            assert!(names.contains(&name), "{fixture}: {names:?}");
        }
    }
    import(&at.join(files::MODEL)).expect("it reads back")
}

fn count(graph: &Graph, op: &str) -> usize {
    graph.nodes().filter(|(_, node)| node.op.name() == op).count()
}

#[test]
fn every_family_is_served_by_the_grouped_operator() {
    let directory = tempfile::tempdir().expect("a directory");
    let at: PathBuf = directory.path().join("bundle");
    // Rotary embedding inside the operator; beside it, as its 4 features are not of 16; and none.
    for (fixture, inside, beside) in [("llama", 2, 0), ("neox", 0, 4), ("neox-serial", 2, 0), ("opt", 0, 0)] {
        let graph = converted(fixture, Target::Ort, &at);
        let rotating = graph.nodes().filter(|(_, node)| node.op.int("do_rotary") == Some(1)).count();
        let found = ["GroupQueryAttention", "RotaryEmbedding", "Softmax"].map(|op| count(&graph, op));
        assert_eq!((rotating, found), (inside, [2, beside, 0]), "{fixture}");
    }
}

#[test]
fn windows_are_those_of_the_grouped_operator() {
    let directory = tempfile::tempdir().expect("a directory");
    let at: PathBuf = directory.path().join("bundle");
    for (fixture, windows) in
        [("mistral", vec![Some(8), Some(8)]), ("ministral", vec![Some(5), Some(-1), Some(5)])]
    {
        let graph = converted(fixture, Target::Ort, &at);
        let grouped = graph.order().into_iter().map(|id| graph.node(id));
        let grouped = grouped.filter(|node| node.op.name() == "GroupQueryAttention");
        let found: Vec<Option<i64>> = grouped.map(|node| node.op.int("local_window_size")).collect();
        assert_eq!(found, windows, "{fixture}");
    }
}

#[test]
fn other_targets_and_other_heads_keep_plain_operators() {
    let directory = tempfile::tempdir().expect("a directory");
    let at: PathBuf = directory.path().join("bundle");
    // Heads of 12 features are none the operator takes.
    for (fixture, target) in [("llama", Target::Portable), ("llama-linear", Target::Ort)] {
        let graph = converted(fixture, target, &at);
        assert_eq!((count(&graph, "GroupQueryAttention"), count(&graph, "Softmax")), (0, 2), "{fixture}");
    }
}
