//! What the metadata of a layer costs, by `bench-index`.

use super::super::contest::{Side, contest};
use super::super::measure::output;
use super::super::suite::{OURS, Operation, Unit};
use super::super::weigh::numbers;
use crate::error::{Error, Result};

const PROGRAM: &str = "/opt/xebec/bench-index";

/// A layer of so many files; what it costs is the figure of the row for [`Size::unit`] files.
struct Size {
    files: u32,
}

impl Side for Size {
    fn contestant(&self) -> &'static str {
        OURS
    }

    fn binary(&self) -> &'static str {
        PROGRAM
    }
}

impl Size {
    /// How many times ten thousand files.
    fn share(&self) -> f64 {
        f64::from(self.files) / 1e4
    }
}

const MANY: &[Size] = &[Size { files: 10_000 }];
const MILLION: &[Size] = &[Size { files: 1_000_000 }];

/// Index and image of an ordinary layer, and of a very large one for each as many of its files.
pub(super) fn operations() -> Vec<Operation<'static>> {
    let rows = &[
        "index + image: 10 000 files",
        "index: 10 000 files",
        "image: 10 000 files",
    ];
    let large = &["index + image: 10 000 of 1 000 000 files"];
    let memory = &["index + image: memory, 10 000 files"];
    let large_memory = &["index + image: memory, 10 000 of 1 000 000 files"];
    let (ms, kib) = (Unit::Milliseconds, Unit::Kibibytes);
    vec![
        contest(rows, ms, 1, MANY, |size| {
            Box::new(|_| figures(size).map(|[index, image, _]| vec![index + image, index, image]))
        }),
        contest(large, ms, u32::MAX, MILLION, |size| {
            Box::new(|_| {
                figures(size).map(|[index, image, _]| vec![(index + image) / size.share()])
            })
        }),
        contest(memory, kib, u32::MAX, MANY, |size| {
            Box::new(|_| figures(size).map(|[.., memory]| vec![memory]))
        }),
        contest(large_memory, kib, u32::MAX, MILLION, |size| {
            Box::new(|_| figures(size).map(|[.., memory]| vec![memory / size.share()]))
        }),
    ]
}

/// Milliseconds of index and image, KiB of memory.
fn figures(size: &Size) -> Result<[f64; 3]> {
    let text = output(&[PROGRAM, &size.files.to_string()])?;
    match numbers(&text)?[..] {
        [index, image, memory] => Ok([index, image, memory]),
        _ => Err(Error::invalid(PROGRAM, text)),
    }
}
