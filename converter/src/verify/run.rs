//! One graph of a bundle in one runtime, fed in different portions.

use super::VerifyError;
use super::prompts::{Padded, Prompts, padded};
use super::reference::real_tokens;
use dijiang_format::files;
use dijiang_runtime::{Decoder, DimSpec, HostDecoder, HostTensor, LoadOptions, Runtime};
use std::path::Path;

/// A loaded graph. Logits come back as f32, token after token, padding left out.
pub(super) struct Model {
    decoder: HostDecoder,
    file: String,
    counts: bool,
}

impl Model {
    /// `counts` tells that the graph counts the tokens of a row from its beginning: rows are padded behind.
    pub(super) fn load(
        runtime: &dyn Runtime,
        path: &Path,
        options: &LoadOptions,
        counts: bool,
    ) -> Result<Self, VerifyError> {
        let session = runtime.load(path, options)?;
        Ok(Self { decoder: HostDecoder::new(session)?, file: path.display().to_string(), counts })
    }

    /// Where rows may be padded: left, and not.
    pub(super) fn sides(&self) -> &'static [bool] {
        if self.counts { &[false] } else { &[true, false] }
    }

    /// All prompts as one batch, the short row padded at the left where the graph allows it.
    pub(super) fn whole(&mut self, prompts: &Prompts) -> Result<Vec<f32>, VerifyError> {
        // Before feeding, as a runtime would fail on ids that are not in its table in words of its own.
        self.check_width(self.declared_width().unwrap_or(prompts.vocab()), prompts)?;
        let rows = prompts.rows();
        let logits = self.padded(&rows, !self.counts)?;
        self.check_width(logits.len() / rows.iter().map(Vec::len).sum::<usize>(), prompts)?;
        Ok(logits)
    }

    /// The width of the logits, where the graph fixes it.
    fn declared_width(&self) -> Option<usize> {
        let logits = self.decoder.session().outputs().iter().find(|io| io.name == "logits")?;
        match logits.shape.last()? {
            DimSpec::Fixed(width) => Some(*width),
            DimSpec::Dynamic(_) => None,
        }
    }

    fn check_width(&self, width: usize, prompts: &Prompts) -> Result<(), VerifyError> {
        if width == prompts.vocab() {
            return Ok(());
        }
        let (manifest, vocab) = (files::MANIFEST, prompts.vocab());
        let reason = format!(
            "its logits are {width} wide, but `vocab` in {manifest} is {vocab} (hint: convert the model anew)"
        );
        Err(VerifyError::Model { file: self.file.clone(), reason })
    }

    /// One row alone.
    pub(super) fn row(&mut self, row: &[i64]) -> Result<Vec<f32>, VerifyError> {
        self.in_portions(row, &[row.len()])
    }

    /// One row, so many tokens at a time.
    pub(super) fn in_portions(&mut self, row: &[i64], portions: &[usize]) -> Result<Vec<f32>, VerifyError> {
        self.decoder.start(1)?;
        let mut logits = Vec::new();
        let mut rest = row;
        for portion in portions {
            let (now, later) = rest.split_at(*portion);
            let out = self.decoder.feed(&[now.to_vec()], None)?;
            logits.extend(self.numbers(&out)?);
            rest = later;
        }
        Ok(logits)
    }

    /// Rows of unequal length as one batch, padded at one side.
    pub(super) fn padded(&mut self, rows: &[Vec<i64>], left: bool) -> Result<Vec<f32>, VerifyError> {
        let Padded { ids, mask } = padded(rows, left);
        self.masked(&ids, &mask)
    }

    /// A batch with its padding marked by zeros of the mask.
    pub(super) fn masked(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Result<Vec<f32>, VerifyError> {
        self.decoder.start(ids.len())?;
        let out = self.decoder.feed(ids, Some(mask))?;
        let vocab = out.shape().last().copied().unwrap_or(1);
        Ok(real_tokens(&self.numbers(&out)?, mask, vocab))
    }

    pub(super) fn state_bytes(&self) -> usize {
        self.decoder.state_bytes()
    }

    pub(super) fn grows(&self) -> bool {
        self.decoder.grows()
    }

    fn numbers(&self, tensor: &HostTensor) -> Result<Vec<f32>, VerifyError> {
        tensor.to_f32().map_err(|e| VerifyError::Model { file: self.file.clone(), reason: e.to_string() })
    }
}
