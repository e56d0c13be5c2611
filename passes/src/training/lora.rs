//! Low-rank additions to the weights of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x Wᵀ + x Aᵀ Bᵀ with
//! A `[rank, in]` and B `[out, rank]`, which are trained in place of W. B is zero at first, so that nothing changes, and
//! W + B A takes the place of W in the end. The paper's factor α / r is 1: a learning rate says the same.

use super::parameters::Parameter;
use crate::canon::rewrite_nodes;
use crate::feature_map::added::is_added;
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::PatchError;
use crate::ir::tensor::Tensor;
use crate::ir::walk::is_made_of_constants;
use crate::numeric::random::Random;
use dijiang_format::names::LOGITS;
use std::collections::BTreeMap;

/// The names of A and B are that of the weight with this after it.
const DOWN: &str = ".lora_a";
const UP: &str = ".lora_b";

/// What is added to a weight.
#[derive(Debug, Clone)]
pub struct Addition {
    weight: String,
    /// Whether the weight is stored `[out, in]`, as checkpoints have it, or `[in, out]`.
    is_transposed: bool,
    /// A, `[rank, in]`, and its name.
    pub down: (String, Tensor),
    /// B, `[out, rank]`, and its name.
    pub up: (String, Tensor),
}

impl Addition {
    /// What it is added to, as it is stored.
    pub fn weight(&self) -> Parameter {
        let (inner, outer) = (self.down.1.dims()[1], self.up.1.dims()[0]);
        let dims = if self.is_transposed { vec![outer, inner] } else { vec![inner, outer] };
        Parameter { name: self.weight.clone(), dims }
    }

    /// The numbers that W gains, in the order it is stored in, from A and B as they are now.
    pub fn product(&self, down: &[f32], up: &[f32]) -> Vec<f32> {
        let (rank, inner) = (self.down.1.dims()[0] as usize, self.down.1.dims()[1] as usize);
        let outer = self.up.1.dims()[0] as usize;
        let at = |o: usize, i: usize| (0..rank).map(|r| up[o * rank + r] * down[r * inner + i]).sum();
        match self.is_transposed {
            true => (0..outer * inner).map(|n| at(n / inner, n % inner)).collect(),
            false => (0..outer * inner).map(|n| at(n % outer, n / outer)).collect(),
        }
    }
}

/// Whether a weight is part of an addition.
pub(super) fn is_addition(name: &str) -> bool {
    name.ends_with(DOWN) || name.ends_with(UP)
}

/// Adds to every linear layer of the source but the one that makes the logits. What else reads a weight would not see
/// the addition, so that one is left alone which is read in another way too. Refuses what [`Patch`] does.
///
/// [`Patch`]: crate::ir::patch::Patch
pub fn add_low_rank(graph: &mut Graph, rank: u64, seed: u64) -> Result<Vec<Addition>, PatchError> {
    let mut made: BTreeMap<ValueId, (Addition, [ValueId; 2])> = BTreeMap::new();
    rewrite_nodes(graph, "lora", |w, node| {
        let layer = Layer::of(w.graph, node)?;
        let x = w.input(node, 0)?;
        let p = &mut w.patch;
        let (_, [down, up]) = made.entry(layer.weight).or_insert_with(|| {
            let addition = layer.addition(w.graph, rank, seed);
            let weights =
                [&addition.down, &addition.up].map(|(name, numbers)| p.weight(name, numbers.clone()));
            (addition, weights)
        });
        let narrow = p.linear(x, *down, None);
        let added = p.linear(narrow, *up, None);
        Some(vec![p.add(node.outputs[0], added)])
    })?;
    Ok(made.into_values().map(|(addition, _)| addition).collect())
}

/// The largest rank that an addition to one of the layers can have: no more than the layer's inputs or outputs. 0 where
/// there is none.
pub fn largest_rank(graph: &Graph) -> u64 {
    let layers = graph.nodes().filter_map(|(_, node)| Layer::of(graph, node));
    let rank = |layer: Layer| graph.as_const(layer.weight)?.dims().iter().min().copied();
    layers.filter_map(rank).max().unwrap_or(0)
}

