//! What is worth knowing of a model that was read all the same.

use crate::bundle::finite::NotFinite;
use crate::report::message::shown;
use dijiang_format::words::counted;
use dijiang_passes::ir::tensor::Tensor;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// Weights of more bytes than this are not searched for numbers that are not finite: it would read
/// the whole model before anything else is done.
const MAX_SEARCHED: usize = 256 << 20;

/// Notes in the making.
#[derive(Default)]
pub(super) struct Notes {
    lines: Vec<String>,
    /// How many nodes an opaque operator has, and the name of the first.
    opaque: BTreeMap<String, (usize, String)>,
    /// Inputs whose initialiser makes them constants.
    defaults: Vec<String>,
    weights: Vec<(String, Tensor)>,
}

impl Notes {
    pub(super) fn add(&mut self, line: String) {
        self.lines.push(line);
    }

    pub(super) fn opaque(&mut self, op: String, node: &str) {
        self.opaque.entry(op).or_insert_with(|| (0, node.to_owned())).0 += 1;
    }

    pub(super) fn default_of_input(&mut self, name: &str) {
        self.defaults.push(name.to_owned());
    }

    pub(super) fn weight(&mut self, name: &str, tensor: &Tensor) {
        self.weights.push((name.to_owned(), tensor.clone()));
    }

    pub(super) fn finish(mut self) -> Vec<String> {
        for (op, (count, first)) in &self.opaque {
            let nodes = counted(*count, "node");
            self.lines.push(format!(
                "operator {} ({nodes}, first `{}`) is not known: it is kept as it is, and nothing is inferred of its outputs",
                shown(op),
                shown(first)
            ));
        }
        if let Some(first) = self.defaults.first() {
            let n = self.defaults.len();
            self.lines.push(format!(
                "inputs with initialisers are constants and no inputs any more: {n}, first `{}`",
                shown(first)
            ));
        }
        let bytes: usize = self.weights.iter().map(|(_, t)| t.byte_len()).fold(0, usize::saturating_add);
        if bytes <= MAX_SEARCHED {
            self.lines.extend(self.weights.iter().filter_map(|(name, t)| not_finite(name, t)));
        }
        self.lines
    }
}

/// A line about a tensor that holds NaN or infinite numbers; reads all of it.
fn not_finite(name: &str, tensor: &Tensor) -> Option<String> {
    let mut found = NotFinite::default();
    let counted: Result<(), Infallible> = tensor.for_each_block(&mut |block| {
        found.count(tensor.dtype(), block);
        Ok(())
    });
    let Ok(()) = counted;
    found.line(name, tensor.len())
}
