//! Matches: products, `Softmax` over the last axis and operators that take number by number, over heads that a `Reshape` parts
//! into groups, `[batch, groups, each, rows, columns]`, with keys and values of one head for each group
//! Becomes: the same over `[batch, heads, rows, columns]`, with key heads repeated as exporters mostly do, and the `Reshape` after
//! it
//! Exact: yes
//! Declines when: it is not known that the `Reshape` parts the heads and nothing else, what meets them differs from head to
//! head, or a conversion wrote it

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use dijiang_format::names::is_made;

pub(super) struct GroupedHeads;

impl GraphRule for GroupedHeads {
    fn name(&self) -> &'static str {
        "grouped_heads"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let out = match node.op.name() {
                _ if !node.op.domain().is_empty() || is_made(&node.name) => return None,
                "MatMul" => product(w, node)?,
                "Softmax" => {
                    let heads = parted(w, node.input(0)?)?;
                    matches!(node.op.int("axis"), Some(-1 | 4)).then_some(())?;
                    Heads { x: w.patch.softmax(heads.x, -1), ..heads }
                }
                "Transpose" if node.op.ints("perm") == Some(&BY_GROUP) => by_group(w, node)?,
                "Transpose" if node.op.ints("perm") == Some(&BY_TOKEN) => return by_token(w, node),
                name if BY_NUMBER.contains(&name) => by_number(w, node)?,
                _ => return None,
            };
            Some(vec![out.parted(w)])
        })
    }
}

/// `[batch, tokens, groups, each, dim]` to `[batch, groups, each, tokens, dim]`, and back.
const BY_GROUP: [i64; 5] = [0, 2, 3, 1, 4];
const BY_TOKEN: [i64; 5] = [0, 3, 1, 2, 4];
/// The last two axes.
const TURN: [i64; 4] = [0, 1, 3, 2];
/// The same behind one more.
const TURN_PARTED: [i64; 5] = [0, 1, 2, 4, 3];

const BY_NUMBER: [&str; 9] = ["Add", "Cast", "Div", "Max", "Min", "Mul", "Sub", "Tanh", "Where"];

/// `[batch, heads, rows, columns]`, which was parted into groups of `each` heads.
#[derive(Clone, Copy)]
struct Heads {
    x: ValueId,
    groups: u64,
    each: u64,
}

impl Heads {
    /// `[batch, groups, each, rows, columns]`
    fn parted(self, w: &mut Sweep<'_>) -> ValueId {
        let groups = w.patch.ints(&[self.groups as i64, self.each as i64]);
        let (first, rest) = (w.patch.shape_of(self.x, 0, 1), w.patch.shape_of(self.x, 2, 4));
        let target = w.patch.concat(&[first, groups, rest], 0);
        w.patch.reshape_to(self.x, target)
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    graph.value(value).ty.shape.as_deref()
}

fn is_same(a: &Dim, b: &Dim) -> bool {
    a == b && *a != Dim::Unknown
}

/// What a value was before its heads were parted.
fn parted(w: &Sweep<'_>, value: ValueId) -> Option<Heads> {
    let x = w.graph.made_by(value, "Reshape").filter(|_| w.is_untouched(value))?.input(0)?;
    let [_, heads, rows, columns] = shape(w.graph, x)? else { return None };
    let [_, groups, each, parted_rows, parted_columns] = shape(w.graph, value)? else { return None };
    let (groups, each) = (groups.known()?, each.known()?);
    let stays = is_same(rows, parted_rows) && is_same(columns, parted_columns);
    (stays && heads.known() == groups.checked_mul(each)).then(|| Heads { x: w.current(x), groups, each })
}

/// Tokens of parted heads that are brought behind their heads.
fn by_group(w: &mut Sweep<'_>, node: &Node) -> Option<Heads> {
    let x = node.input(0)?;
    let [_, _, groups, each, dim] = shape(w.graph, x)? else { return None };
    let (groups, each, dim) = (groups.known()?, each.known()?, dim.known()?);
    let heads = groups.checked_mul(each)?;
    let x = w.current(x);
    let together = w.patch.reshape(x, &[0, 0, heads as i64, dim as i64]);
    Some(Heads { x: w.patch.transpose(together, &[0, 2, 1, 3]), groups, each })
}

/// The heads of each token in their groups.
fn by_token(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let Heads { x, groups, each } = parted(w, node.input(0)?)?;
    let dim = w.patch.dim(x, 3).known()?;
    let turned = w.patch.transpose(x, &[0, 2, 1, 3]);
    Some(vec![w.patch.reshape(turned, &[0, 0, groups as i64, each as i64, dim as i64])])
}

/// A product with what has one head for each group.
fn product(w: &mut Sweep<'_>, node: &Node) -> Option<Heads> {
    let heads = parted(w, node.input(0)?)?;
    let (x, is_turned) = one_for_each_group(w, node.input(1)?, heads.groups)?;
    let dim = w.patch.dim(x, 3).known()?;
    let repeated = w.patch.repeat_heads(x, [heads.groups, heads.each, dim]);
    let right = if is_turned { w.patch.transpose(repeated, &TURN) } else { repeated };
    Some(Heads { x: w.patch.matmul(heads.x, right), ..heads })
}

/// `[batch, groups, rows, columns]` of what has one more axis of 1 behind the groups, and whether its last two axes are to be
/// turned: those of keys, so that the keys are repeated before.
fn one_for_each_group(w: &mut Sweep<'_>, value: ValueId, groups: u64) -> Option<(ValueId, bool)> {
    w.is_untouched(value).then_some(())?;
    let turned = w.graph.made_by(value, "Transpose").filter(|t| t.op.ints("perm") == Some(&TURN_PARTED));
    let apart = turned.map_or(Some(value), |node| node.input(0))?;
    let node = w.graph.made_by(apart, "Unsqueeze").filter(|_| w.is_untouched(apart))?;
    let x = node.input(0)?;
    let [_, of_groups, _, _] = shape(w.graph, x)? else { return None };
    if node.op.ints("axes") != Some(&[2]) || of_groups.known() != Some(groups) {
        return None;
    }
    let is_key = |node: &Node| node.op.ints("perm").is_some_and(|perm| perm.last() != Some(&3));
    let is_turned_before = w.graph.made_by(x, "Transpose").is_some_and(is_key);
    let x = w.current(x);
    Some(match (turned.is_some(), is_turned_before) {
        (false, true) => (w.patch.transpose(x, &TURN), true),
        (is_turned, _) => (x, is_turned),
    })
}

/// An operator over numbers of parted heads and of what is the same for all heads.
fn by_number(w: &mut Sweep<'_>, node: &Node) -> Option<Heads> {
    let given: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
    let first = given.iter().find_map(|v| parted(w, *v))?;
    let mut inputs = Vec::new();
    for value in given {
        inputs.push(match parted(w, value) {
            Some(heads) => (heads.each == first.each).then_some(heads.x)?,
            None => for_all(w, value)?,
        });
    }
    Some(Heads { x: w.patch.node(node.op.clone(), &inputs), ..first })
}

/// What is the same for all heads, as it meets heads that are not parted.
fn for_all(w: &mut Sweep<'_>, value: ValueId) -> Option<ValueId> {
    let dims = shape(w.graph, value)?;
    // The axes that must be of 1, and the one that goes so that the rest meets the heads.
    let (ones, gone): (&[usize], Option<i64>) = match dims.len() {
        0..3 => (&[], None),
        3 => (&[0], None),
        4 => (&[0, 1], Some(0)),
        5 => (&[1, 2], Some(2)),
        _ => return None,
    };
    ones.iter().all(|axis| dims[*axis] == Dim::Known(1)).then_some(())?;
    let x = w.current(value);
    Some(gone.map_or(x, |axis| w.patch.squeeze(x, &[axis])))
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_exact};

