//! Images in one file: an OCI layout in a tar archive, or what `docker save` writes.
//!
//! `read` finds documents and blobs in a file without unpacking it, `docker` knows docker's
//! `manifest.json`, `write` puts an image into a new file.

mod docker;
mod read;
mod write;

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

pub(super) use read::OpenArchive;
pub(super) use write::NewArchive;

/// How an image is laid out in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// An OCI layout.
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// An archive, and the image in it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// How it is laid out.
    pub kind: ArchiveKind,
    /// The file.
    pub path: PathBuf,
    /// The image's name; none stands for the only one.
    pub name: Option<String>,
}

impl ArchiveKind {
    /// The word before the colon.
    fn transport(self) -> &'static str {
        match self {
            Self::Oci => "oci-archive",
            Self::Docker => "docker-archive",
        }
    }
}

impl Archive {
    /// Parses `FILE[:NAME]`; as in skopeo's transports, names may hold colons and files may not.
    pub(super) fn parse(kind: ArchiveKind, text: &str) -> Result<Self> {
        let (path, name) = match text.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (text, None),
        };
        if path.is_empty() || name == Some("") {
            let transport = kind.transport();
            return Err(Error::InvalidArgument(format!(
                "{transport}:{text} is not {transport}:FILE[:NAME]"
            )));
        }
        Ok(Self {
            kind,
            path: path.into(),
            name: name.map(str::to_owned),
        })
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.transport(), self.path.display())?;
        self.name
            .as_ref()
            .map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

/// Name of the file that says which images a layout has.
const INDEX: &str = "index.json";
/// Marks a layout.
const LAYOUT: &str = "oci-layout";
/// Docker's list of images.
const MANIFEST: &str = "manifest.json";
/// Directory of the blobs.
const BLOBS: &str = "blobs/sha256/";

#[cfg(test)]
mod tests;
