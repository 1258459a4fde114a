//! Mounts of lazy layers: the engine [`Lazy`] that the snapshots service talks to.
//!
//! `engine` mounts chains, `uses` knows which are mounted and who uses them, `layers` which layers are
//! open. Two back ends mount: `kernel` by EROFS; and `session`, for which `fuse` answers the
//! kernel. A chain's tree is mounted at `ROOT/mnt/KEY`, where KEY is made of the layers' digests, so
//! that it is found at the same place after a restart. Mounts of both outlive the daemon, with the
//! help of a keeper ([`crate::keeper`]); what nobody has kept is dead, and cleared.

mod ahead;
mod alternative;
mod attr;
mod background;
mod buffers;
mod engine;
mod evict;
mod fuse;
mod guide;
mod kernel;
mod layers;
mod published;
mod session;
mod stream;
mod uses;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use background::{BackgroundConfig, BackgroundInsight, PAUSES, Pause};
pub use engine::Lazy;
pub use kernel::{Keeping, probe};
pub use stream::is_ordinary;

use crate::digest::Digest;
use crate::discover::Manifests;
use crate::error::{Error, Result};
use crate::fetch::artifact::Artifact;
use crate::fetch::manifest::Descriptor;
use crate::fetch::{BlobSource, HostHealth, ImageRef};
use crate::fill::counters::Counts;
use crate::formats::nydus;
use crate::store::Sealing;
use crate::timeline::{Timeline, What};

/// Gives access to the blobs of registries; the engine never opens a connection itself.
pub trait Blobs: Manifests {
    /// A handle on the blob `layer` of `size` bytes in the repository of `image`; no network yet.
    fn blob(&self, image: &ImageRef, layer: &Digest, size: u64) -> Result<Arc<dyn BlobSource>>;

    /// Stores an artifact and its blobs, whose bytes are `contents`, in the repository of `image`; the
    /// artifact's digest.
    fn publish(
        &self,
        image: &ImageRef,
        artifact: &Artifact<'_>,
        contents: &[&[u8]],
    ) -> Result<Digest>;

    /// How the registries answer that were asked so far.
    fn health(&self) -> Vec<HostHealth> {
        Vec::new()
    }
}

/// Names a lazy layer for as long as it is in the store: the digest of its compressed blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerId(Digest);

impl LayerId {
    /// The layer that holds nothing, which many images share: the digest of no bytes.
    pub fn empty() -> Self {
        Self(Digest::of(b""))
    }

    /// The layer's digest, as the image manifest names it.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for LayerId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self)
    }
}

/// What is known about a layer when containerd asks for its snapshot.
#[derive(Debug, Clone)]
pub struct LayerSource {
    /// Image that names the layer; its repository is where the bytes come from.
    pub image: ImageRef,
    /// Digest of the compressed blob.
    pub layer: Digest,
    /// Digest of the image's manifest, if it is known.
    pub manifest: Option<Digest>,
    /// Size of the compressed blob in bytes; 0 when unknown.
    pub size: u64,
    /// Media type of the blob; empty when unknown.
    pub media_type: String,
    /// Annotations of the layer's descriptor: the root of trust is among them.
    pub annotations: BTreeMap<String, String>,
    /// All layers of the image, bottom first; empty when unknown.
    pub chain: Vec<Digest>,
    /// Number of layers of the image below this one.
    pub below: usize,
    /// Those above it are not wanted.
    pub alone: bool,
    /// Wants to know how long everything takes.
    pub timeline: Option<Arc<Timeline>>,
}

impl LayerSource {
    /// What is known without asking the registry.
    pub fn new(image: ImageRef, layer: Digest) -> Self {
        Self {
            image,
            layer,
            manifest: None,
            size: 0,
            media_type: String::new(),
            annotations: BTreeMap::new(),
            chain: Vec::new(),
            below: 0,
            alone: false,
            timeline: None,
        }
    }

    /// Tells the timeline, if there is one, of something that is over now.
    fn note(&self, begun: Instant, what: What) {
        if let Some(timeline) = &self.timeline {
            timeline.note(begun, what);
        }
    }

    /// What the layer is to a Nydus image, if it belongs to one. Such layers cannot be unpacked:
    /// they are read lazily or not at all.
    pub fn nydus_part(&self) -> Option<nydus::Part> {
        nydus::part(&self.annotations)
    }

