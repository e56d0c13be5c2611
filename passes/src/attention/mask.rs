//! What a mask lets through, decided by evaluating its subgraph.
//!
//! Exporters spell one mask in subgraphs of 3 to 200 nodes, so its form says little. Here it is run
//! on small shapes, with and without padding and past, and compared with what causal and padded
//! attention would let through.

use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Def, Graph, ValueId};
use crate::ir::shape::Dim;
use crate::pattern::Miss;
use std::collections::{BTreeMap, BTreeSet};

/// Which keys a query sees. Anything else is a [`Miss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    None,
    Causal,
    /// Keys whose token the value marks as padding are not seen: integers `[batch, past + sequence]`, 1 for a token.
    KeyPadding(ValueId),
    CausalKeyPadding(ValueId),
}

impl Mask {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Causal => "causal",
            Self::KeyPadding(_) => "key padding",
            Self::CausalKeyPadding(_) => "causal + key padding",
        }
    }

    pub fn is_causal(self) -> bool {
        matches!(self, Self::Causal | Self::CausalKeyPadding(_))
    }

    pub fn padding(self) -> Option<ValueId> {
        match self {
            Self::KeyPadding(v) | Self::CausalKeyPadding(v) => Some(v),
            Self::None | Self::Causal => None,
        }
    }
}

/// A bias at or below this closes a position; what is open must be [`OPEN`] near zero.
const CLOSED: f64 = -1e4;
const OPEN: f64 = 1e-6;

/// One run of the mask: two rows of `past + time` tokens, of which some are padding.
struct Trial {
    past: usize,
    time: usize,
    /// Padding at the left of row 0, and at the right of row 1.
    left: usize,
    right: usize,
}

const TRIALS: [Trial; 4] = [
    Trial { past: 0, time: 5, left: 0, right: 0 },
    Trial { past: 0, time: 6, left: 2, right: 1 },
    Trial { past: 3, time: 4, left: 0, right: 0 },
    Trial { past: 4, time: 3, left: 2, right: 0 },
];

impl Trial {
    fn total(&self) -> usize {
        self.past + self.time
    }

    /// What a query that is padding itself sees differs between exporters, and does not matter.
    fn sees_a_token(&self, row: usize, query: usize) -> bool {
        (0..=self.past + query).any(|key| self.is_token(row, key))
    }

    fn is_token(&self, row: usize, key: usize) -> bool {
        if row == 0 { key >= self.left } else { key < self.total() - self.right }
    }
}

/// The masks that explain everything seen so far.
struct Tally {
    left: Vec<Kind>,
    /// The first position that no mask explains.
    odd: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Causal,
    Padded,
    CausalPadded,
}

impl Kind {
    /// The plainest first.
    const ALL: [Self; 4] = [Self::Open, Self::Causal, Self::Padded, Self::CausalPadded];

    /// Whether a key is seen, given that it is not later than the query, and that it is a token.
    fn lets(self, earlier: bool, token: bool) -> bool {
        match self {
            Self::Open => true,
            Self::Causal => earlier,
            Self::Padded => token,
            Self::CausalPadded => earlier && token,
        }
    }
}

/// Classifies an additive mask that broadcasts to `[batch, heads, sequence, past + sequence]`. Without a
/// cache there is no past.
pub fn classify(graph: &Graph, bias: ValueId, cached: bool) -> Result<Mask, Miss> {
    let cone = cone_of(graph, bias);
    let padding = cone.inputs.iter().copied().find(|v| is_padding_input(graph, *v));
    let mut tally = Tally { left: Kind::ALL.to_vec(), odd: None };
    for trial in TRIALS.iter().filter(|t| cached || t.past == 0) {
        let allowed = run(graph, bias, &cone.inputs, padding, trial)?;
        tally.add(trial, &allowed);
    }
    for trial in long_trials(graph, bias, &cone, cached)? {
        // A mask cut from a table ends where the model's positions do; what it cannot do says nothing.
        if let Ok(allowed) = run(graph, bias, &cone.inputs, padding, &trial) {
            tally.add(&trial, &allowed);
        }
    }
    match (tally.left.first(), padding) {
        (Some(Kind::Open), _) => Ok(Mask::None),
        (Some(Kind::Causal), _) => Ok(Mask::Causal),
        (Some(Kind::Padded), Some(input)) => Ok(Mask::KeyPadding(input)),
        (Some(Kind::CausalPadded), Some(input)) => Ok(Mask::CausalKeyPadding(input)),
        _ => {
            let odd = tally.odd.unwrap_or_else(|| "it changes with the number of past tokens".to_owned());
            let reason = format!("the mask is neither causal nor key padding: {odd}");
            Err(Miss::check(&graph.value(bias).name, reason))
        }
    }
}

