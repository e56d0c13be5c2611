//! Text to token ids and back, through a `tokenizer.json`.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::generate::pieces::{PIECE, Pieces, TextError};
use crate::session::error::{RuntimeError, one_line};
use dijiang_format::regular;
use tokenizers::Encoding;

/// A tokenizer and the file it came from.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; an error names the file.
    pub fn load(path: &Path) -> Result<Self, RuntimeError> {
        let failed = |reason| RuntimeError::Tokenizer { path: path.to_path_buf(), reason };
        let bytes = regular::read(path).map_err(|e| failed(one_line(e)))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| failed(one_line(e)))?;
        // A file may carry the limits of someone's training run, which would cut a long prompt without a word.
        inner.with_truncation(None).map_err(|e| failed(one_line(e)))?.with_padding(None);
        Ok(Self { inner, path: path.to_path_buf() })
    }

    /// Token ids of a text, with the special tokens that the tokenizer adds itself.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, RuntimeError> {
        self.ids(text, true)
    }

    /// Token ids of a text that goes on behind another: nothing is added at its ends.
    pub fn encode_more(&self, text: &str) -> Result<Vec<i64>, RuntimeError> {
        self.ids(text, false)
    }

    /// Token ids of a text that is read on the way, those of [`Self::encode`].
    pub fn encode_read<R: Read>(&self, text: R) -> Pieces<'_, R> {
        Pieces::new(self, text, true)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<i64>, RuntimeError> {
        let mut ids = Vec::new();
        let mut take = |part: &[u32]| ids.extend(part.iter().map(|&id| i64::from(id)));
        if text.len() <= PIECE {
            let encoding = self.inner.encode_fast(text, add_special).map_err(|e| self.failed(one_line(e)))?;
            take(encoding.get_ids());
            return Ok(ids);
        }
        for piece in Pieces::new(self, text.as_bytes(), add_special) {
            take(&piece.map_err(|error| match error {
                TextError::Tokenizer(error) => error,
                other => self.failed(one_line(other)),
            })?);
        }
        Ok(ids)
    }

    /// A text's tokens with their places in it.
    pub(crate) fn encoding(&self, text: &str, add_special: bool) -> Result<Encoding, RuntimeError> {
        self.inner.encode(text, add_special).map_err(|e| self.failed(one_line(e)))
    }

    /// The text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[i64]) -> Result<String, RuntimeError> {
        let ids = ids.iter().map(|&id| self.id(id)).collect::<Result<Vec<u32>, _>>()?;
        self.decode_u32(&ids)
    }

    /// The id of a token written out, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Number of tokens, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Begins to decode ids one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0, context: 0 }
    }

    fn decode_u32(&self, ids: &[u32]) -> Result<String, RuntimeError> {
        self.inner.decode(ids, true).map_err(|e| self.failed(one_line(e)))
    }

    fn id(&self, id: i64) -> Result<u32, RuntimeError> {
        u32::try_from(id).map_err(|_| self.failed(format!("{id} is no token id")))
    }

    fn failed(&self, reason: String) -> RuntimeError {
        RuntimeError::Tokenizer { path: self.path.clone(), reason }
    }
}

/// Decodes ids one at a time into pieces of text that hold whole characters only.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// Ids whose text has been given out.
    shown: usize,
    /// Where the window begins that is decoded again. Decoders treat the start of a text specially, so a piece is
    /// what the window's text gains, with some shown ids before it.
    context: usize,
}

impl TextStream<'_> {
    /// The text that this id completes; empty while a character is unfinished.
    pub fn push(&mut self, id: i64) -> Result<String, RuntimeError> {
        self.ids.push(self.tokenizer.id(id)?);
        let gained = self.gained()?;
        // The bytes of an unfinished character decode to this replacement.
        if gained.is_empty() || gained.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.context = self.shown;
        self.shown = self.ids.len();
        Ok(gained)
    }

    /// What was held back, without a last character that never became whole.
    pub fn finish(self) -> Result<String, RuntimeError> {
        let gained = self.gained()?;
        Ok(gained.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned())
    }

    fn gained(&self) -> Result<String, RuntimeError> {
        let before = self.tokenizer.decode_u32(&self.ids[self.context..self.shown])?;
        let after = self.tokenizer.decode_u32(&self.ids[self.context..])?;
        Ok(after.get(before.len()..).unwrap_or_default().to_owned())
    }
}
