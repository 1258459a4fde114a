//! Images of a registry in memory that counts what it is asked for.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::error::Error;
use crate::fetch::BlobSource;
use crate::fetch::artifact::Artifact;
use crate::fetch::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::formats::nydus;

const LAYER: &[u8] = b"layer";

/// Documents by what they are asked for by.
#[derive(Default)]
struct Registry {
    documents: Mutex<HashMap<String, (&'static str, Vec<u8>)>>,
    asked: AtomicUsize,
}

impl Registry {
    fn put(&self, tag: Option<&str>, media_type: &'static str, document: &Value) -> Digest {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let mut documents = lock(&self.documents);
        for key in [Some(digest.to_string()), tag.map(str::to_owned)] {
            documents.extend(key.map(|key| (key, (media_type, bytes.clone()))));
        }
        digest
    }

    /// Changes by how often it was asked.
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

struct Access(Arc<Registry>);

impl Manifests for Access {
    fn manifest(&self, image: &ImageRef) -> Result<FetchedManifest> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let documents = lock(&self.0.documents);
        let key = image.manifest_key();
        let (media_type, bytes) = documents.get(&key).ok_or(Error::NotFound(key))?;
        Ok(FetchedManifest {
            media_type: (*media_type).to_owned(),
            digest: Digest::of(bytes),
            bytes: bytes.clone(),
        })
    }

    fn referrers(&self, _: &ImageRef, of: &Digest, kind: &str) -> Result<Vec<Descriptor>> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let documents = lock(&self.0.documents);
        let found = documents.values().filter_map(|(media_type, bytes)| {
            let document: Value = serde_json::from_slice(bytes).unwrap();
            let is_of = document["subject"]["digest"] == of.to_string();
            let digest = Digest::of(bytes);
            (is_of && document["artifactType"] == kind).then(|| {
                let found = descriptor(digest, &json!({"mediaType": media_type}));
                serde_json::from_value(found).unwrap()
            })
        });
        Ok(found.collect())
    }
}

impl Blobs for Access {
    fn publish(&self, _: &ImageRef, artifact: &Artifact<'_>, _: &[&[u8]]) -> Result<Digest> {
        let (descriptor, _) = artifact.manifest()?;
        Err(Error::NotFound(descriptor.digest.to_string()))
    }

    fn blob(&self, _: &ImageRef, layer: &Digest, _: u64) -> Result<Arc<dyn BlobSource>> {
        Err(Error::NotFound(format!("blob {layer}")))
    }
}

fn descriptor(digest: Digest, more: &Value) -> Value {
    let mut descriptor =
        json!({"mediaType": "application/x", "digest": digest.to_string(), "size": 5});
    for (key, value) in more.as_object().unwrap() {
        descriptor[key] = value.clone();
    }
    descriptor
}

fn manifest(architecture: &str) -> Value {
    let annotated = json!({"annotations": {"a": architecture}});
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(Digest::of(b"{}"), &json!({})),
        "layers": [descriptor(Digest::of(LAYER), &annotated)],
    })
}

/// Puts an image for two platforms under `tag`; the digest of this platform's.
fn put_index(registry: &Registry, tag: &str) -> Digest {
    let host = crate::fetch::Platform::host().architecture;
    let mut ours = None;
    let manifests: Vec<Value> = ["s390x", &host]
        .into_iter()
        .map(|architecture| {
            let digest = registry.put(None, OCI_MANIFEST, &manifest(architecture));
            ours = Some(digest);
            let platform = json!({"mediaType": OCI_MANIFEST,
                "platform": {"os": "linux", "architecture": architecture}});
            descriptor(digest, &platform)
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    registry.put(Some(tag), OCI_INDEX, &index);
    ours.unwrap()
}

fn images() -> (Arc<Registry>, Images) {
    let registry: Arc<Registry> = Arc::default();
    let images = Images::new(Arc::new(Access(Arc::clone(&registry))));
    (registry, images)
}

fn reference(tag: &str) -> ImageRef {
    ImageRef::parse(&format!("h.example/app:{tag}")).unwrap()
}

#[test]
fn one_request_tells_all_layers_of_an_image_what_they_are() {
    let (registry, images) = images();
    let digest = registry.put(Some("v1"), OCI_MANIFEST, &manifest("any"));
    for known in [Some(digest), None] {
        for _ in 0..3 {
            let image = images.get(&reference("v1"), known).unwrap();
            let layer = image.layer(&Digest::of(LAYER)).unwrap();
            assert_eq!((layer.size, layer.annotations["a"].as_str()), (5, "any"));
            assert_eq!(image.digest(), digest);
        }
        assert_eq!(registry.asked(), 1, "{known:?}");
    }
}

#[test]
fn many_threads_at_once_make_one_request() {
    let (registry, images) = images();
    registry.put(Some("v1"), OCI_MANIFEST, &manifest("any"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| images.get(&reference("v1"), None).unwrap());
        }
    });
    assert_eq!(registry.asked(), 1);
}

