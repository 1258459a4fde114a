//! A suite: operations × contestants, measured in interleaved rounds of random order, so that
//! whatever else the machine does falls on all contestants alike.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::command::tail;
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
    /// Executions of programs.
    #[serde(rename = "execs")]
    Executions,
    /// Threads.
    #[serde(rename = "threads")]
    Threads,
    /// Open descriptors.
    #[serde(rename = "fds")]
    Descriptors,
    /// Microseconds of wall time, for what is done very often.
    #[serde(rename = "µs")]
    Microseconds,
    /// Seconds of processor time in user mode, of all threads together.
    #[serde(rename = "CPU s")]
    ProcessorSeconds,
}

impl Unit {
    /// As written in tables and in SPECIFICATION.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Kibibytes => "KiB",
            Self::Calls => "calls",
            Self::Executions => "execs",
            Self::Threads => "threads",
            Self::Descriptors => "fds",
            Self::Microseconds => "µs",
            Self::ProcessorSeconds => "CPU s",
        }
    }
}

/// Where a figure goes: a row, and whose cell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The row's name.
    pub row: Cow<'static, str>,
    /// The row's unit.
    pub unit: Unit,
    /// `xebec` or the peer's name.
    pub contestant: &'static str,
}

/// What is done at once in a round; its figures may be of several rows and contestants.
pub struct Task<'a> {
    /// Where the figures of a sample go, in their order.
    pub feeds: Vec<Feed>,
    /// Done in every `every`-th round, and at least in the last one.
    pub every: u32,
    /// Done once before what counts, too.
    pub warms_up: bool,
    /// How it is done, or why it cannot be on this host.
    pub sampler: std::result::Result<Sampler<'a>, Absent>,
}

impl Task<'_> {
    /// Its first row, and whose cell of it.
    fn name(&self) -> String {
        let first = self.feeds.first();
        let name = first.map(|feed| format!("{} by {}", feed.row, feed.contestant));
        name.unwrap_or_default()
    }
}

/// Takes one sample: one figure for each of the feeds of its task, in their order.
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

impl<'a> Operation<'a> {
    /// A task for each contestant.
    pub fn tasks(self) -> impl Iterator<Item = Task<'a>> {
        let Self {
            rows,
            unit,
            every,
            contestants,
        } = self;
        contestants.into_iter().map(move |contestant| Task {
            feeds: rows
                .iter()
                .map(|&row| Feed {
                    row: row.into(),
                    unit,
                    contestant: contestant.name,
                })
                .collect(),
            every,
            warms_up: true,
            sampler: contestant.sampler,
        })
    }
}

/// All samples of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// Rows in the order of the suite, each with its unit and contestants in order.
    pub rows: Vec<RowSamples>,
    /// Who was not measured, and why.
    pub absent: BTreeSet<Absent>,
    /// What went wrong; the rows it concerns have fewer samples, or none.
    pub failed: Vec<String>,
}

