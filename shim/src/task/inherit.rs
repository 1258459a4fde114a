//! What a worker finds of its predecessors': records put together to containers, processes and
//! streams, and what is then to be done with each.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::container::Told;
use super::keys::{self, Key};
use super::state::State;
use crate::io::{Names, Stream};
use crate::log;
use crate::supervisor::Exit;
use crate::supervisor::message::Origin;

/// What is kept of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) bundle: PathBuf,
    /// Its path below the cgroup root, once there is one.
    pub(super) cgroup: Option<String>,
    /// The end of init is not the end of all.
    pub(super) shares_pids: bool,
    pub(super) told: Told,
    /// Init is to be restored from there, and is not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restore: Option<Origin>,
    /// It is being dumped, and is frozen for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) dumping: bool,
}

/// What is kept of a process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) names: Names,
    /// The JSON of an exec's OCI Process, until it is started.
    pub(super) document: String,
    pub(super) state: State,
    /// It is being launched; whether there is a process is not known.
    pub(super) launching: bool,
    pub(super) pid: i32,
    pub(super) exit: Option<Exit>,
}

/// A container of an earlier worker.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) record: Option<ContainerRecord>,
    pub(super) oom_kills: u64,
    pub(super) processes: BTreeMap<String, InheritedProcess>,
}

/// A process of an earlier worker.
#[derive(Debug, Default)]
pub(super) struct InheritedProcess {
    pub(super) record: Option<ProcessRecord>,
    pub(super) streams: BTreeMap<String, Stream>,
}

/// All that earlier workers have left, as it comes in.
#[derive(Debug, Default)]
pub struct Inheritance {
    containers: BTreeMap<String, Inherited>,
    sandbox: Option<String>,
}

impl Inheritance {
    /// Adds one record with its descriptors.
    pub fn add(&mut self, key: &str, record: String, fds: Vec<OwnedFd>) {
        let containers = &mut self.containers;
        match keys::parse(key) {
            Some(Key::Container(id)) => {
                containers.entry(id.to_owned()).or_default().record = decode(key, &record);
            }
            Some(Key::OomKills(id)) => {
                let kills = decode(key, &record).unwrap_or(0);
                containers.entry(id.to_owned()).or_default().oom_kills = kills;
            }
            Some(Key::Process(id, exec_id)) => {
                let processes = &mut containers.entry(id.to_owned()).or_default().processes;
                processes.entry(exec_id.to_owned()).or_default().record = decode(key, &record);
            }
            Some(Key::Stream(id, exec_id, name)) => {
                let processes = &mut containers.entry(id.to_owned()).or_default().processes;
                let streams = &mut processes.entry(exec_id.to_owned()).or_default().streams;
                streams.insert(name.to_owned(), Stream { record, fds });
            }
            Some(Key::Sandbox) => self.sandbox = Some(record),
            None => log::error(format_args!("an earlier worker left {key:?}")),
        }
    }

    /// The record of the sandbox, if there is one, and the containers by their ids.
    pub(super) fn open(self) -> (Option<String>, BTreeMap<String, Inherited>) {
        (self.sandbox, self.containers)
    }
}

fn decode<T: DeserializeOwned>(key: &str, record: &str) -> Option<T> {
    serde_json::from_str(record)
        .inspect_err(|error| log::error(format_args!("record {key}: {error}")))
        .ok()
}

/// The state of an init by its record and by what the runtime says of the container: the runtime
/// may have come further than the record.
pub(super) fn reconcile(record: State, runtime: &str) -> State {
    match (record, runtime) {
        (State::Created | State::Running | State::Paused, "running") => State::Running,
        (State::Created | State::Running | State::Paused, "paused") => State::Paused,
        _ => record,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_together_by_their_keys() {
        let mut inheritance = Inheritance::default();
        let record = r#"{"bundle":"/b","cgroup":"/c","shares_pids":true,"told":"Nobody"}"#;
        let process = r#"{"names":{"stdin":"","stdout":"/o","stderr":"","terminal":false},
            "document":"","state":"Running","launching":false,"pid":7,"exit":null}"#;
        let fd = std::io::pipe().unwrap().0.into();
        for (key, record, fds) in [
            (keys::container("c"), record, vec![]),
            ("c/oom".into(), "2", vec![]),
            (keys::process("c", ""), process, vec![]),
            (keys::stream("c", "", "out"), "", vec![fd]),
            (keys::process("c", "x"), "{", vec![]),
            (keys::SANDBOX.into(), "pod", vec![]),
        ] {
            inheritance.add(&key, record.to_owned(), fds);
        }
        let (sandbox, mut containers) = inheritance.open();
        assert_eq!(sandbox.as_deref(), Some("pod"));
        let mut c = containers.remove("c").unwrap();
        assert_eq!((c.record.unwrap().bundle, c.oom_kills), ("/b".into(), 2));
        let init = c.processes.remove("").unwrap();
        assert_eq!(init.record.unwrap().pid, 7);
        assert_eq!(init.streams["out"].fds.len(), 1);
        assert!(
            c.processes["x"].record.is_none(),
            "a broken record was read"
        );
    }

    #[test]
    fn the_runtime_knows_better_how_far_a_living_container_has_come() {
        use State::{Created, Paused, Running, Stopped};
        for (record, runtime, state) in [
            (Created, "created", Created),
            (Created, "running", Running),
            (Running, "paused", Paused),
            (Paused, "running", Running),
            (Stopped, "running", Stopped),
            (Running, "stopped", Running),
        ] {
            assert_eq!(reconcile(record, runtime), state, "{record:?}, {runtime}");
        }
    }
}
