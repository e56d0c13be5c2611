//! Matrix products.

use super::ROW;
use super::elementwise::{eval_shape, same_dtype, zip};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, Shape, broadcast, show};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayD, ArrayView2, Ix2, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec { name: "MatMul", inputs: 2..=2, infer: infer_matmul, eval: eval_matmul, ..ROW },
    OpSpec {
        name: "Gemm",
        inputs: 2..=3,
        attrs: &[
            ("alpha", AttrSpec::Float(1.0)),
            ("beta", AttrSpec::Float(1.0)),
            ("transA", AttrSpec::Int(0)),
            ("transB", AttrSpec::Int(0)),
        ],
        infer: infer_gemm,
        eval: eval_gemm,
        ..ROW
    },
    OpSpec {
        domain: "com.microsoft",
        name: "FusedMatMul",
        inputs: 2..=2,
        attrs: &[
            ("alpha", AttrSpec::Float(1.0)),
            ("transA", AttrSpec::Int(0)),
            ("transB", AttrSpec::Int(0)),
            ("transBatchA", AttrSpec::Int(0)),
            ("transBatchB", AttrSpec::Int(0)),
        ],
        infer: infer_fused_matmul,
        eval: eval_fused_matmul,
        ..ROW
    },
    OpSpec {
        domain: "com.microsoft",
        name: "FusedGemm",
        inputs: 2..=3,
        attrs: &[
            ("alpha", AttrSpec::Float(1.0)),
            ("beta", AttrSpec::Float(1.0)),
            ("transA", AttrSpec::Int(0)),
            ("transB", AttrSpec::Int(0)),
            ("activation", AttrSpec::Str("")),
            ("activation_alpha", AttrSpec::Float(0.01)),
            ("activation_beta", AttrSpec::Float(0.0)),
            ("activation_gamma", AttrSpec::Float(0.0)),
        ],
        infer: infer_gemm,
        eval: eval_fused_gemm,
        ..ROW
    },
];

fn infer_matmul(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..2)?;
    let Some((a, b)) = ctx.shape(0).zip(ctx.shape(1)) else { return Ok(vec![Type::maybe(dtype, None)]) };
    Ok(vec![Type::maybe(dtype, Some(product_shape(a, b)?))])
}

/// The shape of numpy's `matmul`.
pub(super) fn product_shape(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let fail = || format!("{} and {} do not multiply", show(a), show(b));
    if a.is_empty() || b.is_empty() {
        return Err(fail());
    }
    let row = a.len() > 1;
    let column = b.len() > 1;
    let inner_b = if column { &b[b.len() - 2] } else { &b[0] };
    if !a[a.len() - 1].agrees(inner_b) {
        return Err(fail());
    }
    let batch = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    let mut shape = broadcast(&batch(a), &batch(b)).ok_or_else(fail)?;
    if row {
        shape.push(a[a.len() - 2].clone());
    }
    if column {
        shape.push(b[b.len() - 1].clone());
    }
    Ok(shape)
}

fn eval_matmul(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    Ok(vec![Array::F(matmul(ctx.f(0)?, ctx.f(1)?)?)])
}

/// numpy's `matmul`.
pub(super) fn matmul(a: &ArrayD<f64>, b: &ArrayD<f64>) -> Result<ArrayD<f64>, String> {
    let fail = || format!("{:?} and {:?} do not multiply", a.shape(), b.shape());
    if a.ndim() == 0 || b.ndim() == 0 {
        return Err(fail());
    }
    let (row, column) = (a.ndim() == 1, b.ndim() == 1);
    let a = if row { a.clone().insert_axis(ndarray::Axis(0)) } else { a.clone() };
    let b = if column { b.clone().insert_axis(ndarray::Axis(1)) } else { b.clone() };
    let (sa, sb) = (a.shape().to_vec(), b.shape().to_vec());
    let (m, k, n) = (sa[sa.len() - 2], sa[sa.len() - 1], sb[sb.len() - 1]);
    if sb[sb.len() - 2] != k {
        return Err(fail());
    }
    let batch = eval_shape(&sa[..sa.len() - 2], &sb[..sb.len() - 2])?;
    let spread = |x: &ArrayD<f64>, tail: [usize; 2]| {
        let dims = [batch.as_slice(), &tail].concat();
        x.broadcast(IxDyn(&dims)).map(|v| v.to_owned()).ok_or_else(fail)
    };
    let count: usize = batch.iter().product();
    let flat = |x: ArrayD<f64>, r: usize, c: usize| {
        let rows = x.as_standard_layout().into_owned();
        rows.into_shape_with_order((count, r, c)).map_err(|e| e.to_string())
    };
    // A weight is not copied once per batch row: rank-2 right sides stay as they are.
    let shared: Option<ArrayView2<'_, f64>> =
        if b.ndim() == 2 { b.view().into_dimensionality::<Ix2>().ok() } else { None };
    let left = flat(spread(&a, [m, k])?, m, k)?;
    let right = if shared.is_some() { None } else { Some(flat(spread(&b, [k, n])?, k, n)?) };
    let mut out = ndarray::Array3::zeros((count, m, n));
    for i in 0..count {
        let l = left.index_axis(ndarray::Axis(0), i);
        let mut o = out.index_axis_mut(ndarray::Axis(0), i);
        match (&shared, &right) {
            (Some(r), _) => general_mat_mul(1.0, &l, r, 0.0, &mut o),
            (None, Some(r)) => general_mat_mul(1.0, &l, &r.index_axis(ndarray::Axis(0), i), 0.0, &mut o),
            (None, None) => return Err(fail()),
        }
    }
    let mut shape = batch;
    if !row {
        shape.push(m);
    }
    if !column {
        shape.push(n);
    }
    out.into_shape_with_order(IxDyn(&shape)).map_err(|e| e.to_string())
}

