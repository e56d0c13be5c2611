//! The events of a YAML parser to a tree. What is written small and stands for much is refused by count.

use super::merge::{self, Pairs};
use super::mistake::{Mistake, Wrong};
use super::scalar::Scalar;
use super::{At, Entry, Node, Value};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

/// Bytes of a file.
pub const MAX_BYTES: u64 = 16 << 20;
/// Maps and lists inside each other.
pub const MAX_DEPTH: usize = 64;
/// Nodes of all files with their aliases written out.
pub const MAX_NODES: usize = 1_000_000;

/// The one document of a file; nothing where the file is empty. Its nodes are added to those of other files.
pub fn parse(file: &Path, text: &str, nodes: &mut usize) -> Result<Option<Rc<Node>>, Mistake> {
    let mut builder = Builder {
        file: file.into(),
        frames: Vec::new(),
        anchors: HashMap::new(),
        nodes: *nodes,
        documents: 0,
        root: None,
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let at = At::of(error.marker().line(), error.marker().col());
            Wrong::Yaml(error.info().to_owned()).at(at.place(file))
        })?;
        builder.event(event, span)?;
    }
    *nodes = builder.nodes;
    Ok(builder.root)
}

struct Builder {
    file: Rc<Path>,
    /// The lists and maps that are open, from the outside in.
    frames: Vec<Frame>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    documents: usize,
    root: Option<Rc<Node>>,
}

struct Frame {
    at: At,
    anchor: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Rc<Node>>),
    Map(Pairs),
}

impl At {
    fn of(line: usize, column: usize) -> Self {
        Self { line: line.max(1) as u32, column: column as u32 + 1 }
    }
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistake> {
        let at = At::of(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(_) => self.document(at),
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = self.scalar(&text, style, tag, at)?;
                // `<<` in quotes is a key like any other.
                let merges = style == ScalarStyle::Plain && &*text == merge::KEY;
                self.count(1, at)?;
                let node = self.node(at, Value::Scalar(scalar), 1);
                self.finish(node, anchor, merges)
            }
            Event::SequenceStart(anchor, tag) => self.open(Inside::List(Vec::new()), anchor, tag, at),
            Event::MappingStart(anchor, tag) => self.open(Inside::Map(Pairs::default()), anchor, tag, at),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn wrong(&self, wrong: Wrong, at: At) -> Mistake {
        wrong.at(at.place(&self.file))
    }

    fn document(&mut self, at: At) -> Result<(), Mistake> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        let hint = "put it into a file of its own, and name that under `include`";
        Err(self.wrong(Wrong::other("a second document begins", "one document in a file", hint), at))
    }

    fn node(&self, at: At, value: Value, weight: usize) -> Rc<Node> {
        Rc::new(Node { file: self.file.clone(), at, value, weight, is_whole: true })
    }

    fn count(&mut self, nodes: usize, at: At) -> Result<(), Mistake> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let found = format!("the aliases up to here stand for more than {MAX_NODES} values");
        let hint = "write a matrix, or split the file and name its parts under `include`";
        Err(self.wrong(Wrong::other(found, "fewer", hint), at))
    }

    fn alias(&mut self, anchor: usize, at: At) -> Result<(), Mistake> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            let hint = "name something that ends before it";
            return Err(
                self.wrong(Wrong::other("an alias inside what it names", "an alias after it", hint), at)
            );
        };
        self.count(node.weight, at)?;
        self.finish(node, 0, false)
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<Cow<'_, Tag>>,
        at: At,
    ) -> Result<Scalar, Mistake> {
        match tag {
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
                Ok(Scalar::Text(text.to_owned()))
            }
            Some(tag) => Err(self.tagged(&tag, at)),
            None if style == ScalarStyle::Plain => Ok(Scalar::plain(text)),
            None => Ok(Scalar::Text(text.to_owned())),
        }
    }

    fn tagged(&self, tag: &Tag, at: At) -> Mistake {
        let found = format!("the tag `{}`", crate::report::message::shown(&tag.to_string()));
        self.wrong(Wrong::other(found, "no tags", "leave it out; quotes make text of a number"), at)
    }

    fn open(
        &mut self,
        inside: Inside,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        at: At,
    ) -> Result<(), Mistake> {
        if let Some(tag) = tag {
            return Err(self.tagged(&tag, at));
        }
        if self.frames.len() == MAX_DEPTH {
            let found = format!("more than {MAX_DEPTH} lists and maps inside each other");
            let hint = "`dijiang batch --schema` describes the file";
            return Err(self.wrong(Wrong::other(found, "fewer", hint), at));
        }
        self.count(1, at)?;
        self.frames.push(Frame { at, anchor, inside });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Mistake> {
        let Some(Frame { at, anchor, inside }) = self.frames.pop() else { return Ok(()) };
        let value = match inside {
            Inside::List(items) => Value::List(items),
            Inside::Map(pairs) => {
                let (entries, taken) = pairs.merged()?;
                self.count(taken, at)?;
                Value::Map(entries)
            }
        };
        let weight = 1 + match &value {
            Value::List(items) => items.iter().map(|item| item.weight).sum(),
            Value::Map(entries) => entries.iter().map(|entry| 1 + entry.node.weight).sum(),
            Value::Scalar(_) => 0,
        };
        let node = self.node(at, value, weight);
        self.finish(node, anchor, false)
    }

    /// A node is complete: it goes into what is open.
    fn finish(&mut self, node: Rc<Node>, anchor: usize, merges: bool) -> Result<(), Mistake> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let file = self.file.clone();
        match self.frames.last_mut().map(|frame| &mut frame.inside) {
            None => self.root = Some(node),
            Some(Inside::List(items)) => items.push(node),
            Some(Inside::Map(pairs)) => pairs.push(node, merges, &file)?,
        }
        Ok(())
    }
}

impl Entry {
    pub(super) fn new(key: &Node, node: Rc<Node>, file: &Rc<Path>) -> Self {
        Self { key: key.text().unwrap_or_default().into(), file: file.clone(), at: key.at, node }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Rc<Node> {
        parse(Path::new("a.yaml"), text, &mut 0).expect("it parses").expect("a document")
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let root = read("a: 1\n\nb:\n  - x\n  - {c: ä, d: y}\n");
        let items = root.get("b").expect("b").items();
        let place = items[1].get("d").expect("d").place();
        assert_eq!((place.line, place.column), (5, 15));
        let place = items[1].entries()[1].place();
        assert_eq!((place.line, place.column), (5, 12));
    }

    #[test]
    fn merged_keys_give_way_to_those_that_are_written() {
        let root = read("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 5\n");
        let z = root.get("z").expect("z");
        let value = |key| z.get(key).and_then(|node| node.text()).map(str::to_owned);
        assert_eq!([value("a"), value("b"), value("c")].map(Option::unwrap), ["5", "2", "4"]);
        assert_eq!(read("'<<': 1").entries().len(), 1);
    }

    #[test]
    fn a_file_without_a_document_holds_nothing() {
        for text in ["", "# a remark\n", "\u{feff}"] {
            assert!(
                parse(Path::new("a.yaml"), text, &mut 0)
                    .expect("it parses")
                    .is_none_or(|node| node.is_null()),
                "{text:?}"
            );
        }
    }
}
