//! OCI image layouts: directories with `oci-layout`, `index.json` and `blobs/sha256/`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::undo::Undo;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::FetchedManifest;
use crate::fetch::manifest::{Descriptor, Document, Index, MAX_MANIFEST, OCI_INDEX};

/// Annotation in `index.json` that holds an image's name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout, and the image in it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory.
    pub dir: PathBuf,
    /// The image's name; none stands for the only one.
    pub name: Option<String>,
}

impl Layout {
    /// Parses `DIR[:NAME]`.
    pub fn parse(text: &str) -> Result<Self> {
        let (dir, name) = match text.rsplit_once(':') {
            Some((dir, name)) if !name.contains('/') => (dir, Some(name)),
            _ => (text, None),
        };
        if dir.is_empty() || name == Some("") {
            return Err(Error::InvalidArgument(format!(
                "oci:{text} is not oci:DIR[:NAME]"
            )));
        }
        Ok(Self {
            dir: dir.into(),
            name: name.map(str::to_owned),
        })
    }

    /// The named image, or the only one.
    pub(super) fn manifest(&self) -> Result<FetchedManifest> {
        let index = self.read_index()?;
        let what = format!("oci:{}", self.dir.display());
        let descriptor = select(&index, self.name.as_deref(), &what)?;
        self.document(descriptor)
    }

    /// The manifest or index of `descriptor`.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<FetchedManifest> {
        let path = self.blob_path(&descriptor.digest);
        let mut bytes = Vec::new();
        self.open(&descriptor.digest)?
            .take(MAX_MANIFEST as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        if bytes.len() > MAX_MANIFEST {
            let reason = format!("larger than {MAX_MANIFEST} bytes");
            return Err(Error::Malformed {
                what: path.display().to_string(),
                reason,
            });
        }
        descriptor
            .digest
            .verify(&bytes, &path.display().to_string())?;
        let media_type = descriptor.media_type.clone();
        Ok(FetchedManifest {
            media_type,
            digest: descriptor.digest,
            bytes,
        })
    }

    /// The blob's file.
    pub(super) fn open(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(format!("blob {digest} in {self}")),
            _ => Error::io("open", &path)(error),
        })
    }

    /// Length of a blob in bytes, if it is there.
    pub(super) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.blob_path(digest)).ok();
        metadata.map(|metadata| metadata.len())
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Stores `content`, which must have `digest`; the blob is there as a whole or not at all.
    pub(super) fn put_blob(
        &self,
        digest: &Digest,
        mut content: impl Read,
        undo: &Undo,
    ) -> Result<()> {
        let path = self.blob_path(digest);
        self.store(&path, undo, |file| io::copy(&mut content, file).map(drop))
    }

    /// Adds or replaces the image in `index.json`.
    pub(super) fn put_image(&self, mut image: Descriptor, undo: &Undo) -> Result<()> {
        let mut index = match self.read_index() {
            Ok(index) => index,
            Err(Error::NotFound(_)) => Index {
                schema_version: 2,
                media_type: Some(OCI_INDEX.to_owned()),
                manifests: Vec::new(),
                other: [].into(),
            },
            Err(error) => return Err(error),
        };
        index.manifests.retain(|other| match &self.name {
            Some(name) => other.annotations.get(REF_NAME) != Some(name),
            None => other.annotations.contains_key(REF_NAME) || other.digest != image.digest,
        });
        if let Some(name) = &self.name {
            image.annotations.insert(REF_NAME.to_owned(), name.clone());
        }
        index.manifests.push(image);
        let marker = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        self.store(&self.dir.join("oci-layout"), undo, |file| {
            file.write_all(marker.as_bytes())
        })?;
        let text = serde_json::to_vec(&index)
            .map_err(|error| Error::Internal(format!("index as JSON: {error}")))?;
        self.store(&self.dir.join("index.json"), undo, |file| {
            file.write_all(&text)
        })
    }

    fn read_index(&self) -> Result<Index> {
        let path = self.dir.join("index.json");
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::NotFound(format!("OCI layout {}", self.dir.display()))
            }
            _ => Error::io("read", &path)(error),
        })?;
        let what = path.display().to_string();
        match Document::parse(&bytes, OCI_INDEX, &what)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Error::Malformed {
                what,
                reason: "is a manifest, not an index".into(),
            }),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn store(
        &self,
        path: &Path,
        undo: &Undo,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<()> {
        let dir = path.parent().unwrap_or(&self.dir);
        undo.create_dirs(dir)?;
        let mut file = undo.temp_file(dir)?;
        write(file.as_file_mut()).map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::io("write", path)(error),
        })?;
        undo.persist(file, path)
    }
}

