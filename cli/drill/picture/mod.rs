//! A drill as a picture: throughput and latency over time, what happened when, and what each part
//! of an outage took. Plain SVG that reads on light and dark.
//!
//! # Invariants
//! 1. All times of a picture are on one clock, and its zero is the first thing that was marked.
//! 2. No two labels cover each other.

mod axes;
mod panels;
mod windows;

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::samples::Sample;
use crate::failure::Failure;
use axes::{Scale, ticks};
use windows::windows;

/// Shown before the first mark.
const BEFORE: Duration = Duration::from_secs(1);
/// Shown after the last mark.
pub(super) const AFTER: Duration = Duration::from_secs(2);

/// Pixels.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 880.0;
const LABELS: f64 = 176.0;
const PANEL: f64 = 170.0;
const GAP: f64 = 34.0;
/// Between the feet of two labels.
const LABEL_APART: f64 = 15.0;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) at: Instant,
    pub(super) name: String,
}

/// What took a while.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) from: Instant,
    pub(super) to: Instant,
}

/// What a picture shows.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) title: &'a str,
    pub(super) marks: &'a [Mark],
    pub(super) parts: &'a [Part],
    /// Those between [`span`]'s two moments.
    pub(super) samples: &'a [Sample],
    /// Whether a group's keys are those that are hurt.
    pub(super) hurt: &'a [bool],
}

/// From when to when a picture with these marks reaches. `None`: nothing is marked.
pub(super) fn span(marks: &[Mark]) -> Option<(Instant, Instant)> {
    let first = marks.iter().map(|mark| mark.at).min()?;
    let last = marks.iter().map(|mark| mark.at).max()?;
    Some((first.checked_sub(BEFORE).unwrap_or(first), last + AFTER))
}

/// Writes the picture.
pub(super) fn save(scene: &Scene<'_>, path: &Path) -> Result<(), Failure> {
    let svg = draw(scene).ok_or_else(|| Failure::new("nothing was marked to be drawn"))?;
    std::fs::write(path, svg)
        .map_err(|error| Failure::new(format_args!("--svg {}: {error}", path.display())))
}

/// Where the time axis is, in seconds from the first mark.
struct Frame {
    time: Scale,
    zero: Instant,
}

impl Frame {
    fn seconds(&self, at: Instant) -> f64 {
        match at.checked_duration_since(self.zero) {
            Some(after) => after.as_secs_f64(),
            None => -self.zero.duration_since(at).as_secs_f64(),
        }
    }

    fn x(&self, at: Instant) -> f64 {
        self.time.place(self.seconds(at))
    }
}

