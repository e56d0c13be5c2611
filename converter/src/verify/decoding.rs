//! The decoders that `generate` runs, against the plain form: prompts in segments, and token by token.

use super::measure::{median_error, relative_error};
use super::oracle::{self, Rounding};
use super::table::{Comparison, Measure};
use super::{Verifier, VerifyError, read_back, word};
use crate::serving;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::serving::Device;
use dijiang_runtime::{Engine, RuntimeError, Serving, ServingOptions};

/// What one decoder is called in rows: how it takes prompts, and tokens.
struct Fed {
    engine: Engine,
    prompts: &'static str,
    tokens: &'static str,
}

const AS_GENERATED: Fed = Fed {
    engine: Engine::Ort,
    prompts: "prompts as `generate` feeds them",
    tokens: "tokens as `generate` feeds them",
};
const BOUND: Fed = Fed {
    engine: Engine::OrtBound,
    prompts: "prefill.onnx in segments",
    tokens: "decode.onnx token by token",
};

/// What the median token may be off by in half precision, in roundings of plain operators. With half as much eight
/// fixtures in four recipes and SmolLM2 held, the nearest at three quarters of the limit; the rest is for other models.
pub(super) const ROUNDINGS: f64 = 4.0;

impl Verifier<'_> {
    /// What decodes a bundle token by token, in the arithmetic of the served graph. `names` are the place where it is fed, and
    /// that of the plain form; `reference` holds the logits that the form `plain` gives for all tokens of the prompts, row
    /// after row.
    pub(super) fn as_generated(
        &mut self,
        device: Device,
        names: [&str; 2],
        plain: &str,
        reference: &[f32],
    ) -> Result<(), VerifyError> {
        self.stage(&format!("decoding in {}", names[0]));
        let limit = self.served_limit();
        for Decoded { comparison, found, expected } in
            self.decoded((&AS_GENERATED, device), names, plain, reference)?
        {
            self.push(comparison.logits(limit, &found, &expected));
        }
        Ok(())
    }

    /// The graphs for bound memory; the rest is as in [`as_generated`](Self::as_generated).
    pub(super) fn bound_graphs(
        &mut self,
        device: Device,
        names: [&str; 2],
        plain: &str,
        reference: &[f32],
    ) -> Result<(), VerifyError> {
        let (prefill, decode) = (files::PREFILL, files::DECODE);
        match [prefill, decode].map(|file| self.is_there(file)) {
            [true, true] => {}
            [false, false] if !self.has_bound_graphs() => return Ok(()),
            [is_there, _] => {
                let missing = if is_there { decode } else { prefill };
                self.skip_bound_graphs(names[0], &format!("{missing} is missing"));
                return Ok(());
            }
        }
        self.stage(&format!("serving from bound memory in {}", names[0]));
        let limit = self.bound_limit()?;
        for decoded in self.decoded((&BOUND, device), names, plain, reference)? {
            self.compare_bound(decoded, limit);
        }
        Ok(())
    }

    /// The last tokens of all rows after their prompts, and every token of the longest row.
    fn decoded(
        &self,
        (fed, device): (&Fed, Device),
        [name, plain_in]: [&str; 2],
        plain: &str,
        reference: &[f32],
    ) -> Result<[Decoded; 2], VerifyError> {
        let row = self.prompts.longest();
        let tokens: usize = self.prompts.rows().iter().map(Vec::len).sum();
        let vocab = reference.len() / tokens.max(1);
        let (rows, ends) = beginnings(&self.prompts.rows());
        // The longest row takes two segments, and the states go to and fro.
        let segment = Some(row.len().div_ceil(2));
        let (engine, threads) = (fed.engine, self.threads);
        let options = ServingOptions { engine, device, segment, threads, ..ServingOptions::default() };
        let mut serving = serving::open_any(self.bundle, &options)?;

        let compared = |how: &str, found: Vec<f32>, expected: Vec<f32>| {
            let otherwise = word(plain);
            let subject = format!("{how}, in {name}");
            let comparison = Comparison::new(
                format!("{name}: {how} = {otherwise}"),
                subject,
                format!("{plain} in {plain_in}"),
            );
            Decoded { comparison, found, expected }
        };

        let mut found = Vec::new();
        for rows in rows.chunks(self.prompts.rows_at_once().unwrap_or(rows.len()).max(1)) {
            serving.start(rows.len())?;
            let next = serving.prefill(rows).map(|_| ());
            found.extend(numbers(next, &serving)?);
        }
        let last = ends.iter().flat_map(|end| &reference[(end - 1) * vocab..end * vocab]).copied().collect();
        let prompts = compared(fed.prompts, found, last);

        serving.start(1)?;
        let mut found = Vec::new();
        for token in &row {
            let next = serving.decode(&[*token]).map(|_| ());
            found.extend(numbers(next, &serving)?);
        }
        let tokens = compared(fed.tokens, found, reference[..row.len() * vocab].to_vec());
        Ok([prompts, tokens])
    }

    /// Whether the manifest lists them, or they lie there all the same.
    fn has_bound_graphs(&self) -> bool {
        let is_bound = |file: &str| self.is_there(file) || self.manifest.file(file).is_some();
        is_bound(files::PREFILL) || is_bound(files::DECODE)
    }

    pub(super) fn skip_bound_graphs(&mut self, name: &str, reason: &str) {
        if self.has_bound_graphs() {
            self.skip(format!("{} and {} in {name}", files::PREFILL, files::DECODE), reason);
        }
    }

    /// In half precision the graphs for bound memory round the residuals too, and how far that carries depends on how large the
    /// model's are: the limit is [`ROUNDINGS`] times what rounding every result does to the plain serving graph, as the
    /// next power of two, since last digits differ from machine to machine. None where the interpreter does not know
    /// the graph, or half precision cannot hold it.
    fn bound_limit(&mut self) -> Result<Option<f64>, VerifyError> {
        if self.dtype == DType::F32 {
            return Ok(Some(self.served_limit()));
        }
        self.stage("rounding in f64");
        let row = self.prompts.rounded();
        let path = self.bundle.join(files::MODEL);
        let graph = read_back(&path)?;
        let logits = |rounding| oracle::evaluate(&graph, &path, &row, rounding);
        let (Ok(exact), Ok(rounded)) = (logits(Rounding::Nothing)?, logits(Rounding::Results)?) else {
            return Ok(None);
        };
        let error = median_error(&rounded, &exact, self.prompts.vocab());
        Ok(Some((ROUNDINGS * error).log2().ceil().exp2()).filter(|limit| limit.is_finite()))
    }

    /// In half precision by the median token: a few, whose residuals are the largest, may round ten times further than
    /// others.
    fn compare_bound(&mut self, decoded: Decoded, limit: Option<f64>) {
        let Decoded { comparison, found, expected } = decoded;
        let (comparison, measured) = match self.dtype {
            DType::F32 => (comparison, relative_error(&found, &expected)),
            _ => {
                let measured = median_error(&found, &expected, self.prompts.vocab());
                (comparison.by(Measure::MedianRelativeError), measured)
            }
        };
        self.push(match limit {
            Some(limit) => comparison.within(measured, limit),
            None => comparison.reported(measured).because("the f64 interpreter does not know its rounding"),
        });
    }
}

