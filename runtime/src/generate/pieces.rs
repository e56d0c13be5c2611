//! A text of any length to token ids, piece by piece: memory is that of a piece, and the ids are those of the whole text.
//!
//! What a tokenizer makes of a place depends on the text around it, but not on all of it. So neighbouring pieces overlap,
//! and they are joined in the overlap, where both say the same of the tokens around: what the cut did at the end of one
//! and at the beginning of the other has died away there. Where they agree nowhere, as in a number of a million digits,
//! the piece grows until they do.

use std::io::Read;

use crate::generate::text::Tokenizer;
use crate::session::error::RuntimeError;

pub(crate) const PIECE: usize = 1 << 16;
const OVERLAP: usize = 1 << 12;
/// Tokens that must be the same before and behind a join between two words; and inside of one, for tokenizers that do
/// not split a text into words, where a merge reaches further.
const AROUND: usize = 8;
const AROUND_IN_WORD: usize = 64;

/// A text cannot be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it is not UTF-8 text")]
    NotText,
    #[error(transparent)]
    Tokenizer(#[from] RuntimeError),
}

/// Token ids of a text that is read on the way, some at a time. A text of no bytes has none.
#[derive(Debug)]
pub struct Pieces<'t, R> {
    tokenizer: &'t Tokenizer,
    text: Utf8<R>,
    sizes: Sizes,
    /// Whether the tokenizer's own tokens are added at the ends.
    ends: bool,
    /// Those of the end, once those of the beginning were given out.
    end: Option<Vec<u32>>,
    /// The piece whose tokens are given out next.
    piece: Option<Piece>,
    done: bool,
}

/// Bytes of a piece, and how many of them the next one begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    piece: usize,
    overlap: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { piece: PIECE, overlap: OVERLAP }
    }
}

#[derive(Debug)]
struct Piece {
    text: String,
    /// Where it begins in the whole text.
    begin: usize,
    tokens: Vec<Token>,
    /// How many of them the piece before gave out.
    given: usize,
}

/// A token, and its place in the whole text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: u32,
    start: usize,
    end: usize,
    /// Whether it is the first of a word, as the tokenizer splits them.
    begins_word: bool,
}

impl<'t, R: Read> Pieces<'t, R> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, text: R, ends: bool) -> Self {
        let text = Utf8 { inner: text, rest: Vec::new(), is_over: false };
        Self { tokenizer, text, sizes: Sizes::default(), ends, end: None, piece: None, done: false }
    }

    fn advance(&mut self) -> Result<Option<Vec<u32>>, TextError> {
        let mut piece = match self.piece.take() {
            Some(piece) => piece,
            None => {
                let mut text = String::new();
                self.text.read_into(&mut text, self.sizes.piece)?;
                if text.is_empty() || self.text.is_over {
                    self.done = true;
                    let whole = || Ok(self.tokenizer.encoding(&text, self.ends)?.get_ids().to_vec());
                    return (!text.is_empty()).then(whole).transpose();
                }
                self.encode(text, 0)?
            }
        };
        let mut ids = self.beginning(&piece)?;
        let mut more = self.sizes.piece;
        while !self.text.is_over {
            let cut = piece.text.floor_char_boundary(piece.text.len().saturating_sub(self.sizes.overlap));
            let mut text = piece.text[cut..].to_owned();
            let overlap = text.len();
            self.text.read_into(&mut text, more)?;
            let next = self.encode(text, piece.begin + cut)?;
            if let Some((here, there)) = join(&piece, &next) {
                ids.extend(piece.tokens[piece.given..here].iter().map(|token| token.id));
                self.piece = Some(Piece { given: there, ..next });
                return Ok(Some(ids));
            }
            let Piece { text, begin, given, .. } = piece;
            piece = Piece { given, ..self.encode(text + &next.text[overlap..], begin)? };
            ids.extend(self.beginning(&piece)?);
            // What is encoded again doubles each time, so that all of it stays a multiple of the text.
            more = piece.text.len();
        }
        self.done = true;
        ids.extend(piece.tokens[piece.given..].iter().map(|token| token.id));
        match &self.end {
            Some(end) => ids.extend(end),
            // Nothing in the text is a token.
            None => ids.extend(self.tokenizer.encoding("", self.ends)?.get_ids()),
        }
        Ok(Some(ids))
    }

    /// The tokenizer's tokens in front of the text, once there is one of the text to tell them from those behind.
    fn beginning(&mut self, piece: &Piece) -> Result<Vec<u32>, TextError> {
        if !self.ends || self.end.is_some() || piece.tokens.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self.tokenizer.encoding(&piece.text, true)?;
        let (ids, added) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let before = added.iter().take_while(|added| **added == 1).count();
        let behind = added.iter().rev().take_while(|added| **added == 1).count();
        self.end = Some(ids[ids.len() - behind..].to_vec());
        Ok(ids[..before].to_vec())
    }

    fn encode(&self, text: String, begin: usize) -> Result<Piece, TextError> {
        let encoding = self.tokenizer.encoding(&text, false)?;
        let words = encoding.get_word_ids();
        let places = encoding.get_ids().iter().zip(encoding.get_offsets()).enumerate();
        let tokens = places.map(|(at, (id, (start, end)))| Token {
            id: *id,
            start: begin + start,
            end: begin + end,
            begins_word: at == 0 || words[at] != words[at - 1],
        });
        let tokens = tokens.collect();
        Ok(Piece { text, begin, tokens, given: 0 })
    }
}

