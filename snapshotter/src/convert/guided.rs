//! Converting an image by what is known of a start: by a profile of it, or by a trial.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::beside::describe;
use super::hot::Hot;
use super::image::{Format, Options, Report, convert_hot, plan};
use super::inspect::index_of_layer;
use super::progress::Observer;
use super::store::Store;
use super::target::Target;
use super::undo::Undo;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::Registry;
use crate::fetch::manifest::{Descriptor, Document, Manifest};
use crate::index::{Kind, LayerIndex, Listed};
use crate::ingest::portable;
use crate::profile::{Profile, Read};

/// A file that a start opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Without leading slash.
    pub(super) path: String,
    /// Milliseconds from the beginning.
    pub(super) at: u32,
    /// Offsets and lengths of what is read.
    pub(super) ranges: Vec<(u64, u64)>,
}

/// What is known of a start, and what was made of it.
#[derive(Debug)]
pub struct Optimized {
    /// The conversion.
    pub report: Report,
    /// Files that are opened, the first one first, without leading slash.
    pub opened: Vec<String>,
    /// What is read of the converted layers, where they have an index each.
    pub profile: Option<Profile>,
}

/// Converts an image by a profile of it: the files that the profile's reads belong to come first
/// where the format has an order and get chunks of their own where it has chunks of any size, and
/// the profile is told again in terms of the converted layers.
///
/// # Errors
/// The profile has to be one of an image of the source, as its layers are now.
pub fn convert_by_profile(
    registry: &Registry,
    options: &Options,
    profile: &Profile,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Optimized> {
    let read = || {
        let source = Store::source(registry, &options.source, &options.temp_dir, undo)?;
        recorded(&source, options, profile, observer)
    };
    let (number, recorded) = read().inspect_err(|_| undo.run())?;
    convert_by(registry, options, &recorded, number, observer, undo)
}

/// Converts an image by the start of the one with this number among those that are converted.
pub(super) fn convert_by(
    registry: &Registry,
    options: &Options,
    recorded: &[Recorded],
    number: usize,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Optimized> {
    let opened: Vec<String> = recorded.iter().map(|file| file.path.clone()).collect();
    observer.note(&format!("a start opens {} files", opened.len()));
    let mut options = options.clone();
    // zstd:chunked and indexed layers stay in their order; the profile says it all.
    if matches!(
        options.format,
        Format::Layers(Target::Estargz) | Format::Nydus
    ) {
        options.prioritized.extend_from_slice(&opened);
    }
    let hot = Hot::new(recorded);
    let report = convert_hot(registry, &options, hot, observer, undo)?;
    let profile = match options.format {
        Format::Nydus => None,
        Format::Layers(_) | Format::Index => {
            let manifest = report.images[number].digest;
            Some(profile(registry, &options, manifest, recorded)?)
        }
    };
    Ok(Optimized {
        report,
        opened,
        profile,
    })
}

/// The files that a profile's reads belong to, in their order, and the number of its image.
fn recorded(
    source: &Store<'_>,
    options: &Options,
    profile: &Profile,
    observer: &dyn Observer,
) -> Result<(usize, Vec<Recorded>)> {
    let plan = plan(source, &source.manifest()?, &options.platforms, observer)?;
    let is_of = |layers: &[Descriptor]| {
        let digests = layers.iter().map(|layer| &layer.digest);
        digests.eq(profile.layers())
    };
    let mut images = plan.images.iter();
    let Some(number) = images.position(|image| is_of(&image.manifest.layers)) else {
        return Err(Error::FailedPrecondition(format!(
            "the profile is not one of {} as it is now",
            options.source
        )));
    };
    let mut reads: BTreeMap<usize, Vec<(usize, Read)>> = BTreeMap::new();
    for (order, read) in profile.reads().iter().enumerate() {
        reads.entry(read.layer).or_default().push((order, *read));
    }
    let mut files = BTreeMap::new();
    for (layer, reads) in reads {
        let descriptor = &plan.images[number].manifest.layers[layer];
        let index = if let Some(index) = index_of_layer(source, descriptor)? {
            index
        } else {
            let bytes = describe(source, descriptor, observer)?;
            let index = portable::unpack(&bytes, descriptor.digest, descriptor.size);
            index.map_err(|flaw| flaw.of(descriptor.digest))?
        };
        for (place, file) in files_of(&index, &reads) {
            files.insert((place, layer, file.path.clone()), file);
        }
    }
    Ok((number, files.into_values().collect()))
}

/// The files of a layer that `reads` are of, each with the number of its first read.
fn files_of(index: &LayerIndex, reads: &[(usize, Read)]) -> Vec<(usize, Recorded)> {
    let mut paths = HashMap::new();
    index.walk(|path, listed| {
        if let Listed::Inode(id, inode) = listed
            && inode.kind() == Kind::File
        {
            paths.entry(id).or_insert_with(|| path.to_owned());
        }
    });
    let mut seen = HashSet::new();
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut files: Vec<(usize, Recorded)> = Vec::new();
    for (order, read) in reads {
        // A forged profile may name the same bytes over and over.
        let units = index.units_among_blobs(read.offset, read.len);
        let new = units.filter(|id| seen.insert(*id)).map(|id| index.unit(id));
        let chunks: Vec<u32> = new
            .flat_map(|unit| index.unit_chunks(&unit).collect::<Vec<_>>())
            .collect();
        for chunk in chunks {
            let chunk = index.chunk(chunk);
            let Some(path) = paths.get(&chunk.inode) else {
                continue;
            };
            let place = *places.entry(chunk.inode).or_insert_with(|| {
                let path = path.clone();
                let (at, ranges) = (read.at, Vec::new());
                files.push((*order, Recorded { path, at, ranges }));
                files.len() - 1
            });
            let range = (chunk.file_offset, u64::from(chunk.len));
            files[place].1.ranges.push(range);
        }
    }
    files
}

/// What is read, as ranges of the converted layers of the image with this manifest.
fn profile(
    registry: &Registry,
    options: &Options,
    manifest: Digest,
    recorded: &[Recorded],
) -> Result<Profile> {
    let undo = Undo::new();
    let (place, dir) = (&options.destination, &options.temp_dir);
    let store = Store::source(registry, place, dir, &undo)?;
    let manifest = manifest_of(&store, manifest)?;
    let layers = manifest.layers.iter();
    let indexes = layers
        .map(|layer| {
            let index = index_of_layer(&store, layer)?;
            let missing = || Error::Internal(format!("layer {} has no index", layer.digest));
            index.ok_or_else(missing)
        })
        .collect::<Result<Vec<_>>>()?;
    let digests = manifest.layers.iter().map(|layer| layer.digest).collect();
    Ok(Profile::new(digests, ranges(&indexes, recorded)))
}

/// The manifest that the place names, or one of those in the index that it names.
fn manifest_of(store: &Store<'_>, digest: Digest) -> Result<Manifest> {
    let what = format!("image {}", store.place);
    let lost = || Error::NotFound(format!("manifest {digest} of {what}"));
    match store.manifest()?.document(&what)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(index) => {
            let mut manifests = index.manifests.iter();
            let found = manifests.find(|one| one.digest == digest);
            match store
                .manifest_of(found.ok_or_else(lost)?)?
                .document(&what)?
            {
                Document::Manifest(manifest) => Ok(manifest),
                Document::Index(_) => Err(lost()),
            }
        }
    }
}

/// The ranges of the layers' blobs that hold what was read, each once.
fn ranges(indexes: &[LayerIndex], recorded: &[Recorded]) -> Vec<Read> {
    let mut files: HashMap<String, (usize, u32)> = HashMap::new();
    for (number, index) in indexes.iter().enumerate() {
        index.walk(|path, listed| {
            if let Listed::Inode(id, inode) = listed
                && inode.kind() == Kind::File
            {
                files.insert(path.to_owned(), (number, id));
            }
        });
    }
    let mut seen = HashSet::new();
    let mut reads = Vec::new();
    for file in recorded {
        let Some(&(layer, inode)) = files.get(&file.path) else {
            continue;
        };
        let index = &indexes[layer];
        let inode = index.inode(inode);
        for &(offset, len) in &file.ranges {
            for chunk in index.chunks_at(&inode, offset, len) {
                let id = index.chunk(chunk).unit;
                if seen.insert((layer, id)) {
                    let unit = index.unit(id);
                    let (offset, len) = (index.place_among_blobs(&unit), u64::from(unit.len));
                    let at = file.at;
                    reads.push(Read {
                        layer,
                        offset,
                        len,
                        at,
                    });
                }
            }
        }
    }
    reads
}