fn draw(scene: &Scene<'_>) -> Option<String> {
    let (from, to) = span(scene.marks)?;
    let zero = scene.marks.iter().map(|mark| mark.at).min()?;
    let mut frame = Frame {
        time: Scale::linear(0.0, 1.0, LEFT, RIGHT),
        zero,
    };
    let (first, last) = (frame.seconds(from), frame.seconds(to));
    frame.time = Scale::linear(first, last, LEFT, RIGHT);
    let windows = windows(scene, from, to);
    let top = LABELS;
    let second = top + PANEL + GAP;
    let bottom = second + PANEL;
    let height = bottom + 48.0 + legend_height(scene);
    let mut svg = head(scene.title, height);
    parts(&mut svg, scene, &frame, (top, bottom));
    panels::throughput(&mut svg, &frame, &windows, (top, top + PANEL));
    panels::latency(&mut svg, &frame, &windows, (second, bottom));
    time_axis(&mut svg, &frame, (first, last), bottom);
    marks(&mut svg, scene, &frame, (top, bottom));
    legend(&mut svg, scene, bottom + 52.0);
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Colours of parts, in order, by class.
const PART_COLOURS: usize = 7;

// No CSS variables: not every program that draws SVG knows them.
const STYLE: &str = "
  svg { font: 12px system-ui, 'DejaVu Sans', sans-serif }
  .page { fill: #ffffff } text { fill: #1b1f24 } .soft { fill: #59636e }
  .title { font-size: 15px; font-weight: 600 } .grid { stroke: #d9dee3; stroke-width: 1 }
  .axis { stroke: #59636e; stroke-width: 1 } .mark { stroke: #1b1f24; stroke-width: 1; opacity: .65; fill: none }
  .line { fill: none; stroke-width: 1.6; stroke-linejoin: round } .a { stroke: #0b62c4 } .b { stroke: #c4420b }
  .c { stroke: #6e40aa; stroke-dasharray: 4 3 } .end { text-anchor: end } .middle { text-anchor: middle }
  .part { opacity: .22 } .p0 { fill: #d1242f } .p1 { fill: #e0883c } .p2 { fill: #c9a800 } .p3 { fill: #3fa845 }
  .p4 { fill: #1f9e9e } .p5 { fill: #3d6fe0 } .p6 { fill: #9a55d4 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0f1318 } text { fill: #e6e9ed } .soft { fill: #a2abb5 } .grid { stroke: #313944 }
    .axis { stroke: #a2abb5 } .mark { stroke: #e6e9ed } .a { stroke: #6cb2ff } .b { stroke: #ff9a62 }
    .c { stroke: #c7a6ff } }
";

fn head(title: &str, height: f64) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"26\">{title}</text>\n"
    )
}

// Writing to a string cannot fail, here and below.
fn parts(svg: &mut String, scene: &Scene<'_>, frame: &Frame, (top, bottom): (f64, f64)) {
    for (at, part) in scene.parts.iter().enumerate() {
        let (from, to) = (frame.x(part.from), frame.x(part.to));
        let (width, height) = ((to - from).max(0.0), bottom - top);
        let colour = at % PART_COLOURS;
        let _ = writeln!(
            svg,
            "<rect class=\"part p{colour}\" x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" \
             height=\"{height}\"/>"
        );
    }
}

fn time_axis(svg: &mut String, frame: &Frame, (first, last): (f64, f64), bottom: f64) {
    for (value, text) in ticks(first, last, 10) {
        let x = frame.time.place(value);
        let (low, y) = (bottom + 5.0, bottom + 18.0);
        let _ = writeln!(
            svg,
            "<path class=\"axis\" d=\"M{x:.1} {bottom}V{low}\"/>\
             <text class=\"middle\" x=\"{x:.1}\" y=\"{y}\">{text}</text>"
        );
    }
    let (x, y) = ((LEFT + RIGHT) / 2.0, bottom + 36.0);
    let _ = writeln!(
        svg,
        "<text class=\"middle soft\" x=\"{x}\" y=\"{y}\">seconds</text>"
    );
}

/// Lines down through all panels, with slanted labels that are moved apart.
fn marks(svg: &mut String, scene: &Scene<'_>, frame: &Frame, (top, bottom): (f64, f64)) {
    let mut marks: Vec<&Mark> = scene.marks.iter().collect();
    marks.sort_by_key(|mark| mark.at);
    let wanted: Vec<f64> = marks.iter().map(|mark| frame.x(mark.at)).collect();
    let feet = apart(&wanted, LABEL_APART, RIGHT - 40.0);
    for ((mark, x), foot) in marks.iter().zip(wanted).zip(feet) {
        let (bend, knee, text) = (top - 6.0, top - 20.0, top - 24.0);
        let seconds = frame.seconds(mark.at);
        let name = escaped(&mark.name);
        let _ = writeln!(
            svg,
            "<path class=\"mark\" d=\"M{x:.1} {bottom}V{bend}L{foot:.1} {knee}\"/>\
             <text transform=\"translate({foot:.1} {text}) rotate(-50)\" font-size=\"11\">{name}, \
             {seconds:.3}</text>"
        );
    }
}

/// `wanted`, sorted, moved so that neighbours are `least` apart and none is beyond `most`.
fn apart(wanted: &[f64], least: f64, most: f64) -> Vec<f64> {
    let mut placed: Vec<f64> = Vec::with_capacity(wanted.len());
    for x in wanted {
        let after = placed.last().map_or(*x, |last| last + least);
        placed.push(x.max(after));
    }
    let mut limit = most;
    for x in placed.iter_mut().rev() {
        *x = x.min(limit);
        limit = *x - least;
    }
    placed
}

const LEGEND_COLUMNS: usize = 4;

fn legend_height(scene: &Scene<'_>) -> f64 {
    let rows = scene.parts.len().div_ceil(LEGEND_COLUMNS);
    18.0 * rows as f64 + 16.0
}

fn legend(svg: &mut String, scene: &Scene<'_>, top: f64) {
    let column = (RIGHT - LEFT) / LEGEND_COLUMNS as f64;
    for (at, part) in scene.parts.iter().enumerate() {
        let x = LEFT + column * (at % LEGEND_COLUMNS) as f64;
        let y = top + 18.0 * (at / LEGEND_COLUMNS) as f64;
        let (text, base) = (x + 18.0, y + 10.0);
        let colour = at % PART_COLOURS;
        let ms = part.to.duration_since(part.from).as_secs_f64() * 1e3;
        let name = escaped(&part.name);
        let _ = writeln!(
            svg,
            "<rect class=\"p{colour}\" style=\"opacity:.6\" x=\"{x:.1}\" y=\"{y}\" width=\"12\" \
             height=\"12\"/><text x=\"{text:.1}\" y=\"{base}\">{name}: {ms:.1} ms</text>"
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_within_the_picture() {
        let feet = apart(&[10.0, 11.0, 12.0, 500.0, 838.0, 839.0], 15.0, 840.0);
        let near = |pair: &[f64]| pair[1] - pair[0] < 15.0 - 1e-9;
        assert!(!feet.windows(2).any(near), "{feet:?}");
        assert!(feet[5] <= 840.0 && feet[0] == 10.0 && feet[3] == 500.0);
    }

    #[test]
    fn a_picture_has_its_marks_parts_and_lines_and_is_well_formed() {
        let start = Instant::now() + Duration::from_secs(10);
        let at = |ms: u64| start + Duration::from_millis(ms);
        let sample = |ms: u64| Sample {
            at: at(ms),
            took: Duration::from_micros(200 + ms),
            group: (ms % 2) as u16,
        };
        let samples: Vec<Sample> = (0..900).map(sample).collect();
        let marks = [(0, "server 1 killed"), (200, "a < b & \"c\"")].map(|(ms, name)| Mark {
            at: at(ms),
            name: name.into(),
        });
        let parts = [Part {
            name: "detect".into(),
            from: at(0),
            to: at(200),
        }];
        let svg = draw(&Scene {
            title: "a drill",
            marks: &marks,
            parts: &parts,
            samples: &samples,
            hurt: &[true, false],
        });
        let svg = svg.unwrap();
        for wanted in [
            "server 1 killed",
            "a &lt; b &amp; &quot;c&quot;",
            "detect: 200.0 ms",
        ] {
            assert!(svg.contains(wanted), "{wanted}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(
            draw(&Scene {
                title: "",
                marks: &[],
                parts: &[],
                samples: &[],
                hurt: &[]
            })
            .is_none()
        );
    }
}
