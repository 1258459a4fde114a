//! Layers that stay as they are and get an index beside them.

use std::collections::BTreeMap;
use std::io::Read;

use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::artifact::{Artifact, EMPTY};
use crate::fetch::manifest::{Descriptor, OCI_MANIFEST};
use crate::ingest::{self, beside, portable};

use super::layer::{Counted, DoneLayer, Workshop, report};
use super::progress::Observer;
use super::store::{Store, from_stream};

/// Bytes read at a time.
const PIECE: usize = 256 << 10;

impl Workshop<'_> {
    /// Takes `layer` over as it is, and makes its index, whose digest becomes an annotation.
    pub(super) fn index(&self, layer: &Descriptor, diff_id: Digest) -> Result<DoneLayer> {
        let index = describe(self.source, layer, self.observer)?;
        self.destination.copy_from(self.source, layer, self.dir)?;
        self.destination.put_bytes(&index)?;
        let digest = Digest::of(&index);
        let mut descriptor = layer.clone();
        let annotation = (portable::ANNOTATION.to_owned(), digest.to_string());
        descriptor.annotations.extend([annotation]);
        let report = report(layer, &descriptor, digest, false);
        self.observer.finished(&layer.digest, &report);
        let index = beside::descriptor(&layer.digest, &index);
        Ok(DoneLayer {
            descriptor,
            diff_id,
            report,
            beside: Some(index),
        })
    }
}

/// The portable index of a layer, which is read once from its beginning to its end.
pub(super) fn describe(
    source: &Store<'_>,
    layer: &Descriptor,
    observer: &dyn Observer,
) -> Result<Vec<u8>> {
    let what = format!("blob {} of {}", layer.digest, source.place);
    let mut blob = Counted {
        inner: source.read(layer)?,
        layer,
        observer,
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
    ingest::describe(layer.digest, layer.size, feed)
}

/// Stores the artifact that holds `indexes` and refers to the manifest `subject`: it keeps them
/// alive in the registry, and nodes find it by the manifest.
pub(super) fn put_artifact(
    destination: &Store<'_>,
    subject: &Descriptor,
    indexes: &[Descriptor],
) -> Result<()> {
    let artifact = Artifact {
        artifact_type: portable::ARTIFACT_TYPE,
        subject,
        blobs: indexes,
        annotations: BTreeMap::new(),
    };
    if let Some((registry, image)) = destination.as_registry() {
        return registry.push_artifact(image, &artifact).map(drop);
    }
    destination.put_bytes(EMPTY)?;
    let (_, manifest) = artifact.manifest()?;
    destination.put_part(OCI_MANIFEST, &manifest).map(drop)
}
