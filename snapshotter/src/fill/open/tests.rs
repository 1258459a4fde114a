//! What a layer turns out to be, by what its manifest says and by its bytes.

use std::sync::Mutex;

use super::*;
use crate::formats::estargz::toc::TOC_DIGEST_ANNOTATION;
use crate::formats::zstdchunked::sample::{Finished, Sample};
use crate::formats::zstdchunked::{CONTAINERS, STARGZ};

/// Delivers a blob and remembers what it was asked for.
struct Source(Vec<u8>, Mutex<Vec<(u64, u64)>>);

impl BlobSource for Source {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.1.lock().unwrap().push((offset, len));
        Ok(self.0[offset as usize..][..len as usize].to_vec())
    }
}

type Annotations = BTreeMap<String, String>;

fn open(blob: &[u8], annotations: &Annotations, allow_unverified: bool) -> Result<Opened> {
    let source = Source(blob.to_vec(), Mutex::default());
    let opened = open_layer(&LayerQuery {
        skip_footer: false,
        trust_referrers: false,
        blob: &source,
        layer: Digest::of(blob),
        media_type: "",
        annotations,
        image: None,
        allow_unverified,
    });
    let asked = source.1.into_inner().unwrap();
    assert!(asked.len() <= 1, "one round trip, not {asked:?}");
    opened
}

fn annotations(finished: &Finished) -> Annotations {
    let dialect = finished.dialect;
    [
        (dialect.checksum.to_owned(), finished.checksum.to_string()),
        (dialect.position.to_owned(), finished.position.clone()),
    ]
    .into()
}

fn sample() -> Sample {
    let mut sample = Sample::default();
    sample.file("f", &[b"content"]);
    sample
}

#[test]
fn zstd_chunked_is_known_by_the_annotations_of_both_dialects() {
    for dialect in [CONTAINERS, STARGZ] {
        let finished = sample().finish(dialect);
        let vouched_for = annotations(&finished);
        match open(&finished.blob, &vouched_for, false).unwrap() {
            Opened::Lazy(index) => assert_eq!(index.toc(), finished.checksum),
            other => panic!("{other:?}"),
        }
        let mut wrong = vouched_for.clone();
        wrong.insert(dialect.checksum.to_owned(), Digest::of(b"x").to_string());
        let error = open(&finished.blob, &wrong, true).unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        let mut astray = vouched_for.clone();
        astray.insert(dialect.position.to_owned(), "8:1:1".to_owned());
        let error = open(&finished.blob, &astray, true).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let mut silent = vouched_for;
        silent.remove(dialect.checksum);
        let opened = open(&finished.blob, &silent, false).unwrap();
        assert!(matches!(opened, Opened::Unverified), "{opened:?}");
    }
}

#[test]
fn zstd_chunked_with_only_the_label_that_containerd_passes_is_known_by_its_footer() {
    for dialect in [CONTAINERS, STARGZ] {
        let finished = sample().finish(dialect);
        let json = Digest::of(&finished.json);
        let mut label: Annotations = [(TOC_DIGEST_ANNOTATION.to_owned(), json.to_string())].into();
        match open(&finished.blob, &label, false).unwrap() {
            Opened::Lazy(index) => assert_eq!(index.toc(), json),
            other => panic!("{other:?}"),
        }
        // All that is said must be true, and the store knows the layer by the same digest.
        label.append(&mut annotations(&finished));
        match open(&finished.blob, &label, false).unwrap() {
            Opened::Lazy(index) => assert_eq!(vouched(&label).unwrap(), Some(index.toc())),
            other => panic!("{other:?}"),
        }
        label.insert(
            TOC_DIGEST_ANNOTATION.to_owned(),
            Digest::of(b"x").to_string(),
        );
        assert!(open(&finished.blob, &label, false).is_err());
    }
}

#[test]
fn what_nobody_vouches_for_is_read_only_if_that_is_allowed() {
    let none = Annotations::new();
    let finished = sample().finish(CONTAINERS);
    assert!(matches!(
        open(&finished.blob, &none, false).unwrap(),
        Opened::Unverified
    ));
    assert!(matches!(
        open(&finished.blob, &none, true).unwrap(),
        Opened::Lazy(_)
    ));
    let plain = zstd::encode_all(&b"a tar archive"[..], 1).unwrap();
    assert!(matches!(
        open(&plain, &none, true).unwrap(),
        Opened::Ordinary
    ));
}
