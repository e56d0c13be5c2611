//! Decoders of two layers whose first attention is something else, in ten ways: it is reported in one line
//! that names the value in the way, it goes on computing what it did, and the other layer converts. Beside
//! each stands a twin that looks alike and is attention.

use crate::support::decoder::{difference, evaluate, text, write};
use dijiang::convert::compile::{CompileOptions, Compiled, compile};
use dijiang::convert::{ConvertOptions, convert, source};
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang::verify::VerifyOptions;
use dijiang_format::target::Target;
use dijiang_passes::attention::patterns::NearMiss;
use std::path::Path;

struct Case {
    what: &'static str,
    /// A line of the good layer.
    from: &'static str,
    broken: &'static str,
    twin: &'static str,
    proof: Proof,
}

/// What can be proved of a broken model.
#[derive(PartialEq)]
enum Proof {
    /// All of it.
    Whole,
    /// What one call gives depends on how many tokens it is given, before the conversion as after it.
    Interpreter,
    /// It gives something else in every run.
    Nothing,
}

const SCORES: &str = "  %h.0.scores = Add(%h.0.scaled, %mask)\n";
const SCALED: &str = "  %h.0.scaled = Mul(%h.0.product, %scale)\n";
const MIXED: &str = "  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)\n";

const CASES: [Case; 10] = [
    Case {
        what: "a window with a hole",
        from: SCORES,
        broken: "  const %h.0.width: i64[] = [4]
  %h.0.distance = Sub(%queries, %places)
  %h.0.reach = Less(%h.0.distance, %h.0.width)
  %h.0.hole = Equal(%h.0.distance, %one)
  %h.0.solid = Not(%h.0.hole)
  %h.0.near = And(%h.0.reach, %h.0.solid)
  %h.0.visible = And(%open, %h.0.near)
  %h.0.window = Where(%h.0.visible, %clear, %shut)
  %h.0.scores = Add(%h.0.scaled, %h.0.window)
",
        twin: "  const %h.0.width: i64[] = [4]
  %h.0.distance = Sub(%queries, %places)
  %h.0.near = Less(%h.0.distance, %h.0.width)
  %h.0.visible = And(%open, %h.0.near)
  %h.0.window = Where(%h.0.visible, %clear, %shut)
  %h.0.scores = Add(%h.0.scaled, %h.0.window)
",
        proof: Proof::Whole,
    },
    Case {
        what: "ALiBi",
        from: SCORES,
        broken: "  const %h.0.slopes: f32[2, 1, 1] = [0.5, 0.25]
  %h.0.distance = Sub(%places, %queries)
  %h.0.far = Cast(%h.0.distance) {to: \"f32\"}
  %h.0.bias = Mul(%h.0.far, %h.0.slopes)
  %h.0.biased = Add(%h.0.scaled, %h.0.bias)
  %h.0.scores = Add(%h.0.biased, %mask)
",
        twin: "  const %h.0.slopes: f32[2, 1, 1] = [0.0, 0.0]
  %h.0.distance = Sub(%places, %queries)
  %h.0.far = Cast(%h.0.distance) {to: \"f32\"}
  %h.0.bias = Mul(%h.0.far, %h.0.slopes)
  %h.0.biased = Add(%h.0.scaled, %h.0.bias)
  %h.0.scores = Add(%h.0.biased, %mask)
",
        proof: Proof::Whole,
    },
    Case {
        what: "a scale that is computed",
        from: SCALED,
        broken: "  %h.0.energy = ReduceMean(%h.0.q) {axes: [-1], keepdims: 1}
  %h.0.rate = Sigmoid(%h.0.energy)
  %h.0.scaled = Mul(%h.0.product, %h.0.rate)
",
        twin: "  %h.0.rate = Sigmoid(%scale)
  %h.0.scaled = Mul(%h.0.product, %h.0.rate)
",
        proof: Proof::Whole,
    },
    Case {
        what: "dropout in training",
        from: MIXED,
        broken: "  const %h.0.ratio: f32[] = [0.1]
  const %h.0.training: bool[] = [1]
  %h.0.kept = Dropout(%h.0.weights, %h.0.ratio, %h.0.training)
  %h.0.mixed = MatMul(%h.0.kept, %h.0.values)
",
        twin: "  const %h.0.ratio: f32[] = [0.1]
  const %h.0.training: bool[] = [0]
  %h.0.kept = Dropout(%h.0.weights, %h.0.ratio, %h.0.training)
  %h.0.mixed = MatMul(%h.0.kept, %h.0.values)
",
        proof: Proof::Nothing,
    },
    Case {
        what: "probabilities that are used twice",
        from: MIXED,
        broken: "  %h.0.peak = ReduceMax(%h.0.weights) {axes: [-1], keepdims: 1}
  %h.0.plain = MatMul(%h.0.weights, %h.0.values)
  %h.0.mixed = Mul(%h.0.plain, %h.0.peak)
",
        twin: "  %h.0.plain = MatMul(%h.0.weights, %h.0.values)
  %h.0.peak = ReduceMax(%h.0.plain) {axes: [-1], keepdims: 1}
  %h.0.mixed = Mul(%h.0.plain, %h.0.peak)
",
        proof: Proof::Whole,
    },
    Case {
        what: "probabilities that are an output",
        from: MIXED,
        broken: "  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
  output \"attentions.0\" %h.0.weights
",
        twin: "  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
  output \"features.0\" %h.0.mixed
",
        proof: Proof::Whole,
    },
    Case {
        what: "cross attention",
        from: "  %h.0.turned = Transpose(%h.0.keys) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scaled = Mul(%h.0.product, %scale)
  %h.0.scores = Add(%h.0.scaled, %mask)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
",
        broken: "  weight %h.0.learned: f32[5, 16] = random(31)
  const %h.0.size: i64[2] = [5, 16]
  %h.0.rows = Shape(%h.0.x) {end: 1, start: 0}
  %h.0.sizes = Concat(%h.0.rows, %h.0.size) {axis: 0}
  %h.0.memory = Expand(%h.0.learned, %h.0.sizes)
  %h.0.m.flat = MatMul(%h.0.memory, %h.0.attn.k.weight)
  %h.0.m.split = Reshape(%h.0.m.flat, %split)
  %h.0.m = Transpose(%h.0.m.split) {perm: [0, 2, 1, 3]}
  %h.0.turned = Transpose(%h.0.m) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scores = Mul(%h.0.product, %scale)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.m)
",
        // The layer's own tokens, as every good layer reads them.
        twin: "  %h.0.turned = Transpose(%h.0.keys) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scaled = Mul(%h.0.product, %scale)
  %h.0.scores = Add(%h.0.scaled, %mask)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
",
        proof: Proof::Whole,
    },
    Case {
        what: "two masks",
        from: SCORES,
        broken: "  const %h.0.two: i64[] = [2]
  %h.0.distance = Sub(%queries, %places)
  %h.0.odd = Mod(%h.0.distance, %h.0.two)
  %h.0.even = Equal(%h.0.odd, %zero)
  %h.0.stripes = Where(%h.0.even, %clear, %shut)
  %h.0.striped = Add(%h.0.scaled, %h.0.stripes)
  %h.0.scores = Add(%h.0.striped, %mask)
",
        twin: "  %h.0.causal = Where(%earlier, %clear, %shut)
  %h.0.padding = Where(%seen, %clear, %shut)
  %h.0.masked = Add(%h.0.scaled, %h.0.causal)
  %h.0.scores = Add(%h.0.masked, %h.0.padding)
",
        proof: Proof::Whole,
    },
    Case {
        what: "keys that ask the queries",
        from: "  %h.0.turned = Transpose(%h.0.keys) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scaled = Mul(%h.0.product, %scale)
  %h.0.scores = Add(%h.0.scaled, %mask)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
",
        broken: "  %h.0.turned = Transpose(%h.0.q) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.keys, %h.0.turned)
  %h.0.scaled = Mul(%h.0.product, %scale)
  %h.0.mask.turned = Transpose(%mask) {perm: [0, 1, 3, 2]}
  %h.0.scores = Add(%h.0.scaled, %h.0.mask.turned)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.back = Transpose(%h.0.weights) {perm: [0, 1, 3, 2]}
  %h.0.mixed = MatMul(%h.0.back, %h.0.values)
",
        // From the other side, and with every sum and product turned around, it is attention.
        twin: "  %h.0.turned = Transpose(%h.0.keys) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scaled = Mul(%scale, %h.0.product)
  %h.0.scores = Add(%mask, %h.0.scaled)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} \"h.0/softmax\"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
",
        proof: Proof::Interpreter,
    },
    Case {
        what: "a softmax over the queries",
        from: "{axis: -1} \"h.0/softmax\"",
        broken: "{axis: -2} \"h.0/softmax\"",
        twin: "{axis: 3} \"h.0/softmax\"",
        proof: Proof::Interpreter,
    },
];

