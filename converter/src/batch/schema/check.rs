//! A document held against the table of keys: unknown keys, missing ones, and values of a wrong kind.

use super::{Kind, Table};
use crate::batch::document::{Mistake, Mistakes, Node, Scalar, Value, Wrong};
use crate::batch::plan::StepCommand;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::target::Target;
use std::collections::HashMap;
use std::rc::Rc;

/// Bytes of a name, which becomes that of a directory.
pub(super) const MAX_NAME: usize = 120;

/// Notes what is wrong with a map of a table, and returns what is right with it; nothing where it is no map.
pub(crate) fn check(root: &Rc<Node>, table: &'static Table, mistakes: &mut Mistakes) -> Option<Rc<Node>> {
    Checker { mistakes, steps: HashMap::new() }.map(root, table)
}

struct Checker<'a> {
    mistakes: &'a mut Mistakes,
    /// What is right with lists of steps: one that many jobs share stays one.
    steps: HashMap<*const Node, Rc<Node>>,
}

impl Checker<'_> {
    fn map(&mut self, node: &Rc<Node>, table: &'static Table) -> Option<Rc<Node>> {
        let Value::Map(entries) = &node.value else {
            let expected = format!("a map of keys for {}", table.owner);
            let wrong = Wrong::other(node.kind(), expected, "`dijiang batch --schema` describes each key");
            self.mistakes.add(wrong.at(node.place()));
            return None;
        };
        let mut is_whole = true;
        let mut right = Vec::new();
        for entry in entries {
            let kept = match table.key(&entry.key) {
                Some(key) => self.value(&entry.node, key.name, key.kind),
                None if table.is_free(&entry.key) => Some(entry.node.clone()),
                None => {
                    let known = table.keys.iter().map(|key| key.name.to_owned()).collect();
                    let (key, owner) = (entry.key.to_string(), table.owner.to_owned());
                    self.mistakes.add(Wrong::UnknownKey { key, owner, known }.at(entry.place()));
                    None
                }
            };
            is_whole &= kept.as_ref().is_some_and(|kept| Rc::ptr_eq(kept, &entry.node));
            right.extend(kept.map(|kept| entry.with(kept)));
        }
        for key in table.keys.iter().filter(|key| key.required && node.get(key.name).is_none()) {
            is_whole = false;
            let (owner, expected) = (table.owner.to_owned(), key.kind.words());
            self.mistakes.add(Wrong::Missing { owner, key: key.name, expected }.at(node.place()));
        }
        Some(if is_whole { node.clone() } else { node.cut(Value::Map(right)) })
    }

    /// What is right with the value of a key.
    fn value(&mut self, node: &Rc<Node>, key: &str, kind: Kind) -> Option<Rc<Node>> {
        let named = match (kind, &node.value) {
            (Kind::Map(table), Value::Map(_)) => return self.map(node, table),
            // Without its path it is nothing.
            (Kind::PathOr(table), Value::Map(_)) => {
                return self.map(node, table).filter(|map| map.get("path").is_some());
            }
            (Kind::Axis(_), Value::List(items)) if items.is_empty() => None,
            (Kind::List(kind) | Kind::Axis(kind), Value::List(_)) => {
                return Some(self.items(node, |checker, item| checker.value(item, key, *kind)));
            }
            (Kind::Steps, Value::List(_)) => return Some(self.steps(node)),
            (_, Value::Scalar(scalar)) => match scalar_of(scalar, kind) {
                Ok(()) => return Some(node.clone()),
                Err(named) => named,
            },
            _ => None,
        };
        let expected = kind.words();
        let wrong =
            named.unwrap_or_else(|| Wrong::Kind { found: node.kind(), expected, key: key.to_owned() });
        self.mistakes.add(wrong.at(node.place()));
        None
    }

    fn items(
        &mut self,
        list: &Rc<Node>,
        mut read: impl FnMut(&mut Self, &Rc<Node>) -> Option<Rc<Node>>,
    ) -> Rc<Node> {
        let items = list.items();
        let right: Vec<Rc<Node>> = items.iter().filter_map(|item| read(self, item)).collect();
        let is_whole =
            right.len() == items.len() && right.iter().zip(items).all(|(kept, item)| Rc::ptr_eq(kept, item));
        if is_whole { list.clone() } else { list.cut(Value::List(right)) }
    }

    fn steps(&mut self, list: &Rc<Node>) -> Rc<Node> {
        if let Some(known) = self.steps.get(&Rc::as_ptr(list)) {
            return known.clone();
        }
        let kept = self.items(list, |checker, item| {
            let checked = step(item);
            checker.mistakes.note(checked).map(|()| item.clone())
        });
        self.steps.insert(Rc::as_ptr(list), kept.clone());
        kept
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

fn step(node: &Rc<Node>) -> Result<(), Mistake> {
    let (name, place) = match (&node.value, node.entries()) {
        (Value::Scalar(Scalar::Text(name)), _) => (name.as_str(), node.place()),
        (Value::Map(_), [entry]) => (&*entry.key, entry.place()),
        _ => {
            let (found, expected) = (node.kind(), Kind::Steps.words());
            return Err(Wrong::Kind { found, expected, key: "steps".to_owned() }.at(node.place()));
        }
    };
    if StepCommand::named(name).is_none() {
        let known = StepCommand::ALL.map(|command| command.name().to_owned()).to_vec();
        return Err(unknown("step", name, known).at(place));
    }
    match node.entries() {
        [entry] if !matches!(entry.node.value, Value::Map(_)) && !entry.node.is_null() => {
            let (found, expected) = (entry.node.kind(), "a map of options".to_owned());
            Err(Wrong::Kind { found, expected, key: name.to_owned() }.at(entry.node.place()))
        }
        _ => Ok(()),
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
