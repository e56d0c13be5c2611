//! Patterns as data: a tree of operators that is matched backwards from one value.
//!
//! A match binds names to values and says which of several alternatives applied. A miss says how
//! far the pattern got and what stood in the way, so that the closest miss can be shown.
//!
//! A pattern says which operators stand where. What they compute (a shape, a coefficient, who else reads a value) is
//! checked by the rule that the pattern belongs to. Rules that follow a value to its users, that gather any number of
//! nodes or that compare polynomials have no pattern: a tree of fixed size cannot say what they look for.

use crate::ir::graph::{Graph, Node, NodeId, ValueId};
use std::fmt;

/// A pattern for one value.
#[derive(Debug, Clone)]
pub enum Pat {
    /// Any value.
    Any,
    /// A value that is remembered under a name. A name that occurs twice must mean one value.
    Bind(&'static str, Box<Pat>),
    /// An output of an operator.
    Op(OpPat),
    /// A constant of one element.
    Scalar,
    /// The first alternative that matches; its tag is remembered.
    OneOf(Vec<(&'static str, Pat)>),
}

/// A pattern for a node.
#[derive(Debug, Clone)]
pub struct OpPat {
    domain: &'static str,
    name: &'static str,
    /// Which of the node's outputs the value is.
    output: u32,
    inputs: Vec<Pat>,
    /// How many inputs and outputs the node has, where that is asked.
    arity: Option<[usize; 2]>,
    /// The two inputs may be swapped.
    commutative: bool,
    attrs: Vec<(&'static str, Want)>,
}

/// What an attribute must be.
#[derive(Debug, Clone)]
enum Want {
    Ints(Vec<i64>),
    /// One of these numbers, or the operator's default where that is one of them.
    IntOf(&'static [i64]),
}

impl Want {
    /// What was found and expected, where the attribute is another.
    fn missed(&self, node: &Node, attr: &str) -> Option<String> {
        match self {
            Self::Ints(want) => {
                let found = node.op.ints(attr);
                (found != Some(want)).then(|| format!("expected {attr} = {want:?}, found {found:?}"))
            }
            Self::IntOf(want) => {
                let found = node.op.int(attr);
                let fits = found.is_some_and(|found| want.contains(&found));
                (!fits).then(|| format!("expected {attr} of {want:?}, found {found:?}"))
            }
        }
    }
}

/// The last axis of four.
pub const LAST_OF_FOUR: &[i64] = &[-1, 3];

impl Pat {
    /// The first output of a node of `ai.onnx` with these leading inputs; further inputs are not looked at.
    pub fn op(name: &'static str, inputs: impl Into<Vec<Pat>>) -> Self {
        Self::op_in("", name, inputs)
    }

    /// The same in another domain.
    pub fn op_in(domain: &'static str, name: &'static str, inputs: impl Into<Vec<Pat>>) -> Self {
        let commutative = matches!(name, "Add" | "Mul");
        let (inputs, attrs) = (inputs.into(), Vec::new());
        Self::Op(OpPat { domain, name, output: 0, inputs, arity: None, commutative, attrs })
    }

    /// The node's list attribute must be `value`.
    #[must_use]
    pub fn with_ints(self, attr: &'static str, value: &[i64]) -> Self {
        self.with(|op| op.attrs.push((attr, Want::Ints(value.to_vec()))))
    }

    /// The node's number, or its default, must be one of `values`.
    #[must_use]
    pub fn with_int_of(self, attr: &'static str, values: &'static [i64]) -> Self {
        self.with(|op| op.attrs.push((attr, Want::IntOf(values))))
    }

    /// The value is this output of the node, counted from 0.
    #[must_use]
    pub fn output(self, output: u32) -> Self {
        self.with(|op| op.output = output)
    }

    /// The node has so many inputs and outputs, and no more.
    #[must_use]
    pub fn exactly(self, inputs: usize, outputs: usize) -> Self {
        self.with(|op| op.arity = Some([inputs, outputs]))
    }

    fn with(mut self, change: impl FnOnce(&mut OpPat)) -> Self {
        if let Self::Op(op) = &mut self {
            change(op);
        }
        self
    }

    #[must_use]
    pub fn bind(self, name: &'static str) -> Self {
        Self::Bind(name, Box::new(self))
    }

    /// What may stand first, in words.
    fn roots(&self, found: &mut Vec<&'static str>) {
        let root = match self {
            Self::Any => "anything",
            Self::Scalar => "a constant of one element",
            Self::Op(op) => op.name,
            Self::Bind(_, inner) => return inner.roots(found),
            Self::OneOf(alternatives) => return alternatives.iter().for_each(|(_, p)| p.roots(found)),
        };
        if !found.contains(&root) {
            found.push(root);
        }
    }

    /// Any value, remembered under a name.
    pub fn var(name: &'static str) -> Self {
        Self::Any.bind(name)
    }

    pub fn one_of(alternatives: impl Into<Vec<(&'static str, Pat)>>) -> Self {
        Self::OneOf(alternatives.into())
    }

    /// `self`, with or without a `Cast` after it.
    #[must_use]
    pub fn maybe_cast(self) -> Self {
        Self::one_of([("cast", Self::op("Cast", [self.clone()])), ("no_cast", self)])
    }
}

/// What a pattern found.
#[derive(Debug, Clone, Default)]
pub struct Match {
    bindings: Vec<(&'static str, ValueId)>,
    tags: Vec<&'static str>,
    /// The node of the matched value first.
    pub nodes: Vec<NodeId>,
}

impl Match {
    /// The value bound to a name, if the alternative that binds it applied.
    pub fn get(&self, name: &str) -> Option<ValueId> {
        self.bindings.iter().find(|(bound, _)| *bound == name).map(|(_, value)| *value)
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains(&tag)
    }

    /// Whether nothing but the pattern reads what its nodes make, but for the matched value itself.
    pub fn is_alone(&self, graph: &Graph) -> bool {
        let inner = self.nodes.iter().skip(1).flat_map(|id| &graph.node(*id).outputs);
        inner.into_iter().all(|value| graph.value(*value).uses.len() == 1)
    }
}

/// Where in its work a pattern gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The operators are not the ones of the pattern.
    Shape,
    /// The operators fit, but what they compute is not what the rule needs.
    Check,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "pattern",
            Self::Check => "check",
        })
    }
}

/// Why a pattern does not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    pub stage: Stage,
    /// Nodes that had matched.
    pub matched: usize,
    /// The node or value that is to blame.
    pub place: String,
    /// What was found there, and what was expected.
    pub reason: String,
}

impl Miss {
    /// The operators fit, but a value does not.
    pub fn check(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { stage: Stage::Check, matched: 0, place: place.into(), reason: reason.into() }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed at {:?} after {} nodes: {}", self.stage, self.place, self.matched, self.reason)
    }
}

/// Matches `pattern` at `value`; the miss is the one that got furthest.
pub fn find(graph: &Graph, pattern: &Pat, value: ValueId) -> Result<Match, Miss> {
    let mut matcher = Matcher { graph, tells: true, furthest: None };
    match matcher.value(pattern, value, Match::default()) {
        Some(found) => Ok(found),
        None => Err(matcher.furthest.unwrap_or_else(|| Miss::check("", "the pattern is empty"))),
    }
}

/// The same where nobody asks why a pattern does not apply.
pub fn matches(graph: &Graph, pattern: &Pat, value: ValueId) -> Option<Match> {
    Matcher { graph, tells: false, furthest: None }.value(pattern, value, Match::default())
}

struct Matcher<'g> {
    graph: &'g Graph,
    /// Whether misses are worded.
    tells: bool,
    furthest: Option<Miss>,
}

impl Matcher<'_> {
    fn miss(
        &mut self,
        state: &Match,
        value: ValueId,
        reason: impl FnOnce(&Graph) -> String,
    ) -> Option<Match> {
        let matched = state.nodes.len();
        if self.tells && self.furthest.as_ref().is_none_or(|m| m.matched < matched) {
            let (place, reason) = (self.graph.value(value).name.clone(), reason(self.graph));
            self.furthest = Some(Miss { stage: Stage::Shape, matched, place, reason });
        }
        None
    }

