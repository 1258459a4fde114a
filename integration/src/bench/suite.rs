//! A suite: operations × contestants, measured in interleaved rounds of random order, so that
//! whatever else the machine does falls on all contestants alike.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The name under which our own side competes; ratios are ours to each peer's.
pub const OURS: &str = "xebec";

/// What a row's figures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds of wall time.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Kibibytes of memory.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// System calls.
    #[serde(rename = "calls")]
    Calls,
}

impl Unit {
    /// As written in tables and in SPECIFICATION.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Kibibytes => "KiB",
            Self::Calls => "calls",
        }
    }
}

/// Takes one sample: one figure for each row of the operation, in the order of `Operation::rows`.
pub type Sampler<'a> = Box<dyn FnMut(u32) -> Result<Vec<f64>> + 'a>;

/// One side of an operation.
pub struct Contestant<'a> {
    /// `xebec` or the peer's name.
    pub name: &'static str,
    /// How to take a sample, or why the peer cannot be measured on this host.
    pub sampler: std::result::Result<Sampler<'a>, Absent>,
}

/// Why a peer is not measured; shown in the report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Absent(pub String);

/// Something that is timed or weighed; one sample may yield several rows.
pub struct Operation<'a> {
    /// The rows' names.
    pub rows: &'static [&'static str],
    /// Unit of all rows.
    pub unit: Unit,
    /// Samples are taken in every `every`-th round, for operations that are slow to set up.
    pub every: u32,
    /// Who competes.
    pub contestants: Vec<Contestant<'a>>,
}

/// All samples of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// Rows in the order of the suite, each with its unit and contestants in order.
    pub rows: Vec<RowSamples>,
    /// Who was not measured, and why.
    pub absent: BTreeSet<Absent>,
}

/// The samples of one row.
#[derive(Debug)]
pub struct RowSamples {
    /// The row's name.
    pub name: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// Contestant and its figures, ours first.
    pub cells: Vec<(&'static str, Vec<f64>)>,
}

/// Runs `rounds` rounds after one warm-up that is not counted.
///
/// `progress` hears how many rounds are done.
pub fn run(
    operations: &mut [Operation<'_>],
    rounds: u32,
    random: &mut Random,
    mut progress: impl FnMut(u32),
) -> Result<Run> {
    let mut samples = empty_samples(operations);
    for round in 0..=rounds {
        for (op, who) in order(operations, round, random) {
            let operation = &mut operations[op];
            let rows = operation.rows;
            let contestant = &mut operation.contestants[who];
            let Ok(sampler) = &mut contestant.sampler else {
                continue;
            };
            let figures = sampler(round).map_err(|error| {
                Error::invalid(format!("{} by {}", rows[0], contestant.name), error)
            })?;
            if round > 0 {
                samples.add(rows, contestant.name, &figures);
            }
        }
        progress(round);
    }
    Ok(samples)
}

/// The measurements of one round, shuffled. Round 0 warms up everything once.
fn order(operations: &[Operation<'_>], round: u32, random: &mut Random) -> Vec<(usize, usize)> {
    let mut order: Vec<_> = operations
        .iter()
        .enumerate()
        .filter(|(_, op)| round.is_multiple_of(op.every))
        .flat_map(|(i, op)| (0..op.contestants.len()).map(move |j| (i, j)))
        .collect();
    random.shuffle(&mut order);
    order
}

fn empty_samples(operations: &[Operation<'_>]) -> Run {
    let mut samples = Run::default();
    for op in operations {
        for contestant in &op.contestants {
            if let Err(why) = &contestant.sampler {
                samples.absent.insert(why.clone());
            }
        }
        let cells = || {
            op.contestants
                .iter()
                .map(|c| (c.name, Vec::new()))
                .collect()
        };
        samples.rows.extend(op.rows.iter().map(|name| RowSamples {
            name,
            unit: op.unit,
            cells: cells(),
        }));
    }
    samples
}

impl Run {
    fn add(&mut self, rows: &[&str], contestant: &str, figures: &[f64]) {
        assert_eq!(
            rows.len(),
            figures.len(),
            "a sampler yields one figure a row"
        );
        for (row, figure) in rows.iter().zip(figures) {
            let cells = self
                .rows
                .iter_mut()
                .find(|r| r.name == *row)
                .map(|r| &mut r.cells);
            let cell = cells
                .into_iter()
                .flatten()
                .find(|(name, _)| *name == contestant);
            if let Some((_, values)) = cell {
                values.push(*figure);
            }
        }
    }
}

/// A small generator (xorshift64*) whose seed is printed, so that an order can be repeated.
pub struct Random(u64);

impl Random {
    /// Any seed but zero gives its own sequence; zero is replaced.
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 {
            0x9e37_79b9_7f4a_7c15
        } else {
            seed
        })
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Fisher–Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn contestant<'a>(
        name: &'static str,
        log: &'a RefCell<Vec<(&'static str, u32)>>,
    ) -> Contestant<'a> {
        Contestant {
            name,
            sampler: Ok(Box::new(move |round| {
                log.borrow_mut().push((name, round));
                Ok(vec![f64::from(round), 1.0])
            })),
        }
    }

    #[test]
    fn the_warm_up_is_run_but_not_counted() {
        let log = RefCell::new(Vec::new());
        let mut ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), contestant("peer", &log)],
        }];
        let samples = run(&mut ops, 3, &mut Random::new(1), |_| ()).unwrap();
        assert_eq!(log.borrow().len(), 8);
        assert_eq!(samples.rows[0].cells[0], (OURS, vec![1.0, 2.0, 3.0]));
        assert_eq!(samples.rows[1].cells[1], ("peer", vec![1.0; 3]));
    }

    #[test]
    fn rounds_are_interleaved_and_their_order_varies() {
        let log = RefCell::new(Vec::new());
        let mut ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), contestant("peer", &log)],
        }];
        run(&mut ops, 32, &mut Random::new(7), |_| ()).unwrap();
        let log = log.borrow();
        let firsts: Vec<_> = log.chunks(2).map(|round| round[0].0).collect();
        assert!(log.chunks(2).all(|r| r[0].1 == r[1].1 && r[0].0 != r[1].0));
        assert!(firsts.contains(&OURS) && firsts.contains(&"peer"));
    }

    #[test]
    fn a_slow_operation_is_sampled_in_some_rounds_only() {
        let log = RefCell::new(Vec::new());
        let mut ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Kibibytes,
            every: 4,
            contestants: vec![contestant(OURS, &log)],
        }];
        let samples = run(&mut ops, 8, &mut Random::new(7), |_| ()).unwrap();
        assert_eq!(samples.rows[0].cells[0].1, [4.0, 8.0]);
    }

    #[test]
    fn an_absent_peer_is_recorded_with_its_reason() {
        let log = RefCell::new(Vec::new());
        let absent = Contestant {
            name: "crun",
            sampler: Err(Absent("not installed".into())),
        };
        let mut ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), absent],
        }];
        let samples = run(&mut ops, 2, &mut Random::new(7), |_| ()).unwrap();
        assert!(samples.absent.contains(&Absent("not installed".into())));
        assert!(samples.rows[0].cells[1].1.is_empty());
    }

    #[test]
    fn a_failed_sample_names_operation_and_contestant() {
        let mut ops = [Operation {
            rows: &["run"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![Contestant {
                name: "runc",
                sampler: Ok(Box::new(|_| Err(Error::invalid("x", "y")))),
            }],
        }];
        let error = run(&mut ops, 1, &mut Random::new(7), |_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("run") && error.contains("runc"), "{error}");
    }
}
