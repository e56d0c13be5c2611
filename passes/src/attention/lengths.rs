//! How many tokens a run must have for everything to show that depends on how far tokens are apart: more than the numbers
//! that places are compared with, and than the places at which tables change, and no more than tables last.

use crate::ir::graph::{Graph, ValueId};
use crate::ir::tensor::Tensor;
use crate::ir::walk::{depth_first, inputs_of};

/// A length beyond which no window of a usual size hides.
pub(super) const LONG: usize = 300;

/// Everything before `value` of which more than the sizes goes into it, `cut` left out.
pub(super) fn read_by(graph: &Graph, value: ValueId, cut: Option<ValueId>) -> impl Iterator<Item = ValueId> {
    let is_size = |v: ValueId| ["Shape", "Size"].iter().any(|op| graph.made_by(v, op).is_some());
    let before = move |v: ValueId| match Some(v) == cut || is_size(v) {
        true => Vec::new(),
        false => inputs_of(graph, v),
    };
    depth_first(value, before).filter(move |v| Some(*v) != cut)
}

/// The longest run, of `fits` to `most` tokens, that does not fail, and what comes of it. Where all fail, why the longest
/// does.
pub(super) fn longest<T, E>(
    fits: usize,
    most: usize,
    mut run: impl FnMut(usize) -> Result<T, E>,
) -> Result<(usize, T), E> {
    let why = match run(most) {
        Ok(result) => return Ok((most, result)),
        Err(why) => why,
    };
    let (mut fits, mut fails) = (fits, most);
    let mut found = None;
    while fits + 1 < fails {
        let middle = fits.midpoint(fails);
        match run(middle) {
            Ok(result) => (fits, found) = (middle, Some((middle, result))),
            Err(_) => fails = middle,
        }
    }
    found.or_else(|| Some((fits, run(fits).ok()?))).ok_or(why)
}

/// A whole number that a place may be compared with.
pub(super) fn as_length(number: f64) -> Option<usize> {
    let is_length = number.fract() == 0.0 && (2.0..=1e6).contains(&number.abs());
    is_length.then_some(number.abs() as usize)
}

/// The last place at which a table changes that is longer than any run that is tried without a reason: the distance where
/// it is a square that tells distances, and else its length.
pub(super) fn last_change(table: &Tensor) -> Option<usize> {
    let is_one = |size: &&u64| **size != 1;
    let dims: Vec<usize> = table.dims().iter().filter(is_one).map(|size| *size as usize).collect();
    let most = dims.iter().copied().max().filter(|size| *size > LONG)?;
    let numbers = table.to_f64();
    if numbers.iter().all(|x| *x == numbers[0]) {
        return None;
    }
    let last = match dims.as_slice() {
        [_] => last_bend(&numbers),
        [.., rows, columns] if rows == columns => {
            let squares = numbers.chunks_exact(rows * columns).map(|square| last_distance(square, *rows));
            squares.max().unwrap_or_default()
        }
        _ => most,
    };
    Some(last).filter(|last| *last > LONG)
}

/// The largest distance at which a square of `size` rows changes; `size` where it is no matter of distances.
fn last_distance(square: &[f64], size: usize) -> usize {
    let is_as_before = |i: usize| square[i] == square[i - size - 1];
    let mut inner = (size..square.len()).filter(|i| !i.is_multiple_of(size));
    if !inner.all(is_as_before) {
        return size;
    }
    let earlier: Vec<f64> = square.iter().step_by(size).copied().collect();
    last_bend(&square[..size]).max(last_bend(&earlier))
}

/// The last place where numbers go on otherwise than in the steps before.
fn last_bend(numbers: &[f64]) -> usize {
    // Of two infinities the difference is none.
    let step = |i: usize| if numbers[i] == numbers[i - 1] { 0.0 } else { numbers[i] - numbers[i - 1] };
    (2..numbers.len()).rev().find(|i| step(*i) != step(i - 1)).map_or(0, |i| i - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_found() {
        let up_to = |last: usize| longest(6, 302, |n| if n <= last { Ok(n) } else { Err("too long") });
        assert_eq!(up_to(400), Ok((302, 302)));
        for last in [6, 7, 128, 301] {
            assert_eq!(up_to(last), Ok((last, last)));
        }
        assert_eq!(up_to(5), Err("too long"));
    }

    /// A table of so many rows and columns by distance.
    fn square(size: u64, number: impl Fn(u64, u64) -> f32) -> Tensor {
        let numbers: Vec<f32> = (0..size * size).map(|i| number(i / size, i % size)).collect();
        Tensor::from_f32(&[1, 1, size, size], &numbers)
    }

    #[test]
    fn what_tells_the_earlier_token_changes_nowhere() {
        let closed = f32::NEG_INFINITY;
        assert_eq!(last_change(&square(400, |q, k| if k <= q { 0.0 } else { closed })), None);
        assert_eq!(last_change(&square(400, |q, k| q as f32 - k as f32)), None);
        assert_eq!(last_change(&square(400, |_, _| 1.0)), None);
        let places: Vec<i64> = (2..1000).collect();
        assert_eq!(last_change(&Tensor::from_i64(&[1, 998], &places)), None);
    }

    #[test]
    fn a_window_changes_where_it_ends() {
        let window = |far: u64| square(400, move |q, k| f32::from(u8::from(k <= q && q - k < far)));
        assert_eq!(last_change(&window(320)), Some(320));
        // Those that are tried anyway show it.
        assert_eq!(last_change(&window(20)), None);
        assert_eq!(last_change(&square(128, |q, k| f32::from(u8::from(q / 100 == k / 100)))), None);
    }

    #[test]
    fn blocks_are_seen_as_a_whole() {
        let blocks = square(400, |q, k| f32::from(u8::from(k <= q && q / 350 == k / 350)));
        assert_eq!(last_change(&blocks), Some(400));
        let numbers: Vec<i64> = (0..1000).map(|place| place / 700).collect();
        assert_eq!(last_change(&Tensor::from_i64(&[1000], &numbers)), Some(700));
    }
}
