//! What the name of a joined weight says to compute: [`dijiang_format::joined`] has the grammar. All of it in f32.

use std::path::Path;

use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use dijiang_format::joined::{Factor, Part, Term, WeightPart};

/// Where weights come from.
pub(crate) struct Source<'a> {
    /// What messages name.
    pub(crate) path: &'a Path,
    /// Gives rows of a weight in f32.
    pub(crate) rows: &'a mut dyn FnMut(&WeightPart) -> Result<HostTensor, RuntimeError>,
}

impl Source<'_> {
    fn failed(&self, name: &dyn std::fmt::Display, reason: &str) -> RuntimeError {
        RuntimeError::Bundle { path: self.path.to_path_buf(), reason: format!("`{name}`: {reason}") }
    }
}

/// The part in f32: the sums, side by side along the last axis.
pub(crate) fn part(part: &Part, source: &mut Source<'_>) -> Result<HostTensor, RuntimeError> {
    let mut sides = part.sides.iter().map(|side| sum(part, side, source)).collect::<Result<Vec<_>, _>>()?;
    if sides.len() == 1 {
        return Ok(sides.remove(0));
    }
    let last = sides.first().map_or(0, |side| side.shape().len().saturating_sub(1));
    Ok(HostTensor::concat(last, &sides.iter().collect::<Vec<_>>())?)
}

fn sum(whole: &Part, side: &[Term], source: &mut Source<'_>) -> Result<HostTensor, RuntimeError> {
    let mut terms = side.iter();
    let first = terms.next().ok_or_else(|| source.failed(whole, "it is a sum of nothing"))?;
    let mut sum = computed(first, source)?;
    for term in terms {
        let next = computed(term, source)?;
        if sum.shape() != next.shape() {
            let reason = format!("one is {:?}, another {:?}", sum.shape(), next.shape());
            return Err(source.failed(whole, &reason));
        }
        let (a, b) = (sum.to_f32()?, next.to_f32()?);
        let values: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        sum = HostTensor::from_f32(next.shape(), &values)?;
    }
    Ok(sum)
}

fn computed(term: &Term, source: &mut Source<'_>) -> Result<HostTensor, RuntimeError> {
    let stored = (source.rows)(&term.rows)?;
    let (shape, values) = match &term.by {
        None => (stored.shape().to_vec(), stored.to_f32()?),
        Some(Factor::Columns(name)) => {
            let (columns, by) = (stored.to_f32()?, factor(term, &stored, name, one_each, source)?);
            (stored.shape().to_vec(), scaled(columns, &by))
        }
        Some(Factor::Shares { name, is_rest }) => {
            let (columns, logits) = (stored.to_f32()?, factor(term, &stored, name, one_for_several, source)?);
            let share = |x: &f32| 1.0 / (1.0 + (if *is_rest { *x } else { -*x }).exp());
            let each = stored.shape()[1] / logits.len();
            let by: Vec<f32> = logits.iter().flat_map(|x| std::iter::repeat_n(share(x), each)).collect();
            (stored.shape().to_vec(), scaled(columns, &by))
        }
        Some(Factor::Vector(name)) => {
            let (matrix, by) = (stored.to_f32()?, factor(term, &stored, name, one_each, source)?);
            let product = |(w, g): (&f32, &f32)| f64::from(*w) * f64::from(*g);
            let dot = |row: &[f32]| row.iter().zip(&by).map(product).sum::<f64>() as f32;
            (vec![stored.shape()[0]], matrix.chunks_exact(by.len()).map(dot).collect())
        }
    };
    match term.is_negated {
        true => Ok(HostTensor::from_f32(&shape, &values.iter().map(|value| -value).collect::<Vec<_>>())?),
        false => Ok(HostTensor::from_f32(&shape, &values)?),
    }
}

/// Every row, each column by its number.
fn scaled(mut matrix: Vec<f32>, by: &[f32]) -> Vec<f32> {
    let rows = matrix.chunks_exact_mut(by.len());
    rows.for_each(|row| row.iter_mut().zip(by).for_each(|(w, g)| *w *= g));
    matrix
}

/// The vector that a matrix `[rows, columns]` is multiplied by, where it `fits` as many columns.
fn factor(
    term: &Term,
    matrix: &HostTensor,
    name: &str,
    fits: fn(columns: usize, width: usize) -> bool,
    source: &mut Source<'_>,
) -> Result<Vec<f32>, RuntimeError> {
    let vector = (source.rows)(&WeightPart::whole(name))?;
    match (matrix.shape(), vector.shape()) {
        ([_, columns], [width]) if *width > 0 && fits(*columns, *width) => Ok(vector.to_f32()?),
        (found, other) => {
            let reason = format!("{} is {found:?}, and {name} {other:?}", term.rows);
            Err(source.failed(term, &reason))
        }
    }
}

/// A number for each column.
fn one_each(columns: usize, width: usize) -> bool {
    columns == width
}

/// A number for each head, which has as many columns as any other.
fn one_for_several(columns: usize, heads: usize) -> bool {
    columns > 0 && columns.is_multiple_of(heads)
}
