//! The easy questions of ARC, as its authors give them.

use super::{ACC_NORM, Input, Task, of_records};
use crate::eval::question::Question;
use crate::eval::source::{TaskFileError, one_of};

pub(super) const FORMAT: &str = "lines of {\"question\": {\"stem\": …, \"choices\": [{\"text\": …, \"label\": \"A\"}, …]}, \"answerKey\": \"A\"}";

pub(super) const TASK: Task = Task {
    name: "arc_easy",
    version: Some(1),
    metrics: ACC_NORM,
    format: FORMAT,
    files: &["ARC-Easy-Test.jsonl", "arc_easy_test_genmc.jsonl"],
    read,
};

pub(super) fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let context = format!("Question: {}\nAnswer:", record.text("question.stem")?);
        let field = |at: usize, name: &str| format!("question.choices.{at}.{name}");
        let count = record.count("question.choices")?;
        let texts = (0..count).map(|at| record.text(&field(at, "text"))).collect::<Result<Vec<_>, _>>()?;
        let labels =
            (0..count).map(|at| record.filled(&field(at, "label"))).collect::<Result<Vec<_>, _>>()?;
        let key = record.filled("answerKey")?;
        let answer = labels.iter().position(|label| *label == key);
        let answer = answer.ok_or_else(|| record.wrong("answerKey", one_of(&labels)))?;
        Ok(Question::choices(&context, &texts, answer))
    })
}
