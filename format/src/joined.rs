//! The grammar of joined weights. An input of `prefill.onnx` or `decode.onnx` that is no token and no state is a weight
//! by its name in the weight file, or is made of several when the graph loads:
//!
//! ```text
//! input = part {"+" part}                     one after the other along the first axis
//! part  = side {"|" side}                     side by side along the last axis
//! side  = term {"&" term}                     summed, element by element
//! term  = ["-"] rows [by]                     negated; computed with another weight
//! by    = "*" name | "@" name                 with columns scaled by a vector; times a vector
//!       | "%" ["-"] name                      with columns scaled by the sigmoid of a vector, or of its negative
//! rows  = name ["[" begin ":" end ":" every "]"]
//! ```
//!
//! `a[0:64:192]+b` is rows 0 to 63 of every 192 rows of `a` and then all of `b`. `w*g` is a matrix `[out, in]` whose column
//! `i` is multiplied by `g[i]`, `b&w@g` is `b + w·g` `[out]`: what a norm multiplies and adds, where a product reads it.
//! `w%s|w%-s` with `s` `[heads]` is `w` twice, column `i` multiplied by `sigmoid(s[h])` and by `sigmoid(-s[h])`, `h` the
//! head that column `i` belongs to of as many neighbours: what a head mixes two values by, where a product reads both.
//! What is computed is computed in f32, and rounded once.

use std::fmt;

/// Between the parts of a joined weight.
const JOIN: char = '+';
const BESIDE: char = '|';
const PLUS: char = '&';
const NEGATED: char = '-';
const SCALED: char = '*';
const TIMES: char = '@';
const SHARED: char = '%';
/// Before the rows of a part.
const OPEN: char = '[';

/// The most terms of a join: its name is made of theirs.
pub const MOST_PARTS: usize = 64;

/// Rows `begin..end` of every `every` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    pub begin: usize,
    pub end: usize,
    pub every: usize,
}

impl RowRange {
    /// `None` where no rows are meant or they pass the end of their block.
    pub fn new(begin: usize, end: usize, every: usize) -> Option<Self> {
        (begin < end && end <= every).then_some(Self { begin, end, every })
    }

    /// How many of `rows` rows these are; `None` where `rows` is not a whole number of blocks.
    pub fn count(&self, rows: usize) -> Option<usize> {
        rows.is_multiple_of(self.every).then(|| rows / self.every * (self.end - self.begin))
    }

    /// These rows of a row-major tensor of `rows` rows; `None` where they do not divide it.
    pub fn cut(&self, bytes: &[u8], rows: usize) -> Option<Vec<u8>> {
        let width = bytes.len().checked_div(rows).filter(|_| rows.is_multiple_of(self.every))?;
        let blocks = bytes.chunks_exact((width * self.every).max(1));
        let parts: Vec<&[u8]> = blocks.map(|block| &block[self.begin * width..self.end * width]).collect();
        Some(parts.concat())
    }
}

/// One weight of a join, or some rows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPart {
    pub name: String,
    pub rows: Option<RowRange>,
}

impl WeightPart {
    /// Whether a weight of this name can be a part of a join.
    pub fn can_be(name: &str) -> bool {
        !name.starts_with(NEGATED) && !name.contains([JOIN, BESIDE, PLUS, SCALED, TIMES, SHARED, OPEN])
    }

    /// All of a weight.
    pub fn whole(name: &str) -> Self {
        Self { name: name.to_owned(), rows: None }
    }

    /// Reads `name` or `name[begin:end:every]`; a text that is neither is taken for a name.
    pub fn parse(text: &str) -> Self {
        let rows = |inner: &str| {
            let numbers: Option<Vec<usize>> = inner.split(':').map(|n| n.parse().ok()).collect();
            let [begin, end, every] = numbers?.try_into().ok()?;
            RowRange::new(begin, end, every)
        };
        let found = text.strip_suffix(']').and_then(|text| text.rsplit_once(OPEN));
        match found.and_then(|(name, inner)| Some((name, rows(inner)?))) {
            Some((name, rows)) if !name.is_empty() => Self { name: name.to_owned(), rows: Some(rows) },
            _ => Self { name: text.to_owned(), rows: None },
        }
    }
}

impl fmt::Display for WeightPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.rows {
            Some(RowRange { begin, end, every }) => write!(f, "[{begin}:{end}:{every}]"),
            None => Ok(()),
        }
    }
}

/// The vector that a term is multiplied by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Factor {
    /// Each column by its number: a matrix.
    Columns(String),
    /// Each column by the sigmoid of its head's number, or of the negative of it: a matrix.
    Shares { name: String, is_rest: bool },
    /// The matrix product: a vector.
    Vector(String),
}

impl Factor {
    fn shares(text: &str) -> Self {
        let rest = text.strip_prefix(NEGATED);
        Self::Shares { name: rest.unwrap_or(text).to_owned(), is_rest: rest.is_some() }
    }
}

/// Rows of a weight, or what one step makes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub is_negated: bool,
    pub rows: WeightPart,
    pub by: Option<Factor>,
}