impl Tally {
    fn add(&mut self, trial: &Trial, allowed: &Allowed) {
        for row in 0..2 {
            for query in (0..trial.time).filter(|q| trial.sees_a_token(row, *q)) {
                for key in 0..trial.total() {
                    let (earlier, token) = (key <= trial.past + query, trial.is_token(row, key));
                    let through = allowed(row, query, key);
                    self.left.retain(|kind| kind.lets(earlier, token) == through);
                    if Kind::ALL.iter().all(|kind| kind.lets(earlier, token) != through)
                        || self.left.is_empty()
                    {
                        let verb = if through { "sees" } else { "does not see" };
                        let place =
                            format!("query {query} {verb} key {key} after {} past tokens", trial.past);
                        self.odd.get_or_insert(place);
                    }
                }
            }
        }
    }
}

/// What a value is computed from.
struct Cone {
    inputs: BTreeSet<ValueId>,
    /// Numbers that a window could be as long as.
    lengths: BTreeSet<usize>,
}

fn cone_of(graph: &Graph, value: ValueId) -> Cone {
    let mut cone = Cone { inputs: BTreeSet::new(), lengths: BTreeSet::new() };
    let (mut seen, mut stack) = (BTreeSet::new(), vec![value]);
    while let Some(value) = stack.pop() {
        if !seen.insert(value) {
            continue;
        }
        match &graph.value(value).def {
            Def::Input => {
                cone.inputs.insert(value);
            }
            Def::Const(tensor) => {
                let number = tensor.single().filter(|x| x.fract() == 0.0 && (2.0..=1e6).contains(&x.abs()));
                cone.lengths.extend(number.map(|x| x.abs() as usize));
            }
            Def::Output { node, .. } => stack.extend(graph.node(*node).inputs.iter().flatten()),
        }
    }
    cone
}

/// A length beyond which no window of a usual size hides.
const LONG: usize = 300;

/// Longest sequence that is tried without a past, where a mask is a square.
const LONGEST_SQUARE: usize = 2100;

/// Trials that are longer than any number in the mask: a window shows in them.
fn long_trials(graph: &Graph, bias: ValueId, cone: &Cone, cached: bool) -> Result<Vec<Trial>, Miss> {
    let lengths = cone.lengths.iter().copied().chain([LONG]);
    lengths
        .map(|n| match cached {
            true => Ok(Trial { past: n + 1, time: 2, left: 0, right: 0 }),
            false if n + 2 <= LONGEST_SQUARE => Ok(Trial { past: 0, time: n + 2, left: 0, right: 0 }),
            false => {
                let reason = format!("it holds the number {n}: a window that long cannot be told from none");
                Err(Miss::check(&graph.value(bias).name, reason))
            }
        })
        .collect()
}

fn is_padding_input(graph: &Graph, input: ValueId) -> bool {
    let value = graph.value(input);
    value.name.contains("mask") && value.ty.rank() == Some(2)
}

type Allowed = Box<dyn Fn(usize, usize, usize) -> bool>;

fn run(
    graph: &Graph,
    bias: ValueId,
    cone: &BTreeSet<ValueId>,
    padding: Option<ValueId>,
    trial: &Trial,
) -> Result<Allowed, Miss> {
    let mut given = BTreeMap::new();
    for input in cone {
        given.insert(*input, fill(graph, *input, padding == Some(*input), trial)?);
    }
    let name = &graph.value(bias).name;
    let fail = |reason: String| Miss::check(name, format!("the mask could not be evaluated: {reason}"));
    let out = eval(graph, &given, &[bias]).map_err(|e| fail(e.to_string()))?;
    let array = out[0].as_f().map_err(fail)?;
    let shape = [2, 1, trial.time, trial.total()];
    let Some(view) = array.broadcast(shape) else {
        return Err(fail(format!("it gives {:?}, expected {shape:?}", array.shape())));
    };
    if let Some(x) = view.iter().find(|x| x.abs() > OPEN && **x > CLOSED) {
        let reason = format!("the mask holds {x}: a bias on the scores, not only open and closed");
        return Err(Miss::check(name, reason));
    }
    let open: ndarray::Array4<bool> =
        ndarray::Array4::from_shape_fn(shape, |i| view[[i.0, i.1, i.2, i.3]] > CLOSED);
    Ok(Box::new(move |row, query, key| open[[row, 0, query, key]]))
}

