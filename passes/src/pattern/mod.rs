//! Patterns as data: a tree of operators that is matched backwards from one value.
//!
//! A match binds names to values and says which of several alternatives applied. A miss says how
//! far the pattern got and what stood in the way, so that the closest miss can be shown.

use crate::ir::graph::{Graph, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A pattern for one value.
#[derive(Debug, Clone)]
pub enum Pat {
    /// Any value.
    Any,
    /// A value that is remembered under a name. A name that occurs twice must mean one value.
    Bind(&'static str, Box<Pat>),
    /// The first output of an operator of `ai.onnx`.
    Op(OpPat),
    /// A constant of one element.
    Scalar,
    /// The first alternative that matches; its tag is remembered.
    OneOf(Vec<(&'static str, Pat)>),
}

/// A pattern for a node.
#[derive(Debug, Clone)]
pub struct OpPat {
    name: &'static str,
    inputs: Vec<Pat>,
    /// The two inputs may be swapped.
    commutative: bool,
    ints: Vec<(&'static str, Vec<i64>)>,
}

impl Pat {
    /// A node with these leading inputs; further inputs are not looked at.
    pub fn op(name: &'static str, inputs: impl Into<Vec<Pat>>) -> Self {
        let commutative = matches!(name, "Add" | "Mul");
        Self::Op(OpPat { name, inputs: inputs.into(), commutative, ints: Vec::new() })
    }

    /// The node's list attribute must be `value`.
    #[must_use]
    pub fn with_ints(mut self, attr: &'static str, value: &[i64]) -> Self {
        if let Self::Op(op) = &mut self {
            op.ints.push((attr, value.to_vec()));
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
    bindings: BTreeMap<&'static str, ValueId>,
    tags: BTreeSet<&'static str>,
    pub nodes: Vec<NodeId>,
}

impl Match {
    /// The value bound to a name, if the alternative that binds it applied.
    pub fn get(&self, name: &str) -> Option<ValueId> {
        self.bindings.get(name).copied()
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains(tag)
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
    let mut matcher = Matcher { graph, furthest: None };
    match matcher.value(pattern, value, Match::default()) {
        Some(found) => Ok(found),
        None => Err(matcher.furthest.unwrap_or_else(|| Miss::check("", "the pattern is empty"))),
    }
}

struct Matcher<'g> {
    graph: &'g Graph,
    furthest: Option<Miss>,
}

impl Matcher<'_> {
    fn miss(&mut self, state: &Match, value: ValueId, reason: String) -> Option<Match> {
        let matched = state.nodes.len();
        if self.furthest.as_ref().is_none_or(|m| m.matched < matched) {
            let place = self.graph.value(value).name.clone();
            self.furthest = Some(Miss { stage: Stage::Shape, matched, place, reason });
        }
        None
    }

    fn value(&mut self, pattern: &Pat, value: ValueId, mut state: Match) -> Option<Match> {
        match pattern {
            Pat::Any => Some(state),
            Pat::Bind(name, inner) => {
                if let Some(other) = state.bindings.insert(name, value)
                    && other != value
                {
                    let other = &self.graph.value(other).name;
                    let reason = format!("`{name}` was already bound to {other:?}");
                    return self.miss(&state, value, reason);
                }
                self.value(inner, value, state)
            }
            Pat::Scalar => match self.graph.as_scalar(value) {
                Some(_) => Some(state),
                None => self.miss(&state, value, "it is no constant of one element".to_owned()),
            },
            Pat::OneOf(alternatives) => {
                let found = alternatives.iter().find_map(|(tag, inner)| {
                    let mut state = self.value(inner, value, state.clone())?;
                    state.tags.insert(tag);
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
        let Some((id, _)) = self.graph.producer(value) else {
            return self.miss(
                &state,
                value,
                format!("expected {}, found an input or a constant", pattern.name),
            );
        };
        let node = self.graph.node(id);
        if !node.op.is(pattern.name) {
            let reason = format!("expected {}, found {}", pattern.name, node.op.qualified_name());
            return self.miss(&state, value, reason);
        }
        for (attr, want) in &pattern.ints {
            if node.op.ints(attr) != Some(want) {
                let reason = format!("expected {attr} = {want:?}, found {:?}", node.op.ints(attr));
                return self.miss(&state, value, reason);
            }
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
}
