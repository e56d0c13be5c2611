//! Training text: read, tokenised, joined to one stream, and cut into windows.

use dijiang_format::digest::Hasher;
use dijiang_format::words::counted;
use dijiang_passes::numeric::random::Random;
use dijiang_runtime::{RuntimeError, TextError, Tokenizer};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Data cannot be used. One line each, with the file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: it holds no tokens", path.display())]
    Empty { path: PathBuf },
    #[error(
        "the data holds {}, expected at least {needed}: a window of --context {context} (hint: more data, or a smaller --context)",
        counted(*found, "token")
    )]
    Short { found: usize, needed: usize, context: usize },
    #[error("{}: token {id} at {at} is not one of the model's {vocab} (hint: was it tokenised for another model?)", path.display())]
    Vocabulary { path: PathBuf, id: u64, at: usize, vocab: u64 },
    #[error("{}: line {line}: {reason} (hint: expected {{\"text\": \"…\"}} on each line)", path.display())]
    Json { path: PathBuf, line: usize, reason: String },
    #[error("{}: {bytes} bytes are no whole number of {width}-byte tokens", path.display())]
    Width { path: PathBuf, bytes: usize, width: usize },
    #[error("{}: it is not UTF-8 text (hint: .u16 and .u32 files hold tokens, .jsonl texts)", path.display())]
    NotText { path: PathBuf },
    /// It names its file itself.
    #[error(transparent)]
    Tokenizer(RuntimeError),
}

/// How texts become tokens.
#[derive(Debug)]
pub struct Texts<'a> {
    /// Where the tokenizer lies; read when the first text is.
    pub tokenizer: &'a Path,
    /// Put after every text.
    pub end: Option<u64>,
    /// How many token ids there are.
    pub vocab: u64,
}

/// Reads files as one stream of tokens: `.u16` and `.u32` hold little-endian ids, `.jsonl` an object with
/// `text` on every line, and anything else is one text. Reads and tokenises no more than the first `most` tokens take.
pub fn read(files: &[PathBuf], texts: &Texts<'_>, most: Option<usize>) -> Result<Vec<u32>, DataError> {
    let mut reader = Reader { texts, tokenizer: None, stream: Vec::new(), most: most.unwrap_or(usize::MAX) };
    for path in files {
        let before = reader.stream.len();
        if reader.file(path)?.is_break() {
            break;
        }
        if reader.stream.len() == before {
            return Err(DataError::Empty { path: path.clone() });
        }
    }
    Ok(reader.stream)
}

/// Bytes of token ids read at a time, a whole number of them.
const IDS: u64 = 1 << 16;

struct Reader<'a> {
    texts: &'a Texts<'a>,
    /// Read when the first text is.
    tokenizer: Option<Tokenizer>,
    stream: Vec<u32>,
    most: usize,
}

