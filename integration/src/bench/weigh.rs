//! What a command and its children use, by `bench-weigh`.

use super::measure::output;
use crate::error::{Error, Result};

const WEIGH: &str = "/opt/xebec/bench-weigh";

/// What a command used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// Most KiB that were resident.
    pub kib: f64,
    /// Milliseconds of processor time, in user mode and in the kernel.
    pub ms: f64,
    /// Milliseconds of it in user mode.
    pub user_ms: f64,
}

/// Runs a command to its end.
pub fn command<S: AsRef<str>>(argv: &[S]) -> Result<Used> {
    let mut words = vec![WEIGH];
    words.extend(argv.iter().map(AsRef::as_ref));
    parse(&output(&words)?)
}

fn parse(text: &str) -> Result<Used> {
    match numbers(text)?[..] {
        [kib, microseconds, user] => Ok(Used {
            kib,
            ms: microseconds / 1e3,
            user_ms: user / 1e3,
        }),
        _ => Err(Error::invalid(WEIGH, text)),
    }
}

/// Figures that a program prints.
pub fn numbers(text: &str) -> Result<Vec<f64>> {
    let figures: std::result::Result<_, _> = text.split_whitespace().map(str::parse).collect();
    figures.map_err(|_| Error::invalid("figures of a program", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_numbers_and_nothing_else() {
        let used = parse("2816 3120 2000\n").unwrap();
        assert_eq!((used.kib, used.ms, used.user_ms), (2816.0, 3.12, 2.0));
        assert!(parse("2816 KiB\n").unwrap_err().to_string().contains("KiB"));
        assert!(parse("2816\n").is_err());
    }
}
