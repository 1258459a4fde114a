//! Layers that stay as they are and get an index beside them.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::json;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Index, OCI_INDEX, OCI_MANIFEST};
use crate::fetch::{ImageRef, Registry};
use crate::ingest::{self, portable};

use super::layer::{Counted, DoneLayer, Workshop, report};
use super::place::{Place, Store, from_stream};

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// The empty JSON object, which stands for an artifact without a configuration.
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

impl Workshop<'_> {
    /// Takes `layer` over as it is, and makes its index, whose digest becomes an annotation.
    pub(super) fn index(&self, layer: &Descriptor, diff_id: Digest) -> Result<DoneLayer> {
        let what = format!("blob {} of {}", layer.digest, self.source.place);
        let mut blob = Counted {
            inner: self.source.read(layer)?,
            layer,
            observer: self.observer,
        };
        let feed = |sink: ingest::Sink<'_>| {
            let mut buffer = vec![0; PIECE];
            loop {
                match blob.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => sink(&buffer[..count])?,
                    Err(error) => return Err(from_stream(error, &what)),
                }
            }
        };
        let index = ingest::describe(layer.digest, layer.size, feed)?;
        self.destination.copy_from(&self.source, layer, self.dir)?;
        self.destination.put_bytes(&index)?;
        let digest = Digest::of(&index);
        let mut descriptor = layer.clone();
        let annotation = (portable::ANNOTATION.to_owned(), digest.to_string());
        descriptor.annotations.extend([annotation]);
        let report = report(layer, &descriptor, digest, false);
        self.observer.finished(&layer.digest, &report);
        let index = Descriptor {
            media_type: portable::MEDIA_TYPE.to_owned(),
            digest,
            size: index.len() as u64,
            annotations: BTreeMap::from([(
                portable::LAYER_ANNOTATION.to_owned(),
                layer.digest.to_string(),
            )]),
            platform: None,
            other: BTreeMap::new(),
        };
        Ok(DoneLayer {
            descriptor,
            diff_id,
            report,
            beside: Some(index),
        })
    }
}

/// Stores the artifact that holds `indexes` and refers to the manifest `subject`: it keeps them
/// alive in the registry, and nodes find it by the manifest.
pub(super) fn put_artifact(
    destination: &Store<'_>,
    subject: &Descriptor,
    indexes: &[Descriptor],
) -> Result<()> {
    destination.put_bytes(EMPTY)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": portable::ARTIFACT_TYPE,
        "config": { "mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY), "size": EMPTY.len() },
        "layers": indexes,
        "subject": {
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": subject.size,
        },
    });
    let bytes = super::image::to_json(&manifest)?;
    let digest = destination.put_part(OCI_MANIFEST, &bytes)?;
    let Place::Registry(image) = destination.place else {
        return Ok(());
    };
    let artifact = Descriptor {
        media_type: OCI_MANIFEST.to_owned(),
        digest,
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::from([("artifactType".to_owned(), portable::ARTIFACT_TYPE.into())]),
    };
    list_by_tag(destination.registry, image, subject.digest, artifact)
}

/// Adds `artifact` to the index under the referrers tag of `subject`, unless the registry lists it
/// by itself (OCI distribution specification 1.1, "Referrers Tag Schema").
fn list_by_tag(
    registry: &Registry,
    image: &ImageRef,
    subject: Digest,
    artifact: Descriptor,
) -> Result<()> {
    use crate::discover::Manifests;
    let listed = registry.referrers(image, &subject, portable::ARTIFACT_TYPE)?;
    if listed.iter().any(|one| one.digest == artifact.digest) {
        return Ok(());
    }
    let tag = image.at_tag(&format!("sha256-{}", subject.hex()));
    let mut index = match registry.manifest(&tag) {
        Ok(fetched) => match fetched.document(&format!("referrers {tag}"))? {
            Document::Index(index) => index,
            Document::Manifest(_) => {
                return Err(Error::Malformed {
                    what: format!("referrers {tag}"),
                    reason: "is no index".to_owned(),
                });
            }
        },
        Err(Error::NotFound(_)) => Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            manifests: Vec::new(),
            other: BTreeMap::new(),
        },
        Err(error) => return Err(error),
    };
    // One of an earlier conversion has the same content or is replaced.
    let is_ours = |one: &Descriptor| one.artifact_type() == Some(portable::ARTIFACT_TYPE);
    index.manifests.retain(|one| !is_ours(one));
    index.manifests.push(artifact);
    registry
        .put_manifest(&tag, OCI_INDEX, &super::image::to_json(&index)?)
        .map(drop)
}
