//! `dct-softmax`: φ(x) = softmax over the m features of (W x + log D), W learned per head and
//! started at T C, with `signs` at T C and -T C. The bounded form of the released code.

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, eval_rows, eval_softmax, frequency, repeat};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct DctSoftmax;

impl FeatureMap for DctSoftmax {
    fn name(&self) -> &'static str {
        "dct-softmax"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["features", "signs", "lengths", "radial", "unit"]
    }

    /// Those of a query: what they change of the sum over features is a factor per query.
    fn log_weights(&self) -> Option<&'static ParameterSpec> {
        self.parameters().iter().find(|spec| spec.name == "log_d")
    }

    fn sums_to_one(&self) -> bool {
        true
    }

    fn frequencies(&self) -> Option<&'static ParameterSpec> {
        self.parameters().iter().find(|spec| spec.name == "w")
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::learned("w"), ParameterSpec::learned("log_d")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let drawn = if spec.signs { m.div_ceil(2) } else { m };
        let t = frequency::lengths(spec, d, drawn, random);
        let v = frequency::directions(d, drawn, random);
        let mut w = frequency::scaled(&v, &t);
        if spec.signs {
            let flipped: Vec<f64> = w.iter().map(|x| -x).take((m - drawn) * d).collect();
            w.extend(flipped);
        }
        vec![repeat(heads, &[m as u64, d as u64], &w), repeat(heads, &[m as u64], &vec![0.0; m])]
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let transposed = p.transpose(parameters["w"], &[0, 2, 1]);
        let products = p.matmul(x, transposed);
        let spread = p.unsqueeze(parameters["log_d"], &[1]);
        let logits = p.add(products, spread);
        p.softmax(logits, -1)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let logits: Vec<f64> =
            eval_rows(&parameters["w"], x).iter().zip(&parameters["log_d"]).map(|(e, d)| e + d).collect();
        eval_softmax(&logits)
    }
}
