//! Images in containerd's own stores, by its API: content, images, and leases.
//!
//! What is written is held by a lease until the image names it; labels then tell containerd's
//! collector what belongs to what.

mod client;
mod transfer;

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

pub(super) use client::Client;

/// An image in containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdImage {
    /// Its name there, to the letter.
    pub name: String,
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
}

impl ContainerdImage {
    /// The image `name` at the usual socket, in the namespace that `ctr` takes.
    pub(super) fn parse(name: &str) -> Result<Self> {
        if name.is_empty() || name.chars().any(char::is_whitespace) {
            return Err(Error::InvalidArgument(format!(
                "containerd:{name} is not containerd:NAME"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "default".to_owned(),
        })
    }
}

impl fmt::Display for ContainerdImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "containerd:{}", self.name)
    }
}
