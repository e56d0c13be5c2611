//! Which weights are trained, and where each lies in the flat vectors that hold them.
//!
//! A training graph takes each weight and gives each gradient on its own; for the runtime they are parts of
//! flat vectors, which is what the optimiser's graph works on.

use super::lora::is_addition;
use crate::feature_map::added::{is_added, is_fixed};
use crate::ir::graph::{Graph, Use, ValueId};
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

/// Which weights to train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every weight but the fixed ones of the recipe.
    All,
    /// The weights of the attention modules of these names, and what the conversion added to them.
    Attention(Vec<String>),
    /// What the conversion added.
    New,
    /// That, and the additions of [`super::lora`].
    LowRank,
    /// Every weight, the fixed ones too.
    Everything,
}

impl Selection {
    fn takes(&self, name: &str) -> bool {
        match self {
            Self::All => !is_fixed(name),
            Self::Attention(modules) => !is_fixed(name) && modules.iter().any(|m| lies_in(name, m)),
            Self::New => !is_fixed(name) && is_added(name),
            Self::LowRank => is_addition(name) || Self::New.takes(name),
            Self::Everything => true,
        }
    }

    fn wanted(&self) -> &'static str {
        match self {
            Self::All | Self::Everything => "a weight",
            Self::Attention(_) => "a weight of an attention",
            Self::New => "one that the conversion added",
            Self::LowRank => "an addition",
        }
    }
}

fn lies_in(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

/// Each weight begins at a multiple of so many elements, where kernels can read several at a time. What lies
/// between two weights is zero and stays so.
const ALIGNMENT: usize = 64;

/// Elements that are updated at once, at most: what an update needs besides is a few times as large.
const SLICE: usize = 1 << 24;

/// The names of gradients begin so.
pub(super) const GRADIENT: &str = "gradient.";

/// A weight in a flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub dims: Vec<u64>,
}

impl Parameter {
    pub fn len(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The training graph's input.
    pub fn input(&self) -> String {
        format!("parameter.{}", self.name)
    }

    /// The training graph's output, of the same dims.
    pub fn gradient(&self) -> String {
        format!("{GRADIENT}{}", self.name)
    }
}

/// Weights that are updated alike, one after the other in a flat f32 vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub name: &'static str,
    pub parameters: Vec<Parameter>,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Whether the learning rate is that of new parameters.
    pub is_new: bool,
}

impl Group {
    /// The length of its flat vectors, a multiple of [`Self::slice_len`].
    pub fn len(&self) -> usize {
        self.slices() * self.slice_len()
    }

    fn used(&self) -> usize {
        self.parameters.iter().map(|p| p.len().next_multiple_of(ALIGNMENT)).sum()
    }

    /// How many equal slices its vectors have.
    pub fn slices(&self) -> usize {
        self.used().div_ceil(SLICE).max(1)
    }

    /// The length of a slice.
    pub fn slice_len(&self) -> usize {
        self.used().div_ceil(self.slices()).next_multiple_of(ALIGNMENT)
    }

    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// Each parameter with where it begins.
    pub fn offsets(&self) -> impl Iterator<Item = (usize, &Parameter)> {
        self.parameters.iter().scan(0, |at, parameter| {
            let begin = *at;
            *at += parameter.len().next_multiple_of(ALIGNMENT);
            Some((begin, parameter))
        })
    }

    /// The name of the flat vector `part`: [`PARAMETERS`], [`READ`], [`GRADIENTS`] or a moment.
    pub fn vector(&self, part: &str) -> String {
        format!("{part}.{}", self.name)
    }
}

/// The parts of a group: the weights in f32, the weights as the training graph reads them where that is
/// another element type, the gradients, and their moments.
pub const PARAMETERS: &str = "parameters";
pub const READ: &str = "read";
pub const GRADIENTS: &str = "gradients";
pub const FIRST_MOMENTS: &str = "first_moments";
pub const SECOND_MOMENTS: &str = "second_moments";

/// All trained weights, by group and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParameterLayout {
    /// Those that gradients are taken to.
    pub groups: Vec<Group>,
    /// Those that a run draws anew ([`super::redraw`]): inputs of the graphs as the others are, in f32.
    pub drawn: Option<Group>,
}

/// The groups: tables and matrices decay, vectors do not, and new parameters have a learning rate of their own.
/// Tables are picked from row by row, which is not worth a copy in another element type.
const GROUPS: [&str; 4] = ["tables", "matrices", "vectors", "new"];

impl ParameterLayout {
    /// The floating-point weights of `graph` that `selection` takes; `None` where there are none.
    pub fn of(graph: &Graph, selection: &Selection) -> Result<Self, super::TrainingError> {
        let mut by_group: BTreeMap<&str, BTreeMap<&str, Vec<u64>>> = BTreeMap::new();
        for (id, name, tensor) in graph.consts() {
            let trained = graph.value(id).is_weight && tensor.dtype().is_float() && !tensor.is_empty();
            if trained && selection.takes(name) {
                let dims = tensor.dims().to_vec();
                by_group.entry(group_of(graph, id, &dims)).or_default().insert(name, dims);
            }
        }
        let groups: Vec<Group> = GROUPS
            .iter()
            .filter_map(|name| {
                let parameters = by_group.remove(name)?.into_iter();
                let parameters = parameters.map(|(name, dims)| Parameter { name: name.to_owned(), dims });
                Some(Group {
                    name,
                    parameters: parameters.collect(),
                    decays: matches!(*name, "tables" | "matrices"),
                    is_new: *name == "new",
                })
            })
            .collect();
        if groups.is_empty() {
            return Err(super::TrainingError::NoParameters { wanted: selection.wanted().to_owned() });
        }
        Ok(Self { groups, drawn: None })
    }

