//! Any other name: a line for each question, with its texts as they are.

use super::{Input, Task, of_records};
use crate::eval::answers::Metric;
use crate::eval::question::{Asked, Question};
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "",
    version: None,
    metrics: &[Metric::Accuracy],
    format: "lines of {\"context\": …, \"choices\": […], \"answer\": 0}",
    files: &[],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let context = record.text("context")?;
        if context.is_empty() {
            return Err(record.wrong("context", "text, since nothing predicts the first token"));
        }
        let choices = record.texts("choices")?;
        if let Some(at) = choices.iter().position(|choice| choice.is_empty()) {
            return Err(record.wrong(&format!("choices.{at}"), "text"));
        }
        let answer = record.number("answer", [0, choices.len() - 1])?;
        let asked = choices.iter().map(|choice| Asked {
            context: context.to_owned(),
            continuation: (*choice).to_owned(),
            length: choice.chars().count(),
        });
        Ok(Question { asked: asked.collect(), answer })
    })
}
