//! Lines for containerd's log: the daemon's standard error is the fifo that containerd reads.
//! They have logrus' text form, `time="…" level=… msg="…" key=value`, as those of containerd.
//!
//! Writing never blocks and never fails the caller; a full or abandoned fifo loses the line, and
//! the next one that comes through tells how many were lost. A line is one write that a fifo takes
//! whole or not at all, so that those of supervisor and worker never mix.

use std::fmt::{self, Display, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use crate::trace;

static DEBUG: AtomicBool = AtomicBool::new(false);
static NAMESPACE: OnceLock<String> = OnceLock::new();
/// Lines that found no room since the last that did.
static LOST: AtomicU32 = AtomicU32::new(0);

/// Most bytes of a message and of a field's value: with all fields a line is shorter than the 4096
/// bytes that a pipe takes whole.
const MESSAGE: usize = 1536;
const VALUE: usize = 256;

/// What a line tells beside its message, by name.
pub type Field<'a> = (&'static str, &'a dyn Display);

/// Fields for the line that follows.
#[derive(Clone, Copy)]
pub struct Fields<'a>(&'a [Field<'a>]);

/// Has every line say that it is about the containerd namespace `namespace`.
pub fn name_namespace(namespace: &str) {
    // It is the same one each time.
    let _ = NAMESPACE.set(namespace.to_owned());
}

/// Lets [`debug`] through.
pub fn enable_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

/// A line with fields: `id` is a container, `exec_id` one of its further processes.
pub fn with<'a>(fields: &'a [Field<'a>]) -> Fields<'a> {
    Fields(fields)
}

/// Something failed that nobody is waiting for.
pub fn error(message: fmt::Arguments<'_>) {
    with(&[]).error(message);
}

/// Something is odd, but the work went on.
pub fn warn(message: fmt::Arguments<'_>) {
    with(&[]).warn(message);
}

/// Detail for `-debug`.
pub fn debug(message: fmt::Arguments<'_>) {
    with(&[]).debug(message);
}

impl Fields<'_> {
    /// See [`error`].
    pub fn error(self, message: fmt::Arguments<'_>) {
        line("error", self.0, message);
    }

    /// See [`warn`].
    pub fn warn(self, message: fmt::Arguments<'_>) {
        line("warning", self.0, message);
    }

    /// See [`debug`].
    pub fn debug(self, message: fmt::Arguments<'_>) {
        if DEBUG.load(Ordering::Relaxed) {
            line("debug", self.0, message);
        }
    }
}

fn line(level: &str, fields: &[Field<'_>], message: fmt::Arguments<'_>) {
    let lost = LOST.swap(0, Ordering::Relaxed);
    let trace = trace::current();
    let mut all: Vec<Field<'_>> = Vec::new();
    if let Some(namespace) = NAMESPACE.get() {
        all.push(("namespace", namespace));
    }
    all.extend(fields);
    if let Some(trace) = &trace {
        all.push(("traceparent", &trace.parent));
        all.push(("tracestate", &trace.state));
    }
    if lost > 0 {
        all.push(("lost_lines", &lost));
    }
    let text = render(SystemTime::now(), level, &message.to_string(), &all);
    if rustix::io::write(rustix::stdio::stderr(), text.as_bytes()) != Ok(text.len()) {
        LOST.fetch_add(lost.saturating_add(1), Ordering::Relaxed);
    }
}

/// One line as logrus writes it, without the fields that are empty.
fn render(now: SystemTime, level: &str, message: &str, fields: &[Field<'_>]) -> String {
    let time = prost_types::Timestamp::from(now);
    let mut text = format!("time=\"{time}\" level={level} msg=");
    quote(&mut text, message, MESSAGE);
    for (name, value) in fields {
        let value = value.to_string();
        if value.is_empty() {
            continue;
        }
        text.push(' ');
        text.push_str(name);
        text.push('=');
        if is_plain(&value) && value.len() <= VALUE {
            text.push_str(&value);
        } else {
            quote(&mut text, &value, VALUE);
        }
    }
    text.push('\n');
    text
}

/// True for what logrus leaves without quotes.
fn is_plain(value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte);
    value.bytes().all(is_plain)
}

/// Quotes a text as Go does, and cuts it off after `most` bytes.
fn quote(text: &mut String, value: &str, most: usize) {
    let end = text.len() + most;
    text.push('"');
    for character in value.chars() {
        if text.len() >= end {
            text.push('…');
            break;
        }
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            // Writing to a string cannot fail.
            control if control.is_control() => drop(write!(text, "\\u{:04x}", control as u32)),
            character => text.push(character),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_has_logrus_form_with_fields_after_the_message() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let line = render(
            now,
            "error",
            "no \"room\"\nleft\u{1}",
            &[
                ("namespace", &"k8s.io"),
                ("id", &"a b"),
                ("exec_id", &""),
                ("start_us", &7),
            ],
        );
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:01.500Z\" level=error \
             msg=\"no \\\"room\\\"\\nleft\\u0001\" namespace=k8s.io id=\"a b\" start_us=7\n"
        );
    }

    #[test]
    fn whatever_comes_in_a_line_is_one_write_of_a_pipe() {
        let long = "\u{7}\"é".repeat(10_000);
        let fields: Vec<Field<'_>> = [
            "namespace",
            "id",
            "exec_id",
            "method",
            "code",
            "traceparent",
            "tracestate",
            "lost_lines",
        ]
        .map(|name| (name, &long as &dyn Display))
        .into();
        let line = render(SystemTime::now(), "warning", &long, &fields);
        assert!(line.len() <= 4096, "{}", line.len());
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with("…\"\n"), "{line}");
    }
}
