//! Where the last keys and values of a layer lie.
//!
//! A served graph has them in one state, `past_key_values.{layer}.conv_state`
//! `[batch, kv_heads, slots · (head_dim + value_dim) + 2]`, as onnxruntime-genai knows states of this name and of three axes:
//! the keys, the values, and the count in two parts, which are small enough for half precision. A layer that is a window
//! alone has a `past_key_values.{layer}.recurrent_state` of `[batch, 1, 1, 1]` beside it, which genai asks for. Graphs for bound memory have
//! three states, of which the last is that of all layers with such rings: `past_key_values.{layer}.ring_key.{window}.{sinks}`
//! `[batch, kv_heads, slots, head_dim]`, `.ring_value.{window}.{sinks}` `[batch, kv_heads, slots, value_dim]`, and the count,
//! `past_key_values.ring.{window}.{sinks}.count`, f32 `[batch, 1]`. Of two layers with as many slots one may have sinks and
//! the other none: they count differently.

use crate::names::{PAST, StatePart};
use crate::recipe::Local;

/// Numbers that hold the count, the last of the state.
pub const COUNT: usize = 2;

/// What the first of them counts.
pub const BASE: u32 = 128;

/// What a state of a graph for bound memory holds of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    Keys,
    Values,
    /// The tokens of all rings of the graph that see the same.
    Count,
}

/// A state of a ring, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingState<'n> {
    /// The layer, as the name has it; empty of a count.
    pub layer: &'n str,
    pub part: RingPart,
    pub local: Local,
}

const KEYS: &str = "ring_key";
const VALUES: &str = "ring_value";

/// The name of the keys of a layer's ring.
pub fn keys_name(layer: impl std::fmt::Display, local: Local) -> String {
    format!("{PAST}{layer}.{KEYS}.{}.{}", local.window, local.sinks)
}

/// The name of the values of a layer's ring.
pub fn values_name(layer: impl std::fmt::Display, local: Local) -> String {
    format!("{PAST}{layer}.{VALUES}.{}.{}", local.window, local.sinks)
}

/// The name of the state that counts the tokens of rings.
pub fn count_name(local: Local) -> String {
    format!("{PAST}ring.{}.{}.count", local.window, local.sinks)
}

/// The name of the one state that a served graph has for a layer's ring.
pub fn packed_name(layer: impl std::fmt::Display) -> String {
    format!("{PAST}{layer}.{}", StatePart::Normalizer.name())
}

/// The layer of a state that may be a ring in one, as the name has it.
pub fn packed_layer(name: &str) -> Option<&str> {
    layer_of(name, StatePart::Normalizer)
}

/// The layer of a state that may be the one that nothing reads, as the name has it.
pub fn unread_layer(name: &str) -> Option<&str> {
    layer_of(name, StatePart::Sums)
}

fn layer_of(name: &str, part: StatePart) -> Option<&str> {
    name.strip_prefix(PAST)?.strip_suffix(part.name())?.strip_suffix('.')
}

impl<'n> RingState<'n> {
    /// What the state of this name is, if it is one of a ring.
    pub fn of(name: &'n str) -> Option<Self> {
        let parts: Vec<&str> = name.strip_prefix(PAST)?.split('.').collect();
        let (layer, part, window, sinks) = match parts[..] {
            ["ring", window, sinks, "count"] => ("", RingPart::Count, window, sinks),
            [layer, KEYS, window, sinks] => (layer, RingPart::Keys, window, sinks),
            [layer, VALUES, window, sinks] => (layer, RingPart::Values, window, sinks),
            _ => return None,
        };
        let local = Local { window: window.parse().ok()?, sinks: sinks.parse().ok()? };
        Some(Self { layer, part, local })
    }
}

/// A count in its two parts.
pub fn parts(count: f32) -> [f32; COUNT] {
    let base = BASE as f32;
    let high = (count / base).floor();
    [high, count - high * base]
}

/// The count of two parts.
pub fn whole([high, low]: [f32; COUNT]) -> f32 {
    high * BASE as f32 + low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_says_which_ring_it_is_of() {
        let local = Local { window: 64, sinks: 4 };
        let cases = [
            (count_name(local), "past_key_values.ring.64.4.count", "", RingPart::Count),
            (keys_name(3, local), "past_key_values.3.ring_key.64.4", "3", RingPart::Keys),
            (values_name("12", local), "past_key_values.12.ring_value.64.4", "12", RingPart::Values),
        ];
        for (name, expected, layer, part) in cases {
            assert_eq!(name, expected);
            assert_eq!(RingState::of(&name), Some(RingState { layer, part, local }));
        }
        for other in [
            "past_key_values.3.conv_state",
            "past_key_values.ring.64.count",
            "past_key_values.3.ring_key",
            "past_key_values.3.ring_key.64.x",
            "ring.64.4.count",
        ] {
            assert_eq!(RingState::of(other), None, "{other}");
        }
        assert_eq!(packed_name(3), StatePart::Normalizer.past(3));
        assert_eq!(packed_layer(&packed_name(3)), Some("3"));
        assert_eq!(packed_layer("past_key_values.3.recurrent_state"), None);
        assert_eq!(unread_layer("past_key_values.3.recurrent_state"), Some("3"));
    }

    #[test]
    fn parts_are_small_and_make_the_count() {
        for count in [0.0, 1.0, 127.0, 128.0, 16_384.0, 32_767.0] {
            let parts = parts(count);
            assert!(parts.iter().all(|part| *part < 256.0), "{count}");
            assert_eq!(whole(parts).to_bits(), count.to_bits());
        }
    }
}
