//! Scalars by the core schema of YAML 1.2.

use crate::report::message::shown;

/// What a scalar stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    Null,
    Bool(bool),
    /// A number, and how it is written.
    Number(f64, String),
    Text(String),
}

impl Scalar {
    /// A scalar without quotes or a tag.
    pub(super) fn plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "true" | "True" | "TRUE" => Self::Bool(true),
            "false" | "False" | "FALSE" => Self::Bool(false),
            _ => number(text)
                .map_or_else(|| Self::Text(text.to_owned()), |number| Self::Number(number, text.to_owned())),
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Null => "",
            Self::Bool(true) => "true",
            Self::Bool(false) => "false",
            Self::Number(_, text) | Self::Text(text) => text,
        }
    }

    pub(super) fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the word {value}"),
            Self::Number(_, text) => format!("the number {}", shown(text)),
            Self::Text(text) => format!("the text `{}`", shown(text)),
        }
    }
}

/// A decimal number; others are text, as nothing here takes them.
fn number(text: &str) -> Option<f64> {
    let digits = text.trim_start_matches(['+', '-']);
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit())
        || digits.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_what_the_core_schema_says() {
        for text in ["1", "-1", "+2", "6e-4", "1.5", ".5", "1.", "0"] {
            assert!(matches!(Scalar::plain(text), Scalar::Number(..)), "{text}");
        }
        for text in ["yes", "no", "on", "1-2", "0-3,7", "f32", "--1", "1e", "nan", "inf", "-", "."] {
            assert!(matches!(Scalar::plain(text), Scalar::Text(_)), "{text}");
        }
        assert_eq!(Scalar::plain("~"), Scalar::Null);
        assert_eq!(Scalar::plain("True"), Scalar::Bool(true));
    }
}