/// Parts that rows are cut into, for the last tokens of so many prompts: one or two tell a wrong graph from rounding badly.
const PARTS: usize = 4;

/// The first parts of each row, and where they end among the tokens of all rows.
fn beginnings(rows: &[Vec<i64>]) -> (Vec<Vec<i64>>, Vec<usize>) {
    let mut before = 0;
    let mut found = Vec::new();
    for row in rows {
        let lengths = (1..=PARTS).map(|part| (row.len() * part).div_ceil(PARTS));
        found.extend(
            lengths.filter(|length| *length > 0).map(|length| (row[..length].to_vec(), before + length)),
        );
        before += row.len();
    }
    found.into_iter().unzip()
}

/// The logits of a decoder, and those they must be.
struct Decoded {
    comparison: Comparison,
    found: Vec<f32>,
    expected: Vec<f32>,
}

/// The logits after each row's last token. NaN stands for those that are no numbers, of which there is no next token.
fn numbers(fed: Result<(), RuntimeError>, serving: &Serving) -> Result<Vec<f32>, VerifyError> {
    match fed {
        Err(RuntimeError::BadLogits { .. }) => Ok(vec![f32::NAN]),
        fed => {
            fed?;
            Ok(serving.logits()?.to_f32().map_err(RuntimeError::from)?)
        }
    }
}
