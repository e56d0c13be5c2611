//! PIQA, as its authors give it: `valid.jsonl` with the labels beside it, or with a `label` in every line.

use super::{ACC_NORM, Input, Task, of_labelled};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "piqa",
    version: Some(1),
    metrics: ACC_NORM,
    format: "lines of {\"goal\": …, \"sol1\": …, \"sol2\": …}, and the labels 0 or 1 beside it in NAME-labels.lst or as \"label\"",
    files: &["valid.jsonl", "dev.jsonl", "piqa_valid.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_labelled(input, ("label", [0, 1]), |record, answer| {
        let context = format!("Question: {}\nAnswer:", record.text("goal")?);
        Ok(Question::choices(&context, &[record.text("sol1")?, record.text("sol2")?], answer))
    })
}
