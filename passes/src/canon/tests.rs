use super::*;
use crate::ir::eval::Array;
use crate::ir::text::{parse, print};

pub(super) fn after(text: &str) -> String {
    let mut graph = parse(text).expect("it parses");
    canonicalize(&mut graph).expect("it settles");
    assert_eq!(crate::ir::verify::verify(&graph), []);
    print(&graph)
}

#[test]
fn transposes_compose_and_cancel() {
    insta::assert_snapshot!(after(
        r#"graph "g" {
  input %x: f32[a, 2, b, 4]
  %t = Transpose(%x) {perm: [0, 2, 1, 3]} "t"
  %u = Transpose(%t) {perm: [0, 2, 1, 3]} "u"
  %v = Transpose(%t) {perm: [0, 3, 1, 2]} "v"
  output "same" %u
  output "transposed" %v
}"#
    ));
}

#[test]
fn reshapes_join_only_where_no_dim_is_copied_from_the_middle() {
    insta::assert_snapshot!(after(
        r#"graph "g" {
  input %x: f32[batch, time, 8]
  const %split: i64[4] = [0, 0, 2, 4]
  const %flat: i64[3] = [0, 0, 8]
  const %transposed: i64[2] = [4, -1]
  const %copied: i64[3] = [0, 0, -1]
  %a = Reshape(%x, %split) "a"
  %b = Reshape(%a, %flat) "b"
  %c = Reshape(%x, %transposed) "c"
  %d = Reshape(%c, %copied) "d"
  output "same" %b
  output "kept" %d
}"#
    ));
}

#[test]
fn equal_nodes_become_one_and_different_attributes_do_not() {
    insta::assert_snapshot!(after(
        r#"graph "g" {
  input %x: f32[a, b]
  const %c: f32[] = [2.0]
  const %d: f32[] = [2.0]
  %p = Mul(%x, %c) "p"
  %q = Mul(%x, %d) "q"
  %r = Softmax(%p) {axis: 0} "r"
  %s = Softmax(%q) {axis: 0} "s"
  %t = Softmax(%q) {axis: 1} "t"
  output "r" %r
  output "s" %s
  output "t" %t
}"#
    ));
}

/// Runs a graph before and after the clean-ups on random inputs; integers are 0, 1, 2, ….
pub(super) fn check_close<'a>(text: &str, inputs: &[(&'a str, &[usize])], limit: f64) {
    use crate::testing::{noise, relative_error, run};
    let mut graph = parse(text).expect("it parses");
    let feed = |(seed, (name, dims)): (usize, &(&'a str, &[usize]))| {
        let ty = &graph.value(graph.input(name).expect("an input")).ty;
        let array = match ty.dtype {
            Some(d) if d.is_float() => noise(dims, seed as u64),
            _ => {
                Array::from_i64(dims, (0..dims.iter().product::<usize>() as i64).collect()).expect("numbers")
            }
        };
        (*name, array)
    };
    let inputs: Vec<(&str, Array)> = inputs.iter().enumerate().map(feed).collect();
    let before = run(&graph, &inputs);
    canonicalize(&mut graph).expect("it settles");
    let after = run(&graph, &inputs);
    for (name, want) in &before {
        let error = relative_error(&after[name], want);
        assert!(error <= limit, "{name} differs by {error:e}");
    }
}

/// [`check_close`] up to f64 rounding.
pub(super) fn check_exact(text: &str, inputs: &[(&str, &[usize])]) {
    check_close(text, inputs, 1e-13);
}

#[test]
fn every_rule_stands_in_the_table() {
    let mut files = crate::testing::file_stems("src/canon");
    files.retain(|name| name != "terms");
    let mut rules: Vec<String> = RULES.iter().map(|rule| rule.name().to_owned()).collect();
    rules.sort();
    assert_eq!(files, rules);
}
