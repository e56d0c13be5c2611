//! Parts that several sections have.

use crate::report::chart::{Chart, ChartError};
use maud::{Markup, PreEscaped, html};

/// A picture with what it shows written below.
pub(super) fn figure(chart: &Chart, caption: &str) -> Result<Markup, ChartError> {
    let drawn = chart.draw()?;
    Ok(html! { figure.chart-figure { (PreEscaped(drawn)) figcaption { (caption) } } })
}

/// A table that is moved to the side where the page is too narrow for it.
pub(super) fn table(caption: &str, heads: &[String], rows: &[Vec<Markup>]) -> Markup {
    html! {
        div.wide role="region" tabindex="0" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr { @for head in heads { th scope="col" { (head) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (column, cell) in row.iter().enumerate() {
                                @if column == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A number with as many decimals, or a dash for what was not measured.
pub(super) fn number(value: Option<f64>, decimals: usize) -> Markup {
    match value {
        Some(value) => html! { (format!("{value:.decimals$}")) },
        None => html! { span aria-label="not measured" { "–" } },
    }
}

pub(super) fn words(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
