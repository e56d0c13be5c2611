//! The ranges of numbers on the command line, all in one place. Each says in one line what it expects.

use bytesize::ByteSize;
use clap::builder::ValueParser;
use dijiang_format::dtype::DType;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// What a run can count: two of them multiplied are still a number.
const MOST: u64 = u32::MAX as u64;
/// Pixels on either side of a map.
const MOST_MAP_TOKENS: usize = 256;
/// Threads that a runtime starts at once, whether it needs them or not.
const MOST_THREADS: usize = 1024;
/// Micro-batches of an update.
const MOST_BATCHES: u64 = 1 << 16;
/// Prompt tokens fed at a time, for which memory is bound.
const MOST_TOKENS_AT_ONCE: usize = 1 << 20;
/// More than any published shape has.
const MOST_LAYERS: u64 = 10_000;

fn whole<T>(range: RangeInclusive<T>) -> ValueParser
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    let parse = move |text: &str| -> Result<T, String> {
        let expected = || format!("expected a whole number from {} to {}", range.start(), range.end());
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(expected)
    };
    ValueParser::new(parse)
}

/// What weights and activations can be.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The element type of a model.
pub(super) fn float(text: &str) -> Result<DType, String> {
    if let Some(found) = FLOATS.into_iter().find(|dtype| dtype.name() == text) {
        return Ok(found);
    }
    let hint = match text {
        "fp16" | "float16" | "half" => " (hint: f16)",
        "fp32" | "float32" | "float" => " (hint: f32)",
        "bfloat16" => " (hint: bf16)",
        _ => {
            " (hint: `--weights int4` of `convert` and `quantize` stores the weights of linear layers in 4 bits)"
        }
    };
    Err(format!("expected f32, f16 or bf16{hint}"))
}

/// Minutes to train for.
pub(super) fn minutes(text: &str) -> Result<f64, String> {
    let expected = || "expected a number of minutes above 0 and up to 100000".to_owned();
    text.parse().ok().filter(|minutes| *minutes > 0.0 && *minutes <= 1e5).ok_or_else(expected)
}

/// Tokens, rows, windows, runs: one at least.
pub(super) fn count() -> ValueParser {
    whole(1..=MOST as usize)
}

/// The same of 32 bits.
pub(super) fn count32() -> ValueParser {
    whole(1..=u32::MAX)
}

/// The same of 64 bits.
pub(super) fn count64() -> ValueParser {
    whole(1..=MOST)
}

/// Steps: where there are none, a run writes its graphs and measures.
pub(super) fn steps() -> ValueParser {
    whole(0..=MOST as usize)
}

/// Tokens of a row to train on or to measure: the first predicts nothing.
pub(super) fn context() -> ValueParser {
    whole(2..=MOST)
}

/// Solved questions before each.
pub(super) fn shots() -> ValueParser {
    whole(0..=MOST as usize)
}

/// Tokens of a map, which is a square of them.
pub(super) fn map_tokens() -> ValueParser {
    whole(2..=MOST_MAP_TOKENS)
}

pub(super) fn threads() -> ValueParser {
    whole(1..=MOST_THREADS)
}

pub(super) fn batches() -> ValueParser {
    whole(1..=MOST_BATCHES)
}

pub(super) fn tokens_at_once() -> ValueParser {
    whole(1..=MOST_TOKENS_AT_ONCE)
}

pub(super) fn layers() -> ValueParser {
    whole(1..=MOST_LAYERS)
}

/// No more threads than these, in this process.
pub(super) fn take_threads(threads: Option<usize>) {
    let Some(threads) = threads else { return };
    if let Err(e) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        tracing::debug!("threads are as they were: {e}");
    }
}

/// Memory: a number of bytes, or one with a unit.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let found = text.parse().ok().map(|ByteSize(bytes)| bytes).filter(|bytes| *bytes > 0);
    found.ok_or_else(|| "expected bytes, such as 8GB, 512MiB or 1000000".to_owned())
}

/// A learning rate, a weight, a multiple: what is negative or no number trains nothing.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    found.ok_or_else(|| "expected a finite number of 0 or more".to_owned())
}

/// A norm that gradients are scaled down to.
pub(super) fn norm(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
    found.ok_or_else(|| "expected a finite number above 0".to_owned())
}

/// What logits are divided by; 0 takes the likeliest.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    let found = text.parse().ok().filter(|x: &f32| x.is_finite() && *x >= 0.0);
    found.ok_or_else(|| "expected a finite number of 0 or more".to_owned())
}

/// Probability mass.
pub(super) fn share(text: &str) -> Result<f32, String> {
    let found = text.parse().ok().filter(|x: &f32| *x > 0.0 && *x <= 1.0);
    found.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_of_its_range_is_refused() {
        for text in ["nan", "NaN", "inf", "-inf", "infinity", "-1", "-1e-9", "1e999", "x", ""] {
            assert!(rate(text).is_err() && norm(text).is_err(), "{text}");
            assert!(temperature(text).is_err() && share(text).is_err(), "{text}");
        }
        assert_eq!((rate("0"), rate("1e30"), norm("1e-9")), (Ok(0.0), Ok(1e30), Ok(1e-9)));
        assert!(norm("0").is_err() && share("0").is_err() && share("1.0001").is_err());
        // Finite as it is written, but not as it is held.
        assert!(temperature("1e39").is_err());
        assert_eq!((bytes("8GB"), bytes("1MiB"), bytes("1000")), (Ok(8_000_000_000), Ok(1 << 20), Ok(1000)));
        assert!(
            bytes("0").is_err() && bytes("-1").is_err() && bytes("8 parrots").is_err() && bytes("").is_err()
        );
        assert_eq!((temperature("0"), share("1"), share("0.9")), (Ok(0.0), Ok(1.0), Ok(0.9)));
    }
}
