//! The loss over the steps of a run, and several runs beside each other, as SVG pictures.

use super::metrics;
use crate::report::plot::{Line, Panel, colour, draw, draw_all};

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "loss.svg";

/// The picture.
pub fn loss_curve(lines: &[metrics::Line]) -> String {
    let training = lines.iter().map(|l| (l.step as f64, l.loss)).collect();
    let validation = lines.iter().filter_map(|l| Some((l.step as f64, l.valid_perplexity?.ln()))).collect();
    let line = |name: &str, colour, points| Line { name: name.to_owned(), colour, points };
    draw(&Panel {
        x: "step",
        y: "loss",
        doubling: false,
        log: false,
        lines: vec![line("training", "#9ab", training), line("validation", "#c40", validation)],
    })
}

/// The loss and, where it was measured, the validation perplexity of runs over the tokens they have seen.
pub fn compare(runs: &[(String, Vec<metrics::Line>)]) -> String {
    let panel = |y, log, value: fn(&metrics::Line) -> Option<f64>| {
        let line = |(i, (name, lines)): (usize, &(String, Vec<metrics::Line>))| {
            let points = lines.iter().filter_map(|l| Some((l.tokens as f64, value(l)?))).collect();
            Line { name: name.clone(), colour: colour(i), points }
        };
        Panel { x: "tokens", y, doubling: false, log, lines: runs.iter().enumerate().map(line).collect() }
    };
    let panels = [
        panel("loss", false, |l| Some(l.loss)),
        panel("validation perplexity", true, |l| l.valid_perplexity),
    ];
    let drawn = panels.into_iter().filter(|panel| panel.lines.iter().any(|line| !line.points.is_empty()));
    draw_all(&drawn.collect::<Vec<_>>())
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
        let svg = loss_curve(&[line(1, 4.0, None), line(2, 3.0, Some(std::f64::consts::E.powi(2)))]);
        assert!(svg.contains("points=\"360.0,50.0 670.0,200.0\""), "{svg}");
        assert!(svg.contains("points=\"670.0,350.0\""), "{svg}");
        assert!(!loss_curve(&[line(1, 4.0, None)]).contains("validation"));
    }
}
