//! The loss over the steps of a run, and several runs beside each other, as SVG pictures.

use super::metrics;
use crate::report::chart::{Axis, Chart, ChartError, Line, Scale, draw};

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "loss.svg";

/// The picture.
pub fn loss_curve(lines: &[metrics::Line]) -> Result<String, ChartError> {
    let training = lines.iter().map(|l| (l.step as f64, l.loss)).collect();
    let validation = lines.iter().filter_map(|l| Some((l.step as f64, l.valid_perplexity?.ln()))).collect();
    let line = |name: &str, points| Line { name: name.to_owned(), points };
    let chart = Chart {
        title: "Loss of the run".to_owned(),
        x: Axis { name: "steps", scale: Scale::Even },
        y: Axis { name: "nats a token", scale: Scale::Even },
        lines: vec![line("training", training), line("validation", validation)],
    };
    chart.draw()
}

/// The loss and, where it was measured, the validation perplexity of runs over the tokens they have seen, as one picture.
pub fn compare(runs: &[(String, Vec<metrics::Line>)]) -> Result<String, ChartError> {
    draw(&charts(runs))
}

/// The same as pictures.
pub(crate) fn charts(runs: &[(String, Vec<metrics::Line>)]) -> Vec<Chart> {
    let chart = |title: &str, y, value: fn(&metrics::Line) -> Option<f64>| {
        let line = |(name, lines): &(String, Vec<metrics::Line>)| {
            let points = lines.iter().filter_map(|l| Some((l.tokens as f64, value(l)?))).collect();
            Line { name: name.clone(), points }
        };
        let x = Axis { name: "tokens seen", scale: Scale::Even };
        Chart { title: title.to_owned(), x, y, lines: runs.iter().map(line).collect() }
    };
    let nats = Axis { name: "nats a token", scale: Scale::Even };
    let perplexity = Axis { name: "perplexity", scale: Scale::Factors };
    let charts = [
        chart("Training loss", nats, |l| Some(l.loss)),
        chart("Validation perplexity", perplexity, |l| l.valid_perplexity),
    ];
    charts.into_iter().filter(|chart| !chart.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_curves_are_drawn() {
        let line = |step: usize, loss: f64, valid_perplexity: Option<f64>| metrics::Line {
            step,
            tokens: 0,
            loss,
            kl: None,
            grad_norm: 0.0,
            lr: 0.0,
            tokens_per_second: 0.0,
            valid_perplexity,
        };
        let drawn = |lines: &[metrics::Line]| loss_curve(lines).expect("it is drawn");
        let both = drawn(&[line(1, 4.0, None), line(2, 3.0, Some(9.0)), line(3, 3.0, Some(8.0))]);
        assert_eq!(
            both.matches("<polyline fill=\"none\" opacity=\"1\" stroke=\"#").count(),
            4,
            "two lines, and two in the legend: {both}"
        );
        assert!(!drawn(&[line(1, 4.0, None), line(2, 3.0, None)]).contains("validation"));
    }
}
