//! The token sequences that verification feeds: seeded, and long enough to cross a chunk, and the windows that the model
//! has where they are not too long.

use dijiang_format::manifest::Manifest;
use dijiang_format::names::{IDS, MASK};
use dijiang_format::words::counted;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::numeric::random::Random;
use std::collections::BTreeSet;

/// Two rows of unequal length, or as many and as long as the graph takes.
#[derive(Debug, Clone)]
pub(super) struct Prompts {
    rows: Vec<Vec<i64>>,
    fixed: Fixed,
    vocab: usize,
    chunk: usize,
    /// How many tokens the attentions of the model see that do not see all.
    windows: BTreeSet<usize>,
    positions: Option<usize>,
    /// Whether all rows have one length, as nothing could tell padding from tokens.
    is_even: bool,
}

/// How many rows and tokens a graph takes, where it takes so many and no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) rows: Option<usize>,
    pub(super) tokens: Option<usize>,
}

impl Fixed {
    pub(super) fn of(graph: &Graph) -> Self {
        let size = |input, axis: usize| {
            let shape = graph.value(input).ty.shape.as_deref();
            shape.and_then(|shape| Some(shape.get(axis)?.known()? as usize))
        };
        let ids = graph.input(IDS);
        let first = ids.or_else(|| graph.inputs().first().copied());
        Self { rows: first.and_then(|input| size(input, 0)), tokens: ids.and_then(|input| size(input, 1)) }
    }
}

/// Tokens of the long row beyond a chunk, or a window.
const BEYOND: usize = 6;
/// The longest window that the long row crosses: it is fed token by token, too.
const LONGEST_WINDOW: usize = 256;
/// Tokens of a prompt for the interpreter.
const ORACLE: usize = 5;
/// Tokens whose rounding the interpreter measures. The median of five moves by a factor of two from seed to seed, and tokens
/// with many before them round further.
const ROUNDED: usize = 24;

impl Prompts {
    /// Rows for a bundle: a chunk and a piece of the next, or a window and more, or as many tokens as the model has
    /// positions.
    pub(super) fn new(manifest: &Manifest, seed: u64) -> Self {
        let chunk = manifest.recipe.chunk as usize;
        let windows: BTreeSet<usize> =
            manifest.sites.iter().filter_map(|site| site.window).map(|tokens| tokens as usize).collect();
        let crossed = windows.range(..=LONGEST_WINDOW).next_back().copied().unwrap_or(0);
        let most = chunk.max(crossed) + BEYOND;
        let long = manifest.model.positions.map_or(most, |p| most.min(p as usize)).max(1);
        let short = (long * 3 / 5).max(1);
        let vocab = manifest.model.vocab as usize;
        // Where nothing tells how many ids there are, there is one.
        let ids = manifest.model.vocab.max(1);
        let mut random = Random::named(seed, "prompts");
        let mut row = |n: usize| (0..n).map(|_| (random.next_u64() % ids) as i64).collect();
        let positions = manifest.model.positions.map(|positions| positions as usize);
        let rows = vec![row(long), row(short)];
        Self { rows, fixed: Fixed::default(), vocab, chunk, windows, positions, is_even: false }
    }

    /// The same for a graph that takes so many rows and tokens and no more.
    pub(super) fn fitted(mut self, fixed: Fixed) -> Self {
        self.rows.truncate(fixed.rows.unwrap_or(self.rows.len()));
        if let Some(tokens) = fixed.tokens {
            let long = self.rows.concat();
            let of_length = |at: usize| long.iter().copied().cycle().skip(at).take(tokens).collect();
            self.rows = (0..self.rows.len()).map(of_length).collect();
        }
        self.fixed = fixed;
        self
    }

    /// The same for a graph that takes no mask: rows of one length.
    pub(super) fn even(mut self) -> Self {
        let length = self.rows[0].len();
        let all = self.rows.concat();
        for (at, row) in self.rows.iter_mut().enumerate().skip(1) {
            *row = all.iter().copied().cycle().skip(at).take(length).collect();
        }
        self.is_even = true;
        self
    }

    /// How many rows of unequal length are fed together, where it is not any number.
    pub(super) fn rows_at_once(&self) -> Option<usize> {
        if self.is_even { Some(1) } else { self.fixed.rows }
    }

    /// Why no rows of unequal length are fed together.
    pub(super) fn why_even(&self) -> Option<String> {
        let Fixed { rows, tokens } = self.fixed;
        let of = |count: usize, what: &str| format!("the graph takes exactly {}", counted(count, what));
        let sized = tokens.map(|n| of(n, "token")).or_else(|| rows.map(|n| of(n, "sequence")));
        sized.or_else(|| self.is_even.then(|| format!("the graph takes no {MASK}")))
    }

    pub(super) fn rows(&self) -> Vec<Vec<i64>> {
        self.rows.clone()
    }

    pub(super) fn longest(&self) -> Vec<i64> {
        self.rows[0].clone()
    }

    /// A row of more tokens than so many; none where the model has too few positions.
    pub(super) fn beyond(&self, tokens: usize) -> Option<Vec<i64>> {
        let row = self.rows.iter().flatten().copied().cycle();
        let wanted = tokens + BEYOND;
        self.positions.is_none_or(|positions| wanted <= positions).then(|| row.take(wanted).collect())
    }

    /// For the interpreter.
    pub(super) fn short(&self) -> Vec<i64> {
        self.rows[0][..self.fixed.tokens.unwrap_or(ORACLE).min(self.rows[0].len())].to_vec()
    }

