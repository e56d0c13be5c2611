//! What the families build with: a patch, and weights by name with their shapes checked.

use super::config::Config;
use super::error::CheckpointError;
use super::families::Family;
use super::own_attention::OwnAttention;
use super::weights::{Stored, Weights};
use super::{Checkpoint, ModelMeta, extra};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::patch::{Change, Patch};
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Builder<'a> {
    pub(super) p: Patch<'a>,
    pub(super) config: &'a Config,
    pub(super) meta: &'a ModelMeta,
    pub(super) dtype: DType,
    family: &'static Family,
    weights: &'a Weights,
    /// Weights that are in the graph already, so that a tied one is there once.
    made: BTreeMap<String, ValueId>,
    /// Names in the files that were asked for.
    asked: BTreeSet<&'a str>,
    /// The module of the output projection, and the module whose weight it has.
    head: Option<(String, String)>,
    /// The table that the output projection has too, and the projection, under either of which files may hold it.
    tied: Option<(&'static str, &'static str)>,
    /// What is to be told of the model.
    pub(super) notes: Vec<String>,
    presents: Vec<(String, ValueId)>,
    /// The attention that the files bring along.
    pub(super) own_attention: Option<OwnAttention>,
}

/// What was built.
pub(super) struct Finished {
    pub(super) change: Change,
    /// What is to be told of tensors that no one asked for.
    pub(super) told: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) own_attention: Option<OwnAttention>,
}

/// The integer inputs of a decoder.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    /// i64 `[batch, sequence]`
    pub(super) ids: ValueId,
    /// i64 `[batch, past + sequence]`, 1 for a token and 0 for padding
    pub(super) mask: ValueId,
    /// i64 `[batch, sequence]`
    pub(super) positions: ValueId,
}

impl<'a> Builder<'a> {
    pub(super) fn new(base: &'a Graph, checkpoint: &'a Checkpoint, dtype: DType) -> Self {
        let Checkpoint { family, config, meta, weights, .. } = checkpoint;
        Self {
            p: Patch::new(base, family.name),
            config,
            meta,
            dtype,
            family,
            weights,
            made: BTreeMap::new(),
            asked: BTreeSet::new(),
            head: None,
            tied: None,
            notes: Vec::new(),
            presents: Vec::new(),
            own_attention: None,
        }
    }

    pub(super) fn inputs(&mut self) -> Inputs {
        let (batch, sequence) = (Dim::sym("batch"), Dim::sym("sequence"));
        let total = Dim::sym("past").plus(&sequence);
        let tokens = [batch.clone(), sequence];
        Inputs {
            ids: self.p.input(IDS, DType::I64, tokens.clone()),
            mask: self.p.input(MASK, DType::I64, [batch, total]),
            positions: self.p.input(POSITIONS, DType::I64, tokens),
        }
    }

    /// Puts new keys or values `[batch, kv_heads, sequence, head_dim]` after those of the cache:
    /// `part` is `key` or `value`.
    pub(super) fn cached(&mut self, layer: u64, part: &str, new: ValueId) -> ValueId {
        let (heads, dim) = (self.p.dim(new, 1), self.p.dim(new, 3));
        let shape = [Dim::sym("batch"), heads, Dim::sym("past"), dim];
        let past = self.p.input(&format!("{PAST}{layer}.{part}"), self.dtype, shape);
        let all = self.p.concat(&[past, new], 2);
        self.presents.push((format!("{PRESENT}{layer}.{part}"), all));
        all
    }

    /// Makes the logits the first output, and the cache the others.
    pub(super) fn outputs(&mut self, logits: ValueId) {
        self.p.output(LOGITS, logits);
        for (name, value) in std::mem::take(&mut self.presents) {
            self.p.output(&name, value);
        }
    }

    /// A weight by its full Hugging Face name, which is the name of the value; its shape must be the
    /// one given. Files of a base model leave the first part of the name (`model.`) out.
    pub(super) fn weight(&mut self, name: &str, shape: &[u64]) -> Result<ValueId, CheckpointError> {
        if let Some(value) = self.made.get(name) {
            return Ok(*value);
        }
        if let Some(made) = self.weights.made(shape) {
            let tensor = made.map_err(|e| CheckpointError::Header {
                path: self.weights.dir.clone(),
                reason: format!("tensor `{name}`: {e}"),
            })?;
            return Ok(self.add(name, tensor));
        }
        let tensor = self.stored(name, shape)?;
        Ok(self.add(name, tensor.cast(self.dtype)))
    }

