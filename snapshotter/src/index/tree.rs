//! One file tree out of a chain of layers, whiteouts resolved.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::layer::LayerIndex;
use super::layout::{Dirent, Inode, Kind};
use crate::formats::Flaw;

/// Deepest directory nesting; deeper ones cannot be reached by a path anyway.
const MAX_DEPTH: u16 = 2100;
/// What more is known of a node than where it comes from.
const DIRECTORY: u16 = 1 << 15;
const LINKED: u16 = 1 << 14;
/// Layers that have numbers beside that.
const MAX_LAYERS: usize = LINKED as usize;

/// An inode of the merged tree: where its attributes and content come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The layer, counted from the bottom of the chain.
    pub layer: u16,
    /// The inode in that layer.
    pub inode: u32,
    /// Names in the merged tree; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// The directory that holds it; meaningful for directories only.
    pub parent: u32,
    first: u32,
    count: u32,
}

/// A name in a directory of the merged tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    entry: u32,
    /// The node it leads to.
    pub node: u32,
}

/// The merged tree; node 0 is the root directory.
///
/// A FUSE mount keeps it for as long as it lives, so it takes 14 bytes for each inode and more only
/// for directories and for what has several names. Nodes are numbered in the order of the entries
/// that lead to them first.
#[derive(Debug)]
pub struct Tree {
    layers: Vec<Arc<LayerIndex>>,
    /// Each node's inode in its layer, and that layer, with [`DIRECTORY`] or [`LINKED`].
    inodes: Vec<u32>,
    origins: Vec<u16>,
    /// By node.
    directories: Vec<Directory>,
    /// Nodes that are no directories and have several names, with their number; by node.
    linked: Vec<(u32, u32)>,
    /// The entries of all directories.
    entries: Vec<Entry>,
    /// Entries that are a further name of a node; by entry.
    further: Vec<(u32, u32)>,
}

/// What a node has besides its inode if it is a directory.
#[derive(Debug)]
struct Directory {
    node: u32,
    parent: u32,
    nlink: u32,
    /// Its entries.
    first: u32,
    count: u32,
}

/// A name: where in which layer it is.
#[derive(Debug)]
struct Entry {
    name: u32,
    len: u16,
    layer: u16,
}

/// A directory of one layer that takes part in a merged one.
type Part = (u16, u32);

