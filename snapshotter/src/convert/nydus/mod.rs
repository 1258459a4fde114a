//! Nydus images out of ordinary ones: a data blob a layer, and a bootstrap of the whole tree.
//!
//! `blob` packs the contents of a layer, `tree` merges the entries of all layers as an unpacker
//! does, `bootstrap` writes the result as RAFS v6. Or the layers stay what they are, and `zran` only
//! describes how to unpack pieces of them. Media types, annotations and layout are those of
//! Nydus' own tools, so that its daemon reads what is written here.

mod blob;
mod bootstrap;
mod contexts;
mod devices;
mod dictionary;
mod tree;
mod zran;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use self::blob::{Form, Layer, Style};
use self::devices::Devices;
use self::dictionary::Dictionary;
use self::tree::Tree;
use super::image::{
    Image, ImageReport, LAYERS_AT_ONCE, Options, Report, describe, plan, publish, to_json,
};
use super::layer::LayerReport;
use super::progress::Observer;
use super::spool::spool;
use super::store::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{Descriptor, OCI_MANIFEST};
use crate::formats::Flaw;
use crate::formats::nydus::{
    BLOB_ANNOTATION, BLOB_MEDIA_TYPE, BOOTSTRAP_ANNOTATION, BOOTSTRAP_NAME, OS_FEATURE,
    REFERENCE_ANNOTATION, VERSION_ANNOTATION,
};

/// Media type of an OCI configuration.
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the bootstrap's layer.
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Annotation that holds the digest of the layer when it is unpacked.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Default of the largest chunk, the one that Nydus' tools have.
const CHUNK_SIZE: u64 = 1 << 20;
/// Longest chunk that the format allows.
const MAX_CHUNK_SIZE: u64 = 16 << 20;
/// Longest chunk of a layer that stays as it is: its packed length, of which more is told than there
/// is, has 24 bits.
const MAX_REFERENCE_CHUNK: u64 = 4 << 20;
/// Default level of zstd.
const LEVEL: u32 = 3;

/// Converts an image. Nothing at the destination names anything new until all of it is there.
pub(super) fn convert(
    source: &Store<'_>,
    destination: &Store<'_>,
    known: Option<&Store<'_>>,
    options: &Options,
    observer: &dyn Observer,
) -> Result<Report> {
    if options.oci_ref {
        check_reference(destination, options)?;
    }
    let dictionary = known.map(|store| Dictionary::read(store, options));
    let dictionary = dictionary.transpose()?;
    let style = Style {
        dictionary: dictionary.as_ref(),
        ..style(options)?
    };
    let top = source.manifest()?;
    // Asks for anything at all: wrong credentials must not show after minutes of work.
    destination.has_blob(&top.digest)?;
    let plan = plan(source, &top, &options.platforms, observer)?;
    let work = Work {
        source,
        destination,
        known,
        options,
        observer,
        style,
    };
    let layers = work.layers(&plan.images)?;
    let single = plan.index.is_none();
    let (mut images, mut manifests) = (Vec::new(), Vec::new());
    for image in plan.images {
        let (report, mut descriptor, bytes) = work.image(image, &layers)?;
        images.push(report);
        if !single {
            destination.put_part(&descriptor.media_type, &bytes)?;
            if let Some(platform) = &mut descriptor.platform {
                let features = json!([OS_FEATURE]);
                platform.other.insert("os.features".to_owned(), features);
            }
        }
        manifests.push((descriptor, bytes));
    }
    publish(destination, options, plan.index, manifests, images)
}

/// Refuses what an image that refers to layers as they are cannot have.
fn check_reference(destination: &Store<'_>, options: &Options) -> Result<()> {
    let refused = if options.chunk_dict.is_some() {
        "a chunk dictionary for layers that stay as they are"
    } else if options.level.is_some() {
        "a level for layers that stay as they are"
    } else if destination.is_partial() {
        "a reference in containerd, which would drop the layers: convert it in a registry"
    } else {
        return Ok(());
    };
    Err(Error::InvalidArgument(refused.to_owned()))
}

