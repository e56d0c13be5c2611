//! How much each token weighs in what an attention reads of another: exactly, whatever the attention is.
//!
//! What an attention reads is linear in the values, whichever features, gates and windows give the weights. So the values are
//! taken out of the graph, the identity is put in their place with all else as it was, and what comes out is the weights:
//! o = A v. The interpreter computes it, in f64.

use crate::bundle::softmax_model::{SoftmaxError, SoftmaxModel};
use crate::bundle::stored_file;
use crate::verify::oracle;
use dijiang_passes::attention::map_graph::{MappedSite, write_maps};
use dijiang_passes::attention::rewrite::RewriteError;
use dijiang_passes::ir::eval::{Array, EvalError, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::tensor::ReadError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the rows of a map times the values may miss of what the attention reads, as a share of the largest number there.
pub const LIMIT: f64 = 1e-6;

/// Which attentions of a bundle are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those of the softmax model in it, with the weights that it has.
    Softmax,
    /// Those that it serves.
    Served,
}

/// The weights of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMap {
    pub layer: usize,
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// `[heads, tokens, tokens]`: of each query the weight of each value.
    pub weights: Vec<f64>,
    /// `[kv_heads, tokens, width]`
    pub values: Vec<f64>,
    /// What was read of the values, `[heads, tokens, width]`.
    pub read: Vec<f64>,
}

/// There are no maps of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(transparent)]
    Softmax(#[from] SoftmaxError),
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("node `{node}`: the interpreter does not know the operator {operator}")]
    Operator { node: String, operator: String },
    #[error("its {input} cannot be made of tokens: {reason}")]
    Input { input: String, reason: String },
    #[error("no attention of it was recognised (hint: `dijiang inspect` says why)")]
    NoSite,
    #[error("layer {layer}: what is read has the shape {found:?}, expected {expected:?}")]
    Shape { layer: usize, found: Vec<usize>, expected: Vec<usize> },
    #[error("layer {layer}: what is read is no weighted sum of the values: {missed:.1e} of it is missing")]
    NotLinear { layer: usize, missed: f64 },
}

/// The maps of all attentions that were recognised, on one row of tokens.
pub fn maps(bundle: &Path, which: Which, ids: &[i64]) -> Result<Vec<LayerMap>, MapError> {
    let mut softmax = SoftmaxModel::open(bundle, which == Which::Served)?;
    let mut graph = std::mem::take(&mut softmax.graph);
    let sites = write_maps(&mut graph, &softmax.parallel())?;
    softmax.check_parameters(&graph)?;
    if sites.is_empty() {
        return Err(MapError::NoSite);
    }
    let found = Looked::new(&graph, &sites, ids)?.maps();
    stored_file::check(graph.consts().map(|(_, _, tensor)| tensor))?;
    found
}

/// A graph that was run on a row of tokens.
struct Looked<'a> {
    graph: &'a Graph,
    sites: &'a [MappedSite],
    tokens: usize,
    inputs: BTreeMap<ValueId, Array>,
    /// What each site reads and gives.
    found: BTreeMap<ValueId, Array>,
}

impl<'a> Looked<'a> {
    fn new(graph: &'a Graph, sites: &'a [MappedSite], ids: &[i64]) -> Result<Self, MapError> {
        if let Some((_, node)) = graph.nodes().find(|(_, node)| node.op.spec().is_none()) {
            return Err(MapError::Operator { node: node.name.clone(), operator: node.op.qualified_name() });
        }
        let mut inputs = BTreeMap::new();
        for input in graph.inputs() {
            let filled = oracle::fill(graph, *input, ids).map_err(|reason| MapError::Input {
                input: format!("input `{}`", graph.value(*input).name),
                reason,
            })?;
            inputs.insert(*input, filled);
        }
        let all = sites.iter().flat_map(|site| site.beside.iter().chain([&site.values, &site.weighed]));
        let wanted: Vec<ValueId> = all.copied().collect::<BTreeSet<_>>().into_iter().collect();
        let values = eval(graph, &inputs, &wanted)?;
        let found = wanted.into_iter().zip(values).collect();
        Ok(Self { graph, sites, tokens: ids.len(), inputs, found })
    }

    fn maps(&self) -> Result<Vec<LayerMap>, MapError> {
        self.sites.iter().map(|site| self.map(site)).collect()
    }

