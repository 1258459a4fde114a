//! What the daemon is doing, as one JSON document for whoever connects to its status socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::HostHealth;
use crate::mount::{LayerId, Lazy};
use crate::service::{DiskUse, LayerState, Snapshotter};
use crate::snapshots::record::{Kind, Timestamp};
use crate::store::{Limits, Sealer, Sealing};
use crate::timeline::Start;

/// A client that does not read is dropped after this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest request that is read: the layers of one image.
const MAX_REQUEST: u64 = 64 << 10;

/// The whole report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it began to serve.
    pub since: Timestamp,
    /// Everything it keeps is below this directory.
    pub root: PathBuf,
    /// Whether files of the store are sealed.
    #[serde(default)]
    pub fs_verity: Sealing,
    /// Every snapshot, by name.
    pub snapshots: Vec<SnapshotLine>,
    /// Every lazy layer that a snapshot uses, by digest.
    pub layers: Vec<LayerLine>,
    /// Every mounted lazy tree.
    pub mounts: Vec<MountLine>,
    /// Every registry host that was asked for something.
    pub registries: Vec<HostHealth>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLine {
    /// Name under which containerd's metadata knows it.
    pub name: String,
    /// The snapshot it builds on.
    pub parent: Option<String>,
    /// Its state.
    pub kind: Kind,
    /// The layer that is read lazily; absent for an ordinary snapshot.
    pub layer: Option<String>,
}

/// One lazy layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerLine {
    /// Digest of its blob.
    pub digest: String,
    /// How much of it is on this node.
    #[serde(flatten)]
    pub state: LayerState,
}

/// One mounted tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountLine {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The active snapshots and views that use it.
    pub used_by: Vec<String>,
}

/// What may be asked besides the status, which is asked for by nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Layers that are to be fetched whole.
    #[serde(default)]
    pub fill: Vec<Digest>,
    /// A snapshot, an image or the digest of a topmost layer, whose last start is to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<String>,
    /// Whether disk use is asked for.
    #[serde(default)]
    pub du: bool,
}

/// How it went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What went wrong; absent if nothing did.
    pub error: Option<String>,
    /// The start that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Start>,
    /// The disk use that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub du: Option<DiskUse>,
    /// The layers that are whole now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filled: Vec<LayerLine>,
}

/// What was asked for.
enum Found {
    Filled(Vec<LayerLine>),
    Timeline(Start),
    Du(DiskUse),
}

/// Fetches layers side by side.
fn fill(lazy: &Lazy, layers: &[Digest]) -> Result<(), String> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = layers
            .iter()
            .map(|layer| scope.spawn(|| lazy.fill((*layer).into())))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(filled) => filled.map_err(|error| error.to_string()),
                Err(_) => Err("a thread has died".to_owned()),
            })
    })
}

/// The status socket beside the socket of containerd.
pub fn socket_path(address: &Path) -> PathBuf {
    address.with_extension("status")
}

/// Answers connections on the status socket.
pub(super) struct Reporter {
    snapshotter: Arc<Snapshotter>,
    lazy: Option<Arc<Lazy>>,
    root: PathBuf,
    since: Timestamp,
    limits: Limits,
}

impl Reporter {
    pub(super) fn new(
        config: &Config,
        lazy: Option<Arc<Lazy>>,
        snapshotter: Arc<Snapshotter>,
    ) -> Self {
        Self {
            snapshotter,
            lazy,
            root: config.root.clone(),
            since: Timestamp::now(),
            limits: (&config.store).into(),
        }
    }

