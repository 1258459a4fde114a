//! The container as others see it: the document that `state` and `list` print.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a container stands (runtime-spec, "State", plus runc's `paused`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its creation is under way, or was cut short.
    Creating,
    /// Init waits for `start`.
    Created,
    /// Init executes its program.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Init has exited.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container's state, field for field as `runc state` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Version of the runtime-spec that this document complies with.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// Pid of init, 0 when it is stopped.
    pub pid: i32,
    /// Where the container stands.
    pub status: Status,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339, UTC.
    pub created: String,
    /// Annotations of the bundle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the user who created it, as `list` shows it.
    pub owner: String,
}

/// The state as the runtime-spec defines it, for hooks and seccomp agents.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// What a seccomp agent is told along with the listener (runtime-spec, "Container Process State").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: SpecState<'a>,
}

impl ContainerState {
    fn spec_state(&self) -> SpecState<'_> {
        SpecState {
            oci_version: &self.oci_version,
            id: &self.id,
            status: self.status,
            pid: self.pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }

    /// The document that hooks read.
    pub(crate) fn for_hooks(&self) -> Result<Vec<u8>> {
        encode(&self.spec_state())
    }

    /// The document for a seccomp agent, about the process `pid` of this container.
    pub(crate) fn for_agent(&self, pid: i32, metadata: Option<&str>) -> Result<Vec<u8>> {
        encode(&SpecProcessState {
            oci_version: &self.oci_version,
            fds: ["seccompFd"],
            pid,
            metadata: metadata.filter(|text| !text.is_empty()),
            state: self.spec_state(),
        })
    }
}

fn encode(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::Os {
        op: "encode state".to_owned(),
        source: e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_about_the_process_and_its_container() {
        let state = ContainerState {
            oci_version: "1.3.0".into(),
            id: "c".into(),
            pid: 7,
            status: Status::Running,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            owner: "root".into(),
        };
        let state_json = r#"{"ociVersion":"1.3.0","id":"c","status":"running","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        assert_eq!(text(state.for_hooks().expect("encoded")), state_json);
        assert_eq!(
            text(state.for_agent(9, Some("m")).expect("encoded")),
            format!(
                r#"{{"ociVersion":"1.3.0","fds":["seccompFd"],"pid":9,"metadata":"m","state":{state_json}}}"#
            )
        );
    }
}
