//! Labels by which containerd says which layer of which image a snapshot is for.

use std::collections::{BTreeMap, HashMap};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::ImageRef;
use crate::fill::vouched;
use crate::mount::LayerSource;
use crate::snapshots::record::Labels;

/// Name (a chain ID) under which the unpacked layer is wanted.
pub(crate) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Marks a committed snapshot that containerd did not unpack.
pub(super) const REMOTE: &str = "containerd.io/snapshot/remote";

/// The image's reference: from containerd (CRI, transfer service), from stargz-aware clients.
const IMAGE: [&str; 2] = [
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/remote/stargz.reference",
];
/// The layer's digest, from the same.
const LAYER: [&str; 2] = [
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/remote/stargz.digest",
];
/// Digests of this layer and of those above it, separated by commas, from the same. containerd cuts
/// the list at 4096 bytes.
const LAYERS: [&str; 2] = [
    "containerd.io/snapshot/cri.image-layers",
    "containerd.io/snapshot/remote/stargz.layers",
];
/// Digest of the image's manifest, from containerd.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// containerd passes those annotations of a layer whose names begin like this, as labels.
const PASSED: &str = "containerd.io/snapshot/";

/// What a `Prepare` asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// A snapshot for a container, or any other that is not a layer of an image.
    Ordinary,
    /// A layer of an image, but nothing says where it can be fetched.
    Anonymous,
    /// A layer that may be read lazily; it is wanted under the name `target`.
    Layer {
        /// The chain ID.
        target: String,
        /// Where its bytes are.
        source: Box<LayerSource>,
    },
}

/// The image that a snapshot was pulled for, as the labels name it.
pub(super) fn image(labels: &Labels) -> Option<&str> {
    first(labels, &IMAGE).map(|(_, value)| value)
}

/// Reads the labels of a `Prepare`.
pub(super) fn read(labels: &Labels) -> Result<Request> {
    let Some(target) = labels.get(SNAPSHOT_REF) else {
        return Ok(Request::Ordinary);
    };
    let (Some(image), Some(layer)) = (first(labels, &IMAGE), first(labels, &LAYER)) else {
        return Ok(Request::Anonymous);
    };
    let source = LayerSource {
        manifest: labels
            .get(MANIFEST)
            .map(|value| digest(MANIFEST, value))
            .transpose()?,
        annotations: passed(labels).collect(),
        chain: from_here_up(labels),
        ..LayerSource::new(ImageRef::parse(image.1)?, digest(layer.0, layer.1)?)
    };
    // A malformed one is refused before anything is asked.
    vouched(&source.annotations)?;
    Ok(Request::Layer {
        target: target.clone(),
        source: Box::new(source),
    })
}

/// What containerd would say of a layer: it is wanted as `target`, the first of `layers`, which go
/// on with those above it.
pub(crate) fn of_layer(
    image: &ImageRef,
    manifest: Digest,
    target: &str,
    layers: &[Digest],
) -> HashMap<String, String> {
    let list: Vec<String> = layers.iter().map(ToString::to_string).collect();
    let pairs = [
        (SNAPSHOT_REF, target.to_owned()),
        (IMAGE[0], image.to_string()),
        (MANIFEST, manifest.to_string()),
        (LAYER[0], list.first().cloned().unwrap_or_default()),
        (LAYERS[0], list.join(",")),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Those annotations of a layer that containerd passes on as labels.
pub(crate) fn passed(
    annotations: &BTreeMap<String, String>,
) -> impl Iterator<Item = (String, String)> {
    let passed = annotations
        .iter()
        .filter(|(name, _)| name.starts_with(PASSED));
    passed.map(|(name, value)| (name.clone(), value.clone()))
}

/// This layer and those above it. What is not a list of digests is no list: it is only a hint.
fn from_here_up(labels: &Labels) -> Vec<Digest> {
    let list = first(labels, &LAYERS).map_or("", |(_, list)| list);
    list.split(',')
        .map(str::parse)
        .collect::<Result<_>>()
        .unwrap_or_default()
}

fn first<'a>(labels: &'a Labels, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
    names
        .iter()
        .find_map(|&name| Some((name, labels.get(name)?.as_str())))
}

fn digest(label: &str, value: &str) -> Result<Digest> {
    value
        .parse()
        .map_err(|error| Error::InvalidArgument(format!("label {label}={value:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";
    const DIGEST: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn a_snapshot_without_a_wanted_name_is_ordinary() {
        let labels = labels(&[(IMAGE[0], "a/b:c"), (LAYER[0], DIGEST)]);
        assert!(matches!(read(&labels).unwrap(), Request::Ordinary));
    }

    #[test]
    fn a_layer_without_image_or_digest_is_anonymous() {
        let cases = [
            labels(&[(SNAPSHOT_REF, "sha256:chain")]),
            labels(&[(SNAPSHOT_REF, "sha256:chain"), (IMAGE[0], "a/b:c")]),
            labels(&[(SNAPSHOT_REF, "sha256:chain"), (LAYER[0], DIGEST)]),
        ];
        for labels in cases {
            assert!(
                matches!(read(&labels).unwrap(), Request::Anonymous),
                "{labels:?}"
            );
        }
    }

    #[test]
    fn the_labels_of_containerd_and_of_stargz_clients_name_the_same_layer() {
        for ((image, layer), layers) in IMAGE.into_iter().zip(LAYER).zip(LAYERS) {
            let labels = labels(&[
                (SNAPSHOT_REF, "sha256:chain"),
                (image, "127.0.0.1:5000/a/b:c"),
                (layer, DIGEST),
                (layers, &format!("{DIGEST},{DIGEST}")),
                (TOC, DIGEST),
                (MANIFEST, DIGEST),
            ]);
            let Request::Layer { target, source } = read(&labels).unwrap() else {
                panic!("not a layer: {labels:?}");
            };
            assert_eq!(target, "sha256:chain");
            assert_eq!(source.image.host(), "127.0.0.1:5000");
            assert_eq!(source.layer.to_string(), DIGEST);
            assert_eq!(vouched(&source.annotations).unwrap(), Some(source.layer));
            assert_eq!(source.manifest, Some(source.layer));
            assert_eq!(source.chain, [source.layer; 2]);
        }
    }

    #[test]
    fn a_malformed_label_is_refused_by_name() {
        for (key, value) in [
            (LAYER[0], "sha256:1"),
            (TOC, "md5:2"),
            (MANIFEST, "sha256:xyz"),
            (IMAGE[0], "UPPER CASE"),
        ] {
            let mut labels =
                labels(&[(SNAPSHOT_REF, "x"), (IMAGE[0], "a/b:c"), (LAYER[0], DIGEST)]);
            labels.insert(key.to_owned(), value.to_owned());
            let error = read(&labels).unwrap_err().to_string();
            assert!(error.contains(value), "{error}");
        }
    }
}
