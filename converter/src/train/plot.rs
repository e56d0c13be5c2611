//! The loss over the steps of a run, as an SVG picture.

use super::metrics::Line;
use std::fmt::Write as _;

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "loss.svg";

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 50.0;

/// The picture.
pub fn loss_curve(lines: &[Line]) -> String {
    let training: Vec<(f64, f64)> = lines.iter().map(|l| (l.step as f64, l.loss)).collect();
    let validation: Vec<(f64, f64)> =
        lines.iter().filter_map(|l| l.valid_perplexity.map(|p| (l.step as f64, p.ln()))).collect();
    let all = || training.iter().chain(&validation);
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let (low, high) = if low < high { (low, high) } else { (low - 1.0, low + 1.0) };
    let x = |step: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * step / last;
    let y = |loss: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (loss - low) / (high - low);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tick in 0..=4 {
        let (step, loss) = (last * f64::from(tick) / 4.0, low + (high - low) * f64::from(tick) / 4.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step:.0}</text>",
            x(step),
            HEIGHT - MARGIN + 20.0
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>",
            MARGIN - 8.0,
            y(loss) + 4.0
        );
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>",
            WIDTH - MARGIN,
            y(loss)
        );
    }
    for (points, colour, name, row) in
        [(&training, "#9ab", "training", 0.0), (&validation, "#c40", "validation", 1.0)]
    {
        if points.is_empty() {
            continue;
        }
        let path: Vec<String> = points.iter().map(|(s, l)| format!("{:.1},{:.1}", x(*s), y(*l))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            path.join(" ")
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            WIDTH - MARGIN - 70.0,
            MARGIN + 16.0 * row
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>",
        WIDTH / 2.0,
        HEIGHT - 8.0
    );
    let _ = writeln!(
        svg,
        "<text x=\"14\" y=\"{:.1}\" transform=\"rotate(-90 14 {0:.1})\" text-anchor=\"middle\">loss</text>\n</svg>",
        HEIGHT / 2.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_curves_are_drawn() {
        let line = |step: usize, loss: f64, valid_perplexity: Option<f64>| Line {
            step,
            tokens: 0,
            loss,
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
