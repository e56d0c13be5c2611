//! What is fed to a model that reads no tokens: images, sound, embeddings. A row of token ids stands for
//! one example; its numbers are seeded by it.

use dijiang_passes::ir::graph::{Graph, Use, ValueId};
use dijiang_passes::ir::patch::Patch;
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::numeric::random::Random;
use std::collections::BTreeMap;

/// The height and the width of the pictures of an input, where a graph leaves them open.
#[derive(Debug, Clone, Default)]
pub(super) struct Pictures(BTreeMap<String, usize>);

/// How many windows of its first convolution a picture is high and wide: those of 16 first, as some graphs take any.
const WINDOWS: [u64; 5] = [4, 7, 8, 14, 16];
/// The most windows that are tried.
const MOST_WINDOWS: u64 = 64;

impl Pictures {
    /// The first square that every operator of the graph takes.
    pub(super) fn of(graph: &Graph) -> Self {
        let sides = graph.inputs().iter().filter_map(|input| {
            let side = side(graph, *input)?;
            Some((graph.value(*input).name.clone(), side as usize))
        });
        Self(sides.collect())
    }

    /// The dims of an input, with those of its pictures.
    pub(super) fn sized(&self, input: &str, mut dims: Vec<Option<usize>>) -> Vec<Option<usize>> {
        if let Some(side) = self.0.get(input) {
            dims.iter_mut().skip(2).for_each(|dim| _ = dim.get_or_insert(*side));
        }
        dims
    }
}

fn side(graph: &Graph, input: ValueId) -> Option<u64> {
    let shape = graph.value(input).ty.shape.as_deref().filter(|shape| shape.len() == 4)?;
    if shape[2..].iter().all(|dim| dim.known().is_some()) {
        return None;
    }
    let stride = stride(graph, input)?;
    // One window meets positions of any number, and is no picture to prove anything by.
    let others = (2..=MOST_WINDOWS).filter(|n| !WINDOWS.contains(n)).chain([1]);
    let windows = WINDOWS.into_iter().chain(others);
    windows.filter_map(|n| n.checked_mul(stride)).find(|side| takes(graph, input, *side))
}

/// How far the windows of the first convolution over a value stand apart.
fn stride(graph: &Graph, value: ValueId) -> Option<u64> {
    graph.value(value).uses.iter().find_map(|user| match user {
        Use::Node { node, slot: 0 } => {
            let node = graph.node(*node);
            match node.op.name() {
                "Conv" | "ConvInteger" => u64::try_from(*node.op.ints("strides")?.first()?).ok(),
                "Cast" | "DynamicQuantizeLinear" => stride(graph, node.outputs[0]),
                _ => None,
            }
        }
        _ => None,
    })
}

/// Whether every operator of a graph takes what it is given where a picture has so many rows and columns.
fn takes(graph: &Graph, input: ValueId, side: u64) -> bool {
    let mut tried = graph.clone();
    let mut ty = graph.value(input).ty.clone();
    let open = ty.shape.iter_mut().flatten().skip(2).filter(|dim| dim.known().is_none());
    open.for_each(|dim| *dim = Dim::Known(side));
    let change = {
        let mut patch = Patch::new(&tried, "picture");
        patch.set_input_type(input, ty);
        patch.finish()
    };
    tried.apply(change).is_ok() && tried.refresh_types().is_ok()
}

/// Sizes of an input for rows of `tokens` each. What a graph leaves open is the batch in front, and in an
/// input of rank 3 the length.
pub(super) fn sizes(name: &str, dims: &[Option<usize>], rows: &[Vec<i64>]) -> Result<Vec<usize>, String> {
    let tokens = rows.first().map_or(0, Vec::len);
    let size = |(axis, dim): (usize, &Option<usize>)| match (axis, dim) {
        (0, None) => Ok(rows.len()),
        (_, Some(size)) => Ok(*size),
        (_, None) if dims.len() == 3 => Ok(tokens),
        _ => Err(format!(
            "axis {axis} of input `{name}` is of any size, and nothing tells which is meant (hint: give it one in the model, or convert with --no-verify)"
        )),
    };
    dims.iter().enumerate().map(size).collect()
}

/// Numbers for an input of these sizes, each row's its own.
pub(super) fn numbers(name: &str, sizes: &[usize], rows: &[Vec<i64>]) -> Vec<f64> {
    let each: usize = sizes.iter().skip(1).product();
    let of_row = |row: &Vec<i64>| {
        let seed =
            row.iter().fold(row.len() as u64, |seed, id| seed.wrapping_mul(31).wrapping_add(*id as u64));
        let mut random = Random::named(seed, name);
        (0..each).map(move |_| random.normal()).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_passes::ir::text::parse;

    /// Patches of 8 by 8, and a table of positions for so many of them.
    fn sized(positions: &str) -> Vec<Option<usize>> {
        let graph = parse(&format!(
            r#"graph "g" {{
  input %pixels: f32[batch, 3, height, width]
  weight %w: f32[4, 3, 8, 8] = random(1)
  const %flat: i64[3] = [0, 4, -1]
  {positions}
  %c = Conv(%pixels, %w) {{strides: [8, 8]}}
  %x = Reshape(%c, %flat)
  %y = Add(%x, %positions)
  output "y" %y
}}"#
        ));
        Pictures::of(&graph.expect("it parses")).sized("pixels", vec![None, Some(3), None, None])
    }

    #[test]
    fn a_picture_is_as_large_as_its_positions() {
        assert_eq!(sized("weight %positions: f32[4, 25] = random(1)"), [None, Some(3), Some(40), Some(40)]);
        assert_eq!(sized("input %positions: f32[4, n]"), [None, Some(3), Some(32), Some(32)]);
        // No square has so many windows, and one meets them all.
        assert_eq!(sized("weight %positions: f32[4, 24] = random(1)"), [None, Some(3), Some(8), Some(8)]);
    }
}
