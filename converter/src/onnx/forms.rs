//! Where operators of ONNX differ from the normal form of the IR, and from which opset on. Both
//! directions read this one table.

/// How an attribute of the normal form is written in ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// From `since` on a constant i64 input at `slot`; before, an attribute.
    InputSince { slot: usize, since: i64 },
    /// Before `since` the attribute does not exist, and its default is what happens.
    AttributeSince(i64),
    /// The name of an element type here, its number in ONNX.
    ElementType,
    /// From `since` on the number of outputs, written where the sizes are not given as input 1; not
    /// kept here.
    OutputCountSince(i64),
}

/// Operator, attribute, form. All are operators of `ai.onnx`.
const FORMS: &[(&str, &str, Form)] = &[
    ("Cast", "saturate", Form::AttributeSince(19)),
    ("Cast", "to", Form::ElementType),
    ("ReduceL1", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceL2", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceLogSum", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceLogSumExp", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceMax", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceMean", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceMin", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceProd", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("ReduceSum", "axes", Form::InputSince { slot: 1, since: 13 }),
    ("ReduceSumSquare", "axes", Form::InputSince { slot: 1, since: 18 }),
    ("Reshape", "allowzero", Form::AttributeSince(14)),
    ("Shape", "end", Form::AttributeSince(15)),
    ("Shape", "start", Form::AttributeSince(15)),
    ("Split", "num_outputs", Form::OutputCountSince(18)),
    ("Squeeze", "axes", Form::InputSince { slot: 1, since: 13 }),
    ("Unsqueeze", "axes", Form::InputSince { slot: 1, since: 13 }),
];

/// The opset that introduced an operator, where it is newer than 17.
const FIRST_OPSETS: &[(&str, i64)] = &[
    ("Attention", 23),
    ("Gelu", 20),
    ("GroupNormalization", 18),
    ("LinearAttention", 27),
    ("RMSNormalization", 23),
    ("RotaryEmbedding", 23),
    ("Swish", 24),
    ("TensorScatter", 24),
];

/// The rows of one operator.
pub(super) fn of<'a>(domain: &'a str, op: &'a str) -> impl Iterator<Item = (&'static str, Form)> + 'a {
    let rows = if domain.is_empty() { FORMS } else { &[] };
    rows.iter().filter(move |(o, ..)| *o == op).map(|(_, attr, form)| (*attr, *form))
}

/// The form of one attribute; `None` where it is written as it is.
pub(super) fn find(domain: &str, op: &str, attr: &str) -> Option<Form> {
    of(domain, op).find(|(a, _)| *a == attr).map(|(_, form)| form)
}

/// The opset from which on an operator of `ai.onnx` exists.
pub(super) fn first_opset(op: &str) -> i64 {
    FIRST_OPSETS.iter().find(|(o, _)| *o == op).map_or(1, |(_, first)| *first)
}

/// Whether an empty list of axes must be told apart from an absent one (`noop_with_empty_axes`).
pub(super) fn is_reduction(op: &str) -> bool {
    op.starts_with("Reduce")
}
