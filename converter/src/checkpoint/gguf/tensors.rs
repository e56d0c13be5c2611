//! The tensors of a GGUF file under the names and in the forms of transformers.

use super::architectures::{Architecture, How, Module};
use super::config::Draft;
use super::elements::{self, Change, Rows};
use super::error::GgufError;
use super::header::{Header, Raw};
use super::kinds;
use crate::checkpoint::error::{CheckpointError, SHOWN};
use dijiang_format::words::counted;
use dijiang_passes::ir::tensor::Tensor;
use std::collections::BTreeMap;

/// The heads of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    heads: usize,
    kv_heads: usize,
}

impl Heads {
    pub(super) fn of(draft: &Draft<'_>) -> Self {
        let sizes = draft.architecture.sizes;
        let heads = draft.size(sizes.heads) as usize;
        Self { heads, kv_heads: sizes.kv_heads.map_or(heads, |key| draft.size(key) as usize) }
    }
}

/// Every tensor that the architecture has a place for, by the name that transformers gives it.
pub(super) fn all(
    header: &Header,
    architecture: &'static Architecture,
    heads: Heads,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut found = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, raw) in &header.tensors {
        match Place::of(architecture, name) {
            None => unknown.push(name.clone()),
            Some(place) => found.extend(place.tensors(header, (name, raw), heads)?),
        }
    }
    if unknown.is_empty() {
        return Ok(found);
    }
    let (path, count) = (header.path.clone(), unknown.len());
    unknown.truncate(SHOWN);
    Err(GgufError::Unknown { path, architecture: architecture.name, names: unknown, count }.into())
}

/// More than any model has.
const MOST_HEADS: u64 = 1 << 16;

/// Where a tensor belongs.
pub(super) struct Place<'a> {
    pub(super) module: &'static Module,
    /// `model.layers.0.`
    prefix: String,
    /// `weight` or `bias`
    part: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn of(architecture: &'static Architecture, name: &'a str) -> Option<Self> {
        let (module, part) = name.rsplit_once('.')?;
        if part != "weight" && part != "bias" {
            return None;
        }
        let named = |modules: &'static [Module], name: &str| modules.iter().find(|m| m.gguf == name);
        let Some(inner) = module.strip_prefix("blk.") else {
            let module = named(architecture.top, module)?;
            return Some(Self { module, prefix: String::new(), part });
        };
        let (layer, module) = inner.split_once('.')?;
        // A number as it is written, and in no other way.
        let layer = layer.parse::<u64>().ok().filter(|number| number.to_string() == layer)?;
        let module = named(architecture.layer, module)?;
        Some(Self { module, prefix: format!("{}.{layer}.", architecture.layers), part })
    }

    pub(super) fn tensors(
        &self,
        header: &Header,
        (name, raw): (&str, &Raw),
        heads: Heads,
    ) -> Result<Vec<(String, Tensor)>, CheckpointError> {
        let full = format!("{}{}.{}", self.prefix, self.module.name, self.part);
        let make = |dims: Vec<u64>, change: Change| {
            elements::tensor(&header.bytes, raw, dims, change).ok_or_else(|| not_read(header, (name, raw)))
        };
        if raw.kind.dtype().is_none() {
            return Err(not_read(header, (name, raw)));
        }
        match self.module.how {
            How::NotRead => Ok(Vec::new()),
            How::PerHead => {
                let [count, size] = raw.dims[..] else {
                    return Err(bad(
                        header,
                        name,
                        format!("has shape {:?}; expected one row for each head", raw.dims),
                    ));
                };
                let of_head = |head: u64| {
                    let rows = Rows::From(head as usize);
                    let tensor = make(vec![1, size], Change { rows, ..Change::NONE })?;
                    let tensor =
                        tensor.with_dims(vec![size]).map_err(|e| bad(header, name, e.to_string()))?;
                    Ok((full.replace("{head}", &head.to_string()), tensor))
                };
                if count > MOST_HEADS {
                    return Err(bad(header, name, format!("has {count} rows; expected one for each head")));
                }
                (0..count).map(of_head).collect()
            }
            how => {
                let change = self.change(how, heads);
                let are_rows = raw.dims.len() == 2 || raw.dims.len() == 1 && !raw.kind.is_quantised();
                let rows = raw.dims.first().copied().filter(|_| are_rows).unwrap_or_default();
                if !change.rows.fit(rows as usize) {
                    let Heads { heads, kv_heads } = heads;
                    let (heads, kv_heads) = (counted(heads, "head"), counted(kv_heads, "key/value head"));
                    let problem = format!("has {rows} rows, which are not those of {heads} and {kv_heads}");
                    return Err(bad(header, name, problem));
                }
                let mut dims = raw.dims.clone();
                if change.transposed {
                    dims.reverse();
                }
                Ok(vec![(full, make(dims, change)?)])
            }
        }
    }

    fn change(&self, how: How, Heads { heads, kv_heads }: Heads) -> Change {
        let rows = match how {
            How::Queries => Rows::Halves { heads },
            How::Keys => Rows::Halves { heads: kv_heads },
            How::Groups => Rows::Groups { heads, kv_heads },
            _ => Rows::Same,
        };
        let is_weight = self.part == "weight";
        Change {
            rows,
            less_one: how == How::OneMore && is_weight,
            transposed: how == How::Transposed && is_weight,
        }
    }
}

fn bad(header: &Header, tensor: &str, problem: String) -> CheckpointError {
    GgufError::Tensor { path: header.path.clone(), tensor: tensor.to_owned(), problem }.into()
}

fn not_read(header: &Header, (tensor, raw): (&str, &Raw)) -> CheckpointError {
    let (path, tensor) = (header.path.clone(), tensor.to_owned());
    GgufError::TensorType { path, tensor, found: raw.kind.name.to_owned(), read: kinds::read() }.into()
}

/// What is to be told of numbers that were quantised.
pub(super) fn note(header: &Header) -> Option<String> {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for raw in header.tensors.values().filter(|raw| raw.kind.is_quantised()) {
        *kinds.entry(raw.kind.name).or_default() += 1;
    }
    if kinds.is_empty() {
        return None;
    }
    let told: Vec<String> =
        kinds.iter().map(|(kind, count)| format!("{} of {kind}", counted(*count, "tensor"))).collect();
    let place = header.path.display();
    Some(format!(
        "{place}: {} were quantised, and are read as the f32 numbers that they stand for (hint: --dtype f16 stores them in half the room; --weights int4 quantises them again)",
        told.join(", ")
    ))
}
