//! What is done to the scores before the softmax, scale and mask, decided by evaluating it.
//!
//! Exporters spell one mask in subgraphs of 3 to 200 nodes, add it, select with it or clamp with it, so
//! its form says little. Here everything between q kᵀ and the softmax is run on small shapes, with and
//! without padding and past, and compared with what causal and padded attention would let through.

use super::lengths::{LONG, as_length, last_change, longest, read_by};
use super::lower::by_token::is_elementwise;
use super::patterns::depends;
use super::trial::{Place, Sizes, Trial, is_padding_input, tells_order};
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
const CLOSED: f32 = -1e4;
const OPEN: f64 = 1e-6;

/// As the model has it in f32: what is added to a bias besides may be less than that tells apart.
fn is_closed(bias: f64) -> bool {
    bias.is_nan() || bias as f32 <= CLOSED
}

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
    /// The same on both sides, as encoders have it.
    Around(usize, usize),
}

impl Reach {
    /// Of so many tokens.
    fn of(self, least: usize, most: usize) -> Self {
        match self {
            Self::All => Self::All,
            Self::Within(..) => Self::Within(least, most),
            Self::Around(..) => Self::Around(least, most),
        }
    }
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
    /// The same on either side.
    distance: usize,
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
        let around = [Kind::Padded, Kind::Counted, Kind::Open];
        far.chain(near.map(|kind| Self { kind, reach: Reach::Within(1, usize::MAX) }))
            .chain(around.map(|kind| Self { kind, reach: Reach::Around(1, usize::MAX) }))
            .collect()
    }

    /// What is left of it where a key is seen, or is not; none where it cannot be so.
    fn after(self, key: KeyPlace, through: bool) -> Option<Self> {
        let lets = self.kind.lets(key);
        if self.reach != Reach::All && !key.asked {
            return Some(self);
        }
        let (least, most, away) = match (self.reach, key.age) {
            (Reach::Within(least, most), Some(age)) if lets => (least, most, age),
            (Reach::Around(least, most), _) if lets => (least, most, key.distance),
            _ => return (lets == through).then_some(self),
        };
        let (least, most) = if through { (least.max(away + 1), most) } else { (least, most.min(away)) };
        (least <= most).then_some(Self { reach: self.reach.of(least, most), ..self })
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
            (Reach::Within(..) | Reach::Around(..), ..) => return None,
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
    if let Some(input) = given_for_keys(graph, scores, product) {
        let value = graph.value(input);
        let shape = show(value.ty.shape.as_deref().unwrap_or_default());
        let reason = format!(
            "the input `{}`, {shape}, is a bias on the scores or a mask that comes with each call: which keys a query sees is not known (hint: export the model with an `{MASK}` of one number for each token, [batch, tokens])",
            value.name
        );
        return Err(Miss::check(&graph.value(scores).name, reason));
    }
    let function = Function::new(graph, scores, product)?;
    function.check_inputs()?;
    let mut tried = Vec::new();
    for trial in function.trials(cached) {
        let open = function.opened(&function.at(&trial, 0.0)?)?;
        tried.push(Tried { trial, open });
    }
    tried.extend(function.long_trials(cached)?);
    function.check_tokens_are_seen(&tried[0])?;
    let softcap = function.softcap(&tried[0])?;
    let scale = function.scale(&tried, softcap)?;
    let mut tally = Tally { left: Theory::all(), odd: None };
    tried.iter().for_each(|Tried { trial, open }| tally.add(trial, open));
    let Some(mask) = tally.left.iter().find_map(|theory| theory.mask(function.padding)) else {
        return Err(Miss::check(&graph.value(scores).name, tally.reason()));
    };
    Ok(Scores { scale, softcap, mask })
}

