//! What a run found: the table, the JSON document and the promises that were missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::charged::Charged;
use super::phases::{self, Phase};
use super::stats::Summary;
use super::suite::{Absent, OURS, RowSamples, Run, Unit};
use super::targets::{Target, Targets};

/// One finished suite.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The suite's name.
    pub bench: String,
    /// Kernel release the figures were taken on.
    pub kernel: String,
    /// Seed of the order of measurements.
    pub seed: u64,
    /// Load average over one minute when the run ended.
    pub load: f64,
    /// Contestant to what it says of its version.
    pub versions: BTreeMap<String, String>,
    /// Peers that could not be measured, and why.
    pub absent: BTreeSet<Absent>,
    /// What went wrong; a promise that hangs on it counts as not kept.
    pub failed: Vec<String>,
    /// The rows in the order of the suite.
    pub rows: Vec<Row>,
    /// Where the time of one operation goes, if the suite looks into that.
    pub phases: Vec<Phase>,
}

/// One row of the table.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// `bench/operation`, as SPECIFICATION.md names it.
    pub name: String,
    /// Unit of all figures.
    pub unit: Unit,
    /// Contestant and figures; ours first.
    pub cells: Vec<Cell>,
    /// The promises of this row.
    pub targets: Vec<Verdict>,
    /// Where it was measured, if not with the other rows.
    pub how: Option<String>,
}

impl Row {
    fn new(bench: &str, samples: &RowSamples, targets: &Targets) -> Self {
        let name = format!("{bench}/{}", samples.name);
        let cells = cells(&samples.cells);
        let wanted = targets.get(&name).map_or(&[][..], Vec::as_slice);
        let targets = wanted
            .iter()
            .map(|target| verdict(target, samples.unit, &cells))
            .collect();
        Self {
            name,
            unit: samples.unit,
            cells,
            targets,
            how: None,
        }
    }
}

/// One contestant's figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cell {
    /// `xebec` or the peer's name.
    pub contestant: String,
    /// The figures; absent when the peer is.
    pub summary: Option<Summary>,
    /// Our figures divided by this peer's; absent on our own cell.
    pub ratio: Option<Ratio>,
}

/// Ours to a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the tenth percentiles.
    pub p10: f64,
    /// Of the medians.
    pub median: f64,
}

impl Ratio {
    fn new(ours: Summary, peer: Summary) -> Self {
        Self {
            p10: ours.p10 / peer.p10,
            median: ours.median / peer.median,
        }
    }

    fn worse(self) -> f64 {
        self.p10.max(self.median)
    }
}

/// A target and what was measured against it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The target as written.
    pub target: String,
    /// The ratio or figure it is compared with, the worse of p10 and median; absent when the peer
    /// is.
    pub measured: Option<f64>,
    /// Whether the promise was kept; absent when nothing could be measured.
    pub met: Option<bool>,
}

impl Report {
    /// Summarises samples and holds them against the targets of this bench.
    pub fn new(bench: &str, run: Run, targets: &Targets) -> Self {
        let rows = run
            .rows
            .iter()
            .map(|samples| Row::new(bench, samples, targets))
            .collect();
        Self {
            bench: bench.to_owned(),
            kernel: String::new(),
            seed: 0,
            load: 0.0,
            versions: BTreeMap::new(),
            absent: run.absent,
            failed: run.failed,
            rows,
            phases: Vec::new(),
        }
    }

    /// One row more, measured by itself.
    pub fn add(&mut self, charged: Charged, targets: &Targets) {
        let mut row = Row::new(&self.bench, &charged.samples, targets);
        row.how = charged.how;
        self.rows.push(row);
        self.absent.extend(charged.absent);
    }

    /// One line for each promise that was missed or could not be judged, and for what failed.
    pub fn missed(&self) -> Vec<String> {
        let mut lines = self.failed.clone();
        for row in &self.rows {
            for verdict in row.targets.iter().filter(|v| v.met != Some(true)) {
                let measured = verdict
                    .measured
                    .map_or("not measured".into(), |m| format!("{m:.2}"));
                lines.push(format!(
                    "{}: {measured}, target {}",
                    row.name, verdict.target
                ));
            }
        }
        lines
    }

