use super::*;
use crate::ir::text::{parse, print};

fn after(text: &str) -> String {
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
  output "turned" %v
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
  const %turned: i64[2] = [4, -1]
  const %copied: i64[3] = [0, 0, -1]
  %a = Reshape(%x, %split) "a"
  %b = Reshape(%a, %flat) "b"
  %c = Reshape(%x, %turned) "c"
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