    /// The layer of the store that stands for this one: a Nydus blob adds nothing to the tree.
    pub fn stored_as(&self) -> LayerId {
        match self.nydus_part() {
            Some(nydus::Part::Blob) => LayerId::empty(),
            _ => self.layer.into(),
        }
    }

    /// Takes over what the manifest says of the layer.
    fn complete(&mut self, descriptor: &Descriptor) {
        self.size = descriptor.size;
        self.media_type.clone_from(&descriptor.media_type);
        self.annotations.clone_from(&descriptor.annotations);
    }
}

/// How trees are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackEnd {
    /// One FUSE tree for each chain.
    Fuse,
    /// The kernel's EROFS on files that are filled when they are read; see [`probe`].
    Kernel,
}

/// What happened to a layer that is in use, since it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInsight {
    /// Digest of its blob.
    pub layer: String,
    /// The image that it was asked for last with.
    pub image: String,
    /// Counted since.
    pub counts: Counts,
}

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct LazyConfig {
    /// How trees are mounted.
    pub back_end: BackEnd,
    /// How mounts outlive the daemon; the kernel back end needs it. Without it FUSE mounts end with
    /// the engine.
    pub keeping: Option<Keeping>,
    /// Layers whose manifest does not state the TOC's digest are mounted lazily all the same: the
    /// registry is then trusted for their metadata.
    pub allow_unverified_toc: bool,
    /// Ordinary images that have a Nydus form are read from that: one that the index around the
    /// image lists or, with `allow_unverified_toc`, that refers to it or has its tag and a suffix.
    pub nydus_alternative: bool,
    /// That suffix; empty for none.
    pub nydus_tag_suffix: String,
    /// Threads that serve each FUSE mount.
    pub fuse_threads: usize,
    /// Whether the kernel reads complete large files by itself (FUSE passthrough, Linux 6.9).
    pub passthrough: Passthrough,
    /// Most compressed bytes of a layer fetched because of its landmark.
    pub prefetch_limit: u64,
    /// Ordinary layers are read by an index that merely refers to their image.
    pub trust_referrers: bool,
    /// Put indexes of streamed layers beside their image in its registry.
    pub index_push: bool,
    /// Whether complete files of the store are sealed, as far as its file system can.
    pub sealing: Sealing,
    /// How mounted images are completed.
    pub background: BackgroundConfig,
    /// What to do with layers that are in no lazy format.
    pub plain: Plain,
    /// How long a tree that the kernel serves stays mounted when nobody uses it any more.
    pub keep_unused: Duration,
    /// Seconds from its first read for which a start is recorded, to be fetched ahead the next
    /// time; 0 to neither record nor follow what was recorded.
    pub profile_seconds: u64,
    /// Look in the registry for a profile of an image that this node has none of.
    pub profile_pull: bool,
    /// Put what is recorded beside the image in its registry.
    pub profile_push: bool,
}

/// Which FUSE mounts let the kernel read complete large files by itself.
///
/// It then asks before it opens any file of such a mount, and tells of each close; otherwise it
/// opens them without asking, and reads from its cache of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    /// Those of images that consist of few large files.
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

/// How layers that are in no lazy format are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// By this program: all layers at once, each in one pass from the registry into the store.
    Stream,
    /// By containerd.
    Off,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self {
            back_end: BackEnd::Fuse,
            keeping: None,
            allow_unverified_toc: false,
            nydus_alternative: true,
            nydus_tag_suffix: "-nydus".to_owned(),
            fuse_threads: 4,
            passthrough: Passthrough::Auto,
            prefetch_limit: 32 << 20,
            trust_referrers: false,
            index_push: false,
            sealing: Sealing::default(),
            background: BackgroundConfig::default(),
            plain: Plain::Stream,
            keep_unused: Duration::from_mins(1),
            profile_seconds: 15,
            profile_pull: true,
            profile_push: false,
        }
    }
}

/// What the Nydus form of an image makes of one of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternative {
    /// Nothing of it is needed, unless an image without such a form shares it.
    Below,
    /// It is the topmost one: this layer of the store holds the image's whole tree.
    Whole(LayerId),
}

/// A mounted chain of lazy layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint(PathBuf);

impl MountPoint {
    /// The directory to use as a lower layer of an overlay; it stays the same over restarts.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests;
