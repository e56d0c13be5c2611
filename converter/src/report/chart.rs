//! Lines over numbers, as SVG pictures for light and dark pages.

use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _};
use plotters::element::{Circle, Cross, PathElement, Text, TriangleMarker};
use plotters::prelude::SVGBackend;
use plotters::series::{LineSeries, PointSeries};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color as _, IntoFont as _, RGBColor, ShapeStyle, TextStyle};
use std::fmt::Display;
use std::io;
use std::ops::Range;

const WIDTH: u32 = 460;
/// Of the axes and what is between them.
const HEIGHT: u32 = 290;
/// Heights of the title and of a row of the legend, and sizes of letters, as plotters counts them.
const TITLE: u32 = 30;
const ROW: u32 = 20;
const LARGE: u32 = 19;
const SMALL: u32 = 16;
/// About what a letter of the legend is wide, and a line with its mark before it.
const LETTER: u32 = 7;
const SAMPLE: u32 = 34;
/// Steps between labels of an axis, at most.
const STEPS: usize = 6;
/// As many points of a line are marked one by one.
const MARKED: usize = 40;

/// Colours that most eyes tell apart, on white and on black (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(127, 127, 127),
];

/// What stands for the colour of text, which is the page's.
const INK: &str = "#000000";
/// Where a picture stands for itself.
const STYLE: &str = "<style>svg.chart{color:#1f2328;background:#fff}@media(prefers-color-scheme:dark){svg.chart{color:#e6edf3;background:#0d1117}}</style>";

/// One picture.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// An axis, its name with the unit.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) name: &'static str,
    pub(crate) scale: Scale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Even,
    /// Equal steps stand for equal factors.
    Factors,
    /// The same, of powers of two.
    Doubling,
}

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A picture cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the picture {title:?} cannot be drawn: {reason}")]
pub struct ChartError {
    title: String,
    reason: String,
}

type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Chart {
    /// The picture; lines without points are left out, and points that are no numbers.
    pub(crate) fn draw(&self) -> Result<String, ChartError> {
        draw(std::slice::from_ref(self))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.drawn().next().is_none()
    }

    fn drawn(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().filter(|(_, line)| line.points.iter().any(|p| self.place(*p).is_some()))
    }

    /// Where a point lies on the axes.
    fn place(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        let place = (self.x.scale.along(x), self.y.scale.along(y));
        (place.0.is_finite() && place.1.is_finite()).then_some(place)
    }

    fn draw_on(&self, area: &Area<'_>) -> Drawn {
        let (head, body) = area.split_vertically(self.height() - HEIGHT);
        let centred = text(LARGE).pos(Pos::new(HPos::Center, VPos::Top));
        head.draw(&Text::new(self.title.clone(), (WIDTH as i32 / 2, 8), centred))?;
        for (number, (left, row)) in self.legend() {
            self.draw_sample(&head, number, ((left) as i32, (TITLE + row * ROW + ROW / 2) as i32))?;
        }
        self.draw_lines(&body)
    }

    fn height(&self) -> u32 {
        let rows = self.legend().last().map_or(0, |(_, (_, row))| row + 1);
        TITLE + rows * ROW + HEIGHT
    }

    /// Where the name of each line stands above the picture: how far to the right, and in which row.
    fn legend(&self) -> Vec<(usize, (u32, u32))> {
        let (mut left, mut row) = (SAMPLE / 2, 0);
        let entry = |(number, line): (usize, &Line)| {
            let width = SAMPLE + LETTER * line.name.chars().count() as u32 + LETTER * 2;
            if left > SAMPLE && left + width > WIDTH {
                (left, row) = (SAMPLE / 2, row + 1);
            }
            let place = (left, row);
            left += width;
            (number, place)
        };
        self.drawn().map(entry).collect()
    }

    fn draw_sample(&self, head: &Area<'_>, number: usize, (x, y): (i32, i32)) -> Drawn {
        let end = x + SAMPLE as i32 - 8;
        head.draw(&PathElement::new([(x, y), (end, y)], stroke(number)))?;
        let middle = i32::midpoint(x, end);
        match number % 3 {
            0 => head.draw(&Circle::new((middle, y), 4, colour(number).filled()))?,
            1 => head.draw(&TriangleMarker::new((middle, y), 5, colour(number).filled()))?,
            _ => head.draw(&Cross::new((middle, y), 4, stroke(number)))?,
        }
        let left = text(SMALL).pos(Pos::new(HPos::Left, VPos::Center));
        head.draw(&Text::new(self.lines[number].name.clone(), (end + 5, y), left))
    }

    fn draw_lines(&self, body: &Area<'_>) -> Drawn {
        let places = || self.lines.iter().flat_map(|line| &line.points).filter_map(|p| self.place(*p));
        let xs = self.x.scale.ticks(places().map(|p| p.0));
        let ys = self.y.scale.ticks(places().map(|p| p.1));
        let mut builder = ChartBuilder::on(body);
        builder.margin(8).margin_right(26).x_label_area_size(46).y_label_area_size(66);
        let mut chart = builder.build_cartesian_2d(Labelled::at(xs), Labelled::at(ys))?;
        let faint: ShapeStyle = BLACK.mix(0.15).into();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(faint)
            .light_line_style(BLACK.mix(0.0))
            .axis_style(BLACK.mix(0.5))
            .label_style(text(SMALL))
            .axis_desc_style(text(SMALL))
            .x_desc(self.x.name)
            .y_desc(self.y.name)
            .x_label_formatter(&|at| self.x.scale.label(*at))
            .y_label_formatter(&|at| self.y.scale.label(*at))
            .draw()?;
        for (number, line) in self.drawn() {
            let places: Vec<(f64, f64)> = line.points.iter().filter_map(|p| self.place(*p)).collect();
            chart.draw_series(LineSeries::new(places.iter().copied(), stroke(number)))?;
            if places.len() > MARKED {
                continue;
            }
            let full = colour(number).filled();
            match number % 3 {
                0 => drop(chart.draw_series(PointSeries::<_, _, Circle<_, _>, _>::new(places, 4, full))?),
                1 => drop(
                    chart.draw_series(PointSeries::<_, _, TriangleMarker<_, _>, _>::new(places, 5, full))?,
                ),
                _ => drop(chart.draw_series(PointSeries::<_, _, Cross<_, _>, _>::new(
                    places,
                    4,
                    stroke(number),
                ))?),
            }
        }
        Ok(())
    }
}