/// The image called `name`, or the only one, of the layout `what`.
pub(super) fn select<'a>(
    index: &'a Index,
    name: Option<&str>,
    what: &str,
) -> Result<&'a Descriptor> {
    let called = |descriptor: &&Descriptor| match name {
        Some(name) => descriptor.annotations.get(REF_NAME).map(String::as_str) == Some(name),
        None => true,
    };
    let mut found = index.manifests.iter().filter(called);
    let missing = || match name {
        Some(name) => Error::NotFound(format!("image {name} in {what}")),
        None => Error::NotFound(format!("an image in {what}")),
    };
    let descriptor = found.next().ok_or_else(missing)?;
    if name.is_none() && found.next().is_some() {
        let reason = format!("{what} holds several images: name one as {what}:NAME");
        return Err(Error::InvalidArgument(reason));
    }
    Ok(descriptor)
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "oci:{}", self.dir.display())?;
        self.name
            .as_ref()
            .map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::manifest::OCI_MANIFEST;

    fn layout(dir: &Path, name: Option<&str>) -> Layout {
        Layout {
            dir: dir.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    fn put(layout: &Layout, digest: &Digest, content: &[u8]) {
        let undo = Undo::new();
        layout.put_blob(digest, content, &undo).unwrap();
        undo.keep_all();
    }

    fn put_image(layout: &Layout, image: Descriptor) {
        let undo = Undo::new();
        layout.put_image(image, &undo).unwrap();
        undo.keep_all();
    }

    fn image(layout: &Layout, content: &str) -> Descriptor {
        let digest = Digest::of(content.as_bytes());
        put(layout, &digest, content.as_bytes());
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest,
            size: content.len() as u64,
            annotations: [].into(),
            platform: None,
            other: [].into(),
        }
    }

    #[test]
    fn names_are_split_at_the_last_colon() {
        for (text, dir, name) in [
            ("/a/b", "/a/b", None),
            ("/a/b:v1", "/a/b", Some("v1")),
            ("a:b/c", "a:b/c", None),
            ("a:b/c:d", "a:b/c", Some("d")),
        ] {
            assert_eq!(
                Layout::parse(text).unwrap(),
                layout(Path::new(dir), name),
                "{text}"
            );
        }
        assert!(Layout::parse("").is_err() && Layout::parse("x:").is_err());
    }

    #[test]
    fn images_are_found_by_name_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            layout(dir.path(), Some("one")),
            layout(dir.path(), Some("two")),
        );
        put_image(&one, image(&one, "1"));
        assert_eq!(layout(dir.path(), None).manifest().unwrap().bytes, b"1");
        put_image(&two, image(&two, "2"));
        put_image(&one, image(&one, "3"));
        assert_eq!(one.manifest().unwrap().bytes, b"3");
        assert_eq!(two.manifest().unwrap().bytes, b"2");
        let error = layout(dir.path(), None).manifest().unwrap_err().to_string();
        assert!(error.contains("several images"), "{error}");
        let error = layout(dir.path(), Some("no"))
            .manifest()
            .unwrap_err()
            .to_string();
        assert!(error.contains("image no in oci:"), "{error}");
    }

    #[test]
    fn a_blob_that_fails_to_arrive_leaves_no_file() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other(Error::NotFound("blob x".into())))
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(&dir.path().join("new"), None);
        let undo = Undo::new();
        let error = layout
            .put_blob(&Digest::of(b""), Failing, &undo)
            .unwrap_err();
        assert!(matches!(error, Error::NotFound(_)));
        drop(undo);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path(), None);
        let descriptor = image(&layout, "good");
        fs::write(layout.blob_path(&descriptor.digest), "evil").unwrap();
        put_image(&layout, descriptor);
        assert!(matches!(
            layout.manifest(),
            Err(Error::DigestMismatch { .. })
        ));
    }
}
