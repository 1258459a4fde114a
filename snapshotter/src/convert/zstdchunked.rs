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
mod tests {
    use std::io::Read;

    use super::super::guided::Recorded;
    use super::super::hot::{Hot, Sizes};
    use super::super::spool::spool;
    use super::super::target::Target;
    use super::*;
    use crate::formats::zstdchunked::{Position, index, unpack_toc};
    use crate::index::LayerIndex;

    const CHUNK: u64 = 4096;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let mut bytes = builder.into_inner().unwrap();
        // Archives are often padded to a record.
        bytes.resize(bytes.len().next_multiple_of(10_240), 0);
        bytes
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o100_644);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn sample() -> Vec<u8> {
        archive(|tar| {
            let mut dir = tar::Header::new_gnu();
            dir.set_entry_type(tar::EntryType::Directory);
            dir.set_mode(0o755);
            dir.set_size(0);
            tar.append_data(&mut dir, "etc/", std::io::empty()).unwrap();
            add(tar, "etc/empty", b"");
            add(tar, "etc/small", b"small");
            tar.append_pax_extensions([("SCHILY.xattr.user.k", &b"v\0"[..]), ("atime", b"1.5")])
                .unwrap();
            let large: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
            add(tar, "etc/large", &large[..3 * CHUNK as usize + 7]);
            add(tar, "etc/zeros", &[0; 10_000]);
            add(tar, &format!("{}/x", "long".repeat(40)), b"x");
        })
    }

    fn written(archive: &[u8], threads: usize) -> (Written, Vec<u8>) {
        written_for(archive, threads, Hot::default())
    }

    fn written_for(archive: &[u8], threads: usize, hot: Hot) -> (Written, Vec<u8>) {
        let dir = std::env::temp_dir();
        let spool = spool(archive, &dir, "layer").unwrap();
        let style = Style {
            target: Target::ZstdChunked,
            chunk_sizes: Sizes {
                ordinary: CHUNK,
                hot: 2 * CHUNK,
            },
            level: 3,
            prioritized: Vec::new(),
            hot,
        };
        let pool = Pool::new(threads, style.packing());
        let written = write(spool, &style, &pool, &dir).unwrap();
        let mut blob = vec![0; written.size as usize];
        written.file.read_exact_at(&mut blob, 0).unwrap();
        (written, blob)
    }

    fn annotation<'a>(written: &'a Written, name: &str) -> Option<&'a str> {
        let mut found = written.annotations.iter().filter(|(key, _)| *key == name);
        found.next().map(|(_, value)| value.as_str())
    }

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        zstd::Decoder::new(bytes)
            .unwrap()
            .read_to_end(&mut plain)
            .unwrap();
        plain
    }

    #[test]
    fn the_blob_unpacks_to_the_archive_and_is_the_same_each_time() {
        let archive = sample();
        let (first, blob) = written(&archive, 1);
        assert!(unpacked(&blob) == archive);
        assert_eq!(first.diff_id, Digest::of(&archive));
        assert_eq!(first.digest, Digest::of(&blob));
        let (second, again) = written(&archive, 5);
        assert!(blob == again);
        assert_eq!(first.annotations, second.annotations);
    }

    /// The layer as our own reader sees it; each chunk must be what its frame alone unpacks to.
    fn checked(done: &Written, blob: &[u8]) -> LayerIndex {
        let size = blob.len() as u64;
        let position = annotation(done, CONTAINERS.position).unwrap();
        let position = Position::parse(position, size).unwrap();
        assert_eq!(Position::of_footer(blob, size).unwrap(), Some(position));
        let packed = &blob[position.offset as usize..][..position.packed as usize];
        let checksum = annotation(done, CONTAINERS.checksum).unwrap();
        assert_eq!(checksum, Digest::of(packed).to_string());
        let json = unpack_toc(packed, position).unwrap();
        let index = index(&json, done.digest, done.toc_digest, size, position).unwrap();
        for id in 0..index.chunks() {
            let chunk = index.chunk(id);
            let unit = index.unit(chunk.unit);
            let bytes = unpacked(&blob[unit.offset as usize..unit.end() as usize]);
            assert_eq!(
                bytes.len() as u64,
                u64::from(chunk.len),
                "nothing but the chunk"
            );
            assert_eq!(Digest::of(&bytes).as_bytes(), &chunk.digest);
        }
        index
    }

    #[test]
    fn our_own_reader_finds_every_chunk_by_annotation_and_footer() {
        let (done, blob) = written(&sample(), 2);
        let index = checked(&done, &blob);
        // The root, etc, its four files, the long directory and its file.
        assert_eq!(index.inodes(), 8);
        // small, four of large, x; the zeros are holes.
        assert_eq!(index.chunks(), 6);
    }

    #[test]
    fn what_a_start_reads_is_apart_and_packed_harder_in_the_same_archive() {
        let text = |i: u32| format!("{} and {} ", i % 977, i * i % 499);
        let large: Vec<u8> = (0..8000).flat_map(|i| text(i).into_bytes()).collect();
        let archive = archive(|tar| add(tar, "large", &large));
        let hot = Hot::new(&[Recorded {
            path: "large".to_owned(),
            at: 0,
            ranges: vec![(5 * CHUNK + 1, 2 * CHUNK), (5 * CHUNK, 10)],
        }]);
        let (done, blob) = written_for(&archive, 1, hot.clone());
        assert!(unpacked(&blob) == archive && done.diff_id == Digest::of(&archive));
        assert!(
            written_for(&archive, 4, hot).1 == blob,
            "the same each time"
        );
        let index = checked(&done, &blob);
        let chunks: Vec<_> = (0..index.chunks()).map(|id| index.chunk(id)).collect();
        let ends: Vec<u64> = chunks[..9].iter().map(|chunk| chunk.file_offset).collect();
        // Three pages are hot, of which a chunk holds two.
        assert_eq!(ends, [0, 1, 2, 3, 4, 5, 7, 8, 9].map(|page| page * CHUNK));
        let frame = |chunk: &crate::index::Chunk| {
            let unit = index.unit(chunk.unit);
            blob[unit.offset as usize..unit.end() as usize].to_vec()
        };
        for (number, level) in [(4, 3), (5, 19), (6, 19), (7, 3)] {
            let plain = &large[ends[number] as usize..ends[number + 1] as usize];
            let expected = zstd::bulk::compress(plain, level).unwrap();
            assert!(
                frame(&chunks[number]) == expected,
                "level {level} of {number}"
            );
        }
    }

    #[test]
    fn the_tar_split_and_the_files_make_up_the_archive() {
        let archive = sample();
        let (done, blob) = written(&archive, 2);
        let position = annotation(&done, TAR_SPLIT_POSITION).unwrap();
        let numbers: Vec<usize> = position.split(':').map(|n| n.parse().unwrap()).collect();
        let packed = &blob[numbers[0]..][..numbers[1]];
        let lines = unpacked(packed);
        assert_eq!(lines.len(), numbers[2]);
        let (mut rebuilt, mut names) = (Vec::new(), Vec::new());
        for line in lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            use base64::Engine as _;
            let line: serde_json::Value = serde_json::from_slice(line).unwrap();
            let payload = line["payload"].as_str().map(|text| {
                base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .unwrap()
            });
            if line["type"] == 2 {
                rebuilt.extend(payload.unwrap());
                continue;
            }
            names.push(line["name"].as_str().unwrap().to_owned());
            let size = line["size"].as_u64().unwrap_or(0) as usize;
            let content = &archive[rebuilt.len()..][..size];
            let mut crc = Crc64::default();
            crc.update(content);
            assert_eq!(payload.is_some(), size > 0);
            if let Some(payload) = payload {
                assert_eq!(payload, crc.finish().to_be_bytes());
            }
            rebuilt.extend_from_slice(content);
        }
        assert!(rebuilt == archive);
        assert_eq!(names[0], "etc/", "names are those of the headers");
    }

    #[test]
    fn an_archive_with_a_name_twice_has_no_tar_split_and_the_last_one_wins() {
        let archive = archive(|tar| {
            add(tar, "a", b"first");
            add(tar, "b", b"b");
            add(tar, "./a", b"second");
        });
        let (done, blob) = written(&archive, 2);
        assert_eq!(annotation(&done, TAR_SPLIT_POSITION), None);
        assert!(unpacked(&blob) == archive);
        let size = blob.len() as u64;
        let position = Position::of_footer(&blob, size).unwrap().unwrap();
        let packed = &blob[position.offset as usize..][..position.packed as usize];
        let json = unpack_toc(packed, position).unwrap();
        let index = index(&json, done.digest, done.toc_digest, size, position).unwrap();
        let sizes: Vec<_> = (1..index.inodes()).map(|id| index.inode(id).size).collect();
        assert_eq!(sizes, [1, 6]);
    }
}
