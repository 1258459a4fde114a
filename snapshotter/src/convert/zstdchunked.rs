//! Second pass over a layer: the same archive again, as a zstd:chunked blob.
//!
//! The blob unpacks to exactly the archive it was made from, so the diff ID stays. Each chunk of a
//! file is a zstd frame of its own, and so is what lies between two files; TOC, tar-split and
//! footer follow in skippable frames. The dialect is that of podman, buildah and skopeo.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::digest::{Digest, Hasher, HashingWriter};
use crate::error::{Error, Result};
use crate::formats::estargz::toc::{EntryType, Toc, TocEntry, ZEROS};
use crate::formats::timestamp;
use crate::formats::zstdchunked::{
    CONTAINERS, CONTAINERS_FOOTER, SKIPPABLE, SKIPPABLE_HEADER, TAR_SPLIT_POSITION, TYPE_CRFS,
};

use super::entry::toc_entry;
use super::hot::Cuts;
use super::layer::Written;
use super::member::{Member, Piece, Plan, Pool};
use super::spool::Spool;
use super::tar::TarEntry;
use super::tar::reader::Time;
use super::target::Style;
use super::tarsplit::{Crc64, TarSplit};

/// Largest frame of what lies between files.
const MAX_GLUE: u64 = 1 << 20;
/// Level of the compression of TOC and tar-split, of which the first is read at every start.
const META_LEVEL: i32 = 9;

/// Writes the spooled layer into a nameless file in `dir`.
pub(super) fn write(spool: Spool, style: &Style, pool: &Pool, dir: &Path) -> Result<Written> {
    let Spool { file, mut entries } = spool;
    let length = file
        .metadata()
        .map_err(Error::io("stat temporary file in", dir))?
        .len();
    let is_exact = make_unique(&mut entries);
    let archive = Arc::new(file);
    let mut assembly = Assembly::new(&entries, Arc::clone(&archive), is_exact, dir)?;
    let cuts = style.cuts(&entries);
    let mut pending = VecDeque::with_capacity(pool.window());
    for frame in frames(&entries, length, &cuts) {
        if pending.len() == pool.window() {
            assembly.finish_first(&mut pending)?;
        }
        let (at, length) = (frame.at, frame.length);
        let plan = Plan {
            pieces: vec![Piece::Spooled { at, length }],
            chunk: if frame.file.is_some() { length } else { 0 },
            is_hot: frame.is_hot,
        };
        pending.push_back((frame, pool.submit(plan, &archive)));
    }
    while !pending.is_empty() {
        assembly.finish_first(&mut pending)?;
    }
    assembly.finish(length)
}

/// Drops all but the last entry of each name, as unpacking does; whether the rest is all that a
/// reader of the archive sees.
fn make_unique(entries: &mut Vec<TarEntry>) -> bool {
    let mut seen = HashSet::with_capacity(entries.len());
    let last: Vec<bool> = entries
        .iter()
        .rev()
        .map(|entry| seen.insert(entry.name.clone()))
        .collect();
    let mut last = last.into_iter().rev();
    let before = entries.len();
    entries.retain(|_| last.next().unwrap_or(true));
    entries.len() == before && !entries.iter().any(|entry| entry.raw.has_globals)
}

/// Bytes of the archive that become one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    at: u64,
    length: u64,
    /// The entry whose content they are.
    file: Option<usize>,
    /// Whether a start reads them.
    is_hot: bool,
}

/// Cuts an archive of `length` bytes into frames, without gap.
fn frames<'a>(
    entries: &'a [TarEntry],
    length: u64,
    cuts: &'a Cuts<'a>,
) -> impl Iterator<Item = Frame> + 'a {
    let mut end = 0;
    let files = entries.iter().enumerate().filter(|(_, e)| e.size > 0);
    files.map(Some).chain([None]).flat_map(move |file| {
        let (from, to) = file.map_or((length, length), |(_, e)| (e.data_at, e.data_at + e.size));
        let before = glue(end, from);
        end = to;
        let content = file.into_iter().flat_map(move |(number, entry)| {
            cuts.of(number, entry.size).map(move |cut| Frame {
                at: entry.data_at + cut.at,
                length: cut.length,
                file: Some(number),
                is_hot: cut.is_hot,
            })
        });
        before.chain(content)
    })
}

/// What lies between files.
fn glue(from: u64, to: u64) -> impl Iterator<Item = Frame> {
    let count = to.saturating_sub(from).div_ceil(MAX_GLUE);
    (0..count).map(move |i| Frame {
        at: from + i * MAX_GLUE,
        length: MAX_GLUE.min(to - from - i * MAX_GLUE),
        file: None,
        is_hot: false,
    })
}

