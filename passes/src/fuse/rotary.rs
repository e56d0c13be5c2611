//! Matches: x · cos + (−x₂, x₁) · sin over `[batch, heads, sequence, dim]`, cosines and sines
//! `[batch, 1, sequence, dim]` made of two equal halves
//! Becomes: `RotaryEmbedding`, whose tables hold the rows of these very tokens, counted from the first
//! Exact: yes, up to rounding
//! Declines when: x is not cut in the middle, the halves are not one value twice, or x has another element type than they have

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::{LAST_OF_FOUR, Match, Pat};
use std::collections::BTreeMap;

pub(super) struct Rotary;

impl GraphRule for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut tables = BTreeMap::new();
        rewrite_matches(graph, self.name(), &rotation(), |w, found| fused(w, found, &mut tables))
    }
}

fn rotation() -> Pat {
    let half = |output| {
        let parts = Pat::op("Split", [Pat::var("x")]).with_int_of("axis", LAST_OF_FOUR);
        parts.exactly(2, 2).output(output)
    };
    let second = Pat::op("Neg", [half(1).bind("second")]);
    let swapped = Pat::op("Concat", [second, half(0)]).with_int_of("axis", LAST_OF_FOUR).exactly(2, 1);
    let across = Pat::op("Mul", [swapped, Pat::var("sin")]);
    Pat::op("Add", [across, Pat::op("Mul", [Pat::var("x"), Pat::var("cos")])])
}

/// The tables made so far, and the row of each token, by cosines and sines.
type Tables = BTreeMap<(ValueId, ValueId), [ValueId; 3]>;

fn fused(w: &mut Sweep<'_>, found: &Match, tables: &mut Tables) -> Option<Vec<ValueId>> {
    let [x, cos, sin] = [found.get("x")?, found.get("cos")?, found.get("sin")?];
    let shape = |value: ValueId| w.graph.value(value).ty.shape.clone();
    let (dims, table) = (shape(x)?, shape(cos)?);
    let dim = dims.get(3)?.known().filter(|dim| dim % 2 == 0)?;
    let fits = dims.len() == 4
        && table.len() == 4
        && table[1].known() == Some(1)
        && table[3].known() == Some(dim)
        && shape(found.get("second")?)?[3].known() == Some(dim / 2)
        && shape(sin)? == table
        && (&table[0], &table[2]) == (&dims[0], &dims[2])
        && w.graph.value(x).ty.dtype == w.graph.value(cos).ty.dtype
        && is_twice(w.graph, cos)
        && is_twice(w.graph, sin);
    if !fits {
        return None;
    }
    let [cos, sin, rows] =
        *tables.entry((cos, sin)).or_insert_with(|| write_tables(w, [cos, sin], dim as i64));
    let op = Op::in_domain("com.microsoft", "RotaryEmbedding");
    let x = w.current(x);
    Some(vec![w.patch.node(op, &[x, rows, cos, sin])])
}

fn write_tables(w: &mut Sweep<'_>, tables: [ValueId; 2], dim: i64) -> [ValueId; 3] {
    let p = &mut w.patch;
    let [cos, sin] = tables.map(|table| {
        let half = p.slice(table, 3, 0, dim / 2);
        p.reshape(half, &[-1, dim / 2])
    });
    let count = p.shape_of(cos, 0, 1);
    let count = p.squeeze(count, &[0]);
    let rows = p.range(count);
    let (batch, time) = (p.shape_of(tables[0], 0, 1), p.shape_of(tables[0], 2, 3));
    let shape = p.concat(&[batch, time], 0);
    [cos, sin, p.reshape_to(rows, shape)]
}

/// Whether the last axis holds one value twice.
fn is_twice(graph: &Graph, table: ValueId) -> bool {
    let mut value = table;
    for op in ["Cast", "Cos", "Sin", "Unsqueeze"] {
        value = graph.made_by(value, op).and_then(|node| node.input(0)).unwrap_or(value);
    }
    graph
        .made_by(value, "Concat")
        .is_some_and(|node| node.inputs.len() == 2 && node.input(0) == node.input(1))
}

#[cfg(test)]
mod tests {
    use super::Rotary;
    use crate::fuse::tests::after;

    fn text(second: &str) -> String {
        cut(second, "2, 2")
    }

    fn cut(second: &str, sizes: &str) -> String {
        r#"graph "g" {
  input %x: f32[batch, 3, time, 4]
  input %a: f32[batch, time, 2]
  input %b: f32[batch, time, 2]
  %t = Concat(%a, %second) {axis: -1}
  %u = Unsqueeze(%t) {axes: [1]}
  %cos = Cos(%u)
  %sin = Sin(%u)
  const %sizes: i64[2] = [%cut]
  %p, %q = Split(%x, %sizes) {axis: -1}
  %n = Neg(%q)
  %r = Concat(%n, %p) {axis: -1}
  %s = Mul(%x, %cos)
  %c = Mul(%r, %sin)
  %y = Add(%s, %c)
  output "y" %y
}"#
        .replace("%second", second)
        .replace("%cut", sizes)
    }

    const INPUTS: [(&str, &[usize]); 3] = [("x", &[2, 3, 5, 4]), ("a", &[2, 5, 2]), ("b", &[2, 5, 2])];

    #[test]
    fn a_rotation_is_one_node() {
        insta::assert_snapshot!(after(&Rotary, &text("%a"), &INPUTS));
    }

    /// The numbers change places, but not by halves.
    #[test]
    fn unequal_parts_stay() {
        insta::assert_snapshot!(after(&Rotary, &cut("%a", "1, 3"), &INPUTS));
    }

    #[test]
    fn a_sum_and_products_the_other_way_round_are_the_same_rotation() {
        let text = text("%a").replace("Mul(%x, %cos)", "Mul(%cos, %x)").replace("Add(%s, %c)", "Add(%c, %s)");
        assert_eq!(after(&Rotary, &text, &INPUTS), after(&Rotary, &self::text("%a"), &INPUTS));
    }

    #[test]
    fn unequal_halves_stay() {
        insta::assert_snapshot!(after(&Rotary, &text("%b"), &INPUTS));
    }
}
