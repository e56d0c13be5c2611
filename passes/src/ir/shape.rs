//! Shapes with symbolic dims.

use std::fmt;
use std::sync::Arc;

/// The name of a dim that is only known when the model runs, such as `batch` or `past + sequence`.
/// Two dims of one graph with the same symbol are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(Arc<str>);

impl Symbol {
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Between the terms of a symbol that is a sum.
const PLUS: &str = " + ";

/// Longer sums are not known: one that doubles with each node would fill the memory.
const MAX_SUM: usize = 1024;

/// One dim of a shape.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    Known(u64),
    Sym(Symbol),
    Unknown,
}

impl Dim {
    pub fn sym(name: &str) -> Self {
        Self::Sym(Symbol::new(name))
    }

    pub fn known(&self) -> Option<u64> {
        match self {
            Self::Known(n) => Some(*n),
            Self::Sym(_) | Self::Unknown => None,
        }
    }

    /// More than can be counted is not known.
    fn counted(n: Option<u64>) -> Self {
        n.map_or(Self::Unknown, Self::Known)
    }

    /// The sum; symbolic where both sides have a name.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(0), x) | (x, Self::Known(0)) => x.clone(),
            (Self::Known(a), Self::Known(b)) => Self::counted(a.checked_add(*b)),
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (a, b) => {
                let (a, b) = (a.to_string(), b.to_string());
                if a.len() + b.len() > MAX_SUM {
                    return Self::Unknown;
                }
                let mut terms: Vec<&str> = a.split(PLUS).chain(b.split(PLUS)).collect();
                terms.sort_unstable();
                Self::sym(&terms.join(PLUS))
            }
        }
    }

    /// The difference, where the other side is one of the terms of this one, or both are known.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        match (self, other) {
            (x, Self::Known(0)) => x.clone(),
            (Self::Known(a), Self::Known(b)) => a.checked_sub(*b).map_or(Self::Unknown, Self::Known),
            (Self::Sym(a), Self::Sym(b)) if a == b => Self::Known(0),
            (Self::Sym(a), Self::Sym(b)) => {
                let mut terms: Vec<&str> = a.name().split(PLUS).collect();
                for term in b.name().split(PLUS) {
                    let Some(place) = terms.iter().position(|t| *t == term) else { return Self::Unknown };
                    terms.remove(place);
                }
                let left = terms.join(PLUS);
                left.parse().map_or_else(|_| Self::sym(&left), Self::Known)
            }
            _ => Self::Unknown,
        }
    }

    /// The product; `Unknown` unless both are known or one of them is one.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(1), x) | (x, Self::Known(1)) => x.clone(),
            (Self::Known(a), Self::Known(b)) => Self::counted(a.checked_mul(*b)),
            _ => Self::Unknown,
        }
    }

    /// The smaller one; symbolic where one is a number and the other one a plain name.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Self::Known(a), Self::Known(b)) => Self::Known(*a.min(b)),
            (Self::Known(n), Self::Sym(s)) | (Self::Sym(s), Self::Known(n)) if !s.name().contains(' ') => {
                Self::sym(&format!("min({n}, {})", s.name()))
            }
            _ => Self::Unknown,
        }
    }

    /// Whether the two can be the same number.
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a == b,
            _ => true,
        }
    }

    /// What is known of a dim described twice.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(n), _) | (_, Self::Known(n)) => Self::Known(*n),
            (Self::Sym(s), _) | (_, Self::Sym(s)) => Self::Sym(s.clone()),
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        }
    }
}

impl From<u64> for Dim {
    fn from(n: u64) -> Self {
        Self::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Sym(s) => f.write_str(s.name()),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The dims of a value.
pub type Shape = Vec<Dim>;

/// `[batch, 3, ?]`
pub fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// The shape two operands broadcast to (ONNX multidirectional broadcasting), or `None` where they cannot.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(one.clone(), |j| s[j].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Dim::Known(1), d) | (d, Dim::Known(1)) => Some(d),
            (Dim::Known(x), Dim::Known(y)) => (x == y).then_some(Dim::Known(x)),
            (Dim::Known(x), _) | (_, Dim::Known(x)) => Some(Dim::Known(x)),
            (x, y) if x == y => Some(x),
            _ => Some(Dim::Unknown),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_onnx() {
        let b = Dim::sym("batch");
        let shape = broadcast(&[b.clone(), 1.into(), 3.into()], &[4.into(), 1.into()]);
        assert_eq!(shape, Some(vec![b, 4.into(), 3.into()]));
        assert_eq!(broadcast(&[2.into()], &[3.into()]), None);
    }

    #[test]
    fn what_cannot_be_counted_is_unknown() {
        let most = Dim::Known(u64::MAX);
        assert_eq!(most.plus(&Dim::Known(1)), Dim::Unknown);
        assert_eq!(most.times(&Dim::Known(2)), Dim::Unknown);
        let doubled = (0..64).fold(Dim::sym("n"), |n, _| n.plus(&n));
        assert_eq!(doubled, Dim::Unknown);
    }

    #[test]
    fn sums_have_one_spelling() {
        let (p, t) = (Dim::sym("past"), Dim::sym("sequence"));
        assert_eq!(p.plus(&t), t.plus(&p));
        assert_eq!(p.plus(&t).to_string(), "past + sequence");
        let n = Dim::sym("new");
        assert_eq!(p.plus(&t).plus(&n), n.plus(&t).plus(&p));
    }

    #[test]
    fn a_term_can_be_taken_away_again() {
        let (p, t) = (Dim::sym("past"), Dim::sym("sequence"));
        assert_eq!(p.plus(&t).minus(&p), t);
        assert_eq!(p.plus(&1.into()).minus(&p), 1.into());
        assert_eq!(p.minus(&p), 0.into());
        assert_eq!(p.minus(&t), Dim::Unknown);
    }
}
