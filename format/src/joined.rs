//! The grammar of joined weights. An input of `prefill.onnx` or `decode.onnx` that is no token and no state is a weight
//! by its name in the weight file, or several as one, one after the other along the first axis: `a+b`, or
//! `a[0:64:192]+b` for rows 0 to 63 of every 192 rows of `a` and then all of `b`.

use std::fmt;

/// Between the parts of a joined weight.
const JOIN: char = '+';
/// Before the rows of a part.
const OPEN: char = '[';

/// The most parts of a join: its name is made of theirs.
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
        Some(blocks.flat_map(|block| &block[self.begin * width..self.end * width]).copied().collect())
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
        !name.contains([JOIN, OPEN])
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

/// The name of the weights `parts` as one.
pub fn print(parts: &[WeightPart]) -> String {
    parts.iter().map(WeightPart::to_string).collect::<Vec<_>>().join(&JOIN.to_string())
}

/// The parts of a name.
pub fn parse(name: &str) -> Vec<WeightPart> {
    name.split(JOIN).map(WeightPart::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        let part = |name: &str, rows| WeightPart { name: name.to_owned(), rows };
        let parts = [part("a", RowRange::new(0, 64, 192)), part("b.c", None)];
        assert_eq!(print(&parts), "a[0:64:192]+b.c");
        assert_eq!(parse("a[0:64:192]+b.c"), parts);
    }

    #[test]
    fn what_is_no_range_is_a_name() {
        for text in ["a[2:1:4]", "a[0:5:4]", "a[0:1]", "[0:1:2]", "a[x:1:2]"] {
            assert_eq!(WeightPart::parse(text), WeightPart { name: text.to_owned(), rows: None }, "{text}");
        }
        assert!(!WeightPart::can_be("a+b") && !WeightPart::can_be("a[0]") && WeightPart::can_be("a.b"));
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
