//! A whole image, of one platform or of several, from one place to another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::manifest::{
    Descriptor, Document, Index, MAX_MANIFEST, Manifest, OCI_INDEX, OCI_MANIFEST,
};
use crate::fetch::{FetchedManifest, Platform, Registry};

use super::beside::put_artifact;
use super::hot::{Hot, Sizes};
use super::layer::{DoneLayer, LayerReport, Workshop};
use super::member::Pool;
use super::nydus;
use super::place::Place;
use super::progress::Observer;
use super::store::Store;
use super::target::{Style, Target};
use super::undo::Undo;

/// Layers under way at once. Their downloads overlap; their compression shares one pool.
pub(super) const LAYERS_AT_ONCE: usize = 4;
/// Media types of configurations.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What layers become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Layers of another format.
    Layers(Target),
    /// What they are, with an index beside them.
    Index,
    /// Data blobs and a bootstrap of Nydus.
    Nydus,
}

/// What to convert, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the image is.
    pub source: Place,
    /// Where the converted image goes.
    pub destination: Place,
    /// What to make of layers.
    pub format: Format,
    /// Only the images for these platforms; none stands for all of them.
    pub platforms: Vec<Platform>,
    /// Largest chunk in bytes; the format's default when not given.
    pub chunk_size: Option<u64>,
    /// Compression level; the format's default when not given.
    pub level: Option<u32>,
    /// Paths to put first, in their order, without leading slash.
    pub prioritized: Vec<String>,
    /// Rewrite layers even if they are in the format already.
    pub rewrite: bool,
    /// A Nydus image whose chunks need not be stored again; for Nydus only.
    pub chunk_dict: Option<Place>,
    /// Leave gzip layers as they are and refer to them ("OCI-ref"); for Nydus only.
    pub oci_ref: bool,
    /// Directory for temporary files, which have no name in it.
    pub temp_dir: PathBuf,
}

/// What a conversion made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The source as it was named.
    pub source: String,
    /// The destination as it was named.
    pub destination: String,
    /// Digest of the manifest or index at the destination.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The images converted.
    pub images: Vec<ImageReport>,
}

/// What became of the image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// The platform, where the source names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Digest of its manifest at the destination.
    pub digest: Digest,
    /// Its layers, bottom first.
    pub layers: Vec<LayerReport>,
}

