//! Matches: `Cast(Cast(x, wide), t)` where `wide` holds every number of x's type
//! Becomes: `Cast(x, t)`, or `x` where t is its type
//! Exact: yes

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::Graph;
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;

pub(super) struct CastCast;

impl GraphRule for CastCast {
    fn name(&self) -> &'static str {
        "cast_cast"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let middle = node.input(0).filter(|_| node.op.is("Cast"))?;
            let x = w.graph.made_by(middle, "Cast")?.input(0)?;
            let ty = |v| w.graph.value(v).ty.dtype;
            if !holds_all(ty(middle)?, ty(x)?) || !w.is_untouched(middle) {
                return None;
            }
            let (x, to) = (w.current(x), ty(node.outputs[0])?);
            Some(vec![w.patch.cast(x, to)])
        })
    }
}

/// Whether every number of `narrow` is one of `wide`.
fn holds_all(wide: DType, narrow: DType) -> bool {
    // Bits of exact integers, signed or not.
    let bits = |d: DType| match d {
        DType::Bool => (1, false),
        DType::U8 => (8, false),
        DType::U16 => (16, false),
        DType::U32 => (32, false),
        DType::U64 => (64, false),
        DType::I8 => (7, true),
        DType::I16 => (15, true),
        DType::I32 => (31, true),
        DType::I64 => (63, true),
        DType::BF16 => (8, true),
        DType::F16 => (11, true),
        DType::F32 => (24, true),
        DType::F64 => (53, true),
    };
    match (wide, narrow) {
        (a, b) if a == b => true,
        (DType::F64, DType::F32) | (DType::F64 | DType::F32, DType::F16 | DType::BF16) => true,
        (_, b) if b.is_float() => false,
        (a, b) => bits(a).0 >= bits(b).0 && (bits(a).1 || !bits(b).1),
    }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn casts_through_a_wider_type_join() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %b: bool[n]
  input %i: i64[n]
  %f = Cast(%b) {to: "f32"}
  %back = Cast(%f) {to: "bool"}
  %long = Cast(%f) {to: "i64"}
  %flag = Cast(%i) {to: "bool"}
  %lossy = Cast(%flag) {to: "i64"}
  output "back" %back
  output "long" %long
  output "lossy" %lossy
}"#
        ));
    }
}
