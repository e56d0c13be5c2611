//! RACE, as its authors give it: a file for every article, whose last question is asked after the others are solved.

use super::{ACC, Input, Task, listed};
use crate::eval::question::Question;
use crate::eval::source::{Record, Source, TaskFileError};

pub(super) const TASK: Task = Task {
    name: "race",
    version: Some(3),
    metrics: ACC,
    format: "a file or a directory of files *.txt, each {\"article\": …, \"questions\": […], \"options\": [[four texts], …], \"answers\": [\"A\", …]}",
    files: &[],
    read,
};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
/// What is filled in, at the end of a sentence.
const BLANK: &str = "  _  .";

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    let path = input.path;
    let files = if path.is_dir() { listed(path, ".txt", &input.about)? } else { vec![path.to_owned()] };
    let one = |file| {
        let source = Source::read(file, &input.about)?;
        question(&Record::parse(source.at(1), &source.text)?)
    };
    files.iter().take(input.extent.limit).map(|file| one(file)).collect()
}

fn question(record: &Record<'_>) -> Result<Question, TaskFileError> {
    let mut context = format!("Article: {}\n\n", record.text("article")?);
    let questions = record.texts("questions")?;
    let problem = |at: usize| -> Result<(Vec<&str>, usize), TaskFileError> {
        let field = format!("options.{at}");
        let options = record.texts(&field)?;
        if options.len() != LETTERS.len() {
            let found = format!("a list of {}", options.len());
            return Err(record.at.wrong(&format!("`{field}`"), found, "a list of four texts"));
        }
        Ok((options, record.word(&format!("answers.{at}"), &LETTERS)?))
    };
    let last = questions.len() - 1;
    for (at, question) in questions[..last].iter().enumerate() {
        let (options, answer) = problem(at)?;
        let answer = options[answer];
        match question.strip_suffix(BLANK) {
            // One space of it stays.
            Some(before) => context.extend([before, " ", answer, "\n"]),
            None => context.extend(["Question: ", question, "\nAnswer: ", answer, "\n"]),
        }
    }
    let (options, answer) = problem(last)?;
    Ok(Question::choices(&(context + questions[last]), &options, answer))
}