#[test]
fn an_index_leads_to_this_platforms_image_and_is_kept() {
    let (registry, images) = images();
    let ours = put_index(&registry, "v1");
    let image = images.get(&reference("v1"), None).unwrap();
    assert_eq!(image.digest(), ours);
    assert_eq!(registry.asked(), 2);
    let index = image.enclosing_index().unwrap().unwrap();
    assert_eq!(index.manifests.len(), 2);
    assert_eq!(registry.asked(), 0, "the index was at hand");
}

#[test]
fn the_index_around_a_known_manifest_is_asked_for_once_when_it_is_needed() {
    let (registry, images) = images();
    let ours = put_index(&registry, "v1");
    let image = images.get(&reference("v1"), Some(ours)).unwrap();
    assert_eq!(registry.asked(), 1);
    for _ in 0..2 {
        assert!(image.enclosing_index().unwrap().is_some());
    }
    assert_eq!(registry.asked(), 1);

    let lone = registry.put(Some("v2"), OCI_MANIFEST, &manifest("lone"));
    let image = images.get(&reference("v2"), Some(lone)).unwrap();
    assert!(image.enclosing_index().unwrap().is_none());
    put_index(&registry, "v3");
    let moved = images.get(&reference("v3"), Some(lone)).unwrap();
    assert!(
        moved.enclosing_index().unwrap().is_none(),
        "an index that does not list the image is not around it"
    );
}

#[test]
fn a_failure_is_not_remembered() {
    let (registry, images) = images();
    let error = images.get(&reference("v1"), None).err().unwrap();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    registry.put(Some("v1"), OCI_MANIFEST, &manifest("any"));
    let image = images.get(&reference("v1"), None).unwrap();
    let stranger = image.layer(&Digest::of(b"other")).unwrap_err().to_string();
    assert!(stranger.contains("h.example/app:v1"), "{stranger}");
}

#[test]
fn the_memory_of_images_is_bounded() {
    let (registry, images) = images();
    for i in 0..MAX_IMAGES * 2 {
        let tag = format!("v{i}");
        registry.put(Some(&tag), OCI_MANIFEST, &manifest("any"));
        images.get(&reference(&tag), None).unwrap();
    }
    assert_eq!(lock(&images.known).len(), MAX_IMAGES);
    registry.asked();
    images
        .get(&reference(&format!("v{}", MAX_IMAGES * 2 - 1)), None)
        .unwrap();
    assert_eq!(registry.asked(), 0, "the latest is remembered");
}

/// The manifest of a Nydus image, with `more` in it.
fn nydus_manifest(more: &Value) -> Value {
    let mut nydus = manifest("nydus");
    let bootstrap = json!({"annotations": {nydus::BOOTSTRAP_ANNOTATION: "true"}});
    nydus["layers"]
        .as_array_mut()
        .unwrap()
        .push(descriptor(Digest::of(b"bootstrap"), &bootstrap));
    for (key, value) in more.as_object().unwrap() {
        nydus[key] = value.clone();
    }
    nydus
}