/// A product with a weight, which may be cast on its way there.
struct Layer {
    weight: ValueId,
    is_transposed: bool,
}

impl Layer {
    fn of(graph: &Graph, node: &Node) -> Option<Self> {
        let mut weight = node.input(1).filter(|_| node.op.is("MatMul"))?;
        let mut is_transposed = false;
        while let Some((id, _)) = graph.producer(weight) {
            is_transposed ^= turns(graph.node(id))?;
            weight = graph.node(id).input(0)?;
        }
        let value = graph.value(weight);
        let numbers = value.as_const().filter(|_| value.is_weight && !is_added(&value.name))?;
        let fits = numbers.dims().len() == 2 && is_in_layers_alone(graph, weight, is_transposed);
        fits.then_some(Self { weight, is_transposed })
    }

    fn addition(&self, graph: &Graph, rank: u64, seed: u64) -> Addition {
        let name = graph.value(self.weight).name.clone();
        let dims = graph.as_const(self.weight).map_or(&[][..], Tensor::dims);
        let [mut outer, mut inner] = [dims[0], dims[1]];
        if !self.is_transposed {
            (outer, inner) = (inner, outer);
        }
        let (down, up) = (format!("{name}{DOWN}"), format!("{name}{UP}"));
        let mut random = Random::named(seed, &down);
        let deviation = (inner as f64).sqrt().recip();
        let numbers: Vec<f32> = (0..rank * inner).map(|_| (random.normal() * deviation) as f32).collect();
        let zeros = vec![0.0; (outer * rank) as usize];
        Addition {
            weight: name,
            is_transposed: self.is_transposed,
            down: (down, Tensor::from_f32(&[rank, inner], &numbers)),
            up: (up, Tensor::from_f32(&[outer, rank], &zeros)),
        }
    }
}

/// Whether what stands between a weight and a product turns it; `None` where it does something else.
fn turns(node: &Node) -> Option<bool> {
    match node.op.name() {
        "Transpose" if node.op.ints("perm") == Some(&[1, 0]) => Some(true),
        "Cast" => Some(false),
        _ => None,
    }
}

/// Whether all that reads a weight are products with it, transposed or not, and none of them makes the logits.
fn is_in_layers_alone(graph: &Graph, value: ValueId, transposed: bool) -> bool {
    graph.value(value).uses.iter().all(|user| {
        let Use::Node { node, slot } = user else { return false };
        let node = graph.node(*node);
        match turns(node) {
            Some(turn) => is_in_layers_alone(graph, node.outputs[0], transposed ^ turn),
            None => {
                node.op.is("MatMul") && *slot == 1 && !transposed && !makes_logits(graph, node.outputs[0])
            }
        }
    })
}

