//! Operators that work element by element, with broadcasting.

use super::ROW;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, OpSpec};
use crate::ir::shape::{Dim, broadcast, show};
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, IxDyn, Zip};

pub(super) const OPS: &[OpSpec] = &[
    unary("Abs", abs),
    unary("Ceil", |c| float_map(c, f64::ceil)),
    unary("Cos", |c| float_map(c, f64::cos)),
    unary("Erf", |c| float_map(c, statrs::function::erf::erf)),
    unary("Exp", |c| float_map(c, f64::exp)),
    unary("Floor", |c| float_map(c, f64::floor)),
    unary("Log", |c| float_map(c, f64::ln)),
    unary("Neg", neg),
    unary("Reciprocal", |c| float_map(c, f64::recip)),
    unary("Relu", |c| float_map(c, |x| x.max(0.0))),
    unary("Round", |c| float_map(c, f64::round_ties_even)),
    unary("Sigmoid", |c| float_map(c, sigmoid)),
    unary("Sign", sign),
    unary("Sin", |c| float_map(c, f64::sin)),
    unary("Softplus", |c| float_map(c, softplus)),
    unary("Sqrt", |c| float_map(c, f64::sqrt)),
    unary("Tanh", |c| float_map(c, f64::tanh)),
    unary("Identity", |c| Ok(vec![c.input(0)?.clone()])),
    OpSpec { infer: infer_bool, ..unary("Not", |c| Ok(vec![Array::B(c.input(0)?.as_b()?.mapv(|x| !x))])) },
    OpSpec { infer: infer_bool, ..unary("IsNaN", |c| Ok(vec![Array::B(c.f(0)?.mapv(f64::is_nan))])) },
    OpSpec { infer: infer_arithmetic, ..binary("Add", |c| arithmetic(c, |a, b| a + b, i64::checked_add)) },
    OpSpec { infer: infer_arithmetic, ..binary("Sub", |c| arithmetic(c, |a, b| a - b, i64::checked_sub)) },
    OpSpec { infer: infer_arithmetic, ..binary("Mul", |c| arithmetic(c, |a, b| a * b, i64::checked_mul)) },
    OpSpec { infer: infer_arithmetic, ..binary("Div", |c| arithmetic(c, |a, b| a / b, i64::checked_div)) },
    OpSpec { attrs: &[("fmod", AttrSpec::Int(0))], ..binary("Mod", eval_mod) },
    binary("Pow", |c| arithmetic(c, f64::powf, |a, b| a.checked_pow(b.try_into().ok()?))),
    OpSpec { inputs: 1..=64, ..binary("Max", |c| fold(c, f64::max, i64::max)) },
    OpSpec { inputs: 1..=64, ..binary("Min", |c| fold(c, f64::min, i64::min)) },
    comparison("Equal", |c| compare(c, |a, b| a == b)),
    comparison("Greater", |c| compare(c, |a, b| a > b)),
    comparison("GreaterOrEqual", |c| compare(c, |a, b| a >= b)),
    comparison("Less", |c| compare(c, |a, b| a < b)),
    comparison("LessOrEqual", |c| compare(c, |a, b| a <= b)),
    comparison("And", |c| logic(c, |a, b| a && b)),
    comparison("Or", |c| logic(c, |a, b| a || b)),
    comparison("Xor", |c| logic(c, |a, b| a != b)),
    OpSpec { name: "Where", inputs: 3..=3, infer: infer_where, eval: eval_where, ..ROW },
    OpSpec {
        name: "Cast",
        // The ONNX number of the type, translated by the importer and exporter.
        attrs: &[("to", AttrSpec::Str("f32")), ("saturate", AttrSpec::Int(1))],
        infer: infer_cast,
        eval: eval_cast,
        ..ROW
    },
    OpSpec { name: "Clip", inputs: 1..=3, infer: infer_same, eval: eval_clip, ..ROW },
];

