//! Shorthand for writing nodes into a patch: one method per common operator, shapes as plain numbers.

use super::graph::ValueId;
use super::op::Op;
use super::patch::Patch;
use super::tensor::Tensor;
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;

macro_rules! unary {
    ($($method:ident => $op:literal),* $(,)?) => {
        $(pub fn $method(&mut self, x: ValueId) -> ValueId {
            self.node(Op::new($op), &[x])
        })*
    };
}

macro_rules! binary {
    ($($method:ident => $op:literal),* $(,)?) => {
        $(pub fn $method(&mut self, a: ValueId, b: ValueId) -> ValueId {
            self.node(Op::new($op), &[a, b])
        })*
    };
}

impl Patch<'_> {
    unary! {
        cos => "Cos",
        erf => "Erf",
        exp => "Exp",
        log => "Log",
        neg => "Neg",
        relu => "Relu",
        sigmoid => "Sigmoid",
        sin => "Sin",
        softplus => "Softplus",
        sqrt => "Sqrt",
        tanh => "Tanh",
    }

    binary! {
        add => "Add",
        and => "And",
        div => "Div",
        equal => "Equal",
        greater => "Greater",
        less_or_equal => "LessOrEqual",
        matmul => "MatMul",
        max => "Max",
        min => "Min",
        mul => "Mul",
        pow => "Pow",
        sub => "Sub",
    }

    /// One number in the element type of `like`.
    pub fn scalar_like(&mut self, like: ValueId, value: f64) -> ValueId {
        let dtype = self.dtype(like);
        self.constant("scalar", Tensor::scalar(dtype, value))
    }

    pub fn add_scalar(&mut self, x: ValueId, value: f64) -> ValueId {
        let c = self.scalar_like(x, value);
        self.add(x, c)
    }

    pub fn mul_scalar(&mut self, x: ValueId, value: f64) -> ValueId {
        let c = self.scalar_like(x, value);
        self.mul(x, c)
    }

    /// `x` times a number, in f32 where the element type of `x` would round the number.
    pub fn scale_by(&mut self, x: ValueId, value: f64) -> ValueId {
        let dtype = self.dtype(x);
        let held = Tensor::scalar(dtype, value).to_f64();
        if held == Tensor::scalar(DType::F32, value).to_f64() {
            return self.mul_scalar(x, value);
        }
        let wide = self.cast(x, DType::F32);
        let wide = self.mul_scalar(wide, value);
        self.cast(wide, dtype)
    }

    /// What `write` makes of `x`, in f32 where `x` is bf16: ONNX Runtime has no kernel of `Pad` and `Expand` for it.
    pub fn wider_than_bf16(
        &mut self,
        x: ValueId,
        write: impl FnOnce(&mut Self, ValueId) -> ValueId,
    ) -> ValueId {
        if self.dtype(x) != DType::BF16 {
            return write(self, x);
        }
        let wide = self.cast(x, DType::F32);
        let made = write(self, wide);
        self.cast(made, DType::BF16)
    }

    /// The vector of so many numbers, f32, that the input of a name gives: the one that is there, or a new one.
    pub fn given(&mut self, name: &str, count: usize) -> ValueId {
        let there = self.graph().input(name);
        there.unwrap_or_else(|| self.input(name, DType::F32, vec![Dim::Known(count as u64)]))
    }

    /// A vector of integers, for shapes, axes and indices.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant("ints", Tensor::from_i64(&[values.len() as u64], values))
    }

    /// `x` in the element type `to`; no node where it has it already.
    pub fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        if self.ty(x).dtype == Some(to) {
            return x;
        }
        self.node(Op::new("Cast").with("to", to.name()), &[x])
    }

    pub fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.node(Op::new("Transpose").with("perm", perm), &[x])
    }

    /// A reshape by constants: 0 copies a dim, -1 is what is left.
    pub fn reshape(&mut self, x: ValueId, shape: &[i64]) -> ValueId {
        let shape = self.ints(shape);
        self.node(Op::new("Reshape"), &[x, shape])
    }

    /// A reshape to a computed shape.
    pub fn reshape_to(&mut self, x: ValueId, shape: ValueId) -> ValueId {
        self.node(Op::new("Reshape"), &[x, shape])
    }

    pub fn expand(&mut self, x: ValueId, shape: ValueId) -> ValueId {
        self.node(Op::new("Expand"), &[x, shape])
    }

    pub fn unsqueeze(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        self.node(Op::new("Unsqueeze").with("axes", axes), &[x])
    }

    pub fn squeeze(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        self.node(Op::new("Squeeze").with("axes", axes), &[x])
    }

    pub fn concat(&mut self, parts: &[ValueId], axis: i64) -> ValueId {
        self.node(Op::new("Concat").with("axis", axis), parts)
    }

    /// Parts of the given sizes along an axis.
    pub fn split(&mut self, x: ValueId, axis: i64, sizes: &[i64]) -> Vec<ValueId> {
        let parts = self.ints(sizes);
        self.node_outputs(Op::new("Split").with("axis", axis), &[Some(x), Some(parts)], sizes.len())
    }

    /// `x[start..end]` along one axis; negative bounds count from the back, `i64::MAX` is the end.
    pub fn slice(&mut self, x: ValueId, axis: i64, start: i64, end: i64) -> ValueId {
        let bounds = [self.ints(&[start]), self.ints(&[end])];
        self.slice_to(x, axis, bounds[0], bounds[1])
    }

    /// `x[start..end]` along one axis, with computed bounds of shape `[1]`.
    pub fn slice_to(&mut self, x: ValueId, axis: i64, start: ValueId, end: ValueId) -> ValueId {
        let axis = self.ints(&[axis]);
        self.node(Op::new("Slice"), &[x, start, end, axis])
    }

    /// `[batch, heads, tokens, dim]` with every head `each` times in a row, as exporters mostly repeat key heads.
    pub fn repeat_heads(&mut self, x: ValueId, [heads, each, dim]: [u64; 3]) -> ValueId {
        let apart = self.unsqueeze(x, &[2]);
        let over = self.ints(&[1, 1, each as i64, 1, 1]);
        let spread = self.expand(apart, over);
        self.reshape(spread, &[0, (heads * each) as i64, -1, dim as i64])
    }

    /// The rows of `table` that `indices` name, along `axis`.
    pub fn gather(&mut self, table: ValueId, indices: ValueId, axis: i64) -> ValueId {
        self.node(Op::new("Gather").with("axis", axis), &[table, indices])
    }

    /// The dims `start..end` of `x`, as a vector of integers.
    pub fn shape_of(&mut self, x: ValueId, start: i64, end: i64) -> ValueId {
        self.node(Op::new("Shape").with("start", start).with("end", end), &[x])
    }

    pub fn select(&mut self, condition: ValueId, yes: ValueId, no: ValueId) -> ValueId {
        self.node(Op::new("Where"), &[condition, yes, no])
    }

    pub fn softmax(&mut self, x: ValueId, axis: i64) -> ValueId {
        self.node(Op::new("Softmax").with("axis", axis), &[x])
    }

    pub fn reduce(&mut self, op: &str, x: ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        self.node(Op::new(op).with("axes", axes).with("keepdims", i64::from(keepdims)), &[x])
    }

    pub fn cumsum(&mut self, x: ValueId, axis: i64, exclusive: bool) -> ValueId {
        let axis = self.constant("axis", Tensor::scalar(DType::I64, axis as f64));
        self.node(Op::new("CumSum").with("exclusive", i64::from(exclusive)), &[x, axis])
    }

    /// `0, 1, …, n - 1`, for a computed `n` of rank 0.
    pub fn range(&mut self, n: ValueId) -> ValueId {
        let zero = self.constant("zero", Tensor::scalar(DType::I64, 0.0));
        let one = self.constant("one", Tensor::scalar(DType::I64, 1.0));
        self.node(Op::new("Range"), &[zero, n, one])
    }

    /// `x · wᵀ` for a weight in Hugging Face layout `[out, in]`, plus a bias where there is one.
    pub fn linear(&mut self, x: ValueId, weight: ValueId, bias: Option<ValueId>) -> ValueId {
        let transposed = self.transpose(weight, &[1, 0]);
        let y = self.matmul(x, transposed);
        bias.map_or(y, |b| self.add(y, b))
    }

    pub fn layer_norm(&mut self, x: ValueId, weight: ValueId, bias: ValueId, epsilon: f32) -> ValueId {
        self.node(Op::new("LayerNormalization").with("epsilon", epsilon).with("axis", -1), &[x, weight, bias])
    }

    /// RMS norm in f32: `x / sqrt(mean(x²) + ε) · w` (Zhang and Sennrich 2019).
    pub fn rms_norm(&mut self, x: ValueId, weight: ValueId, epsilon: f64) -> ValueId {
        let dtype = self.dtype(x);
        let wide = self.cast(x, DType::F32);
        let square = self.mul(wide, wide);
        let mean = self.reduce("ReduceMean", square, &[-1], true);
        let shifted = self.add_scalar(mean, epsilon);
        let root = self.sqrt(shifted);
        let normal = self.div(wide, root);
        let narrow = self.cast(normal, dtype);
        self.mul(narrow, weight)
    }
}
