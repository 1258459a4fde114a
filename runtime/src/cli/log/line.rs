//! Lines as logrus writes them, which runc logs with.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde_json::json;

use super::Level;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum LogFormat {
    /// `time="…" level=… msg="…"`
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// One line; `time` is RFC 3339 with fractions of a second, which are left out.
    pub(super) fn line(self, level: Level, message: &str, time: &str) -> String {
        let level = level.name();
        let time = time
            .split_once('.')
            .map_or(time.to_owned(), |(seconds, _)| format!("{seconds}Z"));
        match self {
            Self::Text => format!("time=\"{time}\" level={level} msg={}\n", quoted(message)),
            Self::Json => format!(
                "{}\n",
                json!({"level": level, "msg": message, "time": time})
            ),
        }
    }
}

/// The message as Go quotes a string, unless it is one plain word.
fn quoted(message: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if message.chars().all(is_plain) {
        return message.to_owned();
    }
    let mut text = String::with_capacity(message.len() + 2);
    text.push('"');
    for c in message.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c.is_ascii_control() => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-26T22:24:44.123456789Z";

    #[test]
    fn json_lines_hold_what_go_runc_reads() {
        let line = LogFormat::Json.line(Level::Error, "exec: \"x\": not found", TIME);
        assert_eq!(
            line,
            "{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": not found\",\
             \"time\":\"2026-11-26T22:24:44Z\"}\n"
        );
    }

    #[test]
    fn text_lines_quote_what_is_more_than_a_word() {
        for (message, quoted) in [
            ("a \"b\"", r#""a \"b\"""#),
            ("word", "word"),
            ("/a/path-1.2", "/a/path-1.2"),
            ("", ""),
            ("it's", "\"it's\""),
            ("two\nlines\u{1b}", r#""two\nlines\x1b""#),
            ("größe ist", "\"größe ist\""),
        ] {
            assert_eq!(
                LogFormat::Text.line(Level::Warning, message, TIME),
                format!("time=\"2026-11-26T22:24:44Z\" level=warning msg={quoted}\n")
            );
        }
    }
}
