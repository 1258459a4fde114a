//! A start as a waterfall: time goes to the right, what happens at the same time lies in rows.

use std::fmt::Write as _;

use super::text::{describe, milliseconds};
use super::{Event, Start, What};

const WIDTH: f64 = 1200.0;
/// Where time begins; labels are to the left.
const LEFT: f64 = 110.0;
const ROW: f64 = 14.0;
const BAR: f64 = 11.0;
const TOP: f64 = 46.0;
/// Rows of one group; what is at the same time beyond that shares the last one.
const MAX_ROWS: usize = 32;

/// What lies together, in this order.
const GROUPS: [&str; 5] = ["prepare", "registry", "mount", "wait", "fetch"];

fn group(event: &Event) -> usize {
    match event.what {
        What::Prepare { .. } => 0,
        What::Resolve | What::Open { .. } | What::Profile { .. } => 1,
        What::Mount { .. } => 2,
        What::Wait { .. } => 3,
        What::Fetch { .. } => 4,
    }
}

/// Colours that people with any kind of sight can tell apart.
fn colour(event: &Event) -> &'static str {
    match &event.what {
        What::Prepare { .. } => "#999999",
        What::Resolve => "#56b4e9",
        What::Open { .. } => "#0072b2",
        What::Profile { .. } => "#cc79a7",
        What::Mount { .. } => "#000000",
        What::Wait { .. } => "#d55e00",
        What::Fetch { cause, .. } => match cause.as_str() {
            "profile" => "#009e73",
            "prefetch" => "#66c2a5",
            "background" => "#bbbbbb",
            _ => "#e69f00",
        },
    }
}

/// The picture, as an SVG document.
pub fn draw(start: &Start) -> String {
    let end = start.events.iter().map(|event| event.at + event.took);
    let scale = (WIDTH - LEFT - 20.0) / end.max().unwrap_or(0).max(1000) as f64;
    let rows: Vec<Vec<Vec<&Event>>> = (0..GROUPS.len())
        .map(|number| pack(start.events.iter().filter(|event| group(event) == number)))
        .collect();
    let count: usize = rows.iter().map(Vec::len).sum();
    let height = TOP + (count + GROUPS.len()) as f64 * ROW;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"13\">{}</text>",
        escape(&start.image)
    );
    axis(&mut out, scale, height);
    let mut y = TOP;
    for (name, rows) in GROUPS.iter().zip(&rows) {
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{:.1}\">{name}</text>",
            y + BAR - 1.0
        );
        for row in rows {
            for event in row {
                bar(&mut out, event, scale, y);
            }
            y += ROW;
        }
        y += ROW / 2.0;
    }
    out.push_str("</svg>\n");
    out
}

/// Puts each event into the first row that is free when it begins.
fn pack<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Vec<&'a Event>> {
    let mut rows: Vec<Vec<&Event>> = Vec::new();
    for event in events {
        let is_free = |row: &&mut Vec<&Event>| {
            row.last()
                .is_none_or(|last| last.at + last.took <= event.at)
        };
        let full = rows.len() == MAX_ROWS;
        match rows.iter_mut().find(is_free) {
            Some(row) => row.push(event),
            None if full => rows[MAX_ROWS - 1].push(event),
            None => rows.push(vec![event]),
        }
    }
    rows
}

fn bar(out: &mut String, event: &Event, scale: f64, y: f64) {
    let x = LEFT + event.at as f64 * scale;
    let width = (event.took as f64 * scale).max(1.0);
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\">\
         <title>{:.1} ms, {:.1} ms long, {}</title></rect>",
        colour(event),
        milliseconds(event.at),
        milliseconds(event.took),
        escape(&describe(event))
    );
}

/// Lines at round times.
fn axis(out: &mut String, scale: f64, height: f64) {
    let whole = (WIDTH - LEFT - 20.0) / scale;
    let mut step = 1000.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if whole / step <= 12.0 {
            break;
        }
        step *= factor;
    }
    let mut at = 0.0;
    while at <= whole {
        let x = LEFT + at * scale;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"34\" x2=\"{x:.1}\" y2=\"{height}\" stroke=\"#dddddd\"/>\
             <text x=\"{x:.1}\" y=\"30\" text-anchor=\"middle\">{} ms</text>",
            at / 1000.0
        );
        at += step;
    }
}

/// Names come from images: nothing of them may become a tag, or a character that XML has not.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other if other.is_control() || matches!(other, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::snapshots::record::Timestamp;

    fn wait(at: u64, took: u64, file: &str) -> Event {
        let what = What::Wait {
            layer: Digest::of(b"layer"),
            file: file.to_owned(),
            bytes: 1,
            place: (0, 0),
        };
        Event { at, took, what }
    }

    #[test]
    fn what_overlaps_lies_in_rows_of_its_own() {
        let events = [wait(0, 10, "a"), wait(5, 10, "b"), wait(10, 1, "c")];
        let rows = pack(events.iter());
        let rows: Vec<Vec<u64>> = rows
            .iter()
            .map(|row| row.iter().map(|event| event.at).collect())
            .collect();
        assert_eq!(rows, [vec![0, 10], vec![5]]);
        let many: Vec<_> = (0..100).map(|at| wait(at, 1000, "x")).collect();
        let rows = pack(many.iter());
        assert_eq!(rows.iter().map(Vec::len).sum::<usize>(), 100);
        assert_eq!(rows.len(), MAX_ROWS);
    }

    #[test]
    fn a_file_cannot_name_itself_into_the_document() {
        let start = Start {
            image: "h/i:v".to_owned(),
            top: Digest::of(b"top"),
            began: Timestamp::now(),
            open: false,
            events: vec![wait(0, 5000, "</title><script>\u{1}\"&")],
            dropped: 0,
        };
        let svg = draw(&start);
        assert!(svg.contains("&lt;/title&gt;&lt;script&gt;\u{fffd}&quot;&amp;"));
        assert!(!svg.contains("<script"));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
