//! The Winograd schemas of SuperGLUE: whether a pronoun is a noun.

use super::{ACC, Input, Task, of_records};
use crate::eval::question::Question;
use crate::eval::source::TaskFileError;

pub(super) const TASK: Task = Task {
    name: "wsc",
    version: Some(1),
    metrics: ACC,
    format: "lines of {\"text\": …, \"target\": {\"span1_text\": …, \"span2_text\": …, \"span2_index\": 5}, \"label\": true}",
    files: &["val.jsonl", "wsc_val.jsonl"],
    read,
};

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    of_records(input, |record| {
        let text = record.filled("text")?;
        let noun = record.filled("target.span1_text")?;
        let pronoun = record.filled("target.span2_text")?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let index = record.number("target.span2_index", [0, words.len() - 1])?;
        // The place counts words, and what follows begins as many characters after them as the pronoun has.
        let before = words[..index].join(" ");
        let skipped = before.chars().count() + pronoun.chars().count() + 1;
        let after: String = text.chars().skip(skipped).collect();
        let passage = joined(&format!("{before} *{pronoun}*{after}"));
        let context = format!(
            "Passage: {passage}\nQuestion: In the passage above, does the pronoun \"*{pronoun}*\" refer to \"*{noun}*\"?\nAnswer:"
        );
        Ok(Question::choices(&context, &["no", "yes"], usize::from(record.flag("label")?)))
    })
}

/// Without the spaces that a tokenizer put around marks.
fn joined(text: &str) -> String {
    let marks = [
        (" n't", "n't"),
        (" )", ")"),
        ("( ", "("),
        ("\" ", "\""),
        (" \"", "\""),
        (" '", "'"),
        (" .", "."),
        (" ,", ","),
    ];
    marks.into_iter().fold(text.to_owned(), |text, (apart, joined)| text.replace(apart, joined))
}
