//! Continues texts: prefill, then one token of each at a time.

use std::time::Instant;

use serde::Serialize;

use crate::generate::sample::Sampler;
use crate::generate::serving::Serving;
use crate::generate::text::{TextStream, Tokenizer};
use crate::session::error::{RuntimeError, bad_call};

/// What to generate and how.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The texts to continue, as tokens, as long as each may be; behind what the model has seen before, where it goes
    /// on from there.
    pub prompts: Vec<Vec<i64>>,
    /// Whether to go on from what was fed before; prompts that are all empty then go on at once.
    pub resume: bool,
    /// Whether the last new token is fed too, so that a state saved afterwards holds all of the text. Of several
    /// texts, those that have ended are fed what ended them until all have.
    pub feed_last: bool,
    /// At most this many new tokens of each text.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time; see [`Sampler::new`].
    pub temperature: f32,
    /// Probability mass to choose from; see [`Sampler::new`].
    pub top_p: f32,
    /// Seed of the random choices of each text.
    pub seed: u64,
    /// Token ids that end a text; they are not part of it.
    pub stop_ids: Vec<i64>,
}

impl Default for GenerateOptions {
    /// Greedy, up to 128 tokens.
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
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
    /// Time to feed the prompts.
    pub prefill_seconds: f64,
    /// Time from the end of the prefill to the last token, of the longest text.
    pub decode_seconds: f64,
    /// State held for this text at the end.
    pub state_bytes: usize,
}

/// Continues `options.prompts` side by side, and returns a generation of each. Text is handed out as it becomes whole
/// characters, with the number of its prompt. Each text is as if it were alone, up to the rounding of sums.
///
/// Starts as many sequences first, unless it goes on from what was fed. An error when there is no prompt or one has no
/// tokens, an option is out of range, the graph fails, or its logits come to the host and are no numbers.
pub fn generate(
    serving: &mut Serving,
    tokenizer: &Tokenizer,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<Vec<Generated>, RuntimeError> {
    let sampler = Sampler::new(options.temperature, options.top_p, options.seed)?;
    let prompts = &options.prompts;
    if !options.resume {
        serving.start(prompts.len())?;
    }
    let batch = serving.batch();
    if prompts.len() != batch {
        return Err(bad_call("state", format!("it holds {batch} sequences, expected {}", prompts.len())));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    serving.reserve(serving.seen() + longest + options.max_new_tokens)?;
    let started = Instant::now();
    let go_on_at_once = options.resume && prompts.iter().all(Vec::is_empty);
    let likeliest = if go_on_at_once { None } else { Some(serving.prefill(prompts)?) };
    let prefill_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let row = |(number, prompt): (usize, &Vec<i64>)| Row {
        number,
        prompt_tokens: prompt.len(),
        sampler: sampler.clone(),
        stream: tokenizer.stream(),
        text: String::new(),
        tokens: Vec::new(),
        ended: options.max_new_tokens == 0,
    };
    let mut rows: Vec<Row<'_>> = prompts.iter().enumerate().map(row).collect();
    go_on(serving, &mut rows, likeliest, options, on_text)?;
    let decode_seconds = started.elapsed().as_secs_f64();
    let state_bytes = serving.state_bytes() / batch;
    let generated = |row: Row<'_>| {
        let prompt_tokens = row.prompt_tokens;
        let (text, tokens) = row.finish(on_text)?;
        Ok(Generated { text, tokens, prompt_tokens, prefill_seconds, decode_seconds, state_bytes })
    };
    rows.into_iter().map(generated).collect()
}

/// One text on its way.
struct Row<'t> {
    number: usize,
    prompt_tokens: usize,
    sampler: Sampler,
    stream: TextStream<'t>,
    text: String,
    tokens: Vec<i64>,
    ended: bool,
}

impl Row<'_> {
    /// Takes a token, or ends at it.
    fn take(
        &mut self,
        token: i64,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<(), RuntimeError> {
        if options.stop_ids.contains(&token) {
            self.ended = true;
            return Ok(());
        }
        self.tokens.push(token);
        self.ended = self.tokens.len() == options.max_new_tokens;
        let piece = self.stream.push(token)?;
        emit(self.number, &mut self.text, &piece, on_text);
        Ok(())
    }

    /// The text and its tokens.
    fn finish(mut self, on_text: &mut dyn FnMut(usize, &str)) -> Result<(String, Vec<i64>), RuntimeError> {
        let rest = self.stream.finish()?;
        emit(self.number, &mut self.text, &rest, on_text);
        Ok((self.text, self.tokens))
    }
}

fn emit(number: usize, text: &mut String, piece: &str, on_text: &mut dyn FnMut(usize, &str)) {
    if !piece.is_empty() {
        on_text(number, piece);
        text.push_str(piece);
    }
}

/// Picks and feeds tokens until every text has ended.
fn go_on(
    serving: &mut Serving,
    rows: &mut [Row<'_>],
    mut likeliest: Option<Vec<i64>>,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<(), RuntimeError> {
    // What a text that has ended is fed while others go on does not matter to them.
    let mut next = vec![0; rows.len()];
    while rows.iter().any(|row| !row.ended) {
        let picked = pick(serving, rows, likeliest.take(), options)?;
        for ((row, next), token) in rows.iter_mut().zip(&mut next).zip(picked) {
            if !row.ended {
                *next = token;
                row.take(token, options, on_text)?;
            }
        }
        let is_fed =
            |row: &Row<'_>| !row.ended || (options.feed_last && row.tokens.len() == options.max_new_tokens);
        if rows.iter().any(is_fed) {
            likeliest = Some(serving.decode(&next)?);
        }
    }
    Ok(())
}

/// The next token of each row. The logits stay on the device where the likeliest token is all that is asked for.
fn pick(
    serving: &mut Serving,
    rows: &mut [Row<'_>],
    likeliest: Option<Vec<i64>>,
    options: &GenerateOptions,
) -> Result<Vec<i64>, RuntimeError> {
    if let Some(likeliest) = likeliest.filter(|_| options.temperature == 0.0) {
        return Ok(likeliest);
    }
    let logits = serving.logits()?.to_f32()?;
    let each = logits.chunks(logits.len() / rows.len());
    rows.iter_mut().zip(each).map(|(row, logits)| Ok(row.sampler.pick(logits)? as i64)).collect()
}
