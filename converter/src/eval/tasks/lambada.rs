//! LAMBADA: the last word of a text, which only the whole of it tells.

use super::{Input, Task};
use crate::eval::answers::Metric;
use crate::eval::question::Question;
use crate::eval::source::{Record, Source, TaskFileError, short};

pub(super) const TASK: Task = Task {
    name: "lambada",
    version: Some(1),
    metrics: &[Metric::LastWord, Metric::LastWordPerplexity],
    format: "lines of text, or of {\"text\": …} in a file *.jsonl",
    files: &["lambada_test.jsonl", "lambada_test_plain_text.txt"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    let source = Source::read(input.path, &input.about)?;
    let is_json = source.path.extension().is_some_and(|ending| ending == "jsonl" || ending == "json");
    let one = |(at, line)| {
        let record = if is_json { Some(Record::parse(at, line)?) } else { None };
        let (field, text) = match &record {
            Some(record) => ("`text`", record.filled("text")?),
            None => ("it", line),
        };
        // Nothing else is the harness's words' end.
        let parts =
            text.rsplit_once(' ').filter(|(before, word)| !before.trim().is_empty() && !word.is_empty());
        let (before, word) =
            parts.ok_or_else(|| at.wrong(field, short(text), "text that ends with a space and a word"))?;
        Ok(Question::end(before, &format!(" {word}")))
    };
    source.lines().take(input.extent.limit).map(one).collect()
}
