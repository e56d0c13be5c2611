//! HellaSwag, as its authors give it.

use super::{ACC_NORM, Input, Task, of_records};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "hellaswag",
    version: Some(1),
    metrics: ACC_NORM,
    format: "lines of {\"activity_label\": …, \"ctx_a\": …, \"ctx_b\": …, \"endings\": […], \"label\": 0}",
    files: &["hellaswag_val.jsonl", "val.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let begin = capitalized(record.text("ctx_b")?);
        let context = format!("{}: {} {begin}", record.text("activity_label")?, record.text("ctx_a")?);
        let endings: Vec<String> = record.texts("endings")?.into_iter().map(cleaned).collect();
        let answer = record.number("label", [0, endings.len() - 1])?;
        Ok(Question::choices(&cleaned(&context), &endings, answer))
    })
}

/// A large first letter and small ones after it, as Python has it.
fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(char::to_uppercase).into_iter().flatten();
    first.collect::<String>() + &rest.as_str().to_lowercase()
}

/// Without what is left of the markup of one of its sources.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('[') {
        // No bracket reaches over the end of a line.
        let closed = after.split_once(']').filter(|(inside, _)| !inside.contains('\n'));
        kept += before;
        match closed {
            Some((_, after)) => rest = after,
            None => {
                kept.push('[');
                rest = after;
            }
        }
    }
    (kept + rest).replace("  ", " ")
}
