//! The times of a report as a picture: bars of p10 on a logarithmic scale, a tick at the median.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Report, Row};
use super::suite::{OURS, Unit};
use crate::error::{Error, Result};

const WIDTH: u32 = 900;
const BAR: u32 = 16;
const MARGIN: u32 = 12;
/// Room for the numbers below.
const AXIS: u32 = 36;
const OUR_COLOR: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const FLOOR_COLOR: RGBColor = RGBColor(0x6b, 0x9e, 0x5a);
const PEER_COLOR: RGBColor = RGBColor(0xb8, 0xb8, 0xb8);

/// One line of the picture, from the top.
enum Line<'a> {
    Title(&'a str),
    Bar {
        contestant: &'a str,
        p10: f64,
        median: f64,
    },
}

/// Draws the rows that are times.
pub fn draw(reports: &[Report], file: &Path) -> Result<()> {
    let rows = reports.iter().flat_map(|report| &report.rows);
    let lines: Vec<_> = rows
        .filter(|row| row.unit == Unit::Milliseconds)
        .flat_map(lines)
        .collect();
    paint(&lines, file).map_err(|error| Error::invalid(format!("plot {}", file.display()), error))
}

fn lines(row: &Row) -> Vec<Line<'_>> {
    let bars = row.cells.iter().filter_map(|cell| {
        let summary = cell.summary?;
        Some(Line::Bar {
            contestant: &cell.contestant,
            p10: summary.p10,
            median: summary.median,
        })
    });
    std::iter::once(Line::Title(&row.name))
        .chain(bars)
        .collect()
}

fn paint(lines: &[Line<'_>], file: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let height = lines.len() as u32 * BAR + AXIS + 2 * MARGIN;
    let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let figures = lines.iter().filter_map(|line| match line {
        Line::Title(_) => None,
        Line::Bar { p10, median, .. } => Some((*p10, *median)),
    });
    let (least, most) = figures.fold((1.0_f64, 10.0_f64), |(least, most), (p10, median)| {
        (least.min(p10), most.max(median))
    });
    // Bars begin below the least figure; labels need room beyond the greatest.
    let (left, right) = (least / 2.0, most * 6.0);
    let mut chart = ChartBuilder::on(&root)
        .margin(MARGIN)
        .x_label_area_size(AXIS)
        .build_cartesian_2d((left..right).log_scale(), 0.0..lines.len() as f64)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis();
    mesh.x_desc("ms, p10 (tick: median)").draw()?;
    for (index, line) in lines.iter().enumerate() {
        let y = (lines.len() - index) as f64;
        let label = |text: String, x: f64, font: FontDesc<'static>| {
            let anchor = Pos::new(HPos::Left, VPos::Center);
            Text::new(text, (x, y - 0.5), font.color(&BLACK).pos(anchor))
        };
        match *line {
            Line::Title(name) => {
                let font = ("sans-serif", 13, FontStyle::Bold).into_font();
                chart.draw_series([label(name.to_owned(), left, font)])?;
            }
            Line::Bar {
                contestant,
                p10,
                median,
            } => {
                let color = color_of(contestant).filled();
                let bar = Rectangle::new([(left, y - 0.1), (p10, y - 0.9)], color);
                let tick = PathElement::new([(median, y - 0.1), (median, y - 0.9)], BLACK);
                let (text, x) = (format!("{contestant} {p10:.2}"), p10.max(median) * 1.05);
                chart.draw_series([bar])?;
                chart.draw_series([tick])?;
                chart.draw_series([label(text, x, ("sans-serif", 11).into_font())])?;
            }
        }
    }
    root.present()?;
    Ok(())
}

fn color_of(contestant: &str) -> RGBColor {
    match contestant {
        OURS => OUR_COLOR,
        "floor" => FLOOR_COLOR,
        _ => PEER_COLOR,
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{RowSamples, Run};
    use super::super::targets::Targets;
    use super::*;

    #[test]
    fn every_time_of_a_report_has_a_bar_with_its_name() {
        let row = |name: &'static str, unit, cells| RowSamples {
            name: name.into(),
            unit,
            cells,
        };
        let samples = Run {
            rows: vec![
                row(
                    "run",
                    Unit::Milliseconds,
                    vec![(OURS, vec![3.5]), ("runc", vec![])],
                ),
                row("rss", Unit::Kibibytes, vec![("crun", vec![3504.0])]),
            ],
            ..Run::default()
        };
        let report = Report::new("runtime", samples, &Targets::new());
        let file = tempfile::NamedTempFile::new().unwrap();
        draw(&[report], file.path()).unwrap();
        let svg = std::fs::read_to_string(file.path()).unwrap();
        assert!(
            svg.contains("runtime/run") && svg.contains("xebec 3.50"),
            "{svg}"
        );
        assert!(!svg.contains("crun") && !svg.contains("runc"), "{svg}");
    }
}
