//! An operation as several sides perform it.

use super::measure::in_path;
use super::suite::{Absent, Contestant, Operation, Sampler, Unit};
use crate::error::Result;

/// One side of a comparison.
pub trait Side {
    /// Its name in tables.
    fn contestant(&self) -> &'static str;
    /// The program that has to be there, by name or path.
    fn binary(&self) -> &'static str;
}

/// A program that goes by its own name.
impl Side for &'static str {
    fn contestant(&self) -> &'static str {
        self
    }

    fn binary(&self) -> &'static str {
        self
    }
}

/// The operation of all `sides`, in the order of the table; those that are absent are told so.
pub fn contest<'a, S: Side>(
    rows: &'static [&'static str],
    unit: Unit,
    every: u32,
    sides: &'static [S],
    sampler: impl Fn(&'static S) -> Sampler<'a>,
) -> Operation<'a> {
    let contestants = sides
        .iter()
        .map(|side| Contestant {
            name: side.contestant(),
            sampler: present(side.binary()).map(|()| sampler(side)),
        })
        .collect();
    Operation {
        rows,
        unit,
        every,
        contestants,
    }
}

pub(super) fn present(binary: &str) -> std::result::Result<(), Absent> {
    in_path(binary)
        .map(drop)
        .ok_or_else(|| Absent(format!("{binary} was not found in PATH")))
}

/// The figure of an operation with a single row.
pub fn one(figure: Result<f64>) -> Result<Vec<f64>> {
    figure.map(|f| vec![f])
}