/// Whether the logits are a value, in another shape or type or with a constant added or as a factor.
fn makes_logits(graph: &Graph, value: ValueId) -> bool {
    let mut logits = graph.output(LOGITS);
    while let Some(found) = logits.filter(|found| *found != value) {
        let before = graph.producer(found).map(|(id, _)| graph.node(id));
        let before = before.filter(|node| ["Add", "Cast", "Mul", "Reshape"].iter().any(|op| node.op.is(op)));
        logits = before.and_then(|node| {
            node.inputs.iter().flatten().copied().find(|input| !is_made_of_constants(graph, *input))
        });
    }
    logits == Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::patch::Patch;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, run};

    const MODEL: &str = r#"graph "lm" {
  input %x: f32[batch, time, 3]
  input %ids: i64[batch, time]
  weight %embed.weight: f32[5, 3] = random(1)
  weight %up.weight: f32[4, 3] = random(2)
  weight %down.weight: f16[4, 3] = random(3)
  weight %a.dijiang.gate.weight: f32[3, 3] = random(4)
  weight %head.weight: f32[3, 5] = random(5)
  %e = Gather(%embed.weight, %ids)
  %h = Add(%x, %e)
  %t = Transpose(%up.weight) {perm: [1, 0]}
  %u = MatMul(%h, %t)
  %c = Cast(%down.weight) {to: "f32"}
  %d = MatMul(%u, %c)
  %g = MatMul(%d, %a.dijiang.gate.weight)
  %l = MatMul(%g, %head.weight)
  const %bias: f32[5] = [1.0, 0.0, 0.0, 0.0, 2.0]
  %logits = Add(%l, %bias)
  output "logits" %logits
}"#;

    #[test]
    fn linear_layers_of_the_source_gain_a_product() {
        let before = parse(MODEL).expect("it parses");
        assert_eq!(largest_rank(&before), 3, "that of a matrix of 4 by 3");
        let mut graph = before.clone();
        let additions = add_low_rank(&mut graph, 2, 7).expect("a patch");
        insta::assert_snapshot!(print(&graph));
        assert_eq!(
            additions.iter().map(|a| a.weight.as_str()).collect::<Vec<_>>(),
            ["up.weight", "down.weight"]
        );
        let inputs = [("x", noise(&[2, 4, 3], 1)), ("ids", ids())];
        assert_eq!(run(&graph, &inputs), run(&before, &inputs), "nothing changes at first");
    }

    /// By products of either orientation, by a table, by another operator.
    #[test]
    fn weights_that_something_else_reads_stay() {
        let read = [
            ("%t = Transpose(%up.weight) {perm: [1, 0]}", "%o = MatMul(%w, %up.weight)"),
            ("%e = Gather(%embed.weight, %ids)", "%o = Gather(%up.weight, %ids)"),
            ("%t = Transpose(%up.weight) {perm: [1, 0]}", "%o = Exp(%up.weight)"),
        ];
        for (before, other) in read {
            let text = MODEL.replace(before, &format!("{before}\n  {other}"));
            let text = text.replace("  output", "  output \"o\" %o\n  output");
            let text = text.replace("input %ids", "input %w: f32[batch, 4]\n  input %ids");
            let additions = add_low_rank(&mut parse(&text).expect("it parses"), 2, 7).expect("a patch");
            assert_eq!(
                additions.iter().map(|a| a.weight.as_str()).collect::<Vec<_>>(),
                ["down.weight"],
                "{other}"
            );
        }
    }

    /// The graph with other numbers for B, and the one with W + B A.
    #[test]
    fn the_product_takes_the_place_of_the_addition() {
        let mut graph = parse(&MODEL.replace("f16[4, 3]", "f32[4, 3]")).expect("it parses");
        let mut merged = graph.clone();
        let additions = add_low_rank(&mut graph, 2, 7).expect("a patch");
        for addition in &additions {
            let up: Vec<f32> = (0..addition.up.1.len()).map(|i| (i % 5) as f32 / 4.0 - 0.5).collect();
            let down: Vec<f32> = addition.down.1.to_f64().iter().map(|x| *x as f32).collect();
            let product = addition.product(&down, &up);
            set(&mut graph, &addition.up.0, &up);
            let own = numbers(&merged, &addition.weight);
            let sum: Vec<f32> = own.iter().zip(&product).map(|(w, p)| w + p).collect();
            set(&mut merged, &addition.weight, &sum);
        }
        let inputs = [("x", noise(&[2, 4, 3], 1)), ("ids", ids())];
        let error =
            crate::testing::relative_error(&run(&graph, &inputs)["logits"], &run(&merged, &inputs)["logits"]);
        // The sums are rounded to f32, the rest is f64.
        assert!(error < 1e-6, "{error:e}");
    }

    fn ids() -> crate::ir::eval::Array {
        crate::ir::eval::Array::from_i64(&[2, 4], (0..8).map(|i| i % 5).collect()).expect("a shape")
    }

    fn numbers(graph: &Graph, name: &str) -> Vec<f32> {
        let id = graph.find_value(name).expect("it is there");
        graph.as_const(id).expect("a weight").to_f64().iter().map(|x| *x as f32).collect()
    }

    fn set(graph: &mut Graph, name: &str, values: &[f32]) {
        let id = graph.find_value(name).expect("it is there");
        let dims = graph.as_const(id).expect("a weight").dims().to_vec();
        let change = {
            let mut p = Patch::new(graph, "set");
            let new = p.weight(&format!("{name}.new"), Tensor::from_f32(&dims, values));
            p.replace(id, new);
            p.finish()
        };
        graph.apply(change).expect("a patch");
    }
}
