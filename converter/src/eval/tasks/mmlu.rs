//! MMLU, as its authors give it: tables of questions by subject, with solved ones of the same subject before each.

use super::{ACC, Input, Task, listed, no_file};
use crate::eval::question::Question;
use crate::eval::source::{Source, TaskFileError, one_of, short};
use csv::{ReaderBuilder, StringRecord};
use std::path::{Path, PathBuf};

pub(super) const TASK: Task = Task {
    name: "mmlu",
    version: Some(2),
    metrics: ACC,
    format: "SUBJECT_test.csv, or the directory of test/*_test.csv and dev/*_dev.csv: question, A, B, C, D, and the answer's letter, without a header",
    files: &[],
    read,
};

const COLUMNS: [&str; 6] = ["question", "A", "B", "C", "D", "answer"];
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
const TEST: &str = "_test.csv";

/// A row of a table.
struct Row {
    /// The question with its choices.
    asked: String,
    answer: usize,
}

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    let path = input.path;
    let in_test = if path.join("test").is_dir() { path.join("test") } else { path.to_owned() };
    let files = if path.is_dir() { listed(&in_test, TEST, &input.about)? } else { vec![path.to_owned()] };
    let subjects = files.iter().map(|file| subject(input, file)).collect::<Result<Vec<_>, _>>()?;
    Ok(subjects.concat())
}

fn subject(input: &Input<'_>, file: &Path) -> Result<Vec<Question>, TaskFileError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let subject = name.trim_end_matches(TEST).trim_end_matches(".csv");
    let mut before = format!(
        "The following are multiple choice questions (with answers) about {}.\n\n",
        subject.replace('_', " ")
    );
    for row in solved(input, file, subject)? {
        before.extend([row.asked.as_str(), " ", LETTERS[row.answer], "\n\n"]);
    }
    let rows = rows(input, file, input.extent.limit)?;
    let question = |row: Row| Question::choices(&(before.clone() + &row.asked), &LETTERS, row.answer);
    Ok(rows.into_iter().map(question).collect())
}

/// The questions that are asked with their answers.
fn solved(input: &Input<'_>, file: &Path, subject: &str) -> Result<Vec<Row>, TaskFileError> {
    let shots = input.extent.shots;
    if shots == 0 {
        return Ok(Vec::new());
    }
    let name = format!("{subject}_dev.csv");
    let beside = file.with_file_name(&name);
    let above = file.parent().and_then(Path::parent).map(|root| root.join("dev").join(&name));
    let places: Vec<PathBuf> = above.into_iter().chain([beside]).collect();
    let Some(found) = places.iter().find(|place| place.is_file()) else {
        let directory = file.parent().unwrap_or(Path::new("."));
        return Err(no_file(directory, &format!("../dev/{name}, {name}, which --shots reads"), &input.about));
    };
    rows(input, found, shots)
}

fn rows(input: &Input<'_>, file: &Path, most: usize) -> Result<Vec<Row>, TaskFileError> {
    let source = Source::read(file, &input.about)?;
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source.text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records().take(most) {
        let line = |position: Option<&csv::Position>| position.map_or(1, |position| position.line() as usize);
        let record = record.map_err(|e| source.at(line(e.position())).wrong("it", "no CSV", "a table"))?;
        rows.push(row(&source, line(record.position()), &record)?);
    }
    Ok(rows)
}

fn row(source: &Source, line: usize, record: &StringRecord) -> Result<Row, TaskFileError> {
    let at = source.at(line);
    if let Some(name) = COLUMNS.get(record.len()) {
        return Err(at.wrong(&format!("the column `{name}`"), "missing", "text"));
    }
    if let Some(extra) = record.get(COLUMNS.len()) {
        return Err(at.wrong("the column after `answer`", short(extra), "none"));
    }
    let letter = record[5].trim();
    let answer = LETTERS.iter().position(|known| *known == letter);
    let answer = answer.ok_or_else(|| at.wrong("the column `answer`", short(letter), one_of(&LETTERS)))?;
    let choices = LETTERS.iter().zip(record.iter().skip(1));
    let choices: String = choices.flat_map(|(letter, text)| [letter, ". ", text, "\n"]).collect();
    Ok(Row { asked: format!("{}\n{choices}Answer:", record[0].trim()), answer })
}
