//! The Nydus form of an ordinary image: another manifest that stands for the same files.
//!
//! Nydus' tools leave it in one of three places. The index around the image lists it for the same
//! platform; who has pushed the index vouches for both. A manifest whose subject is the image's, or
//! one under the image's tag with a suffix, can be put there by others without a change to the
//! image, so nobody vouches for those.

use std::sync::Arc;

use super::Image;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, Document, Index};
use crate::formats::nydus::{self, Part};

/// Where a Nydus form is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// In the index around the image.
    pub index: bool,
    /// Among what refers to the image's manifest; nobody vouches for that.
    pub referrers: bool,
    /// Under the image's tag with this suffix; nobody vouches for that.
    pub tag_suffix: Option<String>,
}

/// The types by which registries list a Nydus manifest that refers to another: its own, and where it
/// has none that of its configuration.
const REFERRERS: [&str; 3] = [
    nydus::ARTIFACT_TYPE,
    nydus::CONFIG_MEDIA_TYPE,
    "application/vnd.oci.image.config.v1+json",
];

/// A place, and how to look there.
type Look<'a> = (&'static str, &'a dyn Fn() -> Result<Option<Image>>);

/// Looks for the Nydus form of `image`; where it was found is told for the log. A place that cannot
/// be looked at has none.
pub(super) fn find(image: &Image, routes: &Routes) -> Option<(&'static str, Arc<Image>)> {
    let looks: [Look<'_>; 3] = [
        ("index", &|| {
            if routes.index {
                in_index(image)
            } else {
                Ok(None)
            }
        }),
        ("referrer", &|| {
            if routes.referrers {
                referring(image)
            } else {
                Ok(None)
            }
        }),
        ("tag", &|| {
            routes
                .tag_suffix
                .as_ref()
                .map_or(Ok(None), |suffix| tagged(image, suffix))
        }),
    ];
    for (place, look) in looks {
        match look() {
            Ok(Some(found)) => return Some((place, Arc::new(found))),
            Ok(None) => {}
            Err(error) => {
                let image = image.reference();
                tracing::debug!(%image, place, %error, "no Nydus form was found there");
            }
        }
    }
    None
}

fn in_index(image: &Image) -> Result<Option<Image>> {
    // A digest leads to what it names.
    if image.reference().digest() == Some(image.digest()) {
        return Ok(None);
    }
    let Some(index) = image.enclosing_index()? else {
        return Ok(None);
    };
    let Some(descriptor) = listed(&index, image) else {
        return Ok(None);
    };
    let found = image.fetch_other(descriptor.digest)?;
    check(&found)?;
    Ok(Some(found))
}

/// The entry of `index` for the Nydus form of `image`: one that is marked, for the same platform.
fn listed<'a>(index: &'a Index, image: &Image) -> Option<&'a Descriptor> {
    let mut own = index.manifests.iter();
    let own = own.find(|one| one.digest == image.digest())?;
    let platform = own.platform.as_ref()?;
    index.manifests.iter().find(|one| {
        one.digest != own.digest
            && nydus::is_marked(one)
            && one.platform.as_ref().is_some_and(|it| platform.accepts(it))
    })
}

fn referring(image: &Image) -> Result<Option<Image>> {
    for artifact_type in REFERRERS {
        for descriptor in image.referrers(artifact_type)? {
            let found = image.fetch_other(descriptor.digest)?;
            if check(&found).is_ok() {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn tagged(image: &Image, suffix: &str) -> Result<Option<Image>> {
    let Some(reference) = image.reference().with_suffix(suffix) else {
        return Ok(None);
    };
    let (descriptor, document) = super::image::first(image.blobs(), &reference)?;
    let found = match document {
        Document::Manifest(manifest) => image.other(descriptor, manifest),
        Document::Index(index) => {
            let platform = crate::fetch::Platform::host();
            let digest = index
                .select(&platform, &format!("image {reference}"))?
                .digest;
            image.fetch_other(digest)?
        }
    };
    check(&found)?;
    Ok(Some(found))
}

/// Refuses what is no Nydus image: its last layer holds the bootstrap.
fn check(found: &Image) -> Result<()> {
    let last = found.manifest().layers.last();
    match last.and_then(|last| nydus::part(&last.annotations)) {
        Some(Part::Bootstrap) => Ok(()),
        _ => Err(Error::Malformed {
            what: format!(
                "manifest {} of {}",
                found.digest(),
                found.reference().name()
            ),
            reason: "its last layer holds no Nydus bootstrap".to_owned(),
        }),
    }
}
