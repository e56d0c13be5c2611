//! What bundles know (Tables 1 to 3 of the paper), as it was measured before: tasks as columns, bundles as rows.

use super::figure::number;
use super::{PageError, printed};
use maud::{Markup, html};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What `dijiang eval --json` prints.
#[derive(Deserialize)]
struct Printed {
    results: Vec<Figure>,
}

/// One figure of one bundle.
#[derive(Debug, Clone, Deserialize)]
struct Figure {
    bundle: String,
    task: String,
    metric: String,
    context: Option<u64>,
    value: f64,
    standard_error: Option<f64>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    task: String,
    metric: String,
    context: Option<u64>,
}

impl Figure {
    fn key(&self) -> Key {
        Key { task: self.task.clone(), metric: self.metric.clone(), context: self.context }
    }
}

impl Key {
    /// The name of a file without its directories.
    fn name(&self) -> String {
        let task = Path::new(&self.task)
            .file_name()
            .map_or_else(|| self.task.clone(), |n| n.to_string_lossy().into());
        let context = self.context.map_or_else(String::new, |context| format!(", {context} tokens"));
        format!("{task}, {}{context} {}", self.metric, if self.falls() { "↓" } else { "↑" })
    }

    /// Whether less is better.
    fn falls(&self) -> bool {
        matches!(self.metric.as_str(), "perplexity" | "negative_log_likelihood")
    }
}

pub(super) fn table(files: &[PathBuf]) -> Result<Result<Markup, String>, PageError> {
    let read = |path: &PathBuf| printed::<Printed>(path, "dijiang eval");
    let read = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let figures: Vec<Figure> = read.into_iter().flat_map(|printed| printed.results).collect();
    if figures.is_empty() {
        return Ok(Err(
            "Nothing was measured: `dijiang eval BUNDLE… --task piqa=FILE --json > eval.json` does it, and `--eval eval.json` shows it here.".to_owned(),
        ));
    }
    Ok(Ok(html! {
        p { "± is the standard error. ↑ is better where it is higher, ↓ where it is lower; the best of a column is bold." }
        (of_figures(&figures))
    }))
}

fn of_figures(figures: &[Figure]) -> Markup {
    let (mut keys, mut bundles): (Vec<Key>, Vec<&str>) = (Vec::new(), Vec::new());
    for figure in figures {
        let key = figure.key();
        if !keys.contains(&key) {
            keys.push(key);
        }
        if !bundles.contains(&figure.bundle.as_str()) {
            bundles.push(&figure.bundle);
        }
    }
    let heads: Vec<String> = std::iter::once("bundle".to_owned()).chain(keys.iter().map(Key::name)).collect();
    let row = |bundle: &&str| {
        let cells = keys.iter().map(|key| cell(figures, bundle, key));
        std::iter::once(html! { (bundle) }).chain(cells).collect::<Vec<_>>()
    };
    super::figure::table("Quality", &heads, &bundles.iter().map(row).collect::<Vec<_>>())
}

/// The last figure of a bundle, where a file was given later that has it anew.
fn found<'a>(figures: &'a [Figure], bundle: &str, key: &Key) -> Option<&'a Figure> {
    figures.iter().rev().find(|figure| figure.bundle == bundle && figure.key() == *key)
}

fn cell(figures: &[Figure], bundle: &str, key: &Key) -> Markup {
    let Some(figure) = found(figures, bundle, key) else { return number(None, 0) };
    let error = figure.standard_error.map_or_else(String::new, |error| format!(" ± {error:.4}"));
    let text = format!("{:.4}{error}", figure.value);
    match is_best(figures, figure) {
        true => html! { strong { (text) span.unseen { " (best)" } } },
        false => html! { (text) },
    }
}

/// Whether no other bundle is better, and one is worse.
fn is_best(figures: &[Figure], figure: &Figure) -> bool {
    let key = figure.key();
    let others: Vec<&Figure> = figures.iter().filter(|other| other.key() == key).collect();
    let better = |a: &Figure, b: &Figure| if key.falls() { a.value < b.value } else { a.value > b.value };
    !others.iter().any(|other| better(other, figure)) && others.iter().any(|other| better(figure, other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(bundle: &str, metric: &str, value: f64) -> Figure {
        Figure {
            bundle: bundle.to_owned(),
            task: "data/piqa.jsonl".to_owned(),
            metric: metric.to_owned(),
            context: None,
            value,
            standard_error: Some(0.01),
        }
    }

    #[test]
    fn the_best_of_a_column_is_marked() {
        let figures = [
            figure("a", "acc", 0.5),
            figure("b", "acc", 0.75),
            figure("a", "perplexity", 9.0),
            figure("b", "perplexity", 12.0),
            figure("a", "acc_norm", 0.5),
        ];
        let best: Vec<bool> = figures.iter().map(|figure| is_best(&figures, figure)).collect();
        assert_eq!(best, [false, true, true, false, false], "one alone is not the best");
        let shown = of_figures(&figures).into_string();
        assert!(shown.contains("<strong>0.7500 ± 0.0100") && shown.contains("piqa.jsonl, acc ↑"), "{shown}");
        assert!(shown.contains("not measured"), "{shown}");
    }
}
