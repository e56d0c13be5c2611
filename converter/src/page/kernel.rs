//! How close the feature maps come to the kernel, over the number of features (theorems 3.2 and 3.3 of the paper). It takes
//! a second, and depends on no bundle.

use super::PageError;
use super::figure::{figure, table};
use crate::report::chart::{Axis, Chart, Line, Scale};
use crate::report::progress::Progress;
use dijiang_passes::feature_map::quality::{Cell, Row, table as measured};
use maud::{Markup, html};

const HEAD_DIM: usize = 16;
const LENGTH: f64 = 1.0;
/// Features, as multiples of the dimensions.
const MULTIPLES: [usize; 4] = [1, 2, 4, 8];
const SEEDS: u64 = 4;

pub(super) fn section(progress: &mut dyn Progress) -> Result<Markup, PageError> {
    progress.stage("measuring the kernel");
    shown(&measured(HEAD_DIM, LENGTH, &MULTIPLES, SEEDS))
}

fn shown(rows: &[Row]) -> Result<Markup, PageError> {
    let features = || MULTIPLES.iter().map(|multiple| multiple * HEAD_DIM);
    let line = |row: &Row| Line {
        name: row.label.to_owned(),
        points: features().zip(&row.errors).map(|(m, cell)| (m as f64, cell.error.mean)).collect(),
    };
    let chart = Chart {
        title: "Error of the kernel".to_owned(),
        x: Axis { name: "features m", scale: Scale::Doubling },
        y: Axis { name: "mean relative error", scale: Scale::Even },
        lines: rows.iter().map(line).collect(),
    };
    let caption = format!(
        "The mean of |φ(q)·φ(k) / exp(q·k) − 1| over 1,000 pairs of length {LENGTH} in {HEAD_DIM} dimensions and {SEEDS} seeds, of maps as they start."
    );
    let heads: Vec<String> =
        std::iter::once("map".to_owned()).chain(features().map(|m| format!("m = {m}"))).collect();
    let row = |row: &Row| {
        let cell = |cell: &Cell| {
            html! { (format!("{:.3} ± {:.3} ({:+.3})", cell.error.mean, cell.spread, cell.error.bias)) }
        };
        std::iter::once(html! { (row.label) }).chain(row.errors.iter().map(cell)).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<Markup>> = rows.iter().map(row).collect();
    Ok(html! {
        div.figures { (figure(&chart, &caption)?) }
        (table("The same in numbers: error ± its standard error (bias)", &heads, &rows))
    })
}
