//! The operator table. An operator is one row in one of these files, with its shape inference and
//! its f64 evaluation beside it.

use super::op::OpSpec;
use std::collections::HashMap;
use std::sync::LazyLock;

mod activation;
mod arrange;
pub(crate) mod attention;
mod einsum;
mod elementwise;
mod fused_norm;
mod indexing;
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
        einsum::OPS,
        elementwise::OPS,
        fused_norm::OPS,
        indexing::OPS,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operator_stands_twice() {
        assert_eq!(all().count(), BY_NAME.len());
    }
}