/// Operators that bring what an input holds to the scores as it is, besides those that take every element by itself.
const MOVES: [&str; 9] =
    ["Concat", "Expand", "Gather", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// An input beside the tokens, of a number for every key of a call in more than two axes, that goes into the scores.
fn given_for_keys(graph: &Graph, scores: ValueId, product: ValueId) -> Option<ValueId> {
    let before = |v: ValueId| match graph.producer(v).map(|(id, _)| &graph.node(id).op) {
        Some(op) if v != product && (is_elementwise(op) || MOVES.iter().any(|name| op.is(name))) => {
            inputs_of(graph, v)
        }
        _ => Vec::new(),
    };
    let is_given = |v: &ValueId| {
        let value = graph.value(*v);
        let last = value.ty.shape.as_ref().filter(|shape| shape.len() > 2).and_then(|shape| shape.last());
        *v != product && matches!(value.def, Def::Input) && last.is_some_and(|dim| dim.known().is_none())
    };
    depth_first(scores, before).find(is_given)
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
    /// Why no mask explains what was seen.
    fn reason(self) -> String {
        let both = self.left.iter().find_map(|theory| match theory.reach {
            Reach::Around(least, most) if least == most => Some(most),
            _ => None,
        });
        if let Some(most) = both {
            let before = most - 1;
            return format!(
                "its mask is a window on both sides: a query sees {before} tokens before itself and as many after, and no others"
            );
        }
        let odd = self.odd.unwrap_or_else(|| "it changes with the number of past tokens".to_owned());
        format!("the mask is neither causal nor key padding nor a window: {odd}")
    }

    fn add(&mut self, trial: &Trial, open: &Open) {
        for ((row, head, query, key), through) in open.indexed_iter() {
            if !trial.sees_a_token(row, query) {
                continue;
            }
            let place = KeyPlace {
                age: (trial.past + query).checked_sub(key),
                distance: (trial.past + query).abs_diff(key),
                asked: trial.is_token(row, trial.past + query),
                token: trial.is_token(row, key),
                counted: key < trial.tokens(row),
            };
            self.left.retain_mut(|theory| {
                let after = theory.after(place, *through);
                *theory = after.unwrap_or(*theory);
                after.is_some()
            });
            // A window on both sides explains a mask, but is none that is known.
            if self.left.iter().all(|theory| matches!(theory.reach, Reach::Around(..))) {
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
#[derive(Clone)]
struct Cone {
    inputs: BTreeSet<ValueId>,
    /// The inputs of which more than the sizes goes into it.
    read: BTreeSet<ValueId>,
    /// Numbers that a window could be as long as.
    lengths: BTreeSet<usize>,
    /// The name of floats, more than one, that the model brings along.
    learnt: Option<String>,
}

/// Everything before `value`, `cut` left out.
fn cone_of(graph: &Graph, value: ValueId, cut: ValueId) -> Cone {
    let mut cone = Cone {
        inputs: BTreeSet::new(),
        read: read_by(graph, value, Some(cut))
            .filter(|v| matches!(graph.value(*v).def, Def::Input))
            .collect(),
        lengths: BTreeSet::new(),
        learnt: None,
    };
    let before = |v: ValueId| if v == cut { Vec::new() } else { inputs_of(graph, v) };
    let amounts = |v: ValueId| if v == cut { Vec::new() } else { amounts_in(graph, v) };
    let sums: BTreeSet<ValueId> = depth_first(value, amounts).collect();
    for value in depth_first(value, before).filter(|v| *v != cut) {
        if matches!(graph.value(value).def, Def::Input) {
            cone.inputs.insert(value);
        }
        if graph.as_const(value).is_some_and(|tensor| tensor.dtype().is_float() && tensor.len() > 1) {
            cone.learnt.get_or_insert_with(|| graph.value(value).name.clone());
        }
        let is_sum = sums.contains(&value);
        let amounts = if is_sum { amounts_in(graph, value) } else { Vec::new() };
        let read = inputs_of(graph, value).into_iter().filter(|v| !amounts.contains(v));
        cone.lengths.extend(read.filter_map(|v| as_length(graph.as_scalar(v)?)));
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
    let closes = |v: &ValueId| graph.as_scalar(*v).is_some_and(is_closed);
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

/// Padding is marked by whole numbers.
fn check_marks(graph: &Graph, scores: ValueId, padding: Option<ValueId>) -> Result<(), Miss> {
    let Some(input) = padding.map(|input| graph.value(input)) else { return Ok(()) };
    let dtype = input.ty.dtype.filter(|dtype| dtype.is_float() || *dtype == DType::Bool);
    let Some(dtype) = dtype else { return Ok(()) };
    let reason = format!(
        "the input `{}` is of type {dtype}, expected whole numbers: 1 for a token and 0 for padding",
        input.name
    );
    Err(Miss::check(&graph.value(scores).name, reason))
}

/// A product that any scale in use takes to the cap.
const LARGE: f64 = 1e9;

/// Tokens of the runs in which inputs hold one thing and another.
const FEW: usize = 6;

/// What an input may hold, by place: the same for all, and one thing for the first tokens and another for the last.
const FILLS: [fn(Place) -> f64; 5] = [
    |_| 0.0,
    |_| 1.0,
    |_| 3.0,
    |at| f64::from(u8::from(2 * at.column() < at.columns)),
    |at| f64::from(u8::from(2 * at.column() >= at.columns)),
];

/// Longest sequence that is tried without a past, where a mask is a square.
const LONGEST_SQUARE: usize = 600;

/// Which keys each head's queries see: `[row, head, query, key]`.
type Open = ndarray::Array4<bool>;

/// A trial, and which keys are seen in it.
struct Tried {
    trial: Trial,
    open: Open,
}

/// The scores where every product is 0, and where every one is 1.
type Run = [ndarray::Array4<f64>; 2];

/// The scores as a function of the product.
#[derive(Clone)]
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
        let marks = cone.inputs.iter().copied().filter(|v| is_padding_input(graph, *v));
        let padding = marks.min_by_key(|v| graph.value(*v).name != MASK);
        check_marks(graph, scores, padding)?;
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

    /// Runs that are longer than any number in the mask, so that a window shows in them, or as long as its tables are.
    fn long_trials(&self, cached: bool) -> Result<Vec<Tried>, Miss> {
        // Of one length nothing is longer.
        if self.keys.is_some() {
            return Ok(Vec::new());
        }
        let read = read_by(self.graph, self.scores, Some(self.product));
        let changes = read.filter_map(|v| last_change(self.graph.as_const(v)?));
        let lengths: BTreeSet<usize> =
            self.cone.lengths.iter().copied().chain([LONG]).chain(changes).collect();
        let mut tried = Vec::new();
        for n in lengths {
            if !cached && n + 2 > LONGEST_SQUARE {
                return Err(self.too_long(n));
            }
            let trial = |total: usize| {
                let past = if cached { total - 2 } else { 0 };
                self.fitted(Trial { past, time: total - past, left: 0, right: 0 })
            };
            let most = if cached { n + 3 } else { n + 2 };
            let (total, bias) = longest(FEW.min(most), most, |total| self.at(&trial(total), 0.0))?;
            tried.push(Tried { trial: trial(total), open: self.opened(&bias)? });
            // No text is longer than the tables.
            if total < most {
                break;
            }
        }
        Ok(tried)
    }

    fn too_long(&self, n: usize) -> Miss {
        let holds = match self.cone.lengths.contains(&n) {
            true => format!("it holds the number {n}"),
            false => format!("it is read from a table that changes after {n} tokens"),
        };
        self.miss(format!("{holds}: a window that long cannot be told from none"))
    }

    /// Besides tokens, padding and the order of tokens nothing that is given may say which keys are seen.
    fn check_inputs(&self) -> Result<(), Miss> {
        // A number for each of the batch may be meant for all of it.
        let alone = Self { sizes: self.sizes.clone().of_one_row(), ..self.clone() };
        let is_told = |v: ValueId| Some(v) == self.padding || self.graph.value(v).name == IDS;
        let mut others = self.cone.read.iter().copied().filter(|v| !is_told(*v)).peekable();
        let is_bias = || alone.at(&alone.few(), 0.0).is_ok_and(|bias| alone.opened(&bias).is_err());
        if others.peek().is_none() || is_bias() {
            return Ok(());
        }
        others.try_for_each(|input| match tells_order(self.graph, input) {
            true => alone.check_order(input),
            false => alone.check_alike(input),
        })
    }

    /// Whatever `input` holds, the scores must be the same.
    fn check_alike(&self, input: ValueId) -> Result<(), Miss> {
        let mut runs = FILLS.iter().filter_map(|fill| self.filled(input, fill));
        let Some(first) = runs.next() else { return Ok(()) };
        let Some(other) = runs.find(|run| *run != first) else { return Ok(()) };
        let name = &self.graph.value(input).name;
        Err(self.miss(match first[0].mapv(is_closed) == other[0].mapv(is_closed) {
            true => format!("the scores depend on the input `{name}`, and not only on queries and keys"),
            false => format!("which keys a query sees depends on the input `{name}`"),
        }))
    }

    /// Positions that begin again must not part a text in two. Where tokens see others by them, or themselves no more, they
    /// can be of one text only.
    fn check_order(&self, input: ValueId) -> Result<(), Miss> {
        let past = self.few().past;
        let whole = self.filled(input, |at| (past + at.column()) as f64);
        let parted = self.filled(input, |at| (past + at.column() % at.columns.div_ceil(2)) as f64);
        let (Some([whole, _]), Some([parted, _])) = (whole, parted) else { return Ok(()) };
        let changes =
            whole.indexed_iter().zip(&parted).filter(|((_, was), is)| is_closed(**was) != is_closed(**is));
        let mut lost =
            changes.map(|(((_, _, query, key), _), is)| is_closed(*is) && key != past + query).peekable();
        match lost.peek().is_some() && lost.all(|lost| lost) {
            true => Err(self.miss(format!(
                "which keys a query sees depends on where `{}` begins again, as for several texts in one row",
                self.graph.value(input).name
            ))),
            false => Ok(()),
        }
    }

    fn few(&self) -> Trial {
        self.fitted(Trial { past: 0, time: FEW, left: 0, right: 0 })
    }

    /// What a short run gives where `input` holds such numbers; none where it takes no such numbers. What is closed is
    /// so whatever the product is.
    fn filled(&self, input: ValueId, number: impl Fn(Place) -> f64) -> Option<Run> {
        let trial = self.few();
        let array = self.sizes.fill_with(self.graph, input, &trial, number).ok()?;
        let at = |value: f64| self.given(&trial, value, Some((input, array.clone()))).ok();
        let (mut bias, mut scores) = (at(0.0)?, at(1.0)?);
        for (bias, score) in bias.iter_mut().zip(&mut scores).filter(|(bias, _)| is_closed(**bias)) {
            (*bias, *score) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        }
        Some([bias, scores])
    }

    /// The scores of a trial, `[rows, heads, sequence, keys]`, where every product is `value`.
    fn at(&self, trial: &Trial, value: f64) -> Result<ndarray::Array4<f64>, Miss> {
        self.given(trial, value, None)
    }

    /// The same where an input holds something else.
    fn given(
        &self,
        trial: &Trial,
        value: f64,
        other: Option<(ValueId, Array)>,
    ) -> Result<ndarray::Array4<f64>, Miss> {
        let fail = |reason: String| self.miss(format!("the mask could not be evaluated: {reason}"));
        let shape = [self.rows.unwrap_or(self.sizes.rows()), self.heads, trial.time, trial.total()];
        let mut given = BTreeMap::new();
        let products = Array::from_f64(&shape, vec![value; shape.iter().product()]).map_err(fail)?;
        given.insert(self.product, products);
        for input in &self.cone.inputs {
            given.insert(*input, self.sizes.fill(self.graph, *input, self.padding, trial)?);
        }
        given.extend(other);
        let out = eval(self.graph, &given, &[self.scores]).map_err(|e| self.not_evaluated(&e.to_string()))?;
        let array = out[0].as_f().map_err(fail)?;
        let wrong = || fail(format!("it gives {:?}, expected {shape:?}", array.shape()));
        array.broadcast(shape).map(|view| view.to_owned()).ok_or_else(wrong)
    }

    /// What is learnt and added to the scores is a bias, whatever works it out.
    fn not_evaluated(&self, reason: &str) -> Miss {
        match &self.cone.learnt {
            Some(name) => self.miss(format!(
                "a bias on the scores, or their mask, is worked out from the numbers in `{name}` in a way that could not be evaluated: {reason}"
            )),
            None => self.miss(format!("the mask could not be evaluated: {reason}")),
        }
    }

    /// Which keys are seen, by the scores where every product is 0.
    fn opened(&self, bias: &ndarray::Array4<f64>) -> Result<Open, Miss> {
        if let Some(x) = bias.iter().find(|x| x.abs() > OPEN && !is_closed(**x)) {
            return Err(
                self.miss(format!("the mask holds {x}: a bias on the scores, not only open and closed"))
            );
        }
        Ok(bias.mapv(|x| !is_closed(x)))
    }

    /// Where every key is a token, some are seen.
    fn check_tokens_are_seen(&self, Tried { open, .. }: &Tried) -> Result<(), Miss> {
        if open.iter().any(|open| *open) {
            return Ok(());
        }
        let Some(input) = self.padding else { return Err(self.miss("no query sees any key")) };
        let name = &self.graph.value(input).name;
        Err(self.miss(format!(
            "no key is seen where `{name}` is 1 throughout: expected 1 for a token and 0 for padding"
        )))
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

    /// The scores of a trial where a token sees a key.
    fn seen(&self, Tried { trial, open }: &Tried, value: f64) -> Result<Vec<f64>, Miss> {
        let scores = self.at(trial, value)?;
        let pairs = scores.indexed_iter().zip(open);
        let seen = pairs.filter(|(((row, _, query, _), _), open)| **open && trial.sees_a_token(*row, *query));
        Ok(seen.map(|((_, score), _)| *score).collect())
    }

    /// What a score stays below however large the product is, where a tanh is on the way.
    fn softcap(&self, tried: &Tried) -> Result<Option<f64>, Miss> {
        let before = |v: ValueId| if v == self.product { Vec::new() } else { inputs_of(self.graph, v) };
        let is_tanh =
            |v: ValueId| self.graph.made_by(v, "Tanh").is_some() && depends(self.graph, v, self.product);
        if !depth_first(self.scores, before).any(is_tanh) {
            return Ok(None);
        }
        Ok(self.seen(tried, LARGE)?.first().copied().filter(|cap| *cap > 0.0))
    }

    /// What a product is multiplied with where its key is seen; the same everywhere, for any product, however many tokens
    /// there are and whichever are padding.
    fn scale(&self, tried: &[Tried], softcap: Option<f64>) -> Result<f64, Miss> {
        let mut scale = None;
        for tried in tried {
            let found = self.factors(tried, softcap)?;
            let Some(own) = found.first().copied() else { continue };
            let differs = |x: f64| x.is_nan() || (x - own).abs() > 1e-6 * own.abs();
            if let Some(other) = found.iter().find(|x| differs(**x)) {
                return Err(self.no_multiple(&format!("factors {own} and {other}")));
            }
            let tokens = tried.trial.total();
            let (first, before) = *scale.get_or_insert((own, tokens));
            if differs(first) {
                return Err(
                    self.no_multiple(&format!("factor {first} of {before} tokens, and {own} of {tokens}"))
                );
            }
        }
        let scale = scale.map_or(f64::NAN, |(scale, _)| scale);
        match scale.is_finite() && scale > 0.0 {
            true => Ok(scale),
            false => Err(self.miss(format!("the scale is {scale}, expected a positive number"))),
        }
    }

    fn factors(&self, tried: &Tried, softcap: Option<f64>) -> Result<Vec<f64>, Miss> {
        let before_cap = |x: f64| softcap.map_or(x, |cap| cap * (x / cap).atanh());
        let of = |value: f64| -> Result<Vec<f64>, Miss> {
            Ok(self.seen(tried, value)?.into_iter().map(|x| before_cap(x) / value).collect())
        };
        Ok([of(1.0)?, of(-3.0)?].concat())
    }

    fn no_multiple(&self, factors: &str) -> Miss {
        let place = self.computed_factor().unwrap_or(self.scores);
        let reason = format!("the scores are no multiple of q k: {factors}");
        Miss::check(&self.graph.value(place).name, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// A causal mask over `[past + sequence]` keys; `extra` adds lines that end in `%open` or `%bias`.
    fn mask(extra: &str) -> Result<Mask, String> {
        mask_of(extra, true)
    }

    /// The same of calls without a past.
    fn mask_alone(extra: &str) -> Result<Mask, String> {
        mask_of(extra, false)
    }

    fn mask_of(extra: &str, cached: bool) -> Result<Mask, String> {
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
  const %scale: f32[] = [0.5]
{extra}
  %scaled = Mul(%product, %scale)
  %scores = Add(%scaled, %bias)
  output "scores" %scores
  output "ids" %input_ids
}}"#
        ))
        .expect("it parses");
        let scores = graph.output("scores").expect("scores");
        let product = graph.input("product").expect("product");
        let found = classify(&graph, scores, product, cached).map_err(|miss| miss.reason)?;
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
            mask(&format!("{band}{ALONE}")),
            Err("its mask is a window on both sides: a query sees 39 tokens before itself and as many after, and no others".to_owned())
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

    /// For every pair of tokens, whatever it holds.
    #[test]
    fn a_mask_for_pairs_of_tokens_is_told() {
        for (ty, bias) in [
            ("bool", "  %bias = Where(%pairs, %clear, %shut)"),
            ("f32", "  %bias = Identity(%pairs)"),
            ("i64", "  %open = Cast(%pairs) {to: \"bool\"}\n  %bias = Where(%open, %clear, %shut)"),
        ] {
            let input = format!("  input %pairs: {ty}[batch, 1, sequence, past + sequence]\n");
            let reason = mask(&format!("{input}{bias}")).expect_err("it is refused");
            let told =
                "the input `pairs`, [batch, 1, sequence, past + sequence], is a bias on the scores or a mask";
            assert!(reason.starts_with(told), "{reason}");
        }
    }

    #[test]
    fn a_mask_the_other_way_round_is_told() {
        let inverted = PADDED.replace("Equal(%attention_mask, %one)", "Equal(%attention_mask, %zero)");
        let reason = mask(&format!("  %open = And(%earlier, %earlier)\n{inverted}"));
        let want =
            "no key is seen where `attention_mask` is 1 throughout: expected 1 for a token and 0 for padding";
        assert_eq!(reason, Err(want.to_owned()));
    }

    /// Within the short trials, and beyond them.
    #[test]
    fn a_bias_that_begins_far_back_is_no_mask() {
        for distance in [4, 80] {
            let far = format!(
                "  const %bound: i64[] = [{distance}]
  const %little: f32[] = [-0.5]
  %distance = Sub(%queries, %keys)
  %far = Greater(%distance, %bound)
  %less = Where(%far, %little, %clear)
  %flat = Where(%earlier, %less, %shut)
  %bias = Unsqueeze(%flat) {{axes: [0, 1]}}"
            );
            let want = "the mask holds -0.5: a bias on the scores, not only open and closed";
            assert_eq!(mask(&far), Err(want.to_owned()));
        }
    }

    /// What [`mask`] finds where the scores are multiplied with `%factor` besides, after `lines`.
    fn scaled(lines: &str) -> Result<Mask, String> {
        let last = "  %closing = Where(%earlier, %clear, %shut)
  %flat = Unsqueeze(%closing) {axes: [0, 1]}
  %more = Mul(%product, %factor)
  %less = Sub(%more, %product)
  %half = Mul(%less, %scale)
  %bias = Add(%flat, %half)";
        mask(&format!("{lines}\n{last}"))
    }

    /// Of one trial it is one number.
    #[test]
    fn a_scale_that_follows_the_number_of_tokens_is_none() {
        let counted = "  %count = Cast(%length) {to: \"f32\"}\n";
        let linear =
            format!("{counted}  const %hundredth: f32[] = [0.01]\n  %factor = Mul(%count, %hundredth)");
        let far = format!(
            "{counted}  const %many: f32[] = [100.0]\n  %part = Div(%count, %many)\n  const %whole: f32[] = [1.0]\n  %factor = Max(%part, %whole)"
        );
        for lines in [linear, far] {
            let reason = scaled(&lines).expect_err("it is refused");
            assert!(reason.starts_with("the scores are no multiple of q k: factor "), "{reason}");
            assert!(reason.contains(" of 5 tokens, and "), "{reason}");
        }
        assert_eq!(scaled("  const %factor: f32[] = [1.0]"), Ok(Mask::Causal));
    }

    /// A score of 0 is open.
    #[test]
    fn a_mask_that_scores_are_multiplied_with_is_none() {
        let lines =
            "  %marks = Cast(%attention_mask) {to: \"f32\"}\n  %factor = Unsqueeze(%marks) {axes: [1, 2]}";
        let reason = scaled(lines).expect_err("it is refused");
        assert_eq!(reason, "the scores are no multiple of q k: factors 0 and 0.5");
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

    /// Of a table of so many rows and columns, in which a key is open where `open` says so of the query and the key.
    fn in_table(size: usize, open: impl Fn(usize, usize) -> bool) -> String {
        let marks: Vec<&str> =
            (0..size * size).map(|i| if open(i / size, i % size) { "1" } else { "0" }).collect();
        format!(
            "  const %table: i64[{size}, {size}] = [{}]
  const %first: i64[1] = [0]
  const %second: i64[1] = [1]
  %some = Slice(%table, %cached, %total, %first)
  %marks = Slice(%some, %first, %total, %second)
  %open = Equal(%marks, %one)
{ALONE}",
            marks.join(", ")
        )
    }

    /// Shorter than the runs that are tried without one, as long, and longer.
    #[test]
    fn a_window_in_a_table_is_one() {
        for (size, tokens) in [(128, 20), (299, 20), (302, 20), (400, 20), (400, 310)] {
            let table = in_table(size, |query, key| key <= query && query - key < tokens);
            for found in [mask(&table), mask_alone(&table)] {
                assert_eq!(window_of(found), (u32::try_from(tokens).ok(), false), "{size}");
            }
        }
        for size in [128, 400] {
            let table = in_table(size, |query, key| key <= query);
            assert_eq!((mask(&table), mask_alone(&table)), (Ok(Mask::Causal), Ok(Mask::Causal)));
        }
    }

    #[test]
    fn what_is_no_window_in_a_table_is_told() {
        let blocks = in_table(128, |query, key| key <= query && query / 100 == key / 100);
        let nothing = "the mask is neither causal nor key padding nor a window: in head 0, query";
        for found in [mask(&blocks), mask_alone(&blocks)] {
            let reason = found.expect_err("it is refused");
            assert!(reason.starts_with(nothing), "{reason}");
        }
        let both = in_table(128, |query, key| query.abs_diff(key) < 90);
        let reason = mask_alone(&both).expect_err("it is refused");
        assert!(reason.starts_with("its mask is a window on both sides: a query sees 89 tokens"), "{reason}");
        let long = in_table(700, |query, key| key <= query && query - key < 650);
        let reason = mask_alone(&long).expect_err("it is refused");
        assert!(reason.starts_with("it is read from a table that changes after 650 tokens: "), "{reason}");
        let far = in_table(128, |query, key| query < key + 50)
            .replace("Where(%open, %clear, %shut)", "Where(%open, %clear, %little)");
        let want = "the mask holds -0.5: a bias on the scores, not only open and closed";
        let bias = mask(&format!("  const %little: f32[] = [-0.5]\n{far}"));
        assert_eq!(bias, Err(want.to_owned()));
    }

    /// As TensorFlow's BERT has it.
    #[test]
    fn a_closing_number_is_what_it_is_in_f32() {
        let causal = |shut: &str| {
            mask(&format!(
                "  const %far: f32[] = [{shut}]
  const %little: f32[] = [1e-9]
  %nearly = Add(%far, %little)
  %flat = Where(%earlier, %clear, %nearly)
  %bias = Unsqueeze(%flat) {{axes: [0, 1]}}"
            ))
        };
        assert_eq!(causal("-10000.0"), Ok(Mask::Causal));
        let reason = causal("-9999.0").expect_err("it is refused");
        assert!(reason.starts_with("the mask holds -9998.9"), "{reason}");
    }

    /// Open where `more` says so too, of `%early` and padding besides.
    fn opened_by(more: &str) -> String {
        format!(
            "  %tokens = Equal(%attention_mask, %one)
  %spread = Unsqueeze(%tokens) {{axes: [1, 2]}}
  %early = Unsqueeze(%earlier) {{axes: [0, 1]}}
{more}
  %both = And(%open, %spread)
  %bias = Where(%both, %clear, %shut)"
        )
    }

    #[test]
    fn an_input_that_says_which_keys_are_seen_is_told() {
        let told = |lines: &str, name: &str| {
            let want = format!("which keys a query sees depends on the input `{name}`");
            assert_eq!(mask_alone(&opened_by(lines)), Err(want), "{lines}");
        };
        let types = "  input %token_type_ids: i64[batch, sequence]
  %of_keys = Unsqueeze(%token_type_ids) {axes: [1, 2]}
  %of_queries = Unsqueeze(%token_type_ids) {axes: [1, 3]}
";
        let pictures = "  %sum = Add(%of_keys, %of_queries)
  const %two: i64[] = [2]
  %pictures = Equal(%sum, %two)
  %open = Or(%early, %pictures)";
        told(&format!("{types}{pictures}"), "token_type_ids");
        let alike = "  %alike = Equal(%of_keys, %of_queries)\n  %open = And(%early, %alike)";
        told(&format!("{types}{alike}").replace("token_type_ids", "segment_ids"), "segment_ids");
        told(&format!("{types}{alike}").replace("%early, %alike", "%alike, %alike"), "token_type_ids");
        let front = "  input %prefix_len: i64[batch, 1]
  %front = Less(%keys, %prefix_len)
  %known = Unsqueeze(%front) {axes: [1, 2]}
  %open = Or(%early, %known)";
        told(front, "prefix_len");
        told(&front.replace("Or(", "And(").replace("prefix_len", "lengths"), "lengths");
        let marked = "  input %global_attention_mask: i64[batch, sequence]
  %marks = Equal(%global_attention_mask, %one)
  %known = Unsqueeze(%marks) {axes: [1, 2]}
  %open = Or(%early, %known)";
        told(marked, "global_attention_mask");
        // Of one number for the whole batch.
        for ty in ["bool[]", "bool[1]", "bool[batch]"] {
            told(&format!("  input %both_ways: {ty}\n  %open = Or(%early, %both_ways)"), "both_ways");
        }
    }

    #[test]
    fn an_input_that_scores_are_multiplied_with_is_told() {
        let lines = "  input %temperature: f32[1]\n  %factor = Identity(%temperature)";
        let want = "the scores depend on the input `temperature`, and not only on queries and keys";
        assert_eq!(scaled(lines), Err(want.to_owned()));
    }

    #[test]
    fn an_input_that_changes_nothing_is_none() {
        let lines = "  input %token_type_ids: i64[batch, sequence]
  %nothing = Less(%token_type_ids, %token_type_ids)
  %of_keys = Unsqueeze(%nothing) {axes: [1, 2]}
  %open = Or(%early, %of_keys)";
        assert!(matches!(mask_alone(&opened_by(lines)), Ok(Mask::CausalKeyPadding(_))));
    }

    const PLACES: &str = "  input %position_ids: i64[batch, sequence]
  %of_keys = Unsqueeze(%position_ids) {axes: [1, 2]}
  %of_queries = Unsqueeze(%position_ids) {axes: [1, 3]}
";

    #[test]
    fn positions_that_part_a_text_are_told() {
        let starts = "  input %position_ids: i64[batch, sequence]
  %starts = Equal(%position_ids, %zero)
  %marks = Cast(%starts) {to: \"i64\"}
  %texts = CumSum(%marks, %one)
  %of_keys = Unsqueeze(%texts) {axes: [1, 2]}
  %of_queries = Unsqueeze(%texts) {axes: [1, 3]}
  %alike = Equal(%of_keys, %of_queries)
  %open = And(%early, %alike)";
        let want = "which keys a query sees depends on where `position_ids` begins again, as for several texts in one row";
        assert_eq!(mask_alone(&opened_by(starts)), Err(want.to_owned()));
    }

    /// By the positions of both, by that of the query alone, and a window of them.
    #[test]
    fn positions_that_say_the_order_are_known() {
        let both = format!("{PLACES}  %open = LessOrEqual(%of_keys, %of_queries)");
        let window = format!(
            "{PLACES}  %ages = Sub(%of_queries, %of_keys)
  %near = Less(%ages, %window)
  %open = And(%early, %near)"
        );
        let of_query = format!("{PLACES}  %open = LessOrEqual(%keys, %of_queries)");
        assert!(matches!(mask_alone(&opened_by(&both)), Ok(Mask::CausalKeyPadding(_))));
        assert!(matches!(mask(&opened_by(&of_query)), Ok(Mask::CausalKeyPadding(_))));
        assert_eq!(window_of(mask_alone(&opened_by(&window))), (Some(40), true));
    }
}
