//! What is known of a value before the model runs: element type, shape, and the contents of small
//! integer tensors, which is what makes shape arithmetic under symbolic dims come out.

use super::op::Op;
use super::shape::{Dim, Shape, show};
use super::tensor::Tensor;
use dijiang_format::dtype::DType;
use std::fmt;

/// Longest integer tensor whose contents are followed.
const MAX_FOLLOWED: usize = 32;

/// What is known of a value. `None` means nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Type {
    pub dtype: Option<DType>,
    pub shape: Option<Shape>,
    /// The contents of an integer tensor of rank 0 or 1, such as a computed shape.
    pub ints: Option<Vec<Dim>>,
}

impl Type {
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { dtype: Some(dtype), shape: Some(shape.into()), ints: None }
    }

    pub fn maybe(dtype: Option<DType>, shape: Option<Shape>) -> Self {
        Self { dtype, shape, ints: None }
    }

    #[must_use]
    pub fn with_ints(mut self, ints: Option<Vec<Dim>>) -> Self {
        self.ints = ints;
        self
    }

    pub fn of_const(tensor: &Tensor) -> Self {
        let shape: Shape = tensor.dims().iter().map(|d| Dim::Known(*d)).collect();
        let follow = tensor.dims().len() <= 1 && tensor.len() <= MAX_FOLLOWED && tensor.dtype().is_int();
        let known = |x: &i64| u64::try_from(*x).map_or(Dim::Unknown, Dim::Known);
        let ints = follow.then(|| tensor.to_i64().unwrap_or_default().iter().map(known).collect());
        Self::new(tensor.dtype(), shape).with_ints(ints)
    }

    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Whether one value can have both types.
    pub fn agrees(&self, other: &Self) -> bool {
        let dtypes = match (self.dtype, other.dtype) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let shapes = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.agrees(y)),
            _ => true,
        };
        dtypes && shapes
    }

    /// What is known of a value described twice.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(x, y)| x.meet(y)).collect())
            }
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Self {
            dtype: self.dtype.or(other.dtype),
            shape,
            ints: self.ints.clone().or_else(|| other.ints.clone()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}")?,
            None => f.write_str("?")?,
        }
        match &self.shape {
            Some(shape) => f.write_str(&show(shape)),
            None => f.write_str("[..]"),
        }
    }
}

/// What an operator's inference sees.
#[derive(Debug)]
pub struct InferContext<'a> {
    pub op: &'a Op,
    /// `None` where an optional input is left out.
    pub inputs: &'a [Option<&'a Type>],
    /// The contents of inputs that are constants.
    pub consts: &'a [Option<&'a Tensor>],
    pub outputs: usize,
}

impl InferContext<'_> {
    pub fn has(&self, index: usize) -> bool {
        self.inputs.get(index).is_some_and(Option::is_some)
    }

    pub fn dtype(&self, index: usize) -> Option<DType> {
        self.inputs.get(index).copied().flatten()?.dtype
    }

    pub fn shape(&self, index: usize) -> Option<&Shape> {
        self.inputs.get(index).copied().flatten()?.shape.as_ref()
    }

    /// Contents of an integer input, as far as they are known.
    pub fn ints(&self, index: usize) -> Option<&Vec<Dim>> {
        self.inputs.get(index).copied().flatten()?.ints.as_ref()
    }

    /// Contents of an integer input that is a constant, negative numbers included.
    pub fn const_ints(&self, index: usize) -> Option<Vec<i64>> {
        self.consts.get(index).copied().flatten()?.to_i64()
    }

    /// An axis attribute, counted from the front.
    pub fn axis(&self, name: &str, rank: usize) -> Result<usize, String> {
        let axis = self.op.int(name).ok_or_else(|| format!("attribute `{name}` is missing"))?;
        resolve_axis(axis, rank)
    }
}

/// Whether the end of a slice stands for the end of any axis: ONNX has its largest numbers for that, of 64 and of 32 bits, and
/// tf2onnx 10⁹.
pub fn is_open_end(end: i64) -> bool {
    end >= 1_000_000_000
}

/// An axis counted from the front; negative axes count from the back.
pub fn resolve_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|a| *a < rank)
        .ok_or_else(|| format!("axis {axis} does not exist in rank {rank}"))
}

/// The types of a node's outputs. Opaque operators say nothing.
pub fn infer(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let violations = ctx.op.violations(ctx.inputs.len(), ctx.outputs);
    if let Some(first) = violations.into_iter().next() {
        return Err(first);
    }
    let Some(spec) = ctx.op.spec() else {
        return Ok(vec![Type::default(); ctx.outputs]);
    };
    let mut types = (spec.infer)(ctx)?;
    types.resize(ctx.outputs, Type::default());
    for ty in &mut types {
        ty.ints = ty.ints.take().filter(|ints| ints.len() <= MAX_FOLLOWED);
    }
    Ok(types)
}
