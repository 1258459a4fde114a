//! Finds documents and blobs in an archive that is there.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::{Archive, ArchiveKind, BLOBS, INDEX, LAYOUT, MANIFEST, docker};
use crate::convert::image::to_json;
use crate::convert::layout;
use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::fetch::manifest::{
    Descriptor, Document, MAX_MANIFEST, Manifest, OCI_INDEX, OCI_MANIFEST,
};
use crate::fetch::{BlobSource, FetchedManifest};

/// Most entries of an archive of images: a few for each layer, and nothing else belongs there.
const MAX_ENTRIES: usize = 100_000;
/// Longest chain of links from one entry to another.
const MAX_LINKS: usize = 8;
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// An archive whose entries are known.
pub(in crate::convert) struct OpenArchive {
    what: String,
    file: Arc<File>,
    blobs: HashMap<Digest, Span>,
    top: FetchedManifest,
}

/// Where an entry's content lies in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    at: u64,
    size: u64,
}

/// An entry, by what matters here.
enum Entry {
    Content(Span),
    /// A link to another name in the archive.
    Link(String),
}

impl OpenArchive {
    /// Opens the archive. A compressed one is unpacked into a nameless file in `dir`, since blobs
    /// are read at any place.
    pub(in crate::convert) fn open(archive: &Archive, dir: &Path) -> Result<Self> {
        let what = archive.to_string();
        let path = &archive.path;
        let file = File::open(path).map_err(Error::io("open", path))?;
        let file = unpacked(file, dir, path)?;
        let contents = Contents::read(&file, &what)?;
        let (top, blobs) = match archive.kind {
            ArchiveKind::Oci => contents.oci(archive)?,
            ArchiveKind::Docker => contents.docker(archive)?,
        };
        Ok(Self {
            what,
            file: Arc::new(file),
            blobs,
            top,
        })
    }

    pub(in crate::convert) fn manifest(&self) -> FetchedManifest {
        self.top.clone()
    }

    /// The manifest or index of `descriptor`.
    pub(in crate::convert) fn document(&self, descriptor: &Descriptor) -> Result<FetchedManifest> {
        let what = format!("manifest {} in {}", descriptor.digest, self.what);
        let bytes = read_all(self.section(&descriptor.digest)?, MAX_MANIFEST, &what)?;
        descriptor.digest.verify(&bytes, &what)?;
        Ok(FetchedManifest {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest,
            bytes,
        })
    }

    /// A blob, unverified.
    pub(in crate::convert) fn section(&self, digest: &Digest) -> Result<Section> {
        let name = || format!("blob {digest} in {}", self.what);
        let span = self.blobs.get(digest).copied();
        let span = span.ok_or_else(|| Error::NotFound(name()))?;
        Ok(Section {
            file: Arc::clone(&self.file),
            span,
            read: 0,
            name: name(),
        })
    }
}

/// The file itself, or a nameless one with what it unpacks to.
fn unpacked(mut file: File, dir: &Path, path: &Path) -> Result<File> {
    let mut magic = [0; 4];
    let read = read_up_to(&mut file, &mut magic).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("rewind", path))?;
    let source = BufReader::with_capacity(256 << 10, &file);
    let mut stream: Box<dyn Read> = match &magic[..read] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::with_buffer(source).map_err(Error::io("unpack", path))?)
        }
        _ => {
            drop(source);
            return Ok(file);
        }
    };
    let mut plain =
        tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
    io::copy(&mut stream, &mut plain).map_err(Error::io("unpack", path))?;
    drop(stream);
    plain.rewind().map_err(Error::io("rewind", path))?;
    Ok(plain)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// The entries of an archive, by their names.
struct Contents<'a> {
    file: &'a File,
    what: &'a str,
    entries: BTreeMap<String, Entry>,
}

