//! Logging to stderr, where journald and container runtimes pick it up.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error::{Error, Result};

/// Starts logging for the whole process. A bare level is meant for this crate: what its libraries
/// have to say about every frame on a socket hides the rest.
pub(super) fn start(filter: &str) -> Result<()> {
    let directives = directives(filter);
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| Error::InvalidArgument(format!("log filter {filter:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It panics where it cannot print that it could not write: a log on a full disk must not end
        // what is being answered.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| Error::Internal(format!("start logging: {error}")))
}

fn directives(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("{},xebec_snapshotter={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_for_this_crate_and_directives_are_taken_as_they_are() {
        let cases = [
            ("debug", "warn,xebec_snapshotter=debug"),
            ("error", "error,xebec_snapshotter=error"),
            ("h2=trace,info", "h2=trace,info"),
        ];
        for (given, expected) in cases {
            assert_eq!(directives(given), expected);
            EnvFilter::try_new(directives(given)).unwrap();
        }
    }
}
