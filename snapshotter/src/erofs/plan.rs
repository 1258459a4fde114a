//! Where everything lies in the image.

use std::collections::HashMap;

use super::disk::{
    BLOCK, CHUNK_INDEX, COMPACT, DEVICE_SLOT, DEVICES_OFFSET, EXTENDED, Layout, SLOT,
};
use super::{names, xattr};
use crate::formats::Flaw;
use crate::index::{Inode, Kind, Node, Tree};

/// The place of one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its id: where it lies in the inode area, in slots.
    pub(super) nid: u32,
    pub(super) is_compact: bool,
    pub(super) layout: Layout,
    /// Bytes of its attributes.
    pub(super) xattrs: u32,
    /// Bytes of its data: of a directory those of its blocks.
    pub(super) size: u64,
    /// First block of what does not lie inline, counted from the first of all such blocks.
    pub(super) block: u32,
}

impl Place {
    /// Bytes of the inode itself.
    pub(super) fn header(&self) -> usize {
        if self.is_compact { COMPACT } else { EXTENDED }
    }

    /// Bytes of the data that stand in blocks; the rest stands behind the inode.
    pub(super) fn in_blocks(&self) -> usize {
        match self.layout {
            Layout::Plain => self.size as usize,
            Layout::Inline => self.size as usize / BLOCK * BLOCK,
            Layout::Chunks => 0,
        }
    }

    /// From the inode's first byte to its attributes' end.
    pub(super) fn head(&self) -> usize {
        self.header() + self.xattrs as usize
    }
}

/// The whole image's layout.
pub(super) struct Plan {
    pub(super) places: Vec<Place>,
    /// Modification time that most inodes have.
    pub(super) time: (i64, u32),
    /// Block at which the inodes begin.
    pub(super) meta_block: u32,
    /// Block behind the inodes.
    pub(super) data_block: u32,
    /// Blocks of the image.
    pub(super) blocks: u32,
}

impl Plan {
    pub(super) fn of(tree: &Tree, devices: usize) -> Result<Self, Flaw> {
        let time = most_frequent_time(tree);
        let (mut places, mut end, mut blocks) = (Vec::with_capacity(tree.len()), 0, 0_usize);
        for (id, node) in nodes(tree) {
            let mut place = describe(tree, id, node, time)?;
            place.block = u32::try_from(blocks).map_err(|_| too_large())?;
            blocks += place.in_blocks().div_ceil(BLOCK);
            end = settle(&mut place, end)?;
            places.push(place);
        }
        let meta_block = (DEVICES_OFFSET + devices * DEVICE_SLOT).div_ceil(BLOCK);
        let data_block = meta_block + end.div_ceil(BLOCK);
        let all = u32::try_from(data_block + blocks).map_err(|_| too_large())?;
        Ok(Self {
            places,
            time,
            meta_block: meta_block as u32,
            data_block: data_block as u32,
            blocks: all,
        })
    }
}

fn too_large() -> Flaw {
    Flaw::new("a tree too large for an image".to_owned())
}

/// All nodes with their ids, the root first.
pub(super) fn nodes(tree: &Tree) -> impl Iterator<Item = (u32, Node)> {
    (0..tree.len() as u32).filter_map(|id| Some((id, tree.node(id)?)))
}

fn most_frequent_time(tree: &Tree) -> (i64, u32) {
    let mut counts: HashMap<(i64, u32), usize> = HashMap::new();
    // Neighbours mostly have the same.
    let mut run = ((0, 0), 0);
    for (_, node) in nodes(tree) {
        let inode = tree.inode(node);
        let time = (inode.mtime, inode.mtime_nsec);
        if time != run.0 {
            *counts.entry(run.0).or_default() += run.1;
            run = (time, 0);
        }
        run.1 += 1;
    }
    *counts.entry(run.0).or_default() += run.1;
    // Among equals the earliest: the same tree always gives the same image.
    let most = counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map_or((0, 0), |(time, _)| time)
}

/// Everything about a node's place but where it is.
fn describe(tree: &Tree, id: u32, node: Node, time: (i64, u32)) -> Result<Place, Flaw> {
    let inode = tree.inode(node);
    let kind = inode.kind();
    let size = match kind {
        Kind::Directory => names::len(names::entries(tree, id, node)),
        Kind::File | Kind::Symlink => inode.size,
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => 0,
    };
    let xattrs = xattr::len(tree.layer(node).xattrs(&inode))?;
    let is_compact = is_compact(&inode, node, size, time);
    let mut place = Place {
        nid: 0,
        is_compact,
        layout: Layout::Plain,
        xattrs: xattrs as u32,
        size,
        block: 0,
    };
    place.layout = match kind {
        Kind::File if size > 0 => Layout::Chunks,
        Kind::Directory | Kind::Symlink if fits_inline(&place) => Layout::Inline,
        _ => Layout::Plain,
    };
    Ok(place)
}

/// Whether the short form of the inode can say it all.
fn is_compact(inode: &Inode, node: Node, size: u64, time: (i64, u32)) -> bool {
    let is_short = |value: u32| u16::try_from(value).is_ok();
    (inode.mtime, inode.mtime_nsec) == time
        && [inode.uid, inode.gid, node.nlink].into_iter().all(is_short)
        && u32::try_from(size).is_ok()
}

/// Inline data may not cross into another block; the inode stands in the same one, so that the
/// kernel keeps link targets with it.
fn fits_inline(place: &Place) -> bool {
    let tail = place.size as usize % BLOCK;
    tail > 0 && place.head() + tail <= BLOCK
}

/// Puts the node at the first fit place from `end` on; returns the new end. In bytes of the area.
fn settle(place: &mut Place, end: usize) -> Result<usize, Flaw> {
    let mut at = end.next_multiple_of(SLOT);
    let tail = match place.layout {
        Layout::Plain => 0,
        Layout::Inline => place.size as usize % BLOCK,
        Layout::Chunks => place.head().next_multiple_of(CHUNK_INDEX) - place.head() + CHUNK_INDEX,
    };
    let len = place.head() + tail;
    if place.layout == Layout::Inline && at % BLOCK + len > BLOCK {
        at = at.next_multiple_of(BLOCK);
    }
    place.nid = u32::try_from(at / SLOT).map_err(|_| too_large())?;
    Ok(at + len)
}
