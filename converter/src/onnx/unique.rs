//! Names that differ from all others of their kind.

use std::collections::{BTreeMap, BTreeSet};

/// The names that are taken.
#[derive(Debug, Default)]
pub(super) struct Unique {
    taken: BTreeSet<String>,
    /// The last number that was tried for a name, so that a thousand of one name are not a thousand searches.
    tried: BTreeMap<String, usize>,
}

impl Unique {
    /// Takes a name. False where it is taken already.
    pub(super) fn take(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    pub(super) fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// Takes `wanted`, or the first of `wanted_1`, `wanted_2`, … that is free.
    pub(super) fn fresh(&mut self, wanted: &str) -> String {
        if self.take(wanted) {
            return wanted.to_owned();
        }
        let mut number = self.tried.get(wanted).copied().unwrap_or_default();
        loop {
            number += 1;
            let name = format!("{wanted}_{number}");
            if self.take(&name) {
                self.tried.insert(wanted.to_owned(), number);
                return name;
            }
        }
    }
}

impl<'n> FromIterator<&'n String> for Unique {
    fn from_iter<I: IntoIterator<Item = &'n String>>(names: I) -> Self {
        Self { taken: names.into_iter().cloned().collect(), tried: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::Unique;

    #[test]
    fn a_name_that_is_taken_gets_the_first_free_number() {
        let mut names: Unique = [&"a".to_owned(), &"a_2".to_owned()].into_iter().collect();
        let found = ["b", "a", "a", "b"].map(|name| names.fresh(name));
        assert_eq!(found, ["b", "a_1", "a_3", "b_1"]);
        assert!(names.is_taken("a_3") && !names.is_taken("a_4") && !names.take("b"));
    }
}