type Pending = (Frame, Receiver<Result<Member>>);

/// Puts finished frames together, in order.
struct Assembly<'a> {
    entries: &'a [TarEntry],
    archive: Arc<File>,
    blob: HashingWriter<BufWriter<File>>,
    diff: Hasher,
    toc: Toc,
    /// Entries that the TOC has so far.
    described: usize,
    /// The file being written, with its place in the TOC.
    current: Option<Current>,
    /// None when the TOC does not hold exactly what the archive does.
    split: Option<TarSplit<zstd::Encoder<'static, Vec<u8>>>>,
    /// How much of the archive the tar-split covers.
    split_at: u64,
    dir: PathBuf,
}

struct Current {
    place: usize,
    digest: Hasher,
    crc: Crc64,
}

impl<'a> Assembly<'a> {
    fn new(
        entries: &'a [TarEntry],
        archive: Arc<File>,
        is_exact: bool,
        dir: &Path,
    ) -> Result<Self> {
        let file =
            tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
        let split = || {
            zstd::Encoder::new(Vec::new(), META_LEVEL)
                .map(TarSplit::new)
                .map_err(|error| Error::Internal(format!("zstd: {error}")))
        };
        Ok(Self {
            entries,
            archive,
            blob: HashingWriter::new(BufWriter::with_capacity(1 << 20, file)),
            diff: Hasher::new(),
            toc: Toc {
                version: 1,
                entries: Vec::with_capacity(entries.len()),
                ..Toc::default()
            },
            described: 0,
            current: None,
            split: is_exact.then(split).transpose()?,
            split_at: 0,
            dir: dir.to_owned(),
        })
    }

