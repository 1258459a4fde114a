//! Second pass over a layer: the archive again, as an eStargz blob.
//!
//! The blob is one gzip stream of many members. Each chunk of a file starts a member; the tar
//! headers between two files end the member before them, which saves a member for each file and
//! changes nothing for readers: they stop at the chunk's length. The last two members are the TOC,
//! as the archive's last entry, and the footer that tells where the TOC is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use flate2::{Compress, Compression};

use crate::digest::{Digest, Hasher, HashingWriter};
use crate::error::{Error, Result};
use crate::formats::estargz::footer;
use crate::formats::estargz::toc::{
    EntryType, LANDMARK_CONTENT, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_DIGEST_ANNOTATION,
    TOC_NAME, Toc, TocEntry, UNCOMPRESSED_SIZE_ANNOTATION,
};

use super::entry::toc_entry;
use super::hot::{Cut, Cuts};
use super::layer::Written;
use super::member::{Member, Piece, Plan, Pool, compress};
use super::order::order;
use super::spool::{Spool, keep};
use super::tar::{BLOCK, TarEntry, encode_regular, padding};
use super::target::Style;

/// Header bytes between two files that may collect before they get a member of their own.
const MAX_HEADERS: u64 = 1 << 20;
/// Level of the TOC's compression: it is read at every start, and small.
const TOC_LEVEL: u32 = 9;

/// Writes the spooled layer into a nameless file in `dir`.
pub(super) fn write(spool: Spool, style: &Style, pool: &Pool, dir: &Path) -> Result<Written> {
    let file = tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
    let entries = keep(spool.entries);
    let archive = Arc::new(spool.file);
    let mut assembly = Assembly {
        blob: HashingWriter::new(BufWriter::with_capacity(1 << 20, file)),
        diff: Hasher::new(),
        uncompressed_size: 0,
        toc: Toc {
            version: 1,
            entries: Vec::with_capacity(entries.len() + 1),
            ..Toc::default()
        },
        file_hash: None,
        dir: dir.to_owned(),
    };
    let mut pending = VecDeque::with_capacity(pool.window());
    Planner::new(&entries, style).run(|step| {
        if pending.len() == pool.window() {
            assembly.finish_first(&mut pending)?;
        }
        let ordered = step.member.map(|plan| Ordered {
            has_chunk: plan.chunk > 0,
            member: pool.submit(plan, &archive),
        });
        pending.push_back((step.entries, ordered));
        Ok(())
    })?;
    while !pending.is_empty() {
        assembly.finish_first(&mut pending)?;
    }
    assembly.finish()
}

/// What the planner gives away: entries for the TOC and then a member, whose chunk (if it has one)
/// is that of the last entry.
struct Step {
    entries: Vec<TocEntry>,
    member: Option<Plan>,
}

/// Lays a layer out as members, without looking at any content.
struct Planner<'a> {
    entries: &'a [TarEntry],
    style: &'a Style,
    /// The member being collected and the TOC entries of which the last is its chunk's.
    plan: Plan,
    collected: u64,
    toc: Vec<TocEntry>,
    /// TOC entries of headers in `plan`, which come after those of `toc`.
    after: Vec<TocEntry>,
}

impl<'a> Planner<'a> {
    fn new(entries: &'a [TarEntry], style: &'a Style) -> Self {
        Self {
            entries,
            style,
            plan: Plan::default(),
            collected: 0,
            toc: Vec::new(),
            after: Vec::new(),
        }
    }

    fn run(mut self, mut give: impl FnMut(Step) -> Result<()>) -> Result<()> {
        let (order, first) = order(self.entries, &self.style.prioritized);
        let cuts = self.style.cuts(self.entries);
        let landmark = if first > 0 {
            PREFETCH_LANDMARK
        } else {
            NO_PREFETCH_LANDMARK
        };
        for (place, at) in order.iter().enumerate() {
            if place == first {
                self.landmark(landmark, &mut give)?;
            }
            self.entry(*at, &cuts, &mut give)?;
        }
        if first == order.len() {
            self.landmark(landmark, &mut give)?;
        }
        self.close(&mut give)?;
        // Entries whose headers lay in the member just given away.
        self.close(&mut give)
    }

