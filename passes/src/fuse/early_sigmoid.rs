//! Matches: a split each of whose parts is read by one sigmoid and nothing else
//! Becomes: one sigmoid before the split
//! Exact: yes
//! Declines when: a part is read otherwise too, or by no sigmoid

use super::cut_alike;
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct EarlySigmoid;

impl GraphRule for EarlySigmoid {
    fn name(&self) -> &'static str {
        "early_sigmoid"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.is("Split") {
                open_before(w, node);
            }
            None
        })
    }
}

fn open_before(w: &mut Sweep<'_>, split: &Node) -> Option<()> {
    let opened: Option<Vec<ValueId>> = split.outputs.iter().map(|part| sigmoid_of(w.graph, *part)).collect();
    let opened = opened.filter(|opened| opened.len() > 1)?;
    let x = w.input(split, 0)?;
    let open = w.patch.sigmoid(x);
    let parts = cut_alike(w, split, open);
    for (old, new) in opened.into_iter().zip(parts) {
        w.stand_for(old, new);
    }
    Some(())
}

fn sigmoid_of(graph: &Graph, part: ValueId) -> Option<ValueId> {
    let [Use::Node { node, .. }] = graph.value(part).uses[..] else { return None };
    let node = graph.node(node);
    node.op.is("Sigmoid").then(|| node.outputs[0])
}

#[cfg(test)]
mod tests {
    use super::EarlySigmoid;
    use crate::fuse::tests::after;

    fn text(second: &str) -> String {
        r#"graph "g" {
  input %x: f32[batch, 6, 1]
  const %sizes: i64[2] = [2, 4]
  %a, %b = Split(%x, %sizes) {axis: 1}
  %open = Sigmoid(%a)
  %log = Log(%open)
  %beta = %second(%b)
  output "log" %log
  output "beta" %beta
}"#
        .replace("%second", second)
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 6, 1])];

    #[test]
    fn one_sigmoid_goes_before_the_split() {
        insta::assert_snapshot!(after(&EarlySigmoid, &text("Sigmoid"), &INPUTS));
    }

    #[test]
    fn a_part_that_is_read_otherwise_stays() {
        insta::assert_snapshot!(after(&EarlySigmoid, &text("Tanh"), &INPUTS));
    }
}