    fn value(&mut self, pattern: &Pat, value: ValueId, mut state: Match) -> Option<Match> {
        match pattern {
            Pat::Any => Some(state),
            Pat::Bind(name, inner) => {
                match state.get(name) {
                    Some(other) if other != value => {
                        return self.miss(&state, value, |graph| {
                            format!("`{name}` was already bound to {:?}", graph.value(other).name)
                        });
                    }
                    Some(_) => {}
                    None => state.bindings.push((name, value)),
                }
                self.value(inner, value, state)
            }
            Pat::Scalar => match self.graph.as_scalar(value) {
                Some(_) => Some(state),
                None => self.miss(&state, value, |_| "it is no constant of one element".to_owned()),
            },
            Pat::OneOf(alternatives) => {
                let found = alternatives.iter().find_map(|(tag, inner)| {
                    let mut state = self.value(inner, value, state.clone())?;
                    state.tags.push(tag);
                    Some(state)
                });
                if found.is_none() {
                    self.expect_any(pattern, value, &state);
                }
                found
            }
            Pat::Op(op) => self.node(op, value, state),
        }
    }

    /// Where no alternative even began, each of them was expected.
    fn expect_any(&mut self, pattern: &Pat, value: ValueId, state: &Match) {
        if !self.tells {
            return;
        }
        let place = &self.graph.value(value).name;
        let began = |miss: &&mut Miss| miss.matched == state.nodes.len() && miss.place == *place;
        let Some(miss) = self.furthest.as_mut().filter(began) else { return };
        let mut wanted = Vec::new();
        pattern.roots(&mut wanted);
        let found = match self.graph.producer(value) {
            Some((id, _)) => self.graph.node(id).op.qualified_name(),
            None => "an input or a constant".to_owned(),
        };
        miss.reason = format!("expected {}, found {found}", wanted.join(" or "));
    }

