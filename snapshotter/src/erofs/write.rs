//! Putting a planned image together.

use super::Device;
use super::disk::{
    self, BLOCK, CHUNK_INDEX, DEVICE_SLOT, DEVICES_OFFSET, Layout, Record, SLOT, SUPER_OFFSET,
    Super,
};
use super::plan::{Place, Plan, nodes};
use super::{names, xattr};
use crate::index::{ALIGN, Inode, Kind, Node, Tree};

/// The image of `tree`, laid out by `plan`.
pub(super) fn image(tree: &Tree, devices: &[Device], plan: &Plan) -> Vec<u8> {
    let mut writer = Writer {
        tree,
        plan,
        device_of: Numbers::of(devices),
        image: vec![0; plan.blocks as usize * BLOCK],
        scratch: Vec::new(),
    };
    writer.put_head(devices);
    for ((id, node), place) in nodes(tree).zip(&plan.places) {
        writer.put_node(id, node, place);
    }
    writer.image
}

struct Writer<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    device_of: Numbers,
    image: Vec<u8>,
    /// The data of the directory that is being written.
    scratch: Vec<u8>,
}

impl Writer<'_> {
    fn put_head(&mut self, devices: &[Device]) {
        let head = Super {
            inodes: self.tree.len() as u64,
            time: self.plan.time,
            blocks: self.plan.blocks,
            meta_block: self.plan.meta_block,
            devices: devices.len() as u16,
        };
        head.put(&mut self.image[SUPER_OFFSET..]);
        for (n, device) in devices.iter().enumerate() {
            let at = DEVICES_OFFSET + n * DEVICE_SLOT;
            let layer = self.tree.layers()[usize::from(device.layer)].layer();
            let slot = &mut self.image[at..at + DEVICE_SLOT];
            disk::put_device(slot, &layer.hex(), device.len);
        }
    }

    fn put_node(&mut self, id: u32, node: Node, place: &Place) {
        let inode = self.tree.inode(node);
        let record = Record {
            layout: place.layout,
            xattr_count: xattr::count(place.xattrs as usize),
            mode: inode.mode as u16,
            nlink: node.nlink,
            size: place.size,
            union: self.union(&inode, place),
            number: id + 1,
            uid: inode.uid,
            gid: inode.gid,
            time: (inode.mtime, inode.mtime_nsec),
        };
        let at = self.plan.meta_block as usize * BLOCK + place.nid as usize * SLOT;
        let out = &mut self.image[at..];
        if place.is_compact {
            record.put_compact(out);
        } else {
            record.put_extended(out);
        }
        if place.xattrs > 0 {
            let attributes = &mut self.image[at + place.header()..at + place.head()];
            xattr::put(self.tree.layer(node).xattrs(&inode), attributes);
        }
        match inode.kind() {
            Kind::File if place.layout == Layout::Chunks => self.put_chunk(at, node, &inode, place),
            Kind::Directory => {
                let mut data = std::mem::take(&mut self.scratch);
                let nid = |node: u32| self.nid(node);
                names::data(names::entries(self.tree, id, node), nid, &mut data);
                self.put_data(at, place, &data);
                self.scratch = data;
            }
            Kind::Symlink => {
                let tree = self.tree;
                self.put_data(at, place, tree.layer(node).link_target(&inode));
            }
            _ => {}
        }
    }

    /// Node id and type of a node.
    fn nid(&self, node: u32) -> (u64, Kind) {
        let place = &self.plan.places[node as usize];
        let kind = self
            .tree
            .node(node)
            .map(|node| self.tree.inode(node).kind());
        (u64::from(place.nid), kind.unwrap_or(Kind::File))
    }

    fn union(&self, inode: &Inode, place: &Place) -> u32 {
        match (inode.kind(), place.layout) {
            (Kind::CharDevice | Kind::BlockDevice, _) => disk::device_number(inode.rdev()),
            (_, Layout::Chunks) => disk::chunk_format(place.size),
            _ => self.plan.data_block + place.block,
        }
    }

    fn put_chunk(&mut self, at: usize, node: Node, inode: &Inode, place: &Place) {
        let at = (at + place.head()).next_multiple_of(CHUNK_INDEX);
        let device = self.device_of.number(node.layer, inode.segment);
        let block = (inode.base / ALIGN) as u32;
        disk::put_chunk(&mut self.image[at..at + CHUNK_INDEX], device, block);
    }

    /// Puts whole blocks among the blocks and the rest behind the inode at `at`.
    fn put_data(&mut self, at: usize, place: &Place, data: &[u8]) {
        let (blocks, tail) = data.split_at(place.in_blocks());
        let start = (self.plan.data_block + place.block) as usize * BLOCK;
        self.image[start..start + blocks.len()].copy_from_slice(blocks);
        let inline = at + place.head();
        self.image[inline..inline + tail.len()].copy_from_slice(tail);
    }
}

/// The number of each segment's device.
struct Numbers {
    /// For each layer the first device's segment and number; its others follow.
    first: Vec<(u32, u32)>,
}

impl Numbers {
    /// Only segment 0 can be empty: the others hold a file that has bytes.
    fn of(devices: &[Device]) -> Self {
        let mut first = Vec::new();
        for (n, device) in devices.iter().enumerate() {
            let layer = usize::from(device.layer);
            if first.len() <= layer {
                first.resize(layer, (0, 0));
                first.push((device.segment, n as u32 + 1));
            }
        }
        Self { first }
    }

    fn number(&self, layer: u16, segment: u32) -> u16 {
        let (first, number) = self.first[usize::from(layer)];
        (number + segment - first) as u16
    }
}
