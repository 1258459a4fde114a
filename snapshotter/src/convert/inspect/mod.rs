//! What an image is made of, which of its layers can be read lazily, and what of them is for nothing.
//!
//! A layer with an index is not downloaded; another one is read once, as a stream.

mod listing;
mod startup;
mod waste;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use self::listing::Listing;
pub use self::startup::StartUp;
pub use self::waste::{How, Seen, Wasted};
use super::image::LAYERS_AT_ONCE;
use super::layer::Counted;
use super::place::Place;
use super::progress::Observer;
use super::spool::root_cause;
use super::store::Store;
use super::undo::Undo;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Manifest};
use crate::fetch::{Platform, Registry};
use crate::fill::{LayerQuery, Opened, open_layer};
use crate::formats::nydus::{self, Part};
use crate::index::LayerIndex;
use crate::ingest::portable;
use crate::profile::Profile;

/// What to look at, and how closely.
#[derive(Debug, Clone)]
pub struct InspectOptions {
    /// Where the image is.
    pub image: Place,
    /// The image for this platform, if it is one of several.
    pub platform: Platform,
    /// Layers without an index are read; else nothing is said of their files.
    pub read_layers: bool,
    /// Every file is listed.
    pub list_files: bool,
    /// What starts have read.
    pub profile: Option<Profile>,
    /// Directory for temporary files.
    pub temp_dir: PathBuf,
}

/// An image as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The image as it was named.
    pub image: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Platforms that the image's index offers; none without an index.
    pub platforms: Vec<String>,
    /// Compressed size of all layers in bytes.
    pub size: u64,
    /// The layers, bottom first.
    pub layers: Vec<InspectedLayer>,
    /// What of them nobody can see; none where a layer's files are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waste: Option<Waste>,
    /// What a start reads, by the profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_up: Option<StartUp>,
    /// What a container sees, by path, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<Seen>>,
}

/// What an image carries for nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waste {
    /// Bytes of the files of all layers.
    pub unpacked: u64,
    /// Bytes of those that no container sees.
    pub size: u64,
    /// The share of the bytes that containers see, from 0 to 1.
    pub efficiency: f64,
    /// The files, the largest first.
    pub files: Vec<Wasted>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedLayer {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Its compressed size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// How it is packed.
    pub format: LayerFormat,
    /// Digest of its table of contents, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toc_digest: Option<Digest>,
    /// Bytes of its files, unpacked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
    /// How many files it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// How many chunks can be fetched by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<u32>,
    /// What a start reads of it, by the profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_up: Option<StartUp>,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerFormat {
    /// gzip with a table of contents.
    Estargz,
    /// zstd with a table of contents.
    ZstdChunked,
    /// gzip, to be read from its start.
    Gzip,
    /// zstd, to be read from its start.
    Zstd,
    /// A plain archive.
    Tar,
    /// gzip, zstd or a plain archive with an index beside it.
    Indexed,
    /// Contents of a Nydus image.
    NydusBlob,
    /// The tree of a Nydus image.
    NydusBootstrap,
    /// Not a layer of files.
    Other,
}

/// Looks at an image.
pub fn inspect(
    registry: &Registry,
    options: &InspectOptions,
    observer: &dyn Observer,
) -> Result<Inspection> {
    let undo = Undo::new();
    let store = Store::source(registry, &options.image, &options.temp_dir, &undo)?;
    let what = format!("image {}", options.image);
    let top = store.manifest()?;
    let (digest, manifest, platforms) = match top.document(&what)? {
        Document::Manifest(manifest) => (top.digest, manifest, Vec::new()),
        Document::Index(index) => {
            let descriptor = index.select(&options.platform, &what)?;
            let (digest, manifest) = load(&store, descriptor)?;
            let platforms = index
                .manifests
                .iter()
                .filter_map(|image| image.platform.as_ref());
            (
                digest,
                manifest,
                platforms.map(ToString::to_string).collect(),
            )
        }
    };
    if let Some(profile) = &options.profile {
        check_profile(profile, &manifest, &what)?;
    }
    let looked = look_at_all(&store, &manifest.layers, options, observer)?;
    let mut inspection = Inspection {
        image: options.image.to_string(),
        digest,
        platforms,
        size: manifest.layers.iter().map(|layer| layer.size).sum(),
        layers: Vec::new(),
        waste: None,
        start_up: None,
        files: None,
    };
    let (layers, listings): (Vec<_>, Vec<_>) = looked.into_iter().unzip();
    inspection.layers = layers;
    let started = options
        .profile
        .as_ref()
        .map(|profile| start(profile, &mut inspection, &listings));
    weigh(&mut inspection, &listings, started.as_deref(), options);
    Ok(inspection)
}

