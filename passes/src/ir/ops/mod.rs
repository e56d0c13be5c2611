//! The operator table. An operator is one row in one of these files, with its shape inference and
//! its f64 evaluation beside it.

use super::op::OpSpec;
use ndarray::{Array4, ArrayD};
use std::collections::HashMap;
use std::sync::LazyLock;

mod activation;
mod arrange;
pub(crate) mod attention;
mod attention_gate;
pub(crate) mod einsum;
mod elementwise;
mod fused_norm;
mod indexing;
mod integers;
mod layout;
mod linear_attention;
mod matmul;
mod normalize;
mod quantized;
mod reduce;
mod rotary;
mod tensor_scatter;
mod window;

/// Every row, file by file.
pub fn all() -> impl Iterator<Item = &'static OpSpec> {
    [
        activation::OPS,
        arrange::OPS,
        attention::OPS,
        attention_gate::OPS,
        einsum::OPS,
        elementwise::OPS,
        fused_norm::OPS,
        indexing::OPS,
        integers::OPS,
        layout::OPS,
        linear_attention::OPS,
        matmul::OPS,
        normalize::OPS,
        quantized::OPS,
        reduce::OPS,
        rotary::OPS,
        tensor_scatter::OPS,
        window::OPS,
    ]
    .into_iter()
    .flatten()
}

static BY_NAME: LazyLock<HashMap<(&'static str, &'static str), &'static OpSpec>> =
    LazyLock::new(|| all().map(|spec| ((spec.domain, spec.name), spec)).collect());

/// The row of an operator. An `ai.onnx` domain spelled out counts as the empty one.
pub fn find(domain: &str, name: &str) -> Option<&'static OpSpec> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    BY_NAME.get(&(domain, name)).copied()
}

/// Defaults of a row, so that a row states only what is its own.
const ROW: OpSpec = OpSpec {
    domain: "",
    name: "",
    inputs: 1..=1,
    outputs: 1..=1,
    attrs: &[],
    infer: |_| Err("no inference".to_owned()),
    eval: |_| Err("no evaluation".to_owned()),
};

/// `[batch, time, heads, dim]` of what is packed, `[batch, time, heads · dim]`, however it lies in memory.
fn unpacked(x: &ArrayD<f64>, heads: usize) -> Result<Array4<f64>, String> {
    let &[batch, time, packed] = x.shape() else { return Err(format!("{:?} is not packed", x.shape())) };
    let plain = x.as_standard_layout().into_owned();
    plain.into_shape_with_order((batch, time, heads, packed / heads.max(1))).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, IxDyn};

    #[test]
    fn no_operator_stands_twice() {
        assert_eq!(all().count(), BY_NAME.len());
    }

    /// What a transpose gives lies in memory otherwise than its shape says.
    #[test]
    fn what_is_packed_may_lie_transposed() {
        let numbers = Array::from_shape_vec(IxDyn(&[1, 4, 3]), (0..12).map(f64::from).collect())
            .expect("it fills them");
        let heads = unpacked(&numbers.permuted_axes(IxDyn(&[0, 2, 1])), 2).expect("two heads");
        // Token 1 of the three, head 1 of the two, feature 0: row 2 of the four.
        assert_eq!((heads.dim(), heads[[0, 1, 1, 0]]), ((1, 3, 2, 2), 7.0));
        assert!(unpacked(&ArrayD::zeros(IxDyn(&[1, 3, 5])), 2).is_err(), "five do not fill two heads");
    }
}
