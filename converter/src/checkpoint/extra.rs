//! Tensors in the files that the family did not ask for. A model with a tensor more computes something else, so they are
//! refused, unless they lie outside the model or are known to change nothing.

use super::error::{CheckpointError, SHOWN, listed};
use super::families::Family;
use super::weights::{Stored, Weights};
use dijiang_format::names::TABLES;
use dijiang_passes::feature_map::added;
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
    Buffer { end: "attn.bias", ranks: &[4] },
    Buffer { end: "attn.masked_bias", ranks: &[0, 1] },
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

/// The modules that a model's tensors belong to, by the first part of their names.
struct Inside<'a> {
    roots: BTreeSet<&'a str>,
    /// Whether the files are those of a base model, which leave its name out: any tensor may be one of it.
    is_bare: bool,
}

impl<'a> Inside<'a> {
    fn of(asked: &Asked<'a>) -> Self {
        let mut roots: BTreeSet<&str> = asked.names.iter().map(|name| root(name)).collect();
        let base = root(asked.family.base_prefix);
        let is_bare = roots.iter().any(|root| *root != base && *root != asked.head);
        roots.insert(asked.head);
        Self { roots, is_bare }
    }

    fn has(&self, name: &str) -> bool {
        self.is_bare || self.roots.contains(root(name))
    }
}

fn root(name: &str) -> &str {
    name.split_once('.').map_or(name, |(root, _)| root)
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
    let (mut copies, mut outside, mut inside) = (Names::default(), Names::default(), Names::default());
    let head = format!("{}.weight", asked.head);
    let model = Inside::of(asked);
    for (name, stored) in weights.stored() {
        // A conversion added these, as in a bundle.
        let is_added = added::is_added(name) || name.starts_with(TABLES);
        if is_added || asked.names.contains(name) {
            continue;
        }
        match asked.table {
            Some(table) if name == head => {
                check_copy(weights, (name, stored), table)?;
                copies.add(name);
            }
            _ if is_buffer(name, stored) => copies.add(name),
            _ if model.has(name) => inside.add(&weights.name_in_file(name)),
            _ => outside.add(name),
        }
    }
    let place = weights.place();
    if inside.count > 0 {
        let Names { first: names, count } = inside;
        let family = asked.family.name;
        return Err(CheckpointError::ExtraTensors { place: place.to_owned(), family, names, count });
    }
    let kinds =
        [(copies, "not read, as they change nothing"), (outside, "not read, as they lie outside the model")];
    let kinds = kinds.into_iter().filter(|(names, _)| names.count > 0);
    let told = |(Names { first, count }, why): (Names, &str)| {
        format!("{}: {}: {why}", place.display(), listed(&first, count))
    };
    Ok(kinds.map(told).collect())
}

/// Whether it is one that the model's code makes anew.
pub(super) fn is_buffer(name: &str, stored: &Stored) -> bool {
    let rank = stored.tensor.as_ref().map(|tensor| tensor.dims().len());
    let is_named =
        |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    BUFFERS.iter().any(|b| is_named(b.end) && rank.as_ref().is_ok_and(|rank| b.ranks.contains(rank)))
}

/// A tied output projection may be stored again, number by number: any other would be left out.
fn check_copy(
    weights: &Weights,
    (name, stored): (&str, &Stored),
    table: &str,
) -> Result<(), CheckpointError> {
    let copy = stored.tensor.as_ref().ok();
    let original = weights.get_key(table).and_then(|(_, stored)| stored.tensor.as_ref().ok());
    let same = copy
        .zip(original)
        .is_some_and(|(a, b)| (a.dtype(), a.dims()) == (b.dtype(), b.dims()) && a.bytes() == b.bytes());
    if same {
        return Ok(());
    }
    Err(CheckpointError::Untied {
        place: weights.file_of(stored).to_owned(),
        tensor: name.to_owned(),
        tied: table.to_owned(),
    })
}
