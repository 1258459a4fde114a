//! Calls of the daemon's snapshots API, which block.

use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Status};
use xebec_proto::snapshots::snapshots_client::SnapshotsClient;
use xebec_proto::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use xebec_proto::types::Mount;

use super::plan::{PREFIX, Step};
use crate::channel;
use crate::error::{Error, Result};

/// The running daemon.
pub(super) struct Client {
    runtime: Runtime,
    snapshots: SnapshotsClient<Channel>,
    socket: PathBuf,
}

impl Client {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let (runtime, channel) = channel::connect(socket, "xebec-snapshotter")?;
        Ok(Self {
            runtime,
            snapshots: SnapshotsClient::new(channel),
            socket: socket.to_owned(),
        })
    }

    /// Has a layer made ready to be read lazily; it may be so already.
    pub(super) fn prepare(&self, step: &Step) -> Result<()> {
        let key = format!("{}+{}", step.name, std::process::id());
        let message = PrepareSnapshotRequest {
            key: key.clone(),
            parent: step.parent.clone(),
            labels: step.labels.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let mut snapshots = self.snapshots.clone();
        match self.runtime.block_on(snapshots.prepare(message)) {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.refused(&step.name, &status)),
            Ok(_) => {
                self.remove(&key)?;
                Err(Error::Unusable {
                    what: format!("layer {}", step.name.trim_start_matches(PREFIX)),
                    reason: "cannot be read lazily; the daemon's log says why".to_owned(),
                })
            }
        }
    }

    /// The mounts of a new view of `parent`.
    pub(super) fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..ViewSnapshotRequest::default()
        };
        let mut snapshots = self.snapshots.clone();
        let answer = self.runtime.block_on(snapshots.view(message));
        let answer = answer.map_err(|status| self.refused(key, &status))?;
        Ok(answer.into_inner().mounts)
    }

    /// The mounts of a view.
    pub(super) fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let message = MountsRequest {
            key: key.to_owned(),
            ..MountsRequest::default()
        };
        let mut snapshots = self.snapshots.clone();
        let answer = self.runtime.block_on(snapshots.mounts(message));
        let answer = answer.map_err(|status| self.refused(key, &status))?;
        Ok(answer.into_inner().mounts)
    }

    /// The parent of a snapshot; none when there is no such snapshot.
    pub(super) fn parent(&self, key: &str) -> Result<Option<String>> {
        let message = StatSnapshotRequest {
            key: key.to_owned(),
            ..StatSnapshotRequest::default()
        };
        let mut snapshots = self.snapshots.clone();
        match self.runtime.block_on(snapshots.stat(message)) {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.parent)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.refused(key, &status)),
        }
    }

    /// Removes a snapshot.
    pub(super) fn remove(&self, key: &str) -> Result<()> {
        self.try_remove(key)
            .map_err(|status| self.refused(key, &status))
    }

    /// Removes a layer and those below it, down to the first that others need.
    pub(super) fn remove_chain(&self, top: String) -> Result<()> {
        let mut name = top;
        while !name.is_empty() {
            let below = self.parent(&name)?.unwrap_or_default();
            match self.try_remove(&name) {
                Err(status) if status.code() == Code::FailedPrecondition => break,
                outcome => outcome.map_err(|status| self.refused(&name, &status))?,
            }
            name = below;
        }
        Ok(())
    }

    /// Removes what a failure would leave behind; what others need stays.
    pub(super) fn forget<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            match self.try_remove(key) {
                Ok(()) => {}
                Err(status) if status.code() == Code::FailedPrecondition => break,
                Err(status) => tracing::warn!(key, %status, "is left over"),
            }
        }
    }

    fn try_remove(&self, key: &str) -> std::result::Result<(), Status> {
        let message = RemoveSnapshotRequest {
            key: key.to_owned(),
            ..RemoveSnapshotRequest::default()
        };
        let mut snapshots = self.snapshots.clone();
        self.runtime.block_on(snapshots.remove(message)).map(drop)
    }

    fn refused(&self, key: &str, status: &Status) -> Error {
        Error::Unavailable {
            what: format!(
                "{} of {}",
                key.trim_start_matches(PREFIX),
                self.socket.display()
            ),
            reason: status.message().to_owned(),
        }
    }
}
