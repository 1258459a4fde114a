//! Streams survive a worker: their descriptors are with the supervisor, too. That must let go of
//! them when the worker does, or nobody would see their end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::Setting;
use crate::error::{Context, Result};
use crate::link::Link;
use crate::supervisor::message::Change;
use crate::task::keys;

/// Keeps one stream with the supervisor.
#[derive(Debug, Clone)]
pub(super) struct Keep {
    link: Arc<Link>,
    key: String,
}

impl Keep {
    pub(super) fn new(setting: &Setting, exec_id: &str, name: &str) -> Keep {
        Keep {
            link: Arc::clone(&setting.link),
            key: keys::stream(&setting.id, exec_id, name),
        }
    }

    /// Hands copies of `fds` over.
    pub(super) fn put(&self, record: &str, fds: &[&AsyncFd<OwnedFd>]) -> Result<()> {
        let fds = fds.iter().map(|fd| fd.get_ref().try_clone());
        let fds: Vec<OwnedFd> = fds
            .collect::<io::Result<_>>()
            .context(|| "duplicate a stream".into())?;
        self.commit(record, fds);
        Ok(())
    }

    /// Hands `fds` over with a record.
    pub(super) fn commit(&self, record: &str, fds: Vec<OwnedFd>) {
        let change = Change::Put {
            key: self.key.clone(),
            record: record.to_owned(),
            fds: Some(fds.len()),
        };
        self.link.commit(vec![change], fds);
    }

    /// Changes the record alone.
    pub(super) fn note(&self, record: &str) {
        let change = Change::Put {
            key: self.key.clone(),
            record: record.to_owned(),
            fds: None,
        };
        self.link.commit(vec![change], Vec::new());
    }

    /// The stream is closed.
    pub(super) fn done(&self) {
        let prefix = self.key.clone();
        self.link.commit(vec![Change::Drop { prefix }], Vec::new());
    }
}
