//! What is fed to a model that reads no tokens: images, sound, embeddings. A row of token ids stands for
//! one example; its numbers are seeded by it.

use dijiang_passes::numeric::random::Random;

/// Sizes of an input for rows of `tokens` each. What a graph leaves open is the batch in front, and in an
/// input of rank 3 the length.
pub(super) fn sizes(name: &str, dims: &[Option<usize>], rows: &[Vec<i64>]) -> Result<Vec<usize>, String> {
    let tokens = rows.first().map_or(0, Vec::len);
    let size = |(axis, dim): (usize, &Option<usize>)| match (axis, dim) {
        (0, None) => Ok(rows.len()),
        (_, Some(size)) => Ok(*size),
        (_, None) if dims.len() == 3 => Ok(tokens),
        _ => Err(format!(
            "axis {axis} of input `{name}` is of any size, and nothing tells which is meant (hint: give it one in the model, or convert with --no-verify)"
        )),
    };
    dims.iter().enumerate().map(size).collect()
}

/// Numbers for an input of these sizes, each row's its own.
pub(super) fn numbers(name: &str, sizes: &[usize], rows: &[Vec<i64>]) -> Vec<f64> {
    let each: usize = sizes.iter().skip(1).product();
    let of_row = |row: &Vec<i64>| {
        let seed =
            row.iter().fold(row.len() as u64, |seed, id| seed.wrapping_mul(31).wrapping_add(*id as u64));
        let mut random = Random::named(seed, name);
        (0..each).map(move |_| random.normal()).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of_row).collect()
}
