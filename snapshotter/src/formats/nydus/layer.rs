//! The layer that holds a bootstrap: an archive, packed or not.

use std::io::Read;

use super::BOOTSTRAP_NAME;
use crate::formats::Flaw;

/// Longest layer, packed.
pub const MAX_PACKED_LAYER: u64 = 256 << 20;
/// Longest bootstrap: some four million files.
const MAX_BOOTSTRAP: u64 = 512 << 20;
/// Entries of the archive that are looked at; it holds a directory and a few small files.
const MAX_ENTRIES: usize = 64;

/// Finds the bootstrap in the bytes of its layer.
pub fn unpack_bootstrap(packed: &[u8]) -> Result<Vec<u8>, Flaw> {
    let broken = |error: std::io::Error| Flaw::new(format!("bootstrap layer: {error}"));
    let archive: Box<dyn Read + '_> = if packed.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(packed))
    } else if packed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(packed).map_err(broken)?)
    } else {
        Box::new(packed)
    };
    // Room for headers and small files before it; more can only be a bomb.
    let mut archive = tar::Archive::new(archive.take(MAX_BOOTSTRAP + (1 << 20)));
    for entry in archive.entries().map_err(broken)?.take(MAX_ENTRIES) {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path_bytes();
        if path.strip_prefix(b"./").unwrap_or(&path) != BOOTSTRAP_NAME.as_bytes() {
            continue;
        }
        let size = entry.size();
        if size > MAX_BOOTSTRAP {
            return Err(Flaw::new(format!(
                "bootstrap: {size} bytes, more than {MAX_BOOTSTRAP}"
            )));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 != size {
            return Err(Flaw::new(format!(
                "bootstrap: {} of {size} bytes are there",
                bytes.len()
            )));
        }
        return Ok(bytes);
    }
    Err(Flaw::new(format!(
        "bootstrap layer: it has no {BOOTSTRAP_NAME}"
    )))
}