impl Tree {
    /// Merges `layers`, the bottom one first.
    ///
    /// Directories are walked from the top: in each, the sorted entries of all layers that take
    /// part are merged, and the topmost one decides. So each entry is looked at once, and what a
    /// whiteout or an opaque directory hides is never entered.
    pub fn merge(layers: Vec<Arc<LayerIndex>>) -> Result<Self, Flaw> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(Flaw::new(format!("a chain of {} layers", layers.len())));
        }
        let inodes = layers.iter().map(|layer| layer.inodes() as usize).sum();
        let tree = Self {
            inodes: Vec::with_capacity(inodes),
            origins: Vec::with_capacity(inodes),
            directories: Vec::new(),
            linked: Vec::new(),
            entries: Vec::with_capacity(inodes),
            further: Vec::new(),
            layers,
        };
        let mut merge = Merge {
            tree,
            linked: HashMap::new(),
            unread: Vec::new(),
            same_name: Vec::new(),
            top: Vec::new(),
        };
        merge.run()?;
        Ok(merge.finish())
    }

    /// The layers, the bottom one first.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Never true: there is always a root directory.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// Node `id`, if there is one.
    pub fn node(&self, id: u32) -> Option<Node> {
        let origin = *self.origins.get(id as usize)?;
        let mut node = Node {
            layer: origin & !(DIRECTORY | LINKED),
            inode: self.inodes[id as usize],
            nlink: 1,
            parent: 0,
            first: 0,
            count: 0,
        };
        if origin & DIRECTORY != 0 {
            let at = self.directories.partition_point(|it| it.node < id);
            let directory = &self.directories[at];
            (node.nlink, node.parent) = (directory.nlink, directory.parent);
            (node.first, node.count) = (directory.first, directory.count);
        } else if origin & LINKED != 0 {
            let at = self.linked.partition_point(|it| it.0 < id);
            node.nlink = self.linked[at].1;
        }
        Some(node)
    }

    /// The layer that a node comes from.
    pub fn layer(&self, node: Node) -> &LayerIndex {
        &self.layers[usize::from(node.layer)]
    }

    /// The attributes of a node.
    pub fn inode(&self, node: Node) -> Inode {
        self.layer(node).inode(node.inode)
    }

    /// The entries of a directory, sorted by name.
    pub fn children(&self, node: Node) -> impl ExactSizeIterator<Item = Child> {
        (node.first..node.first + node.count).map(|entry| self.child(entry))
    }

    fn child(&self, entry: u32) -> Child {
        let before = self.further.partition_point(|it| it.0 < entry);
        let node = match self.further.get(before) {
            Some(&(further, node)) if further == entry => node,
            // The root has no entry, and each entry that is no further name has a node of its own.
            _ => entry + 1 - before as u32,
        };
        Child { entry, node }
    }

    /// The name of an entry.
    pub fn name(&self, child: Child) -> &[u8] {
        self.text(&self.entries[child.entry as usize])
    }

    fn text(&self, entry: &Entry) -> &[u8] {
        self.layers[usize::from(entry.layer)].string(entry.name, u32::from(entry.len))
    }

    /// Looks a name up in a directory.
    pub fn look_up(&self, directory: Node, name: &[u8]) -> Option<u32> {
        let first = directory.first as usize;
        let entries = &self.entries[first..first + directory.count as usize];
        let at = entries.binary_search_by(|entry| self.text(entry).cmp(name));
        Some(self.child(directory.first + at.ok()? as u32).node)
    }

    /// Bytes that the tree itself takes, besides the layers' images.
    pub fn heap_size(&self) -> usize {
        fn of<T>(list: &Vec<T>) -> usize {
            list.capacity() * size_of::<T>()
        }
        of(&self.inodes)
            + of(&self.origins)
            + of(&self.directories)
            + of(&self.linked)
            + of(&self.entries)
            + of(&self.further)
    }
}

struct Merge {
    tree: Tree,
    /// Nodes of inodes that may have more than one name, and how many they have.
    linked: HashMap<Part, (u32, u32)>,
    unread: Vec<Unread>,
    /// The entries of the name that is looked at, from the topmost layer down, and what of them is
    /// to be seen.
    same_name: Vec<(u16, Dirent)>,
    top: Vec<Part>,
}

/// A directory whose entries are still to be read.
#[derive(Default)]
struct Unread {
    /// Which one, among the directories.
    directory: usize,
    depth: u16,
    /// Whose directories make it up, from the top.
    parts: Vec<Part>,
}

impl Merge {
    fn run(&mut self) -> Result<(), Flaw> {
        let roots = (0..self.tree.layers.len() as u16)
            .rev()
            .map(|layer| (layer, 0));
        let roots = self.visible(roots);
        self.directory(roots, 0, 0);
        let mut next = 0;
        while next < self.unread.len() {
            let unread = std::mem::take(&mut self.unread[next]);
            self.read_directory(&unread)?;
            next += 1;
        }
        Ok(())
    }

    fn finish(self) -> Tree {
        let mut tree = self.tree;
        let linked = self.linked.into_values();
        tree.linked = linked.filter(|(_, names)| *names > 1).collect();
        tree.linked.sort_unstable();
        for (node, _) in &tree.linked {
            tree.origins[*node as usize] |= LINKED;
        }
        tree.inodes.shrink_to_fit();
        tree.origins.shrink_to_fit();
        tree.directories.shrink_to_fit();
        tree.entries.shrink_to_fit();
        tree.further.shrink_to_fit();
        tree
    }

    /// Adds a node; its number.
    fn node(&mut self, (layer, inode): Part, flag: u16) -> u32 {
        let id = self.tree.inodes.len() as u32;
        self.tree.inodes.push(inode);
        self.tree.origins.push(layer | flag);
        id
    }

    /// The leading directories of `candidates`, from the top: the first that is none ends them,
    /// and an opaque one is the last.
    fn visible(&self, candidates: impl Iterator<Item = Part>) -> Vec<Part> {
        let mut parts = Vec::new();
        for (layer, id) in candidates {
            let inode = self.tree.layers[usize::from(layer)].inode(id);
            if inode.kind() != Kind::Directory {
                break;
            }
            parts.push((layer, id));
            if inode.is_opaque() {
                break;
            }
        }
        parts
    }

