//! Manifests, indexes and references: what a registry says before anything is trusted.

use xebec_snapshotter::fetch::ImageRef;
use xebec_snapshotter::fetch::manifest::{Document, OCI_INDEX, OCI_MANIFEST};

use crate::harness;

#[test]
fn manifest() {
    harness::run("manifest", Vec::new(), |bytes| {
        for media_type in [OCI_MANIFEST, OCI_INDEX] {
            if let Ok(document) = Document::parse(bytes, media_type, "x") {
                let text = match &document {
                    Document::Manifest(manifest) => serde_json::to_vec(manifest),
                    Document::Index(index) => serde_json::to_vec(index),
                };
                let again = Document::parse(&text.unwrap(), media_type, "x").unwrap();
                assert_eq!(again, document, "what is written again is the same");
            }
        }
    });
}

#[test]
fn reference() {
    let seeds = [
        "busybox",
        "h.example:5000/a/b__c:v1.2-x",
        "[::1]:5/a@sha256:00",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).to_vec();
    harness::run("reference", seeds, |bytes| {
        if let Ok(image) = ImageRef::parse(&String::from_utf8_lossy(bytes)) {
            let text = image.to_string();
            assert_eq!(ImageRef::parse(&text).unwrap(), image, "{text}");
        }
    });
}
