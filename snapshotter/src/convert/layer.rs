//! One layer on its way: reused as it is, or converted and stored.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::manifest::Descriptor;
use crate::formats::estargz::toc::TOC_DIGEST_ANNOTATION;

use super::entry::check_names;
use super::member::Pool;
use super::progress::Observer;
use super::spool::spool;
use super::store::Store;
use super::target::{Style, Target};

/// Annotations of other formats and tools, which no longer hold once a layer is rewritten.
const FOREIGN_ANNOTATIONS: [&str; 7] = [
    TOC_DIGEST_ANNOTATION,
    "io.containers.estargz.",
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

/// A written blob, whatever its format.
#[derive(Debug)]
pub(super) struct Written {
    /// The blob, in a nameless file.
    pub(super) file: File,
    /// Digest of the blob.
    pub(super) digest: Digest,
    /// Length of the blob in bytes.
    pub(super) size: u64,
    /// Digest of the archive that it decompresses to.
    pub(super) diff_id: Digest,
    /// Digest of the TOC, as the format's annotation states it.
    pub(super) toc_digest: Digest,
    /// The format's annotations.
    pub(super) annotations: Vec<(&'static str, String)>,
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
    pub(super) source: &'a Store<'a>,
    pub(super) destination: &'a Store<'a>,
    pub(super) style: &'a Style,
    /// Layers that are in the format already are rewritten too.
    pub(super) rewrite: bool,
    pub(super) pool: &'a Pool,
    pub(super) dir: &'a Path,
    pub(super) observer: &'a dyn Observer,
}

impl Workshop<'_> {
    /// Converts `layer`, whose archive has digest `diff_id`, and stores it.
    pub(super) fn convert(&self, layer: &Descriptor, diff_id: Digest) -> Result<DoneLayer> {
        let media_type = self.style.media_type(layer)?;
        let done = match self.reuse(layer, diff_id)? {
            Some(done) => done,
            None => self.rewrite(layer, diff_id, media_type)?,
        };
        self.observer.finished(&layer.digest, &done.report);
        Ok(done)
    }

    fn reuse(&self, layer: &Descriptor, diff_id: Digest) -> Result<Option<DoneLayer>> {
        if self.rewrite {
            return Ok(None);
        }
        let ranges = self.source.ranges(layer)?;
        let Some(toc_digest) = self.style.toc_digest(ranges.as_ref(), layer)? else {
            return Ok(None);
        };
        self.destination.copy_from(self.source, layer, self.dir)?;
        self.observer.read(&layer.digest, layer.size);
        let mut descriptor = layer.clone();
        if self.style.target == Target::Estargz {
            let annotation = (TOC_DIGEST_ANNOTATION.to_owned(), toc_digest.to_string());
            descriptor.annotations.extend([annotation]);
        }
        let report = report(layer, &descriptor, toc_digest, true);
        Ok(Some(DoneLayer {
            descriptor,
            diff_id,
            report,
            beside: None,
        }))
    }

    fn rewrite(&self, layer: &Descriptor, diff_id: Digest, media_type: &str) -> Result<DoneLayer> {
        let blob = Counted {
            inner: self.source.read(layer)?,
            layer,
            observer: self.observer,
        };
        let spool = spool(blob, self.dir, &layer.digest.to_string())?;
        check_names(&spool.entries).map_err(|flaw| flaw.of(layer.digest))?;
        let written = self.style.write(spool, self.pool, self.dir)?;
        if self.style.target == Target::ZstdChunked {
            // The archive is what it was, unless the image is not what it says.
            let what = format!("archive of layer {}", layer.digest);
            diff_id.expect(written.diff_id, &what)?;
        }
        let mut annotations = layer.annotations.clone();
        annotations.retain(|key, _| {
            !FOREIGN_ANNOTATIONS
                .iter()
                .any(|prefix| key.starts_with(prefix))
        });
        let own = written.annotations.into_iter();
        annotations.extend(own.map(|(name, value)| (name.to_owned(), value)));
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
