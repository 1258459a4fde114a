//! A small eStargz writer for tests: members, TOC and footer, without the tar headers between.

use std::io::Write;

use super::footer;
use super::toc::{EntryType, LANDMARK_CONTENT, PREFETCH_LANDMARK, Toc, TocEntry, XattrValue};
use crate::digest::Digest;

/// A blob in the making.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) blob: Vec<u8>,
    pub(crate) toc: Toc,
}

/// A finished blob.
pub(crate) struct Finished {
    pub(crate) blob: Vec<u8>,
    pub(crate) toc_digest: Digest,
    pub(crate) toc_offset: u64,
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

impl Sample {
    pub(crate) fn entry(&mut self, kind: EntryType, name: &str) -> &mut TocEntry {
        self.toc.entries.push(TocEntry {
            name: name.to_owned(),
            kind,
            mode: if kind == EntryType::Dir { 0o755 } else { 0o644 },
            mod_time: "2024-05-06T07:08:09.5Z".to_owned(),
            ..TocEntry::default()
        });
        self.toc.entries.last_mut().unwrap()
    }

    pub(crate) fn dir(&mut self, name: &str) -> &mut TocEntry {
        self.entry(EntryType::Dir, name)
    }

    pub(crate) fn link(&mut self, kind: EntryType, name: &str, target: &str) -> &mut TocEntry {
        let entry = self.entry(kind, name);
        entry.link_name = target.to_owned();
        entry
    }

    /// A file in chunks of at most `chunk` bytes, each in a member of its own.
    pub(crate) fn file(&mut self, name: &str, content: &[u8], chunk: usize) {
        let entry = self.entry(EntryType::Reg, name);
        entry.size = content.len() as u64;
        entry.digest = Digest::of(content).to_string();
        for (i, piece) in content.chunks(chunk).enumerate() {
            if i > 0 {
                self.entry(EntryType::Chunk, name);
            }
            let offset = self.blob.len() as u64;
            let entry = self.toc.entries.last_mut().unwrap();
            entry.offset = offset;
            entry.chunk_offset = (i * chunk) as u64;
            entry.chunk_size = piece.len() as u64;
            entry.chunk_digest = Digest::of(piece).to_string();
            self.blob.extend(gzip(piece));
        }
    }

    /// Small files that share one member.
    pub(crate) fn packed(&mut self, files: &[(&str, &[u8])]) {
        let offset = self.blob.len() as u64;
        let mut member = b"something before".to_vec();
        for (name, content) in files {
            let inner = member.len() as u64;
            let entry = self.entry(EntryType::Reg, name);
            entry.size = content.len() as u64;
            entry.offset = offset;
            entry.inner_offset = inner;
            entry.chunk_digest = Digest::of(content).to_string();
            member.extend_from_slice(content);
        }
        self.blob.extend(gzip(&member));
    }

    pub(crate) fn landmark(&mut self) {
        self.file(PREFETCH_LANDMARK, &LANDMARK_CONTENT, 1);
    }

    pub(crate) fn xattr(&mut self, name: &str, value: &[u8]) {
        let entry = self.toc.entries.last_mut().unwrap();
        entry
            .xattrs
            .insert(name.to_owned(), XattrValue(value.to_vec()));
    }

    pub(crate) fn json(&mut self) -> Vec<u8> {
        self.toc.version = 1;
        serde_json::to_vec(&self.toc).unwrap()
    }

    pub(crate) fn finish(mut self) -> Finished {
        let json = self.json();
        let mut header = tar::Header::new_gnu();
        header.set_path(super::TOC_NAME).unwrap();
        header.set_size(json.len() as u64);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, &json[..]).unwrap();
        let toc_offset = self.blob.len() as u64;
        let mut blob = self.blob;
        blob.extend(gzip(&archive.into_inner().unwrap()));
        blob.extend(footer::encode(toc_offset));
        Finished {
            blob,
            toc_digest: Digest::of(&json),
            toc_offset,
        }
    }
}

/// Bytes that do not compress to nothing and differ from seed to seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| step()).collect()
}
