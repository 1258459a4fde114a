//! Nydus: images whose metadata, the *bootstrap*, lies in a layer of its own and refers to chunks
//! in data blobs.
//!
//! An image has one data blob a layer, and as its last layer an archive that holds the bootstrap of
//! the whole tree. The manifest has the digest of that layer, the bootstrap the digests of all
//! chunks: so every byte is vouched for by the manifest. Two layouts of the bootstrap are read:
//! RAFS v6 (`v6`), which is an EROFS image, and the older RAFS v5 (`v5`).

mod assemble;
mod blobs;
mod chunk;
mod context;
mod layer;
mod v5;
mod v6;
mod view;

pub use self::blobs::BlobInfo;
pub(crate) use self::context::MAX_LEN as MAX_CONTEXTS;
pub use self::context::{ContextRange, Contexts};
pub use self::layer::{MAX_PACKED_LAYER, unpack_bootstrap};

use std::collections::BTreeMap;

pub(crate) use self::v6::layout;

use self::assemble::Assembler;
use super::Flaw;
use crate::digest::{Algorithm, Digest};
use crate::fetch::manifest::Descriptor;
use crate::index::LayerIndex;

/// Layer annotation of a data blob, with the value `true`.
pub const BLOB_ANNOTATION: &str = "containerd.io/snapshot/nydus-blob";
/// Layer annotation of a data blob that holds only what unpacks another one in pieces: the digest of
/// that other one, an ordinary gzip layer.
pub const REFERENCE_ANNOTATION: &str = "containerd.io/snapshot/nydus-ref";
/// Layer annotation of the bootstrap's layer, with the value `true`.
pub const BOOTSTRAP_ANNOTATION: &str = "containerd.io/snapshot/nydus-bootstrap";
/// Layer annotation that holds the version of RAFS.
pub const VERSION_ANNOTATION: &str = "containerd.io/snapshot/nydus-fs-version";
/// Media type of a data blob.
pub const BLOB_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
/// Feature by which an index marks the manifest of a Nydus image, in `platform`'s `os.features`.
pub const OS_FEATURE: &str = "nydus.remoteimage.v1";
/// Type by which later versions of Nydus' tools mark it, as `artifactType`.
pub const ARTIFACT_TYPE: &str = "application/vnd.nydus.image.manifest.v1+json";
/// Media type of the configuration of a Nydus image that stands beside an ordinary one, so that
/// containerd leaves it alone.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.nydus.image.config.v1+json";
/// Path of the bootstrap in its layer's archive.
pub const BOOTSTRAP_NAME: &str = "image/image.boot";

/// What a layer is to a Nydus image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A data blob: it adds nothing to the tree by itself.
    Blob,
    /// The layer that holds the bootstrap, and with it the whole tree.
    Bootstrap,
}

/// What the annotations of a layer say that it is; `None` for layers of other images.
pub fn part(annotations: &BTreeMap<String, String>) -> Option<Part> {
    let says = |name: &str| annotations.get(name).is_some_and(|value| value == "true");
    if says(BOOTSTRAP_ANNOTATION) {
        Some(Part::Bootstrap)
    } else {
        says(BLOB_ANNOTATION).then_some(Part::Blob)
    }
}

/// Whether an index marks this entry as a Nydus image.
pub fn is_marked(descriptor: &Descriptor) -> bool {
    let platform = descriptor.platform.as_ref();
    let features = platform.and_then(|platform| platform.other.get("os.features")?.as_array());
    descriptor.artifact_type() == Some(ARTIFACT_TYPE)
        || features.is_some_and(|all| all.iter().any(|one| one.as_str() == Some(OS_FEATURE)))
}

/// What another image's bootstrap needs to know to refer to the chunks of this one.
#[derive(Debug)]
pub(crate) struct KnownChunks {
    /// Largest chunk in bytes.
    pub(crate) chunk_size: u64,
    /// How chunks are digested.
    pub(crate) algorithm: Algorithm,
    pub(crate) blobs: Vec<KnownBlob>,
    /// Those that are packed alone.
    pub(crate) chunks: Vec<KnownChunk>,
}

/// A blob that others may refer to.
#[derive(Debug)]
pub(crate) struct KnownBlob {
    pub(crate) digest: Digest,
    /// Its entry of the blob table as it is.
    pub(crate) entry: Vec<u8>,
    /// Bytes when it is unpacked.
    pub(crate) plain_len: u64,
}

/// A chunk that others may refer to.
#[derive(Debug)]
pub(crate) struct KnownChunk {
    pub(crate) digest: [u8; 32],
    /// Number of its blob.
    pub(crate) blob: usize,
    /// Its number in the blob.
    pub(crate) number: u32,
    /// Offset and length in the blob.
    pub(crate) packed: (u64, u32),
    /// Offset and length when the blob is unpacked.
    pub(crate) plain: (u64, u32),
}

/// Reads which chunks a bootstrap of RAFS v6 knows.
pub(crate) fn known_chunks(bytes: &[u8]) -> Result<KnownChunks, Flaw> {
    match Bootstrap::read(bytes)?.version {
        Version::V6(bootstrap) => bootstrap.known_chunks(),
        Version::V5(_) => Err(Flaw::new("bootstrap: RAFS v5, where v6 is needed")),
    }
}

/// A bootstrap of either version.
#[derive(Debug)]
pub struct Bootstrap<'a> {
    bytes: &'a [u8],
    version: Version<'a>,
}

#[derive(Debug)]
enum Version<'a> {
    V5(v5::Bootstrap<'a>),
    V6(v6::Bootstrap<'a>),
}

impl<'a> Bootstrap<'a> {
    /// Reads what the bootstrap says about itself and its blobs.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let version = if v6::is_v6(bytes) {
            Version::V6(v6::Bootstrap::read(bytes)?)
        } else if v5::is_v5(bytes) {
            Version::V5(v5::Bootstrap::read(bytes)?)
        } else {
            return Err(Flaw::new("bootstrap: neither RAFS v5 nor v6"));
        };
        Ok(Self { bytes, version })
    }

    /// The data blobs, in the order in which chunks count them.
    pub fn blobs(&self) -> &[BlobInfo] {
        match &self.version {
            Version::V5(bootstrap) => bootstrap.blobs(),
            Version::V6(bootstrap) => bootstrap.blobs(),
        }
    }

    /// Makes the index of `layer`, the layer that holds the bootstrap.
    ///
    /// `sizes` are the lengths of the blobs in the registry, `contexts` what was asked for by
    /// [`BlobInfo::contexts`], both in the order of [`Bootstrap::blobs`].
    pub fn index(
        &self,
        layer: Digest,
        sizes: &[u64],
        contexts: &[Option<Contexts>],
    ) -> Result<LayerIndex, Flaw> {
        let toc = Digest::of(self.bytes);
        let mut assembler = Assembler::new(layer, toc, self.blobs(), sizes, contexts)?;
        match &self.version {
            Version::V5(bootstrap) => bootstrap.assemble(&mut assembler)?,
            Version::V6(bootstrap) => bootstrap.assemble(&mut assembler)?,
        }
        assembler.finish()
    }
}

#[cfg(test)]
mod tests;
