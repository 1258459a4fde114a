//! What the supervisor has of a stream survives the worker: most streams as a whole, as it copies
//! them, and of those that a logger reads the descriptors.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::Setting;
use crate::link::Link;
use crate::supervisor::message::{Change, Copying, Opens};
use crate::task::keys;

/// One stream of a process, at the supervisor.
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

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Has the stream copied.
    pub(super) fn copy(&self, copying: Copying, from: OwnedFd, to: OwnedFd) {
        self.link.copy(&self.key, copying, vec![from, to]);
    }

    /// Has an output copied to a fifo.
    pub(super) fn copy_to_fifo(&self, copying: Copying, from: OwnedFd, fifo: PathBuf) {
        let opens = Some(Opens::Target(fifo));
        let copying = Copying { opens, ..copying };
        self.link.copy(&self.key, copying, vec![from]);
    }

    /// Has an input copied from a fifo.
    pub(super) fn copy_from_fifo(&self, copying: Copying, fifo: PathBuf, to: OwnedFd) {
        let opens = Some(Opens::Source(fifo));
        let copying = Copying { opens, ..copying };
        self.link.copy(&self.key, copying, vec![to]);
    }

    /// Ends the stream once what has been written to it so far is through.
    pub(super) fn close(&self) {
        self.link.close_input(&self.key);
    }

    /// Resizes the terminal that the stream comes from; in characters.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        self.link.resize(&self.key, columns, rows);
    }

    /// Hands `fds` over; a record of their process comes with its launch.
    pub(super) fn commit(&self, fds: Vec<OwnedFd>) {
        let change = Change::Put {
            key: self.key.clone(),
            record: String::new(),
            fds: Some(fds.len()),
        };
        self.link.commit(vec![change], fds);
    }

    /// The stream is closed.
    pub(super) fn done(&self) {
        let prefix = self.key.clone();
        self.link.commit(vec![Change::Drop { prefix }], Vec::new());
    }
}