    /// The table, at most 100 columns wide.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<26} {:<25} {:>9} {:>9} {:>9} {:<5} {}\n",
            self.bench, "", "p10", "median", "spread", "", "ratios"
        );
        for row in &self.rows {
            let mut label = row
                .name
                .strip_prefix(&format!("{}/", self.bench))
                .unwrap_or(&row.name);
            for cell in &row.cells {
                text.push_str(&line(label, cell, row.unit));
                label = "";
            }
            if let Some(how) = &row.how {
                let _ = writeln!(text, "{:<26} measured in: {how}", "");
            }
            for v in &row.targets {
                let mark = match v.met {
                    Some(true) => "met",
                    Some(false) => "MISSED",
                    None => "NOT MEASURED",
                };
                let _ = writeln!(text, "{:<26} target {}: {mark}", "", v.target);
            }
        }
        for why in &self.absent {
            let _ = writeln!(text, "absent: {}", why.0);
        }
        for what in &self.failed {
            let _ = writeln!(text, "FAILED: {what}");
        }
        text.push_str("ratios = xebec's p10 and median / the peer's; spread = p90 - p10\n");
        text.push_str(&phases::table(&self.phases));
        let _ = writeln!(
            text,
            "kernel {}, load {:.1}, seed {}",
            self.kernel, self.load, self.seed
        );
        text
    }
}

fn line(label: &str, cell: &Cell, unit: Unit) -> String {
    const COLUMN: usize = 26;
    if label.chars().count() > COLUMN {
        return format!("{label}\n{}", line("", cell, unit));
    }
    let Some(s) = &cell.summary else {
        return format!("{label:<26} {:<25} {:>9}\n", cell.contestant, "absent");
    };
    let digits = match unit {
        Unit::Milliseconds if s.median < 1.0 => 3,
        Unit::Milliseconds | Unit::Microseconds | Unit::ProcessorSeconds => 2,
        Unit::Kibibytes | Unit::Calls | Unit::Executions | Unit::Threads | Unit::Descriptors => 0,
    };
    let ratio = cell
        .ratio
        .map(|r| format!("{:4.2} {:4.2}", r.p10, r.median));
    let text = format!(
        "{label:<26} {:<25} {:>9.digits$} {:>9.digits$} {:>9.digits$} {:<5} {}",
        cell.contestant,
        s.p10,
        s.median,
        s.spread(),
        unit.name(),
        ratio.unwrap_or_default()
    );
    text.trim_end().to_owned() + "\n"
}