    /// The number of trained weights' elements.
    pub fn len(&self) -> usize {
        self.parameters().map(Parameter::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Those that gradients are taken to.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.groups.iter().flat_map(|g| &g.parameters)
    }

    /// All that graphs take as inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain(&self.drawn)
    }
}

fn group_of(graph: &Graph, id: ValueId, dims: &[u64]) -> &'static str {
    if is_added(&graph.value(id).name) {
        "new"
    } else if is_table(graph, id) {
        "tables"
    } else if dims.len() >= 2 {
        "matrices"
    } else {
        "vectors"
    }
}

/// Whether rows are picked from a value, as it is or cast.
fn is_table(graph: &Graph, id: ValueId) -> bool {
    graph.value(id).uses.iter().any(|user| match user {
        Use::Node { node, slot: 0 } => match graph.node(*node) {
            node if node.op.is("Gather") => true,
            node => node.op.is("Cast") && is_table(graph, node.outputs[0]),
        },
        Use::Node { .. } | Use::GraphOutput(_) => false,
    })
}

/// How a training graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All in f32.
    F32,
    /// Matrix products and what lies between them in bf16; sums, norms and the parameters in f32.
    Bf16,
}

impl Precision {
    /// The element type in which the graph reads a group.
    pub fn of_group(self, group: &Group) -> DType {
        match self {
            Self::Bf16 if group.name == "matrices" => DType::BF16,
            Self::F32 | Self::Bf16 => DType::F32,
        }
    }

    /// The element type of a teacher's logits.
    pub fn of_logits(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    fn graph() -> Graph {
        parse(
            r#"graph "g" {
  input %x: f32[batch, 2]
  weight %h.0.attn.w: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %h.0.attn.dijiang.t: f32[2] = [1.0, 2.0]
  weight %h.0.attn.dijiang.q.log_d: f32[2] = [1.0, 2.0]
  weight %h.0.attention.b: f32[2] = [1.0, 2.0]
  const %two: f32[] = [2.0]
  %a = MatMul(%x, %h.0.attn.w) "a"
  %b = Mul(%a, %h.0.attn.dijiang.t) "b"
  %c = Mul(%b, %h.0.attn.dijiang.q.log_d) "c"
  %d = Add(%c, %h.0.attention.b) "d"
  %e = Mul(%d, %two) "e"
  output "y" %e
}"#,
        )
        .expect("it parses")
    }

    fn taken(selection: &Selection) -> Vec<String> {
        let layout = ParameterLayout::of(&graph(), selection).expect("there are some");
        layout
            .groups
            .iter()
            .flat_map(|g| g.parameters.iter().map(move |p| format!("{}: {}", g.name, p.name)))
            .collect()
    }

    #[test]
    fn selections_take_whole_modules() {
        let (w, b, d) = ("matrices: h.0.attn.w", "vectors: h.0.attention.b", "new: h.0.attn.dijiang.q.log_d");
        assert_eq!(taken(&Selection::All), [w, b, d]);
        assert_eq!(taken(&Selection::Attention(vec!["h.0.attn".to_owned()])), [w, d]);
        assert_eq!(taken(&Selection::New), [d]);
        assert_eq!(taken(&Selection::Everything), [w, b, d, "new: h.0.attn.dijiang.t"]);
    }

    #[test]
    fn nothing_to_train_is_an_error() {
        let none = ParameterLayout::of(&graph(), &Selection::Attention(vec!["h.0.at".to_owned()]));
        let error = none.expect_err("there is none").to_string();
        let expected = "nothing is left to train: no parameter of the graph is a weight of an attention (hint: `dijiang finetune --train all` trains the model's own)";
        assert_eq!(error, expected);
    }

    #[test]
    fn parameters_lie_one_after_the_other() {
        let layout = ParameterLayout::of(&graph(), &Selection::Everything).expect("there are some");
        let new = &layout.groups[2];
        let offsets: Vec<(usize, &str)> = new.offsets().map(|(at, p)| (at, p.name.as_str())).collect();
        assert_eq!(offsets, [(0, "h.0.attn.dijiang.q.log_d"), (64, "h.0.attn.dijiang.t")]);
        assert_eq!((new.len(), new.slices(), new.vector(GRADIENTS)), (128, 1, "gradients.new".to_owned()));
    }

    #[test]
    fn large_groups_have_equal_slices() {
        let parameters = vec![Parameter { name: "w".to_owned(), dims: vec![3, SLICE as u64 / 2 + 1] }];
        let group = Group { name: "matrices", parameters, decays: true, is_new: false };
        assert_eq!((group.slices(), group.slice_len()), (2, SLICE / 4 * 3 + 64));
        assert_eq!(group.len(), 2 * group.slice_len());
    }
}