/// Puts an index of an ordinary image for this platform and of the given others; its digest and the
/// image's.
fn put_beside(registry: &Registry, tag: &str, others: &[Value]) -> (Digest, Digest) {
    let host = crate::fetch::Platform::host().architecture;
    let ours = registry.put(None, OCI_MANIFEST, &manifest("ours"));
    let platform = json!({"mediaType": OCI_MANIFEST,
        "platform": {"os": "linux", "architecture": host}});
    let mut manifests = others.to_vec();
    manifests.push(descriptor(ours, &platform));
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    (registry.put(Some(tag), OCI_INDEX, &index), ours)
}

fn routes(index: bool, referrers: bool, tag_suffix: Option<&str>) -> Routes {
    Routes {
        index,
        referrers,
        tag_suffix: tag_suffix.map(str::to_owned),
    }
}

#[test]
fn the_nydus_form_in_the_index_is_found_by_either_mark_for_this_platform_only() {
    let host = crate::fetch::Platform::host().architecture;
    let marks = [
        json!({"artifactType": nydus::ARTIFACT_TYPE}),
        json!({"platform": {"os.features": [nydus::OS_FEATURE]}}),
    ];
    for mark in marks {
        for (architecture, is_found) in [(host.as_str(), true), ("s390x", false)] {
            let (registry, images) = images();
            let digest = registry.put(None, OCI_MANIFEST, &nydus_manifest(&json!({})));
            let mut entry = descriptor(digest, &mark);
            entry["mediaType"] = OCI_MANIFEST.into();
            entry["platform"]["os"] = "linux".into();
            entry["platform"]["architecture"] = architecture.into();
            let (index, ours) = put_beside(&registry, "v1", &[entry]);
            for known in [None, Some(ours)] {
                let image = images.get(&reference("v1"), known).unwrap();
                assert_eq!(image.digest(), ours, "the ordinary one is chosen");
                let found = image.nydus(&routes(true, false, None));
                assert_eq!(found.map(|it| it.digest()), is_found.then_some(digest));
                registry.asked();
                image.nydus(&routes(true, false, None));
                assert_eq!(registry.asked(), 0, "it is looked for once");
            }
            // By digest the index itself is checked, and a manifest's digest leads to nothing else.
            let by_digest = |digest| {
                let image = images.get(&reference("v1").at_digest(digest), Some(ours));
                image.unwrap().nydus(&routes(true, false, None)).is_some()
            };
            assert_eq!((by_digest(index), by_digest(ours)), (is_found, false));
            let image = images.get(&reference("v1").at_digest(index), None).unwrap();
            assert!(image.nydus(&routes(false, true, Some("-n"))).is_none());
        }
    }
}

#[test]
fn a_nydus_form_that_nobody_vouches_for_is_looked_for_only_where_that_is_allowed() {
    let (registry, images) = images();
    let ours = registry.put(Some("v1"), OCI_MANIFEST, &manifest("ours"));
    let unrelated = registry.put(Some("v1-other"), OCI_MANIFEST, &manifest("other"));
    let look = |routes: &Routes| {
        let images = Images::new(Arc::clone(&images.blobs));
        let image = images.get(&reference("v1"), Some(ours)).unwrap();
        image.nydus(routes).map(|found| found.digest())
    };
    assert_eq!(look(&routes(true, true, Some("-nydus"))), None);
    assert_eq!(
        look(&routes(true, true, Some("-other"))),
        None,
        "{unrelated}"
    );
    let tagged = registry.put(Some("v1-nydus"), OCI_MANIFEST, &nydus_manifest(&json!({})));
    assert_eq!(look(&routes(true, false, None)), None);
    assert_eq!(look(&routes(true, true, Some("-nydus"))), Some(tagged));
    let subject = json!({"artifactType": nydus::CONFIG_MEDIA_TYPE,
        "subject": descriptor(ours, &json!({}))});
    let referring = registry.put(None, OCI_MANIFEST, &nydus_manifest(&subject));
    assert_eq!(look(&routes(true, true, Some("-nydus"))), Some(referring));
    assert_eq!(look(&routes(true, false, Some("-nydus"))), Some(tagged));
}