impl Reader<'_> {
    /// Breaks off where there are enough tokens.
    fn file(&mut self, path: &Path) -> Result<ControlFlow<()>, DataError> {
        let file = File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
        let begin = self.stream.len();
        match path.extension().and_then(|e| e.to_str()) {
            Some("u16") => self.ids::<2>(path, file, begin),
            Some("u32") => self.ids::<4>(path, file, begin),
            Some("jsonl") => self.lines(path, BufReader::new(file), begin),
            _ => self.text(path, file, begin),
        }
    }

    /// Tokens of a file whose first one is number `begin` of the stream.
    fn add(&mut self, path: &Path, tokens: &[u32], begin: usize) -> Result<ControlFlow<()>, DataError> {
        let vocab = self.texts.vocab;
        // An ONNX source may not say how many tokens it knows.
        let outside = |id: &&u32| vocab > 0 && u64::from(**id) >= vocab;
        let tokens = &tokens[..tokens.len().min(self.most - self.stream.len())];
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| outside(id)) {
            let (id, at) = (u64::from(*id), self.stream.len() - begin + at);
            return Err(DataError::Vocabulary { path: path.to_owned(), id, at, vocab });
        }
        self.stream.extend(tokens);
        Ok(if self.stream.len() == self.most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn ids<const WIDTH: usize>(
        &mut self,
        path: &Path,
        mut file: File,
        begin: usize,
    ) -> Result<ControlFlow<()>, DataError> {
        let (mut bytes, mut before) = (Vec::new(), 0);
        loop {
            bytes.clear();
            let part = file.by_ref().take(IDS).read_to_end(&mut bytes);
            part.map_err(|source| DataError::Io { path: path.to_owned(), source })?;
            let (whole, rest) = bytes.as_chunks::<WIDTH>();
            if !rest.is_empty() {
                let bytes = before + bytes.len();
                return Err(DataError::Width { path: path.to_owned(), bytes, width: WIDTH });
            }
            let id = |b: &[u8; WIDTH]| b.iter().rev().fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
            let ids: Vec<u32> = whole.iter().map(id).collect();
            if ids.is_empty() || self.add(path, &ids, begin)?.is_break() {
                return Ok(if ids.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
            }
            before += bytes.len();
        }
    }

    fn lines(
        &mut self,
        path: &Path,
        mut file: impl BufRead,
        begin: usize,
    ) -> Result<ControlFlow<()>, DataError> {
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            let read = file.read_line(&mut line).map_err(|source| match source.kind() {
                ErrorKind::InvalidData => DataError::NotText { path: path.to_owned() },
                _ => DataError::Io { path: path.to_owned(), source },
            })?;
            if read == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let bad = |reason: String| DataError::Json { path: path.to_owned(), line: number, reason };
            let value: serde_json::Value = serde_json::from_str(&line).map_err(|e| bad(e.to_string()))?;
            let text = value.get("text").and_then(serde_json::Value::as_str);
            let text = text.ok_or_else(|| bad("it has no string `text`".to_owned()))?;
            if self.text(path, text.as_bytes(), begin)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One text, and what ends it.
    fn text(&mut self, path: &Path, text: impl Read, begin: usize) -> Result<ControlFlow<()>, DataError> {
        let tokenizer = match self.tokenizer.take() {
            Some(loaded) => loaded,
            None => load(self.texts.tokenizer)?,
        };
        let mut is_empty = true;
        for piece in tokenizer.encode_read(text) {
            let piece = piece.map_err(|error| match error {
                TextError::Io(source) => DataError::Io { path: path.to_owned(), source },
                TextError::NotText => DataError::NotText { path: path.to_owned() },
                TextError::Tokenizer(source) => DataError::Tokenizer(source),
            })?;
            is_empty = false;
            if self.add(path, &piece, begin)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.tokenizer = Some(tokenizer);
        let end = self.texts.end.filter(|_| !is_empty).map(|id| id as u32);
        self.add(path, end.as_slice(), begin)
    }
}

fn load(path: &Path) -> Result<Tokenizer, DataError> {
    Tokenizer::load(path).map_err(DataError::Tokenizer)
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

    /// One that gives a token for each byte.
    fn tokenizer() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare/tokenizer.json")
    }

    fn refused(name: &str, bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("it is written");
        let texts = Texts { tokenizer: &tokenizer(), end: None, vocab: 300 };
        let error = read(std::slice::from_ref(&path), &texts, None).expect_err("it is refused").to_string();
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
    fn no_more_is_read_than_is_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("it is written");
            path
        };
        let texts = Texts { tokenizer: &tokenizer(), end: Some(7), vocab: 256 };
        let tokens = |path: &PathBuf, most| read(std::slice::from_ref(path), &texts, most).map(|t| t.len());
        // What comes after is wrong, and not reached.
        let text = path("a.txt", &[vec![b'a'; 1 << 20], vec![0xff]].concat());
        assert_eq!(tokens(&text, Some(1000)).expect("tokens"), 1000);
        assert!(matches!(tokens(&text, None), Err(DataError::NotText { .. })));
        let ids = path("a.u16", &[[1, 0].repeat(1 << 17), vec![0, 9]].concat());
        assert_eq!(tokens(&ids, Some(1 << 17)).expect("tokens"), 1 << 17);
        assert!(matches!(tokens(&ids, None), Err(DataError::Vocabulary { at: 131_072, id: 2304, .. })));
        let lines = path("a.jsonl", b"{\"text\": \"abc\"}\n\n{\"text\": \"\"}\r\n{\"text\": \"d\"}\n{");
        assert_eq!(tokens(&lines, Some(6)).expect("tokens"), 6);
        assert!(matches!(tokens(&lines, Some(7)), Err(DataError::Json { line: 5, .. })));
        let both = read(&[lines, path("b.txt", b"abc")], &texts, Some(6)).expect("tokens");
        assert_eq!((both[3], both[5]), (7, 7));
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
