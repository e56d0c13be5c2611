//! The curves of training runs (Figure 2 of the paper).

use super::figure::{figure, number, table, words};
use super::{PageError, Shown};
use crate::train::{finetune, metrics, plot};
use maud::{Markup, html};

pub(super) fn curves(shown: &[Shown]) -> Result<Result<Markup, String>, PageError> {
    let mut runs = Vec::new();
    for bundle in shown {
        let path = bundle.path.join(finetune::DIR).join(metrics::FILE);
        if path.exists() {
            runs.push((bundle.name.clone(), metrics::read(&path)?));
        }
    }
    if runs.is_empty() {
        return Ok(Err(
            "No bundle here was trained: `dijiang finetune BUNDLE --data TEXT` does it, and keeps its curve."
                .to_owned(),
        ));
    }
    let caption = |title: &str| format!("{title} over the tokens that each run has seen.");
    let charts = plot::charts(&runs);
    let figures = charts.iter().map(|chart| figure(chart, &caption(&chart.title)));
    let figures = figures.collect::<Result<Vec<_>, _>>()?;
    Ok(Ok(html! {
        div.figures { @for figure in &figures { (figure) } }
        (ends(&runs))
    }))
}

/// Where each run began and ended.
fn ends(runs: &[(String, Vec<metrics::Line>)]) -> Markup {
    let row = |(name, lines): &(String, Vec<metrics::Line>)| {
        let (first, last) = (lines.first(), lines.last());
        let perplexity = lines.iter().rev().find_map(|line| line.valid_perplexity);
        vec![
            html! { (name) },
            html! { (last.map_or(0, |line| line.step)) },
            html! { (last.map_or(0, |line| line.tokens)) },
            number(first.map(|line| line.loss), 4),
            number(last.map(|line| line.loss), 4),
            number(perplexity, 3),
        ]
    };
    let heads =
        words(&["bundle", "steps", "tokens", "first loss", "last loss", "last validation perplexity"]);
    table("Runs", &heads, &runs.iter().map(row).collect::<Vec<_>>())
}