impl<'a> Contents<'a> {
    fn read(file: &'a File, what: &'a str) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed {
            what: what.to_owned(),
            reason,
        };
        let torn = |error: io::Error| malformed(error.to_string());
        let end = file.metadata().map_err(torn)?.len();
        let mut archive = tar::Archive::new(file);
        let mut entries = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(torn)? {
            let entry = entry.map_err(torn)?;
            if entries.len() == MAX_ENTRIES {
                return Err(malformed(format!("more than {MAX_ENTRIES} entries")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let kind = entry.header().entry_type();
            let found = if kind.is_file() {
                let (at, size) = (entry.raw_file_position(), entry.size());
                if at.checked_add(size).is_none_or(|last| last > end) {
                    let reason = format!("{name:?} has {size} bytes, which lie behind its end");
                    return Err(malformed(reason));
                }
                Entry::Content(Span { at, size })
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let base = if kind.is_symlink() { parent(&name) } else { "" };
                Entry::Link(format!("{base}/{target}"))
            } else {
                continue;
            };
            let name = normal(&name).ok_or_else(|| malformed(format!("unsafe path {name:?}")))?;
            entries.insert(name, found);
        }
        Ok(Self {
            file,
            what,
            entries,
        })
    }

    /// Where the content of `name` lies; docker links equal layers to each other.
    fn span(&self, name: &str) -> Result<Span> {
        let missing = || Error::NotFound(format!("{name} in {}", self.what));
        let mut at = normal(name).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&at).ok_or_else(missing)? {
                Entry::Content(span) => return Ok(*span),
                Entry::Link(target) => at = normal(target).ok_or_else(missing)?,
            }
        }
        Err(Error::Malformed {
            what: self.what.to_owned(),
            reason: format!("{name} is a link that leads nowhere"),
        })
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let span = self.span(name)?;
        let what = format!("{name} in {}", self.what);
        let file = self.file;
        read_all(
            At {
                file,
                span,
                read: 0,
            },
            MAX_MANIFEST,
            &what,
        )
    }

    fn blobs(&self) -> HashMap<Digest, Span> {
        let blob = |(name, entry): (&String, &Entry)| match entry {
            Entry::Content(span) => Some((blob_digest(name)?, *span)),
            Entry::Link(_) => None,
        };
        self.entries.iter().filter_map(blob).collect()
    }

    fn oci(&self, archive: &Archive) -> Result<(FetchedManifest, HashMap<Digest, Span>)> {
        self.span(LAYOUT)?;
        let what = format!("{INDEX} in {}", self.what);
        let Document::Index(index) = Document::parse(&self.bytes(INDEX)?, OCI_INDEX, &what)? else {
            let reason = "is a manifest, not an index".to_owned();
            return Err(Error::Malformed { what, reason });
        };
        let descriptor = layout::select(&index, archive.name.as_deref(), self.what)?;
        let blobs = self.blobs();
        let bytes = self.bytes(&format!("{BLOBS}{}", descriptor.digest.hex()))?;
        let what = format!("manifest {} in {}", descriptor.digest, self.what);
        descriptor.digest.verify(&bytes, &what)?;
        let top = FetchedManifest {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest,
            bytes,
        };
        Ok((top, blobs))
    }