impl Term {
    pub fn stored(rows: WeightPart) -> Self {
        Self { is_negated: false, rows, by: None }
    }

    fn parse(text: &str) -> Self {
        let (is_negated, text) = match text.strip_prefix(NEGATED) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let at = |sign: char| text.split_once(sign).map(|(rows, by)| (rows, by.to_owned()));
        let (rows, by) = match (at(SCALED), at(TIMES), at(SHARED)) {
            (Some((rows, by)), _, _) => (rows, Some(Factor::Columns(by))),
            (_, Some((rows, by)), _) => (rows, Some(Factor::Vector(by))),
            (_, _, Some((rows, by))) => (rows, Some(Factor::shares(&by))),
            _ => (text, None),
        };
        Self { is_negated, rows: WeightPart::parse(rows), by }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_negated {
            write!(f, "{NEGATED}")?;
        }
        write!(f, "{}", self.rows)?;
        match &self.by {
            Some(Factor::Columns(by)) => write!(f, "{SCALED}{by}"),
            Some(Factor::Vector(by)) => write!(f, "{TIMES}{by}"),
            Some(Factor::Shares { name, is_rest: false }) => write!(f, "{SHARED}{name}"),
            Some(Factor::Shares { name, is_rest: true }) => write!(f, "{SHARED}{NEGATED}{name}"),
            None => Ok(()),
        }
    }
}

/// What stands along the first axis: sums of terms, side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub sides: Vec<Vec<Term>>,
}

impl Part {
    pub fn of(term: Term) -> Self {
        Self { sides: vec![vec![term]] }
    }

    /// The rows it is, where nothing is computed.
    pub fn stored(&self) -> Option<&WeightPart> {
        let [side] = &self.sides[..] else { return None };
        let [Term { is_negated: false, rows, by: None }] = &side[..] else { return None };
        Some(rows)
    }

    /// How many terms it is made of.
    pub fn terms(&self) -> usize {
        self.sides.iter().map(Vec::len).sum()
    }

    fn parse(text: &str) -> Self {
        let side = |text: &str| text.split(PLUS).map(Term::parse).collect();
        Self { sides: text.split(BESIDE).map(side).collect() }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |side: &Vec<Term>| all(side, PLUS);
        f.write_str(&all(&self.sides.iter().map(side).collect::<Vec<_>>(), BESIDE))
    }
}

fn all<T: fmt::Display>(parts: &[T], between: char) -> String {
    parts.iter().map(T::to_string).collect::<Vec<_>>().join(&between.to_string())
}

/// The name of the weights `parts` as one.
pub fn print(parts: &[Part]) -> String {
    all(parts, JOIN)
}

/// The parts of a name.
pub fn parse(name: &str) -> Vec<Part> {
    name.split(JOIN).map(Part::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        let rows = WeightPart { name: "a".to_owned(), rows: RowRange::new(0, 64, 192) };
        let stored = |rows: &WeightPart| Part::of(Term::stored(rows.clone()));
        let parts = [stored(&rows), stored(&WeightPart::whole("b.c"))];
        assert_eq!(print(&parts), "a[0:64:192]+b.c");
        assert_eq!(parse("a[0:64:192]+b.c"), parts);
        assert_eq!(parts[0].stored(), Some(&rows));
    }

    #[test]
    fn what_is_computed_reads_back() {
        for text in ["-a[0:1:2]*g+c", "b[0:1:2]&a[0:1:2]@g", "a|b", "-b&-a@g", "a&b|c&d+e", "a%s|a%-s+-b%c"] {
            assert_eq!(print(&parse(text)), text);
        }
        let part = &parse("b&-a@g")[0];
        assert_eq!((part.stored(), part.terms()), (None, 2));
        let times =
            Term { is_negated: true, rows: WeightPart::whole("a"), by: Some(Factor::Vector("g".into())) };
        assert_eq!(part.sides[0][1], times);
    }

    #[test]
    fn what_is_no_range_is_a_name() {
        for text in ["a[2:1:4]", "a[0:5:4]", "a[0:1]", "[0:1:2]", "a[x:1:2]"] {
            assert_eq!(WeightPart::parse(text), WeightPart { name: text.to_owned(), rows: None }, "{text}");
        }
        for text in ["a+b", "a[0]", "a|b", "a&b", "a*b", "a@b", "a%b", "-a"] {
            assert!(!WeightPart::can_be(text), "{text}");
        }
        assert!(WeightPart::can_be("a.b-c"));
    }

    #[test]
    fn rows_are_cut_of_whole_blocks() {
        let rows = RowRange::new(1, 2, 2).expect("a range");
        assert_eq!(rows.cut(&[0, 1, 2, 3, 4, 5, 6, 7], 4), Some(vec![2, 3, 6, 7]));
        assert_eq!((rows.count(4), rows.count(3)), (Some(2), None));
        assert_eq!(rows.cut(&[0, 1, 2], 3), None);
        assert_eq!(rows.cut(&[], 0), None);
    }
}
