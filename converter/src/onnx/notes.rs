//! What is worth knowing of a model that was read all the same.

use super::message::shown;
use dijiang_passes::ir::dtype::DType;
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
            let nodes = if *count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
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
pub fn not_finite(name: &str, tensor: &Tensor) -> Option<String> {
    let (mut nan, mut infinite) = (0usize, 0usize);
    let counted: Result<(), Infallible> = tensor.for_each_block(&mut |block| {
        let (n, i) = count(tensor.dtype(), block);
        nan += n;
        infinite += i;
        Ok(())
    });
    let Ok(()) = counted;
    let found = [(nan, "NaN"), (infinite, "infinite")].into_iter().filter(|(n, _)| *n > 0);
    let found: Vec<String> = found.map(|(n, what)| format!("{n} {what}")).collect();
    (!found.is_empty()).then(|| {
        format!(
            "weight `{}` holds numbers that are not finite: {} of {}",
            shown(name),
            found.join(" and "),
            tensor.len()
        )
    })
}

/// NaN and infinite numbers among the elements.
fn count(dtype: DType, bytes: &[u8]) -> (usize, usize) {
    match dtype {
        DType::F32 => tally(bytes, |b: [u8; 4]| f32::from_le_bytes(b).classify()),
        DType::F64 => tally(bytes, |b: [u8; 8]| f64::from_le_bytes(b).classify()),
        DType::F16 => tally(bytes, |b: [u8; 2]| half::f16::from_le_bytes(b).classify()),
        DType::BF16 => tally(bytes, |b: [u8; 2]| half::bf16::from_le_bytes(b).classify()),
        _ => (0, 0),
    }
}

fn tally<const N: usize>(bytes: &[u8], classify: impl Fn([u8; N]) -> std::num::FpCategory) -> (usize, usize) {
    use std::num::FpCategory::{Infinite, Nan};
    let (elements, _) = bytes.as_chunks::<N>();
    elements.iter().fold((0, 0), |(nan, infinite), b| match classify(*b) {
        Nan => (nan + 1, infinite),
        Infinite => (nan, infinite + 1),
        _ => (nan, infinite),
    })
}
