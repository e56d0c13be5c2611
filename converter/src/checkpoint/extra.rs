//! Tensors in the files that the family did not ask for. A model with a tensor more computes something else, so they are
//! refused, unless they lie outside the model or are known to change nothing.

use super::error::{CheckpointError, SHOWN, listed};
use super::families::Family;
use super::weights::{Stored, Weights};
use dijiang_passes::attention::lower::grouped::TABLES;
use dijiang_passes::attention::rewrite::is_new;
use std::collections::BTreeSet;

/// Tensors that the model's code makes anew, and that old versions of it saved with the weights. The rank tells them
/// from a parameter of that name.
struct Buffer {
    end: &'static str,
    ranks: &'static [usize],
}

const BUFFERS: &[Buffer] = &[
    Buffer { end: "rotary_emb.inv_freq", ranks: &[1] },
    Buffer { end: "position_ids", ranks: &[1, 2] },
    // The causal mask, and what it closes with.
    Buffer { end: "attention.bias", ranks: &[4] },
    Buffer { end: "attention.masked_bias", ranks: &[0, 1] },
];

/// What the family asked for.
pub(super) struct Asked<'a> {
    pub(super) family: &'static Family,
    /// As the files name them.
    pub(super) names: &'a BTreeSet<&'a str>,
    /// The module of the output projection.
    pub(super) head: &'a str,
    /// The table that it is tied to, as the files name it.
    pub(super) table: Option<&'a str>,
}

impl Asked<'_> {
    /// Whether a tensor of this name belongs to the model: to one of its modules, or, in the files of a base model,
    /// which leave the name of that out, to anything.
    fn is_inside(&self, name: &str) -> bool {
        let root = |name: &str| name.split('.').next().map(str::to_owned);
        let is_head = |name: &str| root(name).as_deref() == Some(self.head);
        let is_bare = |name: &&str| !name.starts_with(self.family.base_prefix) && !is_head(name);
        is_head(name) || self.names.iter().any(|asked| is_bare(asked) || root(asked) == root(name))
    }
}

/// The first names of a kind, and how many there are.
#[derive(Default)]
struct Names {
    first: Vec<String>,
    count: usize,
}

impl Names {
    fn add(&mut self, name: &str) {
        if self.first.len() < SHOWN {
            self.first.push(name.to_owned());
        }
        self.count += 1;
    }
}

/// Returns what is to be told of the tensors that nobody asked for.
pub(super) fn check(weights: &Weights, asked: &Asked<'_>) -> Result<Vec<String>, CheckpointError> {
    let (mut buffers, mut outside, mut inside) = (Names::default(), Names::default(), Names::default());
    let head = format!("{}.weight", asked.head);
    for (name, stored) in weights.stored() {
        // A conversion added these, as in a bundle.
        let is_added = is_new(name) || name.starts_with(TABLES);
        if is_added || asked.names.contains(name) {
            continue;
        }
        match asked.table {
            Some(table) if name == head => check_copy(weights, (name, stored), table)?,
            _ if is_buffer(name, stored) => buffers.add(name),
            _ if asked.is_inside(name) => inside.add(name),
            _ => outside.add(name),
        }
    }
    let place = weights.place();
    if inside.count > 0 {
        let Names { first: names, count } = inside;
        let family = asked.family.name;
        return Err(CheckpointError::ExtraTensors { place: place.to_owned(), family, names, count });
    }
    let kinds = [(buffers, "not read, as they change nothing"), (outside, "not read, as they lie outside the model")];
    let kinds = kinds.into_iter().filter(|(names, _)| names.count > 0);
    let told = |(Names { first, count }, why): (Names, &str)| {
        format!("{}: {}: {why}", place.display(), listed(&first, count))
    };
    Ok(kinds.map(told).collect())
}

fn is_buffer(name: &str, stored: &Stored) -> bool {
    let rank = stored.tensor.as_ref().map(|tensor| tensor.dims().len());
    let is_named = |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    BUFFERS.iter().any(|b| is_named(b.end) && rank.as_ref().is_ok_and(|rank| b.ranks.contains(rank)))
}

/// A tied output projection may be stored again, number by number.
fn check_copy(weights: &Weights, (name, stored): (&str, &Stored), table: &str) -> Result<(), CheckpointError> {
    let copy = stored.tensor.as_ref().ok();
    let original = weights.get_key(table).and_then(|(_, stored)| stored.tensor.as_ref().ok());
    let same = copy.zip(original).is_some_and(|(a, b)| {
        (a.dtype(), a.dims()) == (b.dtype(), b.dims()) && a.bytes() == b.bytes()
    });
    if same {
        return Ok(());
    }
    Err(CheckpointError::Untied {
        place: weights.file_of(stored).to_owned(),
        tensor: name.to_owned(),
        tied: table.to_owned(),
    })
}