    /// Accepts for ever.
    pub(super) async fn serve(self, listener: UnixListener) {
        let reporter = Arc::new(self);
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    tokio::spawn(Arc::clone(&reporter).answer(client));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the status socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, mut client: UnixStream) {
        let mut request = String::new();
        let mut bounded = (&mut client).take(MAX_REQUEST);
        let read = bounded.read_to_string(&mut request);
        if !matches!(tokio::time::timeout(PATIENCE, read).await, Ok(Ok(_))) {
            return tracing::debug!("a status client says nothing");
        }
        let answer = move || {
            if request.trim().is_empty() {
                self.report()
            } else {
                self.obey(&request)
            }
        };
        let report = tokio::task::spawn_blocking(answer).await;
        let text = match report {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return tracing::error!(%error, "report the status"),
            Err(error) => return tracing::error!(%error, "report the status"),
        };
        let write = tokio::time::timeout(PATIENCE, client.write_all(text.as_bytes())).await;
        if let Ok(Err(error)) = write {
            tracing::debug!(%error, "status client went away");
        }
    }

    fn obey(&self, request: &str) -> Result<String> {
        let obeyed = match (serde_json::from_str::<Request>(request), &self.lazy) {
            (Err(error), _) => Err(format!("the request is not understood: {error}")),
            (Ok(_), None) => Err("lazy mounts are switched off".to_owned()),
            (Ok(request), Some(_)) if request.du => {
                let found = self.snapshotter.disk_use(&self.limits);
                found.map(Found::Du).map_err(|error| error.to_string())
            }
            (Ok(request), Some(lazy)) => match request.timeline {
                Some(name) => self.timeline(lazy, &name).map(Found::Timeline),
                None => fill(lazy, &request.fill).map(|()| self.filled(lazy, &request.fill)),
            },
        };
        let mut answer = Answer::default();
        match obeyed {
            Ok(Found::Filled(layers)) => answer.filled = layers,
            Ok(Found::Timeline(start)) => answer.timeline = Some(start),
            Ok(Found::Du(found)) => answer.du = Some(found),
            Err(error) => answer.error = Some(error),
        }
        serde_json::to_string(&answer)
            .map_err(|error| Error::Internal(format!("encode the answer: {error}")))
    }

    /// The layers that have data of their own.
    fn filled(&self, lazy: &Lazy, layers: &[Digest]) -> Found {
        let layers = layers.iter().map(|layer| LayerId::from(*layer));
        let kept = layers.filter(|layer| lazy.contains(*layer));
        Found::Filled(kept.map(|layer| self.layer(layer)).collect())
    }

    fn layer(&self, layer: LayerId) -> LayerLine {
        let state = self.snapshotter.layer(layer).unwrap_or_else(|error| {
            // One unreadable layer must not hide all the others.
            tracing::warn!(%layer, %error, "report a layer");
            LayerState::default()
        });
        LayerLine {
            digest: layer.to_string(),
            state,
        }
    }

    fn timeline(&self, lazy: &Lazy, name: &str) -> Result<Start, String> {
        let top = self.snapshotter.top_layer(name);
        let start = match top {
            Some(top) => lazy.timeline(&top.to_string()),
            None => lazy.timeline(name),
        };
        start.ok_or_else(|| format!("no start of {name} is remembered"))
    }

    fn report(&self) -> Result<String> {
        let mut snapshots = Vec::new();
        let mut layers = BTreeMap::new();
        let mut mounts: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for ((name, record), tree) in self.snapshotter.overview()? {
            if let Some(tree) = tree {
                mounts.entry(tree).or_default().push(name.clone());
            }
            if let Some(layer) = record.layer {
                layers.insert(layer, self.layer(layer));
            }
            snapshots.push(SnapshotLine {
                name,
                parent: record.parent,
                kind: record.kind,
                layer: record.layer.map(|layer| layer.to_string()),
            });
        }
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            root: self.root.clone(),
            fs_verity: self
                .lazy
                .as_deref()
                .map(Lazy::sealer)
                .map(Sealer::sealing)
                .unwrap_or_default(),
            snapshots,
            layers: layers.into_values().collect(),
            mounts: mounts
                .into_iter()
                .map(|(path, used_by)| MountLine { path, used_by })
                .collect(),
            registries: self.lazy.as_deref().map(Lazy::health).unwrap_or_default(),
        };
        serde_json::to_string(&report)
            .map_err(|error| Error::Internal(format!("encode the status: {error}")))
    }
}
