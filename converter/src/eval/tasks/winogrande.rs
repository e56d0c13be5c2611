//! WinoGrande, as its authors give it: the end of the sentence is scored behind each of the two options.

use super::{ACC, Input, Task, of_labelled};
use crate::eval::question::Question;
use crate::eval::source::{TaskFileError, short};

pub(super) const TASK: Task = Task {
    name: "winogrande",
    version: Some(1),
    metrics: ACC,
    format: "lines of {\"sentence\": \"… _ …\", \"option1\": …, \"option2\": …, \"answer\": \"1\"}, or the answers beside it in NAME-labels.lst",
    files: &["dev.jsonl", "winogrande_dev.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_labelled(input, ("answer", [1, 2]), |record, answer| {
        let sentence = record.text("sentence")?;
        let Some((before, after)) = sentence.split_once('_') else {
            return Err(record.at.wrong("`sentence`", short(sentence), "a sentence with a `_` in it"));
        };
        let options = [record.text("option1")?, record.text("option2")?];
        let contexts = options.map(|option| format!("{before}{option}"));
        Ok(Question::contexts(&contexts, after.trim(), answer))
    })
}
