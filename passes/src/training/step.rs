//! The graph that a training step runs: tokens and parameters in, the loss and the gradients out.

use super::TrainingError;
use super::finish::complete;
use super::loss::{Loss, Teacher, cross_entropy, split_rows};
use super::parameters::{Group, ParameterLayout, Precision};
use super::specialize::{Size, Specialized, specialize};
use crate::autodiff::gradients_from;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::Patch;
use crate::ir::shape::Dim;
use crate::precision::mixed::mix;
use dijiang_format::dtype::DType;
use dijiang_format::names::LOGITS;

/// The labels, i64 `[batch, sequence]`: the tokens themselves, or [`super::loss::IGNORE`].
pub const LABELS: &str = "labels";
/// f32 of rank 0.
pub const LOSS: &str = "loss";
/// f32 of rank 0: the sum of the losses of the tokens that count.
pub const LOSS_SUM: &str = "loss_sum";
/// f32 of rank 0: how many tokens count.
pub const COUNT: &str = "count";
/// f32 of rank 0: the mean of KL(teacher ‖ model), where there is a teacher.
pub const DIVERGENCE: &str = "kl";
/// A teacher's logits, in chunks: this and the number of the chunk.
pub const TEACHER: &str = "teacher.";
/// What gradients so far are called: the gradients' own name with this in front.
pub const SO_FAR: &str = "so_far.";

/// How a step computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    pub size: Size,
    pub precision: Precision,
    pub batches: Batches,
    /// With a teacher, the weight of the divergence from it in the loss.
    pub teacher: Option<f64>,
}

/// Which of the batches of an update a step works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// The only one.
    One,
    /// The first of several; gradients are f32 in any precision.
    First,
    /// One after that: gradients so far are inputs that this step's are added to.
    Later,
}

impl StepOptions {
    /// The element type of a group's gradients.
    pub fn gradient_type(&self, group: &Group) -> DType {
        match self.batches {
            Batches::One => self.precision.of_group(group),
            Batches::First | Batches::Later => DType::F32,
        }
    }
}

/// Loss and gradients of a model with the output `logits`.
pub fn training_step(
    model: &Graph,
    layout: &ParameterLayout,
    how: &StepOptions,
) -> Result<Graph, TrainingError> {
    step_in_chunks(model, layout, how, CHUNK_LEN)
}

/// The same with chunks of so many logits, at most.
fn step_in_chunks(
    model: &Graph,
    layout: &ParameterLayout,
    how: &StepOptions,
    chunk_len: u64,
) -> Result<Graph, TrainingError> {
    let (special, logits) = forward(model, layout, how.size, how.precision, chunk_len)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "training_step");
        let p = &mut patch;
        let teacher = how.teacher.map(|weight| Teacher { logits: taught(p, &logits, how.precision), weight });
        let loss = write_loss(p, &logits, how.size, teacher.as_ref(), true);
        let seeds: Vec<(ValueId, ValueId)> = logits.into_iter().zip(loss.gradients).collect();
        p.set_scope("backward");
        let found = gradients_from(p, &seeds, &special.inputs())?;
        write_gradients(p, layout, found, how)?;
        drop_chunks(p, &special.graph);
        patch.finish()
    };
    complete(special.graph, change)
}

/// The loss alone.
pub fn evaluation(
    model: &Graph,
    layout: &ParameterLayout,
    size: Size,
    precision: Precision,
) -> Result<Graph, TrainingError> {
    let (special, logits) = forward(model, layout, size, precision, CHUNK_LEN)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "evaluation");
        write_loss(&mut patch, &logits, size, None, false);
        drop_chunks(&mut patch, &special.graph);
        patch.finish()
    };
    complete(special.graph, change)
}

