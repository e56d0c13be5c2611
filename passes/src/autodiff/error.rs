//! Why a graph cannot be differentiated.

/// Each names the place, and what is in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AutodiffError {
    #[error("node `{node}`: `{op}` has no gradient rule, and the loss depends on what is trained through it")]
    NoRule { node: String, op: String },
    #[error("node `{node}` ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error(
        "node `{node}` ({op}): whether `{value}` {from} was broadcast to {to} does not show in its dims; \
         give both the same name or number"
    )]
    Undecided { node: String, op: String, value: String, from: String, to: String },
    #[error("the loss `{value}` is {ty}, expected one float")]
    Loss { value: String, ty: String },
    #[error("`{value}` is not a value of the graph to be differentiated; apply the patch that adds it first")]
    NotInGraph { value: String },
}
