//! The runtimes that are here, and a graph in one of them.

use dijiang_format::manifest::Manifest;
use dijiang_passes::numeric::random::Random;
use dijiang_runtime::{Decoder, HostDecoder, HostTensor, LoadOptions, OrtRuntime, Runtime, TractRuntime};
use std::path::Path;
use std::sync::Once;

/// Said once, not at every one of some hundred skips.
static SAID: Once = Once::new();

/// ONNX Runtime, where it is there. It may be missing unless `DIJIANG_REQUIRE_ORT` is 1.
pub(crate) fn ort() -> Option<Box<dyn Runtime>> {
    match OrtRuntime::new() {
        Ok(runtime) => Some(Box::new(runtime)),
        Err(e) if std::env::var("DIJIANG_REQUIRE_ORT").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => {
            SAID.call_once(|| eprintln!("skipped everything in ONNX Runtime: {e}"));
            None
        }
    }
}

/// Every runtime that is here.
pub(crate) fn engines() -> Vec<Box<dyn Runtime>> {
    let tract: Box<dyn Runtime> = Box::new(TractRuntime);
    ort().into_iter().chain([tract]).collect()
}

/// Seeded token ids. They have no more structure than the random weights of the fixtures.
pub(crate) fn prompt(manifest: &Manifest, length: usize, name: &str) -> Vec<i64> {
    let mut random = Random::named(11, name);
    (0..length).map(|_| (random.next_u64() % manifest.model.vocab) as i64).collect()
}

/// Where a row is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A loaded graph. Logits come token after token, without those of padding.
pub(crate) struct Model {
    pub(crate) decoder: HostDecoder,
}

impl Model {
    pub(crate) fn load(engine: &dyn Runtime, file: &Path) -> Self {
        // The runtimes are checked here, not their opinion of what is released.
        let options = LoadOptions { released_opsets_only: false, ..LoadOptions::default() };
        Self::load_with(engine, file, &options)
    }

    pub(crate) fn load_with(engine: &dyn Runtime, file: &Path, options: &LoadOptions) -> Self {
        // One thread: the models are tiny, and tests run side by side.
        let options = LoadOptions { threads: Some(1), ..options.clone() };
        let session = engine.load(file, &options).unwrap_or_else(|e| panic!("{e}"));
        Self { decoder: HostDecoder::new(session).unwrap_or_else(|e| panic!("{e}")) }
    }

    /// One row in one call.
    pub(crate) fn whole(&mut self, row: &[i64]) -> Vec<f64> {
        self.portions(row, &[row.len()])
    }

    /// One row, a token at a time.
    pub(crate) fn stepwise(&mut self, row: &[i64]) -> Vec<f64> {
        self.portions(row, &vec![1; row.len()])
    }

    /// One row, so many tokens at a time, from an empty state.
    pub(crate) fn portions(&mut self, row: &[i64], portions: &[usize]) -> Vec<f64> {
        self.reset(1);
        let mut rest = row;
        let mut logits = Vec::new();
        for portion in portions {
            let (now, later) = rest.split_at(*portion);
            logits.extend(self.feed(now));
            rest = later;
        }
        assert!(rest.is_empty(), "the portions do not add up to the row");
        logits
    }

    /// More tokens of one row, after what was fed before.
    pub(crate) fn feed(&mut self, tokens: &[i64]) -> Vec<f64> {
        numbers(&self.decoder.feed(&[tokens.to_vec()], None).unwrap_or_else(|e| panic!("{e}")))
    }

    /// More tokens of every row of a batch, equally many; the logits of each row.
    pub(crate) fn feed_batch(&mut self, tokens: &[Vec<i64>]) -> Vec<Vec<f64>> {
        let all = numbers(&self.decoder.feed(tokens, None).unwrap_or_else(|e| panic!("{e}")));
        all.chunks_exact(all.len() / tokens.len()).map(<[f64]>::to_vec).collect()
    }

    /// Rows of unequal length as one batch, padded at one side; the logits of each row.
    pub(crate) fn padded(&mut self, rows: &[Vec<i64>], side: Side) -> Vec<Vec<f64>> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let fill = |row: &[i64]| -> Vec<i64> {
            let padding = vec![0; longest - row.len()];
            if side == Side::Left { [&padding, row].concat() } else { [row, &padding].concat() }
        };
        let ids: Vec<Vec<i64>> = rows.iter().map(|row| fill(row)).collect();
        let mask: Vec<Vec<i64>> = rows.iter().map(|row| fill(&vec![1; row.len()])).collect();
        self.reset(rows.len());
        let all = numbers(&self.decoder.feed(&ids, Some(&mask)).unwrap_or_else(|e| panic!("{e}")));
        let vocab = all.len() / (longest * rows.len());
        let real = |(row, mask): (&[f64], &Vec<i64>)| {
            let tokens = row.chunks_exact(vocab).zip(mask).filter(|(_, m)| **m == 1);
            tokens.flat_map(|(logits, _)| logits.to_vec()).collect()
        };
        all.chunks_exact(longest * vocab).zip(&mask).map(real).collect()
    }

    pub(crate) fn reset(&mut self, batch: usize) {
        self.decoder.start(batch).unwrap_or_else(|e| panic!("{e}"));
    }
}

fn numbers(tensor: &HostTensor) -> Vec<f64> {
    let values = tensor.to_f32().unwrap_or_else(|e| panic!("{e}"));
    values.into_iter().map(f64::from).collect()
}
