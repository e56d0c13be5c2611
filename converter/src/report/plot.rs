//! Lines over numbers, as SVG pictures.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 50.0;

/// One picture.
#[derive(Debug, Clone)]
pub(crate) struct Panel<'a> {
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Whether equal steps of x stand for equal factors; x begins at zero where they do not.
    pub(crate) doubling: bool,
    /// Whether equal steps of y stand for equal factors.
    pub(crate) log: bool,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) colour: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The colour of a picture's line of this number.
pub(crate) fn colour(number: usize) -> &'static str {
    const COLOURS: [&str; 6] = ["#c40", "#06c", "#390", "#909", "#960", "#555"];
    COLOURS[number % COLOURS.len()]
}

/// Draws a panel; lines without points are left out.
pub(crate) fn draw(panel: &Panel<'_>) -> String {
    draw_all(std::slice::from_ref(panel))
}

/// Draws panels one below the other.
pub(crate) fn draw_all(panels: &[Panel<'_>]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">\n{}</g>", HEIGHT * i as f64, body(panel));
    }
    svg + "</svg>\n"
}

fn body(panel: &Panel<'_>) -> String {
    let warp = |x: f64| if panel.doubling { x.log2() } else { x };
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let height = |y: f64| if panel.log { y.ln() } else { y };
    let range = |pick: &dyn Fn(&(f64, f64)) -> f64| {
        points().map(pick).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (first, last) = range(&|p| p.0);
    let (first, last) = if panel.doubling { (warp(first), warp(last)) } else { (0.0, last.max(1.0)) };
    let last = if first < last { last } else { first + 1.0 };
    let (low, high) = range(&|p| height(p.1));
    let (low, high) = if low < high { (low, high) } else { (low - 1.0, low + 1.0) };
    let x = |v: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * (warp(v) - first) / (last - first);
    let y = |v: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (v - low) / (high - low);
    let mut svg = String::new();
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let along = first + (last - first) * share;
        let (at, up) = (if panel.doubling { along.exp2() } else { along }, low + (high - low) * share);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0}</text>",
            x(at),
            HEIGHT - MARGIN + 20.0
        );
        let label = if panel.log { up.exp() } else { up };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label:.2}</text>",
            MARGIN - 8.0,
            y(up) + 4.0
        );
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>",
            WIDTH - MARGIN,
            y(up)
        );
    }
    for (row, line) in panel.lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
        let path: Vec<String> =
            line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(height(*b)))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>",
            line.colour,
            path.join(" ")
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{}\">{}</text>",
            WIDTH - MARGIN,
            MARGIN - 30.0 + 16.0 * row as f64,
            line.colour,
            escaped(&line.name)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        WIDTH / 2.0,
        HEIGHT - 8.0,
        panel.x
    );
    let _ = writeln!(
        svg,
        "<text x=\"14\" y=\"{:.1}\" transform=\"rotate(-90 14 {0:.1})\" text-anchor=\"middle\">{1}</text>",
        HEIGHT / 2.0,
        panel.y
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_spreads_powers_of_two_evenly() {
        let points = vec![(512.0, 1.0), (1024.0, 3.0), (2048.0, 2.0)];
        let line = Line { name: "a<b".to_owned(), colour: "#000", points };
        let svg = draw(&Panel { x: "context", y: "ms", doubling: true, log: false, lines: vec![line] });
        assert!(svg.contains("points=\"50.0,350.0 360.0,50.0 670.0,200.0\""), "{svg}");
        assert!(svg.contains("a&lt;b"), "{svg}");
    }

    #[test]
    fn factors_are_spread_evenly() {
        let line =
            Line { name: String::new(), colour: "#000", points: vec![(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)] };
        let svg = draw(&Panel { x: "step", y: "perplexity", doubling: false, log: true, lines: vec![line] });
        assert!(svg.contains("points=\"50.0,350.0 360.0,200.0 670.0,50.0\""), "{svg}");
        assert!(svg.contains(">10.00</text>"), "{svg}");
    }

    #[test]
    fn what_does_not_change_lies_in_the_middle() {
        let line = Line { name: String::new(), colour: "#000", points: vec![(0.0, 2.0), (2.0, 2.0)] };
        let svg = draw(&Panel { x: "step", y: "loss", doubling: false, log: false, lines: vec![line] });
        assert!(svg.contains("points=\"50.0,200.0 670.0,200.0\""), "{svg}");
        assert!(svg.contains(">1.00</text>") && svg.contains(">3.00</text>"), "{svg}");
    }
}
