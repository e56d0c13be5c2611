//! The f64 interpreter on a graph file.

use super::features::{self, Pictures};
use super::{VerifyError, read_back};
use crate::bundle::stored_file;
use dijiang_format::dtype::DType;
use dijiang_format::names::TABLES;
use dijiang_passes::ir::eval::{Array, eval, eval_rounded};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::precision::bytes::round_to_bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the interpreter rounds.
#[derive(Clone, Copy)]
pub(super) enum Rounding<'a> {
    Nothing,
    /// The cosines and sines that another graph reads from these.
    Turns(&'a Tables),
    /// Every result of half precision.
    Results,
    /// What products with weights of few bits read, where they round it to bytes.
    Activations,
}

/// The cosines and sines that a graph in half precision reads from tables, which hold them rounded. The interpreter
/// rounds nothing where another form computes them.
pub(super) struct Tables {
    dtype: DType,
    /// The nodes that compute cosines and sines all the same.
    computed: BTreeSet<String>,
}

impl Tables {
    pub(super) fn of(graph: &Graph) -> Option<Self> {
        let (_, _, table) = graph.consts().find(|(_, name, _)| name.starts_with(TABLES))?;
        let dtype = Some(table.dtype()).filter(|dtype| matches!(dtype, DType::F16 | DType::BF16))?;
        let computed = turns(graph).map(|(name, ..)| name.to_owned()).collect();
        Some(Self { dtype, computed })
    }

    /// What the tables hold, for the outputs of a form that computes it.
    fn values(
        &self,
        graph: &Graph,
        given: &BTreeMap<ValueId, Array>,
    ) -> Result<Vec<(ValueId, Array)>, String> {
        let read: Vec<_> = turns(graph).filter(|(name, ..)| !self.computed.contains(*name)).collect();
        let angles: Vec<ValueId> = read.iter().map(|(_, angle, ..)| *angle).collect();
        let angles = eval(graph, given, &angles).map_err(|e| e.to_string())?;
        let each = read.iter().zip(&angles).map(|((_, _, of, made), angles)| {
            // As the tables were made: of angles in f32.
            let turns = angles.to_f64().into_iter().map(|angle| of(f64::from(angle as f32))).collect();
            Ok((*made, Array::from_f64(angles.shape(), turns)?.rounded(self.dtype)))
        });
        each.collect()
    }
}

/// What computes cosines and sines: the node, its angles, the function, and its output.
fn turns(graph: &Graph) -> impl Iterator<Item = (&str, ValueId, fn(f64) -> f64, ValueId)> {
    graph.nodes().filter_map(|(_, node)| {
        let of: fn(f64) -> f64 = match node.op.name() {
            "Cos" => f64::cos,
            "Sin" => f64::sin,
            _ => return None,
        };
        Some((node.name.as_str(), node.input(0)?, of, node.outputs[0]))
    })
}

/// The result for each token of one row, from an empty state; or which operator the interpreter does not
/// know.
pub(super) fn logits(
    path: &Path,
    row: &[i64],
    rounding: Rounding<'_>,
) -> Result<Result<Vec<f32>, String>, VerifyError> {
    evaluate(&read_back(path)?, path, row, rounding)
}

/// The same of a graph; `place` is what errors name.
pub(super) fn evaluate(
    graph: &Graph,
    place: &Path,
    row: &[i64],
    rounding: Rounding<'_>,
) -> Result<Result<Vec<f32>, String>, VerifyError> {
    let fail = |reason: String| VerifyError::Model { file: place.display().to_string(), reason };
    let mut rounding_itself = None;
    if matches!(rounding, Rounding::Activations) {
        let mut graph = graph.clone();
        round_to_bytes(&mut graph).map_err(|e| fail(e.to_string()))?;
        rounding_itself = Some(graph);
    }
    let graph = rounding_itself.as_ref().unwrap_or(graph);
    if let Some((_, node)) = graph.nodes().find(|(_, node)| node.op.spec().is_none()) {
        return Ok(Err(format!(
            "operator {} of node `{}` is not known",
            node.op.qualified_name(),
            node.name
        )));
    }
    let mut given = BTreeMap::new();
    for input in graph.inputs() {
        given.insert(*input, fill(graph, *input, row).map_err(fail)?);
    }
    if let Rounding::Turns(tables) = rounding {
        given.extend(tables.values(graph, &given).map_err(fail)?);
    }
    let wanted = result_of(graph)
        .ok_or_else(|| fail("it has no float output [batch, tokens, width] or [batch, width]".to_owned()))?;
    let eval = if matches!(rounding, Rounding::Results) { eval_rounded } else { eval };
    let values = eval(graph, &given, &[wanted]).map_err(|e| fail(e.to_string()));
    stored_file::check(graph.consts().map(|(_, _, tensor)| tensor))?;
    let values = values?;
    Ok(Ok(values[0].to_f64().into_iter().map(|x| x as f32).collect()))
}

/// The first float output per token, or else per row.
fn result_of(graph: &Graph) -> Option<ValueId> {
    let of_rank = |rank: usize| {
        let mut outputs = graph.outputs().iter().map(|(_, v)| *v);
        let is_float = |v: ValueId| graph.value(v).ty.dtype.is_some_and(DType::is_float);
        outputs.find(|v| is_float(*v) && graph.value(*v).ty.rank() == Some(rank))
    };
    of_rank(3).or_else(|| of_rank(2))
}

/// What an input is given for one row of tokens, from an empty state.
pub(crate) fn fill(graph: &Graph, input: ValueId, row: &[i64]) -> Result<Array, String> {
    let value = graph.value(input);
    let n = row.len();
    match value.name.as_str() {
        "input_ids" => Array::from_i64(&[1, n], row.to_vec()),
        "position_ids" => Array::from_i64(&[1, n], (0..n as i64).collect()),
        "token_type_ids" => Array::from_i64(&[1, n], vec![0; n]),
        "attention_mask" => Array::from_i64(&[1, n], vec![1; n]),
        name if graph.input("input_ids").is_none() && value.ty.dtype.is_some_and(DType::is_float) => {
            let rows = [row.to_vec()];
            let dims: Vec<Option<usize>> =
                value.ty.shape.iter().flatten().map(|d| d.known().map(|n| n as usize)).collect();
            let dims = Pictures::of(graph).sized(name, dims);
            let sizes = features::sizes(name, &dims, &rows)?;
            Array::from_f64(&sizes, features::numbers(name, &sizes, &rows))
        }
        _ => {
            let shape = value.ty.shape.clone().unwrap_or_default();
            // An empty state: zeros, and no past.
            let size = |(axis, d): (usize, &Dim)| d.known().unwrap_or(u64::from(axis == 0)) as usize;
            let dims: Vec<usize> = shape.iter().enumerate().map(size).collect();
            Array::from_f64(&dims, vec![0.0; dims.iter().product()])
        }
    }
}