    /// For the interpreter that rounds.
    pub(super) fn rounded(&self) -> Vec<i64> {
        self.rows[0][..self.fixed.tokens.unwrap_or(ROUNDED).min(self.rows[0].len())].to_vec()
    }

    /// Where the long row is split: near its ends, and at the edges of a chunk and of windows.
    pub(super) fn splits(&self) -> Vec<usize> {
        let n = self.rows[0].len();
        let cuts: BTreeSet<usize> =
            [1, self.chunk, n - 1].into_iter().chain(self.windows.iter().copied()).collect();
        cuts.into_iter().filter(|cut| (1..n).contains(cut)).collect()
    }

    /// The windows that no row is longer than.
    pub(super) fn uncrossed(&self) -> Vec<usize> {
        self.windows.range(self.rows[0].len()..).copied().collect()
    }

    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }
}

/// Rows made equally long.
pub(super) struct Padded {
    pub(super) ids: Vec<Vec<i64>>,
    /// 1 for a token and 0 for padding.
    pub(super) mask: Vec<Vec<i64>>,
}

/// Rows of unequal length as one batch, padded at one side.
pub(super) fn padded(rows: &[Vec<i64>], left: bool) -> Padded {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let fill = |row: &[i64]| -> Vec<i64> {
        let padding = vec![0; longest - row.len()];
        if left { [&padding, row].concat() } else { [row, &padding].concat() }
    };
    let ids = rows.iter().map(|row| fill(row)).collect();
    let mask = rows.iter().map(|row| fill(&vec![1; row.len()])).collect();
    Padded { ids, mask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes;
    use dijiang_format::dtype::DType;
    use dijiang_format::manifest::{Model, Site, Source, SourceKind};
    use dijiang_format::target::Target;

    #[test]
    fn a_manifest_without_tokens_or_positions_still_gives_rows() {
        let model = Model { family: "llama".to_owned(), vocab: 0, positions: Some(0), eos: Vec::new() };
        let source = Source {
            kind: SourceKind::Checkpoint,
            dtype: DType::F32,
            files: Vec::new(),
            own_attention: false,
            hub: None,
        };
        let recipe = recipes::load(recipes::DEFAULT).expect("a recipe");
        let manifest = Manifest::new(source, model, recipe, Target::Ort, DType::F32);
        let prompts = Prompts::new(&manifest, 0);
        assert_eq!((prompts.rows(), prompts.splits()), (vec![vec![0], vec![0]], Vec::new()));
    }

    #[test]
    fn a_graph_of_fixed_sizes_is_fed_those() {
        let model = Model { family: "bert".to_owned(), vocab: 9, positions: None, eos: Vec::new() };
        let source = Source {
            kind: SourceKind::Onnx,
            dtype: DType::F32,
            files: Vec::new(),
            own_attention: false,
            hub: None,
        };
        let recipe = recipes::load(recipes::DEFAULT).expect("a recipe");
        let prompts = Prompts::new(&Manifest::new(source, model, recipe, Target::Ort, DType::F32), 0);
        let of = |rows, tokens| {
            let fitted = prompts.clone().fitted(Fixed { rows, tokens });
            let lengths: Vec<usize> = fitted.rows().iter().map(Vec::len).collect();
            (lengths, fitted.short().len(), fitted.why_even().unwrap_or_default())
        };
        assert_eq!(of(None, None), (vec![70, 42], 5, String::new()));
        assert_eq!(of(Some(1), None), (vec![70], 5, "the graph takes exactly 1 sequence".to_owned()));
        assert_eq!(of(None, Some(11)), (vec![11, 11], 11, "the graph takes exactly 11 tokens".to_owned()));
        assert_eq!(of(Some(1), Some(80)).0, [80]);
        let even = prompts.clone().even();
        assert_eq!(even.rows().iter().map(Vec::len).collect::<Vec<_>>(), [70, 70]);
        assert_ne!(even.rows()[0], even.rows()[1]);
        assert_eq!(even.why_even().as_deref(), Some("the graph takes no attention_mask"));
        assert_eq!((even.rows_at_once(), prompts.rows_at_once()), (Some(1), None));
    }

    #[test]
    fn windows_are_crossed_up_to_a_length() {
        let model = Model { family: "mistral".to_owned(), vocab: 9, positions: None, eos: Vec::new() };
        let source = Source {
            kind: SourceKind::Checkpoint,
            dtype: DType::F32,
            files: Vec::new(),
            own_attention: false,
            hub: None,
        };
        let recipe = recipes::load(recipes::DEFAULT).expect("a recipe");
        let manifest = Manifest::new(source, model, recipe, Target::Ort, DType::F32);
        let site = |window| Site {
            name: "h".to_owned(),
            layer: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            lowered: true,
            window,
        };
        let of = |windows: &[Option<u32>]| {
            let sites = windows.iter().map(|window| site(*window)).collect();
            let prompts = Prompts::new(&Manifest { sites, ..manifest.clone() }, 0);
            (prompts.longest().len(), prompts.splits(), prompts.uncrossed())
        };
        assert_eq!(of(&[None]), (70, vec![1, 64, 69], vec![]));
        assert_eq!(of(&[Some(8), None]), (70, vec![1, 8, 64, 69], vec![]));
        assert_eq!(of(&[Some(256), Some(4096)]), (262, vec![1, 64, 256, 261], vec![4096]));
        assert_eq!(of(&[Some(257)]), (70, vec![1, 64, 69], vec![257]));
    }
}
