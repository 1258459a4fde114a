//! Pushing artifacts that refer to a manifest (OCI distribution specification 1.1, "Pushing
//! Manifests with Subject" and "Referrers Tag Schema").

use std::collections::BTreeMap;

use serde_json::json;

use super::manifest::{Descriptor, Document, Index, OCI_INDEX, OCI_MANIFEST};
use super::reference::ImageRef;
use super::registry::Registry;
use crate::digest::Digest;
use crate::discover::Manifests;
use crate::error::{Error, Result};

/// The empty JSON object, which stands for the configuration that an artifact does not have.
pub const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Something that belongs to an image and lies beside it in its repository.
#[derive(Debug, Clone)]
pub struct Artifact<'a> {
    /// What it is.
    pub artifact_type: &'a str,
    /// The manifest that it refers to.
    pub subject: &'a Descriptor,
    /// What it holds.
    pub blobs: &'a [Descriptor],
    /// What lists of referrers tell of it.
    pub annotations: BTreeMap<String, String>,
}

impl Artifact<'_> {
    /// Its manifest, and the descriptor by which it is listed.
    pub fn manifest(&self) -> Result<(Descriptor, Vec<u8>)> {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": self.artifact_type,
            "config": { "mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY), "size": EMPTY.len() },
            "layers": self.blobs,
            "subject": {
                "mediaType": self.subject.media_type,
                "digest": self.subject.digest,
                "size": self.subject.size,
            },
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        let bytes = to_json(&manifest)?;
        let artifact_type = ("artifactType".to_owned(), self.artifact_type.into());
        let descriptor = Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            annotations: self.annotations.clone(),
            platform: None,
            other: BTreeMap::from([artifact_type]),
        };
        Ok((descriptor, bytes))
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Internal(error.to_string()))
}

impl Registry {
    /// Stores an artifact whose blobs are in `image`'s repository, so that it is found among what
    /// refers to its subject; its digest.
    pub fn push_artifact(&self, image: &ImageRef, artifact: &Artifact<'_>) -> Result<Digest> {
        if !self.has_blob(image, &Digest::of(EMPTY))? {
            self.push_bytes(image, EMPTY)?;
        }
        let (descriptor, bytes) = artifact.manifest()?;
        let digest = descriptor.digest;
        self.put_manifest(&image.at_digest(digest), OCI_MANIFEST, &bytes)?;
        self.list_by_tag(image, artifact, descriptor)?;
        Ok(digest)
    }

    /// Adds an artifact to the index under the referrers tag of its subject, unless the registry
    /// lists it by itself. It takes the place of an earlier one of its type.
    fn list_by_tag(
        &self,
        image: &ImageRef,
        artifact: &Artifact<'_>,
        descriptor: Descriptor,
    ) -> Result<()> {
        let (subject, wanted) = (artifact.subject.digest, artifact.artifact_type);
        let listed = self.referrers(image, &subject, wanted)?;
        if listed.iter().any(|one| one.digest == descriptor.digest) {
            return Ok(());
        }
        let tag = image.referrers_tag(&subject);
        let what = format!("referrers {tag}");
        let mut index = match self.manifest(&tag) {
            Ok(fetched) => match fetched.document(&what)? {
                Document::Index(index) => index,
                Document::Manifest(_) => {
                    let reason = "is no index".to_owned();
                    return Err(Error::Malformed { what, reason });
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
        index
            .manifests
            .retain(|one| one.artifact_type() != Some(wanted));
        index.manifests.push(descriptor);
        self.put_manifest(&tag, OCI_INDEX, &to_json(&index)?)
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifacts_manifest_is_one_and_names_its_subject() {
        let blob = Descriptor {
            media_type: "application/x".to_owned(),
            digest: Digest::of(b"blob"),
            size: 4,
            annotations: BTreeMap::new(),
            platform: None,
            other: BTreeMap::new(),
        };
        let artifact = Artifact {
            artifact_type: "application/y",
            subject: &blob,
            blobs: std::slice::from_ref(&blob),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        };
        let (descriptor, bytes) = artifact.manifest().unwrap();
        assert_eq!(descriptor.artifact_type(), Some("application/y"));
        assert_eq!(descriptor.digest, Digest::of(&bytes));
        let Document::Manifest(manifest) = Document::parse(&bytes, OCI_MANIFEST, "x").unwrap()
        else {
            panic!("an index");
        };
        assert_eq!(manifest.layers, std::slice::from_ref(&blob));
        let digest = blob.digest.to_string();
        assert_eq!(manifest.other["subject"]["digest"], digest.as_str());
        assert_eq!(manifest.other["annotations"]["a"], "b");
    }
}