/// Draws pictures one below the other.
pub(crate) fn draw(charts: &[Chart]) -> Result<String, ChartError> {
    let title = || charts.first().map_or_else(String::new, |chart| chart.title.clone());
    let failed = |reason: &dyn Display| ChartError { title: title(), reason: reason.to_string() };
    let mut svg = String::new();
    {
        let ends = charts.iter().scan(0, |end, chart| {
            *end += chart.height();
            Some(*end)
        });
        let ends: Vec<u32> = ends.collect();
        let size = (WIDTH, ends.last().copied().unwrap_or(HEIGHT));
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let between: Vec<i32> = ends.iter().rev().skip(1).rev().map(|end| *end as i32).collect();
        for (chart, area) in charts.iter().zip(root.split_by_breakpoints([0i32; 0], &between)) {
            chart.draw_on(&area).map_err(|e| failed(&e))?;
        }
        root.present().map_err(|e| failed(&e))?;
    }
    let named: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
    let label = quick_xml::escape::escape(named.join("; "));
    let opened =
        svg.replacen("<svg ", &format!("<svg class=\"chart\" role=\"img\" aria-label=\"{label}\" "), 1);
    let styled = opened.replacen(">\n", &format!(">\n{STYLE}\n"), 1);
    Ok(styled.replace(INK, "currentColor"))
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

fn stroke(number: usize) -> ShapeStyle {
    colour(number).stroke_width(2)
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// An axis from the first label to the last, with labels at these places and no others.
struct Labelled {
    range: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Labelled {
    fn at(ticks: Vec<f64>) -> Self {
        let (first, last) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        Self { range: (first..last).into(), ticks }
    }
}

impl Ranged for Labelled {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Points of less weight have no labels.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.range()
    }
}

impl Scale {
    /// How far along its axis a number lies.
    fn along(self, number: f64) -> f64 {
        match self {
            Self::Even => number,
            Self::Factors => number.log10(),
            Self::Doubling => number.log2(),
        }
    }

    fn label(self, at: f64) -> String {
        match self {
            Self::Even => short(at),
            Self::Factors => short(10f64.powf(at)),
            Self::Doubling => format!("{}", at.exp2().round()),
        }
    }

    /// Places of labels, at round numbers, from below the least place to above the largest.
    fn ticks(self, places: impl Iterator<Item = f64>) -> Vec<f64> {
        let (low, high) = places.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        match self {
            Self::Even => even(low.min(0.0), if high > low.min(0.0) { high } else { low.min(0.0) + 1.0 }),
            Self::Factors => factors(low, high),
            Self::Doubling => {
                let (first, last) = (low.floor() as i64, (high.ceil() as i64).max(low.floor() as i64 + 1));
                let step = (last - first).div_euclid(STEPS as i64 + 2) + 1;
                let steps = (last - first + step - 1).div_euclid(step);
                (0..=steps).map(|i| (first + i * step) as f64).collect()
            }
        }
    }
}

/// Steps of 1, 2 or 5.
fn even(low: f64, high: f64) -> Vec<f64> {
    let range: RangedCoordf64 = (low..high).into();
    let inner = range.key_points(BoldPoints(STEPS));
    let step = inner.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or(high - low);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// 1, 2 and 5 times powers of ten, or the powers alone where there are many.
fn factors(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.floor() as i32, high.ceil().max(low.floor() + 1.0) as i32);
    let digits: &[f64] = if last - first > 2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all =
        (first..=last).flat_map(|power| digits.iter().map(move |digit| f64::from(power) + digit.log10()));
    let all: Vec<f64> = all.filter(|at| *at <= f64::from(last) + 1e-9).collect();
    let begin = all.iter().rposition(|at| *at <= low + 1e-9).unwrap_or(0);
    let end = all.iter().position(|at| *at >= high - 1e-9).unwrap_or(all.len() - 1);
    all[begin..=end.max(begin + 1).min(all.len() - 1)].to_vec()
}

/// A number without what rounding left behind it; thousands and millions by their letter.
fn short(number: f64) -> String {
    let (divided, letter) = match number.abs() {
        n if n >= 1e9 => (number / 1e9, "G"),
        n if n >= 1e6 => (number / 1e6, "M"),
        n if n >= 1e4 => (number / 1e3, "k"),
        _ => (number, ""),
    };
    format!("{}{letter}", (divided * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(y: Scale, points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "What is <drawn>".to_owned(),
            x: Axis { name: "context, tokens", scale: Scale::Doubling },
            y: Axis { name: "ms", scale: y },
            lines: vec![Line { name: "a<b".to_owned(), points }],
        }
    }

    #[test]
    fn labels_are_round_and_reach_around_what_is_drawn() {
        let labels = |scale: Scale, low: f64, high: f64| -> Vec<String> {
            let places = [low, high].map(|number| scale.along(number));
            scale.ticks(places.into_iter()).into_iter().map(|at| scale.label(at)).collect()
        };
        assert_eq!(labels(Scale::Even, 3.0, 9.7), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(Scale::Even, 2.0, 2.0), ["0", "0.5", "1", "1.5", "2"]);
        assert_eq!(labels(Scale::Even, 1e5, 1.6e7), ["0", "5M", "10M", "15M", "20M"]);
        assert_eq!(labels(Scale::Factors, 7.0, 26.0), ["5", "10", "20", "50"]);
        assert_eq!(labels(Scale::Factors, 7.0, 7.0), ["5", "10"]);
        assert_eq!(labels(Scale::Factors, 3.0, 20_000.0), ["1", "10", "100", "1000", "10k", "100k"]);
        assert_eq!(labels(Scale::Doubling, 512.0, 2048.0), ["512", "1024", "2048"]);
        assert_eq!(labels(Scale::Doubling, 512.0, 512.0), ["512", "1024"]);
    }

    #[test]
    fn a_picture_has_its_title_names_and_lines() {
        let drawn =
            chart(Scale::Even, vec![(512.0, 1.0), (1024.0, 3.0), (2048.0, 2.0)]).draw().expect("drawn");
        let shown = |text: &str| drawn.contains(text);
        assert!(shown("What is &lt;drawn&gt;") && shown("a&lt;b") && shown("context, tokens"), "{drawn}");
        assert!(shown("<polyline") && shown("currentColor") && !shown("#000000"), "{drawn}");
        assert!(shown("prefers-color-scheme"), "{drawn}");
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let empty = chart(Scale::Factors, vec![(512.0, 0.0), (1024.0, f64::NAN)]);
        assert!(empty.is_empty() && !empty.draw().expect("drawn").contains("stroke=\"#"));
    }
}
