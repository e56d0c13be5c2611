//! Weights of fewer bits than the source's.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the weights of linear layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Four bits, in blocks of 32 with a scale and a zero point.
    Int4,
}

const NAMES: [(&str, Quantization); 1] = [("int4", Quantization::Int4)];

impl Quantization {
    pub fn name(self) -> &'static str {
        NAMES[self as usize].0
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no way to store weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("weights cannot be stored as `{0}` (expected one of {names})", names = NAMES.map(|(name, _)| name).join(", "))]
pub struct UnknownQuantization(pub String);

impl FromStr for Quantization {
    type Err = UnknownQuantization;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let found = NAMES.iter().find(|(name, _)| *name == s);
        found.map(|(_, how)| *how).ok_or_else(|| UnknownQuantization(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (name, how) in NAMES {
            assert_eq!((how.name(), name.parse()), (name, Ok(how)));
            assert_eq!(serde_json::to_value(how).expect("a name"), name);
        }
    }

    #[test]
    fn another_name_is_refused_with_those_there_are() {
        assert_eq!(
            "int3".parse::<Quantization>().expect_err("it is none").to_string(),
            "weights cannot be stored as `int3` (expected one of int4)"
        );
    }
}
