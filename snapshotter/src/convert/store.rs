//! A place with what is needed to read from it or write to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::fetch::{BlobSource, FetchedManifest, FileBlob, ImageRef, Registry};

use super::archive::{NewArchive, OpenArchive};
use super::containerd::Client;
use super::layout::Layout;
use super::place::Place;
use super::undo::Undo;

/// An opened place. A source is only read, a destination only written and asked for blobs.
pub(super) struct Store<'a> {
    pub(super) place: &'a Place,
    shelf: Shelf<'a>,
}

enum Shelf<'a> {
    Registry(&'a Registry, &'a ImageRef),
    Layout(&'a Layout, &'a Undo),
    Archive(OpenArchive),
    NewArchive(NewArchive<'a>),
    Containerd(Arc<Client>),
}

impl<'a> Store<'a> {
    /// Opens an image to read it; temporary files go into `dir`.
    pub(super) fn source(
        registry: &'a Registry,
        place: &'a Place,
        dir: &Path,
        undo: &'a Undo,
    ) -> Result<Self> {
        let shelf = match place {
            Place::Registry(image) => Shelf::Registry(registry, image),
            Place::Layout(layout) => Shelf::Layout(layout, undo),
            Place::Archive(archive) => Shelf::Archive(OpenArchive::open(archive, dir)?),
            Place::Containerd(image) => Shelf::Containerd(Arc::new(Client::connect(image)?)),
        };
        Ok(Self { place, shelf })
    }

    /// Opens a place to put an image there; `undo` hears of all that is made.
    pub(super) fn destination(
        registry: &'a Registry,
        place: &'a Place,
        undo: &'a Undo,
    ) -> Result<Self> {
        let shelf = match place {
            Place::Registry(image) => Shelf::Registry(registry, image),
            Place::Layout(layout) => Shelf::Layout(layout, undo),
            Place::Archive(archive) => Shelf::NewArchive(NewArchive::create(archive, undo)?),
            Place::Containerd(image) => Shelf::Containerd(Client::with_lease(image, undo)?),
        };
        Ok(Self { place, shelf })
    }

    /// The client and the image's name, where the place is in a registry.
    pub(super) fn as_registry(&self) -> Option<(&'a Registry, &'a ImageRef)> {
        match self.shelf {
            Shelf::Registry(registry, image) => Some((registry, image)),
            _ => None,
        }
    }

    /// The manifest or index that the place names.
    pub(super) fn manifest(&self) -> Result<FetchedManifest> {
        match &self.shelf {
            Shelf::Registry(registry, image) => registry.manifest(image),
            Shelf::Layout(layout, _) => layout.manifest(),
            Shelf::Archive(archive) => Ok(archive.manifest()),
            Shelf::Containerd(client) => client.manifest(),
            Shelf::NewArchive(_) => Err(self.is_new()),
        }
    }

    /// A further manifest of the same place.
    pub(super) fn manifest_of(&self, descriptor: &Descriptor) -> Result<FetchedManifest> {
        match &self.shelf {
            Shelf::Registry(registry, image) => {
                registry.manifest(&image.at_digest(descriptor.digest))
            }
            Shelf::Layout(layout, _) => layout.document(descriptor),
            Shelf::Archive(archive) => archive.document(descriptor),
            Shelf::Containerd(client) => client.document(&descriptor.media_type, descriptor.digest),
            Shelf::NewArchive(_) => Err(self.is_new()),
        }
    }

    /// A blob as a stream that fails at its end unless length and digest are right.
    pub(super) fn read(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(match &self.shelf {
            Shelf::Registry(registry, image) => Box::new(registry.pull(image, descriptor)),
            Shelf::Layout(layout, _) => {
                let file = layout.open(&descriptor.digest)?;
                Box::new(self.verified(file, descriptor))
            }
            Shelf::Archive(archive) => {
                let section = archive.section(&descriptor.digest)?;
                Box::new(self.verified(section, descriptor))
            }
            Shelf::Containerd(client) => {
                let content = client.read(descriptor.digest);
                Box::new(self.verified(content, descriptor))
            }
            Shelf::NewArchive(_) => return Err(self.is_new()),
        })
    }

    fn verified<R>(&self, reader: R, descriptor: &Descriptor) -> Verified<HashingReader<R>>
    where
        R: Read,
    {
        Verified {
            reader: Some(HashingReader::new(reader)),
            descriptor: descriptor.clone(),
            what: format!("blob {} of {}", descriptor.digest, self.place),
        }
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
        Ok(match &self.shelf {
            Shelf::Registry(registry, image) => {
                let blob = registry.blob(image, &descriptor.digest, descriptor.size);
                Box::new(blob.as_ref().clone())
            }
            Shelf::Layout(layout, _) => {
                let name = format!("blob {} of {layout}", descriptor.digest);
                Box::new(FileBlob::new(layout.open(&descriptor.digest)?, name)?)
            }
            Shelf::Archive(archive) => Box::new(archive.section(&descriptor.digest)?),
            Shelf::Containerd(client) => Box::new(client.blob(descriptor.digest, descriptor.size)),
            Shelf::NewArchive(_) => return Err(self.is_new()),
        })
    }