    /// Adds the node of a directory. Its attributes are those of the topmost layer that has an
    /// entry of its own for it.
    fn directory(&mut self, parts: Vec<Part>, parent: u32, depth: u16) {
        let described = parts.iter().find(|(layer, id)| {
            let inode = self.tree.layers[usize::from(*layer)].inode(*id);
            !inode.is_implied()
        });
        let node = self.node(*described.unwrap_or(&parts[0]), DIRECTORY);
        self.unread.push(Unread {
            directory: self.tree.directories.len(),
            depth,
            parts,
        });
        self.tree.directories.push(Directory {
            node,
            parent,
            nlink: 2,
            first: 0,
            count: 0,
        });
    }

    /// Adds what is no directory, or finds the node that the next entry is another name of.
    fn leaf(&mut self, part: Part) {
        let has_links = self.tree.layers[usize::from(part.0)].inode(part.1).nlink > 1;
        if !has_links {
            self.node(part, 0);
        } else if let Some((node, names)) = self.linked.get_mut(&part) {
            *names += 1;
            let entry = self.tree.entries.len() as u32;
            self.tree.further.push((entry, *node));
        } else {
            let node = self.node(part, 0);
            self.linked.insert(part, (node, 1));
        }
    }

    fn read_directory(&mut self, unread: &Unread) -> Result<(), Flaw> {
        let depth = unread.depth + 1;
        if depth > MAX_DEPTH {
            return Err(Flaw::new(format!(
                "directories nested more than {MAX_DEPTH} deep"
            )));
        }
        let cursors = unread.parts.iter().map(|&(layer, id)| {
            let index = &self.tree.layers[usize::from(layer)];
            (layer, LayerIndex::dirents(&index.inode(id)))
        });
        let mut cursors: Vec<(u16, Range<u32>)> = cursors.collect();
        let node = self.tree.directories[unread.directory].node;
        let first = self.tree.entries.len() as u32;
        let mut directories = 0;
        while self.next_name(&mut cursors) {
            let (layer, dirent) = self.same_name[0];
            let Some(part) = self.topmost() else {
                continue;
            };
            let parts = self.visible(self.top.iter().copied());
            if parts.is_empty() {
                self.leaf(part);
            } else {
                directories += 1;
                self.directory(parts, node, depth);
            }
            self.tree.entries.push(Entry {
                name: dirent.name,
                len: dirent.name_len,
                layer,
            });
        }
        let count = self.tree.entries.len() as u32 - first;
        let directory = &mut self.tree.directories[unread.directory];
        (directory.first, directory.count) = (first, count);
        directory.nlink += directories;
        Ok(())
    }

    /// Goes to the least name that is left, if there is one.
    fn next_name(&mut self, cursors: &mut [(u16, Range<u32>)]) -> bool {
        let layers = &self.tree.layers;
        let peek = |(layer, range): &(u16, Range<u32>)| {
            let index = &layers[usize::from(*layer)];
            (range.start < range.end).then(|| (*layer, index.dirent(range.start)))
        };
        let name =
            |(layer, dirent): &(u16, Dirent)| layers[usize::from(*layer)].dirent_name(dirent);
        self.same_name.clear();
        let Some(least) = cursors.iter().filter_map(peek).min_by_key(name) else {
            return false;
        };
        let is_alone = cursors.len() == 1;
        for cursor in cursors {
            if let Some(entry) = peek(cursor)
                && (is_alone || name(&entry) == name(&least))
            {
                self.same_name.push(entry);
                cursor.1.start += 1;
            }
        }
        true
    }

    /// Finds what is to be seen under the name: the inodes down to the first whiteout. The topmost
    /// of them.
    fn topmost(&mut self) -> Option<Part> {
        self.top.clear();
        for (layer, dirent) in &self.same_name {
            if let Some(inode) = dirent.inode() {
                self.top.push((*layer, inode));
            }
            if dirent.hides() {
                break;
            }
        }
        self.top.first().copied()
    }
}
