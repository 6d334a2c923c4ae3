//! The table as a picture: a bar a system, a group of bars a figure, each group on a scale of its own.

use std::fmt::Write as _;

use crate::path::System;
use crate::report::{Bound, Report, Row, number};

const WIDTH: usize = 860;
const LEFT: usize = 150;
const BAR: usize = 14;
const LONGEST: f64 = 560.0;

/// Draws it as SVG.
pub(crate) fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 30;
    for row in report.rows.iter().filter(|row| row.values.len() > 1 || row.bound.is_some()) {
        y = group(row, y, &mut body);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// One figure. Returns where the next one begins.
fn group(row: &Row, top: usize, out: &mut String) -> usize {
    let demanded = match row.bound {
        Some(Bound::AtLeast(value) | Bound::AtMost(value)) => Some(value),
        Some(Bound::AsNative) | None => None,
    };
    let most = row.values.values().copied().chain(demanded).fold(f64::MIN_POSITIVE, f64::max);
    let better = if row.less_is_better { "less is better" } else { "more is better" };
    let mut line = |text: String| writeln!(out, "{text}").expect("writing into memory");
    line(format!(
        "<text x=\"12\" y=\"{top}\" font-weight=\"bold\">{}</text><text x=\"{}\" y=\"{top}\" fill=\"#777777\" \
         text-anchor=\"end\">{}, {better}</text>",
        escape(&row.name),
        WIDTH - 12,
        escape(row.unit)
    ));
    let mut y = top + 6;
    for (system, value) in &row.values {
        let length = (value.max(0.0) / most * LONGEST).max(1.0);
        line(format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" \
             height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            LEFT - 6,
            y + BAR - 4,
            system.name(),
            BAR - 3,
            colour(*system),
            LEFT as f64 + length + 5.0,
            y + BAR - 4,
            number(*value)
        ));
        y += BAR;
    }
    if let Some(demanded) = demanded {
        let x = LEFT as f64 + demanded / most * LONGEST;
        line(format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{y}\" stroke=\"#c0392b\" stroke-dasharray=\"3 2\"/>",
            top + 4
        ));
    }
    y + 26
}

fn colour(system: System) -> &'static str {
    match system {
        System::Duplex => "#2a6fbb",
        System::Bare => "#b8b8b8",
        System::Outbox => "#d9a441",
        System::Native => "#5a9f68",
        System::Older => "#9b6bb3",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