    /// The image as an OCI manifest: docker's archives have none of their own, or one that other
    /// tools do not read.
    fn docker(&self, archive: &Archive) -> Result<(FetchedManifest, HashMap<Digest, Span>)> {
        let list = format!("{MANIFEST} in {}", self.what);
        let items = docker::parse(&self.bytes(MANIFEST)?, &list)?;
        let item = docker::select(&items, archive.name.as_deref(), self.what)?;
        let config = self.bytes(&item.config)?;
        let what = format!("{} in {}", item.config, self.what);
        let diff_ids = diff_ids(&config, &what)?;
        if diff_ids.len() != item.layers.len() {
            let (ids, layers) = (diff_ids.len(), item.layers.len());
            let reason = format!("has {ids} rootfs.diff_ids for {layers} layers of {MANIFEST}");
            return Err(Error::Malformed { what, reason });
        }
        let mut blobs = HashMap::from([(Digest::of(&config), self.span(&item.config)?)]);
        let mut layers = Vec::new();
        for (name, diff_id) in item.layers.iter().zip(diff_ids) {
            let span = self.span(name)?;
            let layer = self.layer(name, span, diff_id)?;
            blobs.insert(layer.digest, span);
            layers.push(layer);
        }
        let size = config.len() as u64;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: descriptor(OCI_CONFIG, Digest::of(&config), size),
            layers,
            other: BTreeMap::new(),
        };
        let bytes = to_json(&manifest)?;
        let top = FetchedManifest {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(&bytes),
            bytes,
        };
        Ok((top, blobs))
    }

    /// A layer by what it is: docker's are plain archives whose digest the configuration states,
    /// others' may be compressed, and then their name has it.
    fn layer(&self, name: &str, span: Span, diff_id: Digest) -> Result<Descriptor> {
        let file = self.file;
        let content = || At {
            file,
            span,
            read: 0,
        };
        let mut magic = Vec::new();
        let io_error = Error::io("read", Path::new(self.what));
        content()
            .take(4)
            .read_to_end(&mut magic)
            .map_err(io_error)?;
        let packing = match magic.as_slice() {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => "+zstd",
            _ => "",
        };
        let digest = match (packing, blob_digest(name)) {
            ("", _) => diff_id,
            (_, Some(digest)) => digest,
            (_, None) => {
                let mut reader = HashingReader::new(content());
                let io_error = Error::io("read", Path::new(self.what));
                io::copy(&mut reader, &mut io::sink()).map_err(io_error)?;
                reader.finish().1
            }
        };
        Ok(descriptor(
            &format!("{OCI_TAR}{packing}"),
            digest,
            span.size,
        ))
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    }
}

fn diff_ids(config: &[u8], what: &str) -> Result<Vec<Digest>> {
    #[derive(serde::Deserialize)]
    struct Config {
        rootfs: Rootfs,
    }
    #[derive(serde::Deserialize)]
    struct Rootfs {
        #[serde(default)]
        diff_ids: Option<Vec<Digest>>,
    }
    let config: Config = serde_json::from_slice(config).map_err(|error| Error::Malformed {
        what: what.to_owned(),
        reason: format!("rootfs.diff_ids: {error}"),
    })?;
    Ok(config.rootfs.diff_ids.unwrap_or_default())
}

/// The digest in the name of a blob.
fn blob_digest(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix(BLOBS)?;
    format!("sha256:{hex}").parse().ok()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The name without empty and `.` components, and `..` resolved; none if it leads out.
fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn read_all(source: impl Read, limit: usize, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", Path::new(what)))?;
    if bytes.len() > limit {
        return Err(Error::Malformed {
            what: what.to_owned(),
            reason: format!("larger than {limit} bytes"),
        });
    }
    Ok(bytes)
}

/// A part of a file as a stream.
struct At<'a> {
    file: &'a File,
    span: Span,
    read: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.span.size - self.read;
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self
            .file
            .read_at(&mut buffer[..wanted], self.span.at + self.read)?;
        self.read += count as u64;
        Ok(count)
    }
}

/// A blob in an archive, as a stream and by ranges.
pub(in crate::convert) struct Section {
    file: Arc<File>,
    span: Span,
    read: u64,
    name: String,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (file, span, read) = (&*self.file, self.span, self.read);
        let count = At { file, span, read }.read(buffer)?;
        self.read += count as u64;
        Ok(count)
    }
}

impl BlobSource for Section {
    fn size(&self) -> u64 {
        self.span.size
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        if offset
            .checked_add(len)
            .is_none_or(|end| end > self.span.size)
        {
            let (name, size) = (&self.name, self.span.size);
            let reason = format!("{len} bytes at {offset} of {name}, which has {size} bytes");
            return Err(Error::InvalidArgument(reason));
        }
        let mut data = vec![0; len as usize];
        self.file
            .read_exact_at(&mut data, self.span.at + offset)
            .map_err(Error::io("read", Path::new(&self.name)))?;
        Ok(data)
    }
}
