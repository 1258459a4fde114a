//! containerd's snapshots service over gRPC: conversion of messages, nothing else.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};
use xebec_proto::prost_types;
use xebec_proto::snapshots::snapshots_server::Snapshots;
use xebec_proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as ProtoKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
    PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
    ViewSnapshotRequest, ViewSnapshotResponse,
};
use xebec_proto::types;

use super::labels::SNAPSHOT_REF;
use super::snapshotter::{Prepared, Snapshotter};
use crate::error::{Error, Result};
use crate::snapshots::mounts::Mount;
use crate::snapshots::record::{Kind, Labels, Record, Timestamp};

/// Prepare calls that may wait for registries at the same time; the blocking threads of the
/// runtime must outnumber them, so that every other call finds one.
pub const MAX_PREPARING: usize = 64;
/// Snapshots in one message of a listing, as many as containerd itself sends.
const LIST_BATCH: usize = 100;

/// The gRPC face of a [`Snapshotter`].
pub struct Service {
    snapshotter: Arc<Snapshotter>,
    preparing: Semaphore,
}

impl Service {
    /// Serves `snapshotter`.
    pub fn new(snapshotter: Arc<Snapshotter>) -> Self {
        Self {
            snapshotter,
            preparing: Semaphore::new(MAX_PREPARING),
        }
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, Status> {
        let permit = self.preparing.acquire().await;
        permit.map_err(|closed| Status::unavailable(closed.to_string()))
    }

    /// Runs `work` on a thread that may block; `what` and `key` are for the log.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        key: String,
        work: impl FnOnce(&Snapshotter, &str) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshotter = Arc::clone(&self.snapshotter);
        tokio::task::spawn_blocking(move || {
            work(&snapshotter, &key).map_err(|error| refuse(what, &key, error))
        })
        .await
        .map_err(|error| refuse(what, "", Error::Internal(error.to_string())))?
    }
}

/// Logs a failure and turns it into a status; what clients provoke in normal work is not news.
fn refuse(what: &'static str, key: &str, error: Error) -> Status {
    match error.code() {
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
            tracing::debug!(key, %error, "{what}");
        }
        _ => tracing::error!(key, %error, "{what}"),
    }
    error.into()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        // Only a layer of an image can make us wait for a registry; a container never does.
        let _permit = if labels.contains_key(SNAPSHOT_REF) {
            Some(self.permit().await?)
        } else {
            None
        };
        let prepared = self
            .run("prepare", key, move |snapshotter, key| {
                match snapshotter.prepare(key, optional(&parent), &sorted(labels))? {
                    Prepared::Mounts(mounts) => Ok(mounts),
                    Prepared::Present(name) => Err(Error::AlreadyExists(format!("layer {name}"))),
                }
            })
            .await?;
        Ok(Response::new(PrepareSnapshotResponse {
            mounts: to_proto(prepared),
        }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let mounts = self
            .run("view", key, move |snapshotter, key| {
                snapshotter.view(key, optional(&parent), &sorted(labels))
            })
            .await?;
        Ok(Response::new(ViewSnapshotResponse {
            mounts: to_proto(mounts),
        }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let mounts = self
            .run("mounts", request.into_inner().key, Snapshotter::mounts)
            .await?;
        Ok(Response::new(MountsResponse {
            mounts: to_proto(mounts),
        }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest {
            name, key, labels, ..
        } = request.into_inner();
        self.run("commit", key, move |snapshotter, key| {
            snapshotter.commit(&name, key, &sorted(labels))
        })
        .await
        .map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        self.run("remove", request.into_inner().key, Snapshotter::remove)
            .await
            .map(Response::new)
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let info = self
            .run("stat", request.into_inner().key, |snapshotter, key| {
                Ok(info(key, &snapshotter.stat(key)?))
            })
            .await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Answer<UpdateSnapshotResponse> {
        let UpdateSnapshotRequest {
            info: wanted,
            update_mask,
            ..
        } = request.into_inner();
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("no info to update"))?;
        let mask = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let info = self
            .run("update", wanted.name, move |snapshotter, key| {
                Ok(info(
                    key,
                    &snapshotter.update(key, &sorted(wanted.labels), &mask)?,
                ))
            })
            .await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let found = self
            .run("list", String::new(), move |snapshotter, _| {
                snapshotter.list(&filters)
            })
            .await?;
        let batches: Vec<_> = found
            .chunks(LIST_BATCH)
            .map(|batch| {
                let info = batch
                    .iter()
                    .map(|(name, record)| info(name, record))
                    .collect();
                Ok(ListSnapshotsResponse { info })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(batches))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let usage = self
            .run("usage", request.into_inner().key, Snapshotter::usage)
            .await?;
        let (size, inodes) = (usage.bytes.cast_signed(), usage.inodes.cast_signed());
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.run("cleanup", String::new(), |snapshotter, _| {
            snapshotter.cleanup()
        })
        .await
        .map(Response::new)
    }
}

fn optional(parent: &str) -> Option<&str> {
    Some(parent).filter(|parent| !parent.is_empty())
}

fn sorted(labels: impl IntoIterator<Item = (String, String)>) -> Labels {
    labels.into_iter().collect()
}

fn to_proto(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts
        .into_iter()
        .map(
            |Mount {
                 kind,
                 source,
                 options,
             }| types::Mount {
                r#type: kind.to_owned(),
                source,
                options,
                ..types::Mount::default()
            },
        )
        .collect()
}

fn info(name: &str, record: &Record) -> Info {
    let kind = match record.kind {
        Kind::View => ProtoKind::View,
        Kind::Active => ProtoKind::Active,
        Kind::Committed => ProtoKind::Committed,
    };
    Info {
        name: name.to_owned(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.clone().into_iter().collect(),
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.seconds.cast_signed(),
        nanos: time.nanos.cast_signed(),
    }
}