/// How chunks are made, as the options say.
fn style(options: &Options) -> Result<Style<'_>> {
    let chunk_size = options.chunk_size.unwrap_or(CHUNK_SIZE);
    let (form, most) = if options.oci_ref {
        (Form::REFERENCE, MAX_REFERENCE_CHUNK)
    } else {
        (Form::PACKED, MAX_CHUNK_SIZE)
    };
    if !chunk_size.is_power_of_two() || !(4096..=most).contains(&chunk_size) {
        return Err(Error::InvalidArgument(format!(
            "chunk size {chunk_size} (a power of two from 4096 to {most} expected)"
        )));
    }
    let level = options.level.unwrap_or(LEVEL);
    if !(1..=22).contains(&level) {
        return Err(Error::InvalidArgument(format!(
            "level {level} (1 to 22 expected)"
        )));
    }
    Ok(Style {
        form,
        wanted: &options.prioritized,
        dictionary: None,
        chunk_size,
        level: level as i32,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// What all parts of a conversion share.
struct Work<'a> {
    source: &'a Store<'a>,
    destination: &'a Store<'a>,
    /// Where the blobs of the dictionary are.
    known: Option<&'a Store<'a>>,
    options: &'a Options,
    observer: &'a dyn Observer,
    style: Style<'a>,
}

impl Work<'_> {
    /// Converts the layers of all images, each once, several at a time; the first error stops the
    /// rest.
    fn layers(&self, images: &[Image]) -> Result<BTreeMap<Digest, Layer>> {
        let layers = images.iter().flat_map(|image| &image.manifest.layers);
        let distinct: BTreeMap<Digest, &Descriptor> =
            layers.map(|layer| (layer.digest, layer)).collect();
        // The largest first: started last, it would run alone at the end.
        let mut jobs: Vec<_> = distinct.into_values().collect();
        jobs.sort_by_key(|layer| (std::cmp::Reverse(layer.size), layer.digest));
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..LAYERS_AT_ONCE.min(jobs.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed)
                        && let Some(layer) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let outcome = self.layer(layer);
                        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                        let outcome = outcome.map(|converted| (layer.digest, converted));
                        done.lock()
                            .expect("no panic while a result is kept")
                            .push(outcome);
                    }
                });
            }
        });
        let done = done.into_inner().expect("no panic while a result was kept");
        done.into_iter().collect()
    }

    fn layer(&self, layer: &Descriptor) -> Result<Layer> {
        let what = layer.digest.to_string();
        if !layer.media_type.contains(".tar") {
            let reason = format!("media type {:?} cannot be converted", layer.media_type);
            return Err(Error::Malformed {
                what: format!("layer {what}"),
                reason,
            });
        }
        let dir = &self.options.temp_dir;
        let source = Counted {
            inner: self.source.read(layer)?,
            layer,
            observer: self.observer,
        };
        let mut converted = if self.options.oci_ref {
            zran::write(layer, source, self.style, dir)?
        } else {
            blob::write(spool(source, dir, &what)?, self.style, dir)?
        };
        if let Some(blob) = &mut converted.blob
            && let Some(file) = blob.file.take()
        {
            let (digest, size) = blob.stored();
            self.destination
                .put_file(&blob_descriptor(digest, size), file)?;
        }
        self.observer
            .finished(&layer.digest, &report(layer, &converted));
        Ok(converted)
    }

    /// Stores an image's bootstrap and configuration; gives its manifest, which is not stored yet.
    fn image(
        &self,
        image: Image,
        layers: &BTreeMap<Digest, Layer>,
    ) -> Result<(ImageReport, Descriptor, Vec<u8>)> {
        let what = format!("image {}", self.options.source);
        let sources = &image.manifest.layers;
        let converted: Vec<&Layer> = sources
            .iter()
            .filter_map(|one| layers.get(&one.digest))
            .collect();
        let mut tree = Tree::new();
        for (number, layer) in converted.iter().enumerate() {
            let applied = tree.apply(number, &layer.entries);
            applied.map_err(|flaw| flaw.of(sources[number].digest))?;
        }
        let (boot, borrowed) = self
            .bootstrap(&mut tree, &converted)
            .map_err(|flaw| flaw.of(&what))?;
        for blob in &borrowed {
            if let Some(known) = self.known {
                self.destination
                    .copy_from(known, blob, &self.options.temp_dir)?;
            }
        }
        let archive = archive(&boot);
        let (packed, diff_id) =
            pack(&archive).map_err(Error::io("pack", BOOTSTRAP_NAME.as_ref()))?;
        self.destination.put_bytes(&packed)?;
        let reports = sources.iter().zip(&converted);
        let reports = reports
            .map(|(source, layer)| report(source, layer))
            .collect();
        let (parts, diff_ids) = parts(&converted, borrowed, &packed, diff_id);
        let platform = image.descriptor.platform.as_ref().map(ToString::to_string);
        if self.options.oci_ref {
            self.keep(&image)?;
        }
        let (descriptor, bytes) = self.manifest(image, parts, &diff_ids)?;
        let report = ImageReport {
            platform,
            digest: descriptor.digest,
            layers: reports,
        };
        Ok((report, descriptor, bytes))
    }

    /// Puts the image that is referred to beside the one that refers to it, as it is.
    fn keep(&self, image: &Image) -> Result<()> {
        let manifest = &image.manifest;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            self.destination
                .copy_from(self.source, blob, &self.options.temp_dir)?;
        }
        let original = self.source.manifest_of(&image.descriptor)?;
        self.destination
            .put_part(&original.media_type, &original.bytes)?;
        Ok(())
    }

    /// The bootstrap, and the blobs of the dictionary that it refers to.
    fn bootstrap(
        &self,
        tree: &mut Tree,
        layers: &[&Layer],
    ) -> std::result::Result<(Vec<u8>, Vec<Descriptor>), Flaw> {
        let directories = tree.directories();
        let Style {
            wanted, chunk_size, ..
        } = self.style;
        let devices = Devices::new(layers, tree, self.style)?;
        let boot = bootstrap::write(tree, &directories, &devices, wanted, chunk_size)?;
        Ok((boot, devices.borrowed()))
    }

    fn manifest(
        &self,
        mut image: Image,
        parts: Vec<Descriptor>,
        diff_ids: &[Digest],
    ) -> Result<(Descriptor, Vec<u8>)> {
        let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        if let Some(field) = image.config.pointer_mut("/rootfs/diff_ids") {
            *field = json!(ids);
        }
        if let Some(Value::Array(history)) = image.config.get_mut("history") {
            *history = new_history(std::mem::take(history), diff_ids.len());
        }
        let config = to_json(&image.config)?;
        self.destination.put_bytes(&config)?;
        let mut manifest = image.manifest;
        OCI_CONFIG.clone_into(&mut manifest.config.media_type);
        manifest.config.digest = Digest::of(&config);
        manifest.config.size = config.len() as u64;
        manifest.layers = parts;
        // Blobs have a media type that docker's manifests do not know.
        manifest.media_type = Some(OCI_MANIFEST.to_owned());
        if self.options.oci_ref {
            let of = &image.descriptor;
            let subject = json!({"mediaType": of.media_type, "digest": of.digest, "size": of.size});
            manifest.other.insert("subject".to_owned(), subject);
        }
        let bytes = to_json(&manifest)?;
        let descriptor = describe(OCI_MANIFEST.to_owned(), &bytes, image.descriptor);
        Ok((descriptor, bytes))
    }
}