    fn landmark(&mut self, name: &str, give: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
        let header = encode_regular(name, LANDMARK_CONTENT.len() as u64);
        self.header(Piece::Bytes(header.to_vec()), give)?;
        self.close(give)?;
        self.toc.push(TocEntry {
            name: name.to_owned(),
            size: LANDMARK_CONTENT.len() as u64,
            ..TocEntry::default()
        });
        self.plan.chunk = LANDMARK_CONTENT.len() as u64;
        self.plan
            .pieces
            .push(Piece::Bytes(LANDMARK_CONTENT.to_vec()));
        self.pad(LANDMARK_CONTENT.len() as u64);
        Ok(())
    }

    fn entry(
        &mut self,
        number: usize,
        cuts: &Cuts<'_>,
        give: &mut impl FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let entry = &self.entries[number];
        let length = entry.data_at - entry.header_at;
        self.header(
            Piece::Spooled {
                at: entry.header_at,
                length,
            },
            give,
        )?;
        // The root directory itself has no place in a TOC.
        let described = (!entry.name.is_empty()).then(|| toc_entry(entry));
        if entry.size == 0 {
            self.after.extend(described);
            return Ok(());
        }
        let mut described = described.into_iter();
        for Cut { at, length, is_hot } in cuts.of(number, entry.size) {
            self.close(give)?;
            let mut chunk = described.next().unwrap_or_else(|| TocEntry {
                name: entry.name.to_string(),
                kind: EntryType::Chunk,
                ..TocEntry::default()
            });
            chunk.chunk_offset = at;
            // The last chunk's length follows from the file's.
            chunk.chunk_size = if at + length < entry.size { length } else { 0 };
            self.toc.push(chunk);
            (self.plan.chunk, self.plan.is_hot) = (length, is_hot);
            self.plan.pieces.push(Piece::Spooled {
                at: entry.data_at + at,
                length,
            });
        }
        self.pad(entry.size);
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        if padding(size) > 0 {
            self.plan
                .pieces
                .push(Piece::Bytes(vec![0; padding(size) as usize]));
        }
    }

    fn header(&mut self, piece: Piece, give: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
        self.collected += match &piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Spooled { length, .. } => *length,
        };
        self.plan.pieces.push(piece);
        if self.collected > MAX_HEADERS {
            self.close(give)
        } else {
            Ok(())
        }
    }

    /// Gives the collected member away and begins the next.
    fn close(&mut self, give: &mut impl FnMut(Step) -> Result<()>) -> Result<()> {
        self.collected = 0;
        let entries = std::mem::take(&mut self.toc);
        self.toc = std::mem::take(&mut self.after);
        let plan = std::mem::take(&mut self.plan);
        let member = (!plan.pieces.is_empty()).then_some(plan);
        if entries.is_empty() && member.is_none() {
            return Ok(());
        }
        give(Step { entries, member })
    }
}

/// A member that is being made.
struct Ordered {
    has_chunk: bool,
    member: Receiver<Result<Member>>,
}

type Pending = (Vec<TocEntry>, Option<Ordered>);

/// Puts finished members together, in order.
struct Assembly {
    blob: HashingWriter<BufWriter<File>>,
    diff: Hasher,
    uncompressed_size: u64,
    toc: Toc,
    /// Index in the TOC of the file being written in several chunks, and its digest so far.
    file_hash: Option<(usize, Hasher)>,
    dir: std::path::PathBuf,
}

