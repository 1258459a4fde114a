//! Image manifests and indexes, in their OCI and docker spellings.
//!
//! Fields that this crate does not know are kept, so that a rewritten document loses nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::formats::nydus;

use super::platform::Platform;

/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a docker manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Largest manifest or index that is read: the limit most registries have.
pub const MAX_MANIFEST: usize = 4 << 20;

/// A reference to content by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What the content runs on; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further fields, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Descriptor {
    /// What kind of artifact the content is; only in lists of referrers.
    pub fn artifact_type(&self) -> Option<&str> {
        self.other.get("artifactType")?.as_str()
    }
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type, which OCI allows to leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image's configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Further fields, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Several images under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Media type, which OCI allows to leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The images.
    pub manifests: Vec<Descriptor>,
    /// Further fields, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// What a reference can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time, and it is taken apart at once"
)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several images.
    Index(Index),
}

impl Document {
    /// Parses `bytes`; `media_type` is what the descriptor or the registry called them, and what
    /// the document says of itself must agree with it (a manifest must not pass as an index).
    pub fn parse(bytes: &[u8], media_type: &str, what: &str) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed {
            what: what.to_owned(),
            reason,
        };
        let json = |error: serde_json::Error| malformed(error.to_string());
        let fields: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(json)?;
        let inner = fields
            .get("mediaType")
            .and_then(Value::as_str)
            .unwrap_or(media_type);
        let known = |name: &str| {
            matches!(
                name,
                OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_INDEX
            )
        };
        let kind = if known(media_type) { media_type } else { inner };
        if is_index(kind) != is_index(inner) || (known(kind) && !known(inner)) {
            return Err(malformed(format!(
                "is called {kind} but calls itself {inner}"
            )));
        }
        let document = match kind {
            OCI_INDEX | DOCKER_INDEX if !fields.contains_key("layers") => {
                Self::Index(serde_json::from_slice(bytes).map_err(json)?)
            }
            OCI_MANIFEST | DOCKER_MANIFEST if !fields.contains_key("manifests") => {
                Self::Manifest(serde_json::from_slice(bytes).map_err(json)?)
            }
            OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST => {
                return Err(malformed("is manifest and index at once".into()));
            }
            other => return Err(malformed(format!("media type {other:?} is no image"))),
        };
        Ok(document)
    }
}

/// Whether `media_type` is one of the two of indexes.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

impl Index {
    /// The first image for `platform`, a Nydus form only if there is no other; `what` names the index
    /// in the error.
    pub fn select(&self, platform: &Platform, what: &str) -> Result<&Descriptor> {
        self.select_form(false, platform, what)
    }

    /// The same, an ordinary image only if there is no Nydus form.
    pub fn select_nydus(&self, platform: &Platform, what: &str) -> Result<&Descriptor> {
        self.select_form(true, platform, what)
    }

    fn select_form(&self, nydus: bool, platform: &Platform, what: &str) -> Result<&Descriptor> {
        let offered = |descriptor: &&Descriptor| {
            let offered = descriptor.platform.as_ref();
            offered.is_some_and(|offered| platform.accepts(offered))
        };
        let is_form = |descriptor: &&Descriptor| nydus::is_marked(descriptor) == nydus;
        let all = || self.manifests.iter().filter(offered);
        let chosen = all().find(is_form).or_else(|| all().next());
        chosen.ok_or_else(|| {
            let platforms = self.manifests.iter();
            let all: Vec<_> = platforms
                .filter_map(|descriptor| descriptor.platform.as_ref().map(Platform::to_string))
                .collect();
            Error::NotFound(format!("{what} for {platform} (it has {})", all.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest() -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",
            "config":{{"mediaType":"c","digest":"{D}","size":2,"urls":["u"]}},
            "layers":[{{"mediaType":"l","digest":"{D}","size":3,"annotations":{{"a":"b"}}}}],
            "subject":{{"x":1}}}}"#
        )
    }

    fn index() -> String {
        format!(
            r#"{{"schemaVersion":2,"manifests":[
            {{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":1,
              "platform":{{"os":"linux","architecture":"arm64","variant":"v8","os.version":"1"}}}},
            {{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":7,
              "platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        )
    }

    #[test]
    fn rewriting_loses_no_field() {
        for (text, media_type) in [(manifest(), OCI_MANIFEST), (index(), OCI_INDEX)] {
            let rewritten = match Document::parse(text.as_bytes(), media_type, "x").unwrap() {
                Document::Manifest(manifest) => serde_json::to_value(manifest).unwrap(),
                Document::Index(index) => serde_json::to_value(index).unwrap(),
            };
            assert_eq!(rewritten, serde_json::from_str::<Value>(&text).unwrap());
        }
    }

    #[test]
    fn the_registrys_word_decides_when_the_document_is_silent() {
        let parse = |media_type| Document::parse(index().as_bytes(), media_type, "x");
        assert!(matches!(parse(DOCKER_INDEX), Ok(Document::Index(_))));
        assert!(parse("text/html").is_err());
    }

    #[test]
    fn confused_documents_are_refused_by_name() {
        let both = manifest().replace("\"subject\"", "\"manifests\":[],\"subject\"");
        let size = manifest().replace("\"size\":3", "\"size\":-3");
        let digest = manifest().replace("sha256:e3", "sha256:e");
        for (text, media_type) in [
            (both.as_str(), OCI_MANIFEST),
            (&manifest(), OCI_INDEX),
            (&size, OCI_MANIFEST),
            (&digest, OCI_MANIFEST),
            ("{", OCI_MANIFEST),
            ("[]", OCI_MANIFEST),
        ] {
            let error = Document::parse(text.as_bytes(), media_type, "image h/x").unwrap_err();
            assert!(error.to_string().starts_with("image h/x: "), "{error}");
        }
    }

    #[test]
    fn the_platform_selects_or_the_offered_ones_are_named() {
        let Document::Index(index) = Document::parse(index().as_bytes(), OCI_INDEX, "x").unwrap()
        else {
            panic!("not an index")
        };
        let select = |text: &str| index.select(&text.parse().unwrap(), "image h/x");
        assert_eq!(select("linux/amd64").unwrap().size, 7);
        let error = select("linux/s390x").unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8, linux/amd64"), "{error}");
    }
}
