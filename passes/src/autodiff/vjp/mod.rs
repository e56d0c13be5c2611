//! The rules, one file per operator or close family, each with its gradcheck beside it.

use super::context::Grads;
use super::{AutodiffError, Vjp, VjpContext};
use crate::ir::graph::ValueId;
use std::collections::BTreeMap;
use std::sync::LazyLock;

mod arithmetic;
mod cast;
mod choice;
mod cumsum;
mod expand;
mod extreme;
mod gather;
mod gather_elements;
mod gelu;
mod gemm;
mod join;
mod matmul;
mod norm;
mod power;
mod reduce;
mod reshape;
mod sigmoid;
mod slice;
mod softmax;
mod step;
mod transpose;
mod trigonometry;

/// A row of the table.
struct Rule {
    op: &'static str,
    vjp: fn(&mut VjpContext<'_, '_>) -> Grads,
}

impl Vjp for Rule {
    fn op(&self) -> &'static str {
        self.op
    }

    fn vjp(&self, ctx: &mut VjpContext<'_, '_>) -> Result<Vec<Option<ValueId>>, AutodiffError> {
        (self.vjp)(ctx)
    }
}

/// Every file with its rules.
const FILES: &[(&str, &[Rule])] = &[
    ("arithmetic", arithmetic::RULES),
    ("cast", cast::RULES),
    ("choice", choice::RULES),
    ("cumsum", cumsum::RULES),
    ("expand", expand::RULES),
    ("extreme", extreme::RULES),
    ("gather", gather::RULES),
    ("gather_elements", gather_elements::RULES),
    ("gelu", gelu::RULES),
    ("gemm", gemm::RULES),
    ("join", join::RULES),
    ("matmul", matmul::RULES),
    ("norm", norm::RULES),
    ("power", power::RULES),
    ("reduce", reduce::RULES),
    ("reshape", reshape::RULES),
    ("sigmoid", sigmoid::RULES),
    ("slice", slice::RULES),
    ("softmax", softmax::RULES),
    ("step", step::RULES),
    ("transpose", transpose::RULES),
    ("trigonometry", trigonometry::RULES),
];

static BY_NAME: LazyLock<BTreeMap<&'static str, &'static dyn Vjp>> =
    LazyLock::new(|| rules().map(|rule| (rule.op(), rule)).collect());

fn rules() -> impl Iterator<Item = &'static dyn Vjp> {
    FILES.iter().flat_map(|(_, rules)| rules.iter()).map(|rule| rule as &dyn Vjp)
}

/// The rule of an operator, by its qualified name.
pub(super) fn find(op: &str) -> Option<&'static dyn Vjp> {
    BY_NAME.get(op).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_stands_in_the_table() {
        let files = crate::testing::file_stems("src/autodiff/vjp");
        let table: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(files, table);
    }

    #[test]
    fn no_operator_has_two_rules_and_all_are_known() {
        assert_eq!(rules().count(), BY_NAME.len());
        let known: Vec<String> = crate::ir::ops::all()
            .map(|spec| crate::ir::op::Op::in_domain(spec.domain, spec.name).qualified_name())
            .collect();
        for rule in rules() {
            assert!(known.iter().any(|name| name == rule.op()), "{} is no operator of the table", rule.op());
        }
    }
}