/// Contents of a graph input in a trial: padding, positions, or numbers of the right shape.
fn fill(graph: &Graph, input: ValueId, is_padding: bool, trial: &Trial) -> Result<Array, Miss> {
    let value = graph.value(input);
    let shape = value.ty.shape.clone().unwrap_or_default();
    let dims: Vec<usize> = shape.iter().map(|d| size(d, trial)).collect();
    let fail = |reason: String| Miss::check(&value.name, reason);
    let len = dims.iter().product();
    let floats = value.ty.dtype.is_none_or(crate::ir::dtype::DType::is_float);
    if is_padding {
        let tokens = (0..len).map(|i| i64::from(trial.is_token(i / dims[1], i % dims[1])));
        return Array::from_i64(&dims, tokens.collect()).map_err(fail);
    }
    if floats {
        // Only its shape may matter; what its numbers do to the mask must show.
        let numbers = (0..len).map(|i| 0.37 + 0.11 * i as f64);
        return Array::from_f64(&dims, numbers.collect()).map_err(fail);
    }
    let columns = dims.last().copied().unwrap_or(1).max(1);
    let positions = (0..len).map(|i| (trial.past + i % columns) as i64);
    Array::from_i64(&dims, positions.collect()).map_err(fail)
}

/// A dim in a trial, from the name of its symbol.
fn size(dim: &Dim, trial: &Trial) -> usize {
    let Dim::Sym(symbol) = dim else { return dim.known().unwrap_or(1) as usize };
    symbol
        .name()
        .split('+')
        .map(|part| match part.trim() {
            name if name.starts_with("batch") => 2,
            name if name.starts_with("past") => trial.past,
            name if name.starts_with("total") => trial.total(),
            name => name.parse().unwrap_or(trial.time),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// A causal mask over `[past + sequence]` keys; `extra` adds lines that end in `%open` or `%bias`.
    fn mask(extra: &str) -> Result<Mask, String> {
        let graph = parse(&format!(
            r#"graph "mask" {{
  input %attention_mask: i64[batch, past + sequence]
  input %past: f32[batch, 2, past, 4]
  input %position_bias: f32[batch, 1, 1, past + sequence]
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %window: i64[] = [40]
  %total = Shape(%attention_mask) {{start: 1, end: 2}}
  %length = Squeeze(%total) {{axes: [0]}}
  %cached = Shape(%past) {{start: 2, end: 3}}
  const %end: i64[1] = [9223372036854775807]
  %keys = Range(%zero, %length, %one)
  %late = Slice(%keys, %cached, %end)
  %queries = Unsqueeze(%late) {{axes: [1]}}
  %earlier = LessOrEqual(%keys, %queries)
  const %shut: f32[] = [-1e30]
  const %clear: f32[] = [0.0]
{extra}
  output "bias" %bias
}}"#
        ))
        .expect("it parses");
        let bias = graph.output("bias").expect("bias");
        classify(&graph, bias, true).map_err(|miss| miss.reason)
    }

    #[test]
    fn a_causal_mask() {
        let found =
            mask("  %flat = Where(%earlier, %clear, %shut)\n  %bias = Unsqueeze(%flat) {axes: [0, 1]}");
        assert_eq!(found, Ok(Mask::Causal));
    }

    #[test]
    fn a_window_longer_than_the_short_trials_is_seen() {
        let window = "  %distance = Sub(%queries, %keys)
  %near = Less(%distance, %window)
  %open = And(%earlier, %near)
  %flat = Where(%open, %clear, %shut)
  %bias = Unsqueeze(%flat) {axes: [0, 1]}";
        let want =
            "the mask is neither causal nor key padding: query 0 does not see key 0 after 41 past tokens";
        assert_eq!(mask(window), Err(want.to_owned()));
    }

    #[test]
    fn numbers_that_come_in_from_outside_are_no_mask() {
        let bias = "  %flat = Where(%earlier, %clear, %shut)
  %spread = Unsqueeze(%flat) {axes: [0, 1]}
  %bias = Add(%spread, %position_bias)";
        let reason = mask(bias).expect_err("it is refused");
        assert!(reason.contains("a bias on the scores"), "{reason}");
    }
}
