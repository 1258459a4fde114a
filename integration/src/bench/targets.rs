//! Targets, read from the tables of SPECIFICATION.md so that a promise stands in one place.
//!
//! A row counts when its first cell is a benchmark row in backticks, `bench/operation`, and its
//! last cell is a target: `≤ 0.33 × runc` (our figure divided by the peer's of the same run) or
//! `≤ 800 KiB` (a bound on our own figure, in the row's unit). Either holds for p10 and for the
//! median. Several targets are separated by commas; `–` says that the figure is only recorded.

use std::collections::BTreeMap;

/// One bound on a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Our p10 divided by the peer's, and so the medians, must not exceed `at_most`.
    Ratio {
        /// The greatest ratio that keeps the promise.
        at_most: f64,
        /// The peer's name as the suite calls it.
        peer: String,
    },
    /// Our p10 and median must not exceed `at_most`, in the row's own unit.
    Bound {
        /// The greatest value that keeps the promise.
        at_most: f64,
        /// The unit as it is written, which must be the row's.
        unit: String,
    },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ratio { at_most, peer } => write!(f, "≤ {at_most} × {peer}"),
            Self::Bound { at_most, unit } => write!(f, "≤ {at_most} {unit}"),
        }
    }
}

/// Row name (`bench/operation`) to its targets, empty for a row that is only recorded.
pub type Targets = BTreeMap<String, Vec<Target>>;

/// A row of SPECIFICATION.md whose target cannot be read.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("SPECIFICATION.md line {line}: `{cell}` is not a target (`≤ N × PEER` or `≤ N UNIT`)")]
pub struct BadTarget {
    /// Line number, from 1.
    pub line: usize,
    /// The cell's text.
    pub cell: String,
}

/// The targets of the specification this program was built with.
pub fn specified() -> Result<Targets, BadTarget> {
    parse(include_str!("../../../SPECIFICATION.md"))
}

/// Reads every benchmark row of every table in a Markdown text.
pub fn parse(markdown: &str) -> Result<Targets, BadTarget> {
    let mut targets = Targets::new();
    for (index, line) in markdown.lines().enumerate() {
        let Some(cells) = table_cells(line) else {
            continue;
        };
        let Some(name) = cells.first().and_then(|cell| benchmark_row(cell)) else {
            continue;
        };
        let last = cells.last().copied().unwrap_or_default();
        let parsed = parse_cell(last).ok_or_else(|| BadTarget {
            line: index + 1,
            cell: last.to_owned(),
        })?;
        targets.insert(name.to_owned(), parsed);
    }
    Ok(targets)
}

fn table_cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// `bench/operation` in backticks; other rows (tests, commands) have no figure to check.
fn benchmark_row(cell: &str) -> Option<&str> {
    let name = cell.strip_prefix('`')?.strip_suffix('`')?;
    let (bench, operation) = name.split_once('/')?;
    (!bench.is_empty() && !operation.is_empty()).then_some(name)
}

fn parse_cell(cell: &str) -> Option<Vec<Target>> {
    if matches!(cell, "–" | "-" | "") {
        return Some(Vec::new());
    }
    cell.split(',')
        .map(|part| parse_target(part.trim()))
        .collect()
}

fn parse_target(text: &str) -> Option<Target> {
    let (number, rest) = text.strip_prefix('≤')?.trim().split_once(' ')?;
    let at_most: f64 = number.parse().ok()?;
    let rest = rest.trim();
    match rest.strip_prefix('×') {
        Some(peer) if !peer.trim().is_empty() => Some(Target::Ratio {
            at_most,
            peer: peer.trim().to_owned(),
        }),
        Some(_) => None,
        None => Some(Target::Bound {
            at_most,
            unit: rest.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_target_is_read() {
        let text = "\
| row | promise | check | last figure | target |
|---|---|---|---|---|
| `smoke/run` | starts fast | `bench smoke` | 0.1 | ≤ 0.33 × runc, ≤ 1 × crun |
| `smoke/idle shim private` | small | `bench smoke` | 700 KiB | ≤ 800 KiB |
| `smoke/exec` | recorded | `bench smoke` | 5 ms | – |
| a test | no figure | `make test` | passes | |
";
        let targets = parse(text).unwrap();
        assert_eq!(targets.len(), 3);
        assert_eq!(
            targets["smoke/run"],
            [
                Target::Ratio {
                    at_most: 0.33,
                    peer: "runc".into()
                },
                Target::Ratio {
                    at_most: 1.0,
                    peer: "crun".into()
                }
            ]
        );
        assert_eq!(
            targets["smoke/idle shim private"],
            [Target::Bound {
                at_most: 800.0,
                unit: "KiB".into()
            }]
        );
        assert!(targets["smoke/exec"].is_empty());
    }

    #[test]
    fn a_target_that_cannot_be_read_is_named_with_its_line() {
        for bad in ["fast", "≤ x × runc", "≤ 3", "≤ 0.3 ×", "< 3 ms"] {
            let text = format!("intro\n| `smoke/run` | p | c | f | {bad} |");
            assert_eq!(
                parse(&text),
                Err(BadTarget {
                    line: 2,
                    cell: bad.into()
                })
            );
        }
    }

    #[test]
    fn the_specification_of_this_build_can_be_read() {
        let targets = specified().unwrap();
        assert_eq!(
            targets["smoke/run"],
            [Target::Ratio {
                at_most: 0.33,
                peer: "runc".into()
            }]
        );
    }
}
