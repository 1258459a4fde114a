//! A small writer of both dialects for tests: frames, TOC and footer, without the tar headers.

use super::{CONTAINERS, CONTAINERS_FOOTER, Dialect, SKIPPABLE, STARGZ, STARGZ_FOOTER, TYPE_CRFS};
use crate::digest::Digest;
use crate::formats::estargz::toc::{EntryType, Toc, TocEntry, ZEROS};

/// A blob in the making.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) blob: Vec<u8>,
    pub(crate) toc: Toc,
}

/// A finished blob with the values of its annotations.
pub(crate) struct Finished {
    pub(crate) blob: Vec<u8>,
    pub(crate) dialect: Dialect,
    pub(crate) checksum: Digest,
    pub(crate) position: String,
    pub(crate) json: Vec<u8>,
}

pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn skippable(data: &[u8]) -> Vec<u8> {
    [&SKIPPABLE[..], &(data.len() as u32).to_le_bytes(), data].concat()
}

impl Sample {
    pub(crate) fn entry(&mut self, kind: EntryType, name: &str) -> &mut TocEntry {
        self.toc.entries.push(TocEntry {
            name: name.to_owned(),
            kind,
            mode: 0o755,
            ..TocEntry::default()
        });
        self.toc.entries.last_mut().unwrap()
    }

    /// A file of `pieces`, each a chunk; those of zeros only are marked as such.
    pub(crate) fn file(&mut self, name: &str, pieces: &[&[u8]]) {
        let content = pieces.concat();
        self.blob.extend(frame(b"a tar header"));
        let first = self.toc.entries.len();
        let mut at = 0;
        for (i, piece) in pieces.iter().enumerate() {
            let offset = self.blob.len() as u64;
            self.blob.extend(frame(piece));
            let kind = if i == 0 {
                EntryType::Reg
            } else {
                EntryType::Chunk
            };
            let entry = self.entry(kind, name);
            entry.offset = offset;
            entry.chunk_offset = at;
            entry.chunk_size = piece.len() as u64;
            entry.chunk_digest = Digest::of(piece).to_string();
            if piece.iter().all(|byte| *byte == 0) {
                ZEROS.clone_into(&mut entry.chunk_type);
            }
            at += piece.len() as u64;
        }
        let end = self.blob.len() as u64;
        let entry = &mut self.toc.entries[first];
        entry.size = content.len() as u64;
        entry.digest = Digest::of(&content).to_string();
        entry.end_offset = end;
    }

    /// Appends TOC and footer of today's dialect, or of stargz's.
    pub(crate) fn finish(mut self, dialect: Dialect) -> Finished {
        self.toc.version = 1;
        if dialect == STARGZ {
            self.toc.entries.iter_mut().for_each(|e| e.end_offset = 0);
        }
        let json = serde_json::to_vec(&self.toc).unwrap();
        let packed = frame(&json);
        let mut blob = self.blob;
        let numbers = [
            blob.len() as u64 + 8,
            packed.len() as u64,
            json.len() as u64,
            TYPE_CRFS,
        ];
        blob.extend(skippable(&packed));
        let (mut integers, (magic, count)) = match dialect {
            CONTAINERS => {
                let split = frame(b"{}");
                let at = blob.len() as u64 + 8;
                blob.extend(skippable(&split));
                (
                    [&numbers[..], &[at, split.len() as u64, 2]].concat(),
                    CONTAINERS_FOOTER,
                )
            }
            _ => (numbers.to_vec(), STARGZ_FOOTER),
        };
        integers.truncate(count);
        let mut footer: Vec<u8> = integers.iter().flat_map(|n| n.to_le_bytes()).collect();
        footer.extend(magic);
        blob.extend(skippable(&footer));
        Finished {
            blob,
            dialect,
            checksum: Digest::of(&packed),
            position: numbers.map(|n| n.to_string()).join(":"),
            json,
        }
    }
}
