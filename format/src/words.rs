//! How messages are worded.

use std::fmt::Display;

/// A number of things in words: `1 attention`, `2 attentions`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let end = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{end}")
}

/// Things one after the other: `1, 4, 7`.
pub fn listed<T: Display>(things: &[T]) -> String {
    things.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_have_commas_between_them() {
        assert_eq!([listed(&[1, 4, 7]), listed::<u8>(&[])], ["1, 4, 7", ""]);
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(counted(1_usize, "attention"), "1 attention");
        assert_eq!(counted(0_usize, "attention"), "0 attentions");
        assert_eq!(counted(2_u64, "token"), "2 tokens");
    }
}
