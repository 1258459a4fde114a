//! One layer on its way: reused as it is, or converted and stored.

use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::Descriptor;
use crate::formats::estargz::toc::{TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};

use super::estargz::{self, Style};
use super::member::Pool;
use super::place::Store;
use super::progress::Observer;
use super::reuse;
use super::spool::spool;

/// Media type of a gzip layer in OCI images.
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a gzip layer in docker images.
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Annotations of other formats and tools, which no longer hold once a layer is rewritten.
const FOREIGN_ANNOTATIONS: [&str; 5] = [
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
    "containerd.io/snapshot/nydus-",
    "com.amazon.soci.",
    "ci.umo.uncompressed_blob_size",
];

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Digest of the layer in the source.
    pub source: Digest,
    /// Its compressed size in bytes.
    pub source_size: u64,
    /// Digest of the layer in the destination.
    pub digest: Digest,
    /// Its compressed size in bytes.
    pub size: u64,
    /// Digest of its table of contents.
    pub toc_digest: Digest,
    /// Whether it was lazily readable before and was taken as it is.
    pub reused: bool,
}

/// A layer in its destination.
#[derive(Clone)]
pub(super) struct DoneLayer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    pub(super) report: LayerReport,
    /// What describes the layer, where that is a blob of its own.
    pub(super) beside: Option<Descriptor>,
}

/// What all layers of a conversion share.
pub(super) struct Workshop<'a> {
    pub(super) source: Store<'a>,
    pub(super) destination: Store<'a>,
    pub(super) style: &'a Style,
    /// Layers that are eStargz already are rewritten too.
    pub(super) rewrite: bool,
    pub(super) pool: &'a Pool,
    pub(super) dir: &'a Path,
    pub(super) observer: &'a dyn Observer,
}

impl Workshop<'_> {
    /// Converts `layer`, whose archive has digest `diff_id`, and stores it.
    pub(super) fn convert(&self, layer: &Descriptor, diff_id: Digest) -> Result<DoneLayer> {
        let media_type = gzip_type(layer)?;
        let done = match self.reuse(layer, diff_id)? {
            Some(done) => done,
            None => self.rewrite(layer, media_type)?,
        };
        self.observer.finished(&layer.digest, &done.report);
        Ok(done)
    }

    fn reuse(&self, layer: &Descriptor, diff_id: Digest) -> Result<Option<DoneLayer>> {
        if self.rewrite {
            return Ok(None);
        }
        let what = layer.digest.to_string();
        let ranges = self.source.ranges(layer)?;
        let Some(toc_digest) = reuse::toc_digest(ranges.as_ref(), &what)? else {
            return Ok(None);
        };
        self.destination.copy_from(&self.source, layer, self.dir)?;
        self.observer.read(&layer.digest, layer.size);
        let mut descriptor = layer.clone();
        descriptor
            .annotations
            .insert(TOC_DIGEST_ANNOTATION.to_owned(), toc_digest.to_string());
        let report = report(layer, &descriptor, toc_digest, true);
        Ok(Some(DoneLayer {
            descriptor,
            diff_id,
            report,
            beside: None,
        }))
    }

    fn rewrite(&self, layer: &Descriptor, media_type: &str) -> Result<DoneLayer> {
        let blob = Counted {
            inner: self.source.read(layer)?,
            layer,
            observer: self.observer,
        };
        let spool = spool(blob, self.dir, &layer.digest.to_string())?;
        let written = estargz::write(spool, self.style, self.pool, self.dir)?;
        let mut annotations = layer.annotations.clone();
        annotations.retain(|key, _| {
            !FOREIGN_ANNOTATIONS
                .iter()
                .any(|prefix| key.starts_with(prefix))
        });
        annotations.insert(
            TOC_DIGEST_ANNOTATION.to_owned(),
            written.toc_digest.to_string(),
        );
        let size = written.uncompressed_size.to_string();
        annotations.insert(UNCOMPRESSED_SIZE_ANNOTATION.to_owned(), size);
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: written.digest,
            size: written.size,
            annotations,
            ..layer.clone()
        };
        self.destination.put_file(&descriptor, written.file)?;
        let report = report(layer, &descriptor, written.toc_digest, false);
        Ok(DoneLayer {
            descriptor,
            diff_id: written.diff_id,
            report,
            beside: None,
        })
    }
}

pub(super) fn report(
    layer: &Descriptor,
    done: &Descriptor,
    toc_digest: Digest,
    reused: bool,
) -> LayerReport {
    LayerReport {
        source: layer.digest,
        source_size: layer.size,
        digest: done.digest,
        size: done.size,
        toc_digest,
        reused,
    }
}

/// The media type of `layer` once it is gzip, in the family that it is of.
fn gzip_type(layer: &Descriptor) -> Result<&'static str> {
    let known = |prefix: &str| layer.media_type.starts_with(prefix);
    if known("application/vnd.oci.image.layer.v1.tar") {
        Ok(OCI_GZIP)
    } else if known("application/vnd.docker.image.rootfs.diff.tar") {
        Ok(DOCKER_GZIP)
    } else {
        Err(Error::Malformed {
            what: format!("layer {}", layer.digest),
            reason: format!("media type {:?} cannot be converted", layer.media_type),
        })
    }
}

/// Tells the observer what has been read.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) layer: &'a Descriptor,
    pub(super) observer: &'a dyn Observer,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.observer.read(&self.layer.digest, count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stay_in_their_family_and_others_are_refused() {
        let of = |media_type: &str| Descriptor {
            media_type: media_type.into(),
            digest: Digest::of(b""),
            size: 0,
            annotations: [].into(),
            platform: None,
            other: [].into(),
        };
        for (from, to) in [
            ("application/vnd.oci.image.layer.v1.tar", OCI_GZIP),
            ("application/vnd.oci.image.layer.v1.tar+zstd", OCI_GZIP),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                DOCKER_GZIP,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.zstd",
                DOCKER_GZIP,
            ),
        ] {
            assert_eq!(gzip_type(&of(from)).unwrap(), to);
        }
        let error = gzip_type(&of("application/vnd.in-toto+json"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("in-toto") && error.contains("sha256:"),
            "{error}"
        );
    }
}