/// The logits of a frozen model whose parameters are inputs: tokens in, [`TEACHER`] chunks out.
pub fn teacher(
    model: &Graph,
    layout: &ParameterLayout,
    size: Size,
    precision: Precision,
) -> Result<Graph, TrainingError> {
    let (special, logits) = forward(model, layout, size, precision, CHUNK_LEN)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "teacher");
        patch.set_scope("teacher");
        for (i, chunk) in logits.into_iter().enumerate() {
            let chunk = patch.cast(chunk, precision.of_logits());
            patch.output(&format!("{TEACHER}{i:04}"), chunk);
        }
        drop_chunks(&mut patch, &special.graph);
        patch.finish()
    };
    complete(special.graph, change)
}

/// Inputs for a teacher's logits, chunk by chunk as the model's own.
fn taught(p: &mut Patch<'_>, logits: &[ValueId], precision: Precision) -> Vec<ValueId> {
    let dims = |p: &mut Patch<'_>, chunk| [0, 1].map(|axis| Dim::Known(p.known_dim(chunk, axis))).to_vec();
    let chunks = logits.iter().enumerate().map(|(i, chunk)| {
        let dims = dims(p, *chunk);
        p.input(&format!("{TEACHER}{i:04}"), precision.of_logits(), dims)
    });
    chunks.collect()
}

/// The model with its logits in chunks of rows.
fn forward(
    model: &Graph,
    layout: &ParameterLayout,
    size: Size,
    precision: Precision,
    chunk_len: u64,
) -> Result<(Specialized, Vec<ValueId>), TrainingError> {
    let mut special = specialize(model, layout, size, precision, &|name| name == LOGITS)?;
    cut_logits(&mut special.graph, size, chunk_len)?;
    let special = in_precision(special, precision)?;
    let names = special.graph.outputs().iter().filter(|(name, _)| name.starts_with(CHUNK));
    let logits: Vec<ValueId> = names.map(|(_, value)| *value).collect();
    match logits.is_empty() {
        true => Err(TrainingError::NoLogits),
        false => Ok((special, logits)),
    }
}

/// Outputs that hold chunks of the logits, `[rows, vocab]`, while the graph is made.
const CHUNK: &str = "logits.";

/// Elements of a chunk, at most. The loss passes over several f32 tensors of this size.
const CHUNK_LEN: u64 = 1 << 26;

/// Cuts the product that makes the logits into chunks of rows, so that they never exist as a whole.
fn cut_logits(graph: &mut Graph, size: Size, chunk_len: u64) -> Result<(), TrainingError> {
    let logits = graph.output(LOGITS).ok_or(TrainingError::NoLogits)?;
    let mut patch = Patch::new(graph, "cut_logits");
    let p = &mut patch;
    p.set_scope(LOGITS);
    let vocab = p.known_dim(logits, 2);
    let product = p.graph().made_by(logits, "MatMul").and_then(|n| Some((n.input(0)?, n.input(1)?)));
    let product = product.filter(|(_, weight)| p.graph().value(*weight).ty.rank() == Some(2));
    let tokens = size.batch * size.sequence;
    let rows = chunk_rows(tokens, vocab, chunk_len);
    let chunks = match product {
        Some((hidden, weight)) if rows.len() > 1 => {
            let width = p.known_dim(hidden, 2) as i64;
            let flat = p.reshape(hidden, &[-1, width]);
            let parts = split_rows(p, flat, &rows);
            parts.into_iter().map(|part| p.matmul(part, weight)).collect()
        }
        _ => vec![p.reshape(logits, &[-1, vocab as i64])],
    };
    for (i, chunk) in chunks.into_iter().enumerate() {
        p.output(&format!("{CHUNK}{i:04}"), chunk);
    }
    p.drop_output(LOGITS);
    let change = patch.finish();
    graph.apply(change)?;
    Ok(())
}

/// Chunks alike but for the last, of a multiple of 64 rows, which is what matrix products do best.
fn chunk_rows(tokens: u64, vocab: u64, chunk_len: u64) -> Vec<i64> {
    let count = (tokens * vocab).div_ceil(chunk_len);
    let rows = tokens.div_ceil(count).next_multiple_of(64).min(tokens);
    let mut sizes = vec![rows as i64; (tokens / rows) as usize];
    sizes.extend(Some((tokens % rows) as i64).filter(|rest| *rest > 0));
    sizes
}

