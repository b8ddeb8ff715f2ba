//! Line charts as SVG: panels side by side, direct labels, for light and dark backgrounds.

use std::fmt::Write;

/// How positions along an axis are found.
#[derive(Clone)]
pub(super) enum Scale {
    /// From the least to the most; all values are above 0.
    Log,
    /// Named places, one after the other.
    Names(Vec<String>),
}

pub(super) struct Series {
    pub(super) name: String,
    /// Drawn thick.
    pub(super) is_keepq: bool,
    /// Chooses colour and dashes, so that a contender looks the same in all plots.
    pub(super) number: usize,
    pub(super) is_limit: bool,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Panel {
    pub(super) title: String,
    pub(super) x_title: String,
    pub(super) y_title: String,
    pub(super) x: Scale,
    pub(super) series: Vec<Series>,
}

/// Okabe and Ito's colours, without black and yellow: distinct for colour-blind eyes, and visible
/// on white and on black.
const COLOURS: [&str; 6] = ["#0090d8", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#a08050"];
/// A grey that can be read on white and on black alike: a picture in a page does not know which.
const TEXT: &str = "#767676";
const KEEPQ: &str = "#d55e00";
const GREY: &str = "#888888";
const DASHES: [&str; 3] = ["", "6 3", "2 3"];

const PLOT: (f64, f64) = (380.0, 330.0);
const LEFT: f64 = 78.0;
const TOP: f64 = 46.0;
/// Room for the labels.
const RIGHT: f64 = 190.0;
const BOTTOM: f64 = 56.0;
const LABEL: f64 = 13.0;

pub(super) fn svg(title: &str, panels: &[Panel]) -> String {
    let width = (LEFT + PLOT.0 + RIGHT) * panels.len() as f64;
    let height = TOP + PLOT.1 + BOTTOM + 24.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" \
         role=\"img\">\n<title>{}</title>\n\
         <style>text {{ fill: {TEXT} }} .grid {{ stroke: #8884 }}\n\
         .axis {{ stroke: {TEXT} }}</style>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escaped(title),
        escaped(title)
    );
    for (number, panel) in panels.iter().enumerate() {
        let x = (LEFT + PLOT.0 + RIGHT) * number as f64;
        writeln!(text, "<g transform=\"translate({x} 24)\">").unwrap();
        draw(&mut text, panel);
        text.push_str("</g>\n");
    }
    text.push_str("</svg>\n");
    text
}

/// Where values lie, from 0 to 1, and the values that have a tick.
struct Axis {
    low: f64,
    high: f64,
    names: Option<Vec<String>>,
}

impl Axis {
    fn new(scale: &Scale, values: impl Iterator<Item = f64> + Clone, is_tight: bool) -> Self {
        match scale {
            Scale::Names(names) => {
                let high = (names.len().max(2) - 1) as f64;
                Self { low: 0.0, high, names: Some(names.clone()) }
            }
            Scale::Log => {
                let low = values.clone().fold(f64::INFINITY, f64::min).log10();
                let high = values.fold(f64::NEG_INFINITY, f64::max).log10();
                // Whole decades, so that there are ticks.
                let (low, high) = if is_tight { (low, high) } else { (low.floor(), high.ceil()) };
                let high = if high > low { high } else { low + 1.0 };
                Self { low, high, names: None }
            }
        }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.names.is_some() { value } else { value.log10() };
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self, values: &[f64]) -> Vec<(f64, String)> {
        if let Some(names) = &self.names {
            return names.iter().enumerate().map(|(at, name)| (at as f64, name.clone())).collect();
        }
        let decades = self.low.ceil() as i32..=self.high.floor() as i32;
        // Few decades have ticks between them.
        let steps: &[f64] = if self.high - self.low <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let in_decade = |power| steps.iter().map(move |step| step * 10f64.powi(power));
        let mut even: Vec<f64> = decades.flat_map(in_decade).collect();
        even.retain(|value| value.log10() <= self.high);
        let values = if values.is_empty() { &even } else { values };
        values.iter().map(|value| (*value, short(*value))).collect()
    }
}

fn draw(text: &mut String, panel: &Panel) {
    let points = || panel.series.iter().flat_map(|series| series.points.iter());
    let x = Axis::new(&panel.x, points().map(|point| point.0), true);
    let y = Axis::new(&Scale::Log, points().map(|point| point.1), false);
    let at = |point: &(f64, f64)| {
        (LEFT + x.place(point.0) * PLOT.0, TOP + (1.0 - y.place(point.1)) * PLOT.1)
    };
    let mut measured: Vec<f64> = points().map(|point| point.0).collect();
    measured.sort_by(f64::total_cmp);
    measured.dedup();
    let (right, bottom) = (LEFT + PLOT.0, TOP + PLOT.1);
    for (value, name) in y.ticks(&[]) {
        let (_, y) = at(&(measured.first().copied().unwrap_or(1.0), value));
        writeln!(
            text,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 6.0,
            y + 4.0
        )
        .unwrap();
    }
    for (value, name) in x.ticks(&measured) {
        let x = LEFT + x.place(value) * PLOT.0;
        writeln!(
            text,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>",
            bottom + 5.0,
            bottom + 19.0
        )
        .unwrap();
    }
    writeln!(
        text,
        "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n\
         <text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        TOP - 12.0,
        escaped(&panel.title),
        LEFT + PLOT.0 / 2.0,
        bottom + 42.0,
        escaped(&panel.x_title),
        TOP + PLOT.1 / 2.0,
        escaped(&panel.y_title)
    )
    .unwrap();
    lines(text, panel, &at);
}

type Place = (f64, f64);

/// `at` says where a point of the figures lies in the picture.
fn lines(text: &mut String, panel: &Panel, at: &dyn Fn(&Place) -> Place) {
    let mut labels = Vec::new();
    for series in &panel.series {
        let (colour, dash, width) = if series.is_keepq {
            (KEEPQ, "", 3.5)
        } else if series.is_limit {
            (GREY, "8 4", 2.0)
        } else {
            let dash = (series.number / COLOURS.len()).min(DASHES.len() - 1);
            (COLOURS[series.number % COLOURS.len()], DASHES[dash], 1.8)
        };
        let places: Vec<(f64, f64)> = series.points.iter().map(at).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            text,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-dasharray=\"{dash}\" points=\"{}\"/>",
            path.join(" ")
        )
        .unwrap();
        for (x, y) in &places {
            writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{width}\" fill=\"{colour}\"/>")
                .unwrap();
        }
        if let Some((x, y)) = places.last() {
            labels.push((*y, *x, *y, colour, series));
        }
    }
    spread(&mut labels);
    for (place, x, y, colour, series) in labels {
        let (name, start) = (escaped(&series.name), LEFT + PLOT.0 + 14.0);
        let weight = if series.is_keepq { "bold" } else { "normal" };
        writeln!(
            text,
            "<path fill=\"none\" stroke=\"{colour}\" stroke-opacity=\"0.6\" \
             d=\"M{x:.1} {y:.1}L{:.1} {place:.1}\"/><circle cx=\"{start}\" cy=\"{place:.1}\" \
             r=\"3\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" \
             font-weight=\"{weight}\">{name}</text>",
            start - 3.0,
            start + 7.0,
            place + 4.0
        )
        .unwrap();
    }
}

/// Moves labels apart, so that none lies on another, and keeps them beside the plot.
fn spread<T>(labels: &mut [(f64, f64, f64, &str, T)]) {
    labels.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut least = TOP;
    for label in &mut *labels {
        label.0 = label.0.max(least);
        least = label.0 + LABEL;
    }
    let mut most = TOP + PLOT.1;
    for label in labels.iter_mut().rev() {
        label.0 = label.0.min(most);
        most = label.0 - LABEL;
    }
}

fn short(value: f64) -> String {
    if value >= 1024.0 && value % 1024.0 == 0.0 {
        return format!("{} Ki", value / 1024.0);
    }
    let (value, unit) = match value {
        value if value >= 1e9 => (value / 1e9, " G"),
        value if value >= 1e6 => (value / 1e6, " M"),
        value if value >= 1e3 => (value / 1e3, " k"),
        value => (value, ""),
    };
    format!("{value}{unit}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
