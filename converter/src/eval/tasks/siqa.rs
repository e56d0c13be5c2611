//! Social IQa, as its authors give it: `dev.jsonl` with the labels beside it, or with a `label` in every line.

use super::{ACC, Input, Task, of_labelled};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "siqa",
    version: Some(0),
    metrics: ACC,
    format: "lines of {\"context\": …, \"question\": …, \"answerA\": …, \"answerB\": …, \"answerC\": …}, and the labels 1 to 3 beside it in NAME-labels.lst or as \"label\"",
    files: &["dev.jsonl", "socialiqa_dev.jsonl", "siqa_dev.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_labelled(input, ("label", [1, 3]), |record, answer| {
        let context = format!("Q: {} {}\nA:", record.text("context")?, record.text("question")?);
        let choices = [record.text("answerA")?, record.text("answerB")?, record.text("answerC")?];
        Ok(Question::choices(&context, &choices, answer))
    })
}
