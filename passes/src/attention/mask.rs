//! What is done to the scores before the softmax, scale and mask, decided by evaluating it.
//!
//! Exporters spell one mask in subgraphs of 3 to 200 nodes, add it, select with it or clamp with it, so
//! its form says little. Here everything between q kᵀ and the softmax is run on small shapes, with and
//! without padding and past, and compared with what causal and padded attention would let through.

use super::patterns::depends;
use super::trial::{Sizes, Trial, is_padding_input};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Def, Graph, ValueId};
use crate::ir::shape::show;
use crate::ir::walk::{depth_first, inputs_of};
use crate::pattern::Miss;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, MASK};
use std::collections::{BTreeMap, BTreeSet};

/// Which keys a query sees. Anything else is a [`Miss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    None,
    Causal,
    /// Keys whose token the value marks as padding are not seen: integers `[batch, past + sequence]`, 1 for a token.
    KeyPadding(ValueId),
    CausalKeyPadding(ValueId),
    Window(Window),
}

/// Query i sees key j where 0 ≤ i - j < `tokens`. Whether padding that stands between two tokens counts shows in no run
/// that is tried here, and differs between exporters; what is made of a site counts tokens alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub tokens: u32,
    /// What marks keys as padding, as of [`Mask::KeyPadding`].
    pub padding: Option<ValueId>,
}

impl Mask {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Causal => "causal",
            Self::KeyPadding(_) => "key padding",
            Self::CausalKeyPadding(_) => "causal + key padding",
            Self::Window(Window { padding: None, .. }) => "window",
            Self::Window(Window { padding: Some(_), .. }) => "window + key padding",
        }
    }

    pub fn is_causal(self) -> bool {
        matches!(self, Self::Causal | Self::CausalKeyPadding(_) | Self::Window(_))
    }

    pub fn padding(self) -> Option<ValueId> {
        match self {
            Self::KeyPadding(v) | Self::CausalKeyPadding(v) => Some(v),
            Self::Window(window) => window.padding,
            Self::None | Self::Causal => None,
        }
    }

    /// How many tokens a query sees, itself included, where they are so many and no more.
    pub fn window(self) -> Option<u32> {
        match self {
            Self::Window(window) => Some(window.tokens),
            _ => None,
        }
    }
}

/// A bias at or below this closes a position; what is open must be [`OPEN`] near zero.
const CLOSED: f64 = -1e4;
const OPEN: f64 = 1e-6;

/// The first has neither past nor padding.
const TRIALS: [Trial; 4] = [
    Trial { past: 0, time: 5, left: 0, right: 0 },
    Trial { past: 0, time: 6, left: 2, right: 1 },
    Trial { past: 3, time: 4, left: 0, right: 0 },
    Trial { past: 4, time: 3, left: 2, right: 0 },
];

/// The masks that explain everything seen so far.
struct Tally {
    left: Vec<Theory>,
    /// The first position that no mask explains.
    odd: Option<String>,
}

/// A mask that may be the one.
#[derive(Clone, Copy)]
struct Theory {
    kind: Kind,
    reach: Reach,
}

/// How far back a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    All,
    /// A window of at least and at most so many tokens, as far as was seen.
    Within(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Causal,
    Padded,
    CausalPadded,
    Counted,
    CausalCounted,
}

/// Where a key stands.
#[derive(Clone, Copy)]
struct KeyPlace {
    /// How many places before the query; none where it is later.
    age: Option<usize>,
    /// Whether the query is a token: what a window is of where it is padding differs between exporters.
    asked: bool,
    token: bool,
    /// Among the first keys, as many as the row has tokens: where padding stands after the tokens, the tokens.
    counted: bool,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Open, Self::Causal, Self::Padded, Self::CausalPadded, Self::Counted, Self::CausalCounted];

    fn is_causal(self) -> bool {
        matches!(self, Self::Causal | Self::CausalPadded | Self::CausalCounted)
    }

    fn lets(self, key: KeyPlace) -> bool {
        let padding = match self {
            Self::Open | Self::Causal => true,
            Self::Padded | Self::CausalPadded => key.token,
            Self::Counted | Self::CausalCounted => key.counted,
        };
        padding && (key.age.is_some() || !self.is_causal())
    }
}