/// A profile of other layers would say nothing about these.
fn check_profile(profile: &Profile, manifest: &Manifest, what: &str) -> Result<()> {
    let layers = manifest.layers.iter().map(|layer| layer.digest);
    if layers.eq(profile.layers().iter().copied()) {
        return Ok(());
    }
    let reason = format!("the profile is not one of the layers of {what}");
    Err(Error::InvalidArgument(reason))
}

/// Adds what a start reads; the inodes that it reads of each layer.
fn start(
    profile: &Profile,
    inspection: &mut Inspection,
    listings: &[Option<Listing>],
) -> Vec<HashSet<u32>> {
    let mut total = StartUp::default();
    let mut inodes = Vec::new();
    for (number, listing) in listings.iter().enumerate() {
        let index = listing.as_ref().and_then(|listing| listing.index.as_ref());
        let (start_up, read) = startup::of_layer(profile, number, index);
        total.size += start_up.size;
        total.unpacked += start_up.unpacked;
        total.files += start_up.files;
        inspection.layers[number].start_up = Some(start_up);
        inodes.push(read);
    }
    inspection.start_up = Some(total);
    inodes
}

/// Adds what the layers make together.
fn weigh(
    inspection: &mut Inspection,
    listings: &[Option<Listing>],
    started: Option<&[HashSet<u32>]>,
    options: &InspectOptions,
) {
    if listings.iter().any(Option::is_none) {
        return;
    }
    let layers: Vec<_> = listings.iter().map(Option::as_ref).collect();
    let merged = waste::merge(&layers);
    let unpacked = listings.iter().flatten().map(Listing::bytes).sum();
    let size: u64 = merged.wasted.iter().map(|wasted| wasted.size).sum();
    let share = |part: u64| match unpacked {
        0 => 1.0,
        all => part as f64 / all as f64,
    };
    inspection.waste = Some(Waste {
        unpacked,
        size,
        efficiency: share(unpacked - size),
        files: merged.wasted,
    });
    if options.list_files {
        let files = merged.seen.into_iter().map(|(mut seen, inode)| {
            let is_read = |started: &[HashSet<u32>]| {
                inode.is_some_and(|inode| started[seen.layer].contains(&inode))
            };
            seen.start_up = started.map(is_read);
            seen
        });
        inspection.files = Some(files.collect());
    }
}

type Looked = (InspectedLayer, Option<Listing>);