    /// A blob whose length nobody has said, as a whole; none where it is not to be had by its digest
    /// alone.
    pub(super) fn read_by_digest(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        let size = match &self.shelf {
            Shelf::Registry(registry, image) => registry.blob_size(image, digest)?,
            Shelf::Layout(layout, _) => layout.blob_size(digest),
            Shelf::Archive(archive) => archive.section(digest).ok().map(|blob| blob.size()),
            Shelf::NewArchive(_) | Shelf::Containerd(_) => None,
        };
        let Some(size) = size.filter(|size| *size <= limit) else {
            return Ok(None);
        };
        let descriptor = Descriptor {
            media_type: String::new(),
            digest: *digest,
            size,
            annotations: [].into(),
            platform: None,
            other: [].into(),
        };
        self.read_small(&descriptor, limit).map(Some)
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> Result<bool> {
        match &self.shelf {
            Shelf::Registry(registry, image) => registry.has_blob(image, digest),
            Shelf::Layout(layout, _) => Ok(layout.has_blob(digest)),
            Shelf::Archive(archive) => Ok(archive.section(digest).is_ok()),
            Shelf::NewArchive(archive) => Ok(archive.has_blob(digest)),
            Shelf::Containerd(client) => client.has_blob(digest),
        }
    }

    /// Whether a blob need not be stored. containerd is told of those that it has as well, so that
    /// our lease holds them.
    fn may_skip(&self, digest: &Digest) -> Result<bool> {
        Ok(!matches!(self.shelf, Shelf::Containerd(_)) && self.has_blob(digest)?)
    }

    /// Stores the blob in `file`, unless it is there.
    pub(super) fn put_file(&self, descriptor: &Descriptor, mut file: File) -> Result<()> {
        if self.may_skip(&descriptor.digest)? {
            return Ok(());
        }
        let rewind_error = Error::io("rewind", Path::new("temporary file"));
        file.rewind().map_err(rewind_error)?;
        match &self.shelf {
            Shelf::Registry(registry, image) => registry.push_blob(image, descriptor, file),
            Shelf::Layout(layout, undo) => layout.put_blob(&descriptor.digest, file, undo),
            Shelf::Containerd(client) => put(client, descriptor, file),
            Shelf::Archive(_) => Err(self.is_old()),
            Shelf::NewArchive(archive) => {
                archive.put_file(descriptor, file);
                Ok(())
            }
        }
    }

    pub(super) fn put_bytes(&self, content: &[u8]) -> Result<()> {
        let digest = Digest::of(content);
        if self.may_skip(&digest)? {
            return Ok(());
        }
        match &self.shelf {
            Shelf::Registry(registry, image) => registry.push_bytes(image, content),
            Shelf::Layout(layout, undo) => layout.put_blob(&digest, content, undo),
            Shelf::Containerd(client) => {
                let size = content.len() as u64;
                client.put(digest, size, content, HashMap::new())
            }
            Shelf::Archive(_) => Err(self.is_old()),
            Shelf::NewArchive(archive) => {
                archive.put_bytes(content);
                Ok(())
            }
        }
    }

    /// Brings a blob over from `source` as it is, without moving it if that can be avoided.
    pub(super) fn copy_from(
        &self,
        source: &Store<'_>,
        descriptor: &Descriptor,
        dir: &Path,
    ) -> Result<()> {
        if self.may_skip(&descriptor.digest)? {
            return Ok(());
        }
        if let (Some((registry, to)), Some((_, from))) = (self.as_registry(), source.as_registry())
            && registry.mount_blob(to, &descriptor.digest, from)?
        {
            return Ok(());
        }
        if let Shelf::Layout(layout, undo) = &self.shelf {
            return layout.put_blob(&descriptor.digest, source.read(descriptor)?, undo);
        }
        if let Shelf::Containerd(client) = &self.shelf {
            return put(client, descriptor, source.read(descriptor)?);
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
        match &self.shelf {
            Shelf::Registry(registry, image) => {
                registry.put_manifest(&image.at_digest(digest), media_type, content)
            }
            Shelf::Layout(layout, undo) => layout.put_blob(&digest, content, undo).map(|()| digest),
            Shelf::Archive(_) => Err(self.is_old()),
            Shelf::NewArchive(archive) => Ok(archive.put_bytes(content)),
            Shelf::Containerd(client) => client.put_document(media_type, content),
        }
    }

    /// Stores the manifest or index under the place's name: from here on the image is there.
    pub(super) fn put_top(&self, descriptor: Descriptor, content: &[u8]) -> Result<()> {
        match &self.shelf {
            Shelf::Registry(registry, image) => registry
                .put_manifest(image, &descriptor.media_type, content)
                .map(drop),
            Shelf::Layout(layout, undo) => {
                layout.put_blob(&descriptor.digest, content, undo)?;
                layout.put_image(descriptor, undo)
            }
            Shelf::Archive(_) => Err(self.is_old()),
            Shelf::NewArchive(archive) => archive.put_top(descriptor, content),
            Shelf::Containerd(client) => {
                client.put_document(&descriptor.media_type, content)?;
                client.put_image(&descriptor)
            }
        }
    }

    /// Whether images of an index may be missing here: containerd fetches those of its own platform.
    pub(super) fn is_partial(&self) -> bool {
        matches!(self.shelf, Shelf::Containerd(_))
    }

    fn is_new(&self) -> Error {
        Error::Internal(format!("{} is read while it is made", self.place))
    }

    fn is_old(&self) -> Error {
        Error::Internal(format!("{} is a source", self.place))
    }
}

fn put(client: &Client, descriptor: &Descriptor, content: impl Read + Send) -> Result<()> {
    let (digest, size) = (descriptor.digest, descriptor.size);
    client.put(digest, size, content, HashMap::new())
}

/// The crate's error that a stream carries, or one of its own about `what`.
pub(super) fn from_stream(error: io::Error, what: &str) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("copy", Path::new(what))(error),
    }
}

/// A blob that checks length and digest at its end.
struct Verified<R> {
    reader: Option<R>,
    descriptor: Descriptor,
    what: String,
}

impl<R: Read> Read for Verified<HashingReader<R>> {
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

impl<R: Read> Verified<HashingReader<R>> {
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