    fn node(&mut self, pattern: &OpPat, value: ValueId, mut state: Match) -> Option<Match> {
        let Some((id, output)) = self.graph.producer(value) else {
            return self
                .miss(&state, value, |_| format!("expected {}, found an input or a constant", pattern.name));
        };
        let node = self.graph.node(id);
        if node.op.domain() != pattern.domain || node.op.name() != pattern.name {
            return self.miss(&state, value, |_| {
                format!("expected {}, found {}", pattern.name, node.op.qualified_name())
            });
        }
        if output != pattern.output {
            return self.miss(&state, value, |_| {
                format!("expected output {} of {}, found output {output}", pattern.output, pattern.name)
            });
        }
        let arity = [node.inputs.len(), node.outputs.len()];
        if let Some(want) = pattern.arity.filter(|want| *want != arity) {
            return self.miss(&state, value, |_| {
                format!("expected {want:?} inputs and outputs of {}, found {arity:?}", pattern.name)
            });
        }
        let mut missed = pattern.attrs.iter().filter_map(|(attr, want)| want.missed(node, attr));
        if let Some(reason) = missed.next() {
            return self.miss(&state, value, |_| reason);
        }
        state.nodes.push(id);
        let straight = self.inputs(pattern, node.inputs.iter(), state.clone());
        if straight.is_some() || !pattern.commutative {
            return straight;
        }
        self.inputs(pattern, node.inputs.iter().rev(), state)
    }

