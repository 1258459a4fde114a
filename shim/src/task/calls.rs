//! The last calls, for who wants to know what was asked of a shim: those that change something, and
//! those that were refused.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use serde::{Serialize, Serializer};
use xebec_proto::task::{ConnectRequest, StartRequest};

use super::timings::micros;
use crate::error::Error;
use crate::log;
use crate::trace::{self, Trace};

/// How many calls are remembered.
const REMEMBERED: usize = 16;
/// Longest name that is remembered as it was sent, in bytes.
const NAME: usize = 128;

/// What was asked last, the newest at the end. The memory is taken at once and used again: small
/// pieces that stay would keep the heap from shrinking after each call.
#[derive(Debug)]
pub(super) struct Calls(RefCell<VecDeque<Call>>);

impl Default for Calls {
    fn default() -> Calls {
        let unused = std::iter::repeat_with(Call::unused);
        Calls(RefCell::new(unused.take(REMEMBERED).collect()))
    }
}

/// A call that has its answer.
#[derive(Debug, Serialize)]
pub(super) struct Call {
    /// Empty in one that is not used yet.
    method: String,
    id: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    exec_id: String,
    /// When the answer was made, RFC 3339.
    #[serde(serialize_with = "super::dump::time")]
    answered: SystemTime,
    took_us: u32,
    /// Status code of gRPC; 0 is success.
    code: i32,
    #[serde(flatten)]
    trace: Traced,
}

/// The trace that a call was part of, if it said so.
#[derive(Debug)]
struct Traced(Option<Rc<Trace>>);

/// A call that has just got its answer. All names are clipped.
#[derive(Debug)]
pub(crate) struct Answered<'c> {
    pub(crate) service: &'c str,
    pub(crate) method: &'c str,
    /// The container, or sandbox, that it concerned.
    pub(crate) id: &'c str,
    /// The further process that it concerned, if any.
    pub(crate) exec_id: &'c str,
    pub(crate) asked: Instant,
    pub(crate) took: Duration,
    pub(crate) error: Option<&'c Error>,
}

impl Calls {
    /// Remembers a call.
    pub(super) fn note(&self, answered: &Answered<'_>) {
        let Answered {
            method,
            id,
            exec_id,
            took,
            error,
            ..
        } = *answered;
        let took_us = micros(took);
        let fields: &[log::Field<'_>] = &[
            ("id", &id),
            ("exec_id", &exec_id),
            ("duration_us", &took_us),
        ];
        match error {
            None => log::with(fields).debug(format_args!("{method}")),
            Some(error) => log::with(fields).debug(format_args!("{method} failed: {error}")),
        }
        if error.is_none() && is_question(method) {
            return;
        }
        let mut calls = self.0.borrow_mut();
        let Some(mut call) = calls.pop_front() else {
            return;
        };
        for (text, new) in [
            (&mut call.method, method),
            (&mut call.id, id),
            (&mut call.exec_id, exec_id),
        ] {
            text.clear();
            text.push_str(new);
        }
        call.answered = SystemTime::now();
        call.took_us = took_us;
        call.code = error.map_or(0, |error| error.code() as i32);
        call.trace = Traced(trace::current());
        calls.push_back(call);
    }
}

impl Serialize for Calls {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let calls = self.0.borrow();
        to.collect_seq(calls.iter().filter(|call| !call.method.is_empty()))
    }
}

impl Call {
    /// With room for what names usually have.
    fn unused() -> Call {
        Call {
            method: String::with_capacity(16),
            id: String::with_capacity(64),
            exec_id: String::with_capacity(64),
            answered: SystemTime::UNIX_EPOCH,
            took_us: 0,
            code: 0,
            trace: Traced(None),
        }
    }
}

impl Serialize for Traced {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.as_deref().serialize(to)
    }
}

/// True for calls that clients make all the time, and that change nothing.
fn is_question(method: &str) -> bool {
    matches!(
        method,
        "State" | "Pids" | "Stats" | "Connect" | "SandboxStatus" | "PingSandbox" | "SandboxMetrics"
    )
}

/// Whom a request concerns: container and exec. The container, or sandbox, is the first field of
/// every request; the exec, where there may be one, the second.
pub(super) fn subject(method: &str, payload: &[u8]) -> (String, String) {
    let has_exec = matches!(
        method,
        "Start" | "Delete" | "State" | "Wait" | "Kill" | "Exec" | "ResizePty" | "CloseIO"
    );
    // What does not decode was refused for it.
    if has_exec {
        let request = StartRequest::decode(payload).unwrap_or_default();
        (request.id, request.exec_id)
    } else {
        let request = ConnectRequest::decode(payload).unwrap_or_default();
        (request.id, String::new())
    }
}

/// A name as far as it is remembered and told.
pub(super) fn clipped(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use xebec_proto::task::{CreateTaskRequest, KillRequest};

    #[test]
    fn the_newest_calls_are_remembered_with_whom_they_concern_and_bounded() {
        let calls = Calls::default();
        assert_eq!(serde_json::to_string(&calls).unwrap(), "[]");
        let create = CreateTaskRequest {
            id: "c".into(),
            bundle: "/b".into(),
            ..Default::default()
        };
        let note = |method: &str, payload: &[u8], error| {
            let (id, exec_id) = subject(method, payload);
            calls.note(&Answered {
                service: "s",
                method: clipped(method),
                id: &id,
                exec_id: &exec_id,
                asked: Instant::now(),
                took: Duration::from_micros(5),
                error,
            });
        };
        for _ in 0..2 * REMEMBERED {
            note("Create", &create.encode_to_vec(), None);
        }
        let kill = KillRequest {
            id: "c".into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        let refused = Error::NotFound("process does not exist x".into());
        note("Kill", &kill.encode_to_vec(), Some(&refused));
        note("State", &kill.encode_to_vec(), None);
        note(&"é".repeat(9999), b"\xff\xff", Some(&refused));
        let json = serde_json::to_value(&calls).unwrap();
        let json = json.as_array().unwrap();
        assert_eq!(json.len(), REMEMBERED);
        let json = &json[REMEMBERED - 3..];
        assert_eq!((&json[0]["id"], &json[0]["code"]), (&"c".into(), &0.into()));
        assert_eq!(json[0].get("exec_id"), None);
        assert_eq!(json[1]["exec_id"], "x");
        assert_eq!(
            (&json[1]["code"], &json[1]["took_us"]),
            (&5.into(), &5.into())
        );
        assert!(json[2]["method"].as_str().unwrap().len() <= NAME);
    }
}
