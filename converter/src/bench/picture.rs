//! The two panels of Figure 4 of the paper: latency and memory of decoding against context.

use super::{Phase, Row};
use crate::report::chart::{Axis, Chart, ChartError, Line, Scale};

/// Milliseconds per token.
pub fn latency(rows: &[Row]) -> Result<String, ChartError> {
    latency_chart(rows).draw()
}

/// What is taken of memory.
pub fn memory(rows: &[Row]) -> Result<String, ChartError> {
    memory_chart(rows).draw()
}

pub(crate) fn latency_chart(rows: &[Row]) -> Chart {
    chart("Latency of decoding", rows, "ms a token", |row| row.ms_per_token)
}

pub(crate) fn memory_chart(rows: &[Row]) -> Chart {
    let gibibytes = |row: &Row| Some(row.memory_bytes? as f64 / f64::from(1 << 30));
    chart("Memory of decoding", rows, "memory, GiB", gibibytes)
}

/// A line per bundle and batch.
fn chart(title: &str, rows: &[Row], y: &'static str, value: fn(&Row) -> Option<f64>) -> Chart {
    let decode = || rows.iter().filter(|row| row.phase == Phase::Decode);
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for row in decode() {
        if !kinds.contains(&(row.bundle.as_str(), row.batch)) {
            kinds.push((&row.bundle, row.batch));
        }
    }
    let line = |(bundle, batch): &(&str, usize)| Line {
        name: format!("{bundle}, batch {batch}"),
        points: decode()
            .filter(|row| (row.bundle.as_str(), row.batch) == (*bundle, *batch))
            .filter_map(|row| Some((row.context as f64, value(row)?)))
            .collect(),
    };
    Chart {
        title: title.to_owned(),
        x: Axis { name: "context, tokens", scale: Scale::Doubling },
        y: Axis { name: y, scale: Scale::Even },
        lines: kinds.iter().map(line).collect(),
    }
}
