//! EROFS metadata images: a merged tree as a file system that the kernel mounts by itself.
//!
//! The image holds superblock, device table, inodes, directories, links and extended attributes,
//! and no file data: a regular file is one chunk that points into a *device*, a segment file of
//! the store, where the contents lie unpacked at a multiple of the block size. [`devices`] says
//! which devices a chain has, in the order in which they are to be named at the mount. Their files
//! must be there in whole blocks: the kernel answers a block that is cut short with EIO.
//!
//! ```text
//! block 0   1024 bytes nothing, superblock, device table (may run over further blocks)
//! meta      inodes, each at a multiple of 32: inode, attributes, chunk index or inline tail
//! blocks    what does not lie inline: whole blocks of directories, long link targets
//! ```
//!
//! [`plan`] gives everything its place, [`write`] puts it there; both go once over the tree, so
//! the cost is linear. Nothing here does I/O. On-disk structures: Linux, `fs/erofs/erofs_fs.h`.

mod disk;
mod names;
mod plan;
mod write;
mod xattr;

use std::sync::Arc;

use crate::formats::Flaw;
use crate::index::{LayerIndex, Tree};

/// One file with data that an image refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The layer, counted from the bottom of the chain.
    pub layer: u16,
    /// The layer's segment.
    pub segment: u32,
    /// Length of the segment in bytes.
    pub len: u64,
}

/// Most devices of one image: their number has 16 bits.
const MAX_DEVICES: usize = u16::MAX as usize;

/// The devices of a chain's image, in the order of the device table; empty segments are left out.
pub fn devices(layers: &[Arc<LayerIndex>]) -> Vec<Device> {
    let mut devices = Vec::new();
    for (layer, index) in layers.iter().enumerate() {
        let segments = (0..index.segments()).map(|segment| Device {
            layer: layer as u16,
            segment,
            len: index.segment_len(segment),
        });
        devices.extend(segments.filter(|device| device.len > 0));
    }
    devices
}

/// The image of a merged tree.
pub fn image(tree: &Tree) -> Result<Vec<u8>, Flaw> {
    let devices = devices(tree.layers());
    if devices.len() > MAX_DEVICES {
        return Err(Flaw::new(format!(
            "{} files with data, EROFS takes {MAX_DEVICES}",
            devices.len()
        )));
    }
    let plan = plan::Plan::of(tree, devices.len())?;
    Ok(write::image(tree, &devices, &plan))
}

#[cfg(test)]
mod tests;
