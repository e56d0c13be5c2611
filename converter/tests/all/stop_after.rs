//! `convert --stop-after N`: the graph as it stands after N patches, for every N.

use crate::support::decoder::{difference, evaluate, text, write};
use dijiang::convert::compile::{CompileOptions, compile, compile_first};
use dijiang::convert::stop_after::convert_first;
use dijiang::convert::{ConvertOptions, source};
use dijiang::onnx::import;
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang_format::target::Target;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::text::print;

/// The clean-ups change the order of f64 operations, nothing else: this graph holds no constant that one of
/// them folds in f32.
const EXACT: f64 = 1e-12;

/// A first layer as wordy as exporters write it.
fn wordy() -> String {
    let tokens = "  %h.0.tokens = Transpose(%h.0.mixed) {perm: [0, 2, 1, 3]}\n";
    let scores = "  %h.0.scores = Add(%h.0.scaled, %mask)\n";
    text(|layer| {
        assert!(layer.contains(tokens) && layer.contains(scores));
        let layer = layer.replace(
            tokens,
            "  %h.0.there = Transpose(%h.0.mixed) {perm: [0, 2, 1, 3]}
  %h.0.back = Transpose(%h.0.there) {perm: [0, 2, 1, 3]}
  %h.0.tokens = Transpose(%h.0.back) {perm: [0, 2, 1, 3]}
",
        );
        layer.replace(
            scores,
            "  %h.0.same = Cast(%h.0.scaled) {to: \"f32\"}
  %h.0.again = LessOrEqual(%places, %queries)
  %h.0.causal = Where(%h.0.again, %clear, %shut)
  %h.0.wide = Unsqueeze(%h.0.causal) {axes: [0]}
  %h.0.wider = Unsqueeze(%h.0.wide) {axes: [0]}
  %h.0.masked = Add(%h.0.same, %h.0.wider)
  %h.0.padding = Where(%seen, %clear, %shut)
  %h.0.scores = Add(%h.0.masked, %h.0.padding)
",
        )
    })
}

fn outputs(graph: &Graph) -> Vec<ValueId> {
    graph.outputs().iter().map(|(_, v)| *v).collect()
}

#[test]
fn after_any_number_of_clean_ups_the_graph_computes_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let model = write(&wordy(), directory.path());
    let mut clean = import::import(&model).expect("it is read");
    let before = evaluate(&clean, 3, &outputs(&clean));
    clean.stop_after(usize::MAX);
    canonicalize(&mut clean).expect("it settles");
    let all = clean.patches();
    assert!(all > 3, "{all} clean-ups are too few to tell");
    let options =
        ConvertOptions { force: true, ..ConvertOptions::of(recipes::load("gated").expect("the recipe")) };
    for n in 0..=all {
        let bundle = directory.path().join("bundle");
        let partial = convert_first(n, &model, &bundle, &options, &mut Silent).expect("it converts");
        assert_eq!((partial.patches, partial.stopped), (n, true));
        let written = import::import(&bundle.join("model.onnx")).expect("it reads back");
        let after = evaluate(&written, 3, &outputs(&written));
        for (after, before) in after.iter().zip(&before) {
            let apart = difference(after, before);
            assert!(apart < EXACT, "after {n} patches, the last {:?}: {apart}", partial.last);
        }
    }
}

#[test]
fn the_numbers_are_the_same_in_every_run_and_end_with_the_serving_graph() {
    let directory = tempfile::tempdir().expect("a directory");
    let model = write(&wordy(), directory.path());
    let recipe = recipes::load("gated").expect("the recipe");
    let how = CompileOptions { recipe: &recipe, target: Target::Ort, seed: 0, layers: None };
    let first = |n: usize| {
        let graph = source::open(&model, None).expect("it is read").as_read;
        compile_first(n, (graph, None), &how).expect("it compiles")
    };
    let whole = first(usize::MAX);
    assert!(!whole.stopped);
    let compiled = compile(source::open(&model, None).expect("it is read").graph, &how).expect("it compiles");
    assert_eq!(print(&whole.graph), print(&compiled.model));
    let log = |n: usize| {
        let step = first(n).last.expect("a patch");
        format!("{n}: {} at {}", step.rule, step.places.join(", "))
    };
    let lines: Vec<String> = (1..=whole.patches).map(log).collect();
    assert_eq!(lines, (1..=whole.patches).map(log).collect::<Vec<_>>());
    insta::assert_snapshot!(lines.join("\n"));
}
