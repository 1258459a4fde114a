//! A whole image from one place to another as it is, to the byte.

use std::collections::BTreeMap;
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Manifest};
use crate::fetch::{FetchedManifest, Registry};

use super::place::Place;
use super::store::Store;
use super::undo::Undo;

/// Copies an image, all platforms of it, and gives its digest, which stays the same. Temporary files
/// go into `dir`; nothing at the destination names the image until all of it is there, and what was
/// made goes again by `undo` if that does not happen.
pub fn copy(
    registry: &Registry,
    source: &Place,
    destination: &Place,
    dir: &Path,
    undo: &Undo,
) -> Result<Digest> {
    let outcome = Store::source(registry, source, dir, undo).and_then(|source| {
        let destination = Store::destination(registry, destination, undo)?;
        copy_between(&source, &destination, dir)
    });
    match &outcome {
        Ok(_) => undo.keep_all(),
        Err(_) => undo.run(),
    }
    outcome
}

fn copy_between(source: &Store<'_>, destination: &Store<'_>, dir: &Path) -> Result<Digest> {
    let top = source.manifest()?;
    // Asks for anything at all: wrong credentials must not show after minutes of work.
    destination.has_blob(&top.digest)?;
    match top.document(&format!("image {}", source.place))? {
        Document::Manifest(manifest) => copy_blobs(source, destination, &manifest, dir)?,
        Document::Index(index) => {
            for descriptor in &index.manifests {
                copy_image(source, destination, descriptor, dir)?;
            }
        }
    }
    let digest = top.digest;
    destination.put_top(descriptor_of(&top), &top.bytes)?;
    Ok(digest)
}

/// One image of an index.
fn copy_image(
    source: &Store<'_>,
    destination: &Store<'_>,
    descriptor: &Descriptor,
    dir: &Path,
) -> Result<()> {
    let what = format!("manifest {} of {}", descriptor.digest, source.place);
    let found = source.manifest_of(descriptor)?;
    let Document::Manifest(manifest) = found.document(&what)? else {
        let reason = "is an index within an index".to_owned();
        return Err(Error::Malformed { what, reason });
    };
    copy_blobs(source, destination, &manifest, dir)?;
    let stored = destination.put_part(&found.media_type, &found.bytes);
    stored.map(drop)
}

fn copy_blobs(
    source: &Store<'_>,
    destination: &Store<'_>,
    manifest: &Manifest,
    dir: &Path,
) -> Result<()> {
    let blobs = manifest.layers.iter().chain([&manifest.config]);
    blobs
        .into_iter()
        .try_for_each(|blob| destination.copy_from(source, blob, dir))
}

fn descriptor_of(found: &FetchedManifest) -> Descriptor {
    Descriptor {
        media_type: found.media_type.clone(),
        digest: found.digest,
        size: found.bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::convert::Layout;
    use crate::fetch::RegistryConfig;
    use crate::fetch::manifest::{OCI_INDEX, OCI_MANIFEST};

    /// Stores a blob, and describes it.
    fn put(layout: &Layout, content: &[u8], media_type: &str) -> Value {
        let (digest, undo) = (Digest::of(content), Undo::new());
        layout.put_blob(&digest, content, &undo).unwrap();
        undo.keep_all();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
    }

    /// A layout with an index of one image; the digest of the index, and of the image's layer.
    fn layout(dir: &Path) -> (Layout, Value, Value) {
        let layout = Layout {
            dir: dir.join("from"),
            name: None,
        };
        let config = put(&layout, b"{}", "application/vnd.oci.image.config.v1+json");
        let layer = put(&layout, b"layer", "application/vnd.oci.image.layer.v1.tar");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
            "annotations": {"of": "manifest"},
        });
        let manifest = put(&layout, manifest.to_string().as_bytes(), OCI_MANIFEST);
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [manifest],
            "annotations": {"of": "index"},
        });
        let index = put(&layout, index.to_string().as_bytes(), OCI_INDEX);
        let undo = Undo::new();
        let descriptor = serde_json::from_value(index.clone()).unwrap();
        layout.put_image(descriptor, &undo).unwrap();
        undo.keep_all();
        (layout, index, layer)
    }

    fn copied(dir: &Path, from: Layout, to: &str) -> Result<Digest> {
        let registry = Registry::new(RegistryConfig::default())?;
        let to = format!("oci:{}/{to}", dir.display()).parse()?;
        copy(&registry, &Place::Layout(from), &to, dir, &Undo::new())
    }

    #[test]
    fn every_byte_comes_along_and_the_digest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (from, index, _) = layout(dir.path());
        let digest = copied(dir.path(), from, "to").unwrap();
        assert_eq!(index["digest"], digest.to_string());
        let blobs = |name: &str| {
            let entries = fs::read_dir(dir.path().join(name).join("blobs/sha256")).unwrap();
            let read = entries.map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), fs::read(entry.path()).unwrap())
            });
            read.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(blobs("to"), blobs("from"));
    }

    #[test]
    fn a_damaged_blob_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, _, layer) = layout(dir.path());
        let digest = layer["digest"].as_str().unwrap().to_owned();
        let path = from.dir.join("blobs").join(digest.replace(':', "/"));
        fs::write(path, "other").unwrap();
        let error = copied(dir.path(), from, "to").unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        assert!(!dir.path().join("to").exists());
    }
}
