//! The log as runc's clients read it: the last error line of `--log` is what they show to users.

mod line;
mod sink;

use std::ffi::OsStr;
use std::time::SystemTime;

use clap::ValueEnum;
use xebec_runtime::{Launched, Result, rfc3339};

pub(super) use line::LogFormat;
use sink::Sink;

/// Severity, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Level {
    Error,
    #[value(alias = "warn")]
    Warning,
    Info,
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The number that syslog and the journal know it by.
    fn priority(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// Where lines go, which of them, and how they look.
#[derive(Clone)]
pub(super) struct Log {
    sink: Sink,
    format: LogFormat,
    level: Level,
}

impl Log {
    /// Without a target, lines go to stderr.
    pub(super) fn open(target: Option<&OsStr>, format: LogFormat, level: Level) -> Result<Self> {
        Ok(Self {
            sink: target.map_or(Ok(Sink::Stderr), Sink::open)?,
            format,
            level,
        })
    }

    /// A log for what goes wrong before there is one.
    pub(super) fn to_stderr() -> Self {
        Self {
            sink: Sink::Stderr,
            format: LogFormat::Text,
            level: Level::Error,
        }
    }

    /// Whether whoever reads it wants to know each step.
    pub(super) fn is_verbose(&self) -> bool {
        self.level >= Level::Debug
    }

    pub(super) fn debug(&self, message: &str) {
        self.write(Level::Debug, message);
    }

    pub(super) fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// What a launch made, and what it had to leave out.
    pub(super) fn launched(&self, launched: &Launched) {
        for warning in &launched.warnings {
            self.warning(warning);
        }
        for note in &launched.notes {
            self.debug(note);
        }
        self.debug(&format!("process has pid {}", launched.pid));
    }

    /// The error that ends the command; if the log is elsewhere it is repeated, bare, on stderr, as
    /// runc does.
    pub(super) fn fatal(&self, message: &str) {
        self.write(Level::Error, message);
        if !matches!(self.sink, Sink::Stderr) {
            eprintln!("{message}");
        }
    }

    /// An error that stderr gets in another form.
    pub(super) fn record(&self, message: &str) {
        if !matches!(self.sink, Sink::Stderr) {
            self.write(Level::Error, message);
        }
    }

    fn write(&self, level: Level, message: &str) {
        if level <= self.level {
            let time = rfc3339(SystemTime::now());
            self.sink.write(self.format, level, message, &time);
        }
    }
}
