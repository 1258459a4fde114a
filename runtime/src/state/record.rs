//! What is kept about a container between two commands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::process::ProcessFacts;
use super::{ContainerId, ContainerState, Status};
use crate::cgroup::systemd::Unit;
use crate::plan::CommonPlan;
use crate::resctrl;
use crate::spec::SPEC_VERSION;

/// Content of `state.json`, written before anything of the container exists and once more when
/// init does; so whatever a killed command leaves behind can be found from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    /// The configuration, when it is not the bundle's own.
    #[serde(
        default,
        rename = "configFile",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) config: Option<PathBuf>,
    pub(crate) rootfs: PathBuf,
    /// The kernel's number of the mount there, when it is in the mount namespace of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root_mount: Option<u64>,
    /// RFC 3339.
    pub(crate) created: String,
    /// User id of the creator.
    pub(crate) owner: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Full path of the cgroup's directory; empty when the container has none of its own.
    pub(crate) cgroup: PathBuf,
    /// The unit that systemd keeps for the cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Unit>,
    /// `CLONE_NEW*` bits of the namespaces that a further process has to enter.
    pub(crate) namespaces: u64,
    /// Init is the first process of a pid namespace, so that all others die with it.
    #[serde(default)]
    pub(crate) private_pids: bool,
    /// Init is in a session keyring of the container.
    pub(crate) keyring: bool,
    /// What later processes get as well as init.
    #[serde(default, skip_serializing_if = "CommonPlan::is_empty")]
    pub(crate) common: CommonPlan,
    /// Who is told of each process whose filter has a listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seccomp_agent: Option<AgentAddress>,
    /// The groups of cache and memory bandwidth control that the processes are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resctrl: Option<resctrl::Membership>,
    /// Pid of init, 0 until there is one.
    pub(crate) pid: i32,
    /// Start time of init, so that nobody else is taken for it.
    pub(crate) start_time: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststop: Vec<Hook>,
}

/// A seccomp agent, from the profile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AgentAddress {
    pub(crate) path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<String>,
}

impl Record {
    /// What is left of a container whose record is damaged: its name and its cgroup.
    pub(crate) fn of_damaged(id: ContainerId, cgroup: PathBuf) -> Self {
        Self {
            id,
            bundle: PathBuf::new(),
            config: None,
            rootfs: PathBuf::new(),
            root_mount: None,
            created: String::new(),
            owner: 0,
            annotations: BTreeMap::new(),
            cgroup,
            // Without processes systemd lets go of a scope by itself.
            unit: None,
            namespaces: 0,
            private_pids: false,
            keyring: false,
            pid: 0,
            start_time: 0,
            common: CommonPlan::default(),
            seccomp_agent: None,
            resctrl: None,
            poststart: Vec::new(),
            poststop: Vec::new(),
        }
    }

    /// Whether init runs (a zombie does not).
    pub(crate) fn init_is_alive(&self) -> bool {
        self.pid > 0
            && ProcessFacts::of(self.pid)
                .is_some_and(|facts| !facts.dead && facts.start_time == self.start_time)
    }

    /// The document for `state`, `list` and hooks.
    pub(crate) fn view(&self, status: Status) -> ContainerState {
        ContainerState {
            oci_version: SPEC_VERSION.to_owned(),
            id: self.id.to_string(),
            pid: if status == Status::Stopped {
                0
            } else {
                self.pid
            },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: user_name(self.owner),
        }
    }
}

/// Name of a user of the host, or the number when it has none.
fn user_name(uid: u32) -> String {
    if uid == 0 {
        return "root".to_owned();
    }
    let wanted = uid.to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == wanted).then(|| name.to_owned())
    });
    name.unwrap_or(wanted)
}
