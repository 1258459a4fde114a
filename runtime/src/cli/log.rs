//! The log as runc's clients read it: the last error line of `--log` is what they show to users.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::json;
use xebec_runtime::{Error, Launched, Result, rfc3339};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// `time="…" level=… msg="…"`
    Text,
    /// One JSON object a line.
    Json,
}

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
}

/// Where lines go: the file of `--log`, else stderr.
#[derive(Clone)]
pub(super) struct Log {
    file: Option<Arc<File>>,
    format: LogFormat,
    level: Level,
}

impl Log {
    pub(super) fn open(path: Option<&Path>, format: LogFormat, level: Level) -> Result<Self> {
        let file = path
            .map(|path| {
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map(Arc::new)
                    .map_err(|source| Error::File {
                        op: "open",
                        path: path.into(),
                        source,
                    })
            })
            .transpose()?;
        Ok(Self {
            file,
            format,
            level,
        })
    }

    pub(super) fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// What a launch had to leave out.
    pub(super) fn warnings(&self, launched: &Launched) {
        for warning in &launched.warnings {
            self.warning(warning);
        }
    }

    /// The error that ends the command; with `--log` it is repeated, bare, on stderr, as runc does.
    pub(super) fn fatal(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }

    /// A log that cannot be written must not change the outcome of the command.
    fn write(&self, level: Level, message: &str) {
        if level > self.level {
            return;
        }
        let line = self
            .format
            .line(level, message, &rfc3339(SystemTime::now()));
        let _ = match &self.file {
            Some(file) => (&**file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

impl LogFormat {
    fn line(self, level: Level, message: &str, time: &str) -> String {
        let level = level.name();
        match self {
            Self::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
            Self::Json => format!(
                "{}\n",
                json!({"level": level, "msg": message, "time": time})
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_hold_what_go_runc_reads() {
        let line = LogFormat::Json.line(Level::Error, "exec: \"x\": not found", "T");
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(parsed["level"], "error");
        assert_eq!(parsed["msg"], "exec: \"x\": not found");
    }

    #[test]
    fn text_lines_quote_their_message() {
        let line = LogFormat::Text.line(Level::Warning, "a \"b\"", "T");
        assert_eq!(line, "time=\"T\" level=warning msg=\"a \\\"b\\\"\"\n");
    }
}
