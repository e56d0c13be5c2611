//! The first 273 of the Winograd schemas, as `WSCollection.xml` gives them: the end of the sentence is scored behind each of
//! the two answers in the pronoun's place.

use super::{ACC, Input, Task};
use crate::eval::question::Question;
use crate::eval::source::{At, Source, TaskFileError, short};
use dijiang_format::words::counted;
use quick_xml::Reader;
use quick_xml::events::Event;

pub(super) const TASK: Task = Task {
    name: "wsc273",
    version: Some(1),
    metrics: ACC,
    format: "the collection of Winograd schemas in XML: <schema> with <text> of <txt1>, <pron>, <txt2>, and <answers> of two <answer>, and <correctAnswer>",
    files: &["WSCollection.xml"],
    read,
};

const SCHEMAS: usize = 273;
/// Words that begin an answer in a sentence's middle with a small letter.
const BEGINNINGS: [&str; 11] = ["A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their"];
/// A name in the place of one of these takes an 's.
const POSSESSIVES: [&str; 5] = ["my", "his", "her", "our", "their"];

/// A schema's texts, each once.
#[derive(Debug, Default)]
struct Schema {
    line: usize,
    before: Option<String>,
    pronoun: Option<String>,
    after: Option<String>,
    answers: Vec<String>,
    correct: Option<String>,
}

fn read(input: &Input<'_>) -> Result<Vec<Question>, TaskFileError> {
    let source = Source::read(input.path, &input.about)?;
    let schemas = schemas(&source)?;
    let most = input.extent.limit.min(SCHEMAS);
    schemas.iter().take(most).map(|schema| schema.question(source.at(schema.line))).collect()
}

fn schemas(source: &Source) -> Result<Vec<Schema>, TaskFileError> {
    let mut reader = Reader::from_str(&source.text);
    let (mut schemas, mut path, mut text) = (Vec::<Schema>::new(), Vec::<String>::new(), String::new());
    let (mut line, mut counted) = (1, 0);
    loop {
        let event = reader.read_event();
        let end = (reader.buffer_position() as usize).min(source.text.len());
        line += source.text.as_bytes()[counted..end].split(|byte| *byte == b'\n').count() - 1;
        counted = end;
        let at = source.at(line);
        let broken = |what: String| at.wrong("it", what, "a collection of schemas in XML");
        match event.map_err(|e| broken(format!("no XML ({e})")))? {
            Event::Start(start) => {
                path.push(start.name().into_inner().to_owned());
                text.clear();
                if path.last().is_some_and(|tag| tag == "schema") {
                    schemas.push(Schema { line, ..Schema::default() });
                }
            }
            Event::Text(part) if path.is_empty() && !part.trim().is_empty() => {
                return Err(broken(format!("text outside of XML ({})", short(part.trim()))));
            }
            Event::Text(part) => text.push_str(&part),
            Event::GeneralRef(name) => {
                text += &resolved(&name).ok_or_else(|| broken(format!("&{};", &*name)))?;
            }
            Event::End(_) => {
                if let (Some(schema), Some(tag)) = (schemas.last_mut(), path.pop()) {
                    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
                    schema.take(&tag, words);
                }
            }
            Event::Eof if path.is_empty() => return Ok(schemas),
            Event::Eof => return Err(broken(format!("without the end of <{}>", path.join("><")))),
            _ => {}
        }
    }
}

/// What a reference stands for.
fn resolved(name: &str) -> Option<String> {
    let number = |digits: &str, base| u32::from_str_radix(digits, base).ok().and_then(char::from_u32);
    let character = match (name.strip_prefix("#x"), name.strip_prefix('#')) {
        (Some(digits), _) => number(digits, 16),
        (None, Some(digits)) => number(digits, 10),
        (None, None) => return quick_xml::escape::resolve_predefined_entity(name).map(str::to_owned),
    };
    character.map(String::from)
}

impl Schema {
    fn take(&mut self, tag: &str, words: String) {
        let place = match tag {
            "txt1" => &mut self.before,
            "pron" if self.pronoun.is_none() => &mut self.pronoun,
            "txt2" => &mut self.after,
            "correctAnswer" => &mut self.correct,
            "answer" => return self.answers.push(words),
            _ => return,
        };
        *place = Some(words);
    }

    fn question(&self, at: At<'_>) -> Result<Question, TaskFileError> {
        let given = |tag: &str, text: &Option<String>| {
            text.clone().ok_or_else(|| at.wrong(&format!("<{tag}>"), "missing", "text"))
        };
        let pronoun = given("pron", &self.pronoun)?;
        let (before, after) = (given("txt1", &self.before)?, given("txt2", &self.after)?);
        let [first, second] = self.answers.as_slice() else {
            let found = format!("given {}", counted(self.answers.len(), "time"));
            return Err(at.wrong("<answer>", found, "two"));
        };
        let correct = given("correctAnswer", &self.correct)?;
        let answer = ["A", "B"].iter().position(|letter| *letter == correct.trim_end_matches('.'));
        let answer = answer.ok_or_else(|| at.wrong("<correctAnswer>", short(&correct), "A or B"))?;
        let begin = if before.is_empty() { String::new() } else { format!("{before} ") };
        let whole = format!("{begin}{pronoun} {after}");
        let begins = begins_a_sentence(whole.trim(), begin.chars().count());
        let contexts = [first, second].map(|option| begin.clone() + &placed(option, &pronoun, begins));
        if let Some(empty) = [first, second].into_iter().find(|option| option.is_empty()) {
            return Err(at.wrong("<answer>", short(empty), "text with something in it"));
        }
        // Its own space stays before it, after that of every continuation.
        Ok(Question::contexts(&contexts, &format!(" {after}"), answer))
    }
}

/// Whether a full stop comes right before the space before a place, which counts from the end where it is before the
/// beginning.
fn begins_a_sentence(text: &str, place: usize) -> bool {
    let characters: Vec<char> = text.chars().collect();
    let before = (place as i64 - 2).rem_euclid(characters.len().max(1) as i64);
    characters.get(before as usize) == Some(&'.')
}

/// An answer as it stands in the pronoun's place.
fn placed(option: &str, pronoun: &str, begins: bool) -> String {
    let possessive = POSSESSIVES.contains(&pronoun.to_lowercase().as_str());
    let option = if possessive { format!("{option}'s") } else { option.to_owned() };
    let first = option.split_whitespace().next().unwrap_or_default();
    match !begins && BEGINNINGS.contains(&first) {
        true => option.replace(first, &first.to_lowercase()),
        false => option,
    }
}