    fn inputs<'v>(
        &mut self,
        pattern: &OpPat,
        inputs: impl Iterator<Item = &'v Option<ValueId>>,
        state: Match,
    ) -> Option<Match> {
        let given: Vec<Option<ValueId>> = inputs.copied().collect();
        pattern.inputs.iter().enumerate().try_fold(state, |state, (slot, inner)| {
            let value = given.get(slot).copied().flatten()?;
            self.value(inner, value, state)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    fn graph() -> Graph {
        parse(
            r#"graph "g" {
  input %x: f32[2]
  const %c: f32[] = [3.0]
  %n = Neg(%x) "n"
  %m = Mul(%c, %n) "m"
  output "y" %m
}"#,
        )
        .expect("it parses")
    }

    #[test]
    fn commutative_operators_match_either_way() {
        let graph = graph();
        let pattern = Pat::op("Mul", [Pat::op("Neg", [Pat::var("x")]), Pat::Scalar.bind("c")]);
        let found = find(&graph, &pattern, graph.output("y").expect("y")).expect("it matches");
        assert_eq!(found.get("x"), graph.input("x"));
        assert_eq!(found.nodes.len(), 2);
    }

    #[test]
    fn a_miss_names_what_stood_in_the_way() {
        let graph = graph();
        let pattern = Pat::op("Mul", [Pat::op("Exp", [Pat::var("x")]), Pat::Scalar]);
        let miss = find(&graph, &pattern, graph.output("y").expect("y")).expect_err("it does not match");
        let want = "pattern failed at \"c\" after 1 nodes: expected Exp, found an input or a constant";
        assert_eq!(miss.to_string(), want);
    }

    #[test]
    fn a_miss_names_every_alternative() {
        let graph = graph();
        let either = Pat::one_of([("exp", Pat::op("Exp", [Pat::Any])), ("abs", Pat::op("Abs", [Pat::Any]))]);
        let pattern = Pat::op("Mul", [Pat::Scalar, either.maybe_cast()]);
        let miss = find(&graph, &pattern, graph.output("y").expect("y")).expect_err("it does not match");
        let want = "pattern failed at \"n\" after 1 nodes: expected Cast or Exp or Abs, found Neg";
        assert_eq!(miss.to_string(), want);
    }

    #[test]
    fn one_name_is_one_value() {
        let graph = graph();
        let pattern = Pat::op("Mul", [Pat::var("a"), Pat::var("a")]);
        assert!(find(&graph, &pattern, graph.output("y").expect("y")).is_err());
    }

    #[test]
    fn outputs_domains_counts_and_attributes_are_told_apart() {
        let graph = parse(
            r#"graph "g" {
  input %x: f32[1, 2, 3, 4]
  const %sizes: i64[2] = [2, 2]
  %a, %b = Split(%x, %sizes) {axis: -1}
  %c = Concat(%b, %a) {axis: 3}
  %d = com.microsoft.QuickGelu(%c) {alpha: 1.0}
  output "y" %d
}"#,
        )
        .expect("it parses");
        let part = |output| Pat::op("Split", [Pat::var("x")]).output(output).exactly(2, 2);
        let last = |pattern: Pat| pattern.with_int_of("axis", LAST_OF_FOUR);
        let swapped = |first, second| last(Pat::op("Concat", [last(part(first)), last(part(second))]));
        let gelu = |inner| Pat::op_in("com.microsoft", "QuickGelu", [inner]);
        let y = graph.output("y").expect("y");
        let found = matches(&graph, &gelu(swapped(1, 0)), y).expect("it matches");
        assert_eq!(found.get("x"), graph.input("x"));
        // Both parts are one split's, so that its outputs are read once each.
        assert!(found.is_alone(&graph));
        for (pattern, reason) in [
            (gelu(swapped(0, 1)), "expected output 0 of Split, found output 1"),
            (Pat::op("QuickGelu", [Pat::Any]), "expected QuickGelu, found com.microsoft.QuickGelu"),
            (
                gelu(Pat::op("Concat", [Pat::Any]).exactly(3, 1)),
                "expected [3, 1] inputs and outputs of Concat, found [2, 1]",
            ),
            (
                gelu(Pat::op("Concat", [Pat::Any]).with_int_of("axis", &[0])),
                "expected axis of [0], found Some(3)",
            ),
        ] {
            assert!(matches(&graph, &pattern, y).is_none());
            assert_eq!(find(&graph, &pattern, y).expect_err("it does not match").reason, reason);
        }
    }
}
