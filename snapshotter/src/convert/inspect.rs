//! What an image is made of, and which of its layers can be read lazily.

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Manifest};
use crate::fetch::{Platform, Registry};

use super::image::default_temp_dir;
use super::place::Place;
use super::reuse;
use super::store::Store;
use super::undo::Undo;

/// An image as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    /// Not a layer of files.
    Other,
}

/// Looks at the image at `place`, at the one for `platform` if it is one of several.
pub fn inspect(registry: &Registry, place: &Place, platform: &Platform) -> Result<Inspection> {
    let undo = Undo::new();
    let store = Store::source(registry, place, &default_temp_dir(), &undo)?;
    let what = format!("image {place}");
    let top = store.manifest()?;
    let (digest, manifest, platforms) = match top.document(&what)? {
        Document::Manifest(manifest) => (top.digest, manifest, Vec::new()),
        Document::Index(index) => {
            let descriptor = index.select(platform, &what)?;
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
    let layers: Result<Vec<_>> = manifest
        .layers
        .iter()
        .map(|layer| look(&store, layer))
        .collect();
    Ok(Inspection {
        image: place.to_string(),
        digest,
        platforms,
        size: manifest.layers.iter().map(|layer| layer.size).sum(),
        layers: layers?,
    })
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

fn look(store: &Store<'_>, layer: &Descriptor) -> Result<InspectedLayer> {
    let mut format = by_name(layer);
    let mut toc_digest = None;
    if format == LayerFormat::Gzip {
        let blob = store.ranges(layer)?;
        toc_digest = reuse::toc_digest(blob.as_ref(), &layer.digest.to_string())?;
        if toc_digest.is_some() {
            format = LayerFormat::Estargz;
        }
    }
    Ok(InspectedLayer {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        format,
        toc_digest,
    })
}

/// What media type and annotations say; whether gzip has a table of contents, only its footer does.
fn by_name(layer: &Descriptor) -> LayerFormat {
    let chunked = layer
        .annotations
        .keys()
        .any(|key| key.contains(".zstd-chunked."));
    let name = layer.media_type.as_str();
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
