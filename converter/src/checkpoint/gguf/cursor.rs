//! The head of a GGUF file, read in order. What a file claims of itself costs no memory before its bytes were there.

use super::error::GgufError;
use crate::checkpoint::error::CheckpointError;
use dijiang_passes::ir::tensor::SharedBytes;
use std::path::{Path, PathBuf};

/// Bytes that are fetched at a time.
const STRIP: usize = 64 * 1024;
/// The longest head that is read: the largest vocabularies take a third of it.
const MOST: u64 = 32 << 20;

pub(super) struct Cursor<'a> {
    bytes: &'a SharedBytes,
    path: &'a Path,
    at: u64,
    /// Bytes that were fetched, and where the first of them lies.
    strip: (u64, Vec<u8>),
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a SharedBytes, path: &'a Path) -> Self {
        Self { bytes, path, at: 0, strip: (0, Vec::new()) }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn path(&self) -> PathBuf {
        self.path.to_owned()
    }

    /// Goes back to a byte that was read.
    pub(super) fn rewind(&mut self, at: u64) {
        self.at = at.min(self.at);
    }

    fn size(&self) -> u64 {
        self.bytes.size() as u64
    }

    /// How many bytes there are from here on.
    pub(super) fn left(&self) -> u64 {
        self.size().saturating_sub(self.at)
    }

    pub(super) fn cut(&self, what: &str, wanted: u64) -> CheckpointError {
        let (path, what) = (self.path(), what.to_owned());
        GgufError::Cut { path, what, at: self.at, wanted, size: self.size() }.into()
    }

    pub(super) fn broken(&self, what: &str, found: &str, expected: &str) -> CheckpointError {
        let [what, found, expected] = [what, found, expected].map(str::to_owned);
        GgufError::Broken { path: self.path(), what, at: self.at, found, expected }.into()
    }

    /// The next bytes.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<Vec<u8>, CheckpointError> {
        if count > self.left() {
            return Err(self.cut(what, count));
        }
        if self.at + count > MOST {
            let found = format!("{count} bytes long");
            return Err(self.broken(what, &found, &format!("a head of at most {MOST} bytes in all")));
        }
        let mut out = vec![0; count as usize];
        if count as usize > STRIP {
            self.bytes.read(self.at as usize, &mut out);
            self.check()?;
        } else {
            self.fetch(count as usize)?;
            let from = (self.at - self.strip.0) as usize;
            out.copy_from_slice(&self.strip.1[from..from + count as usize]);
        }
        self.at += count;
        Ok(out)
    }

    /// Whether what was read was there.
    fn check(&self) -> Result<(), CheckpointError> {
        self.bytes.problem().map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Has the strip hold the next so many bytes, which are there.
    fn fetch(&mut self, count: usize) -> Result<(), CheckpointError> {
        let (start, strip) = &mut self.strip;
        let end = *start + strip.len() as u64;
        if self.at >= *start && self.at + count as u64 <= end {
            return Ok(());
        }
        let size = STRIP.min(self.bytes.size() - self.at as usize);
        strip.resize(size, 0);
        self.bytes.read(self.at as usize, strip);
        *start = self.at;
        self.check()
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let bytes = self.take(N as u64, what)?;
        let mut out = [0; N];
        out.copy_from_slice(&bytes);
        Ok(out)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, CheckpointError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, CheckpointError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// How many there are of something: `most` at most, each of at least `least` bytes.
    pub(super) fn count(&mut self, what: &str, (least, most): (u64, u64)) -> Result<u64, CheckpointError> {
        let at = self.at;
        let count = self.u64(what)?;
        let there = self.left() / least;
        if count <= there.min(most) {
            return Ok(count);
        }
        let expected = match there < most {
            true => format!("at most {there}, as the file has {} bytes", self.size()),
            false => format!("at most {most}"),
        };
        let (path, what, found) = (self.path(), what.to_owned(), count.to_string());
        Err(GgufError::Broken { path, what, at, found, expected }.into())
    }

    pub(super) fn text(&mut self, what: &str) -> Result<String, CheckpointError> {
        let length = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes).map_err(|error| {
            let wrong = at + error.utf8_error().valid_up_to() as u64;
            let (path, what) = (self.path(), what.to_owned());
            let (found, expected) = ("no UTF-8".to_owned(), "a text in UTF-8".to_owned());
            GgufError::Broken { path, what, at: wrong, found, expected }.into()
        })
    }
}