fn cells(samples: &[(&'static str, Vec<f64>)]) -> Vec<Cell> {
    let ours = samples.iter().find(|(name, _)| *name == OURS);
    let ours = ours.and_then(|(_, v)| Summary::of(v));
    samples
        .iter()
        .map(|(contestant, values)| {
            let summary = Summary::of(values);
            let peer = summary.filter(|_| *contestant != OURS);
            let ratio = ours.zip(peer).map(|(ours, peer)| Ratio::new(ours, peer));
            Cell {
                contestant: (*contestant).to_owned(),
                summary,
                ratio,
            }
        })
        .collect()
}

fn verdict(target: &Target, unit: Unit, cells: &[Cell]) -> Verdict {
    let find = |name: &str| cells.iter().find(|c| c.contestant == name);
    let (measured, at_most) = match target {
        Target::Ratio { at_most, peer } => {
            let ratio = find(peer).and_then(|c| c.ratio);
            (ratio.map(Ratio::worse), *at_most)
        }
        Target::Bound {
            at_most,
            unit: wanted,
        } => {
            let ours = find(OURS)
                .and_then(|c| c.summary)
                .filter(|_| wanted == unit.name());
            (ours.map(|s| s.p10.max(s.median)), *at_most)
        }
    };
    Verdict {
        target: target.to_string(),
        measured,
        met: measured.map(|m| m <= at_most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Run {
        Run {
            rows: vec![
                RowSamples {
                    name: "run".into(),
                    unit: Unit::Milliseconds,
                    cells: vec![(OURS, vec![4.0]), ("runc", vec![40.0]), ("crun", vec![])],
                },
                RowSamples {
                    name: "idle shim private".into(),
                    unit: Unit::Kibibytes,
                    cells: vec![
                        (OURS, vec![900.0]),
                        ("io.containerd.runc.v2", vec![17000.0]),
                    ],
                },
            ],
            absent: [Absent("crun was not found".into())].into(),
            failed: Vec::new(),
        }
    }

    fn targets(text: &str) -> Targets {
        super::super::targets::parse(text).unwrap()
    }

    #[test]
    fn a_ratio_is_ours_to_the_peers() {
        let report = Report::new("smoke", samples(), &Targets::new());
        let ratios: Vec<_> = report.rows[0].cells.iter().map(|c| c.ratio).collect();
        let tenth = Ratio {
            p10: 0.1,
            median: 0.1,
        };
        assert_eq!(ratios, [None, Some(tenth), None]);
    }

    #[test]
    fn a_promise_is_kept_by_p10_and_median() {
        let mut run = samples();
        // p10 1.0 and 10.4, median 9.0 and 12.0.
        run.rows[0].cells[0].1 = vec![1.0, 1.0, 9.0, 9.0, 9.0];
        run.rows[0].cells[1].1 = vec![10.0, 11.0, 12.0, 12.0, 12.0];
        let report = Report::new("smoke", run, &targets("| `smoke/run` | ≤ 0.5 × runc |"));
        let verdict = &report.rows[0].targets[0];
        assert_eq!((verdict.measured, verdict.met), (Some(0.75), Some(false)));
    }

    #[test]
    fn only_promises_that_were_not_kept_are_listed_as_missed() {
        let spec = "| `smoke/run` | ≤ 0.33 × runc, ≤ 1 × crun |\n\
                    | `smoke/idle shim private` | ≤ 800 KiB |";
        let missed = Report::new("smoke", samples(), &targets(spec)).missed();
        assert_eq!(
            missed,
            [
                "smoke/run: not measured, target ≤ 1 × crun",
                "smoke/idle shim private: 900.00, target ≤ 800 KiB"
            ]
        );
    }

    #[test]
    fn what_failed_is_in_the_table_and_misses_a_promise() {
        let mut run = samples();
        run.fail("crowd", &crate::error::Error::invalid("x", "y"));
        let report = Report::new("shim", run, &Targets::new());
        assert!(report.table().contains("FAILED: crowd"));
        assert_eq!(report.missed().len(), 1);
    }

    #[test]
    fn a_bound_in_another_unit_is_not_taken_as_met() {
        let report = Report::new("smoke", samples(), &targets("| `smoke/run` | ≤ 5000 KiB |"));
        assert_eq!(report.rows[0].targets[0].met, None);
    }

    #[test]
    fn a_row_that_could_not_be_measured_misses_its_promise_and_says_why() {
        let targets = targets("| `runtime/created: memory charged` | ≤ 1536 KiB |");
        let mut report = Report::new("runtime", samples(), &targets);
        let row = |cells| RowSamples {
            name: "created: memory charged".into(),
            unit: Unit::Kibibytes,
            cells,
        };
        report.add(
            Charged {
                samples: row(vec![(OURS, vec![])]),
                how: None,
                absent: Some(Absent("no machine".into())),
            },
            &targets,
        );
        assert_eq!(report.missed().len(), 1);
        assert!(report.table().contains("absent: no machine"));
        report.add(
            Charged {
                samples: row(vec![(OURS, vec![256.0])]),
                how: Some("VM host, kernel 7.2".into()),
                absent: None,
            },
            &targets,
        );
        assert_eq!(report.missed().len(), 1);
        assert!(report.table().contains("measured in: VM host, kernel 7.2"));
    }

    #[test]
    fn the_table_fits_a_hundred_columns_and_names_absent_peers() {
        let mut report = Report::new(
            "smoke",
            samples(),
            &targets("| `smoke/run` | ≤ 0.33 × runc |"),
        );
        report.kernel = "6.18.5-some-long-flavour".into();
        report.seed = u64::MAX;
        let table = report.table();
        for line in table.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(table.contains("absent: crun was not found"));
        assert!(table.contains("target ≤ 0.33 × runc: met"));
    }
}
