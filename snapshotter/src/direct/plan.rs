//! Which snapshots an image needs, and what they are called: pure.

use std::collections::HashMap;
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::ImageRef;
use crate::fetch::manifest::Manifest;
use crate::service::{chain, labels};

/// How names of snapshots begin that containerd has no part in: no namespace of its can be called
/// like this.
pub const PREFIX: &str = "@image/";

/// One layer that the daemon is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Under which it is committed.
    pub(super) name: String,
    /// The name of the one below.
    pub(super) parent: String,
    /// What says where it is.
    pub(super) labels: HashMap<String, String>,
}

/// The layers of an image, bottom first.
pub(super) fn steps(
    reference: &ImageRef,
    digest: Digest,
    manifest: &Manifest,
    diff_ids: &[Digest],
) -> Result<Vec<Step>> {
    let (ids, layers) = (diff_ids.len(), &manifest.layers);
    if ids != layers.len() || ids == 0 {
        return Err(Error::Malformed {
            what: format!("configuration of {reference}"),
            reason: format!("has {ids} rootfs.diff_ids for {} layers", layers.len()),
        });
    }
    let chain = chain::ids(diff_ids);
    let step = |number: usize| {
        let above = layers[number..].iter().map(|layer| layer.digest);
        let mut labels = labels::of_layer(
            reference,
            digest,
            &chain[number],
            &above.collect::<Vec<_>>(),
        );
        labels.extend(labels::passed(&layers[number].annotations));
        Step {
            name: format!("{PREFIX}{}", chain[number]),
            parent: number
                .checked_sub(1)
                .map_or_else(String::new, |below| format!("{PREFIX}{}", chain[below])),
            labels,
        }
    };
    Ok((0..ids).map(step).collect())
}

/// The name of the view that is mounted at `dir`.
pub(super) fn view_of(dir: &Path) -> String {
    format!("{PREFIX}at{}", dir.display())
}

/// Mount options as the kernel takes them in one text: what is a flag has its own way.
pub(super) fn options(options: &[String]) -> String {
    let data = options.iter().filter(|option| *option != "ro");
    data.map(String::as_str).collect::<Vec<_>>().join(",")
}