    /// As `q.view(b, kv, group, t, d) @ k.unsqueeze(2).transpose(-1, -2)` is exported.
    const TEXT: &str = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 2, time, 8]
  input %v: f32[batch, 2, time, 8]
  input %places: i64[batch, 1, 1, 1, time]
  const %most: i64[] = [4]
  const %by: f32[] = [0.5]
  const %low: f32[] = [-10000.0]
  const %groups: i64[2] = [2, 2]
  const %four: i64[1] = [4]
  %batch = Shape(%q) {start: 0, end: 1}
  %sizes = Shape(%q) {start: 2, end: 4}
  %to = Concat(%batch, %groups, %sizes) {axis: 0}
  %gq = Reshape(%q, %to)
  %apart = Unsqueeze(%k) {axes: [2]}
  %turned = Transpose(%apart) {perm: [0, 1, 2, 4, 3]} "turned"
  %open = Less(%places, %most)
  %scores = MatMul(%gq, %turned) "scores"
  %scaled = Mul(%by, %scores) "scaled"
  %masked = Where(%open, %scaled, %low) "masked"
  %weights = Softmax(%masked) {axis: -1} "weights"
  %each = Unsqueeze(%v) {axes: [2]}
  %mixed = MatMul(%weights, %each) "mixed"
  %back = Concat(%batch, %four, %sizes) {axis: 0}
  %y = Reshape(%mixed, %back)
  output "y" %y
}"#;

    #[test]
    fn heads_in_groups_are_heads() {
        insta::assert_snapshot!(after(TEXT));
        let heads = |count| [2, count, 3, 8];
        let sizes: [(&str, &[usize]); 4] =
            [("q", &heads(4)), ("k", &heads(2)), ("v", &heads(2)), ("places", &[2, 1, 1, 1, 3])];
        check_exact(TEXT, &sizes);
    }

    #[test]
    fn groups_of_an_einsum_are_heads() {
        let text = r#"graph "g" {
  input %q: f32[batch, time, 2, 2, 8]
  input %k: f32[batch, time, 2, 8]
  input %v: f32[batch, time, 2, 8]
  %scores = Einsum(%q, %k) {equation: "btgrd,bsgd->bgrts"} "scores"
  %weights = Softmax(%scores) {axis: -1} "weights"
  %mixed = Einsum(%weights, %v) {equation: "bgrts,bsgd->btgrd"} "mixed"
  output "y" %mixed
}"#;
        insta::assert_snapshot!(after(text));
        check_exact(text, &[("q", &[2, 3, 2, 2, 8]), ("k", &[2, 3, 2, 8]), ("v", &[2, 3, 2, 8])]);
    }

    #[test]
    fn what_differs_from_head_to_head_stays() {
        let stays =
            |from: &str, to: &str| after(&TEXT.replace(from, to)).contains("f32[batch, 2, 2, time, time]");
        assert!(!stays("", ""));
        // A mask of its own for each of a group, and keys of one head for all.
        assert!(stays("i64[batch, 1, 1, 1, time]", "i64[batch, 1, 2, 1, time]"));
        assert!(stays("%k: f32[batch, 2, time, 8]", "%k: f32[batch, 1, time, 8]"));
        assert!(stays("\"scores\"", "\"h.0/dijiang/scores\""));
    }
}
