//! A matrix to jobs, with `exclude` and `include` as matrices of CI have them.

use super::draft::{Draft, are_whole, model_name, model_path, stem};
use super::{MAX_JOBS, check_count};
use crate::batch::document::{Mistakes, Node, Wrong};
use crate::recipes;
use std::collections::HashMap;
use std::rc::Rc;

/// The keys that make combinations, in the order of names.
const AXES: [&str; 4] = ["model", "recipe", "target", "dtype"];

/// Combinations times entries of `include` and `exclude`.
const MAX_COMPARED: usize = 1_000_000;

/// One value of each axis; nothing where the matrix has no such axis.
#[derive(Debug, Clone)]
struct Combination {
    values: [Option<Axis>; 4],
    /// Which of them are of the matrix itself, not of `include`.
    original: [bool; 4],
    /// Entries of `include`, the last one first.
    extra: Vec<Rc<Node>>,
}

#[derive(Debug, Clone)]
struct Axis {
    node: Rc<Node>,
    name: Rc<str>,
}

/// Adds the jobs of a matrix, and says whether those are all that were meant.
pub(super) fn expand(
    matrix: &Rc<Node>,
    defaults: &Rc<[Rc<Node>]>,
    drafts: &mut Vec<Draft>,
    mistakes: &mut Mistakes,
) -> bool {
    let list = |key: &str| matrix.get(key).map(|list| list.items().to_vec()).unwrap_or_default();
    let (excludes, includes) = (list("exclude"), list("include"));
    let axes = AXES.map(|key| list(key).iter().map(|node| Axis::of(key, node)).collect::<Vec<_>>());
    let count = axes.iter().fold(1_usize, |count, axis| count.saturating_mul(axis.len().max(1)));
    let compared = count.saturating_mul(excludes.len() + includes.len());
    let allowed = check_count(drafts, count).and_then(|()| match compared <= MAX_COMPARED {
        true => Ok(()),
        false => {
            let found = format!(
                "{count} combinations and {} entries of `include` and `exclude`",
                excludes.len() + includes.len()
            );
            Err(Wrong::other(found, "fewer", "write the jobs one by one under `jobs`"))
        }
    });
    if let Err(wrong) = allowed {
        mistakes.add(wrong.at(matrix.place()));
        return false;
    }
    let mut combinations = product(&axes);
    // An entry that lost a key would fit more than was meant, and fits less where an axis lost a value.
    let mut ignored = Mistakes::default();
    let noted = if matrix.is_whole() { &mut *mistakes } else { &mut ignored };
    excludes
        .iter()
        .filter(|entry| entry.is_whole())
        .for_each(|entry| exclude(entry, &mut combinations, noted));
    let before = noted.count();
    for entry in includes.iter().filter(|entry| entry.is_whole()) {
        include(entry, &axes[0], &mut combinations, noted);
    }
    let is_complete = noted.count() == before;
    if combinations.len() > MAX_JOBS {
        let counted = check_count(drafts, combinations.len()).map_err(|wrong| wrong.at(matrix.place()));
        mistakes.note(counted);
        return false;
    }
    let is_whole = matrix.is_whole() && are_whole(defaults);
    let drafts_of = |combination: Combination| Some(Draft { is_whole, ..combination.draft(defaults)? });
    let made: Vec<Draft> = combinations.into_iter().filter_map(drafts_of).collect();
    drafts.extend(with_siblings(made));
    is_complete
}

impl Axis {
    fn of(key: &str, node: &Rc<Node>) -> Self {
        let name = match key {
            "model" => model_name(node),
            "recipe" => stem(node.text().unwrap_or_default()),
            _ => node.text().unwrap_or_default().to_owned(),
        };
        Self { node: node.clone(), name: name.into() }
    }
}

fn product(axes: &[Vec<Axis>; 4]) -> Vec<Combination> {
    let empty = Combination { values: [const { None }; 4], original: [false; 4], extra: Vec::new() };
    let mut combinations = vec![empty];
    for (index, axis) in axes.iter().enumerate().filter(|(_, axis)| !axis.is_empty()) {
        let with = |combination: &Combination, value: &Axis| {
            let mut combination = combination.clone();
            combination.values[index] = Some(value.clone());
            combination.original[index] = true;
            combination
        };
        combinations =
            combinations.iter().flat_map(|one| axis.iter().map(move |value| with(one, value))).collect();
    }
    combinations
}

/// The values of an entry, by axis. A model is meant by its name or by its path.
fn wanted(entry: &Rc<Node>) -> [Option<Axis>; 4] {
    AXES.map(|key| entry.get(key).map(|node| Axis::of(key, node)))
}

fn is_same(index: usize, a: &Axis, b: &Axis) -> bool {
    match index {
        0 => a.name == b.name || model_path(&a.node).1 == model_path(&b.node).1,
        // Not by their names: two files may end in the same one.
        _ => a.node.text() == b.node.text(),
    }
}