/// Looks at several layers at a time; the first error stops the rest.
fn look_at_all(
    store: &Store<'_>,
    layers: &[Descriptor],
    options: &InspectOptions,
    observer: &dyn Observer,
) -> Result<Vec<Looked>> {
    let next = AtomicUsize::new(0);
    let done: Vec<_> = layers.iter().map(|_| Mutex::new(None)).collect();
    let failed = Mutex::new(None);
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..LAYERS_AT_ONCE.min(layers.len()) {
            scope.spawn(|| {
                while lock().is_none()
                    && let number = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(layer) = layers.get(number)
                {
                    match look(store, layer, options.read_layers, observer) {
                        Ok(looked) => {
                            let mut done =
                                done[number].lock().unwrap_or_else(PoisonError::into_inner);
                            *done = Some(looked);
                        }
                        Err(error) => drop(lock().get_or_insert(error)),
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let looked = done.into_iter().map(|one| {
        let looked = one.into_inner().unwrap_or_else(PoisonError::into_inner);
        looked.ok_or_else(|| Error::Internal("a layer was not looked at".into()))
    });
    looked.collect()
}

fn load(store: &Store<'_>, descriptor: &Descriptor) -> Result<(Digest, Manifest)> {
    let what = format!("manifest {} of {}", descriptor.digest, store.place);
    match store.manifest_of(descriptor)?.document(&what)? {
        Document::Manifest(manifest) => Ok((descriptor.digest, manifest)),
        Document::Index(_) => {
            let reason = "is an index within an index".to_owned();
            Err(Error::Malformed { what, reason })
        }
    }
}

fn look(
    store: &Store<'_>,
    layer: &Descriptor,
    may_read: bool,
    observer: &dyn Observer,
) -> Result<Looked> {
    let mut format = by_name(layer);
    let mut listing = None;
    if let Some(index) = index_of(store, layer, &mut format)? {
        listing = Some(Listing::of_index(index));
    } else if may_read
        && matches!(
            format,
            LayerFormat::Gzip | LayerFormat::Zstd | LayerFormat::Tar
        )
    {
        observer.planned(&[(layer.digest, layer.size)]);
        let mut blob = Counted {
            inner: store.read(layer)?,
            layer,
            observer,
        };
        let read = Listing::of_archive(&mut blob);
        listing = Some(read.map_err(|error| root_cause(error, blob, &layer.digest.to_string()))?);
    }
    let index = listing.as_ref().and_then(|listing| listing.index.as_ref());
    let looked = InspectedLayer {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        format,
        toc_digest: index.map(LayerIndex::toc),
        unpacked: listing.as_ref().map(Listing::bytes),
        files: listing.as_ref().map(Listing::files),
        chunks: index.map(LayerIndex::chunks),
        start_up: None,
    };
    Ok((looked, listing))
}

/// The index of a layer that can be read lazily, whatever its format.
pub(super) fn index_of_layer(store: &Store<'_>, layer: &Descriptor) -> Result<Option<LayerIndex>> {
    index_of(store, layer, &mut by_name(layer))
}

/// The index of a layer that can be read lazily; the format may turn out to be another one.
fn index_of(
    store: &Store<'_>,
    layer: &Descriptor,
    format: &mut LayerFormat,
) -> Result<Option<LayerIndex>> {
    if !matches!(
        format,
        LayerFormat::Gzip | LayerFormat::Zstd | LayerFormat::Tar | LayerFormat::ZstdChunked
    ) {
        return Ok(None);
    }
    if let Some(digest) = layer.annotations.get(portable::ANNOTATION)
        && let Some(bytes) = store.read_by_digest(&digest.parse()?, portable::MAX_LEN)?
    {
        let index = portable::unpack(&bytes, layer.digest, layer.size);
        *format = LayerFormat::Indexed;
        return index.map(Some).map_err(|flaw| flaw.of(layer.digest));
    }
    if *format == LayerFormat::Tar {
        return Ok(None);
    }
    let blob = store.ranges(layer)?;
    let opened = open_layer(&LayerQuery {
        blob: blob.as_ref(),
        layer: layer.digest,
        media_type: &layer.media_type,
        annotations: &layer.annotations,
        image: None,
        skip_footer: false,
        trust_referrers: false,
        allow_unverified: true,
    })?;
    Ok(match opened {
        Opened::Lazy(index) => {
            *format = if *format == LayerFormat::Gzip {
                LayerFormat::Estargz
            } else {
                LayerFormat::ZstdChunked
            };
            Some(*index)
        }
        Opened::Ordinary | Opened::Unverified | Opened::TocElsewhere => None,
    })
}

/// What media type and annotations say; whether gzip has a table of contents, only its footer does.
fn by_name(layer: &Descriptor) -> LayerFormat {
    let chunked = layer
        .annotations
        .keys()
        .any(|key| key.contains(".zstd-chunked."));
    let name = layer.media_type.as_str();
    match nydus::part(&layer.annotations) {
        Some(Part::Bootstrap) => return LayerFormat::NydusBootstrap,
        Some(_) => return LayerFormat::NydusBlob,
        None => {}
    }
    if !name.contains("image.layer") && !name.contains("image.rootfs") {
        LayerFormat::Other
    } else if name.ends_with("gzip") {
        LayerFormat::Gzip
    } else if name.ends_with("zstd") {
        if chunked {
            LayerFormat::ZstdChunked
        } else {
            LayerFormat::Zstd
        }
    } else {
        LayerFormat::Tar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_media_type_and_annotations() {
        let chunked = "io.github.containers.zstd-chunked.manifest-checksum";
        let cases = [
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                None,
                LayerFormat::Gzip,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                None,
                LayerFormat::Gzip,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                None,
                LayerFormat::Zstd,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                Some(chunked),
                LayerFormat::ZstdChunked,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar",
                None,
                LayerFormat::Tar,
            ),
            ("application/vnd.in-toto+json", None, LayerFormat::Other),
        ];
        for (media_type, annotation, format) in cases {
            let layer = Descriptor {
                media_type: media_type.into(),
                digest: Digest::of(b""),
                size: 0,
                annotations: annotation
                    .map(|key| (key.into(), "x".into()))
                    .into_iter()
                    .collect(),
                platform: None,
                other: [].into(),
            };
            assert_eq!(by_name(&layer), format, "{media_type}");
        }
    }
}
