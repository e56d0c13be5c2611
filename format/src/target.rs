//! Targets: what a serving graph may be made of.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What runs the serving graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// ONNX Runtime: its `com.microsoft::LinearAttention`.
    #[default]
    Ort,
    /// Anything that reads opset 17: standard operators only.
    Portable,
    /// The standard `LinearAttention` of opset 27.
    Onnx27,
}

/// Name, target, opset.
const TARGETS: [(&str, Target, i64); 3] = [
    ("ort", Target::Ort, 21),
    ("portable", Target::Portable, PORTABLE_OPSET),
    ("onnx27", Target::Onnx27, 27),
];

/// The opset of graphs that any runtime reads.
pub const PORTABLE_OPSET: i64 = 17;

impl Target {
    /// Every target, in the order of the table.
    pub const ALL: [Self; TARGETS.len()] = [TARGETS[0].1, TARGETS[1].1, TARGETS[2].1];

    fn row(self) -> (&'static str, Self, i64) {
        TARGETS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().0
    }

    pub fn opset(self) -> i64 {
        self.row().2
    }

    /// Every target's name, in the order of the table.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TARGETS.iter().map(|(name, ..)| *name)
    }

    /// Whether its graphs need an opset that ONNX Runtime 1.31 reads only where it is told to.
    pub fn needs_unreleased_opset(self) -> bool {
        self == Self::Onnx27
    }

    /// Whether softmax attention is written as ONNX Runtime's own operator.
    pub fn groups_softmax(self) -> bool {
        self == Self::Ort
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no target is called `{0}` (expected one of {names})", names = Target::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownTarget(pub String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let found = TARGETS.iter().find(|(name, ..)| *name == s);
        found.map(|(_, target, _)| *target).ok_or_else(|| UnknownTarget(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (name, target, _) in TARGETS {
            assert_eq!((target.name(), name.parse()), (name, Ok(target)));
            assert_eq!(serde_json::to_value(target).expect("a name"), name);
        }
        assert_eq!(Target::ALL.map(Target::name), TARGETS.map(|(name, ..)| name));
    }

    #[test]
    fn another_name_is_refused_with_those_there_are() {
        assert_eq!(
            "tflite".parse::<Target>().expect_err("it is none").to_string(),
            "no target is called `tflite` (expected one of ort, portable, onnx27)"
        );
    }
}
