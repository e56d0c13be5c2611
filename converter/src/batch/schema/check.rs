//! A document held against the table of keys: unknown keys, missing ones, and values of a wrong kind.

use super::{Kind, Table};
use crate::batch::document::{Mistakes, Node, Scalar, Value, Wrong};
use crate::batch::plan::StepCommand;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::target::Target;
use std::rc::Rc;

/// Bytes of a name, which becomes that of a directory.
pub(super) const MAX_NAME: usize = 120;

/// Notes what is wrong with a map of a table.
pub(crate) fn check(node: &Node, table: &'static Table, mistakes: &mut Mistakes) {
    if !matches!(node.value, Value::Map(_)) {
        let expected = format!("a map of keys for {}", table.owner);
        let wrong = Wrong::other(node.kind(), expected, "`dijiang batch --schema` describes each key");
        return mistakes.add(wrong.at(node.place()));
    }
    for entry in node.entries() {
        match table.key(&entry.key) {
            Some(key) => value(&entry.node, key.name, key.kind, mistakes),
            None if table.is_free(&entry.key) => {}
            None => {
                let known = table.keys.iter().map(|key| key.name.to_owned()).collect();
                let (key, owner) = (entry.key.to_string(), table.owner.to_owned());
                mistakes.add(Wrong::UnknownKey { key, owner, known }.at(entry.place()));
            }
        }
    }
    for key in table.keys.iter().filter(|key| key.required && node.get(key.name).is_none()) {
        let (owner, expected) = (table.owner.to_owned(), key.kind.words());
        mistakes.add(Wrong::Missing { owner, key: key.name, expected }.at(node.place()));
    }
}

/// Notes what is wrong with the value of a key.
fn value(node: &Rc<Node>, key: &str, kind: Kind, mistakes: &mut Mistakes) {
    let inside = match (kind, &node.value) {
        (Kind::Map(table) | Kind::PathOr(table), Value::Map(_)) => {
            return check(node, table, mistakes);
        }
        (Kind::Axis(_), Value::List(items)) if items.is_empty() => Err(None),
        (Kind::List(kind) | Kind::Axis(kind), Value::List(items)) => {
            return items.iter().for_each(|item| value(item, key, *kind, mistakes));
        }
        (Kind::Steps, Value::List(items)) => {
            return items.iter().for_each(|item| step(item, mistakes));
        }
        (_, Value::Scalar(scalar)) => scalar_of(scalar, kind),
        _ => Err(None),
    };
    if let Err(named) = inside {
        let expected = kind.words();
        let wrong =
            named.unwrap_or_else(|| Wrong::Kind { found: node.kind(), expected, key: key.to_owned() });
        mistakes.add(wrong.at(node.place()));
    }
}

/// Whether a scalar is of a kind; an error may say more than that it is not.
fn scalar_of(scalar: &Scalar, kind: Kind) -> Result<(), Option<Wrong>> {
    match (kind, scalar) {
        (Kind::Version, Scalar::Number(number, _)) => (*number == 1.0).then_some(()).ok_or(None),
        (Kind::Number(least), Scalar::Number(number, _)) => {
            (number.is_finite() && *number >= least).then_some(()).ok_or(None)
        }
        // It takes a limit of the defaults away.
        (Kind::Number(_), Scalar::Null) => Ok(()),
        (Kind::Target, Scalar::Text(text)) => {
            let known = Target::names().map(str::to_owned).collect();
            text.parse::<Target>().map(drop).map_err(|_| Some(unknown("target", text, known)))
        }
        (Kind::DType, Scalar::Text(text)) => {
            let known = dtypes();
            known.contains(text).then_some(()).ok_or_else(|| Some(unknown("dtype", text, known)))
        }
        (Kind::Name, Scalar::Text(text)) => is_name(text).then_some(()).ok_or_else(|| Some(no_name(text))),
        (Kind::Path | Kind::PathOr(_) | Kind::Recipe, Scalar::Text(text)) => {
            let is_path = !text.is_empty() && !text.contains('\0');
            is_path.then_some(()).ok_or(None)
        }
        _ => Err(None),
    }
}

fn step(node: &Rc<Node>, mistakes: &mut Mistakes) {
    let (name, place) = match (&node.value, node.entries()) {
        (Value::Scalar(Scalar::Text(name)), _) => (name.as_str(), node.place()),
        (Value::Map(_), [entry]) => (&*entry.key, entry.place()),
        _ => {
            let (found, expected) = (node.kind(), Kind::Steps.words());
            return mistakes.add(Wrong::Kind { found, expected, key: "steps".to_owned() }.at(node.place()));
        }
    };
    if StepCommand::named(name).is_none() {
        let known = StepCommand::ALL.map(|command| command.name().to_owned()).to_vec();
        return mistakes.add(unknown("step", name, known).at(place));
    }
    if let [entry] = node.entries()
        && !matches!(entry.node.value, Value::Map(_))
        && !entry.node.is_null()
    {
        let (found, expected) = (entry.node.kind(), "a map of options".to_owned());
        mistakes.add(Wrong::Kind { found, expected, key: name.to_owned() }.at(entry.node.place()));
    }
}

fn unknown(what: &'static str, name: &str, known: Vec<String>) -> Wrong {
    let expected = format!("one of {}", known.join(", "));
    Wrong::UnknownName { what, name: name.to_owned(), expected, known }
}

fn no_name(text: &str) -> Wrong {
    let found = format!("the name `{}`", shown(text));
    let expected = format!(
        "letters of ASCII, digits, `.`, `_`, `+` and `-`, {MAX_NAME} bytes at most, with a letter or digit first"
    );
    Wrong::other(found, expected, "it becomes the name of a directory; then `dijiang batch FILE --check`")
}

/// Whether a text may be the name of a job.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

/// The element types that a conversion takes.
pub(crate) fn dtypes() -> Vec<String> {
    [DType::F32, DType::F16, DType::BF16].map(|dtype| dtype.name().to_owned()).to_vec()
}

impl Kind {
    /// What is expected, in words.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Version => "the number 1".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Name => "a name".to_owned(),
            Self::Recipe => "a recipe's name or the path of a YAML file".to_owned(),
            Self::Target => format!("one of {}", Target::names().collect::<Vec<_>>().join(", ")),
            Self::DType => format!("one of {}", dtypes().join(", ")),
            Self::Number(least) if least.is_finite() => format!("a number of {least} or more"),
            Self::Number(_) => "a number".to_owned(),
            Self::List(kind) => format!("a list, each item {}", kind.words()),
            Self::Axis(kind) => format!("a list of at least one item, each {}", kind.words()),
            Self::Map(_) => "a map".to_owned(),
            Self::PathOr(table) => {
                let keys: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
                format!("a path or {{{}}}", keys.join(", "))
            }
            Self::Steps => "a list of steps, each a command or {command: {option: value}}".to_owned(),
        }
    }
}