    /// Whether the files hold a tensor of this name.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The shape of a tensor of this name.
    pub(super) fn dims(&self, name: &str) -> Option<&'a [u64]> {
        self.find(name).and_then(|(_, stored)| stored.tensor.as_ref().ok()).map(Tensor::dims)
    }

    /// A tensor of this shape as the files have it, by its full Hugging Face name.
    pub(super) fn stored(&mut self, name: &str, shape: &[u64]) -> Result<Tensor, CheckpointError> {
        let Some((stored, found)) = self.find(name) else {
            return Err(CheckpointError::MissingTensor {
                dir: self.weights.whole().to_owned(),
                tensor: self.weights.name_in_file(name),
                family: self.family.name,
                expected: shape.to_vec(),
            });
        };
        let path = || self.weights.file_of(found).to_owned();
        let dtype =
            |found: String| CheckpointError::WeightDType { path: path(), tensor: stored.to_owned(), found };
        let tensor = found.tensor.as_ref().map_err(|name| dtype(name.clone()))?;
        if !tensor.dtype().is_float() {
            return Err(dtype(tensor.dtype().to_string()));
        }
        if tensor.dims() != shape {
            return Err(CheckpointError::WrongShape {
                path: path(),
                tensor: self.weights.name_in_file(stored),
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
                config: self.config.name().into(),
            });
        }
        self.asked.insert(stored);
        Ok(tensor.clone())
    }

    /// A tensor that no model computes with.
    pub(super) fn not_finite(&self, name: &str) -> CheckpointError {
        let file = self.find(name).map(|(_, stored)| self.weights.file_of(stored));
        CheckpointError::NotFinite {
            path: file.unwrap_or(&self.weights.dir).to_owned(),
            tensor: name.to_owned(),
        }
    }

    fn add(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let value = self.p.weight(name, tensor);
        self.made.insert(name.to_owned(), value);
        value
    }

    /// Says that the output projection `head` has the weight of `table`.
    pub(super) fn tie(&mut self, table: &'static str, head: &'static str) {
        self.tied = Some((table, head));
    }

    /// The name in the file, and what is there.
    fn find(&self, name: &str) -> Option<(&'a str, &'a Stored)> {
        self.find_under(name).or_else(|| {
            let (table, head) = self.tied?;
            let (module, part) = name.rsplit_once('.')?;
            if module == table { self.find_under(&format!("{head}.{part}")) } else { None }
        })
    }

    /// With or without the prefix of the base model.
    fn find_under(&self, name: &str) -> Option<(&'a str, &'a Stored)> {
        let weights = self.weights;
        weights.get_key(name).or_else(|| weights.get_key(name.strip_prefix(self.family.base_prefix)?))
    }

    /// `module(x)` for a linear module with `weight` `[outer, inner]` and `bias` `[outer]`, where the
    /// last dim of `x` is `inner`.
    pub(super) fn linear(
        &mut self,
        module: &str,
        x: ValueId,
        outer: u64,
        bias: bool,
    ) -> Result<ValueId, CheckpointError> {
        self.p.set_scope(module);
        let inner = self.p.known_dim(x, 2);
        let weight = self.weight(&format!("{module}.weight"), &[outer, inner])?;
        let bias = if bias { Some(self.weight(&format!("{module}.bias"), &[outer])?) } else { None };
        Ok(self.p.linear(x, weight, bias))
    }

    /// The same where the weight is stored as `[inner, outer]`.
    pub(super) fn conv1d(
        &mut self,
        module: &str,
        x: ValueId,
        outer: u64,
    ) -> Result<ValueId, CheckpointError> {
        self.p.set_scope(module);
        let inner = self.p.known_dim(x, 2);
        let weight = self.weight(&format!("{module}.weight"), &[inner, outer])?;
        let bias = self.weight(&format!("{module}.bias"), &[outer])?;
        let y = self.p.matmul(x, weight);
        Ok(self.p.add(y, bias))
    }

    /// `x + change`, named after the layer.
    pub(super) fn residual(&mut self, layer: &str, x: ValueId, change: ValueId) -> ValueId {
        self.p.set_scope(layer);
        self.p.add(x, change)
    }

    /// The output projection to `[batch, sequence, vocab]`, called `head`, with the weight
    /// `[vocab, inner]` of module `of`: its own, or the table of the tied embedding.
    pub(super) fn logits(&mut self, head: &str, of: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        self.p.set_scope(head);
        self.head = Some((head.to_owned(), of.to_owned()));
        let inner = self.p.known_dim(x, 2);
        let weight = self.weight(&format!("{of}.weight"), &[self.meta.vocab, inner])?;
        Ok(self.p.linear(x, weight, None))
    }

    /// The rows of a table `[rows, columns]` that `ids` `[batch, sequence]` name.
    pub(super) fn embedding(
        &mut self,
        module: &str,
        ids: ValueId,
        rows: u64,
        columns: u64,
    ) -> Result<ValueId, CheckpointError> {
        let table = self.weight(&format!("{module}.weight"), &[rows, columns])?;
        self.p.set_scope(module);
        Ok(self.p.gather(table, ids, 0))
    }

    /// Layer norm over the last dim.
    pub(super) fn layer_norm(
        &mut self,
        module: &str,
        x: ValueId,
        epsilon: f64,
    ) -> Result<ValueId, CheckpointError> {
        self.p.set_scope(module);
        let size = self.last_dim(x);
        let weight = self.weight(&format!("{module}.weight"), &[size])?;
        let bias = self.weight(&format!("{module}.bias"), &[size])?;
        Ok(self.p.layer_norm(x, weight, bias, epsilon as f32))
    }

    /// How many features there are.
    pub(super) fn last_dim(&mut self, x: ValueId) -> u64 {
        let last = self.p.rank(x).saturating_sub(1);
        self.p.known_dim(x, last)
    }

    pub(super) fn finish(self) -> Result<Finished, CheckpointError> {
        let head = self.head.as_ref().map(|(head, of)| (head.as_str(), of.as_str()));
        let tied = head.filter(|(head, of)| head != of);
        let table = tied.and_then(|(_, of)| self.find(&format!("{of}.weight")));
        let asked = extra::Asked {
            family: self.family,
            names: &self.asked,
            head: head.map_or("", |(head, _)| head),
            table: table.map(|(name, _)| name),
        };
        let told = extra::check(self.weights, &asked)?;
        let notes = self.notes;
        Ok(Finished { change: self.p.finish(), told, notes, own_attention: self.own_attention })
    }
}
