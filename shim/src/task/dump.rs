//! The debug service: what a shim knows of itself and its tasks, as JSON for people and programs.
//! Asking changes nothing.

use std::time::SystemTime;

use prost::Message;
use serde::{Serialize, Serializer};

use super::calls::Calls;
use super::container::Container;
use super::process::{Process, timestamp};
use super::state::State;
use super::timings::Timings;
use crate::error::{Context, Result};
use crate::io::View;
use crate::supervisor::message::Levels;
use crate::supervisor::{Exit, Insight};

/// Name of the service.
pub(crate) const SERVICE: &str = "io.xebec.debug.v1.Debug";
/// Its only method. The request is empty (`google.protobuf.Empty`), the answer a
/// `google.protobuf.StringValue` with the JSON.
pub(crate) const DUMP: &str = "Dump";

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Dump<'s> {
    pub(super) version: &'static str,
    pub(super) namespace: &'s str,
    pub(super) socket: &'s std::path::Path,
    pub(super) supervisor: Supervisor,
    pub(super) worker: Worker,
    /// Ids whose creation is under way.
    pub(super) creating: Vec<String>,
    /// The container that holds the sandbox, if this shim makes one.
    pub(super) sandbox: Option<Task>,
    pub(super) containers: Vec<Task>,
    /// The last calls, the newest at the end.
    pub(super) calls: &'s Calls,
}

#[derive(Debug, Serialize)]
pub(super) struct Supervisor {
    pub(super) pid: u32,
    #[serde(flatten)]
    pub(super) insight: Insight,
}

#[derive(Debug, Serialize)]
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) age_ms: u128,
}

/// A container.
#[derive(Debug, Serialize)]
pub(super) struct Task {
    id: String,
    bundle: std::path::PathBuf,
    /// Below the root of version 2; `null` if it has none of its own.
    cgroup: Option<String>,
    /// Kills for lack of memory; `null` where nobody counts them.
    oom_kills: Option<u64>,
    /// How long its start took; `null` if an earlier worker has made it.
    #[serde(rename = "timings_us")]
    timings: Option<Phases>,
    init: Running,
    execs: Vec<Running>,
}

#[derive(Debug, Serialize)]
struct Phases {
    #[serde(flatten)]
    timings: Timings,
    total: u32,
}

/// A process.
#[derive(Debug, Serialize)]
struct Running {
    #[serde(skip_serializing_if = "String::is_empty")]
    exec_id: String,
    pid: i32,
    state: State,
    exit: Option<Ended>,
    terminal: bool,
    streams: Vec<View>,
    /// The program that reads the streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    logger_pid: Option<i32>,
}

#[derive(Debug, Serialize)]
struct Ended {
    status: u32,
    #[serde(serialize_with = "time")]
    at: SystemTime,
}

impl From<Exit> for Ended {
    fn from(Exit { status, at }: Exit) -> Ended {
        Ended { status, at }
    }
}

impl Dump<'_> {
    /// The answer to the call.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self).context(|| "encode the state".into())?;
        Ok(json.encode_to_vec())
    }
}

impl Container {
    /// The container as it is now.
    pub(super) fn view(&self, streams: &Levels) -> Task {
        let timings = self.timings.get();
        Task {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            cgroup: self.cgroup_path().map(str::to_owned),
            oom_kills: self.oom_kills(),
            timings: timings.map(|timings| Phases {
                timings,
                total: timings.total(),
            }),
            init: self.init.view(streams),
            execs: self.execs().iter().map(|exec| exec.view(streams)).collect(),
        }
    }
}

impl Process {
    fn view(&self, streams: &Levels) -> Running {
        let io = self.io.borrow();
        Running {
            exec_id: self.exec_id.clone(),
            pid: self.pid(),
            state: self.state(),
            exit: self.exit().map(Ended::from),
            terminal: self.names.terminal,
            streams: io.view(streams),
            logger_pid: Some(io.logger_pid()).filter(|pid| *pid != 0),
        }
    }
}

/// A time in the form of RFC 3339.
pub(super) fn time<S: Serializer>(at: &SystemTime, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(&timestamp(*at))
}
