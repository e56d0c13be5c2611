//! Continues a text: prefill, then one token at a time.

use std::time::Instant;

use serde::Serialize;

use crate::error::RuntimeError;
use crate::sample::Sampler;
use crate::serving::Serving;
use crate::text::Tokenizer;

/// What to generate and how.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The text to continue, as tokens; behind what the model has seen before, where it goes on from there.
    pub prompt: Vec<i64>,
    /// Whether to go on from what was fed before; an empty prompt then goes on at once.
    pub resume: bool,
    /// Whether the last new token is fed too, so that a state saved afterwards holds all of the text.
    pub feed_last: bool,
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time; see [`Sampler::new`].
    pub temperature: f32,
    /// Probability mass to choose from; see [`Sampler::new`].
    pub top_p: f32,
    /// Seed of the random choices.
    pub seed: u64,
    /// Token ids that end the text; they are not part of it.
    pub stop_ids: Vec<i64>,
}

impl Default for GenerateOptions {
    /// Greedy, up to 128 tokens.
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            resume: false,
            feed_last: false,
            max_new_tokens: 128,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop_ids: Vec::new(),
        }
    }
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// The new text, without the prompt: all pieces handed to `on_text`, in order.
    pub text: String,
    /// The new token ids, without the stop token.
    pub tokens: Vec<i64>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to feed the prompt.
    pub prefill_seconds: f64,
    /// Time from the end of the prefill to the last token.
    pub decode_seconds: f64,
    /// State held at the end.
    pub state_bytes: usize,
}

/// Continues `options.prompt`, handing out text as it becomes whole characters.
///
/// Starts one sequence first, unless it goes on from what was fed. An error when the prompt has no tokens, an option is
/// out of range, the graph fails, or its logits come to the host and are no numbers.
pub fn generate(
    serving: &mut Serving,
    tokenizer: &Tokenizer,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str),
) -> Result<Generated, RuntimeError> {
    let mut sampler = Sampler::new(options.temperature, options.top_p, options.seed)?;
    let prompt_tokens = options.prompt.len();
    if !options.resume {
        serving.start(1)?;
    }
    let started = Instant::now();
    let mut likeliest = match options.prompt.as_slice() {
        _ if serving.batch() != 1 => {
            return Err(bad("state", format!("it holds {} sequences, expected one", serving.batch())));
        }
        [] if options.resume => None,
        [] => return Err(bad("prompt", "it has no tokens, expected at least one".to_owned())),
        prompt => Some(serving.prefill(&[prompt.to_vec()])?[0]),
    };
    let prefill_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut stream = tokenizer.stream();
    let mut emit = |piece: String| {
        if !piece.is_empty() {
            on_text(&piece);
            text.push_str(&piece);
        }
    };
    while tokens.len() < options.max_new_tokens {
        // The logits stay on the device where the likeliest token is all that is asked for.
        let token = match likeliest.filter(|_| options.temperature == 0.0) {
            Some(token) => token,
            None => sampler.pick(&serving.logits()?.to_f32()?)? as i64,
        };
        if options.stop_ids.contains(&token) {
            break;
        }
        tokens.push(token);
        emit(stream.push(token)?);
        if tokens.len() < options.max_new_tokens || options.feed_last {
            likeliest = Some(serving.decode(&[token])?[0]);
        }
    }
    emit(stream.finish()?);
    let decode_seconds = started.elapsed().as_secs_f64();
    let state_bytes = serving.state_bytes();
    Ok(Generated { text, tokens, prompt_tokens, prefill_seconds, decode_seconds, state_bytes })
}

fn bad(place: &'static str, reason: String) -> RuntimeError {
    RuntimeError::BadCall { place, reason }
}
