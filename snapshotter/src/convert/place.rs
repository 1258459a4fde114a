//! Where images come from and go to: registries and OCI layouts, under one face.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::str::FromStr;

use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::fetch::{BlobSource, FetchedManifest, FileBlob, ImageRef, Registry};

use super::layout::Layout;

/// An image's place, as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `HOST/NAME:TAG`.
    Registry(ImageRef),
    /// `oci:DIR[:NAME]`.
    Layout(Layout),
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("oci:") {
            return Layout::parse(rest).map(Self::Layout);
        }
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        ImageRef::parse(reference).map(Self::Registry)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => image.fmt(f),
            Self::Layout(layout) => layout.fmt(f),
        }
    }
}

/// A place, and the client to reach it by.
#[derive(Clone, Copy)]
pub(super) struct Store<'a> {
    pub(super) registry: &'a Registry,
    pub(super) place: &'a Place,
}

impl Store<'_> {
    /// The manifest or index that the place names.
    pub(super) fn manifest(&self) -> Result<FetchedManifest> {
        match self.place {
            Place::Registry(image) => self.registry.manifest(image),
            Place::Layout(layout) => layout.manifest(),
        }
    }

    /// A further manifest of the same place.
    pub(super) fn manifest_of(&self, descriptor: &Descriptor) -> Result<FetchedManifest> {
        match self.place {
            Place::Registry(image) => self.registry.manifest(&image.at_digest(descriptor.digest)),
            Place::Layout(layout) => layout.document(descriptor),
        }
    }

    /// A blob as a stream that fails at its end unless length and digest are right.
    pub(super) fn read(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(match self.place {
            Place::Registry(image) => Box::new(self.registry.pull(image, descriptor)),
            Place::Layout(layout) => Box::new(VerifiedFile {
                reader: Some(HashingReader::new(layout.open(&descriptor.digest)?)),
                descriptor: descriptor.clone(),
                what: format!("blob {} of {layout}", descriptor.digest),
            }),
        })
    }

    /// A small blob as a whole; larger than `limit` bytes is an error.
    pub(super) fn read_small(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let what = format!("blob {} of {}", descriptor.digest, self.place);
        if descriptor.size > limit {
            let reason = format!(
                "{} bytes are more than the limit of {limit}",
                descriptor.size
            );
            return Err(Error::Malformed { what, reason });
        }
        let mut bytes = Vec::with_capacity(descriptor.size as usize);
        self.read(descriptor)?
            .read_to_end(&mut bytes)
            .map_err(|error| from_stream(error, &what))?;
        Ok(bytes)
    }

    /// A blob by ranges.
    pub(super) fn ranges(&self, descriptor: &Descriptor) -> Result<Box<dyn BlobSource>> {
        Ok(match self.place {
            Place::Registry(image) => {
                let blob = self
                    .registry
                    .blob(image, &descriptor.digest, descriptor.size);
                Box::new(blob.as_ref().clone())
            }
            Place::Layout(layout) => {
                let name = format!("blob {} of {layout}", descriptor.digest);
                Box::new(FileBlob::new(layout.open(&descriptor.digest)?, name)?)
            }
        })
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> Result<bool> {
        match self.place {
            Place::Registry(image) => self.registry.has_blob(image, digest),
            Place::Layout(layout) => Ok(layout.has_blob(digest)),
        }
    }

    /// Stores the blob in `file`, unless it is there.
    pub(super) fn put_file(&self, descriptor: &Descriptor, mut file: File) -> Result<()> {
        if self.has_blob(&descriptor.digest)? {
            return Ok(());
        }
        match self.place {
            Place::Registry(image) => self.registry.push_blob(image, descriptor, file),
            Place::Layout(layout) => {
                file.rewind()
                    .map_err(Error::io("rewind", Path::new("temporary file")))?;
                layout.put_blob(&descriptor.digest, file)
            }
        }
    }

    pub(super) fn put_bytes(&self, content: &[u8]) -> Result<()> {
        let digest = Digest::of(content);
        if self.has_blob(&digest)? {
            return Ok(());
        }
        match self.place {
            Place::Registry(image) => self.registry.push_bytes(image, content),
            Place::Layout(layout) => layout.put_blob(&digest, content),
        }
    }

    /// Brings a blob over from `source` as it is, without moving it if that can be avoided.
    pub(super) fn copy_from(
        &self,
        source: &Store<'_>,
        descriptor: &Descriptor,
        dir: &Path,
    ) -> Result<()> {
        if self.has_blob(&descriptor.digest)? {
            return Ok(());
        }
        if let (Place::Registry(to), Place::Registry(from)) = (self.place, source.place)
            && self.registry.mount_blob(to, &descriptor.digest, from)?
        {
            return Ok(());
        }
        let mut file =
            tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
        let what = format!("blob {} of {}", descriptor.digest, source.place);
        io::copy(&mut source.read(descriptor)?, &mut file)
            .map_err(|error| from_stream(error, &what))?;
        self.put_file(descriptor, file)
    }

    /// Stores a manifest that an index will name.
    pub(super) fn put_part(&self, media_type: &str, content: &[u8]) -> Result<Digest> {
        let digest = Digest::of(content);
        match self.place {
            Place::Registry(image) => {
                self.registry
                    .put_manifest(&image.at_digest(digest), media_type, content)
            }
            Place::Layout(layout) => layout.put_blob(&digest, content).map(|()| digest),
        }
    }

    /// Stores the manifest or index under the place's name: from here on the image is there.
    pub(super) fn put_top(&self, descriptor: Descriptor, content: &[u8]) -> Result<()> {
        match self.place {
            Place::Registry(image) => self
                .registry
                .put_manifest(image, &descriptor.media_type, content)
                .map(drop),
            Place::Layout(layout) => {
                layout.put_blob(&descriptor.digest, content)?;
                layout.put_image(descriptor)
            }
        }
    }
}

/// The crate's error that a stream carries, or one of its own about `what`.
pub(super) fn from_stream(error: io::Error, what: &str) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("copy", Path::new(what))(error),
    }
}

/// A blob's file that checks length and digest at its end.
struct VerifiedFile {
    reader: Option<HashingReader<File>>,
    descriptor: Descriptor,
    what: String,
}

impl Read for VerifiedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(reader) = &mut self.reader else {
            return Ok(0);
        };
        let count = reader.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.finish().map_err(io::Error::other)?;
        }
        Ok(count)
    }
}

impl VerifiedFile {
    fn finish(&mut self) -> Result<()> {
        let Some(reader) = self.reader.take() else {
            return Ok(());
        };
        let (_, digest, length) = reader.finish();
        if length != self.descriptor.size {
            let reason = format!(
                "has {length} bytes, its manifest says {}",
                self.descriptor.size
            );
            return Err(Error::Malformed {
                what: self.what.clone(),
                reason,
            });
        }
        self.descriptor.digest.expect(digest, &self.what)
    }
}
