//! The activation functions, under the names configs give them (transformers' `ACT2FN`).

use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::patch::Patch;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// Writes one activation function.
pub(crate) type Activation = fn(&mut Patch<'_>, ValueId) -> ValueId;

const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", gelu),
    ("gelu_fast", gelu_tanh),
    ("gelu_new", gelu_tanh),
    ("gelu_pytorch_tanh", gelu_tanh),
    ("relu", |p, x| p.relu(x)),
    ("silu", silu),
    ("swish", silu),
];

/// The activation that `key` of the config names.
pub(crate) fn activation(config: &Config, key: &str, default: &str) -> Result<Activation, CheckpointError> {
    let name = config.str_or(key, default)?;
    let known = || {
        let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
        config.unsupported(key, name, &names.join(", "))
    };
    ACTIVATIONS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f).ok_or_else(known)
}

/// `x · sigmoid(x)`
fn silu(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    let gate = p.sigmoid(x);
    p.mul(x, gate)
}

/// `x/2 · (1 + erf(x / √2))`, in f32 where x is bf16, which would round the root by a thousandth.
fn gelu(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    in_f32_of(p, x, &[DType::BF16], |p, x| {
        let scaled = p.mul_scalar(x, FRAC_1_SQRT_2);
        let odd = p.erf(scaled);
        half_times_one_plus(p, x, odd)
    })
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, in f32 where x is narrower, which would round the two numbers.
fn gelu_tanh(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    in_f32_of(p, x, &[DType::F16, DType::BF16], |p, x| {
        let square = p.mul(x, x);
        let cube = p.mul(square, x);
        let cube = p.mul_scalar(cube, 0.044_715);
        let sum = p.add(x, cube);
        let scaled = p.mul_scalar(sum, FRAC_2_PI.sqrt());
        let odd = p.tanh(scaled);
        half_times_one_plus(p, x, odd)
    })
}

/// What `write` makes of `x`, in f32 where `x` is of one of these types.
fn in_f32_of(
    p: &mut Patch<'_>,
    x: ValueId,
    narrow: &[DType],
    write: impl FnOnce(&mut Patch<'_>, ValueId) -> ValueId,
) -> ValueId {
    let dtype = p.dtype(x);
    let wide = if narrow.contains(&dtype) { p.cast(x, DType::F32) } else { x };
    let made = write(p, wide);
    p.cast(made, dtype)
}

fn half_times_one_plus(p: &mut Patch<'_>, x: ValueId, odd: ValueId) -> ValueId {
    let gate = p.add_scalar(odd, 1.0);
    let half = p.mul_scalar(x, 0.5);
    p.mul(half, gate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_passes::ir::eval::{Array, eval};
    use dijiang_passes::ir::graph::Graph;
    use dijiang_passes::ir::text;
    use std::collections::BTreeMap;

    /// The activation called `name`, its input and its output.
    fn written(name: &str, dtype: DType) -> (Graph, ValueId, ValueId) {
        let (_, write) = ACTIVATIONS.iter().find(|(n, _)| *n == name).expect("a row of the table");
        let mut graph = Graph::new("activation");
        let mut p = Patch::new(&graph, "test");
        let x = p.input("x", dtype, [3.into()]);
        let y = write(&mut p, x);
        p.output("y", y);
        let change = p.finish();
        graph.apply(change).expect("a graph");
        (graph, x, y)
    }

    /// Numbers that a narrow type would round are of f32.
    #[test]
    fn a_number_is_not_rounded_to_a_narrow_type() {
        let has =
            |name: &str, dtype: DType, number: &str| text::print(&written(name, dtype).0).contains(number);
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            assert!(has("gelu_new", dtype, "f32[] = [0.044715]"), "{dtype}");
        }
        assert!(has("gelu", DType::BF16, "f32[] = [0.70710677]"));
        assert!(!has("gelu", DType::F16, "f32[] = [0.70710677]"));
    }

    /// The activation called `name`, at -2, 0 and 1.
    fn at_points(name: &str) -> Vec<f64> {
        let (graph, x, y) = written(name, DType::F64);
        let points = Array::from_f64(&[3], vec![-2.0, 0.0, 1.0]).expect("three points");
        eval(&graph, &BTreeMap::from([(x, points)]), &[y]).expect("values")[0].to_f64()
    }

    /// Values of the closed forms from Python's `math`.
    #[test]
    fn values_are_those_of_the_closed_forms() {
        let gelu = [-0.045_500_263_896_358_42, 0.0, 0.841_344_746_068_542_9];
        let gelu_tanh = [-0.045_402_305_912_224_94, 0.0, 0.841_191_990_608_276_8];
        let silu = [-0.238_405_844_044_235_1, 0.0, 0.731_058_578_630_004_9];
        let expected = [
            ("gelu", gelu),
            ("gelu_fast", gelu_tanh),
            ("gelu_new", gelu_tanh),
            ("gelu_pytorch_tanh", gelu_tanh),
            ("relu", [0.0, 0.0, 1.0]),
            ("silu", silu),
            ("swish", silu),
        ];
        assert_eq!(expected.len(), ACTIVATIONS.len());
        for (name, values) in expected {
            for (x, y) in at_points(name).iter().zip(values) {
                // The oracle's erf is good to some 1e-11.
                assert!((x - y).abs() < 1e-10, "{name}: {x} is not {y}");
            }
        }
    }
}
