//! The names of a graph's inputs, outputs and states, as onnxruntime-genai has them.

/// Input: token ids, i64 `[batch, sequence]`.
pub const IDS: &str = "input_ids";
/// Input: 1 for a token and 0 for padding, i64 `[batch, sequence]`; `[batch, past + sequence]` where a cache grows.
pub const MASK: &str = "attention_mask";
/// Input: the position of each token, i64 `[batch, sequence]`.
pub const POSITIONS: &str = "position_ids";
/// Input of graphs that are made for decoding: where the last token of each row stands among all tokens of the call, row
/// after row, i64 `[batch, 1]`.
pub const LAST: &str = "last_tokens";
/// Input: which of two texts each token is of, `[batch, sequence]`.
pub const SEGMENTS: &str = "token_type_ids";
/// Input of graphs that tell which layers look far: how many tokens back each layer sees, f32 `[layers]`.
pub const WINDOWS: &str = "windows";
/// Input of graphs that tell which layers should stay softmax: 1 for those that do, 0 for those that are as they are served,
/// f32 `[layers]`.
pub const KEPT: &str = "kept";
/// Input of graphs that tell what the branches of attentions are worth: what each branch is multiplied by, f32 `[3]`.
pub const BRANCHES: &str = "branches";
/// Output: `[batch, sequence, vocabulary]`.
pub const LOGITS: &str = "logits";
/// Output of graphs for bound memory: the likeliest next token, i64 `[batch, sequence]`, or -1 where a logit is NaN.
pub const NEXT: &str = "next";

/// What the names of states begin with that a graph takes.
pub const PAST: &str = "past_key_values.";
/// What the names of states begin with that a graph returns.
pub const PRESENT: &str = "present.";

/// What the names of weights begin with that hold rotations for one runtime's operator: no part of the model.
pub const TABLES: &str = "grouped_attention.";

/// After the name of a site, what the names of values begin with that a conversion writes there.
pub const MADE: &str = "/dijiang";

/// Whether a conversion made the value of this name: a constant of it is no weight of the model, however large it is.
pub fn is_made(name: &str) -> bool {
    name.split_once(MADE).is_some_and(|(_, rest)| rest.starts_with('/'))
}

/// Whether a conversion made the value of this name in a part of that name.
fn is_within(name: &str, part: &str) -> bool {
    is_made(name) && name.split('/').any(|own| own == part)
}

/// In the names of values that are computed in f32 whatever the precision of a training run, as roundings grow there.
pub const EXACT: &str = "exact";

/// Whether a value of this name is one of them.
pub fn is_exact(name: &str) -> bool {
    is_within(name, EXACT)
}

/// In the names of values that gradients take for constants. What is computed from them is such that its gradient is whole
/// without theirs.
pub const HELD: &str = "held";

/// Whether a value of this name is one of them.
pub fn is_held(name: &str) -> bool {
    is_within(name, HELD)
}

/// In the names of values that are rows in another order, in which the tokens of a row stand before its padding: without
/// padding they are as they were.
pub const TOGETHER: &str = "together";

/// Whether a value of this name is one of them.
pub fn is_together(name: &str) -> bool {
    is_within(name, TOGETHER)
}

/// A state of one layer, by the last part of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePart {
    /// S, f32 `[batch, kv_heads, features, value_dim]`; `[batch, 1, 1, 1]` that nothing reads, of a layer that is a window
    /// alone.
    Sums,
    /// z, f32 `[batch, kv_heads, features]`; `[batch, 1, 1]` that nothing reads, where the readout does not divide; or a
    /// ring ([`crate::ring`]).
    Normalizer,
    /// Keys of softmax, `[batch, kv_heads, past, head_dim]`.
    Key,
    /// Values of softmax, `[batch, kv_heads, past, head_dim]`.
    Value,
}

impl StatePart {
    /// The last part of the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sums => "recurrent_state",
            Self::Normalizer => "conv_state",
            Self::Key => "key",
            Self::Value => "value",
        }
    }

    /// The name of the input: `past_key_values.{layer}.{part}`.
    pub fn past(self, layer: usize) -> String {
        format!("{PAST}{layer}.{}", self.name())
    }

    /// Whether this is the name of such an input, of any layer.
    pub fn is_past(self, name: &str) -> bool {
        let layer =
            name.strip_prefix(PAST).and_then(|rest| rest.strip_suffix(self.name())?.strip_suffix('.'));
        layer.is_some_and(|layer| layer.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// The name of the output: `present.{layer}.{part}`.
    pub fn present(self, layer: usize) -> String {
        format!("{PRESENT}{layer}.{}", self.name())
    }
}

/// The output that takes the place of a state, `present.*`; `None` where the name is not that of a state.
pub fn present_of(past: &str) -> Option<String> {
    past.strip_prefix(PAST).map(|rest| format!("{PRESENT}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_conversion_makes_is_told_by_its_name() {
        assert!(is_made("h.0.attn/dijiang/counts_2"));
        assert!(is_exact("h.0.attn/dijiang/exact/MatMul_2") && !is_exact("exact/MatMul"));
        assert!(!is_made("h.0.attn.dijiang.mix") && !is_made("model/dijiang") && !is_made("w"));
    }

    #[test]
    fn a_state_is_replaced_by_the_output_of_its_name() {
        assert_eq!(StatePart::Sums.past(3), "past_key_values.3.recurrent_state");
        assert!(StatePart::Sums.is_past("past_key_values.3.recurrent_state"));
        assert!(!StatePart::Normalizer.is_past("past_key_values.3.recurrent_state"));
        assert!(!StatePart::Key.is_past("past_key_values.x.key"));
        assert_eq!(present_of("past_key_values.3.key").as_deref(), Some("present.3.key"));
        assert_eq!(present_of("input_ids"), None);
    }
}