fn infer_gemm(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    let Some((a, b)) = ctx.shape(0).zip(ctx.shape(1)) else { return Ok(vec![Type::maybe(dtype, None)]) };
    if a.len() != 2 || b.len() != 2 {
        return Err(format!("{} and {} are not matrices", show(a), show(b)));
    }
    let transposed = |name: &str| usize::from(ctx.op.int(name) == Some(1));
    let (ta, tb) = (transposed("transA"), transposed("transB"));
    if !a[1 - ta].agrees(&b[tb]) {
        return Err(format!("{} and {} do not multiply", show(a), show(b)));
    }
    Ok(vec![Type::maybe(dtype, Some(vec![a[ta].clone(), b[1 - tb].clone()]))])
}

fn eval_gemm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let side = |i: usize, name: &str| -> Result<ArrayD<f64>, String> {
        let x = ctx.f(i)?;
        if x.ndim() != 2 {
            return Err(format!("input {i} is no matrix"));
        }
        Ok(if ctx.op.int(name) == Some(1) { x.t().to_owned() } else { x.clone() })
    };
    let factor = |name: &str| f64::from(ctx.op.float(name).unwrap_or(1.0));
    let mut out = matmul(&side(0, "transA")?, &side(1, "transB")?)? * factor("alpha");
    if ctx.has(2) {
        let beta = factor("beta");
        out = zip(&out, ctx.f(2)?, |x, c| x + beta * c)?;
    }
    Ok(vec![Array::F(out)])
}

/// Whether a factor of `FusedMatMul` is transposed in its last two dims.
fn is_transposed(op: &Op, side: usize, rank: usize) -> Result<bool, String> {
    let [transposed, batch] = [["transA", "transBatchA"], ["transB", "transBatchB"]][side];
    if op.int(batch) == Some(1) {
        return Err(format!("`{batch}` is not known"));
    }
    Ok(op.int(transposed) == Some(1) && rank > 1)
}

fn infer_fused_matmul(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..2)?;
    let batched = ["transBatchA", "transBatchB"].iter().any(|name| ctx.op.int(name) == Some(1));
    let shapes = ctx.shape(0).zip(ctx.shape(1)).filter(|_| !batched);
    let Some((a, b)) = shapes else { return Ok(vec![Type::maybe(dtype, None)]) };
    let side = |i: usize, shape: &Shape| -> Result<Shape, String> {
        let (mut shape, rank) = (shape.clone(), shape.len());
        if is_transposed(ctx.op, i, rank)? {
            shape.swap(rank - 1, rank - 2);
        }
        Ok(shape)
    };
    Ok(vec![Type::maybe(dtype, Some(product_shape(&side(0, a)?, &side(1, b)?)?))])
}

fn eval_fused_matmul(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let side = |i: usize| -> Result<ArrayD<f64>, String> {
        let (mut x, rank) = (ctx.f(i)?.clone(), ctx.f(i)?.ndim());
        if is_transposed(ctx.op, i, rank)? {
            x.swap_axes(rank - 1, rank - 2);
        }
        Ok(x)
    };
    let alpha = f64::from(ctx.op.float("alpha").unwrap_or(1.0));
    Ok(vec![Array::F(matmul(&side(0)?, &side(1)?)? * alpha)])
}

fn eval_fused_gemm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let alpha = f64::from(ctx.op.float("activation_alpha").unwrap_or_default());
    let activation = |x: f64| -> Result<f64, String> {
        match ctx.op.str("activation").unwrap_or_default() {
            "" => Ok(x),
            "Relu" => Ok(x.max(0.0)),
            "Tanh" => Ok(x.tanh()),
            "Sigmoid" => Ok(1.0 / (1.0 + (-x).exp())),
            "LeakyRelu" => Ok(if x < 0.0 { alpha * x } else { x }),
            other => Err(format!("activation `{other}` is not known")),
        }
    };
    let mut product = eval_gemm(ctx)?;
    for x in product.iter_mut().filter_map(|a| if let Array::F(a) = a { Some(a) } else { None }).flatten() {
        *x = activation(*x)?;
    }
    Ok(product)
}
