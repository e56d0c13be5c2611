//! Weights that are stored apart and read as one: rows of them, one after the other along the first axis. Fusions
//! write them with ordinary operators; where weights are inputs of a graph, one input stands for all of it, by the name
//! that [`dijiang_format::joined`] gives.

use crate::ir::graph::{Def, Graph, ValueId};
use crate::ir::patch::{Patch, PatchError};
use dijiang_format::dtype::DType;
use dijiang_format::joined::{self, MOST_PARTS, RowRange, WeightPart};
use std::collections::{BTreeMap, BTreeSet};

/// Those rows of a weight, with ordinary operators.
pub(crate) fn rows(p: &mut Patch<'_>, weight: ValueId, rows: RowRange) -> ValueId {
    let RowRange { begin, end, every } = rows;
    let blocks = p.known_dim(weight, 0) as i64 / every as i64;
    let rest: Vec<i64> = (1..p.rank(weight)).map(|axis| p.known_dim(weight, axis) as i64).collect();
    let apart = p.reshape(weight, &[&[blocks, every as i64], &rest[..]].concat());
    let taken = p.slice(apart, 1, begin as i64, end as i64);
    p.reshape(taken, &[&[blocks * (end - begin) as i64], &rest[..]].concat())
}

/// What a value is made of, where that is weights one after the other and nothing else.
fn parts(graph: &Graph, value: ValueId) -> Option<Vec<WeightPart>> {
    if let Some(name) = weight_name(graph, value) {
        return Some(vec![WeightPart { name, rows: None }]);
    }
    let Def::Output { node, .. } = graph.value(value).def else { return None };
    let node = graph.node(node);
    match node.op.name() {
        "Concat" if node.op.int("axis") == Some(0) => {
            let mut all = Vec::new();
            for part in &node.inputs {
                all.extend(parts(graph, (*part)?)?);
                if all.len() > MOST_PARTS {
                    return None;
                }
            }
            Some(all)
        }
        "Reshape" => Some(vec![some_rows(graph, value)?]),
        // A runtime rounds it where it reads it.
        "Cast" if graph.value(value).ty.dtype.is_some_and(DType::is_float) => parts(graph, node.input(0)?),
        _ => None,
    }
}

/// Whether a value is a weight, or rows of weights one after the other.
pub(crate) fn is_stored(graph: &Graph, value: ValueId) -> bool {
    parts(graph, value).is_some()
}

/// The name of a weight, where it can stand in the name of a join.
fn weight_name(graph: &Graph, value: ValueId) -> Option<String> {
    let value = graph.value(value);
    let fits = value.is_weight && value.ty.rank()? > 0 && WeightPart::can_be(&value.name);
    fits.then(|| value.name.clone())
}

/// What [`rows`] wrote.
fn some_rows(graph: &Graph, value: ValueId) -> Option<WeightPart> {
    let ints = |value: Option<ValueId>| graph.as_const(value?)?.to_i64();
    let slice = graph.made_by(graph.made_by(value, "Reshape")?.input(0)?, "Slice")?;
    let apart = slice.input(0)?;
    let weight = graph.made_by(apart, "Reshape")?.input(0)?;
    let name = weight_name(graph, weight)?;
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let (whole, blocks, taken) = (shape(weight)?, shape(apart)?, shape(value)?);
    let [begin, end] = [ints(slice.input(1))?, ints(slice.input(2))?].map(|bound| bound.first().copied());
    let (begin, end, every) = (begin?, end?, blocks.get(1)?.known()? as i64);
    let by_blocks = blocks.len() == whole.len() + 1
        && blocks[2..] == whole[1..]
        && taken.len() == whole.len()
        && taken[1..] == whole[1..]
        && slice.inputs.len() == 4
        && ints(slice.input(3))? == [1]
        && begin >= 0;
    let rows = RowRange::new(begin as usize, usize::try_from(end).ok()?, every as usize)?;
    by_blocks.then_some(WeightPart { name, rows: Some(rows) })
}

/// Makes one input of each join of weights, under its name.
pub(crate) fn as_inputs(graph: &mut Graph) -> Result<(), PatchError> {
    let change = {
        let mut p = Patch::new(graph, "joined_weights");
        let (mut inner, mut inputs) = (BTreeSet::new(), BTreeMap::new());
        for id in graph.order().into_iter().rev() {
            let node = graph.node(id);
            let Some(value) = node.outputs.first().copied() else { continue };
            let Some(parts) = parts(graph, value) else { continue };
            inner.extend(node.inputs.iter().flatten().copied());
            let ty = &graph.value(value).ty;
            let (Some(dtype), Some(shape), false) = (ty.dtype, ty.shape.clone(), inner.contains(&value))
            else {
                continue;
            };
            let name = joined::print(&parts);
            let is_taken = |dtype: DType| {
                let other = graph.find_value(&name).or_else(|| inputs.get(&name).copied());
                other.is_some_and(|other| p.ty(other).dtype != Some(dtype))
            };
            if is_taken(dtype) {
                continue;
            }
            let input = *inputs.entry(name.clone()).or_insert_with(|| p.input(&name, dtype, shape));
            p.replace(value, input);
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};

    #[test]
    fn joins_of_weights_become_inputs_and_other_values_stay() {
        let mut graph = parse(
            r#"graph "g" {
  input %x: f32[batch, 2]
  weight %a: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  weight %b: f32[1, 2] = [1.0, 2.0]
  %both = Concat(%a, %b) {axis: 0}
  %y = Concat(%x, %b) {axis: 0}
  output "both" %both
  output "y" %y
}"#,
        )
        .expect("a graph");
        let change = {
            let mut p = Patch::new(&graph, "test");
            let a = graph.find_value("a").expect("a weight");
            let [odd, even] =
                [1, 0].map(|begin| rows(&mut p, a, RowRange { begin, end: begin + 1, every: 2 }));
            let transposed = p.concat(&[odd, even], 0);
            p.output("transposed", transposed);
            p.finish()
        };
        graph.apply(change).expect("a patch");
        as_inputs(&mut graph).expect("a patch");
        insta::assert_snapshot!(print(&graph));
    }
}
