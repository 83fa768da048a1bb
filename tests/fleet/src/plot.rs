//! Curves as SVG: what arrives at the server, and how long its newest lines have not been seen.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use clap::ValueEnum;

use crate::Policy;
use crate::measure::{Minute, Record};
use crate::scenario::Scenario;
use crate::time::MINUTE;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
const RIGHT: f64 = 16.0;

/// A curve: a point a minute.
struct Curve {
    policy: Policy,
    is_dashed: bool,
    points: Vec<f64>,
}

/// Writes the two pictures of a scenario.
pub(crate) fn write(directory: &Path, scenario: Scenario, load: u32, records: &[(Policy, Record)]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let name = scenario.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let over = records.first().map_or(0, |(_, record)| record.over_at / MINUTE);
    let bytes = records.iter().map(|(policy, record)| {
        let mean = |seconds: &[crate::measure::Second]| {
            seconds.iter().map(|second| second.bytes).sum::<f64>() / seconds.len() as f64 / record.mean_bytes
        };
        Curve { policy: *policy, is_dashed: false, points: record.seconds.chunks(60).map(mean).collect() }
    });
    let title = format!("{}, {load} %: bytes offered to the server, as a multiple of the usual", scenario.title());
    fs::write(directory.join(format!("{name}-{load}-load.svg")), picture(&title, &bytes.collect::<Vec<_>>(), over))?;
    let unseen = records.iter().flat_map(|(policy, record)| {
        let points = |value: fn(&Minute) -> f32| {
            record.minutes.iter().map(|minute| f64::from(value(minute)) / 60.0).collect::<Vec<f64>>()
        };
        [
            Curve { policy: *policy, is_dashed: false, points: points(|minute| minute.unseen_median) },
            Curve { policy: *policy, is_dashed: true, points: points(|minute| minute.unseen_most) },
        ]
    });
    let title = format!(
        "{}, {load} %: minutes for which a host's newest lines are not seen (median; dashed: p99)",
        scenario.title()
    );
    fs::write(
        directory.join(format!("{name}-{load}-freshness.svg")),
        picture(&title, &unseen.collect::<Vec<_>>(), over),
    )
}

fn color(policy: Policy) -> &'static str {
    match policy {
        Policy::LiveFirst => "#0b6e4f",
        Policy::InOrder => "#2a6fdb",
        Policy::BuiltIn => "#c0392b",
    }
}

fn picture(title: &str, curves: &[Curve], over: u32) -> String {
    let minutes = curves.iter().map(|curve| curve.points.len()).max().unwrap_or(1).max(2);
    let highest = curves.iter().flat_map(|curve| &curve.points).copied().fold(1.0, f64::max) * 1.05;
    let x = |minute: f64| LEFT + minute / (minutes - 1) as f64 * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| TOP + (1.0 - value / highest) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"12\">{title}</text>\n"
    );
    for part in 0..=4 {
        let value = highest * f64::from(part) / 4.0;
        line(&mut svg, (LEFT, y(value)), (WIDTH - RIGHT, y(value)), "#ddd");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            LEFT - 6.0,
            y(value) + 4.0
        );
    }
    let hours = minutes.div_ceil(60);
    let step = hours.div_ceil(8).max(1) * 60;
    for minute in (0..minutes).step_by(step) {
        let (at, hour) = (x(minute as f64), minute / 60);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{hour} h</text>",
            HEIGHT - BOTTOM + 16.0
        );
    }
    line(&mut svg, (x(f64::from(over)), TOP), (x(f64::from(over)), HEIGHT - BOTTOM), "#888");
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\">over</text>", x(f64::from(over)) + 3.0, TOP + 9.0);
    for (index, curve) in curves.iter().enumerate() {
        let points: Vec<String> = curve
            .points
            .iter()
            .enumerate()
            .map(|(minute, &value)| format!("{:.1},{:.1}", x(minute as f64), y(value)))
            .collect();
        let dashes = if curve.is_dashed { " stroke-dasharray=\"4 3\"" } else { "" };
        let color = color(curve.policy);
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"{dashes} points=\"{}\"/>",
            points.join(" ")
        );
        if !curve.is_dashed {
            let at = LEFT + 160.0 * curves.iter().take(index).filter(|other| !other.is_dashed).count() as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{at}\" y=\"{}\" fill=\"{color}\">{}</text>",
                HEIGHT - 8.0,
                curve.policy.title()
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\"/>");
}
