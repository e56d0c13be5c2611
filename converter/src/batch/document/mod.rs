//! YAML as a tree of nodes that know where they stand.

mod build;
mod merge;
pub mod mistake;
mod scalar;

pub use build::{MAX_BYTES, MAX_DEPTH, MAX_NODES, parse};
pub use mistake::{Mistake, Mistakes, Wrong};
pub use scalar::Scalar;

use crate::report::outcome::Place;
use std::path::Path;
use std::rc::Rc;

/// A value of a document. What an alias names is shared, not copied.
#[derive(Debug)]
pub struct Node {
    file: Rc<Path>,
    at: At,
    pub value: Value,
    /// How many nodes it stands for where its aliases are written out.
    weight: usize,
    /// Whether nothing was left out of it.
    is_whole: bool,
}

/// A line and a column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    line: u32,
    column: u32,
}

/// What a node holds.
#[derive(Debug)]
pub enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: Rc<str>,
    file: Rc<Path>,
    at: At,
    pub node: Rc<Node>,
}

impl Node {
    pub fn place(&self) -> Place {
        self.at.place(&self.file)
    }

    /// The file that it stands in, to which paths in it are relative.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it is as it was written, without anything left out that is wrong.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The same with what is left of its value.
    pub(crate) fn cut(&self, value: Value) -> Rc<Self> {
        let Self { ref file, at, weight, .. } = *self;
        Rc::new(Self { file: file.clone(), at, value, weight, is_whole: false })
    }

    /// The value of a key, where this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Rc<Self>> {
        self.entries().iter().find(|entry| &*entry.key == key).map(|entry| &entry.node)
    }

    /// The entries of a map; of anything else there are none.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; of anything else there are none.
    pub fn items(&self) -> &[Rc<Self>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar as it is written, whatever it stands for.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar.text()),
            _ => None,
        }
    }

    /// What it is, in words.
    pub fn kind(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) => scalar.kind(),
            Value::List(items) if items.is_empty() => "an empty list".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar(Scalar::Null))
    }
}

impl Entry {
    /// The same key with another value.
    pub(crate) fn with(&self, node: Rc<Node>) -> Self {
        Self { node, ..self.clone() }
    }

    pub fn place(&self) -> Place {
        self.at.place(&self.file)
    }
}

impl At {
    fn place(self, file: &Path) -> Place {
        Place { file: file.to_owned(), line: self.line as usize, column: self.column as usize }
    }
}
