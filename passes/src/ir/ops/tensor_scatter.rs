//! `TensorScatter` (`ai.onnx`, opset 24): updates written into a cache, each row from a place of its own on.

use super::ROW;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use ndarray::{Axis, Slice};

pub(super) const OPS: &[OpSpec] = &[OpSpec {
    name: "TensorScatter",
    inputs: 2..=3,
    attrs: &[("axis", AttrSpec::Int(-2)), ("mode", AttrSpec::Str("linear"))],
    infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
    eval,
    ..ROW
}];

fn eval(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (mut cache, update) = (ctx.f(0)?.clone(), ctx.f(1)?);
    let axis = resolve_axis(ctx.op.int("axis").unwrap_or(-2), cache.ndim())?;
    if axis == 0 {
        return Err("axis 0 is that of the rows".to_owned());
    }
    let starts = if ctx.has(2) { Some(ctx.i(2)?) } else { None };
    let (places, count) = (cache.len_of(Axis(axis)), update.len_of(Axis(axis)));
    let circular = ctx.op.str("mode") == Some("circular");
    for row in 0..cache.len_of(Axis(0)) {
        let start = starts.and_then(|starts| starts.iter().nth(row)).copied().unwrap_or(0);
        let start = usize::try_from(start).map_err(|_| format!("place {start} is below zero"))?;
        for at in 0..count {
            let place = if circular { (start + at) % places } else { start + at };
            if place >= places {
                return Err(format!("place {place} of {places} is not there"));
            }
            let from = update.index_axis(Axis(0), row);
            let from = from.slice_axis(Axis(axis - 1), Slice::from(at..at + 1));
            let mut row = cache.index_axis_mut(Axis(0), row);
            row.slice_axis_mut(Axis(axis - 1), Slice::from(place..place + 1)).assign(&from);
        }
    }
    Ok(vec![Array::F(cache)])
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::Array;
    use crate::ir::text::parse;
    use crate::testing::run;

    fn after(attrs: &str, places: &[i64]) -> Vec<f64> {
        let text = format!(
            r#"graph "g" {{
  input %cache: f32[2, 1, 3, 1]
  input %new: f32[2, 1, 2, 1]
  input %at: i64[2]
  %y = TensorScatter(%cache, %new, %at) {{{attrs}}}
  output "y" %y
}}"#
        );
        let graph = parse(&text).expect("a graph");
        let numbers = |dims: &[usize], from: u8| {
            let count: usize = dims.iter().product();
            let values = (0..count).map(|i| f64::from(from) + i as f64).collect();
            Array::from_f64(dims, values).expect("numbers")
        };
        let at = Array::from_i64(&[2], places.to_vec()).expect("places");
        let given = [("cache", numbers(&[2, 1, 3, 1], 0)), ("new", numbers(&[2, 1, 2, 1], 10)), ("at", at)];
        run(&graph, &given)["y"].to_f64()
    }

    #[test]
    fn each_row_is_written_from_its_own_place_on() {
        assert_eq!(after("", &[0, 1]), [10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
        assert_eq!(after("mode: \"circular\"", &[2, 1]), [11.0, 1.0, 10.0, 3.0, 12.0, 13.0]);
    }
}