/// The layers of the new image, blobs first, and what they are when they are unpacked. A blob that
/// two layers share is there once.
fn parts(
    layers: &[&Layer],
    borrowed: Vec<Descriptor>,
    bootstrap: &[u8],
    bootstrap_diff_id: Digest,
) -> (Vec<Descriptor>, Vec<Digest>) {
    let mut parts: Vec<Descriptor> = Vec::new();
    for blob in layers.iter().filter_map(|layer| layer.blob.as_ref()) {
        let (digest, size) = blob.stored();
        let mut part = blob_descriptor(digest, size);
        if blob.beside.is_some() {
            let layer = (REFERENCE_ANNOTATION.to_owned(), blob.digest.to_string());
            part.annotations.extend([layer]);
        }
        if parts.iter().all(|known| known.digest != digest) {
            parts.push(part);
        }
    }
    for blob in borrowed {
        if parts.iter().all(|part| part.digest != blob.digest) {
            parts.push(blob);
        }
    }
    let mut diff_ids: Vec<Digest> = parts.iter().map(|part| part.digest).collect();
    diff_ids.push(bootstrap_diff_id);
    parts.push(Descriptor {
        media_type: OCI_GZIP.to_owned(),
        digest: Digest::of(bootstrap),
        size: bootstrap.len() as u64,
        annotations: annotations(&[
            (BOOTSTRAP_ANNOTATION, "true"),
            (VERSION_ANNOTATION, "6"),
            (UNCOMPRESSED, &bootstrap_diff_id.to_string()),
        ]),
        platform: None,
        other: BTreeMap::new(),
    });
    (parts, diff_ids)
}