impl Theory {
    /// The plainest first. In a window of one token padding shows nowhere, and may be told of all the same.
    fn all() -> Vec<Self> {
        let far = Kind::ALL.into_iter().map(|kind| Self { kind, reach: Reach::All });
        let near = [Kind::CausalPadded, Kind::CausalCounted, Kind::Causal];
        far.chain(near.map(|kind| Self { kind, reach: Reach::Within(1, usize::MAX) })).collect()
    }

    /// What is left of it where a key is seen, or is not; none where it cannot be so.
    fn after(self, key: KeyPlace, through: bool) -> Option<Self> {
        let lets = self.kind.lets(key);
        if self.reach != Reach::All && !key.asked {
            return Some(self);
        }
        let (Reach::Within(least, most), Some(age), true) = (self.reach, key.age, lets) else {
            return (lets == through).then_some(self);
        };
        let (least, most) = if through { (least.max(age + 1), most) } else { (least, most.min(age)) };
        (least <= most).then_some(Self { reach: Reach::Within(least, most), ..self })
    }

    /// The mask, where it is known which.
    fn mask(self, padding: Option<ValueId>) -> Option<Mask> {
        let padding = match self.kind {
            Kind::Open | Kind::Causal => None,
            // A count says less than the tokens it counts.
            Kind::Padded | Kind::CausalPadded | Kind::Counted | Kind::CausalCounted => Some(padding?),
        };
        Some(match (self.reach, padding, self.kind.is_causal()) {
            (Reach::All, None, false) => Mask::None,
            (Reach::All, None, true) => Mask::Causal,
            (Reach::All, Some(input), false) => Mask::KeyPadding(input),
            (Reach::All, Some(input), true) => Mask::CausalKeyPadding(input),
            (Reach::Within(least, most), padding, _) if least == most => {
                Mask::Window(Window { tokens: u32::try_from(most).ok()?, padding })
            }
            (Reach::Within(..), ..) => return None,
        })
    }
}

/// What stands between q kᵀ and the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    pub scale: f64,
    /// c, where a score x becomes c · tanh(x / c).
    pub softcap: Option<f64>,
    pub mask: Mask,
}

/// Finds what `scores`, the softmax's input, does to `product`, which is q kᵀ `[batch, heads, sequence,
/// keys]`: it must be scale · product where a key is seen, or a soft cap of that, and very negative where it is
/// not. Without a cache there is no past.
pub fn classify(graph: &Graph, scores: ValueId, product: ValueId, cached: bool) -> Result<Scores, Miss> {
    // A token that no trial holds may be the one that stands for padding.
    if reads_ids(graph, scores, product) {
        let reason = format!(
            "its mask is worked out from the tokens in `{IDS}`, expected from `{MASK}` (hint: export the model with the input `{MASK}`)"
        );
        return Err(Miss::check(&graph.value(scores).name, reason));
    }
    let function = Function::new(graph, scores, product)?;
    let mut tally = Tally { left: Theory::all(), odd: None };
    let trials = function.trials(cached);
    for trial in &trials {
        tally.add(trial, &function.open(trial)?);
    }
    for trial in function.long_trials(cached)? {
        // A mask cut from a table ends where the model's positions do; what it cannot do says nothing.
        if let Ok(open) = function.open(&trial) {
            tally.add(&trial, &open);
        }
    }
    let softcap = function.softcap(&trials[0])?;
    let scale = function.scale(&trials[0], softcap)?;
    let Some(mask) = tally.left.iter().find_map(|theory| theory.mask(function.padding)) else {
        let odd = tally.odd.unwrap_or_else(|| "it changes with the number of past tokens".to_owned());
        let reason = format!("the mask is neither causal nor key padding nor a window: {odd}");
        return Err(Miss::check(&graph.value(scores).name, reason));
    };
    Ok(Scores { scale, softcap, mask })
}

