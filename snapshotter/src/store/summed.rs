//! Small files that are replaced whole, with a checksum at their head that refuses a torn one.

use std::fs;
use std::io;
use std::path::Path;

use super::write_synced;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Length of the checksum.
const SUM_LEN: usize = 32;

/// Replaces the file at `path`; what it says is on disk before it has its name.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let sum = *Digest::of(content).as_bytes();
    write_synced(&fresh, &[&sum[..], content].concat())?;
    fs::rename(&fresh, path).map_err(Error::io("rename", &fresh))
}

/// What the file at `path` says, if it is there and whole.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", path))?,
    };
    if content.len() < SUM_LEN || content[..SUM_LEN] != *Digest::of(&content[SUM_LEN..]).as_bytes()
    {
        return Ok(None);
    }
    content.drain(..SUM_LEN);
    Ok(Some(content))
}
