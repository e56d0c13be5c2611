//! Training text: read, tokenised, joined to one stream, and cut into windows.

use crate::bundle::digests::Hasher;
use dijiang_passes::random::Random;
use dijiang_runtime::{RuntimeError, Tokenizer};
use std::path::{Path, PathBuf};

/// Data cannot be used. One line each, with the file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: it holds no tokens", path.display())]
    Empty { path: PathBuf },
    #[error(
        "the data holds {found} {}, expected at least {needed}: a window of --context {context} (hint: more data, or a smaller --context)",
        if *found == 1 { "token" } else { "tokens" }
    )]
    Short { found: usize, needed: usize, context: usize },
    #[error("{}: token {id} at {at} is not one of the model's {vocab} (hint: was it tokenised for another model?)", path.display())]
    Vocabulary { path: PathBuf, id: u64, at: usize, vocab: u64 },
    #[error("{}: line {line}: {reason} (hint: expected {{\"text\": \"…\"}} on each line)", path.display())]
    Json { path: PathBuf, line: usize, reason: String },
    #[error("{}: line {line}: {reason} (hint: expected {{\"context\": \"…\", \"choices\": [\"…\"], \"answer\": 0}} on each line)", path.display())]
    Question { path: PathBuf, line: usize, reason: String },
    #[error("{}: {bytes} bytes are no whole number of {width}-byte tokens", path.display())]
    Width { path: PathBuf, bytes: usize, width: usize },
    #[error("{}: it is not UTF-8 text (hint: .u16 and .u32 files hold tokens, .jsonl texts)", path.display())]
    NotText { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: RuntimeError },
}

/// How texts become tokens.
#[derive(Debug)]
pub struct Texts<'a> {
    /// Where the tokenizer lies; read when the first text is.
    pub tokenizer: &'a Path,
    /// Put behind every text.
    pub end: Option<u64>,
    /// How many token ids there are.
    pub vocab: u64,
}

