//! Scopes by systemd: a transient unit of its manager is the container's cgroup.
//!
//! A start costs one connection and one call. The client is blocking and small: no thread and no
//! async runtime, because whoever launches containers forks. It talks to systemd's own socket where
//! that may be used (root, or the user's manager): no bus in between, and the signal about the end
//! of a job comes unasked. Over a bus, greeting, subscription and call go out in one write.
//!
//! systemd starts a scope only with a process in it. That is a placeholder, so that init can be
//! cloned into the scope's cgroup like into any other; it is ended as soon as there is an init.

mod bus;
mod place;
mod properties;
mod value;
mod wire;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use place::Place;
pub(crate) use properties::{
    Property, from_annotations, from_devices, from_resources, is_one_task, oom_policy,
};

use super::error::{CgroupError, Result};
use bus::{Bus, accepted, failed};
use value::Value;
use wire::{Call, Message};

const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const DRIVER: &str = "org.freedesktop.DBus";
/// Signals about the end of jobs.
const MATCH: &str = "type='signal',sender='org.freedesktop.systemd1',\
                     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// A unit that systemd keeps for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) name: String,
    /// It belongs to the user's manager.
    pub(crate) user: bool,
}

/// A connection to a manager.
#[derive(Debug)]
pub(crate) struct Systemd {
    bus: Bus,
}

fn manager_call<'a>(member: &'a str, body: &'a [Value]) -> Call<'a> {
    Call {
        destination: DESTINATION,
        path: PATH,
        interface: MANAGER,
        member,
        body,
        answered: true,
    }
}

fn array_of(properties: Vec<Property>) -> Value {
    let pair = |(name, value)| Value::Struct(vec![Value::String(name), Value::variant(value)]);
    Value::Array(
        "(sv)".to_owned(),
        properties.into_iter().map(pair).collect(),
    )
}

impl Systemd {
    /// Connects to the system's manager, or to the calling user's.
    pub(crate) fn connect(user: bool) -> Result<Self> {
        // The mark of a system that systemd runs (sd_booted(3)).
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(CgroupError::NoSystemd);
        }
        let mut systemd = Self {
            bus: Bus::connect(user)?,
        };
        if !systemd.bus.direct {
            systemd.greet();
        }
        Ok(systemd)
    }

    /// Becomes a peer of the bus that hears of the ends of jobs.
    fn greet(&mut self) {
        let hello = Call {
            destination: DRIVER,
            path: "/org/freedesktop/DBus",
            interface: DRIVER,
            member: "Hello",
            body: &[],
            answered: false,
        };
        let rule = [Value::string(MATCH)];
        let add_match = Call {
            member: "AddMatch",
            body: &rule,
            ..hello
        };
        let subscribe = Call {
            answered: false,
            ..manager_call("Subscribe", &[])
        };
        self.bus.queue(&[hello, add_match, subscribe]);
    }

    /// The manager's own cgroup, below which its units are.
    pub(crate) fn control_group(&mut self) -> Result<String> {
        let body = [Value::string(MANAGER), Value::string("ControlGroup")];
        let get = Call {
            interface: "org.freedesktop.DBus.Properties",
            ..manager_call("Get", &body)
        };
        let answer = self.ask("read the cgroup of", "the manager", &get)?;
        answer
            .text()
            .map(str::to_owned)
            .ok_or_else(|| CgroupError::Systemd {
                action: "read the cgroup of the manager".to_owned(),
                reason: "it is no text".to_owned(),
            })
    }

    /// Starts a scope with the process in it and waits until it is there. A unit of that name that
    /// has failed is cleared away first; one that is active stays, and is an error.
    pub(crate) fn start_scope(
        &mut self,
        place: &Place,
        id: &str,
        pid: i32,
        further: &[Property],
    ) -> Result<()> {
        let mut properties = properties::of_scope(id, &place.slice, pid.unsigned_abs());
        properties.extend_from_slice(further);
        let body = [
            Value::string(&place.unit),
            Value::string("replace"),
            array_of(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let start = manager_call("StartTransientUnit", &body);
        let answer = match self.ask("start unit", &place.unit, &start) {
            Err(error) if error.is_unit_exists() => {
                self.reset_failed(&place.unit)?;
                self.ask("start unit", &place.unit, &start)?
            }
            answer => answer?,
        };
        match self.finish("start unit", &place.unit, &answer)?.as_str() {
            "done" => Ok(()),
            result => Err(CgroupError::Systemd {
                action: format!("start unit {}", place.unit),
                reason: format!("the job ended as {result:?}"),
            }),
        }
    }

    /// Stops a unit, whose processes are dead already, and lets systemd forget it.
    pub(crate) fn stop(&mut self, unit: &str) -> Result<()> {
        let body = [Value::string(unit), Value::string("replace")];
        match self.ask("stop unit", unit, &manager_call("StopUnit", &body)) {
            Ok(answer) => {
                self.finish("stop unit", unit, &answer)?;
            }
            Err(error) if error.is_no_such_unit() => return Ok(()),
            Err(error) => return Err(error),
        }
        self.reset_failed(unit)
    }

    /// Changes properties of a running unit, until it ends.
    pub(crate) fn set_properties(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        let body = [Value::string(unit), Value::Bool(true), array_of(properties)];
        self.ask(
            "set properties of unit",
            unit,
            &manager_call("SetUnitProperties", &body),
        )
        .map(drop)
    }

    /// Moves a process into a unit, or into a cgroup below the unit's.
    pub(crate) fn admit(&mut self, unit: &str, below: &str, pid: i32) -> Result<()> {
        let pids = vec![Value::Uint32(pid.unsigned_abs())];
        let body = [
            Value::string(unit),
            Value::string(format!("/{}", below.trim_start_matches('/'))),
            Value::Array("u".to_owned(), pids),
        ];
        let call = manager_call("AttachProcessesToUnit", &body);
        self.ask("move a process into unit", unit, &call).map(drop)
    }

    /// A unit that did not fail, or is not there, is what was wanted.
    fn reset_failed(&mut self, unit: &str) -> Result<()> {
        let body = [Value::string(unit)];
        self.bus
            .call(&manager_call("ResetFailedUnit", &body))
            .map(drop)
            .map_err(|error| failed("reset unit", unit, &error))
    }

    fn ask(&mut self, action: &str, what: &str, call: &Call<'_>) -> Result<Message> {
        let answer = self
            .bus
            .call(call)
            .map_err(|error| failed(action, what, &error))?;
        accepted(action, what, answer)
    }

    /// Waits for the job that `answer` names.
    fn finish(&mut self, action: &str, unit: &str, answer: &Message) -> Result<String> {
        let job = answer.text().unwrap_or_default();
        self.bus
            .wait_for_job(job)
            .map_err(|error| failed(action, unit, &error))
    }
}