impl<R: Read> Iterator for Pieces<'_, R> {
    type Item = Result<Vec<u32>, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let found = self.advance();
        self.done |= found.is_err();
        found.transpose()
    }
}

/// Which token of a piece, and which of the next one, the next one goes on from: one that begins at the same place, in the
/// middle half of the overlap, with the same tokens around it.
fn join(piece: &Piece, next: &Piece) -> Option<(usize, usize)> {
    let overlap = piece.begin + piece.text.len() - next.begin;
    let middle = next.begin + overlap / 4..next.begin + overlap - overlap / 4;
    let at = |place: usize| piece.tokens.partition_point(|token| token.start < place);
    let candidates = at(middle.start).max(piece.given)..at(middle.end);
    let pairs = candidates.filter_map(|here| {
        let token = piece.tokens[here];
        let there = next.tokens.partition_point(|other| other.start < token.start);
        // Several tokens may share a character, and so a place.
        let is_first = here > 0 && piece.tokens[here - 1].start < token.start;
        (is_first && next.tokens.get(there) == Some(&token)).then_some((here, there))
    });
    let pairs: Vec<(usize, usize)> = pairs.collect();
    let agree = |(here, there): (usize, usize), around: usize| {
        let part = |tokens: &[Token], at: usize| {
            let begin = at.checked_sub(around)?;
            Some(tokens.get(begin..at + around)?.to_vec())
        };
        part(&piece.tokens, here).is_some_and(|part_here| Some(part_here) == part(&next.tokens, there))
    };
    let mut between_words = pairs.iter().filter(|(here, _)| piece.tokens[*here].begins_word);
    let found = between_words.find(|pair| agree(**pair, AROUND));
    found.or_else(|| pairs.iter().find(|pair| agree(**pair, AROUND_IN_WORD))).copied()
}

/// Text out of bytes that come in any portions.
#[derive(Debug)]
struct Utf8<R> {
    inner: R,
    /// The bytes of a character that is not whole yet.
    rest: Vec<u8>,
    is_over: bool,
}