/// Whether what stands between a product and the softmax depends on which tokens there are, and not only on how many, nor on
/// what the model makes of them.
fn reads_ids(graph: &Graph, scores: ValueId, product: ValueId) -> bool {
    let is_float = |v: ValueId| graph.value(v).ty.dtype.is_none_or(DType::is_float);
    let ends = |v: ValueId| match graph.producer(v).map(|(id, _)| graph.node(id).op.name()) {
        Some("Shape" | "Size" | "MatMul") => true,
        Some("Gather") => is_float(v),
        _ => v == product,
    };
    let before = |v: ValueId| if ends(v) { Vec::new() } else { inputs_of(graph, v) };
    graph.input(IDS).is_some_and(|ids| depth_first(scores, before).any(|v| v == ids))
}

impl Tally {
    fn add(&mut self, trial: &Trial, open: &Open) {
        for ((row, head, query, key), through) in open.indexed_iter() {
            if !trial.sees_a_token(row, query) {
                continue;
            }
            let place = KeyPlace {
                age: (trial.past + query).checked_sub(key),
                asked: trial.is_token(row, trial.past + query),
                token: trial.is_token(row, key),
                counted: key < trial.tokens(row),
            };
            self.left.retain_mut(|theory| {
                let after = theory.after(place, *through);
                *theory = after.unwrap_or(*theory);
                after.is_some()
            });
            if self.left.is_empty() {
                let verb = if *through { "sees" } else { "does not see" };
                let past = trial.past;
                let place =
                    format!("in head {head}, query {query} {verb} key {key} after {past} past tokens");
                self.odd.get_or_insert(place);
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

/// Everything before `value`, `cut` left out.
fn cone_of(graph: &Graph, value: ValueId, cut: ValueId) -> Cone {
    let mut cone = Cone { inputs: BTreeSet::new(), lengths: BTreeSet::new() };
    let before = |v: ValueId| if v == cut { Vec::new() } else { inputs_of(graph, v) };
    let amounts = |v: ValueId| if v == cut { Vec::new() } else { amounts_in(graph, v) };
    let sums: BTreeSet<ValueId> = depth_first(value, amounts).collect();
    for value in depth_first(value, before).filter(|v| *v != cut) {
        if matches!(graph.value(value).def, Def::Input) {
            cone.inputs.insert(value);
        }
        let is_sum = sums.contains(&value);
        let amounts = if is_sum { amounts_in(graph, value) } else { Vec::new() };
        let read = inputs_of(graph, value).into_iter().filter(|v| !amounts.contains(v));
        let numbers = read.filter_map(|v| graph.as_scalar(v));
        let lengths = numbers.filter(|x| x.fract() == 0.0 && (2.0..=1e6).contains(&x.abs()));
        cone.lengths.extend(lengths.map(|x| x.abs() as usize));
    }
    cone
}

/// The inputs of a float that go into it as amounts, in proportion: what closes a position is such a number. No
/// distance is compared with it, so that it is the length of no window.
fn amounts_in(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let is_float = |v: ValueId| graph.value(v).ty.dtype.is_some_and(DType::is_float);
    let Some((node, _)) = graph.producer(value).filter(|_| is_float(value)) else { return Vec::new() };
    let node = graph.node(node);
    let inputs = inputs_of(graph, value);
    let closes = |v: &ValueId| graph.as_scalar(*v).is_some_and(|x| x <= CLOSED);
    let slots = match node.op.name() {
        _ if !node.op.domain().is_empty() => 0..0,
        "Add" | "Sub" | "Mul" | "Div" => 0..2,
        "Where" => 1..3,
        "Cast" | "Expand" | "Identity" | "Neg" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze" => 0..1,
        // A bound that is closed itself.
        "Max" if inputs.iter().any(closes) => 0..2,
        _ => 0..0,
    };
    inputs.into_iter().take(slots.end).skip(slots.start).filter(|v| is_float(*v)).collect()
}

/// A length beyond which no window of a usual size hides.
const LONG: usize = 300;

/// A product that any scale in use takes to the cap.
const LARGE: f64 = 1e9;

/// Longest sequence that is tried without a past, where a mask is a square.
const LONGEST_SQUARE: usize = 600;

/// Which keys each head's queries see: `[row, head, query, key]`.
type Open = ndarray::Array4<bool>;

/// The scores as a function of the product.
struct Function<'g> {
    graph: &'g Graph,
    scores: ValueId,
    product: ValueId,
    heads: usize,
    /// How many rows, queries and keys there are, where the graph fixes it.
    rows: Option<usize>,
    queries: Option<usize>,
    keys: Option<usize>,
    cone: Cone,
    padding: Option<ValueId>,
    sizes: Sizes,
}

impl<'g> Function<'g> {
    fn new(graph: &'g Graph, scores: ValueId, product: ValueId) -> Result<Self, Miss> {
        let shape = graph.value(product).ty.shape.clone().unwrap_or_default();
        let sizes = match shape.as_slice() {
            [rows, heads, queries, keys] => {
                [rows, heads, queries, keys].map(|d| d.known().map(|n| n as usize))
            }
            _ => [None; 4],
        };
        let [rows, Some(heads), queries, keys] = sizes else {
            let reason =
                format!("expected [batch, heads, sequence, keys] with known heads, found {}", show(&shape));
            return Err(Miss::check(&graph.value(product).name, reason));
        };
        let cone = cone_of(graph, scores, product);
        let padding = cone.inputs.iter().copied().find(|v| is_padding_input(graph, *v));
        let sizes = Sizes::of(graph);
        Ok(Self { graph, scores, product, heads, rows, queries, keys, cone, padding, sizes })
    }

    fn miss(&self, reason: impl Into<String>) -> Miss {
        Miss::check(&self.graph.value(self.scores).name, reason)
    }

    /// The short trials, as long as the graph lets them be.
    fn trials(&self, cached: bool) -> Vec<Trial> {
        TRIALS.into_iter().filter(|t| cached || t.past == 0).map(|t| self.fitted(t)).collect()
    }

    fn fitted(&self, trial: Trial) -> Trial {
        let time = self.queries.unwrap_or(trial.time);
        let past = self.keys.map_or(trial.past, |keys| keys.saturating_sub(time));
        let most = (past + time).saturating_sub(1);
        Trial { past, time, left: trial.left.min(most), right: trial.right.min(most) }
    }

    /// Trials that are longer than any number in the mask: a window shows in them.
    fn long_trials(&self, cached: bool) -> Result<Vec<Trial>, Miss> {
        // Of one length nothing is longer.
        let lengths = self.cone.lengths.iter().copied().chain([LONG]).filter(|_| self.keys.is_none());
        lengths
            .map(|n| match cached {
                true => Ok(self.fitted(Trial { past: n + 1, time: 2, left: 0, right: 0 })),
                false if n + 2 <= LONGEST_SQUARE => Ok(Trial { past: 0, time: n + 2, left: 0, right: 0 }),
                false => Err(self
                    .miss(format!("it holds the number {n}: a window that long cannot be told from none"))),
            })
            .collect()
    }

    /// The scores of a trial, `[rows, heads, sequence, keys]`, where every product is `value`.
    fn at(&self, trial: &Trial, value: f64) -> Result<ndarray::Array4<f64>, Miss> {
        let fail = |reason: String| self.miss(format!("the mask could not be evaluated: {reason}"));
        let shape = [self.rows.unwrap_or(2), self.heads, trial.time, trial.total()];
        let mut given = BTreeMap::new();
        let products = Array::from_f64(&shape, vec![value; shape.iter().product()]).map_err(fail)?;
        given.insert(self.product, products);
        for input in &self.cone.inputs {
            given.insert(*input, self.sizes.fill(self.graph, *input, self.padding, trial)?);
        }
        let out = eval(self.graph, &given, &[self.scores]).map_err(|e| fail(e.to_string()))?;
        let array = out[0].as_f().map_err(fail)?;
        let wrong = || fail(format!("it gives {:?}, expected {shape:?}", array.shape()));
        array.broadcast(shape).map(|view| view.to_owned()).ok_or_else(wrong)
    }

    fn open(&self, trial: &Trial) -> Result<Open, Miss> {
        let bias = self.at(trial, 0.0)?;
        if let Some(x) = bias.iter().find(|x| x.abs() > OPEN && **x > CLOSED) {
            return Err(
                self.miss(format!("the mask holds {x}: a bias on the scores, not only open and closed"))
            );
        }
        Ok(bias.mapv(|x| x > CLOSED))
    }

    /// What the product is multiplied with or divided by, where that is no constant.
    fn computed_factor(&self) -> Option<ValueId> {
        let on_the_way = |v: &ValueId| depends(self.graph, *v, self.product);
        let before = |v: ValueId| match v == self.product {
            true => Vec::new(),
            false => inputs_of(self.graph, v).into_iter().filter(on_the_way).collect(),
        };
        depth_first(self.scores, before).filter(|v| *v != self.product).find_map(|v| {
            let node = self.graph.node(self.graph.producer(v)?.0);
            let mut beside = node.inputs.iter().flatten().copied().filter(|v| !on_the_way(v));
            let scales = matches!(node.op.name(), "Mul" | "Div") && !before(v).is_empty();
            beside.find(|v| scales && self.graph.as_const(*v).is_none())
        })
    }

    /// The scores of a trial where a key is seen.
    fn seen(&self, trial: &Trial, value: f64) -> Result<Vec<f64>, Miss> {
        let (scores, open) = (self.at(trial, value)?, self.open(trial)?);
        Ok(scores.iter().zip(&open).filter(|(_, open)| **open).map(|(x, _)| *x).collect())
    }

    /// What a score stays below however large the product is, where a tanh is on the way.
    fn softcap(&self, trial: &Trial) -> Result<Option<f64>, Miss> {
        let before = |v: ValueId| if v == self.product { Vec::new() } else { inputs_of(self.graph, v) };
        let is_tanh =
            |v: ValueId| self.graph.made_by(v, "Tanh").is_some() && depends(self.graph, v, self.product);
        if !depth_first(self.scores, before).any(is_tanh) {
            return Ok(None);
        }
        Ok(self.seen(trial, LARGE)?.first().copied().filter(|cap| *cap > 0.0))
    }

    /// What a product is multiplied with where its key is seen; the same everywhere, and for any product.
    fn scale(&self, trial: &Trial, softcap: Option<f64>) -> Result<f64, Miss> {
        let before_cap = |x: f64| softcap.map_or(x, |cap| cap * (x / cap).atanh());
        let factors = |value: f64| -> Result<Vec<f64>, Miss> {
            Ok(self.seen(trial, value)?.into_iter().map(|x| before_cap(x) / value).collect())
        };
        let found = [factors(1.0)?, factors(-3.0)?].concat();
        let scale = found.first().copied().unwrap_or(f64::NAN);
        let differs = |x: &&f64| x.is_nan() || (*x - scale).abs() > 1e-6 * scale.abs();
        if let Some(other) = found.iter().find(differs) {
            let reason = format!("the scores are no multiple of q k: factors {scale} and {other}");
            let place = self.computed_factor().unwrap_or(self.scores);
            return Err(Miss::check(&self.graph.value(place).name, reason));
        }
        match scale.is_finite() && scale > 0.0 {
            true => Ok(scale),
            false => Err(self.miss(format!("the scale is {scale}, expected a positive number"))),
        }
    }
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
  input %input_ids: i64[batch, sequence]
  input %past_key: f32[batch, 2, past, 4]
  input %product: f32[batch, 2, sequence, past + sequence]
  input %position_bias: f32[batch, 1, 1, past + sequence]
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %window: i64[] = [40]
  %total = Shape(%attention_mask) {{start: 1, end: 2}}
  %length = Squeeze(%total) {{axes: [0]}}
  %cached = Shape(%past_key) {{start: 2, end: 3}}
  const %end: i64[1] = [9223372036854775807]
  %keys = Range(%zero, %length, %one)
  %late = Slice(%keys, %cached, %end)
  %queries = Unsqueeze(%late) {{axes: [1]}}
  %earlier = LessOrEqual(%keys, %queries)
  const %shut: f32[] = [-1e30]
  const %clear: f32[] = [0.0]
{extra}
  const %scale: f32[] = [0.5]
  %scaled = Mul(%product, %scale)
  %scores = Add(%scaled, %bias)
  output "scores" %scores
  output "ids" %input_ids
}}"#
        ))
        .expect("it parses");
        let scores = graph.output("scores").expect("scores");
        let product = graph.input("product").expect("product");
        let found = classify(&graph, scores, product, true).map_err(|miss| miss.reason)?;
        assert!((found.scale - 0.5).abs() < 1e-12);
        Ok(found.mask)
    }

    #[test]
    fn a_causal_mask() {
        let found =
            mask("  %flat = Where(%earlier, %clear, %shut)\n  %bias = Unsqueeze(%flat) {axes: [0, 1]}");
        assert_eq!(found, Ok(Mask::Causal));
    }

    /// Keys before the query that `near` keeps, `tail` added to the lines.
    fn near(near: &str, tail: &str) -> String {
        format!(
            "  %distance = Sub(%queries, %keys)
{near}
  %open = And(%earlier, %near)
{tail}"
        )
    }

    /// With no padding.
    const ALONE: &str = "  %flat = Where(%open, %clear, %shut)\n  %bias = Unsqueeze(%flat) {axes: [0, 1]}";

    /// With the padding of the rows.
    const PADDED: &str = "  %tokens = Equal(%attention_mask, %one)
  %spread = Unsqueeze(%tokens) {axes: [1, 2]}
  %both = And(%open, %spread)
  %bias = Where(%both, %clear, %shut)";

    fn window_of(found: Result<Mask, String>) -> (Option<u32>, bool) {
        let mask = found.unwrap_or_else(|e| panic!("{e}"));
        (mask.window(), mask.padding().is_some())
    }

    /// Longer than the short trials, as long as they are, and shorter.
    #[test]
    fn a_window_is_of_as_many_tokens_as_a_query_sees() {
        let less = "  %near = Less(%distance, %window)";
        assert_eq!(window_of(mask(&near(less, ALONE))), (Some(40), false));
        assert_eq!(window_of(mask(&near(less, PADDED))), (Some(40), true));
        for (tokens, constant) in [(1, "one"), (2, "two"), (5, "five")] {
            let numbers = "  const %two: i64[] = [2]\n  const %five: i64[] = [5]\n";
            let lines = format!("{numbers}  %near = Less(%distance, %{constant})");
            // A query that sees itself alone sees no padding, if it is none.
            assert_eq!(window_of(mask(&near(&lines, ALONE))), (Some(tokens), tokens == 1));
            assert_eq!(window_of(mask(&near(&lines, PADDED))), (Some(tokens), true));
        }
    }

    /// A bound that is included is one more token, and a bound on the other side one less.
    #[test]
    fn a_window_is_not_off_by_one() {
        for (line, tokens) in [
            ("  %near = LessOrEqual(%distance, %window)", 41),
            ("  %more = Add(%distance, %one)\n  %near = Less(%more, %window)", 39),
            ("  %first = Sub(%queries, %window)\n  %near = Greater(%keys, %first)", 40),
        ] {
            assert_eq!(window_of(mask(&near(line, PADDED))), (Some(tokens), true), "{line}");
        }
    }

    /// By counts of tokens, which our own graphs are written by.
    #[test]
    fn a_window_by_counts_is_one() {
        let counted = "  const %axis: i64[1] = [1]
  %marks = Cast(%attention_mask) {to: \"f32\"}
  %counts = CumSum(%marks, %one)
  %recent = Slice(%counts, %cached, %end, %axis)
  %rows = Unsqueeze(%recent) {axes: [2]}
  %columns = Unsqueeze(%counts) {axes: [1]}
  %age = Sub(%rows, %columns)
  const %reach: f32[] = [TOKENS]
  %near = Less(%age, %reach)
  %all = And(%earlier, %near)
  %open = Unsqueeze(%all) {axes: [1]}
";
        for tokens in [1, 5, 40] {
            let counted = counted.replace("TOKENS", &format!("{tokens}.0"));
            assert_eq!(window_of(mask(&format!("{counted}{PADDED}"))), (Some(tokens), true));
        }
    }

    /// What a window is not: the same number of keys on both sides, one that is later, a part of the past alone, blocks
    /// of tokens, and one that grows with the text.
    #[test]
    fn what_is_nearly_a_window_is_no_mask() {
        let refused = |lines: &str| {
            let reason = mask(lines).expect_err("it is refused");
            let told = reason.strip_prefix("the mask is neither causal nor key padding nor a window: ");
            told.unwrap_or_else(|| panic!("{reason}")).to_owned()
        };
        let band = "  %distance = Sub(%queries, %keys)
  %size = Abs(%distance)
  %open = Less(%size, %window)
";
        assert_eq!(
            refused(&format!("{band}{ALONE}")),
            "in head 0, query 0 does not see key 0 after 41 past tokens"
        );
        let later = "  %distance = Sub(%queries, %keys)
  const %lower: i64[] = [-2]
  %near = Less(%distance, %window)
  %early = Less(%lower, %distance)
  %open = And(%near, %early)
";
        assert_eq!(
            refused(&format!("{later}{ALONE}")),
            "in head 0, query 0 does not see key 2 after 0 past tokens"
        );
        let others = "  %near_all = Less(%distance, %window)\n  %own = Equal(%distance, %zero)
  %other = Not(%own)\n  %near = And(%near_all, %other)";
        assert_eq!(
            refused(&near(others, ALONE)),
            "in head 0, query 0 does not see key 0 after 0 past tokens"
        );
        let blocks = "  const %four: i64[] = [4]
  %block = Div(%keys, %four)
  %own = Div(%queries, %four)
  %near = Equal(%block, %own)";
        assert_eq!(
            refused(&near(blocks, PADDED)),
            "in head 0, query 4 does not see key 1 after 0 past tokens"
        );
        let half =
            "  const %two: i64[] = [2]\n  %part = Div(%length, %two)\n  %near = Less(%distance, %part)";
        assert!(refused(&near(half, ALONE)).starts_with("in head 0, query "));
    }

    /// No text is that long, and none is longer than itself.
    #[test]
    fn a_window_without_an_end_is_none() {
        let far = "  const %far: i64[] = [4611686018427387904]\n  %near = Less(%distance, %far)";
        for lines in [far, "  %near = Less(%distance, %length)"] {
            assert_eq!(mask(&near(lines, ALONE)), Ok(Mask::Causal));
        }
    }

    /// Keys below the number of tokens in their row, and no later than the query.
    const COUNTED: &str = "  %counts = ReduceSum(%attention_mask) {axes: [1], keepdims: 1}
  %first = Less(%keys, %counts)
  %spread = Unsqueeze(%first) {axes: [1]}
  %open = And(%spread, %earlier)
  %flat = Where(%open, %clear, %shut)
  %bias = Unsqueeze(%flat) {axes: [1]}";

    #[test]
    fn a_count_of_tokens_stands_for_them() {
        assert!(matches!(mask(COUNTED), Ok(Mask::CausalKeyPadding(_))));
    }

    #[test]
    fn a_count_that_is_one_short_is_no_mask() {
        let short = COUNTED.replace(
            "%first = Less(%keys, %counts)",
            "%less = Sub(%counts, %one)\n  %first = Less(%keys, %less)",
        );
        let reason = mask(&short).expect_err("it is refused");
        assert!(reason.contains("neither causal nor key padding"), "{reason}");
    }

    #[test]
    fn numbers_that_come_in_from_outside_are_no_mask() {
        let bias = "  %flat = Where(%earlier, %clear, %shut)
  %spread = Unsqueeze(%flat) {axes: [0, 1]}
  %bias = Add(%spread, %position_bias)";
        let reason = mask(bias).expect_err("it is refused");
        assert!(reason.contains("a bias on the scores"), "{reason}");
    }

    /// Whichever token stands for padding: the trials hold but a few.
    #[test]
    fn a_mask_of_the_tokens_themselves_is_told() {
        let of = |padding: &str| {
            mask(&format!(
                "  const %padding: i64[] = [{padding}]
  %tokens = Equal(%input_ids, %padding)
  %spread = Unsqueeze(%tokens) {{axes: [1, 2]}}
  %bias = Where(%spread, %shut, %clear)"
            ))
        };
        for padding in ["1", "50256"] {
            let reason = of(padding).expect_err("it is no known mask");
            assert!(reason.starts_with("its mask is worked out from the tokens in `input_ids`"), "{reason}");
        }
        // How many there are is no secret.
        let counted = mask(
            "  %flat = Where(%earlier, %clear, %shut)
  %count = Size(%input_ids)
  %counted = Cast(%count) {to: \"f32\"}
  %nothing = Mul(%counted, %clear)
  %sum = Add(%flat, %nothing)
  %bias = Unsqueeze(%sum) {axes: [0, 1]}",
        );
        assert_eq!(counted, Ok(Mask::Causal));
    }

    /// What closes a position, in the ways exporters write it: chosen, added in proportion, and taken away.
    #[test]
    fn a_number_that_closes_positions_is_no_window() {
        let causal = |last: &str| mask(&format!("{last}\n  %bias = Unsqueeze(%flat) {{axes: [0, 1]}}"));
        let late = "  %later = Not(%earlier)\n  %late_number = Cast(%later) {to: \"f32\"}\n";
        for shut in ["-10000.0", "-65504.0", "-100000.0"] {
            let number = format!("  const %far: f32[] = [{shut}]\n");
            let chosen = format!("{number}  %flat = Where(%earlier, %clear, %far)");
            let added = format!("{number}{late}  %flat = Mul(%late_number, %far)");
            let bounded =
                format!("{number}  %all = Where(%earlier, %clear, %shut)\n  %flat = Max(%all, %far)");
            for lines in [chosen, added, bounded] {
                assert_eq!(causal(&lines), Ok(Mask::Causal), "{lines}");
            }
        }
        let taken = format!(
            "{late}  const %far: f32[] = [10000.0]\n  %gone = Mul(%late_number, %far)\n  %flat = Sub(%clear, %gone)"
        );
        assert_eq!(causal(&taken), Ok(Mask::Causal));
    }

    /// The same number, but compared with a distance.
    #[test]
    fn a_window_as_long_as_a_closing_number_is_one() {
        let window = "  const %far: f32[] = [-10000.0]
  %distance = Sub(%keys, %queries)
  %numbers = Cast(%distance) {to: \"f32\"}
  %near = Greater(%numbers, %far)
  %open = And(%earlier, %near)
  %flat = Where(%open, %clear, %far)
  %bias = Unsqueeze(%flat) {axes: [0, 1]}";
        assert_eq!(window_of(mask(window)), (Some(10_000), false));
    }
}