fn exclude(entry: &Rc<Node>, combinations: &mut Vec<Combination>, mistakes: &mut Mistakes) {
    let wanted = wanted(entry);
    let before = combinations.len();
    combinations.retain(|combination| {
        let fits = |(index, wanted): (usize, &Option<Axis>)| match (wanted, &combination.values[index]) {
            (None, _) => true,
            (Some(wanted), Some(value)) => is_same(index, wanted, value),
            (Some(_), None) => false,
        };
        !wanted.iter().enumerate().all(fits)
    });
    if combinations.len() == before {
        let hint = "compare its values with the lists of the matrix, then `dijiang batch FILE --dry-run`";
        let wrong = Wrong::other("an entry that fits no job", "one that leaves jobs out", hint);
        mistakes.add(wrong.at(entry.place()));
    }
}

/// Adds an entry to the combinations whose own values it does not change, or a combination where there are none.
fn include(entry: &Rc<Node>, models: &[Axis], combinations: &mut Vec<Combination>, mistakes: &mut Mistakes) {
    let wanted = wanted(entry);
    let mut fitted = false;
    for combination in combinations.iter_mut() {
        let fits = |(index, wanted): (usize, &Option<Axis>)| match (wanted, &combination.values[index]) {
            (Some(wanted), Some(value)) if combination.original[index] => is_same(index, wanted, value),
            _ => true,
        };
        if !wanted.iter().enumerate().all(fits) || combination.original == [false; 4] {
            continue;
        }
        fitted = true;
        for (index, value) in wanted.iter().enumerate() {
            if let (Some(value), false) = (value, combination.original[index]) {
                combination.values[index] = Some(value.clone());
            }
        }
        combination.extra.insert(0, entry.clone());
    }
    if fitted {
        return;
    }
    let [Some(model), recipe, target, dtype] = wanted else {
        let hint = "name its `model`, then `dijiang batch FILE --dry-run`";
        let wrong = Wrong::other(
            "an entry that fits no job and has no model",
            "a job of the matrix or a new one",
            hint,
        );
        return mistakes.add(wrong.at(entry.place()));
    };
    let known = models.iter().find(|known| is_same(0, known, &model)).cloned();
    let values = [Some(known.unwrap_or(model)), recipe, target, dtype];
    combinations.push(Combination { values, original: [false; 4], extra: vec![entry.clone()] });
}

impl Combination {
    /// Nothing where it has no model, which the table of keys rules out.
    fn draft(self, defaults: &Rc<[Rc<Node>]>) -> Option<Draft> {
        let [model, recipe, target, dtype] = self.values;
        let Axis { node: model, name } = model?;
        let place = match self.extra.first() {
            Some(entry) if !self.original[0] => entry.place(),
            _ => model.place(),
        };
        let mut draft = Draft {
            name: String::new(),
            place,
            model: Some(model),
            own: self.extra,
            defaults: defaults.clone(),
            recipe: recipe.map(|axis| axis.node),
            target: target.map(|axis| axis.node),
            dtype: dtype.map(|axis| axis.node),
            sibling: None,
            is_whole: true,
        };
        draft.name = draft.named(&name);
        Some(draft)
    }
}

impl Draft {
    /// `llama-adaptive-ort-f32`: the model and the values that it is made by.
    fn named(&self, model: &str) -> String {
        let text = |node: Option<&Rc<Node>>| node.and_then(|node| node.text()).map(str::to_owned);
        let recipe = stem(&text(self.recipe()).unwrap_or_else(|| recipes::DEFAULT.to_owned()));
        let target = text(self.target())
            .unwrap_or_else(|| dijiang_format::target::Target::default().name().to_owned());
        let parts = [Some(model.to_owned()), Some(recipe), Some(target), text(self.dtype())];
        parts.into_iter().flatten().collect::<Vec<_>>().join("-")
    }

    /// What it shares with the job that it is compared with.
    fn family(&self) -> [String; 3] {
        let text = |node: Option<&Rc<Node>>| node.and_then(|node| node.text()).unwrap_or_default().to_owned();
        [self.model.as_ref().map(model_name).unwrap_or_default(), text(self.target()), text(self.dtype())]
    }
}

/// The jobs of one matrix, each with the one that differs by the recipe softmax alone.
fn with_siblings(mut drafts: Vec<Draft>) -> Vec<Draft> {
    let softmax = drafts.iter().filter(|draft| draft.is_softmax());
    let softmax: HashMap<[String; 3], String> =
        softmax.map(|draft| (draft.family(), draft.name.clone())).collect();
    for draft in drafts.iter_mut().filter(|draft| !draft.is_softmax()) {
        draft.sibling = softmax.get(&draft.family()).cloned();
    }
    drafts
}
