//! Reads from a graph's declared inputs and outputs how it is driven as a causal language model.

use crate::session::error::{RuntimeError, misfit};
use crate::session::wiring::Link;
use crate::session::{DimSpec, Io};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LAST, LOGITS, MASK, PAST, POSITIONS, present_of};

/// One state: an input of the graph and the output that replaces it.
#[derive(Clone, Debug)]
pub(crate) struct StateIo {
    pub(crate) input: Io,
    /// Position of the input.
    pub(crate) position: usize,
    /// Position of the replacing output.
    pub(crate) output: usize,
    /// Its name.
    pub(crate) present: String,
    /// Whether it grows along one axis from length 0, as a cache of keys or values does, or keeps its shape.
    pub(crate) grows: bool,
}

impl StateIo {
    /// The shape of the state after this many tokens.
    pub(crate) fn shape(&self, batch: usize, tokens: usize) -> Vec<usize> {
        let size = |(axis, dim): (usize, &DimSpec)| match dim {
            _ if axis == 0 => batch,
            DimSpec::Fixed(size) => *size,
            DimSpec::Dynamic(_) => tokens,
        };
        self.input.shape.iter().enumerate().map(size).collect()
    }

    /// The axis along which it grows.
    pub(crate) fn growing_axis(&self) -> Option<usize> {
        self.input.shape.iter().skip(1).position(|dim| matches!(dim, DimSpec::Dynamic(_))).map(|at| at + 1)
    }
}

/// Which inputs a decoder graph takes and where its outputs are.
#[derive(Clone, Debug)]
pub(crate) struct DecoderIo {
    pub(crate) ids: DType,
    pub(crate) mask: Option<DType>,
    pub(crate) positions: Option<DType>,
    pub(crate) states: Vec<StateIo>,
    /// Position of the logits among the outputs.
    pub(crate) logits: usize,
    /// The one batch size the graph takes, where it declares one.
    pub(crate) fixed_batch: Option<usize>,
}

impl DecoderIo {
    pub(crate) fn of(inputs: &[Io], outputs: &[Io]) -> Result<Self, RuntimeError> {
        let ids = integers(inputs, IDS)?.ok_or_else(|| misfit(IDS, "the graph has no such input"))?;
        let mask = integers(inputs, MASK)?;
        let positions = integers(inputs, POSITIONS)?;
        let states = states(inputs, outputs)?;
        let first = inputs.iter().find(|io| io.name == IDS).and_then(|io| io.shape.first());
        let fixed_batch = match first {
            Some(DimSpec::Fixed(size)) => Some(*size),
            _ => None,
        };
        Ok(Self { ids, mask, positions, states, logits: logits(outputs)?, fixed_batch })
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        self.states.iter().map(|state| Link { input: state.position, output: state.output }).collect()
    }

    /// Position of the logits among the outputs that are no states.
    pub(crate) fn open_logits(&self) -> usize {
        self.logits - self.states.iter().filter(|state| state.output < self.logits).count()
    }

    pub(crate) fn grows(&self) -> bool {
        self.states.iter().any(|state| state.grows)
    }
}

/// Every input that is no token, mask or position, as a state.
fn states(inputs: &[Io], outputs: &[Io]) -> Result<Vec<StateIo>, RuntimeError> {
    let known = |io: &Io| [IDS, MASK, POSITIONS, LAST].contains(&io.name.as_str());
    let rest = inputs.iter().enumerate().filter(|(_, io)| !known(io));
    rest.map(|(position, io)| state(position, io, outputs)).collect()
}

fn integers(inputs: &[Io], name: &str) -> Result<Option<DType>, RuntimeError> {
    let Some(io) = inputs.iter().find(|io| io.name == name) else { return Ok(None) };
    if io.shape.len() != 2 {
        return Err(misfit(name, &format!("its shape is {}, expected [batch, tokens]", io.shape_text())));
    }
    match io.dtype {
        DType::I64 | DType::I32 => Ok(Some(io.dtype)),
        other => Err(misfit(name, &format!("it is {other}, expected i64 or i32"))),
    }
}

fn logits(outputs: &[Io]) -> Result<usize, RuntimeError> {
    let Some(position) = outputs.iter().position(|io| io.name == LOGITS) else {
        return Err(misfit(LOGITS, "the graph has no such output"));
    };
    let io = &outputs[position];
    let float = matches!(io.dtype, DType::F32 | DType::F16 | DType::BF16);
    if !float || io.shape.len() != 3 {
        let found =
            format!("it is {} {}, expected floats [batch, tokens, vocabulary]", io.dtype, io.shape_text());
        return Err(misfit(LOGITS, &found));
    }
    Ok(position)
}

/// Tokens that logits are of.
pub(crate) fn vocabulary(logits: &Io) -> Result<usize, RuntimeError> {
    match logits.shape.last() {
        Some(DimSpec::Fixed(size)) => Ok(*size),
        _ => Err(misfit(LOGITS, "its last dim is no number")),
    }
}

fn state(position: usize, input: &Io, outputs: &[Io]) -> Result<StateIo, RuntimeError> {
    let Some(present) = present_of(&input.name) else {
        let expected = format!("expected {IDS}, {MASK}, {POSITIONS} or {PAST}*");
        return Err(misfit(&input.name, &expected));
    };
    let Some(output) = outputs.iter().position(|io| io.name == present) else {
        return Err(misfit(&input.name, &format!("the graph has no output `{present}` to replace it")));
    };
    if outputs[output].dtype != input.dtype {
        let found = format!("it is {}, but `{present}` is {}", input.dtype, outputs[output].dtype);
        return Err(misfit(&input.name, &found));
    }
    Ok(StateIo { input: input.clone(), position, output, present, grows: grows(input)? })
}

/// Tells the two kinds of state apart by their open dimensions besides the batch.
fn grows(input: &Io) -> Result<bool, RuntimeError> {
    let open = |dim: &&DimSpec| matches!(dim, DimSpec::Dynamic(_));
    match input.shape.iter().skip(1).filter(open).count() {
        0 if !input.shape.is_empty() => Ok(false),
        1 => Ok(true),
        _ => {
            let found = format!("its shape is {}", input.shape_text());
            Err(misfit(
                &input.name,
                &format!("{found}, expected a batch and at most one other open dimension"),
            ))
        }
    }
}