fn blob_descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: BLOB_MEDIA_TYPE.to_owned(),
        digest,
        size,
        annotations: annotations(&[
            (BLOB_ANNOTATION, "true"),
            (UNCOMPRESSED, &digest.to_string()),
        ]),
        platform: None,
        other: BTreeMap::new(),
    }
}

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The history with as many entries that have a layer as there are layers now.
fn new_history(mut history: Vec<Value>, layers: usize) -> Vec<Value> {
    for entry in history.iter_mut().filter_map(Value::as_object_mut) {
        entry.insert("empty_layer".to_owned(), Value::Bool(true));
    }
    let names =
        std::iter::repeat_n("Nydus Data Layer", layers - 1).chain(["Nydus Bootstrap Layer"]);
    history.extend(names.map(|comment| json!({"created_by": "xebec", "comment": comment})));
    history
}

/// The archive that holds a bootstrap; the same for the same bootstrap.
fn archive(bootstrap: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::with_capacity(bootstrap.len() + 8192));
    let mut append = |name: &str, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        builder
            .append_data(&mut header, name, data)
            .expect("an archive in memory takes short names");
    };
    append("image", tar::EntryType::Directory, 0o755, &[]);
    append(BOOTSTRAP_NAME, tar::EntryType::Regular, 0o444, bootstrap);
    builder
        .into_inner()
        .expect("an archive in memory can be ended")
}

/// The archive as a gzip layer, and its digest.
fn pack(archive: &[u8]) -> std::io::Result<(Vec<u8>, Digest)> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(archive)?;
    Ok((encoder.finish()?, Digest::of(archive)))
}

/// What became of a layer. Its files are described by the image's bootstrap, not by the blob.
fn report(source: &Descriptor, layer: &Layer) -> LayerReport {
    let (digest, size) = match &layer.blob {
        Some(blob) => blob.stored(),
        None => (Digest::of(b""), 0),
    };
    LayerReport {
        source: source.digest,
        source_size: source.size,
        digest,
        size,
        toc_digest: digest,
        reused: false,
    }
}

/// Tells the observer what has been read.
struct Counted<'a, R> {
    inner: R,
    layer: &'a Descriptor,
    observer: &'a dyn Observer,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.observer.read(&self.layer.digest, count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