fn drop_chunks(p: &mut Patch<'_>, graph: &Graph) {
    let names = graph.outputs().iter().map(|(name, _)| name).filter(|name| name.starts_with(CHUNK));
    names.for_each(|name| p.drop_output(name));
}

pub(super) fn in_precision(model: Specialized, precision: Precision) -> Result<Specialized, TrainingError> {
    match precision {
        Precision::F32 => Ok(model),
        Precision::Bf16 => Ok(Specialized { graph: mix(&model.graph)?, parameters: model.parameters }),
    }
}

fn write_loss(
    p: &mut Patch<'_>,
    logits: &[ValueId],
    size: Size,
    teacher: Option<&Teacher>,
    with_gradient: bool,
) -> Loss {
    let labels = p.input(LABELS, DType::I64, vec![Dim::Known(size.batch), Dim::Known(size.sequence)]);
    let loss = cross_entropy(p, logits, labels, teacher, with_gradient);
    p.output(LOSS, loss.mean);
    p.output(LOSS_SUM, loss.sum);
    p.output(COUNT, loss.count);
    if let Some(divergence) = loss.divergence {
        p.output(DIVERGENCE, divergence);
    }
    loss
}

/// Each parameter's gradient.
pub(super) fn write_gradients(
    p: &mut Patch<'_>,
    layout: &ParameterLayout,
    found: Vec<Option<ValueId>>,
    how: &StepOptions,
) -> Result<(), TrainingError> {
    let groups = layout.groups.iter().flat_map(|g| g.parameters.iter().map(move |q| (g, q)));
    for ((group, parameter), gradient) in groups.zip(found) {
        let gradient = gradient.ok_or_else(|| TrainingError::Unused { name: parameter.name.clone() })?;
        p.set_scope(&format!("gradients/{}", parameter.name));
        let gradient = p.cast(gradient, how.gradient_type(group));
        let total = match how.batches {
            Batches::Later => {
                let dims: Vec<Dim> = parameter.dims.iter().map(|d| Dim::Known(*d)).collect();
                let so_far = p.input(&format!("{SO_FAR}{}", parameter.gradient()), DType::F32, dims);
                p.add(so_far, gradient)
            }
            Batches::One | Batches::First => gradient,
        };
        p.output(&parameter.gradient(), total);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::loss::IGNORE;
    use super::super::parameters::{Parameter, Selection};
    use super::super::specialize::TOKENS;
    use super::*;
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::parse;
    use crate::testing::{relative_error, run};
    use std::collections::BTreeMap;

    const VOCAB: i64 = 11;

    const SIZE: Size = Size { batch: 4, sequence: 25 };

    const MODEL: &str = r#"graph "lm" {
  input %input_ids: i64[batch, time]
  weight %embed.weight: f32[11, 4] = random(1)
  weight %mlp.weight: f32[4, 4] = random(2)
  weight %head.weight: f32[4, 11] = random(3)
  %x = Gather(%embed.weight, %input_ids) "embed"
  %y = MatMul(%x, %mlp.weight) "mlp"
  %gate = Sigmoid(%y) "gate"
  %z = Mul(%y, %gate) "gated"
  %logits = MatMul(%z, %head.weight) "head"
  output "logits" %logits
}"#;

    /// A small language model with its parameters as training sees them.
    struct Setting {
        model: Graph,
        layout: ParameterLayout,
    }

    type Outputs = BTreeMap<String, Array>;

    impl Setting {
        fn new() -> Self {
            let model = parse(MODEL).expect("it parses");
            let layout = ParameterLayout::of(&model, &Selection::All).expect("there are parameters");
            Self { model, layout }
        }

        fn step(&self, chunk_len: u64) -> Graph {
            self.step_with(chunk_len, None)
        }

        fn step_with(&self, chunk_len: u64, teacher: Option<f64>) -> Graph {
            let (precision, batches) = (Precision::F32, Batches::One);
            let how = StepOptions { size: SIZE, precision, batches, teacher };
            step_in_chunks(&self.model, &self.layout, &how, chunk_len).expect("it is made")
        }

        /// The inputs of a training graph.
        fn given(&self) -> Outputs {
            let parameter = |(_, name, tensor): (_, &str, &_)| {
                (format!("parameter.{name}"), Array::from_tensor(tensor).expect("numbers"))
            };
            let mut given: Outputs = self.model.consts().map(parameter).collect();
            given.insert(TOKENS.to_owned(), tokens(&ids()));
            given.insert(LABELS.to_owned(), tokens(&labels()));
            given
        }
    }

    fn ids() -> Vec<i64> {
        (0..100).map(|i| (i * i + 3 * i) % VOCAB).collect()
    }

    /// Some do not count, in each chunk.
    fn labels() -> Vec<i64> {
        let ignored = [4, 30, 31, 90];
        ids().into_iter().enumerate().map(|(i, id)| if ignored.contains(&i) { IGNORE } else { id }).collect()
    }

    fn tokens(ids: &[i64]) -> Array {
        Array::from_i64(&[SIZE.batch as usize, SIZE.sequence as usize], ids.to_vec()).expect("ids fill dims")
    }

    fn outputs(graph: &Graph, given: &Outputs) -> Outputs {
        let given: Vec<(&str, Array)> = given.iter().map(|(n, x)| (n.as_str(), x.clone())).collect();
        run(graph, &given)
    }

    /// Each token's logits.
    fn logits(model: &Graph) -> Vec<Vec<f64>> {
        let given = BTreeMap::from([(model.input(TOKENS).expect("tokens"), tokens(&ids()))]);
        let logits = eval(model, &given, &[model.output(LOGITS).expect("logits")]).expect("it runs");
        logits[0].to_f64().chunks(VOCAB as usize).map(<[f64]>::to_vec).collect()
    }

    fn log_softmax(logits: &[f64]) -> Vec<f64> {
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum = logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most;
        logits.iter().map(|x| x - sum).collect()
    }

    /// The tokens that have a label to predict, and the label.
    fn predicted() -> Vec<(usize, usize)> {
        let labels = labels();
        let has_next = |i: &usize| !(i + 1).is_multiple_of(SIZE.sequence as usize);
        let pairs = (0..labels.len()).filter(has_next).map(|i| (i, labels[i + 1]));
        pairs.filter(|(_, label)| *label != IGNORE).map(|(i, label)| (i, label as usize)).collect()
    }

    #[test]
    fn the_loss_is_the_mean_over_the_tokens_that_count() {
        let setting = Setting::new();
        let found = outputs(&setting.step(CHUNK_LEN), &setting.given());
        let logits = logits(&setting.model);
        let predicted = predicted();
        let sum: f64 = predicted.iter().map(|(i, label)| -log_softmax(&logits[*i])[*label]).sum();
        let number = |name: &str| found[name].to_f64()[0];
        assert_eq!((number(COUNT), predicted.len()), (92.0, 92));
        // Both are computed in f64.
        assert!((number(LOSS_SUM) / sum - 1.0).abs() < 1e-12);
        assert!((number(LOSS) * 92.0 / sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn chunks_give_the_loss_and_the_gradients_of_the_whole() {
        assert_eq!(chunk_rows(100, VOCAB as u64, 600), [64, 36]);
        let setting = Setting::new();
        let (whole, chunks) = (setting.step(CHUNK_LEN), setting.step(600));
        let softmaxes = |graph: &Graph| graph.nodes().filter(|(_, node)| node.op.is("Softmax")).count();
        assert_eq!((softmaxes(&whole), softmaxes(&chunks)), (1, 2));
        let [whole, chunks] = [whole, chunks].map(|graph| outputs(&graph, &setting.given()));
        assert_eq!(whole.len(), 6, "three numbers and three gradients");
        for (name, want) in &whole {
            // Sums in another order, in f64.
            let error = relative_error(&chunks[name], want);
            assert!(error < 1e-12, "{name}: {error}");
        }
    }

    #[test]
    fn chunks_are_of_64_rows_and_all_there() {
        assert_eq!(chunk_rows(100, 11, CHUNK_LEN), [100]);
        assert_eq!(chunk_rows(8192, 49152, CHUNK_LEN), [1408, 1408, 1408, 1408, 1408, 1152]);
        assert_eq!(chunk_rows(40, 11, 44), [40]);
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let setting = Setting::new();
        check_gradients(&setting.step(600), &setting.given());
    }

    /// A teacher's logits in chunks of 64 and 36 rows.
    fn with_teacher(setting: &Setting, teacher: &[f64]) -> Outputs {
        let mut given = setting.given();
        let (first, second) = teacher.split_at(64 * VOCAB as usize);
        for (i, part) in [first, second].into_iter().enumerate() {
            let dims = [part.len() / VOCAB as usize, VOCAB as usize];
            let chunk = Array::from_f64(&dims, part.to_vec()).expect("logits fill dims");
            given.insert(format!("{TEACHER}{i:04}"), chunk);
        }
        given
    }

    #[test]
    fn a_teacher_adds_its_divergence() {
        let setting = Setting::new();
        let aims = crate::testing::noise(&[100, VOCAB as usize], 8).to_f64();
        let graph = setting.step_with(600, Some(0.5));
        let given = with_teacher(&setting, &aims);
        let found = outputs(&graph, &given);
        let logits = logits(&setting.model);
        let divergence = |i: usize| -> f64 {
            let aim = log_softmax(&aims[i * VOCAB as usize..][..VOCAB as usize]);
            aim.iter().zip(log_softmax(&logits[i])).map(|(a, own)| a.exp() * (a - own)).sum()
        };
        let mean = predicted().into_iter().map(|(i, _)| divergence(i)).sum::<f64>() / 92.0;
        let number = |name: &str| found[name].to_f64()[0];
        let entropy = number(LOSS_SUM) / number(COUNT);
        assert!((number(DIVERGENCE) / mean - 1.0).abs() < 1e-12, "{mean}");
        assert!((number(LOSS) / (entropy + 0.5 * mean) - 1.0).abs() < 1e-12);
        check_gradients(&graph, &given);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let setting = Setting::new();
        let graph = teacher(&setting.model, &setting.layout, SIZE, Precision::F32).expect("it is made");
        let mut given = setting.given();
        given.remove(LABELS);
        let aims = outputs(&graph, &given)[&format!("{TEACHER}0000")].to_f64();
        let found = outputs(&setting.step_with(600, Some(0.5)), &with_teacher(&setting, &aims));
        assert!(found[DIVERGENCE].to_f64()[0].abs() < 1e-14);
        let alone = outputs(&setting.step(600), &setting.given());
        for name in setting.layout.parameters().map(Parameter::gradient) {
            assert!(relative_error(&found[&name], &alone[&name]) < 1e-12, "{name}");
        }
    }

    /// Each gradient in a direction against finite differences of four points.
    fn check_gradients(graph: &Graph, given: &Outputs) {
        const STEP: f64 = 1e-3;
        let found = outputs(graph, given);
        for name in given.keys().filter(|name| name.starts_with("parameter.")) {
            let gradient = found[&name.replace("parameter.", "gradient.")].to_f64();
            let direction = crate::testing::noise(&[gradient.len()], 5).to_f64();
            let loss = |by: f64| {
                let mut moved = given.clone();
                if let Some(Array::F(x)) = moved.get_mut(name) {
                    x.iter_mut().zip(&direction).for_each(|(x, d)| *x += by * STEP * d);
                }
                outputs(graph, &moved)[LOSS].to_f64()[0]
            };
            let want = (8.0 * (loss(1.0) - loss(-1.0)) - (loss(2.0) - loss(-2.0))) / (12.0 * STEP);
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            // Off by h⁴/30 of the fifth derivative, some 1e-12, and by rounding, some 1e-13.
            assert!((slope - want).abs() < 1e-10 * want.abs().max(1.0), "{name}: {slope}, expected {want}");
        }
    }
}