/// The samples of one row.
#[derive(Debug)]
pub struct RowSamples {
    /// The row's name.
    pub name: Cow<'static, str>,
    /// What the figures count.
    pub unit: Unit,
    /// Contestant and its figures.
    pub cells: Vec<(&'static str, Vec<f64>)>,
}

/// Runs `rounds` rounds after one warm-up that is not counted.
///
/// A task that fails is not tried again; the others go on. `progress` hears how many rounds are
/// done.
pub fn run(
    tasks: &mut [Task<'_>],
    rounds: u32,
    random: &mut Random,
    mut progress: impl FnMut(u32),
) -> Run {
    let mut samples = empty_samples(tasks);
    let mut given_up = BTreeSet::new();
    for round in 0..=rounds {
        for number in order(tasks, round, rounds, random) {
            let task = &mut tasks[number];
            let Ok(sampler) = &mut task.sampler else {
                continue;
            };
            if given_up.contains(&number) {
                continue;
            }
            match sampler(round) {
                Ok(figures) if round > 0 => samples.add(&task.feeds, &figures),
                Ok(_) => {}
                Err(error) => {
                    given_up.insert(number);
                    samples.fail(&task.name(), &error);
                }
            }
        }
        progress(round);
    }
    samples
}

/// The end of an error, in one line.
pub fn brief(error: &Error) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find(|line| line.contains(": "));
    tail(last.unwrap_or(&text), 160).trim().to_owned()
}

/// The tasks of one round, shuffled. Round 0 warms up what wants it.
fn order(tasks: &[Task<'_>], round: u32, rounds: u32, random: &mut Random) -> Vec<usize> {
    let is_due = |task: &Task<'_>| match round {
        0 => task.warms_up,
        _ => round.is_multiple_of(task.every.min(rounds)),
    };
    let due = tasks.iter().enumerate().filter(|(_, task)| is_due(task));
    let mut order: Vec<_> = due.map(|(number, _)| number).collect();
    random.shuffle(&mut order);
    order
}

/// Rows and cells in the order in which tasks name them.
fn empty_samples(tasks: &[Task<'_>]) -> Run {
    let mut samples = Run::default();
    for task in tasks {
        if let Err(why) = &task.sampler {
            samples.absent.insert(why.clone());
        }
        for feed in &task.feeds {
            samples.cell(feed);
        }
    }
    samples
}

impl Run {
    /// Appends the rows of another part of the same suite.
    pub fn extend(&mut self, part: Self) {
        self.rows.extend(part.rows);
        self.absent.extend(part.absent);
        self.failed.extend(part.failed);
    }

    /// Notes in a line that something could not be measured, and tells all of it at once.
    pub fn fail(&mut self, what: &str, error: &Error) {
        eprintln!("{what}: {error}");
        self.failed.push(format!("{what}: {}", brief(error)));
    }

    fn add(&mut self, feeds: &[Feed], figures: &[f64]) {
        assert_eq!(
            feeds.len(),
            figures.len(),
            "a sampler yields one figure a feed"
        );
        for (feed, figure) in feeds.iter().zip(figures) {
            self.cell(feed).push(*figure);
        }
    }

    /// The figures so far of one cell, which is made at its first mention.
    fn cell(&mut self, feed: &Feed) -> &mut Vec<f64> {
        let row = self.rows.iter().position(|row| row.name == feed.row);
        let row = row.unwrap_or_else(|| {
            self.rows.push(RowSamples {
                name: feed.row.clone(),
                unit: feed.unit,
                cells: Vec::new(),
            });
            self.rows.len() - 1
        });
        let cells = &mut self.rows[row].cells;
        let cell = cells.iter().position(|(name, _)| *name == feed.contestant);
        let cell = cell.unwrap_or_else(|| {
            cells.push((feed.contestant, Vec::new()));
            cells.len() - 1
        });
        &mut cells[cell].1
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

    fn tasks<const N: usize>(operations: [Operation<'_>; N]) -> Vec<Task<'_>> {
        operations.into_iter().flat_map(Operation::tasks).collect()
    }

    #[test]
    fn the_warm_up_is_run_but_not_counted() {
        let log = RefCell::new(Vec::new());
        let ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), contestant("peer", &log)],
        }];
        let samples = run(&mut tasks(ops), 3, &mut Random::new(1), |_| ());
        assert_eq!(log.borrow().len(), 8);
        assert_eq!(samples.rows[0].cells[0], (OURS, vec![1.0, 2.0, 3.0]));
        assert_eq!(samples.rows[1].cells[1], ("peer", vec![1.0; 3]));
    }

    #[test]
    fn rounds_are_interleaved_and_their_order_varies() {
        let log = RefCell::new(Vec::new());
        let ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), contestant("peer", &log)],
        }];
        run(&mut tasks(ops), 32, &mut Random::new(7), |_| ());
        let log = log.borrow();
        let firsts: Vec<_> = log.chunks(2).map(|round| round[0].0).collect();
        assert!(log.chunks(2).all(|r| r[0].1 == r[1].1 && r[0].0 != r[1].0));
        assert!(firsts.contains(&OURS) && firsts.contains(&"peer"));
    }

    #[test]
    fn a_slow_operation_is_sampled_in_some_rounds_only() {
        let log = RefCell::new(Vec::new());
        let ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Kibibytes,
            every: 4,
            contestants: vec![contestant(OURS, &log)],
        }];
        let samples = run(&mut tasks(ops), 8, &mut Random::new(7), |_| ());
        assert_eq!(samples.rows[0].cells[0].1, [4.0, 8.0]);
    }

    #[test]
    fn a_task_feeds_cells_of_several_rows_and_contestants() {
        let log = RefCell::new(Vec::new());
        let feed = |row: &'static str, contestant| Feed {
            row: row.into(),
            unit: Unit::Milliseconds,
            contestant,
        };
        let mut tasks = [Task {
            feeds: vec![feed("cold", OURS), feed("cold", "floor")],
            every: 3,
            warms_up: false,
            sampler: contestant(OURS, &log).sampler,
        }];
        let samples = run(&mut tasks, 2, &mut Random::new(7), |_| ());
        let cells = vec![(OURS, vec![2.0]), ("floor", vec![1.0])];
        assert_eq!(samples.rows[0].cells, cells);
        assert_eq!(log.borrow().len(), 1, "no warm-up, and once at the end");
    }

    #[test]
    fn an_absent_peer_is_recorded_with_its_reason() {
        let log = RefCell::new(Vec::new());
        let absent = Contestant {
            name: "crun",
            sampler: Err(Absent("not installed".into())),
        };
        let ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![contestant(OURS, &log), absent],
        }];
        let samples = run(&mut tasks(ops), 2, &mut Random::new(7), |_| ());
        assert!(samples.absent.contains(&Absent("not installed".into())));
        assert!(samples.rows[0].cells[1].1.is_empty());
    }

    #[test]
    fn a_task_that_fails_is_named_and_the_others_go_on() {
        let log = RefCell::new(Vec::new());
        let ops = [Operation {
            rows: &["a", "b"],
            unit: Unit::Milliseconds,
            every: 1,
            contestants: vec![
                contestant(OURS, &log),
                Contestant {
                    name: "runc",
                    sampler: Ok(Box::new(|round| match round {
                        0 | 1 => Ok(vec![1.0, 2.0]),
                        _ => Err(Error::invalid("a log\nof many: lines", "broken")),
                    })),
                },
            ],
        }];
        let samples = run(&mut tasks(ops), 3, &mut Random::new(7), |_| ());
        // It is not tried again.
        assert_eq!(samples.failed, ["a by runc: of many: lines: broken"]);
        assert_eq!(
            samples.rows[1].cells,
            [(OURS, vec![1.0; 3]), ("runc", vec![2.0])]
        );
    }
}
