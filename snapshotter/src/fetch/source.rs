//! Random access to the bytes of a layer blob, wherever it lies.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

/// A blob that can be read at any offset from many threads at once.
pub trait BlobSource: Send + Sync {
    /// Length in bytes, as the manifest states it.
    fn size(&self) -> u64;

    /// Reads exactly `len` bytes at `offset`, or fails; never fewer. Blocks until they are there.
    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>>;

    /// The same, but gives the bytes to `part` as they arrive, in order and without gap, so that
    /// the first of them need not wait for the last. Some may have been given when it fails.
    fn read_parts(&self, offset: u64, len: u64, part: &mut dyn FnMut(&[u8])) -> Result<()> {
        part(&self.read_range(offset, len)?);
        Ok(())
    }

    /// The same for several ranges, the bytes of one after those of the other, in one request where
    /// that is possible. None of them is empty.
    fn read_ranges(&self, ranges: &[Range<u64>], part: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut ranges = ranges.iter();
        ranges.try_for_each(|range| self.read_parts(range.start, range.end - range.start, part))
    }

    /// Whether several ranges are worth asking for at once; whoever asks this does it then.
    fn takes_several(&self) -> bool {
        false
    }

    /// Says that the bytes of this range do not match their digest. Whether they are worth another
    /// read: it goes to somebody else then.
    fn suspect(&self, _offset: u64, _len: u64) -> bool {
        false
    }

    /// Says that the right bytes have come after all: what was wrong were those who sent others.
    fn convict(&self) {}
}

/// Most hosts that are asked, one after the other, for bytes that turn out to be wrong.
const MAX_HOSTS: usize = 4;

/// Whether what came is not what its digest promises, which may be the fault of who sent it.
pub(crate) fn is_spoilt(error: &Error) -> bool {
    matches!(
        error,
        Error::Malformed { .. } | Error::DigestMismatch { .. }
    )
}

/// Runs `attempt`, which reads and verifies a range of `source`; again by other hosts when what
/// came is spoilt, as long as there are some.
pub(crate) fn by_other_hosts<T>(
    source: &dyn BlobSource,
    (offset, len): (u64, u64),
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut outcome = attempt();
    for _ in 1..MAX_HOSTS {
        match &outcome {
            Err(error) if is_spoilt(error) && source.suspect(offset, len) => {
                tracing::warn!(%error, "spoilt bytes; another host is asked");
                outcome = attempt();
                if outcome.is_ok() {
                    source.convict();
                }
            }
            _ => break,
        }
    }
    outcome
}

/// A blob in a local file, such as a layer of an OCI layout.
pub struct FileBlob {
    file: File,
    name: String,
    size: u64,
}

impl FileBlob {
    /// Wraps an open file; `name` is used in errors.
    pub fn new(file: File, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let size = file
            .metadata()
            .map_err(|e| Error::io("stat", Path::new(&name))(e))?
            .len();
        Ok(Self { file, name, size })
    }
}

impl BlobSource for FileBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        check_range(&self.name, self.size, offset, len)?;
        let mut data = vec![0; len as usize];
        self.file
            .read_exact_at(&mut data, offset)
            .map_err(|e| Error::io("read", Path::new(&self.name))(e))?;
        Ok(data)
    }
}

/// Refuses a range outside the blob before any memory is set aside for it.
pub(super) fn check_range(name: &str, size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::InvalidArgument(format!(
            "{len} bytes at {offset} of {name}, which has {size} bytes"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_blob_reads_exact_ranges_and_refuses_others() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let blob = FileBlob::new(file, "ten digits").unwrap();
        assert_eq!(blob.size(), 10);
        assert_eq!(blob.read_range(3, 4).unwrap(), b"3456");
        assert_eq!(blob.read_range(10, 0).unwrap(), b"");
        for (offset, len) in [(0, 11), (10, 1), (u64::MAX, 2), (11, 0)] {
            let error = blob.read_range(offset, len).unwrap_err().to_string();
            assert!(error.contains("ten digits"), "{error}");
        }
    }
}
