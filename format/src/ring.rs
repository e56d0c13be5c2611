//! Where the last keys and values of a layer lie.
//!
//! A served graph has them in one state, `past_key_values.{layer}.conv_state`
//! `[batch, kv_heads, slots · (head_dim + value_dim) + 2]`, as onnxruntime-genai knows states of this name and of three axes:
//! the keys, the values, and the count in two parts, which are small enough for half precision. Graphs for bound memory have
//! three states, of which the last is that of all layers with such rings: `past_key_values.{layer}.ring_key`
//! `[batch, kv_heads, slots, head_dim]`, `.ring_value` `[batch, kv_heads, slots, value_dim]`, and the count, f32 `[batch, 1]`.

use crate::names::PAST;
use crate::recipe::Local;

/// Numbers that hold the count, the last of the state.
pub const COUNT: usize = 2;

/// What the first of them counts.
pub const BASE: u32 = 128;

/// The name of the state that counts the tokens of rings.
pub fn count_name(local: Local) -> String {
    format!("{PAST}ring.{}.{}.count", local.window, local.sinks)
}

/// The slots of the rings that a state of this name counts the tokens of.
pub fn counted_slots(name: &str) -> Option<u64> {
    let (window, sinks) =
        name.strip_prefix(PAST)?.strip_prefix("ring.")?.strip_suffix(".count")?.split_once('.')?;
    Some(Local { window: window.parse().ok()?, sinks: sinks.parse().ok()? }.slots())
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
    fn a_count_says_of_how_many_slots() {
        let name = count_name(Local { window: 64, sinks: 4 });
        assert_eq!(name, "past_key_values.ring.64.4.count");
        assert_eq!(counted_slots(&name), Some(68));
        for other in ["past_key_values.3.conv_state", "past_key_values.ring.64.count", "ring.64.4.count"] {
            assert_eq!(counted_slots(other), None, "{other}");
        }
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
