//! First pass over a layer: decompress it into a temporary file and note where everything lies.
//!
//! The file has no name, so nothing is left of it however this process ends. Keeping the whole
//! archive at hand is what allows prioritized files to be moved to the front and chunks to be
//! compressed on all processors, with memory for a few chunks only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use bstr::BString;
use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::formats::Flaw;
use crate::formats::estargz::toc::{EntryType, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

use super::tar::{ReadError, Reader, TarEntry};

/// Bytes that come out of the decompressor at once.
const BUFFER: usize = 256 << 10;
/// First bytes of a zstd frame, and of a skippable frame (its last nibble varies).
pub(super) const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
pub(super) const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// A layer's archive in a nameless file, and its entries.
pub(super) struct Spool {
    /// The uncompressed archive.
    pub(super) file: File,
    /// All of them, in its order.
    pub(super) entries: Vec<TarEntry>,
}

/// Reads the compressed or plain layer `blob` to its very end, which checks its digest too.
/// `what` names the layer in errors; the file is made in `dir`.
pub(super) fn spool(mut blob: impl Read, dir: &Path, what: &str) -> Result<Spool> {
    let file = tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
    let source = BufReader::with_capacity(BUFFER, &mut blob);
    let outcome = copy_and_index(source, file).and_then(|done| {
        io::copy(&mut blob, &mut io::sink())?;
        Ok(done)
    });
    outcome.map_err(|error| root_cause(error, blob, what))
}

/// The same of a layer that is unpacked already, by whoever sends `archive`.
pub(super) fn spool_unpacked(archive: impl Read, dir: &Path, what: &str) -> Result<Spool> {
    let file = tempfile::tempfile_in(dir).map_err(Error::io("create temporary file in", dir))?;
    index(archive, file).map_err(|error| stream_error(error, what))
}

fn copy_and_index(mut source: impl BufRead, sink: File) -> std::result::Result<Spool, ReadError> {
    let start = source.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        index(MultiGzDecoder::new(source), sink)
    } else if start.starts_with(&ZSTD) || start.get(1..4) == Some(&ZSTD_SKIPPABLE) {
        index(zstd::Decoder::with_buffer(source)?, sink)
    } else {
        index(source, sink)
    }
}

fn index(stream: impl Read, sink: File) -> std::result::Result<Spool, ReadError> {
    let mut reader = Reader::new(Tee {
        stream,
        sink,
        block: vec![0; BUFFER],
        unread: 0..0,
    });
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    let mut tee = reader.into_inner();
    // Padding after the end mark belongs to the archive, and a checksum may only follow it.
    io::copy(&mut tee, &mut io::sink())?;
    Ok(Spool {
        file: tee.sink,
        entries,
    })
}

/// A reader whose every byte is also written. It takes large blocks, however little is asked for: a
/// decompressor saves its window at the end of each call.
struct Tee<R> {
    stream: R,
    sink: File,
    block: Vec<u8>,
    /// What of the block nobody has asked for yet.
    unread: Range<usize>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            let filled = self.stream.read(&mut self.block)?;
            self.sink.write_all(&self.block[..filled])?;
            self.unread = 0..filled;
        }
        let count = self.unread.len().min(buffer.len());
        let end = self.unread.start + count;
        buffer[..count].copy_from_slice(&self.block[self.unread.start..end]);
        self.unread.start = end;
        Ok(count)
    }
}

/// Bytes that do not decompress are often bytes that were damaged on their way: then the rest of
/// the blob says so, which is the better error.
pub(super) fn root_cause(error: ReadError, mut blob: impl Read, what: &str) -> Error {
    let error = stream_error(error, what);
    if !matches!(error, Error::Malformed { .. }) {
        return error;
    }
    match io::copy(&mut blob, &mut io::sink()) {
        Ok(_) => error,
        Err(transfer) => stream_error(transfer.into(), what),
    }
}

/// Errors of this crate come back out of the stream; what a decompressor says is about the layer.
fn stream_error(error: ReadError, what: &str) -> Error {
    match error {
        ReadError::Flaw(flaw) => flaw.of(what),
        ReadError::Io(error)
            if error
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) =>
        {
            error
                .downcast::<Error>()
                .unwrap_or_else(|error| Error::Internal(error.to_string()))
        }
        ReadError::Io(error) if error.raw_os_error().is_some() => {
            Error::io("write temporary file of layer", Path::new(what))(error)
        }
        ReadError::Io(error) => Flaw::new(error.to_string()).of(what),
    }
}

/// Drops what an earlier conversion added, and all but the last entry of each name: unpacking lets
/// the last one win, and an index must not hold two. The last stands where the first stood, so that
/// directories still come before what is in them.
pub(super) fn keep(entries: Vec<TarEntry>) -> Vec<TarEntry> {
    let mut places: HashMap<BString, usize> = HashMap::with_capacity(entries.len());
    let mut kept: Vec<TarEntry> = Vec::with_capacity(entries.len());
    for entry in entries {
        let added = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];
        if entry.kind == EntryType::Reg && added.iter().any(|name| entry.name == *name) {
            continue;
        }
        if let Some(place) = places.get(&entry.name) {
            kept[*place] = entry;
        } else {
            places.insert(entry.name.clone(), kept.len());
            kept.push(entry);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (size, name) in names.iter().enumerate() {
            let mut header = tar::Header::new_ustar();
            header.set_size(size as u64);
            builder
                .append_data(&mut header, name, &vec![b'x'; size][..])
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn spooled(blob: &[u8]) -> Result<Spool> {
        spool(blob, &std::env::temp_dir(), "sha256:x")
    }

    #[test]
    fn every_compression_gives_the_same_archive() {
        let plain = archive(&["a", "b/c", "d"]);
        let half = plain.len() / 2;
        let members = [gzip(&plain[..half]), gzip(&plain[half..])].concat();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9], &zstd[..]].concat();
        for blob in [plain.clone(), gzip(&plain), members, zstd, skippable] {
            let spool = spooled(&blob).unwrap();
            let names: Vec<_> = spool
                .entries
                .iter()
                .map(|entry| entry.name.to_string())
                .collect();
            assert_eq!(names, ["a", "b/c", "d"]);
            let mut content = Vec::new();
            let mut file = &spool.file;
            io::Seek::rewind(&mut file).unwrap();
            file.read_to_end(&mut content).unwrap();
            assert!(plain == content);
        }
    }

    #[test]
    fn the_last_of_two_entries_wins_and_landmarks_are_dropped() {
        let names = ["a", "b", NO_PREFETCH_LANDMARK, "./a", "c", TOC_NAME];
        let spool = spooled(&archive(&names)).unwrap();
        let kept = keep(spool.entries);
        let kept: Vec<_> = kept.iter().map(|e| (e.name.to_string(), e.size)).collect();
        assert_eq!(
            kept,
            [("a", 3), ("b", 1), ("c", 4)].map(|(name, size)| (name.to_owned(), size))
        );
    }

    #[test]
    fn truncated_layers_are_refused_by_digest() {
        let plain = archive(&["a", "some/file"]);
        for blob in [gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()] {
            let error = spooled(&blob[..blob.len() - 5]).err().unwrap().to_string();
            assert!(error.contains("layer sha256:x"), "{error}");
        }
        assert!(spooled(b"neither compressed nor a tar archive").is_err());
    }

    #[test]
    fn errors_of_the_transfer_keep_their_kind() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other(Error::NotFound("blob x".into())))
            }
        }
        let error = spool(Failing, &std::env::temp_dir(), "sha256:x")
            .err()
            .unwrap();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }
}
