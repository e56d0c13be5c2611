//! Rows of token ids that are fed side by side: their checks, their segments and their positions.

use crate::session::error::{RuntimeError, bad_call};

/// An error unless all rows, and those of the mask, are equally long, and the mask holds 0 and 1 alone.
pub(crate) fn check_rows(ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<(), RuntimeError> {
    let Some(first) = ids.first() else {
        return Err(bad_call("input_ids", "no rows were given, expected at least one"));
    };
    if let Some(row) = ids.iter().find(|row| row.len() != first.len()) {
        let reason =
            format!("rows hold {} and {} tokens, expected equally many; pad them", first.len(), row.len());
        return Err(bad_call("input_ids", reason));
    }
    let Some(mask) = mask else { return Ok(()) };
    if mask.len() != ids.len() || mask.iter().any(|row| row.len() != first.len()) {
        let reason = format!("it is not {} rows of {}, the shape of input_ids", ids.len(), first.len());
        return Err(bad_call("attention_mask", reason));
    }
    match mask.iter().flatten().find(|&&m| m != 0 && m != 1) {
        Some(other) => Err(bad_call("attention_mask", format!("it holds {other}, expected 0 or 1"))),
        None => Ok(()),
    }
}

/// The same columns of every row.
pub(crate) fn cut(rows: &[Vec<i64>], range: &std::ops::Range<usize>) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row[range.clone()].to_vec()).collect()
}

/// Every row with another after it.
pub(crate) fn joined(left: &[Vec<i64>], right: &[Vec<i64>]) -> Vec<Vec<i64>> {
    left.iter().zip(right).map(|(left, right)| [left.as_slice(), right].concat()).collect()
}

/// Positions that count only real tokens; padding before the first one sits at 0.
pub(crate) fn positions(seen: &[i64], mask: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let row = |(&seen, mask): (&i64, &Vec<i64>)| {
        let mut count = seen;
        let place = |m: &i64| {
            count += m;
            (count - 1).max(0)
        };
        mask.iter().map(place).collect()
    };
    seen.iter().zip(mask).map(row).collect()
}

/// Each row's ids of some columns, and the mask that tells them from padding: zeros after a row's end.
pub(crate) fn segment(prompts: &[Vec<i64>], start: usize, columns: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let part = |row: &Vec<i64>| {
        let end = row.len().min(start + columns);
        let mut ids = row[start.min(end)..end].to_vec();
        let mut mask = vec![1; ids.len()];
        ids.resize(columns, 0);
        mask.resize(columns, 0);
        (ids, mask)
    };
    prompts.iter().map(part).unzip()
}

/// Columns that several rows are fed at a time where an operator takes a segment after a past from one row only: all at
/// once before the first token, and then one.
pub(crate) fn rows_segment(before: usize, columns: usize) -> usize {
    if before == 0 { columns.max(1) } else { 1 }
}

/// The rows whose last token is one of these columns.
pub(crate) fn ending(prompts: &[Vec<i64>], start: usize, columns: usize) -> Vec<usize> {
    let ends = |row: &usize| (start + 1..=start + columns).contains(&prompts[*row].len());
    (0..prompts.len()).filter(ends).collect()
}

/// Tokens of the longest row.
pub(crate) fn width(prompts: &[Vec<i64>]) -> usize {
    prompts.iter().map(Vec::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_real_tokens_and_go_on() {
        let mask = [vec![0, 0, 1, 1], vec![1, 1, 1, 1]];
        assert_eq!(positions(&[0, 0], &mask), [[0, 0, 0, 1], [0, 1, 2, 3]]);
        assert_eq!(positions(&[2, 4], &[vec![1, 0], vec![1, 1]]), [[2, 2], [4, 5]]);
    }

    #[test]
    fn ragged_rows_and_wrong_masks_are_refused() {
        let message =
            |ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>| check_rows(ids, mask).unwrap_err().to_string();
        assert_eq!(message(&[], None), "input_ids: no rows were given, expected at least one");
        assert_eq!(
            message(&[vec![1], vec![1, 2]], None),
            "input_ids: rows hold 1 and 2 tokens, expected equally many; pad them"
        );
        assert!(
            message(&[vec![1]], Some(&[vec![1, 1]])).starts_with("attention_mask: it is not 1 rows of 1")
        );
        assert_eq!(message(&[vec![1]], Some(&[vec![2]])), "attention_mask: it holds 2, expected 0 or 1");
    }
}
