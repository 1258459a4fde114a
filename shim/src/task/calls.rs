//! The last calls, for who wants to know what was asked of a shim.

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use prost::Message;
use serde::{Serialize, Serializer};
use xebec_proto::task::{ConnectRequest, StartRequest};

use super::timings::micros;
use crate::error::Result;
use crate::log;
use crate::trace::{self, Trace};

/// How many calls are remembered.
const REMEMBERED: usize = 16;
/// Longest name that is remembered as it was sent, in bytes.
const NAME: usize = 128;

/// What was asked last, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct Calls(RefCell<VecDeque<Call>>);

/// A call that has its answer.
#[derive(Debug, Serialize)]
pub(super) struct Call {
    method: Box<str>,
    id: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    exec_id: Box<str>,
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

impl Calls {
    /// A call has got its answer.
    pub(super) fn note(
        &self,
        method: &str,
        payload: &[u8],
        took: Duration,
        result: &Result<Vec<u8>>,
    ) {
        let (id, exec_id) = subject(method, payload);
        let took_us = micros(took);
        let fields: &[log::Field<'_>] = &[
            ("id", &id),
            ("exec_id", &exec_id),
            ("duration_us", &took_us),
        ];
        let name = clipped(method);
        match result {
            Ok(_) => log::with(fields).debug(format_args!("{name}")),
            Err(error) => log::with(fields).debug(format_args!("{name} failed: {error}")),
        }
        let mut calls = self.0.borrow_mut();
        if calls.len() == REMEMBERED {
            calls.pop_front();
        }
        calls.push_back(Call {
            method: name.into(),
            id: clipped(&id).into(),
            exec_id: clipped(&exec_id).into(),
            answered: SystemTime::now(),
            took_us,
            code: result
                .as_ref()
                .map_or_else(|error| error.code() as i32, |_| 0),
            trace: Traced(trace::current()),
        });
    }

    /// All of them, the newest at the end.
    pub(super) fn all(&self) -> Ref<'_, VecDeque<Call>> {
        self.0.borrow()
    }
}

impl Serialize for Traced {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.as_deref().serialize(to)
    }
}

/// Whom a request concerns: container and exec. The container, or sandbox, is the first field of
/// every request; the exec, where there may be one, the second.
fn subject(method: &str, payload: &[u8]) -> (String, String) {
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

fn clipped(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use xebec_proto::task::{CreateTaskRequest, KillRequest};

    #[test]
    fn the_newest_calls_are_remembered_with_whom_they_concern_and_bounded() {
        let calls = Calls::default();
        let took = Duration::from_micros(5);
        let create = CreateTaskRequest {
            id: "c".into(),
            bundle: "/b".into(),
            ..Default::default()
        };
        for _ in 0..2 * REMEMBERED {
            calls.note("Create", &create.encode_to_vec(), took, &Ok(Vec::new()));
        }
        let kill = KillRequest {
            id: "c".into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        let refused = Err(Error::NotFound("process does not exist x".into()));
        calls.note("Kill", &kill.encode_to_vec(), took, &refused);
        calls.note(&"é".repeat(9999), b"\xff\xff", took, &refused);
        let all = calls.all();
        assert_eq!(all.len(), REMEMBERED);
        let json =
            serde_json::to_value(all.iter().skip(REMEMBERED - 3).collect::<Vec<_>>()).unwrap();
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
