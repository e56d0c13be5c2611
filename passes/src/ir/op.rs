//! Operators: a row of the operator table, or an opaque name, with attributes.

use super::eval::EvalContext;
use super::infer::{InferContext, Type};
use super::ops;
use super::tensor::Tensor;
use crate::ir::eval::Array;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Tensor),
}

impl From<i64> for Attr {
    fn from(x: i64) -> Self {
        Self::Int(x)
    }
}

impl From<f32> for Attr {
    fn from(x: f32) -> Self {
        Self::Float(x)
    }
}

impl From<&str> for Attr {
    fn from(x: &str) -> Self {
        Self::Str(x.to_owned())
    }
}

impl From<Tensor> for Attr {
    fn from(x: Tensor) -> Self {
        Self::Tensor(x)
    }
}

impl From<&[i64]> for Attr {
    fn from(x: &[i64]) -> Self {
        Self::Ints(x.to_vec())
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(x) => write!(f, "{x}"),
            // A float always shows its point, so that it reads back as a float.
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Str(x) => write!(f, "{x:?}"),
            Self::Ints(x) => write!(f, "{x:?}"),
            Self::Floats(x) => write!(f, "{x:?}"),
            Self::Tensor(x) => write!(f, "tensor {x:?}"),
        }
    }
}

/// Attributes by name, in the order of their names.
pub type Attrs = BTreeMap<String, Attr>;

/// What kind of value an attribute of a known operator takes, and its value when absent.
#[derive(Clone, Copy, Debug)]
pub enum AttrSpec {
    Int(i64),
    Float(f32),
    Str(&'static str),
    /// Absent means the operator's own default, such as all axes.
    Ints,
    Tensor,
    RequiredInt,
    RequiredInts,
}

impl AttrSpec {
    fn accepts(self, attr: &Attr) -> bool {
        matches!(
            (self, attr),
            (Self::Int(_) | Self::RequiredInt, Attr::Int(_))
                | (Self::Float(_), Attr::Float(_))
                | (Self::Str(_), Attr::Str(_))
                | (Self::Ints | Self::RequiredInts, Attr::Ints(_))
                | (Self::Tensor, Attr::Tensor(_))
        )
    }

    fn is_required(self) -> bool {
        matches!(self, Self::RequiredInt | Self::RequiredInts)
    }
}

/// A row of the operator table: everything the compiler knows of one operator.
///
/// Operators are kept in one normal form whatever opset they came from: `axes` of reductions,
/// `Squeeze` and `Unsqueeze` are attributes, the starts, ends, axes and steps of `Slice` are inputs.
pub struct OpSpec {
    /// Empty for `ai.onnx`.
    pub domain: &'static str,
    pub name: &'static str,
    pub inputs: RangeInclusive<usize>,
    pub outputs: RangeInclusive<usize>,
    pub attrs: &'static [(&'static str, AttrSpec)],
    pub infer: fn(&InferContext<'_>) -> Result<Vec<Type>, String>,
    pub eval: fn(&EvalContext<'_>) -> Result<Vec<Array>, String>,
}

impl fmt::Debug for OpSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&qualified(self.domain, self.name))
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Known(&'static OpSpec),
    Opaque { domain: String, name: String },
}

/// An operator with its attributes.
#[derive(Clone, Debug)]
pub struct Op {
    kind: Kind,
    pub attrs: Attrs,
}

impl Op {
    /// An operator of `ai.onnx` by name. Unknown names become opaque operators.
    pub fn new(name: &str) -> Self {
        Self::in_domain("", name)
    }

    /// An operator by domain and name. What the table does not know becomes an opaque operator: it
    /// is carried along unchanged, and nothing is inferred of its outputs.
    pub fn in_domain(domain: &str, name: &str) -> Self {
        let kind = match ops::find(domain, name) {
            Some(spec) => Kind::Known(spec),
            None => Kind::Opaque { domain: domain.to_owned(), name: name.to_owned() },
        };
        Self { kind, attrs: Attrs::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.insert(name.to_owned(), value.into());
        self
    }

    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::Known(spec) => spec.name,
            Kind::Opaque { name, .. } => name,
        }
    }

    /// Empty for `ai.onnx`.
    pub fn domain(&self) -> &str {
        match &self.kind {
            Kind::Known(spec) => spec.domain,
            Kind::Opaque { domain, .. } => domain,
        }
    }

    /// `Add`, `com.microsoft.LinearAttention`
    pub fn qualified_name(&self) -> String {
        qualified(self.domain(), self.name())
    }

    /// Whether this is the operator `name` of `ai.onnx`.
    pub fn is(&self, name: &str) -> bool {
        self.domain().is_empty() && self.name() == name
    }

    pub fn spec(&self) -> Option<&'static OpSpec> {
        match &self.kind {
            Kind::Known(spec) => Some(spec),
            Kind::Opaque { .. } => None,
        }
    }

    fn default_of(&self, name: &str) -> Option<AttrSpec> {
        let (_, spec) = self.spec()?.attrs.iter().find(|(n, _)| *n == name)?;
        Some(*spec)
    }

    /// An integer attribute, or its default from the operator table.
    pub fn int(&self, name: &str) -> Option<i64> {
        match (self.attrs.get(name), self.default_of(name)) {
            (Some(Attr::Int(x)), _) => Some(*x),
            (None, Some(AttrSpec::Int(x))) => Some(x),
            _ => None,
        }
    }

    /// A float attribute, or its default from the operator table.
    pub fn float(&self, name: &str) -> Option<f32> {
        match (self.attrs.get(name), self.default_of(name)) {
            (Some(Attr::Float(x)), _) => Some(*x),
            (None, Some(AttrSpec::Float(x))) => Some(x),
            _ => None,
        }
    }

    /// A list attribute; there is no default for lists.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attrs.get(name) {
            Some(Attr::Ints(x)) => Some(x),
            _ => None,
        }
    }

    /// A string attribute, or its default from the operator table.
    pub fn str(&self, name: &str) -> Option<&str> {
        match (self.attrs.get(name), self.default_of(name)) {
            (Some(Attr::Str(x)), _) => Some(x),
            (None, Some(AttrSpec::Str(x))) => Some(x),
            _ => None,
        }
    }

    /// Every way in which the attributes and the number of inputs and outputs differ from the table.
    pub fn violations(&self, inputs: usize, outputs: usize) -> Vec<String> {
        let Some(spec) = self.spec() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let count = |what: &str, n: usize, range: &RangeInclusive<usize>, found: &mut Vec<String>| {
            if !range.contains(&n) {
                found.push(format!("{n} {what}, expected {} to {}", range.start(), range.end()));
            }
        };
        count("inputs", inputs, &spec.inputs, &mut found);
        count("outputs", outputs, &spec.outputs, &mut found);
        for (name, attr) in &self.attrs {
            match self.default_of(name) {
                None => found.push(format!("no attribute `{name}` is known")),
                Some(spec) if !spec.accepts(attr) => {
                    found.push(format!("attribute `{name}` = {attr} is of the wrong kind"));
                }
                Some(_) => {}
            }
        }
        for (name, attr) in spec.attrs {
            if attr.is_required() && !self.attrs.contains_key(*name) {
                found.push(format!("attribute `{name}` is missing"));
            }
        }
        found
    }
}

fn qualified(domain: &str, name: &str) -> String {
    if domain.is_empty() { name.to_owned() } else { format!("{domain}.{name}") }
}
