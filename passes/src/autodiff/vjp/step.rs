//! `Ceil`, `Floor`, `Round`, `Sign`: flat but for their steps, so nothing flows back.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Ceil", vjp: none },
    Rule { op: "Floor", vjp: none },
    Rule { op: "Round", vjp: none },
    Rule { op: "Sign", vjp: none },
];

fn none(ctx: &mut VjpContext<'_, '_>) -> Grads {
    Ok(vec![None; ctx.node.inputs.len()])
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradients_of};

    #[test]
    fn only_the_rest_has_a_gradient() {
        let steps = r#"graph "g" {
  input %positive: f32[5]
  %a = Ceil(%positive)
  %b = Floor(%a)
  %c = Round(%b)
  %d = Sign(%c)
  output "d" %d
}"#;
        assert_eq!(gradients_of(steps).output("grad positive"), None);
        gradcheck(&steps.replace("output \"d\" %d", "%e = Sub(%positive, %d)\n  output \"e\" %e"));
    }
}