    fn finish_first(&mut self, pending: &mut VecDeque<Pending>) -> Result<()> {
        let Some((frame, member)) = pending.pop_front() else {
            return Ok(());
        };
        let member = member
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("a compressing thread ended".into())))?;
        self.diff.update(&member.plain);
        if let Some(file) = frame.file {
            self.describe_before(file)?;
            self.chunk(file, frame, &member)?;
        } else {
            self.append(&member.compressed)?;
        }
        Ok(())
    }

    /// Adds the entries before `end` to the TOC that are not there yet: they have no content.
    fn describe_before(&mut self, end: usize) -> Result<()> {
        while self.described < end {
            let entry = &self.entries[self.described];
            self.described += 1;
            self.toc.entries.push(describe(entry));
            self.split_entry(entry, 0)?;
        }
        Ok(())
    }

    fn chunk(&mut self, file: usize, frame: Frame, member: &Member) -> Result<()> {
        let entry = &self.entries[file];
        let offset = self.blob.count();
        self.append(&member.compressed)?;
        let end = self.blob.count();
        let chunk_offset = frame.at - entry.data_at;
        let is_last = chunk_offset + frame.length == entry.size;
        let is_first = chunk_offset == 0;
        if is_first {
            self.described = file + 1;
            self.toc.entries.push(describe(entry));
        } else {
            self.toc.entries.push(TocEntry {
                name: entry.raw.name.to_string(),
                kind: EntryType::Chunk,
                ..TocEntry::default()
            });
        }
        let last = self.toc.entries.len() - 1;
        let chunk = &mut self.toc.entries[last];
        (chunk.offset, chunk.chunk_offset) = (offset, chunk_offset);
        if !(is_first && is_last) {
            chunk.chunk_size = frame.length;
            chunk.chunk_digest = member.chunk_digest.to_string();
            if member.plain.iter().all(|byte| *byte == 0) {
                ZEROS.clone_into(&mut chunk.chunk_type);
            }
        }
        let mut current = self.current.take().unwrap_or_else(|| Current {
            place: last,
            digest: Hasher::new(),
            crc: Crc64::default(),
        });
        if self.split.is_some() {
            current.crc.update(&member.plain);
        }
        if !(is_first && is_last) {
            current.digest.update(&member.plain);
        }
        if !is_last {
            self.current = Some(current);
            return Ok(());
        }
        let whole = &mut self.toc.entries[current.place];
        whole.end_offset = end;
        whole.digest = if is_first {
            member.chunk_digest.to_string()
        } else {
            current.digest.finish().to_string()
        };
        self.split_entry(entry, current.crc.finish())
    }

    /// Adds an entry to the tar-split: the archive's bytes up to the end of its header, its content.
    fn split_entry(&mut self, entry: &TarEntry, crc: u64) -> Result<()> {
        self.split_segment(entry.data_at)?;
        self.split_at += entry.size;
        if let Some(split) = &mut self.split {
            split
                .file(&entry.raw.name.to_string(), entry.size, crc)
                .map_err(|error| split_error(&error))?;
        }
        Ok(())
    }

    fn split_segment(&mut self, end: u64) -> Result<()> {
        let Some(split) = &mut self.split else {
            return Ok(());
        };
        let mut bytes = vec![0; MAX_GLUE.min(end - self.split_at) as usize];
        while self.split_at < end {
            bytes.truncate((end - self.split_at) as usize);
            self.archive
                .read_exact_at(&mut bytes, self.split_at)
                .map_err(Error::io("read temporary file in", &self.dir))?;
            split.segment(&bytes).map_err(|error| split_error(&error))?;
            self.split_at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The packed tar-split and its unpacked length; the TOC learns its digest.
    fn finish_split(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        let Some(split) = self.split.take() else {
            return Ok(None);
        };
        let (encoder, unpacked) = split.finish();
        let packed = encoder.finish().map_err(|error| split_error(&error))?;
        self.toc.tar_split_digest = Digest::of(&packed).to_string();
        Ok(Some((packed, unpacked)))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.blob
            .write_all(bytes)
            .map_err(Error::io("write temporary file in", &self.dir))
    }

    /// A skippable frame; where its content lies.
    fn skippable(&mut self, content: &[u8]) -> Result<u64> {
        let length = u32::try_from(content.len())
            .map_err(|_| Error::Internal("more than 4 GiB of metadata".into()))?;
        let at = self.blob.count() + SKIPPABLE_HEADER;
        self.append(&SKIPPABLE)?;
        self.append(&length.to_le_bytes())?;
        self.append(content)?;
        Ok(at)
    }

    /// TOC, tar-split, footer.
    fn finish(mut self, length: u64) -> Result<Written> {
        self.describe_before(self.entries.len())?;
        self.split_segment(length)?;
        let split = self.finish_split()?;
        let json = serde_json::to_vec(&self.toc)
            .map_err(|error| Error::Internal(format!("TOC as JSON: {error}")))?;
        let packed = zstd::bulk::compress(&json, META_LEVEL)
            .map_err(|error| Error::Internal(format!("zstd: {error}")))?;
        let toc_digest = Digest::of(&packed);
        let toc_at = self.skippable(&packed)?;
        let position = [toc_at, packed.len() as u64, json.len() as u64, TYPE_CRFS];
        let mut annotations = vec![
            (CONTAINERS.checksum, toc_digest.to_string()),
            (CONTAINERS.position, joined(&position)),
        ];
        let mut footer = position.to_vec();
        if let Some((split, unpacked)) = split {
            let position = [self.skippable(&split)?, split.len() as u64, unpacked];
            annotations.push((TAR_SPLIT_POSITION, joined(&position)));
            footer.extend(position);
        }
        let (magic, integers) = CONTAINERS_FOOTER;
        footer.resize(integers, 0);
        let mut bytes: Vec<u8> = footer.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(magic);
        self.skippable(&bytes)?;
        let (writer, digest, size) = self.blob.finish();
        let file = writer
            .into_inner()
            .map_err(|error| Error::io("write temporary file in", &self.dir)(error.into_error()))?;
        Ok(Written {
            file,
            digest,
            size,
            diff_id: self.diff.finish(),
            toc_digest,
            annotations,
        })
    }
}

/// What the TOC says of an entry, to the letter of its header: containers/storage compares.
fn describe(entry: &TarEntry) -> TocEntry {
    let time = |time: &Option<Time>| {
        let text = |time: &Time| timestamp::format(time.seconds, time.nanos);
        time.as_ref().map(text).unwrap_or_default()
    };
    TocEntry {
        name: entry.raw.name.to_string(),
        link_name: entry.raw.link.to_string(),
        mode: entry.raw.mode,
        user_name: String::new(),
        group_name: String::new(),
        access_time: time(&entry.raw.access_time),
        change_time: time(&entry.raw.change_time),
        dev_major: entry.dev_major,
        dev_minor: entry.dev_minor,
        ..toc_entry(entry)
    }
}

fn split_error(error: &std::io::Error) -> Error {
    Error::Internal(format!("tar-split: {error}"))
}

fn joined(numbers: &[u64]) -> String {
    let texts: Vec<_> = numbers.iter().map(u64::to_string).collect();
    texts.join(":")
}

#[cfg(test)]
mod tests;
