//! LogiQA, as its authors give it: blocks of lines, the letter of the answer first.

use super::{ACC_NORM, Input, Task};
use crate::eval::question::Question;
use crate::eval::source::{At, Source, TaskFileError, one_of, short};

pub(super) const TASK: Task = Task {
    name: "logiqa",
    version: Some(1),
    metrics: ACC_NORM,
    format: "blocks with an empty line between them: the answer's letter a to d, the passage, the question, and four options A. to D., a line each",
    files: &["Eval.txt", "logiqa_Eval.txt", "Test.txt"],
    read,
};

const LETTERS: [&str; 4] = ["a", "b", "c", "d"];
const MARKS: [&str; 4] = ["A", "B", "C", "D"];
const LINES: [&str; 7] =
    ["the answer", "the passage", "the question", "option A", "option B", "option C", "option D"];

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    let source = Source::read(input.path, &input.about)?;
    let mut blocks: Vec<Vec<(At<'_>, &str)>> = Vec::new();
    let mut before = 0;
    for (at, line) in source.lines() {
        match blocks.last_mut() {
            Some(block) if at.line == before + 1 => block.push((at, line)),
            _ => blocks.push(vec![(at, line)]),
        }
        before = at.line;
    }
    blocks.iter().take(input.extent.limit).map(|block| question(block)).collect()
}

fn question(block: &[(At<'_>, &str)]) -> Result<Question, TaskFileError> {
    let (last, _) = block[block.len() - 1];
    let line = |number: usize| {
        let missing = || last.wrong(LINES[number], "missing after this line", "a line of text");
        block.get(number).copied().ok_or_else(missing)
    };
    if let Some((at, line)) = block.get(LINES.len()) {
        return Err(at.wrong("the line after option D", short(line), "empty"));
    }
    let (at, letter) = line(0)?;
    let answer = LETTERS.iter().position(|known| *known == letter.trim());
    let answer = answer.ok_or_else(|| at.wrong(LINES[0], short(letter.trim()), one_of(&LETTERS)))?;
    let ((_, passage), (_, question)) = (line(1)?, line(2)?);
    let option = |number: usize| {
        let (at, line) = line(3 + number)?;
        // Some options of the publisher's files lack their mark, and lose their beginning in the harness too.
        let text: String = line.chars().skip(2).collect();
        match text.trim().is_empty() {
            true => Err(at.wrong(LINES[3 + number], short(line), format!("{}. and its text", MARKS[number]))),
            false => Ok(spaced(&text)),
        }
    };
    let options = (0..MARKS.len()).map(option).collect::<Result<Vec<_>, _>>()?;
    let mut context = format!("Passage: {}\nQuestion: {}\nChoices:\n", spaced(passage), spaced(question));
    for (mark, option) in MARKS.iter().zip(&options) {
        context.extend([mark, ". ", option.as_str(), "\n"]);
    }
    Ok(Question::choices(&(context + "Answer:"), &options, answer))
}

/// With a space after each full stop, where the files have none.
fn spaced(text: &str) -> String {
    text.replace('.', ". ").trim().to_owned()
}