fn changed(case: &Case, to: &str) -> String {
    text(|layer| {
        assert_eq!(layer.matches(case.from).count(), 1, "{}", case.what);
        layer.replace(case.from, to)
    })
}

fn compiled(model: &Path) -> Compiled {
    let recipe = recipes::load(recipes::DEFAULT).expect("the recipe");
    let how = CompileOptions { recipe: &recipe, target: Target::Ort, seed: 0, layers: None };
    compile(source::open(model, None).expect("it is read").graph, &how).expect("it compiles")
}

fn options(proof: &Proof) -> ConvertOptions {
    ConvertOptions {
        verify: (*proof == Proof::Whole).then(VerifyOptions::default),
        ..ConvertOptions::of(recipes::load(recipes::DEFAULT).expect("the recipe"))
    }
}

/// The broken layer's result, before and after the other layer is rewritten: no operator before it changes
/// its meaning, so only f64 rounding may differ.
const SAME: f64 = 1e-9;

/// Returns the line of the miss.
fn broken(case: &Case) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let model = write(&changed(case, case.broken), directory.path());
    let Compiled { source, model: rewritten, report, .. } = compiled(&model);
    let names: Vec<(&str, usize)> = report.sites.iter().map(|s| (s.name.as_str(), s.layer)).collect();
    assert_eq!(names, [("h.1.attn", 1)], "{}: the other layer", case.what);
    if case.proof != Proof::Nothing {
        let results = [&source, &rewritten].map(|graph| {
            let first = graph.find_value("h.1.x").expect("the first layer's result");
            evaluate(graph, 0, &[first]).remove(0)
        });
        let apart = difference(&results[1], &results[0]);
        assert!(apart < SAME, "{}: the broken layer differs by {apart}", case.what);
    }
    let bundle = directory.path().join("bundle");
    let converted = convert(&model, &bundle, &options(&case.proof), &mut Silent).expect("it converts");
    let failed = converted.verification.iter().flat_map(|v| &v.checks).filter(|c| !c.ok).collect::<Vec<_>>();
    assert!(converted.written, "{}: {failed:?}", case.what);
    let lines: Vec<String> = converted.misses.iter().map(NearMiss::to_string).collect();
    assert_eq!(lines.len(), 1, "{}: {lines:?}", case.what);
    lines.concat()
}

fn twin(case: &Case) {
    let directory = tempfile::tempdir().expect("a directory");
    let model = write(&changed(case, case.twin), directory.path());
    let report = compiled(&model).report;
    let lowered = report.sites.iter().filter(|site| site.why_kept.is_none()).count();
    assert_eq!((lowered, report.missed().count()), (2, 0), "{}: {:?}", case.what, report.misses);
}

#[test]
fn what_is_no_attention_is_told_and_stays_as_it_is() {
    let lines = CASES.iter().map(|case| format!("{}\n  {}\n", case.what, broken(case)));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_twins_convert() {
    CASES.iter().for_each(twin);
}
