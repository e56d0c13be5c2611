//! Reads from a graph's declared inputs and outputs how it is driven as a causal language model.

use crate::error::RuntimeError;
use crate::session::{DimSpec, Io, Session};
use crate::tensor::Dtype;

pub(crate) const IDS: &str = "input_ids";
pub(crate) const MASK: &str = "attention_mask";
pub(crate) const POSITIONS: &str = "position_ids";
pub(crate) const LOGITS: &str = "logits";
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// How a state changes as tokens are fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// It keeps its shape: linear attention.
    Fixed,
    /// It grows along one axis from length 0: a cache of keys or values.
    Along(usize),
}

/// One state: an input of the graph and the output that replaces it.
#[derive(Clone, Debug)]
pub(crate) struct StateIo {
    pub(crate) input: Io,
    /// Position of the replacing output.
    pub(crate) output: usize,
    pub(crate) growth: Growth,
}

impl StateIo {
    /// The shape of the state before the first token.
    pub(crate) fn empty_shape(&self, batch: usize) -> Vec<usize> {
        let size = |dim: &DimSpec| match dim {
            DimSpec::Fixed(size) => *size,
            DimSpec::Dynamic(_) => 0,
        };
        let mut shape: Vec<usize> = self.input.shape.iter().map(size).collect();
        shape[0] = batch;
        shape
    }

    /// Whether a tensor of this shape can be this state.
    pub(crate) fn takes(&self, shape: &[usize], batch: usize) -> bool {
        let mut expected = self.empty_shape(batch);
        if let (Growth::Along(axis), true) = (self.growth, expected.len() == shape.len()) {
            expected[axis] = shape[axis];
        }
        expected == shape
    }
}

/// Which inputs a decoder graph takes and where its outputs are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) ids: Dtype,
    pub(crate) mask: Option<Dtype>,
    pub(crate) positions: Option<Dtype>,
    pub(crate) states: Vec<StateIo>,
    /// Position of the logits among the outputs.
    pub(crate) logits: usize,
    /// The one batch size the graph takes, where it declares one.
    pub(crate) fixed_batch: Option<usize>,
}

impl Layout {
    pub(crate) fn of(session: &dyn Session) -> Result<Self, RuntimeError> {
        let (inputs, outputs) = (session.inputs(), session.outputs());
        let ids = integers(inputs, IDS)?.ok_or_else(|| misfit(IDS, "the graph has no such input"))?;
        let mask = integers(inputs, MASK)?;
        let positions = integers(inputs, POSITIONS)?;
        let known = |io: &&Io| [IDS, MASK, POSITIONS].contains(&io.name.as_str());
        let states =
            inputs.iter().filter(|io| !known(io)).map(|io| state(io, outputs)).collect::<Result<_, _>>()?;
        let first = inputs.iter().find(|io| io.name == IDS).and_then(|io| io.shape.first());
        let fixed_batch = match first {
            Some(DimSpec::Fixed(size)) => Some(*size),
            _ => None,
        };
        Ok(Self { ids, mask, positions, states, logits: logits(outputs)?, fixed_batch })
    }

    pub(crate) fn grows(&self) -> bool {
        self.states.iter().any(|state| state.growth != Growth::Fixed)
    }
}

fn misfit(place: &str, reason: &str) -> RuntimeError {
    RuntimeError::NotADecoder { place: format!("`{place}`"), reason: reason.to_owned() }
}

fn integers(inputs: &[Io], name: &str) -> Result<Option<Dtype>, RuntimeError> {
    let Some(io) = inputs.iter().find(|io| io.name == name) else { return Ok(None) };
    if io.shape.len() != 2 {
        return Err(misfit(name, &format!("its shape is {}, expected [batch, tokens]", io.shape_text())));
    }
    match io.dtype {
        Dtype::I64 | Dtype::I32 => Ok(Some(io.dtype)),
        other => Err(misfit(name, &format!("it is {other}, expected i64 or i32"))),
    }
}

fn logits(outputs: &[Io]) -> Result<usize, RuntimeError> {
    let Some(position) = outputs.iter().position(|io| io.name == LOGITS) else {
        return Err(misfit(LOGITS, "the graph has no such output"));
    };
    let io = &outputs[position];
    let float = matches!(io.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    if !float || io.shape.len() != 3 {
        let found =
            format!("it is {} {}, expected floats [batch, tokens, vocabulary]", io.dtype, io.shape_text());
        return Err(misfit(LOGITS, &found));
    }
    Ok(position)
}

fn state(input: &Io, outputs: &[Io]) -> Result<StateIo, RuntimeError> {
    let Some(rest) = input.name.strip_prefix(PAST) else {
        let expected = format!("expected {IDS}, {MASK}, {POSITIONS} or {PAST}*");
        return Err(misfit(&input.name, &expected));
    };
    let present = format!("{PRESENT}{rest}");
    let Some(output) = outputs.iter().position(|io| io.name == present) else {
        return Err(misfit(&input.name, &format!("the graph has no output `{present}` to replace it")));
    };
    if outputs[output].dtype != input.dtype {
        let found = format!("it is {}, but `{present}` is {}", input.dtype, outputs[output].dtype);
        return Err(misfit(&input.name, &found));
    }
    Ok(StateIo { input: input.clone(), output, growth: growth(input)? })
}

fn growth(input: &Io) -> Result<Growth, RuntimeError> {
    let is_dynamic = |axis: &usize| matches!(input.shape[*axis], DimSpec::Dynamic(_));
    let dynamic: Vec<usize> = (1..input.shape.len()).filter(is_dynamic).collect();
    match dynamic.as_slice() {
        [] if !input.shape.is_empty() => Ok(Growth::Fixed),
        [axis] => Ok(Growth::Along(*axis)),
        _ => {
            let found = format!(
                "its shape is {}, expected a batch and at most one other open dimension",
                input.shape_text()
            );
            Err(misfit(&input.name, &found))
        }
    }
}
