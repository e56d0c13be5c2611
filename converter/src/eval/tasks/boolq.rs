//! BoolQ, as its authors give it (`answer`) or as SuperGLUE does (`label`).

use super::{ACC, Input, Task, of_records};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "boolq",
    version: Some(2),
    metrics: ACC,
    format: "lines of {\"question\": …, \"passage\": …, \"answer\": true}, or \"label\" in place of \"answer\"",
    files: &["dev.jsonl", "val.jsonl", "boolq_dev.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let passage = record.text("passage")?;
        let context = format!("{passage}\nQuestion: {}?\nAnswer:", record.text("question")?);
        let answer = record.flag(if record.has("label") { "label" } else { "answer" })?;
        Ok(Question::choices(&context, &["no", "yes"], usize::from(answer)))
    })
}