/// Converts an image. Nothing at the destination names anything new until all of it is there, and
/// what was made goes again by `undo` if that does not happen.
pub fn convert(
    registry: &Registry,
    options: &Options,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Report> {
    convert_hot(registry, options, Hot::default(), observer, undo)
}

/// The same, with chunks of its own for what a start reads.
pub(super) fn convert_hot(
    registry: &Registry,
    options: &Options,
    hot: Hot,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Report> {
    let outcome =
        Store::source(registry, &options.source, &options.temp_dir, undo).and_then(|source| {
            let destination = Store::destination(registry, &options.destination, undo)?;
            let known = options.chunk_dict.as_ref();
            let known = known.map(|it| Store::source(registry, it, &options.temp_dir, undo));
            let known = known.transpose()?;
            convert_between(
                &source,
                &destination,
                known.as_ref(),
                options,
                hot,
                observer,
            )
        });
    match &outcome {
        Ok(_) => undo.keep_all(),
        Err(_) => undo.run(),
    }
    outcome
}

fn convert_between(
    source: &Store<'_>,
    destination: &Store<'_>,
    known: Option<&Store<'_>>,
    options: &Options,
    hot: Hot,
    observer: &dyn Observer,
) -> Result<Report> {
    if options.format == Format::Nydus && options.destination.is_docker_archive() {
        let what = "nydus in a docker archive, which docker could not load".to_owned();
        return Err(Error::InvalidArgument(what));
    }
    if known.is_some() && options.format != Format::Nydus {
        let what = "a chunk dictionary, in any format but nydus".to_owned();
        return Err(Error::InvalidArgument(what));
    }
    if options.oci_ref && options.format != Format::Nydus {
        let what = "a reference to layers as they are, in any format but nydus".to_owned();
        return Err(Error::InvalidArgument(what));
    }
    let target = match options.format {
        Format::Layers(target) => target,
        // Nothing is written again.
        Format::Index => Target::Estargz,
        Format::Nydus => return nydus::convert(source, destination, known, options, observer),
    };
    let style = Style {
        target,
        chunk_sizes: Sizes::new(options.chunk_size, target.default_chunk_size()),
        level: options.level.unwrap_or_else(|| target.default_level()),
        prioritized: options.prioritized.clone(),
        hot,
    };
    style.check()?;
    if options.format == Format::Index && destination.is_partial() {
        let reason = "containerd keeps no index beside an image: convert it in a registry";
        return Err(Error::InvalidArgument(reason.to_owned()));
    }
    let top = source.manifest()?;
    // Asks for anything at all: wrong credentials must not show after minutes of work.
    destination.has_blob(&top.digest)?;
    let mut plan = plan(source, &top, &options.platforms, observer)?;
    if style.needs_oci() {
        plan.make_oci();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads, style.packing());
    let workshop = Workshop {
        source,
        destination,
        style: &style,
        rewrite: options.rewrite || !options.prioritized.is_empty() || !style.hot.is_empty(),
        pool: &pool,
        dir: &options.temp_dir,
        observer,
    };
    let done = convert_layers(&workshop, options.format, &plan.images)?;
    let mut images = Vec::new();
    let mut manifests = Vec::new();
    let single = plan.index.is_none();
    for (image, layers) in plan.images.into_iter().zip(done) {
        let platform = image.descriptor.platform.as_ref().map(ToString::to_string);
        let reports = layers.iter().map(|layer| layer.report.clone()).collect();
        let beside: Vec<_> = layers
            .iter()
            .filter_map(|layer| layer.beside.clone())
            .collect();
        let (descriptor, bytes) = store_image(&workshop, image, layers)?;
        if !beside.is_empty() {
            put_artifact(destination, &descriptor, &beside)?;
        }
        images.push(ImageReport {
            platform,
            digest: descriptor.digest,
            layers: reports,
        });
        if !single {
            destination.put_part(&descriptor.media_type, &bytes)?;
        }
        manifests.push((descriptor, bytes));
    }
    publish(destination, options, plan.index, manifests, images)
}

/// Names the converted images at the destination: by their index, or the one there is by itself.
pub(super) fn publish(
    destination: &Store<'_>,
    options: &Options,
    index: Option<(Index, String)>,
    mut manifests: Vec<(Descriptor, Vec<u8>)>,
    images: Vec<ImageReport>,
) -> Result<Report> {
    let (descriptor, bytes) = match index {
        None => manifests.remove(0),
        Some(index) => new_index(index, manifests)?,
    };
    let report = Report {
        source: options.source.to_string(),
        destination: options.destination.to_string(),
        digest: descriptor.digest,
        media_type: descriptor.media_type.clone(),
        images,
    };
    destination.put_top(descriptor, &bytes)?;
    Ok(report)
}

/// One image of the source.
pub(super) struct Image {
    pub(super) descriptor: Descriptor,
    pub(super) manifest: Manifest,
    pub(super) config: Value,
    diff_ids: Vec<Digest>,
}

/// What will be converted.
pub(super) struct Plan {
    /// The index to be rewritten, when the destination gets one.
    pub(super) index: Option<(Index, String)>,
    pub(super) images: Vec<Image>,
}

impl Plan {
    /// Gives manifests and configurations OCI's media types in the place of docker's.
    fn make_oci(&mut self) {
        if let Some((index, media_type)) = &mut self.index {
            index.media_type = Some(OCI_INDEX.to_owned());
            OCI_INDEX.clone_into(media_type);
        }
        for image in &mut self.images {
            image.manifest.media_type = Some(OCI_MANIFEST.to_owned());
            if image.manifest.config.media_type == DOCKER_CONFIG {
                OCI_CONFIG.clone_into(&mut image.manifest.config.media_type);
            }
        }
    }
}

pub(super) fn plan(
    source: &Store<'_>,
    top: &FetchedManifest,
    platforms: &[Platform],
    observer: &dyn Observer,
) -> Result<Plan> {
    let what = format!("image {}", source.place);
    let (index, images) = match top.document(&what)? {
        Document::Manifest(manifest) => {
            let descriptor = Descriptor {
                media_type: top.media_type.clone(),
                digest: top.digest,
                size: top.bytes.len() as u64,
                annotations: BTreeMap::new(),
                platform: None,
                other: BTreeMap::new(),
            };
            let image = load_image(source, descriptor, manifest)?;
            check_platform(&image, platforms, &what)?;
            (None, vec![image])
        }
        Document::Index(index) => {
            let media_type = index.media_type.clone();
            let media_type = media_type.unwrap_or_else(|| OCI_INDEX.to_owned());
            match platforms {
                [] => (
                    Some((index.clone(), media_type)),
                    load_all(source, &index, observer)?,
                ),
                [platform] => {
                    let chosen = index.select(platform, &what)?.clone();
                    (None, vec![load_descriptor(source, chosen)?])
                }
                several => {
                    let images = several.iter().map(|platform| {
                        let chosen = index.select(platform, &what)?.clone();
                        load_descriptor(source, chosen)
                    });
                    let images = images.collect::<Result<_>>()?;
                    (Some((index, media_type)), images)
                }
            }
        }
    };
    if images.is_empty() {
        return Err(Error::NotFound(format!(
            "{what}: an image to convert in its index"
        )));
    }
    let layers: BTreeMap<Digest, u64> = images
        .iter()
        .flat_map(|image| {
            image
                .manifest
                .layers
                .iter()
                .map(|layer| (layer.digest, layer.size))
        })
        .collect();
    observer.planned(&layers.into_iter().collect::<Vec<_>>());
    Ok(Plan { index, images })
}

/// An image without an index says in its configuration what it is for.
fn check_platform(image: &Image, wanted: &[Platform], what: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let field = |name: &str| {
        image
            .config
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let is: Platform = match field("variant") {
        "" => format!("{}/{}", field("os"), field("architecture")).parse()?,
        variant => format!("{}/{}/{variant}", field("os"), field("architecture")).parse()?,
    };
    match wanted.iter().find(|wanted| !wanted.accepts(&is)) {
        None => Ok(()),
        Some(wanted) => Err(Error::NotFound(format!(
            "{what} for {wanted} (it is for {is})"
        ))),
    }
}

/// The images of an index. Attestations speak of manifests that the new index no longer has.
fn load_all(source: &Store<'_>, index: &Index, observer: &dyn Observer) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let is_image = descriptor
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os != "unknown")
            && !descriptor.other.contains_key("artifactType");
        if is_image {
            match load_descriptor(source, descriptor.clone()) {
                Ok(image) => images.push(image),
                Err(error @ Error::NotFound(_)) if source.is_partial() => {
                    observer.note(&format!("{error}: is left out"));
                }
                Err(error) => return Err(error),
            }
        } else {
            observer.note(&format!(
                "{} is no image and is left out",
                descriptor.digest
            ));
        }
    }
    Ok(images)
}

fn load_descriptor(source: &Store<'_>, descriptor: Descriptor) -> Result<Image> {
    let what = format!("manifest {} of {}", descriptor.digest, source.place);
    match source.manifest_of(&descriptor)?.document(&what)? {
        Document::Manifest(manifest) => load_image(source, descriptor, manifest),
        Document::Index(_) => {
            let reason = "is an index within an index".to_owned();
            Err(Error::Malformed { what, reason })
        }
    }
}

fn load_image(source: &Store<'_>, descriptor: Descriptor, manifest: Manifest) -> Result<Image> {
    let what = format!("config {} of {}", manifest.config.digest, source.place);
    let bytes = source.read_small(&manifest.config, MAX_MANIFEST as u64)?;
    let malformed = |reason: String| Error::Malformed {
        what: what.clone(),
        reason,
    };
    let config: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let diff_ids = config
        .pointer("/rootfs/diff_ids")
        .cloned()
        .ok_or_else(|| malformed("has no rootfs.diff_ids".into()))?;
    let diff_ids: Vec<Digest> =
        serde_json::from_value(diff_ids).map_err(|e| malformed(format!("rootfs.diff_ids: {e}")))?;
    if diff_ids.len() != manifest.layers.len() {
        let (ids, layers) = (diff_ids.len(), manifest.layers.len());
        return Err(malformed(format!(
            "has {ids} rootfs.diff_ids for {layers} layers"
        )));
    }
    Ok(Image {
        descriptor,
        manifest,
        config,
        diff_ids,
    })
}

/// Converts the layers of all images, each once, several at a time; the first error stops the rest.
fn convert_layers(
    workshop: &Workshop<'_>,
    format: Format,
    images: &[Image],
) -> Result<Vec<Vec<DoneLayer>>> {
    let mut jobs: BTreeMap<Digest, (&Descriptor, Digest)> = BTreeMap::new();
    for image in images {
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            jobs.insert(layer.digest, (layer, *diff_id));
        }
    }
    // The largest first: started last, it would run alone at the end.
    let mut jobs: Vec<_> = jobs.into_values().collect();
    jobs.sort_by_key(|(layer, _)| (std::cmp::Reverse(layer.size), layer.digest));
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new((BTreeMap::new(), None));
    std::thread::scope(|scope| {
        for _ in 0..LAYERS_AT_ONCE.min(jobs.len()) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed)
                    && let Some((layer, diff_id)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let outcome = match format {
                        Format::Index => workshop.index(layer, *diff_id),
                        Format::Layers(_) | Format::Nydus => workshop.convert(layer, *diff_id),
                    };
                    let mut done = done.lock().expect("no panic while a result is kept");
                    match outcome {
                        Ok(layer_done) => {
                            done.0.insert(layer.digest, layer_done);
                        }
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            done.1.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    let (layers, error) = done.into_inner().expect("no panic while a result was kept");
    if let Some(error) = error {
        return Err(error);
    }
    let of = |image: &Image| -> Option<Vec<DoneLayer>> {
        image
            .manifest
            .layers
            .iter()
            .map(|layer| layers.get(&layer.digest).cloned())
            .collect()
    };
    images
        .iter()
        .map(|image| of(image).ok_or_else(|| Error::Internal("a layer was not converted".into())))
        .collect()
}

/// Stores the new configuration, and gives the new manifest, which is not stored yet.
fn store_image(
    workshop: &Workshop<'_>,
    mut image: Image,
    layers: Vec<DoneLayer>,
) -> Result<(Descriptor, Vec<u8>)> {
    let unchanged = layers
        .iter()
        .map(|layer| layer.diff_id)
        .eq(image.diff_ids.iter().copied());
    let mut manifest = image.manifest;
    let media_type = manifest
        .media_type
        .clone()
        .unwrap_or_else(|| OCI_MANIFEST.to_owned());
    if unchanged {
        // To the byte: the image's ID stays the same.
        workshop
            .destination
            .copy_from(workshop.source, &manifest.config, workshop.dir)?;
        manifest.layers = layers.into_iter().map(|layer| layer.descriptor).collect();
        let bytes = to_json(&manifest)?;
        let descriptor = describe(media_type, &bytes, image.descriptor);
        return Ok((descriptor, bytes));
    }
    let diff_ids = layers
        .iter()
        .map(|layer| Value::from(layer.diff_id.to_string()))
        .collect();
    if let Some(field) = image.config.pointer_mut("/rootfs/diff_ids") {
        *field = Value::Array(diff_ids);
    }
    let config = to_json(&image.config)?;
    workshop.destination.put_bytes(&config)?;
    manifest.config.digest = Digest::of(&config);
    manifest.config.size = config.len() as u64;
    manifest.layers = layers.into_iter().map(|layer| layer.descriptor).collect();
    let bytes = to_json(&manifest)?;
    let descriptor = describe(media_type, &bytes, image.descriptor);
    Ok((descriptor, bytes))
}

fn new_index(
    (mut index, media_type): (Index, String),
    manifests: Vec<(Descriptor, Vec<u8>)>,
) -> Result<(Descriptor, Vec<u8>)> {
    index.manifests = manifests
        .into_iter()
        .map(|(descriptor, _)| descriptor)
        .collect();
    let bytes = to_json(&index)?;
    let blank = Descriptor {
        media_type: media_type.clone(),
        digest: Digest::of(&bytes),
        size: 0,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    };
    Ok((describe(media_type, &bytes, blank), bytes))
}

pub(super) fn describe(media_type: String, bytes: &[u8], like: Descriptor) -> Descriptor {
    Descriptor {
        media_type,
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        ..like
    }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Internal(format!("image as JSON: {error}")))
}

/// Where temporary files go when nothing else is said: on disk rather than in memory.
pub fn default_temp_dir() -> PathBuf {
    let given = std::env::var_os("TMPDIR").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new("/var/tmp").to_owned())
}
