//! What opsets 11 and 12 say otherwise than opset 13.

use dijiang_passes::ir::op::{Attr, Op};
use dijiang_passes::ir::tensor::Tensor;

/// Operator, attribute, the input that took its place, and since when.
const INPUTS_SINCE: &[(&str, &str, usize, i64)] = &[("Dropout", "ratio", 1, 12), ("Split", "split", 1, 13)];

/// Opaque operators that are written differently from an opset on. They are kept as they are, and so
/// the opset they were written for matters.
const CHANGED: &[(&str, i64)] = &[("DFT", 20), ("GridSample", 20), ("GroupNormalization", 21)];

/// Before opset 13 these work on the matrix that flattening at `axis` gives.
pub(super) fn flattens(op: &Op, opset: i64) -> bool {
    opset < 13 && ["Softmax", "LogSoftmax", "Hardmax"].iter().any(|name| op.is(name))
}

/// The opset in which an operator got another meaning than it has in the model.
pub(super) fn changed_after(op: &Op, opset: i64) -> Option<i64> {
    CHANGED.iter().find(|(name, since)| op.is(name) && opset < *since).map(|(_, since)| *since)
}

/// Attributes that later opsets take as inputs: the slot, and the constant to put there.
pub(super) fn attributes_to_inputs(op: &mut Op, opset: i64) -> Result<Vec<(usize, Tensor)>, String> {
    let mut found = Vec::new();
    for (name, attr, slot, since) in INPUTS_SINCE {
        if !op.is(name) || opset >= *since {
            continue;
        }
        let Some(value) = op.attrs.remove(*attr) else { continue };
        let tensor = match value {
            Attr::Float(x) => Tensor::from_f32(&[], &[x]),
            Attr::Ints(x) => Tensor::from_i64(&[x.len() as u64], &x),
            other => return Err(format!("attribute `{attr}` = {other} is of the wrong kind")),
        };
        found.push((*slot, tensor));
    }
    Ok(found)
}

/// How a flattening operator is written on its last axis.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flattened {
    /// As it is, on this axis.
    Axis(i64),
    /// On the last axis of its input reshaped to these sizes, and back.
    Reshaped(Vec<i64>),
}

/// `tail` are the dims from the operator's axis on, `None` for each that is not known.
pub(super) fn flattened(axis: i64, rank: Option<usize>, dims: &[Option<u64>]) -> Result<Flattened, String> {
    if axis == -1 {
        return Ok(Flattened::Axis(-1));
    }
    let from_front = match (rank, usize::try_from(axis)) {
        (None, Ok(axis)) => axis,
        (None, Err(_)) => return Err(format!("with axis {axis} the rank of its input must be known")),
        (Some(rank), _) => dijiang_passes::ir::infer::resolve_axis(axis, rank)?,
    };
    let ones_after = rank.is_some() && dims.iter().skip(from_front + 1).all(|d| *d == Some(1));
    if ones_after {
        return Ok(Flattened::Axis(from_front as i64));
    }
    // Zeros keep the dims before the axis; more of them than any tensor has are a mistake.
    if from_front > MAX_RANK {
        return Err(format!("axis {axis} is larger than any rank"));
    }
    let kept = std::iter::repeat_n(0, from_front);
    Ok(Flattened::Reshaped(kept.chain([-1]).collect()))
}

const MAX_RANK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_it_is_reshaped() {
        let dims = [Some(2), None, Some(1), Some(1)];
        assert_eq!(flattened(-1, None, &[]), Ok(Flattened::Axis(-1)));
        assert_eq!(flattened(3, Some(4), &dims), Ok(Flattened::Axis(3)));
        assert_eq!(flattened(1, Some(4), &dims), Ok(Flattened::Axis(1)));
        assert_eq!(flattened(0, Some(4), &dims), Ok(Flattened::Reshaped(vec![-1])));
        assert_eq!(flattened(2, None, &[]), Ok(Flattened::Reshaped(vec![0, 0, -1])));
        assert!(flattened(-2, None, &[]).is_err());
        assert!(flattened(4, Some(4), &dims).is_err());
    }
}
