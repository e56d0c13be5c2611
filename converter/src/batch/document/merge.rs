//! The keys of a map while it is read, and the merge key `<<`.

use super::mistake::{Mistake, Wrong};
use super::{Entry, Node, Value};
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

/// Its value, a map or a list of maps, adds the keys that are not there.
pub(super) const KEY: &str = "<<";

/// The pairs of a map so far.
#[derive(Default)]
pub(super) struct Pairs {
    entries: Vec<Entry>,
    /// The line of each key.
    lines: HashMap<Rc<str>, u32>,
    merges: Vec<Rc<Node>>,
    /// A key whose value has not come, and whether it merges.
    key: Option<(Rc<Node>, bool)>,
}

impl Pairs {
    /// Takes a key or the value of the one before.
    pub(super) fn push(&mut self, node: Rc<Node>, merges: bool, file: &Rc<Path>) -> Result<(), Mistake> {
        match self.key.take() {
            None if node.text().is_some() => self.key = Some((node, merges)),
            None => {
                let (found, hint) =
                    (format!("{} as a key", node.kind()), "`dijiang batch --schema` lists the keys");
                return Err(Wrong::other(found, "a name", hint).at(node.place()));
            }
            Some((_, true)) => self.merges.push(node),
            Some((key, false)) => {
                let entry = Entry::new(&key, node, file);
                if let Some(first) = self.lines.insert(entry.key.clone(), entry.at.line) {
                    let key = entry.key.to_string();
                    return Err(Wrong::DuplicateKey { key, first }.at(entry.place()));
                }
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// All entries, and how many nodes the merged ones stand for.
    pub(super) fn merged(mut self) -> Result<(Vec<Entry>, usize), Mistake> {
        let mut taken = 0;
        for merge in std::mem::take(&mut self.merges) {
            let maps = match &merge.value {
                Value::List(items) => items.clone(),
                _ => vec![merge],
            };
            for map in maps {
                taken += self.take(&map)?;
            }
        }
        Ok((self.entries, taken))
    }

    fn take(&mut self, map: &Node) -> Result<usize, Mistake> {
        let Value::Map(entries) = &map.value else {
            let hint = "name a map by its anchor: `<<: *base`";
            return Err(Wrong::other(format!("{} to merge", map.kind()), "a map", hint).at(map.place()));
        };
        let mut taken = 0;
        for entry in entries {
            if !self.lines.contains_key(&entry.key) {
                self.lines.insert(entry.key.clone(), entry.at.line);
                taken += 1 + entry.node.weight;
                self.entries.push(entry.clone());
            }
        }
        Ok(taken)
    }
}
