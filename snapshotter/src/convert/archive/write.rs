//! Puts an image into a new archive.
//!
//! Blobs arrive in any order and from several threads; they wait, in nameless files, until the
//! image is complete, and are written in the order of their digests: the same image gives the same
//! file. Docker's archive is an OCI layout with a `manifest.json`, as docker itself writes it now.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tempfile::NamedTempFile;

use super::{Archive, ArchiveKind, BLOBS, INDEX, LAYOUT, MANIFEST, docker};
use crate::convert::image::to_json;
use crate::convert::layout::REF_NAME;
use crate::convert::undo::Undo;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::ImageRef;
use crate::fetch::manifest::{Descriptor, Document, Index, OCI_INDEX};

/// Annotation by which containerd, and docker on top of it, name an image of an archive.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An archive that is being made.
pub(in crate::convert) struct NewArchive<'a> {
    archive: &'a Archive,
    undo: &'a Undo,
    state: Mutex<State>,
}

struct State {
    /// What becomes the archive; none once it is.
    file: Option<NamedTempFile>,
    blobs: BTreeMap<Digest, Blob>,
}

enum Blob {
    File(File, u64),
    Bytes(Vec<u8>),
}

impl<'a> NewArchive<'a> {
    /// Fails at once where the file could not be written.
    pub(in crate::convert) fn create(archive: &'a Archive, undo: &'a Undo) -> Result<Self> {
        if archive.kind == ArchiveKind::Docker
            && let Some(name) = &archive.name
        {
            ImageRef::parse(name)?;
        }
        let dir = match archive.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let state = State {
            file: Some(undo.temp_file(dir)?),
            blobs: BTreeMap::new(),
        };
        Ok(Self {
            archive,
            undo,
            state: Mutex::new(state),
        })
    }

    pub(in crate::convert) fn has_blob(&self, digest: &Digest) -> bool {
        self.state().blobs.contains_key(digest)
    }

    pub(in crate::convert) fn put_file(&self, descriptor: &Descriptor, file: File) {
        let blob = Blob::File(file, descriptor.size);
        self.state().blobs.insert(descriptor.digest, blob);
    }

    pub(in crate::convert) fn put_bytes(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let blob = Blob::Bytes(content.to_owned());
        self.state().blobs.insert(digest, blob);
        digest
    }

    /// Writes the archive: from here on the image is there.
    pub(in crate::convert) fn put_top(&self, mut top: Descriptor, content: &[u8]) -> Result<()> {
        let list = match self.archive.kind {
            ArchiveKind::Oci => None,
            ArchiveKind::Docker => Some(docker::write(self.item(&top, content)?)?),
        };
        self.put_bytes(content);
        top.annotations.extend(self.names());
        let index = Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            manifests: vec![top],
            other: BTreeMap::new(),
        };
        let index = to_json(&index)?;
        let mut state = self.state();
        let twice = || Error::Internal("an archive was written twice".into());
        let file = state.file.take().ok_or_else(twice)?;
        write(file.as_file(), &index, list.as_deref(), &mut state.blobs)
            .map_err(Error::io("write", &self.archive.path))?;
        self.undo.persist(file, &self.archive.path)
    }

    /// What the image is called in the index.
    fn names(&self) -> Vec<(String, String)> {
        let Some(name) = &self.archive.name else {
            return Vec::new();
        };
        match (self.archive.kind, ImageRef::parse(name)) {
            (ArchiveKind::Docker, Ok(image)) => {
                let tag = image.tag().unwrap_or("latest").to_owned();
                vec![
                    (IMAGE_NAME.to_owned(), image.to_string()),
                    (REF_NAME.to_owned(), tag),
                ]
            }
            _ => vec![(REF_NAME.to_owned(), name.clone())],
        }
    }

    fn item(&self, top: &Descriptor, content: &[u8]) -> Result<docker::Item> {
        let what = self.archive.to_string();
        let Document::Manifest(manifest) = Document::parse(content, &top.media_type, &what)? else {
            let reason = format!("{what} holds one image: choose its platform");
            return Err(Error::InvalidArgument(reason));
        };
        let path = |digest: &Digest| format!("{BLOBS}{}", digest.hex());
        let layers = manifest.layers.iter().map(|layer| path(&layer.digest));
        Ok(docker::Item {
            config: path(&manifest.config.digest),
            repo_tags: self
                .archive
                .name
                .iter()
                .map(|name| familiar(name))
                .collect(),
            layers: layers.collect(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name as docker shows it: without its own registry, with a tag.
fn familiar(name: &str) -> String {
    let full = ImageRef::parse(name).map_or_else(|_| name.to_owned(), |image| image.to_string());
    let short = full.strip_prefix("docker.io/").unwrap_or(&full);
    short.strip_prefix("library/").unwrap_or(short).to_owned()
}

fn write(
    file: &File,
    index: &[u8],
    list: Option<&[u8]>,
    blobs: &mut BTreeMap<Digest, Blob>,
) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, file));
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    for dir in ["blobs/", BLOBS] {
        append(&mut tar, dir, 0, io::empty())?;
    }
    for (digest, blob) in blobs {
        let name = format!("{BLOBS}{}", digest.hex());
        match blob {
            Blob::File(file, size) => {
                file.rewind()?;
                append(&mut tar, &name, *size, file)?;
            }
            Blob::Bytes(bytes) => append(&mut tar, &name, bytes.len() as u64, bytes.as_slice())?,
        }
    }
    append(&mut tar, INDEX, index.len() as u64, index)?;
    if let Some(list) = list {
        append(&mut tar, MANIFEST, list.len() as u64, list)?;
    }
    append(&mut tar, LAYOUT, layout.len() as u64, layout.as_bytes())?;
    tar.into_inner()?.flush()
}

/// An entry that says nothing of when and by whom it was made.
fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    let is_dir = name.ends_with('/');
    header.set_entry_type(if is_dir {
        tar::EntryType::Directory
    } else {
        tar::EntryType::Regular
    });
    header.set_mode(if is_dir { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, name, content.take(size))
}
