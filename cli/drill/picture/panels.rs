//! The two panels: throughput above, latency below.

use std::fmt::Write;

use super::axes::{Scale, decades, ticks};
use super::windows::{Window, Windows};
use super::{Frame, LEFT, RIGHT};

/// The axis of throughput goes so far above the most, for the names of the lines.
const HEAD_ROOM: f64 = 1.2;

/// Operations a second.
pub(super) fn throughput(
    svg: &mut String,
    frame: &Frame,
    windows: &Windows,
    (top, bottom): (f64, f64),
) {
    let most = windows.all.iter().map(|one| one.all).fold(1.0, f64::max) * HEAD_ROOM;
    let scale = Scale::linear(0.0, most, bottom, top);
    grid(svg, &scale, ticks(0.0, most, 4), (top, bottom));
    axis_title(svg, "operations / s", (top, bottom));
    let line = |of: fn(&Window) -> f64| {
        let points = windows.all.iter();
        points.map(move |one| Some((frame.x(one.at), scale.place(of(one)))))
    };
    path(svg, "a", line(|one| one.all));
    path(svg, "b", line(|one| one.hurt));
    let ms = windows.width.as_millis();
    let all = format!("all keys, per {ms} ms");
    keys(svg, top, &[("a", &all), ("b", "keys of what was hurt")]);
}

/// Milliseconds, by powers of ten.
pub(super) fn latency(
    svg: &mut String,
    frame: &Frame,
    windows: &Windows,
    (top, bottom): (f64, f64),
) {
    let known = || windows.all.iter().filter_map(|one| one.latency);
    let least = known().map(|[p50, ..]| p50).fold(1.0, f64::min);
    let most = known().map(|[.., max]| max).fold(1.0, f64::max);
    let ticks = decades(least, most);
    let ends = (
        ticks.first().map_or(0.1, |one| one.0),
        ticks.last().map_or(1.0, |one| one.0),
    );
    let scale = Scale::log(ends.0, ends.1, bottom, top);
    grid(svg, &scale, ticks, (top, bottom));
    axis_title(svg, "latency, ms", (top, bottom));
    for (class, place) in [("a", 0), ("c", 1), ("b", 2)] {
        let points = windows.all.iter();
        let points = points.map(|one| {
            let latency = one.latency?;
            Some((frame.x(one.at), scale.place(*latency.get(place)?)))
        });
        path(svg, class, points);
    }
    keys(svg, top, &[("a", "p50"), ("c", "p99"), ("b", "max")]);
}

fn grid(svg: &mut String, scale: &Scale, ticks: Vec<(f64, String)>, (top, bottom): (f64, f64)) {
    for (value, text) in ticks {
        let y = scale.place(value);
        let (at, base) = (LEFT - 7.0, y + 4.0);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text class=\"end\" x=\"{at}\" y=\"{base:.1}\">{text}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<path class=\"axis\" d=\"M{LEFT} {top}V{bottom}H{RIGHT}\" fill=\"none\"/>"
    );
}

fn axis_title(svg: &mut String, text: &str, (top, bottom): (f64, f64)) {
    let y = (top + bottom) / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"middle soft\" transform=\"translate(15 {y}) rotate(-90)\">{text}</text>"
    );
}

/// A line with a gap, or a dot where there is no neighbour, for each point that is not known.
fn path(svg: &mut String, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
    let mut data = String::new();
    let mut pen = 'M';
    for point in points {
        let Some((x, y)) = point else {
            pen = 'M';
            continue;
        };
        let _ = write!(data, "{pen}{x:.1} {y:.1}");
        if pen == 'M' {
            data.push_str("h.1");
        }
        pen = 'L';
    }
    let _ = writeln!(svg, "<path class=\"line {class}\" d=\"{data}\"/>");
}

/// The names of the lines, above their panel on the right.
fn keys(svg: &mut String, top: f64, names: &[(&str, &str)]) {
    const EACH: f64 = 6.6;
    let mut x = RIGHT;
    for (class, name) in names.iter().rev() {
        x -= 34.0 + EACH * name.chars().count() as f64;
        let (y, to, text, base) = (top + 12.0, x + 20.0, x + 25.0, top + 16.0);
        let _ = writeln!(
            svg,
            "<path class=\"line {class}\" d=\"M{x:.1} {y}H{to:.1}\"/>\
             <text x=\"{text:.1}\" y=\"{base}\">{name}</text>"
        );
    }
}