impl<R: Read> Utf8<R> {
    /// Appends the next characters, of about so many bytes.
    fn read_into(&mut self, text: &mut String, bytes: usize) -> Result<(), TextError> {
        let mut found = std::mem::take(&mut self.rest);
        let read = self.inner.by_ref().take(bytes as u64).read_to_end(&mut found)?;
        self.is_over = read < bytes;
        let whole = match std::str::from_utf8(&found) {
            Ok(_) => found.len(),
            Err(error) if error.error_len().is_none() && !self.is_over => error.valid_up_to(),
            Err(_) => return Err(TextError::NotText),
        };
        self.rest = found.split_off(whole);
        text.push_str(std::str::from_utf8(&found).map_err(|_| TextError::NotText)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tokenizers::models::TrainerWrapper;
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
    use tokenizers::normalizers::{BertNormalizer, Prepend, Replace, Sequence};
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::processors::template::TemplateProcessing;
    use tokenizers::{AddedToken, NormalizerWrapper};

    const SMALL: Sizes = Sizes { piece: 1024, overlap: 512 };

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare").join(name)
    }

    fn learned(mut inner: tokenizers::Tokenizer, mut trainer: TrainerWrapper) -> Tokenizer {
        let text = std::fs::read_to_string(fixture("valid.txt")).unwrap();
        // One line is one word where nothing splits it.
        inner.train(&mut trainer, text.lines().map(|line| format!("{line}\n"))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        inner.save(&path, false).unwrap();
        Tokenizer::load(&path).unwrap()
    }

    fn bpe() -> TrainerWrapper {
        let alphabet = ByteLevel::alphabet().into_iter().collect();
        BpeTrainer::builder().vocab_size(700).initial_alphabet(alphabet).show_progress(false).build().into()
    }

    fn ends(inner: &mut tokenizers::Tokenizer) {
        inner.add_special_tokens(&["<s>", "</s>"].map(|token| AddedToken::from(token, true)));
        let template = TemplateProcessing::builder()
            .try_single("<s> $0 </s>")
            .unwrap()
            .special_tokens(vec![("<s>", 0), ("</s>", 1)])
            .build()
            .unwrap();
        inner.with_post_processor(Some(template));
    }

    /// As GPT-2 and most decoders since: words with the space before them.
    fn byte_level(prefix: bool) -> Tokenizer {
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        ends(&mut inner);
        inner.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
        learned(inner, bpe())
    }

    /// As Llama 2: nothing is split, and the text begins with a mark.
    fn unsplit() -> Tokenizer {
        let mut inner = tokenizers::Tokenizer::new(BPE::builder().byte_fallback(true).build().unwrap());
        ends(&mut inner);
        let normalizers: Vec<NormalizerWrapper> =
            vec![Prepend::new("▁".into()).into(), Replace::new(" ", "▁").unwrap().into()];
        inner.with_normalizer(Some(Sequence::new(normalizers)));
        learned(inner, bpe())
    }

    /// As BERT: lower case, whitespace dropped, and parts of words.
    fn word_piece() -> Tokenizer {
        let mut inner =
            tokenizers::Tokenizer::new(WordPiece::builder().unk_token("[UNK]".into()).build().unwrap());
        ends(&mut inner);
        inner.with_normalizer(Some(BertNormalizer::default()));
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        let unknown = vec![AddedToken::from("[UNK]", true)];
        let trainer =
            WordPieceTrainer::builder().vocab_size(500).special_tokens(unknown).show_progress(false);
        learned(inner, TrainerWrapper::from(trainer.build()))
    }

    /// Texts that are hard to cut.
    fn texts() -> Vec<String> {
        let play = std::fs::read_to_string(fixture("valid.txt")).unwrap();
        let mut state = 1_u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let parts = [
            "the",
            " ",
            "  ",
            "\n",
            "\r\n",
            "king's",
            "3141592653",
            "é",
            "日本",
            "👩‍👩‍👧",
            "e\u{301}",
            "<s>",
            "!?...",
            "\t",
            "aaaa",
        ];
        let mixed: String = (0..4000).map(|_| parts[random(parts.len())]).collect();
        vec![
            play[..12_000].to_owned(),
            play[..12_000].replace(['\n', ' '], ""),
            mixed,
            " ".repeat(5000) + "end" + &"\n".repeat(5000),
            "a".repeat(7001),
            "0123456789".repeat(600),
            "日本語のテキスト".repeat(300),
            format!("{}{}{}", &play[..3000], "=".repeat(4001), &play[..3000]),
        ]
    }

    fn pieces<R: Read>(tokenizer: &Tokenizer, text: R, sizes: Sizes) -> Vec<Vec<u32>> {
        Pieces { sizes, ..Pieces::new(tokenizer, text, true) }.map(Result::unwrap).collect()
    }

    #[test]
    fn tokens_are_those_of_the_whole_text() {
        let character = Tokenizer::load(&fixture("tokenizer.json")).unwrap();
        let all = [
            ("bytes", character),
            ("byte level", byte_level(false)),
            ("byte level with a space in front", byte_level(true)),
            ("unsplit", unsplit()),
            ("word piece", word_piece()),
        ];
        for (name, tokenizer) in &all {
            for (number, text) in texts().iter().enumerate() {
                let whole = tokenizer.encoding(text, true).unwrap().get_ids().to_vec();
                let found = pieces(tokenizer, text.as_bytes(), SMALL);
                assert!(found.concat() == whole, "{name}, text {number}");
                if number == 0 {
                    assert!(found.len() > 10, "{name}: {} pieces", found.len());
                }
            }
        }
    }

    #[test]
    fn a_long_text_is_encoded_in_pieces_of_the_size_that_is_used() {
        let tokenizer = byte_level(false);
        let text = std::fs::read_to_string(fixture("train.txt")).unwrap();
        let whole = tokenizer.encoding(&text, true).unwrap().get_ids().to_vec();
        assert!(pieces(&tokenizer, text.as_bytes(), Sizes::default()).len() > 2);
        let ids: Vec<u32> = tokenizer.encode(&text).unwrap().into_iter().map(|id| id as u32).collect();
        assert_eq!(ids, whole);
        let more = tokenizer.encode_more(&text).unwrap();
        assert_eq!(more.len() + 2, whole.len());
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test says what it leaves out")]
    fn tokens_of_a_published_tokenizer_are_those_of_the_whole_text() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let path = shared.join("models/smollm2-135m/tokenizer.json");
        let Ok(text) = std::fs::read_to_string(shared.join("data/wikitext2_valid.txt")) else {
            eprintln!("skipped: shared/ is not there");
            return;
        };
        let tokenizer = Tokenizer::load(&path).unwrap();
        for text in [text.clone(), text.replace('\n', " ")] {
            let whole = tokenizer.encoding(&text, true).unwrap().get_ids().to_vec();
            for sizes in [SMALL, Sizes::default()] {
                assert!(pieces(&tokenizer, text.as_bytes(), sizes).concat() == whole);
            }
        }
    }

    /// A text without an end.
    struct Endless {
        given: usize,
    }

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let line = b"Endless are the words of kings, and short the days. ";
            for byte in &mut *buffer {
                *byte = line[self.given % line.len()];
                self.given += 1;
            }
            Ok(buffer.len())
        }
    }

