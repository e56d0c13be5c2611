//! What a conversion takes of the disk and of memory, told before anything is written.

use crate::report::progress::Estimate;
use dijiang_format::recipe::{Attention, Recipe};
use dijiang_passes::attention::rewrite::added_weights;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::Tensor;

/// Graphs, what threads convert at a time and the program itself, in round numbers: a conversion without a proof was
/// measured at 65 to 101 MB (135 million to 1.1 billion parameters, with and without weights of four bits).
const WORKING: u64 = 128_000_000;

/// What a proof holds whatever the size: runtimes and logits, in round numbers.
const PROOF_WORKING: u64 = 400_000_000;
/// What it holds of each parameter, in sessions whose weights are f32 and packed for their products too. 70 and 135
/// million parameters took 1,443 and 2,177 MB in all, and with softmax attention 1,633 and 4,412 MB.
const PROOF: u64 = 16;
const SOFTMAX_PROOF: u64 = 33;

/// What a scan holds, in a session whose weights are f32: 70, 135 and 405 million parameters took 431 to 645, 874 to 1,040, and 1,741
/// to 1,993 MB in all, the more where the source is f16.
const SCAN_WORKING: u64 = 500_000_000;
const SCAN: u64 = 4;

/// The manifest and the configs, with what they say of each attention.
const DESCRIPTIONS: u64 = 64_000;
const DESCRIPTION: u64 = 1_000;

/// The files of a bundle beside its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beside {
    /// The serving graph, in bytes.
    pub serving: u64,
    /// The other graphs, each as a multiple of that.
    pub graphs: &'static [u64],
    pub attentions: u64,
    /// Tokenizer and other texts, in bytes.
    pub texts: u64,
    /// The training graphs, in bytes.
    pub training: u64,
}

/// The softmax model over the serving graph: 1.6 to 1.9 where that has fewer operators or weights of four bits.
pub const SOFTMAX: u64 = 2;
/// The parallel and the chunked form, together: 2.9 to 4.0, and 5.3 with weights of four bits.
pub const FORMS: u64 = 4;
pub const FORMS_INT4: u64 = 6;
/// The graphs for bound memory, together: 2.3 to 3.2.
pub const BOUND: u64 = 4;

impl Beside {
    fn bytes(&self) -> u64 {
        let graphs = self.serving.saturating_mul(1 + self.graphs.iter().sum::<u64>());
        [self.texts, self.training, DESCRIPTIONS, DESCRIPTION * self.attentions]
            .iter()
            .fold(graphs, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// The training graphs, for batches of so many rows and tokens: 5 to 15 times the serving graph, and in both the loss and
/// its gradients up to one mask per layer, of each row, token and other token.
pub fn training(serving: u64, layers: u64, rows: u64, tokens: u64) -> u64 {
    let masks = layers.saturating_mul(rows).saturating_mul(tokens).saturating_mul(tokens);
    serving.saturating_mul(16).saturating_add(masks.saturating_mul(2))
}

impl Estimate {
    /// For a bundle with so many bytes of weights, of which `model` holds the new ones.
    pub fn of(weights: u64, beside: &Beside, model: &Graph) -> Self {
        let held: usize = added_weights(model).values().map(Tensor::held_bytes).sum();
        let disk = weights.saturating_add(beside.bytes());
        Self { disk, memory: WORKING.saturating_add(held as u64) }
    }

    /// With the proof of a model of so many parameters.
    #[must_use]
    pub fn proved(self, parameters: u64, recipe: &Recipe) -> Self {
        let each = if recipe.attention == Attention::Softmax { SOFTMAX_PROOF } else { PROOF };
        let proof = PROOF_WORKING.saturating_add(parameters.saturating_mul(each));
        Self { memory: self.memory.saturating_add(proof), ..self }
    }

    /// With a scan of a model of so many parameters, which ends before anything else begins.
    #[must_use]
    pub fn scanned(self, parameters: u64) -> Self {
        Self { memory: self.memory.max(of_scan(parameters)), ..self }
    }
}

/// Memory that a scan of a model of so many parameters takes.
pub fn of_scan(parameters: u64) -> u64 {
    SCAN_WORKING.saturating_add(parameters.saturating_mul(SCAN))
}

/// Numbers in the weights of a graph.
pub fn parameters(graph: &Graph) -> u64 {
    let weights = graph.consts().filter(|(id, ..)| graph.value(*id).is_weight);
    weights.map(|(_, _, tensor)| tensor.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_passes::ir::text::parse;

    /// 8 numbers of the source, and 6 new ones: 24 bytes as they were added.
    const MODEL: &str = r#"graph "rewritten" {
  input %x: f16[2, 4]
  input %u: f32[4, 2]
  weight %w: f16[4, 2] = random(7)
  weight %h.0.dijiang.w: f32[2, 3] = random(8)
  %y = MatMul(%x, %w) "y": f16[2, 2]
  %z = MatMul(%u, %h.0.dijiang.w) "z": f32[4, 3]
  output "y" %y
  output "z" %z
}
"#;

    #[test]
    fn memory_is_that_of_what_is_new_and_of_the_proof() {
        let graph = parse(MODEL).expect("a graph");
        assert_eq!(parameters(&graph), 14);
        let beside =
            Beside { serving: 100, graphs: &[SOFTMAX, FORMS], attentions: 3, texts: 20, training: 7 };
        let written = Estimate::of(1000, &beside, &graph);
        let disk = 1000 + 700 + DESCRIPTIONS + 3 * DESCRIPTION + 27;
        assert_eq!(written, Estimate { disk, memory: WORKING + 24 });
        assert_eq!(Estimate::of(u64::MAX, &beside, &graph).disk, u64::MAX);
        let recipe = |name| crate::recipes::load(name).expect("a preset");
        let proof = |each| WORKING + 24 + PROOF_WORKING + 8 * each;
        assert_eq!(written.proved(8, &recipe("gated")).memory, proof(PROOF));
        assert_eq!(written.proved(8, &recipe("softmax")).memory, proof(SOFTMAX_PROOF));
        assert_eq!(written.scanned(8).memory, SCAN_WORKING + 8 * SCAN);
        let proved = written.proved(8, &recipe("adaptive"));
        assert_eq!(proved.scanned(8), proved, "the proof takes more, and begins when the scan has ended");
        assert_eq!(written.proved(u64::MAX, &recipe("paper")).memory, u64::MAX);
    }
}
