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

/// The same inside of a function, whose name is one term.
const AND: &str = " and ";

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
            (Self::Sym(sum), Self::Known(less)) => {
                let mut terms: Vec<&str> = sum.name().split(PLUS).collect();
                let numbers = terms.iter().map(|term| term.parse().unwrap_or(0u64));
                let Some((place, number)) = (0..).zip(numbers).find(|(_, n)| n >= less) else {
                    return Self::Unknown;
                };
                terms.remove(place);
                Self::sym(&terms.join(PLUS)).plus(&Self::Known(number - less))
            }
            (Self::Sym(a), Self::Sym(b)) if a == b => Self::Known(0),
            (Self::Sym(a), Self::Sym(b)) => {
                let mut terms: Vec<&str> = a.name().split(PLUS).collect();
                for term in b.name().split(PLUS) {
                    let Some(place) = terms.iter().position(|t| *t == term) else {
                        return self.more_of(other).unwrap_or(Self::Unknown);
                    };
                    terms.remove(place);
                }
                let left = terms.join(PLUS);
                left.parse().map_or_else(|_| Self::sym(&left), Self::Known)
            }
            _ => Self::Unknown,
        }
    }

    /// How many more of so many there are up to one sum than up to a shorter one: the difference of two that [`Self::least`]
    /// gave of one number.
    fn more_of(&self, other: &Self) -> Option<Self> {
        let parts = |dim: &Self| {
            let Self::Sym(symbol) = dim else { return None };
            let (most, dim) = symbol.name().strip_prefix("min(")?.strip_suffix(')')?.split_once(", ")?;
            Some((most.to_owned(), Self::sym(&dim.replace(AND, PLUS))))
        };
        let ((most, longer), (same, shorter)) = (parts(self)?, parts(other)?);
        // What is left of a sum without some of its terms is never negative.
        (most == same && longer.minus(&shorter) != Self::Unknown)
            .then(|| Self::sym(&format!("{self} less {other}")))
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

    /// The smaller one; symbolic where one is a number and the other one a sum of plain names.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Self::Known(a), Self::Known(b)) => Self::Known(*a.min(b)),
            (Self::Known(n), Self::Sym(s)) | (Self::Sym(s), Self::Known(n))
                if !s.name().split(PLUS).any(|term| term.contains(' ')) =>
            {
                Self::sym(&format!("min({n}, {})", s.name().replace(PLUS, AND)))
            }
            _ => Self::Unknown,
        }
    }

    /// The larger one; symbolic beside zero, as no dim is negative.
    #[must_use]
    pub fn most(&self, other: &Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Self::Known(a), Self::Known(b)) => Self::Known(*a.max(b)),
            (Self::Known(0), dim) | (dim, Self::Known(0)) => dim.clone(),
            _ => Self::Unknown,
        }
    }

    /// How many windows of `extent` begin `every` so many places, with padding at both ends together; a name that says it
    /// where the dim has one.
    #[must_use]
    pub fn windows(&self, extent: u64, every: u64, padding: u64) -> Self {
        let Self::Sym(inner) = self else { return Self::Unknown };
        let name = format!(
            "windows of {extent} every {every} in {padding} more than {}",
            inner.name().replace(PLUS, AND)
        );
        if name.len() > MAX_SUM { Self::Unknown } else { Self::sym(&name) }
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
        let more = p.plus(&3.into());
        assert_eq!((more.minus(&3.into()), more.minus(&2.into())), (p.clone(), p.plus(&1.into())));
        assert_eq!(more.minus(&4.into()), Dim::Unknown);
    }

    #[test]
    fn of_so_many_there_are_more_up_to_a_longer_sum() {
        let (p, t, most) = (Dim::sym("past"), Dim::sym("sequence"), Dim::Known(8));
        let [up_to, before] = [p.plus(&t).least(&most), p.least(&most)];
        assert_eq!(up_to.to_string(), "min(8, past and sequence)");
        let more = up_to.minus(&before);
        assert_eq!(more.to_string(), "min(8, past and sequence) less min(8, past)");
        assert_eq!((more.most(&0.into()), more.plus(&t).minus(&t)), (more.clone(), more.clone()));
        assert_eq!(before.minus(&up_to), Dim::Unknown);
        assert_eq!(up_to.minus(&p.least(&Dim::Known(9))), Dim::Unknown);
        // A smaller one of a smaller one would need a name of its own.
        assert_eq!(up_to.least(&Dim::Known(4)), Dim::Unknown);
        assert_eq!(p.most(&1.into()), Dim::Unknown);
    }
}
