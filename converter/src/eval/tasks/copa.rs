//! COPA, as SuperGLUE gives it.

use super::{ACC, Input, Task, of_records};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "copa",
    version: Some(1),
    metrics: ACC,
    format: "lines of {\"premise\": …, \"choice1\": …, \"choice2\": …, \"question\": \"cause\" or \"effect\", \"label\": 0}",
    files: &["val.jsonl", "copa_val.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let connector = ["because", "therefore"][record.word("question", &["cause", "effect"])?];
        // Its full stop.
        let mut premise = record.filled("premise")?.trim().chars();
        premise.next_back();
        let context = format!("{} {connector}", premise.as_str());
        // One more space than other tasks have, as in the harness.
        let choices = [
            " ".to_owned() + &lowered(record.filled("choice1")?),
            " ".to_owned() + &lowered(record.filled("choice2")?),
        ];
        Ok(Question::choices(&context, &choices, record.number("label", [0, 1])?))
    })
}

/// With a small first letter.
fn lowered(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(char::to_lowercase).into_iter().flatten();
    first.collect::<String>() + rest.as_str()
}
