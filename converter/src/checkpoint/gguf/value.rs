//! The values of GGUF's metadata.

use super::cursor::Cursor;
use crate::checkpoint::error::CheckpointError;
use serde_json::{Value as Json, json};

/// A value, whatever width its number was written in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
    /// Numbers of 8 or 16 bits, which no model's sizes are lists of, as they lie in the file.
    Bytes(Vec<u8>),
}

/// The number of the type that is a list.
const LIST: u32 = 9;
/// The longest list: ten times the largest vocabulary.
const MOST: u64 = 1 << 22;
const TYPES: &str = "the number of a type, 0 to 12";

/// The smallest that a value of a type can be, or none where there is no such type.
fn least(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        LIST => 12,
        _ => return None,
    })
}

impl Value {
    /// Reads a value, its type first. `what` is what errors call it.
    pub(super) fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, CheckpointError> {
        let kind = cursor.u32(what)?;
        if kind != LIST {
            return Self::single(cursor, kind, what);
        }
        let kind = cursor.u32(what)?;
        let Some(least) = least(kind) else { return Err(unknown(cursor, what, kind)) };
        if kind == LIST {
            return Err(cursor.broken(what, "a list of lists", "a list of numbers or of texts"));
        }
        let count = cursor.count(what, (least, MOST))?;
        Self::list(cursor, (kind, count), what)
    }

    fn single(cursor: &mut Cursor<'_>, kind: u32, what: &str) -> Result<Self, CheckpointError> {
        Ok(match kind {
            0 => Self::Int(cursor.u8(what)?.into()),
            1 => Self::Int(cursor.u8(what)?.cast_signed().into()),
            2 => Self::Int(cursor.u16(what)?.into()),
            3 => Self::Int(cursor.u16(what)?.cast_signed().into()),
            4 => Self::Int(cursor.u32(what)?.into()),
            5 => Self::Int(cursor.u32(what)?.cast_signed().into()),
            6 => Self::Float(shortest(f32::from_bits(cursor.u32(what)?))),
            7 => Self::Bool(flag(cursor, what)?),
            8 => Self::Text(cursor.text(what)?),
            10 => Self::Int(cursor.u64(what)?.into()),
            11 => Self::Int(cursor.u64(what)?.cast_signed().into()),
            12 => Self::Float(f64::from_bits(cursor.u64(what)?)),
            _ => return Err(unknown(cursor, what, kind)),
        })
    }

    fn list(cursor: &mut Cursor<'_>, (kind, count): (u32, u64), what: &str) -> Result<Self, CheckpointError> {
        Ok(match kind {
            0..=3 => Self::Bytes(cursor.take(count * if kind < 2 { 1 } else { 2 }, what)?),
            7 => Self::Bools((0..count).map(|_| flag(cursor, what)).collect::<Result<_, _>>()?),
            8 => Self::Texts((0..count).map(|_| cursor.text(what)).collect::<Result<_, _>>()?),
            6 => Self::Floats(
                (0..count)
                    .map(|_| Ok(f32::from_bits(cursor.u32(what)?)))
                    .collect::<Result<_, CheckpointError>>()?,
            ),
            12 => Self::Floats(
                (0..count)
                    .map(|_| Ok(f64::from_bits(cursor.u64(what)?) as f32))
                    .collect::<Result<_, CheckpointError>>()?,
            ),
            _ => {
                let number = |cursor: &mut Cursor<'_>| match Self::single(cursor, kind, what)? {
                    Self::Int(number) => i64::try_from(number)
                        .map_err(|_| cursor.broken(what, &number.to_string(), "below 2^63")),
                    _ => Err(unknown(cursor, what, kind)),
                };
                Self::Ints((0..count).map(|_| number(cursor)).collect::<Result<_, _>>()?)
            }
        })
    }

    /// As a config has it.
    pub(super) fn json(&self) -> Json {
        match self {
            Self::Int(number) => {
                i64::try_from(*number).map_or_else(|_| json!(number.to_string()), |n| json!(n))
            }
            Self::Float(number) => json!(number),
            Self::Bool(flag) => json!(flag),
            Self::Text(text) => json!(text),
            Self::Ints(numbers) => json!(numbers),
            Self::Floats(numbers) => json!(numbers.iter().map(|x| shortest(*x)).collect::<Vec<_>>()),
            Self::Bools(flags) => json!(flags),
            Self::Texts(texts) => json!(texts),
            Self::Bytes(bytes) => json!(format!("a list of {} bytes", bytes.len())),
        }
    }
}

/// The number that a config writes for an f32: 0.1 and not 0.10000000149.
pub(super) fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn flag(cursor: &mut Cursor<'_>, what: &str) -> Result<bool, CheckpointError> {
    match cursor.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.broken(what, &other.to_string(), "a truth value, 0 or 1")),
    }
}

fn unknown(cursor: &Cursor<'_>, what: &str, kind: u32) -> CheckpointError {
    cursor.broken(&format!("the type of {what}"), &kind.to_string(), TYPES)
}
