//! Speed and memory over context (Figure 4 and Table 1 of the paper), as they were measured before.

use super::figure::{figure, number, table, words};
use super::{PageError, printed};
use crate::bench::{Phase, Row, picture};
use maud::{Markup, html};
use serde::Deserialize;
use std::path::PathBuf;

/// What `dijiang bench --json` prints.
#[derive(Deserialize)]
struct Printed {
    rows: Vec<Row>,
}

pub(super) fn figures(files: &[PathBuf]) -> Result<Result<Markup, String>, PageError> {
    let read = |path: &PathBuf| printed::<Printed>(path, "dijiang bench");
    let read = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Row> = read.into_iter().flat_map(|printed| printed.rows).collect();
    if rows.is_empty() {
        return Ok(Err(
            "Nothing was measured: `dijiang bench BUNDLE… --json > bench.json` does it, and `--bench bench.json` shows it here.".to_owned(),
        ));
    }
    let charts = [
        (
            picture::latency_chart(&rows),
            "Time between two tokens of a text over what was fed before, median of the runs.",
        ),
        (
            picture::memory_chart(&rows),
            "More memory than before the model was loaded, over what was fed before.",
        ),
    ];
    let drawn =
        charts.iter().filter(|(chart, _)| !chart.is_empty()).map(|(chart, caption)| figure(chart, caption));
    let drawn = drawn.collect::<Result<Vec<_>, _>>()?;
    Ok(Ok(html! {
        div.figures { @for figure in &drawn { (figure) } }
        (figures_table(&rows))
    }))
}

fn figures_table(rows: &[Row]) -> Markup {
    let heads =
        words(&["bundle", "phase", "batch", "context", "tokens/s", "ms/token", "memory, MiB", "state, MiB"]);
    let mebibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let row = |row: &Row| {
        vec![
            html! { (row.bundle) },
            html! { (phase(row.phase)) @if let Some(why) = &row.failed { ": " (why) } },
            html! { (row.batch) },
            html! { (row.context) },
            number(row.tokens_per_second, 1),
            number(row.ms_per_token, 3),
            number(mebibytes(row.memory_bytes), 1),
            number(mebibytes(row.state_bytes), 2),
        ]
    };
    table("Every measurement", &heads, &rows.iter().map(row).collect::<Vec<_>>())
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode",
        Phase::Largest => "largest batch",
    }
}
