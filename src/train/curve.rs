//! The loss curves of a run as a picture: SVG written by hand, which every browser shows.

use std::fmt::Write;
use std::path::Path;

use super::metrics::Losses;
use crate::error::Result;
use crate::io::write_atomic;

/// Size of the picture, and of the margins: left, top, right, bottom.
const SIZE: [f64; 2] = [720.0, 420.0];
const MARGIN: [f64; 4] = [70.0, 40.0, 20.0, 50.0];

/// Most points of a curve; more are averaged in groups.
const MAX_POINTS: usize = 600;

/// Decay of the moving average that smooths the training loss.
const SMOOTHING: f64 = 0.95;

/// Writes the picture of `losses` to `path`, whole or not at all. [`crate::error::Error::Output`] if it cannot be written.
pub fn write_curve(path: impl AsRef<Path>, losses: &Losses) -> Result<()> {
    write_atomic(path, svg(losses).as_bytes())
}

/// The picture: training loss (pale), its moving average, and the validation loss with its points, over the step; the
/// loss on a logarithmic axis. Losses outside 1e-30 to 1e30 are left out.
pub fn svg(losses: &Losses) -> String {
    let [training, validation] = [&losses.training, &losses.validation].map(|points| usable(points));
    let axes = Axes::around(training.iter().chain(&validation));
    let mut out = String::new();
    let [width, height] = SIZE;
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>Loss by step</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    axes.draw(&mut out);
    axes.line(&mut out, &thinned(&training), "#b9cbe4", 1.0);
    axes.line(&mut out, &thinned(&smoothed(&training)), "#1f5fbf", 2.0);
    axes.line(&mut out, &thinned(&validation), "#d1495b", 2.0);
    for &(step, loss) in &thinned(&validation) {
        let (x, y) = axes.at(step, loss);
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#d1495b\"/>");
    }
    let mut x = MARGIN[0];
    for (name, colour) in [("training", "#b9cbe4"), ("training, smoothed", "#1f5fbf"), ("validation", "#d1495b")] {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"18\" width=\"14\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"24\">{name}</text>",
            x + 20.0
        );
        x += 50.0 + 7.0 * name.len() as f64;
    }
    out += "</svg>\n";
    out
}

/// What a logarithmic axis can show.
fn usable(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let usable = points.iter().filter(|(_, loss)| (1e-30..1e30).contains(loss));
    usable.map(|&(step, loss)| (step as f64, loss)).collect()
}

/// Moving average of the losses, without the pull towards zero of its beginning.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let average = points.iter().map(|&(step, loss)| {
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * loss;
        weight = SMOOTHING * weight + (1.0 - SMOOTHING);
        (step, mean / weight)
    });
    average.collect()
}

/// At most [`MAX_POINTS`] points: means of groups of neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        (group.iter().map(|p| p.0).sum::<f64>() / n, group.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(group).map(mean).collect()
}

/// From steps and losses to places in the picture.
struct Axes {
    steps: [f64; 2],
    /// Decimal logarithms.
    losses: [f64; 2],
}

impl Axes {
    fn around<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> Self {
        let (mut last, mut low, mut high) = (10f64, f64::INFINITY, f64::NEG_INFINITY);
        for &(step, loss) in points {
            last = last.max(step);
            (low, high) = (low.min(loss.log10()), high.max(loss.log10()));
        }
        if low > high {
            (low, high) = (-1.0, 0.0);
        }
        let room = (0.05 * (high - low)).max(0.02);
        Self { steps: [0.0, last], losses: [low - room, high + room] }
    }

    fn at(&self, step: f64, loss: f64) -> (f64, f64) {
        let part = |value: f64, [low, high]: [f64; 2]| (value - low) / (high - low);
        let [left, top, right, bottom] = MARGIN;
        let x = left + part(step, self.steps) * (SIZE[0] - left - right);
        let y = SIZE[1] - bottom - part(loss.log10(), self.losses) * (SIZE[1] - top - bottom);
        (x, y)
    }

    /// Grid, numbers, names of the axes.
    fn draw(&self, out: &mut String) {
        let [left, top, right, bottom] = MARGIN;
        let [width, height] = SIZE;
        for step in ticks(self.steps) {
            let (x, _) = self.at(step, 1.0);
            let (from, to) = (top, height - bottom);
            let _ = writeln!(
                out,
                "<path d=\"M{x:.1} {from}V{to}\" stroke=\"#eee\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
                to + 18.0
            );
        }
        for loss in self.loss_ticks() {
            let (_, y) = self.at(0.0, loss);
            let _ = writeln!(
                out,
                "<path d=\"M{left} {y:.1}H{}\" stroke=\"#eee\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                width - right,
                left - 8.0,
                y + 4.0,
                number(loss)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{left} {top}V{}H{}\" fill=\"none\" stroke=\"#444\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n\
             <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">loss (log scale)</text>",
            height - bottom,
            width - right,
            (left + width - right) / 2.0,
            height - 12.0,
            (top + height - bottom) / 2.0
        );
    }

    /// 1, 2 and 5 times powers of ten; where that gives too few, evenly spaced losses; where too many, powers of ten.
    fn loss_ticks(&self) -> Vec<f64> {
        let [low, high] = self.losses;
        let inside = |loss: &f64| (low..=high).contains(&loss.log10());
        let of = |factors: &[f64], stride: usize| -> Vec<f64> {
            let powers = (low.floor() as i32..=high.ceil() as i32).step_by(stride);
            powers.flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p))).filter(inside).collect()
        };
        let fine = of(&[1.0, 2.0, 5.0], 1);
        match fine.len() {
            0..=2 => ticks([10f64.powf(low), 10f64.powf(high)]),
            3..=12 => fine,
            _ => of(&[1.0], ((high - low) / 8.0).ceil() as usize),
        }
    }

    fn line(&self, out: &mut String, points: &[(f64, f64)], colour: &str, width: f64) {
        if points.len() < 2 {
            return;
        }
        *out += "<polyline points=\"";
        for &(step, loss) in points {
            let (x, y) = self.at(step, loss);
            let _ = write!(out, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(out, "\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
    }
}

/// Four to ten round numbers in a range.
fn ticks([low, high]: [f64; 2]) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|&step| step >= rough).unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| round(i as f64 * step)).collect()
}

/// Without the last digits, which a product leaves: 0.30000000000000004 is 0.3.
fn round(value: f64) -> f64 {
    format!("{value:.12e}").parse().unwrap_or(value)
}

fn number(value: f64) -> String {
    let value = round(value);
    if (1e-3..1e5).contains(&value) { value.to_string() } else { format!("{value:e}") }
}