/// Reads files as one stream of tokens: `.u16` and `.u32` hold little-endian ids, `.jsonl` an object with
/// `text` on every line, and anything else is one text.
pub fn read(files: &[PathBuf], texts: &Texts<'_>) -> Result<Vec<u32>, DataError> {
    let mut tokenizer = None;
    let mut stream = Vec::new();
    for path in files {
        let before = stream.len();
        let bytes = std::fs::read(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        match path.extension().and_then(|e| e.to_str()) {
            Some("u16") => stream.extend(ids::<2>(path, &bytes)?),
            Some("u32") => stream.extend(ids::<4>(path, &bytes)?),
            kind => {
                let found =
                    if kind == Some("jsonl") { lines(path, &bytes)? } else { vec![text(path, bytes)?] };
                let loaded = match tokenizer.take() {
                    Some(loaded) => loaded,
                    None => load(texts.tokenizer)?,
                };
                for text in found.iter().filter(|t| !t.is_empty()) {
                    let encoded = loaded.encode(text);
                    let encoded =
                        encoded.map_err(|source| DataError::Tokenizer { path: path.clone(), source })?;
                    stream.extend(encoded.into_iter().map(|id| id as u32));
                    stream.extend(texts.end.map(|id| id as u32));
                }
                tokenizer = Some(loaded);
            }
        }
        check(path, &stream[before..], texts.vocab)?;
    }
    Ok(stream)
}

fn load(path: &Path) -> Result<Tokenizer, DataError> {
    Tokenizer::load(path).map_err(|source| DataError::Tokenizer { path: path.to_owned(), source })
}

fn check(path: &Path, tokens: &[u32], vocab: u64) -> Result<(), DataError> {
    if tokens.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    // An ONNX source may not say how many tokens it knows.
    let outside = |id: &&u32| vocab > 0 && u64::from(**id) >= vocab;
    match tokens.iter().enumerate().find(|(_, id)| outside(id)) {
        Some((at, id)) => Err(DataError::Vocabulary { path: path.to_owned(), id: u64::from(*id), at, vocab }),
        None => Ok(()),
    }
}

fn ids<const WIDTH: usize>(path: &Path, bytes: &[u8]) -> Result<Vec<u32>, DataError> {
    let (whole, rest) = bytes.as_chunks::<WIDTH>();
    if !rest.is_empty() {
        return Err(DataError::Width { path: path.to_owned(), bytes: bytes.len(), width: WIDTH });
    }
    let id = |b: &[u8; WIDTH]| b.iter().rev().fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
    Ok(whole.iter().map(id).collect())
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, DataError> {
    String::from_utf8(bytes).map_err(|_| DataError::NotText { path: path.to_owned() })
}

fn lines(path: &Path, bytes: &[u8]) -> Result<Vec<String>, DataError> {
    let text = text(path, bytes.to_vec())?;
    let read = |(number, line): (usize, &str)| {
        let bad = |reason: String| DataError::Json { path: path.to_owned(), line: number + 1, reason };
        let value: serde_json::Value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        let text = value.get("text").and_then(serde_json::Value::as_str);
        text.map(str::to_owned).ok_or_else(|| bad("it has no string `text`".to_owned()))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(read).collect()
}

/// The digest of a stream, whatever files it was read from.
pub fn digest(stream: &[u32]) -> String {
    let mut hasher = Hasher::default();
    stream.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
    hasher.finish()
}

/// Windows of a stream, in an order that depends on the seed alone, so that a resumed run reads on where the
/// other stopped.
#[derive(Debug)]
pub struct Windows {
    stream: Vec<u32>,
    context: usize,
    seed: u64,
    /// The epoch whose order is at hand.
    epoch: u64,
    order: Vec<usize>,
}

/// Whether so many tokens hold a window, one of more than one token: that predicts nothing.
pub fn check_length(found: usize, context: usize) -> Result<(), DataError> {
    let needed = context.max(2);
    if found < needed { Err(DataError::Short { found, needed, context }) } else { Ok(()) }
}

impl Windows {
    pub fn new(stream: Vec<u32>, context: usize, seed: u64) -> Result<Self, DataError> {
        check_length(stream.len(), context)?;
        let mut windows = Self { stream, context, seed, epoch: 0, order: Vec::new() };
        windows.shuffle(0);
        Ok(windows)
    }

    /// Windows per epoch.
    pub fn len(&self) -> usize {
        self.stream.len() / self.context
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each epoch cuts the stream at other places.
    fn shuffle(&mut self, epoch: u64) {
        let mut random = Random::named(self.seed, &format!("epoch.{epoch}"));
        let spare = self.stream.len() - self.len() * self.context;
        let shift = if spare == 0 { 0 } else { random.next_u64() as usize % (spare + 1) };
        let order = random.permutation(self.len());
        self.order = order.into_iter().map(|i| shift + i * self.context).collect();
        self.epoch = epoch;
    }

    /// Window number `index` of the whole run.
    pub fn get(&mut self, index: usize) -> Vec<i64> {
        let (epoch, at) = ((index / self.len()) as u64, index % self.len());
        if epoch != self.epoch {
            self.shuffle(epoch);
        }
        let begin = self.order[at];
        self.stream[begin..begin + self.context].iter().map(|id| i64::from(*id)).collect()
    }

    /// The first windows of the stream as they lie, `most` at most: for validation.
    pub fn in_order(&self, most: usize) -> Vec<Vec<i64>> {
        let windows = self.stream.chunks_exact(self.context).take(most);
        windows.map(|w| w.iter().map(|id| i64::from(*id)).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("it is written");
        let texts = Texts { tokenizer: Path::new("tokenizer.json"), end: None, vocab: 300 };
        let error = read(std::slice::from_ref(&path), &texts).expect_err("it is refused").to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn bad_files_are_named() {
        assert_eq!(refused("a.u16", b""), "DIR/a.u16: it holds no tokens");
        assert_eq!(refused("a.u16", b"abc"), "DIR/a.u16: 3 bytes are no whole number of 2-byte tokens");
        assert_eq!(
            refused("a.u32", &[1, 0, 0, 0, 44, 1, 0, 0]),
            "DIR/a.u32: token 300 at 1 is not one of the model's 300 (hint: was it tokenised for another model?)"
        );
        assert!(
            refused("a.jsonl", b"{\"text\": 1}").starts_with("DIR/a.jsonl: line 1: it has no string `text`")
        );
        assert!(refused("a.txt", &[0xff]).starts_with("DIR/a.txt: it is not UTF-8 text"));
    }

    #[test]
    fn a_stream_must_hold_a_window() {
        let error = Windows::new(vec![1], 8, 0).expect_err("it is short").to_string();
        assert!(error.starts_with("the data holds 1 token, expected at least 8"), "{error}");
        assert!(Windows::new(vec![1; 8], 8, 0).is_ok());
        assert!(Windows::new(vec![1], 1, 0).is_err());
    }

    #[test]
    fn an_epoch_reads_every_window_once() {
        let mut windows = Windows::new((0..35).collect(), 8, 1).expect("it is long enough");
        let mut seen: Vec<i64> = (0..4).flat_map(|i| windows.get(i)).collect();
        let first = seen.clone();
        seen.sort_unstable();
        let begin = seen[0];
        assert_eq!(seen, (begin..begin + 32).collect::<Vec<_>>());
        let other: Vec<i64> = (4..8).flat_map(|i| windows.get(i)).collect();
        assert_ne!(first, other);
        let again: Vec<i64> = (0..4).flat_map(|i| windows.get(i)).collect();
        assert_eq!(first, again);
    }
}
