//! Which chunks of a layer are present: in memory, and in two files that survive different deaths.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};
use crate::store::{summed, sync_directory};

/// Length of the boot ID at the head of `live`.
const BOOT_LEN: usize = 36;

/// The bitmap and its `live` file.
#[derive(Debug)]
pub(super) struct Bitmap {
    bytes: Box<[AtomicU8]>,
    live: File,
    directory: PathBuf,
}

impl Bitmap {
    /// Reads what is known about `chunks` chunks: `live` if it is of this boot, else `durable`.
    pub(super) fn open(directory: &Path, chunks: u32, boot: &str) -> Result<Self> {
        let len = chunks.div_ceil(8) as usize;
        let path = directory.join("live");
        let (bits, live) = if let Some(bits) = read_live(&path, boot, len)? {
            // Gone on with in its place: a disk that is full is no obstacle to reading.
            let live = File::options().write(true).open(&path);
            (bits, live.map_err(Error::io("open", &path))?)
        } else {
            let known = summed::read(&directory.join("durable"))?;
            let known = known.filter(|bits| bits.len() == len);
            let bits = known.unwrap_or_else(|| vec![0; len]);
            let live = new_live(directory, boot, &bits)?;
            (bits, live)
        };
        Ok(Self {
            bytes: bits.into_iter().map(AtomicU8::new).collect(),
            live,
            directory: directory.to_owned(),
        })
    }

    /// Writes that all chunks are present, for a layer that was written before its index.
    pub(super) fn write_full(directory: &Path, chunks: u32, boot: &str) -> Result<()> {
        let mut bits = vec![0xff; chunks.div_ceil(8) as usize];
        if let Some(last) = bits.last_mut() {
            *last >>= (8 - chunks % 8) % 8;
        }
        new_live(directory, boot, &bits).map(drop)
    }

    /// Whether `chunk` is present.
    pub(super) fn has(&self, chunk: u32) -> bool {
        // Acquire pairs with `set`: whoever sees the bit sees the chunk's bytes too.
        let byte = self.bytes[chunk as usize / 8].load(Ordering::Acquire);
        byte & (1 << (chunk % 8)) != 0
    }

    /// Marks `chunk` present; its bytes are written already.
    pub(super) fn set(&self, chunk: u32) -> Result<()> {
        let index = chunk as usize / 8;
        let bit = 1 << (chunk % 8);
        let byte = self.bytes[index].fetch_or(bit, Ordering::Release) | bit;
        // Two threads may write their bytes in the other order and lose a bit of the file: that
        // chunk is fetched once more after a restart, nothing worse.
        self.live
            .write_all_at(&[byte], (BOOT_LEN + index) as u64)
            .map_err(Error::io("write", &self.directory.join("live")))
    }

    /// A copy of all bits at this moment.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        let load = |byte: &AtomicU8| byte.load(Ordering::Acquire);
        self.bytes.iter().map(load).collect()
    }

    /// Makes `bits` what counts after a power failure; their chunks are on disk already.
    pub(super) fn write_durable(&self, bits: &[u8]) -> Result<()> {
        summed::write(&self.directory.join("durable"), bits)
    }

    /// Marks chunks absent, in both files; before their bytes go.
    pub(super) fn forget(
        &mut self,
        boot: &str,
        chunks: impl IntoIterator<Item = u32>,
    ) -> Result<()> {
        for chunk in chunks {
            *self.bytes[chunk as usize / 8].get_mut() &= !(1 << (chunk % 8));
        }
        let bits = self.snapshot();
        self.live = new_live(&self.directory, boot, &bits)?;
        self.write_durable(&bits)?;
        sync_directory(&self.directory)
    }
}

/// The bits of a `live` file, if it was written in this boot.
fn read_live(path: &Path, boot: &str, len: usize) -> Result<Option<Vec<u8>>> {
    let content = read_optional(path)?;
    Ok(content
        .filter(|c| c.len() == BOOT_LEN + len && c.starts_with(boot.as_bytes()))
        .map(|c| c[BOOT_LEN..].to_vec()))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Writes `live` anew under this boot's ID, so that its bits never lie under another's.
fn new_live(directory: &Path, boot: &str, bits: &[u8]) -> Result<File> {
    debug_assert_eq!(boot.len(), BOOT_LEN, "boot IDs are UUIDs");
    let (fresh, path) = (directory.join("live.new"), directory.join("live"));
    let file = File::create(&fresh).map_err(Error::io("create", &fresh))?;
    file.write_all_at(&[boot.as_bytes(), bits].concat(), 0)
        .map_err(Error::io("write", &fresh))?;
    fs::rename(&fresh, &path).map_err(Error::io("rename", &fresh))?;
    Ok(file)
}
