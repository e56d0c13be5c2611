//! How messages are worded.

use std::fmt::Display;

/// A number of things in words: `1 attention`, `2 attentions`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let end = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(counted(1_usize, "attention"), "1 attention");
        assert_eq!(counted(0_usize, "attention"), "0 attentions");
        assert_eq!(counted(2_u64, "token"), "2 tokens");
    }
}
