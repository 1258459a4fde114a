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
mod tests;