    #[test]
    fn no_more_is_read_and_held_than_a_piece() {
        let tokenizer = byte_level(false);
        let mut pieces = Pieces::new(&tokenizer, Endless { given: 0 }, true);
        let mut tokens = 0;
        for number in 1..20 {
            tokens += pieces.next().unwrap().unwrap().len();
            assert!(pieces.text.inner.given <= (number + 1) * PIECE, "{} bytes", pieces.text.inner.given);
            let held = pieces.piece.as_ref().unwrap().text.len();
            assert!(held <= PIECE + OVERLAP, "{held} bytes");
        }
        assert!(tokens > 18 * PIECE / 8, "{tokens}");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let tokenizer = Tokenizer::load(&fixture("tokenizer.json")).unwrap();
        let refused = |bytes: &[u8]| {
            let mut pieces = Pieces { sizes: SMALL, ..Pieces::new(&tokenizer, bytes, true) };
            let found = pieces.find_map(Result::err);
            assert!(pieces.next().is_none());
            matches!(found, Some(TextError::NotText))
        };
        assert!(refused(&[0xff]) && refused("é".as_bytes().split_last().unwrap().1));
        assert!(refused(&[vec![b'a'; 3000], vec![0xc3]].concat()));
        // A character on the edge of two reads is whole.
        assert!(
            !refused("é".repeat(1500).as_bytes())
                && !refused(&["a".repeat(1023), "日".into()].concat().into_bytes())
        );
        assert!(pieces(&tokenizer, &b""[..], SMALL).is_empty());
    }
}