impl Assembly {
    fn finish_first(&mut self, pending: &mut VecDeque<Pending>) -> Result<()> {
        let Some((entries, ordered)) = pending.pop_front() else {
            return Ok(());
        };
        self.toc.entries.extend(entries);
        let Some(Ordered { has_chunk, member }) = ordered else {
            return Ok(());
        };
        let member = member
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("a compressing thread ended".into())))?;
        if has_chunk {
            self.describe_chunk(&member, self.blob.count());
        }
        self.append(&member.plain, &member.compressed)
    }

    /// Completes the TOC entry of the chunk that `member` starts with.
    fn describe_chunk(&mut self, member: &Member, offset: u64) {
        let last = self.toc.entries.len() - 1;
        let entry = &mut self.toc.entries[last];
        entry.offset = offset;
        entry.chunk_digest = member.chunk_digest.to_string();
        let is_first = entry.kind != EntryType::Chunk;
        let is_last = entry.chunk_size == 0;
        if is_first && is_last {
            entry.digest = entry.chunk_digest.clone();
            return;
        }
        let length = if is_last {
            None
        } else {
            Some(entry.chunk_size)
        };
        let (file, mut hasher) = match self.file_hash.take() {
            Some(hash) if !is_first => hash,
            _ => (last, Hasher::new()),
        };
        let total = self.toc.entries[file].size - self.toc.entries[last].chunk_offset;
        hasher.update(&member.plain[..length.unwrap_or(total) as usize]);
        if is_last {
            self.toc.entries[file].digest = hasher.finish().to_string();
        } else {
            self.file_hash = Some((file, hasher));
        }
    }

    fn append(&mut self, plain: &[u8], compressed: &[u8]) -> Result<()> {
        self.diff.update(plain);
        self.uncompressed_size += plain.len() as u64;
        self.blob
            .write_all(compressed)
            .map_err(Error::io("write temporary file in", &self.dir))
    }

    /// TOC, end of the archive, footer.
    fn finish(mut self) -> Result<Written> {
        let toc_offset = self.blob.count();
        let json = serde_json::to_vec(&self.toc)
            .map_err(|error| Error::Internal(format!("TOC as JSON: {error}")))?;
        let size = json.len() as u64;
        let mut tail = encode_regular(TOC_NAME, size).to_vec();
        tail.extend_from_slice(&json);
        tail.resize(tail.len() + (padding(size) + 2 * BLOCK) as usize, 0);
        let mut deflate = Compress::new(Compression::new(TOC_LEVEL), false);
        let compressed = compress(&tail, &mut deflate)?;
        self.append(&tail, &compressed)?;
        self.append(&[], &footer::encode(toc_offset))?;
        let (writer, digest, size) = self.blob.finish();
        let file = writer
            .into_inner()
            .map_err(|error| Error::io("write temporary file in", &self.dir)(error.into_error()))?;
        let toc_digest = Digest::of(&json);
        let annotations = vec![
            (TOC_DIGEST_ANNOTATION, toc_digest.to_string()),
            (
                UNCOMPRESSED_SIZE_ANNOTATION,
                self.uncompressed_size.to_string(),
            ),
        ];
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use flate2::read::{GzDecoder, MultiGzDecoder};

    use super::super::guided::Recorded;
    use super::super::hot::{Hot, Sizes};
    use super::super::member::Packing;
    use super::super::spool::spool;
    use super::super::tar::Reader;
    use super::super::target::Target;
    use super::*;

    /// A pseudo-random tree, the same for the same seed.
    fn layer(seed: u64, files: usize) -> Vec<u8> {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let mut tar = tar::Builder::new(Vec::new());
        for at in 0..files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(random(70_000));
            header.set_mtime(random(2_000_000_000));
            let dir = format!("dir{}", random(5));
            let name = format!("{dir}/{}{at}", "n".repeat(random(200) as usize));
            match random(6) {
                0 => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{name}/"), std::io::empty())
                        .unwrap();
                }
                1 => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, name, format!("../{at}"))
                        .unwrap();
                }
                _ => {
                    let size = [0, 1, 511, 512, 513, 5000, 20_000][random(7) as usize];
                    let content: Vec<u8> = (0..size).map(|_| random(7) as u8).collect();
                    if random(2) == 0 {
                        tar.append_pax_extensions([(
                            "SCHILY.xattr.user.k",
                            &content[..size.min(9)],
                        )])
                        .unwrap();
                    }
                    header.set_size(size as u64);
                    tar.append_data(&mut header, name, &content[..]).unwrap();
                }
            }
        }
        tar.into_inner().unwrap()
    }

    fn written(archive: &[u8], chunk_size: u64, prioritized: &[&str]) -> (Written, Vec<u8>) {
        let prioritized = prioritized.iter().map(ToString::to_string).collect();
        let style = Style {
            target: Target::Estargz,
            chunk_sizes: Sizes::new(Some(chunk_size), 0),
            level: 6,
            prioritized,
            hot: Hot::default(),
        };
        written_so(archive, &style)
    }

    fn written_so(archive: &[u8], style: &Style) -> (Written, Vec<u8>) {
        let dir = std::env::temp_dir();
        let spool = spool(archive, &dir, "layer").unwrap();
        let written = write(spool, style, &Pool::new(3, Packing::Gzip(6)), &dir).unwrap();
        let mut blob = vec![0; written.size as usize];
        written.file.read_exact_at(&mut blob, 0).unwrap();
        (written, blob)
    }

    fn unzip(blob: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        MultiGzDecoder::new(blob).read_to_end(&mut plain).unwrap();
        plain
    }

    fn toc(blob: &[u8]) -> (Toc, Vec<u8>) {
        let footer = footer::parse(blob, blob.len() as u64).unwrap().unwrap();
        let mut reader = Reader::new(GzDecoder::new(&blob[footer.toc_offset as usize..]));
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry.name, TOC_NAME);
        let mut json = Vec::new();
        reader
            .into_inner()
            .take(entry.size)
            .read_to_end(&mut json)
            .unwrap();
        (serde_json::from_slice(&json).unwrap(), json)
    }

    /// Names with their content, as an unpacker finds them.
    fn contents(archive: &[u8]) -> BTreeMap<String, (u64, Vec<u8>, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let uid = entry.header().uid().unwrap();
            let link = entry
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, (uid, link, content))
        });
        entries.collect()
    }

    #[test]
    fn the_blob_is_the_same_archive_with_landmark_and_toc() {
        for seed in 0..8 {
            let archive = layer(seed, 150);
            let (written, blob) = written(&archive, 4096, &[]);
            let plain = unzip(&blob);
            assert_eq!(Digest::of(&blob), written.digest);
            assert_eq!(Digest::of(&plain), written.diff_id);
            let length = plain.len().to_string();
            assert_eq!(
                written.annotations[1],
                (UNCOMPRESSED_SIZE_ANNOTATION, length)
            );
            let mut found = contents(&plain);
            assert!(found.remove(TOC_NAME).is_some());
            assert_eq!(
                found.remove(NO_PREFETCH_LANDMARK).unwrap().2,
                LANDMARK_CONTENT
            );
            assert_eq!(found, contents(&archive));
        }
    }

    #[test]
    fn every_chunk_is_where_the_toc_says_with_its_digest() {
        let archive = layer(42, 200);
        let (done, blob) = written(&archive, 4096, &[]);
        check_chunks(&archive, &done, &blob);
    }

    #[test]
    fn what_a_start_reads_has_chunks_of_its_own() {
        let archive = layer(42, 200);
        let large = contents(&archive);
        let large = large
            .iter()
            .filter(|(_, (_, _, content))| content.len() == 20_000);
        let recorded = large.map(|(name, _)| Recorded {
            path: name.clone(),
            at: 0,
            ranges: vec![(4000, 5000)],
        });
        let recorded: Vec<_> = recorded.collect();
        let hot = Hot::new(&recorded);
        let style = Style {
            target: Target::Estargz,
            chunk_sizes: Sizes::new(None, 16_384),
            level: 1,
            prioritized: Vec::new(),
            hot,
        };
        let (done, blob) = written_so(&archive, &style);
        check_chunks(&archive, &done, &blob);
        assert_eq!(Digest::of(&unzip(&blob)), done.diff_id);
        let (toc, _) = toc(&blob);
        let first = &recorded[0].path;
        let chunks = toc.entries.iter().filter(|entry| entry.name == *first);
        let chunks: Vec<_> = chunks
            .map(|entry| (entry.chunk_offset, entry.chunk_size))
            .collect();
        assert_eq!(chunks, [(0, 12_288), (12_288, 0)], "three pages, the rest");
    }

    fn check_chunks(archive: &[u8], written: &Written, blob: &[u8]) {
        let (toc, json) = toc(blob);
        assert_eq!(Digest::of(&json), written.toc_digest);
        let expected = contents(archive);
        let mut size = 0;
        let mut files = 0;
        for entry in &toc.entries {
            if entry.kind == EntryType::Reg {
                size = entry.size;
            }
            if entry.offset == 0 || entry.name == NO_PREFETCH_LANDMARK {
                continue;
            }
            let length = if entry.chunk_size == 0 {
                size - entry.chunk_offset
            } else {
                entry.chunk_size
            };
            let mut chunk = vec![0; length as usize];
            GzDecoder::new(&blob[entry.offset as usize..])
                .read_exact(&mut chunk)
                .unwrap();
            assert_eq!(Digest::of(&chunk).to_string(), entry.chunk_digest);
            let content = &expected[&entry.name].2;
            assert_eq!(content[entry.chunk_offset as usize..][..chunk.len()], chunk);
            files += 1;
        }
        assert!(files > 100, "{files}");
        for entry in toc
            .entries
            .iter()
            .filter(|entry| entry.kind == EntryType::Reg)
        {
            if let Some((_, _, content)) = expected.get(&entry.name) {
                assert_eq!(
                    entry.digest,
                    Digest::of(content).to_string(),
                    "{}",
                    entry.name
                );
            }
        }
    }

    #[test]
    fn the_toc_lists_the_archive_in_its_order() {
        let archive = layer(7, 100);
        let (_, blob) = written(&archive, 4096, &[]);
        let (toc, _) = toc(&blob);
        let listed: Vec<_> = toc
            .entries
            .iter()
            .filter(|entry| entry.kind != EntryType::Chunk)
            .map(|entry| entry.name.trim_end_matches('/').to_owned())
            .collect();
        let mut reader = Reader::new(&archive[..]);
        let mut expected = vec![NO_PREFETCH_LANDMARK.to_owned()];
        while let Some(entry) = reader.next_entry().unwrap() {
            expected.push(entry.name.to_string());
        }
        assert_eq!(listed, expected);
    }

    #[test]
    fn prioritized_files_lie_before_the_landmark() {
        let archive = layer(3, 60);
        let names: Vec<_> = contents(&archive)
            .into_iter()
            .filter(|(_, (_, _, content))| content.len() > 1)
            .map(|(name, _)| name)
            .take(3)
            .collect();
        let wanted: Vec<_> = names.iter().rev().map(String::as_str).collect();
        let (_, blob) = written(&archive, 4096, &wanted);
        let (toc, _) = toc(&blob);
        let place = |name: &str| {
            toc.entries
                .iter()
                .position(|entry| entry.name == name)
                .unwrap()
        };
        let landmark = place(PREFETCH_LANDMARK);
        let places: Vec<_> = wanted.iter().map(|name| place(name)).collect();
        assert!(
            places.is_sorted() && places[2] < landmark,
            "{places:?} {landmark}"
        );
        let mut found = contents(&unzip(&blob));
        found.remove(TOC_NAME);
        found.remove(PREFETCH_LANDMARK);
        assert_eq!(found, contents(&archive));
    }

    #[test]
    fn the_same_input_gives_the_same_blob() {
        let archive = layer(11, 120);
        let (first, _) = written(&archive, 4096, &[]);
        let (second, blob) = written(&archive, 4096, &[]);
        assert_eq!(first.digest, second.digest);
        // And so does a conversion of the result, which drops what the first one added.
        let (again, _) = written(&blob, 4096, &[]);
        assert_eq!(first.digest, again.digest);
    }

    #[test]
    fn an_empty_layer_has_a_toc_too() {
        let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
        let (_, blob) = written(&empty, 4096, &[]);
        let (toc, _) = toc(&blob);
        assert_eq!(toc.entries.len(), 1);
        assert_eq!(toc.entries[0].name, NO_PREFETCH_LANDMARK);
        assert_eq!(contents(&unzip(&blob)).len(), 2);
    }
}
