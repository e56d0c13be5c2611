//! The two panels of Figure 4 of the paper: latency and memory of decoding against context.

use super::{Phase, Row};
use crate::report::plot::{Line, Panel, colour, draw};

/// Milliseconds per token, and memory.
pub fn latency(rows: &[Row]) -> String {
    draw(&panel(rows, "ms per token", |row| row.ms_per_token))
}

pub fn memory(rows: &[Row]) -> String {
    draw(&panel(rows, "memory, GiB", |row| Some(row.memory_bytes? as f64 / f64::from(1 << 30))))
}

/// A line per bundle and batch.
fn panel<'a>(rows: &[Row], y: &'a str, value: fn(&Row) -> Option<f64>) -> Panel<'a> {
    let decode = || rows.iter().filter(|row| row.phase == Phase::Decode);
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for row in decode() {
        if !kinds.contains(&(row.bundle.as_str(), row.batch)) {
            kinds.push((&row.bundle, row.batch));
        }
    }
    let line = |(i, (bundle, batch)): (usize, &(&str, usize))| Line {
        name: format!("{bundle}, batch {batch}"),
        colour: colour(i),
        points: decode()
            .filter(|row| (row.bundle.as_str(), row.batch) == (*bundle, *batch))
            .filter_map(|row| Some((row.context as f64, value(row)?)))
            .collect(),
    };
    Panel {
        x: "context, tokens",
        y,
        doubling: true,
        log: false,
        lines: kinds.iter().enumerate().map(line).collect(),
    }
}