    fn map(&self, site: &MappedSite) -> Result<LayerMap, MapError> {
        let &MappedSite { layer, heads, kv_heads, .. } = site;
        let map = LayerMap {
            layer,
            tokens: self.tokens,
            heads,
            kv_heads,
            weights: self.weights(site)?,
            values: self.of(site, &self.found[&site.values], kv_heads)?,
            read: self.of(site, &self.found[&site.weighed], heads)?,
        };
        let missed = map.missed();
        // What is no number is not linear either.
        if missed.is_nan() || missed > LIMIT {
            return Err(MapError::NotLinear { layer, missed });
        }
        Ok(map)
    }

    /// As many tokens at a time as a value has numbers: each is one of them, and nothing else.
    fn weights(&self, site: &MappedSite) -> Result<Vec<f64>, MapError> {
        let (tokens, width) = (self.tokens, site.value_dim);
        let mut given = self.inputs.clone();
        given.extend(site.beside.iter().map(|value| (*value, self.found[value].clone())));
        let mut weights = vec![0.0; site.heads * tokens * tokens];
        for first in (0..tokens).step_by(width) {
            given.insert(site.values, self.identity(site, first)?);
            let read = eval(self.graph, &given, &[site.weighed])?;
            let read = self.of(site, &read[0], site.heads)?;
            let ours = (tokens - first).min(width);
            for (row, numbers) in weights.chunks_mut(tokens).zip(read.chunks(width)) {
                row[first..first + ours].copy_from_slice(&numbers[..ours]);
            }
        }
        Ok(weights)
    }

    /// Values of the tokens from `first` on: number i of token first + i is 1.
    fn identity(&self, site: &MappedSite, first: usize) -> Result<Array, MapError> {
        let (tokens, width) = (self.tokens, site.value_dim);
        let of_head = (0..tokens)
            .flat_map(|token| (0..width).map(move |number| f64::from(u8::from(token == first + number))));
        let of_head: Vec<f64> = of_head.collect();
        Array::from_f64(&[1, site.kv_heads, tokens, width], of_head.repeat(site.kv_heads))
            .map_err(|reason| MapError::Input { input: "identity".to_owned(), reason })
    }

    /// The numbers of `[1, heads, tokens, width]`.
    fn of(&self, site: &MappedSite, array: &Array, heads: usize) -> Result<Vec<f64>, MapError> {
        let expected = vec![1, heads, self.tokens, site.value_dim];
        if array.shape() != expected {
            return Err(MapError::Shape { layer: site.layer, found: array.shape().to_vec(), expected });
        }
        Ok(array.to_f64())
    }
}

impl LayerMap {
    /// Averaged over heads, `[tokens, tokens]`.
    pub fn mean(&self) -> Vec<f64> {
        let each = self.tokens * self.tokens;
        let mut mean = vec![0.0; each];
        for head in self.weights.chunks(each) {
            mean.iter_mut().zip(head).for_each(|(sum, weight)| *sum += weight / self.heads as f64);
        }
        mean
    }

    /// The weights times the values, `[heads, tokens, width]`.
    pub fn weighed(&self) -> Vec<f64> {
        let (tokens, width) = (self.tokens, self.values.len() / (self.kv_heads * self.tokens).max(1));
        let mut out = Vec::with_capacity(self.heads * tokens * width);
        for (head, weights) in self.weights.chunks(tokens * tokens).enumerate() {
            let shared = head / (self.heads / self.kv_heads);
            let values = &self.values[shared * tokens * width..][..tokens * width];
            for row in weights.chunks(tokens) {
                let mut sum = vec![0.0; width];
                for (weight, value) in row.iter().zip(values.chunks(width)) {
                    sum.iter_mut().zip(value).for_each(|(sum, number)| *sum += weight * number);
                }
                out.extend(sum);
            }
        }
        out
    }

    /// How far the weights times the values are from what was read, as a share of the largest number there.
    pub fn missed(&self) -> f64 {
        let largest = self.read.iter().fold(f64::MIN_POSITIVE, |most, number| most.max(number.abs()));
        let apart = self.weighed().into_iter().zip(&self.read).map(|(ours, read)| (ours - read).abs());
        // `max` would pass over what is no number.
        apart.fold(0.0, |most: f64, one| if one.is_nan() || one > most { one } else { most }) / largest
    }
}
