//! What a layer holds: by its index where it has one, else by reading it once.

use std::collections::HashSet;
use std::io::{self, Read};

use bstr::ByteSlice;
use flate2::bufread::MultiGzDecoder;

use crate::convert::spool::{ZSTD, ZSTD_SKIPPABLE};
use crate::convert::tar::{ReadError, Reader, TarEntry};
use crate::formats::estargz::toc::EntryType;
use crate::index::{Kind, LayerIndex, Listed};

/// Most entries of one layer that are looked at.
const MAX_ENTRIES: usize = crate::index::MAX_ENTRIES;

/// A name of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Without leading slash.
    pub(super) path: String,
    pub(super) what: What,
    /// The inode in the layer's index, if it has one.
    pub(super) inode: Option<u32>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A regular file of this many bytes; a further name of one counts none.
    File(u64),
    Directory,
    /// A link or a device.
    Other,
    /// The name is gone from lower layers.
    Whiteout,
    /// All names in this directory are gone from lower layers.
    Opaque,
}

/// All names of a layer, and what it takes.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    /// The layer's index, if it can be read lazily.
    pub(super) index: Option<LayerIndex>,
}

impl Listing {
    pub(super) fn of_index(index: LayerIndex) -> Self {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        index.walk(|path, listed| {
            let (what, inode) = match listed {
                Listed::Whiteout => (What::Whiteout, None),
                Listed::Inode(id, inode) => {
                    let what = match inode.kind() {
                        Kind::File if seen.insert(id) => What::File(inode.size),
                        Kind::File => What::File(0),
                        Kind::Directory => What::Directory,
                        _ => What::Other,
                    };
                    if inode.is_opaque() {
                        let path = path.to_owned();
                        let (what, inode) = (What::Opaque, None);
                        entries.push(Entry { path, what, inode });
                    }
                    (what, Some(id))
                }
            };
            let path = path.to_owned();
            entries.push(Entry { path, what, inode });
        });
        Self {
            entries,
            index: Some(index),
        }
    }

    /// Reads a compressed or plain archive to its very end, which checks its digest too.
    pub(super) fn of_archive(blob: &mut (impl Read + Send)) -> Result<Self, ReadError> {
        let mut source = io::BufReader::with_capacity(256 << 10, &mut *blob);
        let start = io::BufRead::fill_buf(&mut source)?;
        let listing = if start.starts_with(&[0x1f, 0x8b]) {
            Self::of_plain(MultiGzDecoder::new(source))?
        } else if start.starts_with(&ZSTD) || start.get(1..4) == Some(&ZSTD_SKIPPABLE) {
            Self::of_plain(zstd::Decoder::with_buffer(source)?)?
        } else {
            Self::of_plain(source)?
        };
        io::copy(blob, &mut io::sink())?;
        Ok(listing)
    }

    fn of_plain(stream: impl Read) -> Result<Self, ReadError> {
        let mut reader = Reader::new(stream);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            if entries.len() == MAX_ENTRIES {
                let reason = format!("more than {MAX_ENTRIES} entries");
                return Err(crate::formats::Flaw::new(reason).into());
            }
            entries.extend(listed(&entry));
        }
        io::copy(&mut reader.into_inner(), &mut io::sink())?;
        Ok(Self {
            entries,
            index: None,
        })
    }

    pub(super) fn files(&self) -> u64 {
        let is_file = |entry: &&Entry| matches!(entry.what, What::File(_));
        self.entries.iter().filter(is_file).count() as u64
    }

    /// Bytes of all files together.
    pub(super) fn bytes(&self) -> u64 {
        let size = |entry: &Entry| match entry.what {
            What::File(size) => size,
            _ => 0,
        };
        self.entries.iter().map(size).sum()
    }
}

/// An entry of an archive, or none for what is no part of a file system.
fn listed(entry: &TarEntry) -> Option<Entry> {
    let shown = entry.name.to_str_lossy();
    let (parent, name) = shown.rsplit_once('/').unwrap_or(("", &shown));
    let (path, what) = if name == ".wh..wh..opq" {
        (parent.to_owned(), What::Opaque)
    } else if name.starts_with(".wh..wh.") {
        return None;
    } else if let Some(hidden) = name.strip_prefix(".wh.") {
        let path = if parent.is_empty() {
            hidden.to_owned()
        } else {
            format!("{parent}/{hidden}")
        };
        (path, What::Whiteout)
    } else {
        let what = match entry.kind {
            EntryType::Reg => What::File(entry.size),
            EntryType::Hardlink => What::File(0),
            EntryType::Dir => What::Directory,
            _ => What::Other,
        };
        (shown.into_owned(), what)
    };
    Some(Entry {
        path,
        what,
        inode: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_listed_with_its_whiteouts_and_links_weigh_nothing() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind, name: &str, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            if link.is_empty() {
                builder.append_data(&mut header, name, content).unwrap();
            } else {
                builder.append_link(&mut header, name, link).unwrap();
            }
        };
        add(tar::EntryType::Directory, "d/", "", b"");
        add(tar::EntryType::Regular, "d/f", "", b"1234");
        add(tar::EntryType::Link, "d/g", "d/f", b"");
        add(tar::EntryType::Regular, "d/.wh..wh..opq", "", b"");
        add(tar::EntryType::Regular, ".wh.gone", "", b"");
        add(tar::EntryType::Regular, ".wh..wh.plnk", "", b"");
        let archive = builder.into_inner().unwrap();
        let listing = Listing::of_archive(&mut &archive[..]).unwrap();
        let shown: Vec<_> = listing
            .entries
            .iter()
            .map(|entry| (entry.path.as_str(), entry.what))
            .collect();
        let expected = [
            ("d", What::Directory),
            ("d/f", What::File(4)),
            ("d/g", What::File(0)),
            ("d", What::Opaque),
            ("gone", What::Whiteout),
        ];
        assert_eq!(shown, expected);
        assert_eq!((listing.files(), listing.bytes()), (2, 4));
        let packed = zstd::encode_all(&archive[..], 1).unwrap();
        let same = Listing::of_archive(&mut &packed[..]).unwrap();
        assert_eq!(same.entries, listing.entries);
    }
}