type EvalFn = fn(&EvalContext<'_>) -> Result<Vec<Array>, String>;

const fn unary(name: &'static str, eval: EvalFn) -> OpSpec {
    OpSpec { name, infer: infer_same, eval, ..ROW }
}

const fn binary(name: &'static str, eval: EvalFn) -> OpSpec {
    OpSpec { name, inputs: 2..=2, infer: infer_binary, eval, ..ROW }
}

const fn comparison(name: &'static str, eval: EvalFn) -> OpSpec {
    OpSpec { name, inputs: 2..=2, infer: infer_comparison, eval, ..ROW }
}

fn infer_same(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let ints = ctx.ints(0).filter(|_| ctx.op.is("Identity")).cloned();
    Ok(vec![Type::maybe(ctx.dtype(0), ctx.shape(0).cloned()).with_ints(ints)])
}

fn infer_bool(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    Ok(vec![Type::maybe(Some(DType::Bool), ctx.shape(0).cloned())])
}

fn infer_binary(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    let mut shape = ctx.shape(0).cloned();
    for i in 1..ctx.inputs.len() {
        shape = broadcast_maybe(shape.as_ref(), ctx.shape(i))?;
    }
    Ok(vec![Type::maybe(dtype, shape).with_ints(int_extreme(ctx))])
}

/// `Min` and `Max` of followed integers.
fn int_extreme(ctx: &InferContext<'_>) -> Option<Vec<Dim>> {
    let pick: fn(&Dim, &Dim) -> Dim = match ctx.op.name() {
        "Min" => Dim::least,
        "Max" => Dim::most,
        _ => return None,
    };
    let first = ctx.ints(0)?;
    (1..ctx.inputs.len()).try_fold(first.clone(), |acc, i| zip_ints(&acc, ctx.ints(i)?, pick))
}

fn infer_arithmetic(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let types = infer_binary(ctx)?;
    let ints = ctx.ints(0).zip(ctx.ints(1)).and_then(|(a, b)| {
        zip_ints(a, b, |a, b| match (ctx.op.name(), a, b) {
            ("Add", a, b) => a.plus(b),
            ("Mul", a, b) => a.times(b),
            ("Sub", a, b) => a.minus(b),
            ("Div", a, Dim::Known(1)) => a.clone(),
            ("Div", Dim::Known(a), Dim::Known(b)) => a.checked_div(*b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        })
    });
    Ok(types.into_iter().map(|t| t.with_ints(ints.clone())).collect())
}

fn zip_ints(a: &[Dim], b: &[Dim], f: impl Fn(&Dim, &Dim) -> Dim) -> Option<Vec<Dim>> {
    match (a, b) {
        ([a], b) => Some(b.iter().map(|b| f(a, b)).collect()),
        (a, [b]) => Some(a.iter().map(|a| f(a, b)).collect()),
        (a, b) if a.len() == b.len() => Some(a.iter().zip(b).map(|(a, b)| f(a, b)).collect()),
        _ => None,
    }
}

fn infer_comparison(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    same_dtype(ctx, 0..2)?;
    Ok(vec![Type::maybe(Some(DType::Bool), broadcast_maybe(ctx.shape(0), ctx.shape(1))?)])
}

fn infer_where(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 1..3)?;
    let branches = broadcast_maybe(ctx.shape(1), ctx.shape(2))?;
    let shape = broadcast_maybe(ctx.shape(0), branches.as_ref())?;
    Ok(vec![Type::maybe(dtype, shape).with_ints(chosen_ints(ctx))])
}

/// Followed integers chosen by a constant condition.
fn chosen_ints(ctx: &InferContext<'_>) -> Option<Vec<Dim>> {
    let condition = ctx.consts.first().copied().flatten().filter(|t| t.dims().len() <= 1)?.to_i64()?;
    let (yes, no) = (ctx.ints(1)?, ctx.ints(2)?);
    let len = condition.len().max(yes.len()).max(no.len());
    let place = |i: usize, of: usize| if of == 1 { 0 } else { i };
    (0..len)
        .map(|i| match condition.get(place(i, condition.len()))? {
            0 => no.get(place(i, no.len())).cloned(),
            _ => yes.get(place(i, yes.len())).cloned(),
        })
        .collect()
}

fn infer_cast(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let to: DType = cast_target(ctx.op.str("to"))?;
    let ints = ctx.ints(0).filter(|_| to.is_int()).cloned();
    Ok(vec![Type::maybe(Some(to), ctx.shape(0).cloned()).with_ints(ints)])
}

fn cast_target(to: Option<&str>) -> Result<DType, String> {
    to.unwrap_or_default().parse().map_err(|e: dijiang_format::dtype::UnknownDType| e.to_string())
}

/// The one element type of several inputs.
pub(super) fn same_dtype(
    ctx: &InferContext<'_>,
    inputs: std::ops::Range<usize>,
) -> Result<Option<DType>, String> {
    let mut found = None;
    for dtype in inputs.filter_map(|i| ctx.dtype(i)) {
        match found {
            Some(other) if other != dtype => return Err(format!("the inputs are {other} and {dtype}")),
            _ => found = Some(dtype),
        }
    }
    Ok(found)
}

pub(super) fn broadcast_maybe(
    a: Option<&Vec<Dim>>,
    b: Option<&Vec<Dim>>,
) -> Result<Option<Vec<Dim>>, String> {
    let Some((a, b)) = a.zip(b) else { return Ok(None) };
    match broadcast(a, b) {
        Some(shape) => Ok(Some(shape)),
        None => Err(format!("{} and {} do not broadcast", show(a), show(b))),
    }
}

fn float_map(ctx: &EvalContext<'_>, f: fn(f64) -> f64) -> Result<Vec<Array>, String> {
    Ok(vec![Array::F(ctx.f(0)?.mapv(f))])
}

fn neg(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    Ok(vec![match ctx.input(0)? {
        Array::I(a) => Array::I(a.mapv(i64::wrapping_neg)),
        other => Array::F(other.as_f()?.mapv(|x| -x)),
    }])
}

fn abs(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    Ok(vec![match ctx.input(0)? {
        Array::I(a) => Array::I(a.mapv(i64::wrapping_abs)),
        other => Array::F(other.as_f()?.mapv(f64::abs)),
    }])
}

fn sign(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let sign = |x: f64| if x == 0.0 { x } else { x.signum() };
    Ok(vec![match ctx.input(0)? {
        Array::I(a) => Array::I(a.mapv(i64::signum)),
        other => Array::F(other.as_f()?.mapv(sign)),
    }])
}

/// The remainder with the sign of the divisor, or with that of the dividend for `fmod`.
fn eval_mod(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.op.int("fmod") == Some(1) {
        return arithmetic(ctx, |a, b| a % b, i64::checked_rem);
    }
    let floored = |a: i64, b: i64| {
        let rest = a.checked_rem(b)?;
        Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
    };
    arithmetic(ctx, |a, b| a - (a / b).floor() * b, floored)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Applies `f` to two arrays broadcast against each other.
pub(super) fn zip<A: Clone, B: Clone, C: Clone>(
    a: &ArrayD<A>,
    b: &ArrayD<B>,
    f: impl Fn(&A, &B) -> C,
) -> Result<ArrayD<C>, String> {
    let shape = eval_shape(a.shape(), b.shape())?;
    let view = |x: &[usize]| format!("{x:?} does not broadcast to {shape:?}");
    let left = a.broadcast(IxDyn(&shape)).ok_or_else(|| view(a.shape()))?;
    let right = b.broadcast(IxDyn(&shape)).ok_or_else(|| view(b.shape()))?;
    Ok(Zip::from(left).and(right).map_collect(f))
}

pub(super) fn eval_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let dims = |s: &[usize]| -> Vec<Dim> { s.iter().map(|d| Dim::Known(*d as u64)).collect() };
    let shape = broadcast(&dims(a), &dims(b)).ok_or_else(|| format!("{a:?} and {b:?} do not broadcast"))?;
    Ok(shape.iter().filter_map(Dim::known).map(|d| d as usize).collect())
}

fn pair(
    a: &Array,
    b: &Array,
    f: impl Fn(f64, f64) -> f64,
    i: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Array, String> {
    match (a, b) {
        (Array::F(a), Array::F(b)) => Ok(Array::F(zip(a, b, |x, y| f(*x, *y))?)),
        (Array::I(a), Array::I(b)) => {
            let out = zip(a, b, |x, y| i(*x, *y))?;
            if out.iter().any(Option::is_none) {
                return Err("integer overflow or division by zero".to_owned());
            }
            Ok(Array::I(out.mapv(Option::unwrap_or_default)))
        }
        _ => Err("expected two float or two integer inputs".to_owned()),
    }
}

fn arithmetic(
    ctx: &EvalContext<'_>,
    f: fn(f64, f64) -> f64,
    i: fn(i64, i64) -> Option<i64>,
) -> Result<Vec<Array>, String> {
    Ok(vec![pair(ctx.input(0)?, ctx.input(1)?, f, i)?])
}

fn fold(ctx: &EvalContext<'_>, f: fn(f64, f64) -> f64, i: fn(i64, i64) -> i64) -> Result<Vec<Array>, String> {
    let mut acc = ctx.input(0)?.clone();
    for n in 1..ctx.inputs.len() {
        acc = pair(&acc, ctx.input(n)?, f, |a, b| Some(i(a, b)))?;
    }
    Ok(vec![acc])
}

fn compare(ctx: &EvalContext<'_>, f: fn(f64, f64) -> bool) -> Result<Vec<Array>, String> {
    let out = match (ctx.input(0)?, ctx.input(1)?) {
        (Array::F(a), Array::F(b)) => zip(a, b, |x, y| f(*x, *y))?,
        (Array::I(a), Array::I(b)) => zip(a, b, |x, y| f(*x as f64, *y as f64))?,
        (Array::B(a), Array::B(b)) => zip(a, b, |x, y| f(f64::from(u8::from(*x)), f64::from(u8::from(*y))))?,
        _ => return Err("the inputs are of different kinds".to_owned()),
    };
    Ok(vec![Array::B(out)])
}

fn logic(ctx: &EvalContext<'_>, f: fn(bool, bool) -> bool) -> Result<Vec<Array>, String> {
    let out = zip(ctx.input(0)?.as_b()?, ctx.input(1)?.as_b()?, |x, y| f(*x, *y))?;
    Ok(vec![Array::B(out)])
}

fn select<T: Clone>(cond: &ArrayD<bool>, a: &ArrayD<T>, b: &ArrayD<T>) -> Result<ArrayD<T>, String> {
    let branches = zip(a, b, |x, y| (x.clone(), y.clone()))?;
    zip(cond, &branches, |c, (x, y)| if *c { x.clone() } else { y.clone() })
}

fn eval_where(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let cond = ctx.input(0)?.as_b()?;
    Ok(vec![match (ctx.input(1)?, ctx.input(2)?) {
        (Array::F(a), Array::F(b)) => Array::F(select(cond, a, b)?),
        (Array::I(a), Array::I(b)) => Array::I(select(cond, a, b)?),
        (Array::B(a), Array::B(b)) => Array::B(select(cond, a, b)?),
        _ => return Err("the branches are of different kinds".to_owned()),
    }])
}

fn eval_cast(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let to = cast_target(ctx.op.str("to"))?;
    Ok(vec![cast(ctx.input(0)?, to)])
}

fn cast(x: &Array, to: DType) -> Array {
    match (x, to) {
        (Array::F(a), _) if to.is_float() => Array::F(a.clone()),
        (Array::F(a), DType::Bool) => Array::B(a.mapv(|x| x != 0.0)),
        (Array::F(a), _) => Array::I(a.mapv(|x| x as i64)),
        (Array::I(a), _) if to.is_float() => Array::F(a.mapv(|x| x as f64)),
        (Array::I(a), DType::Bool) => Array::B(a.mapv(|x| x != 0)),
        (Array::I(a), _) => Array::I(a.clone()),
        (Array::B(a), _) if to.is_float() => Array::F(a.mapv(|x| f64::from(u8::from(x)))),
        (Array::B(a), DType::Bool) => Array::B(a.clone()),
        (Array::B(a), _) => Array::I(a.mapv(i64::from)),
    }
}

fn eval_clip(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let mut acc = ctx.input(0)?.clone();
    if ctx.has(1) {
        acc = pair(&acc, ctx.input(1)?, f64::max, |a, b| Some(a.max(b)))?;
    }
    if ctx.has(2) {
        acc = pair(&acc, ctx.input(2)?, f64::min, |a, b| Some(a.min(b)))?;
    }
    Ok(vec![acc])
}
