//! Element types of tensors.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The element type of a tensor, named as in the textual form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

const NAMES: [(DType, &str, usize); 13] = [
    (DType::F64, "f64", 8),
    (DType::F32, "f32", 4),
    (DType::F16, "f16", 2),
    (DType::BF16, "bf16", 2),
    (DType::I64, "i64", 8),
    (DType::I32, "i32", 4),
    (DType::I16, "i16", 2),
    (DType::I8, "i8", 1),
    (DType::U64, "u64", 8),
    (DType::U32, "u32", 4),
    (DType::U16, "u16", 2),
    (DType::U8, "u8", 1),
    (DType::Bool, "bool", 1),
];

impl DType {
    fn row(self) -> (DType, &'static str, usize) {
        NAMES[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().2
    }

    pub fn name(self) -> &'static str {
        self.row().1
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    pub fn is_int(self) -> bool {
        !self.is_float() && self != Self::Bool
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no element type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an element type (expected one of {names})", names = NAMES.map(|(_, name, _)| name).join(" "))]
pub struct UnknownDType(pub String);

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        NAMES
            .iter()
            .find(|(_, name, _)| *name == s)
            .map(|(dtype, ..)| *dtype)
            .ok_or_else(|| UnknownDType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (dtype, name, _) in NAMES {
            assert_eq!(dtype.name(), name);
            assert_eq!(name.parse(), Ok(dtype));
            assert_eq!(serde_json::to_value(dtype).expect("a name"), name);
        }
    }

    #[test]
    fn another_name_is_refused_with_those_there_are() {
        assert_eq!(
            "f8".parse::<DType>().expect_err("it is none").to_string(),
            "`f8` is not an element type (expected one of f64 f32 f16 bf16 i64 i32 i16 i8 u64 u32 u16 u8 bool)"
        );
    }
}
