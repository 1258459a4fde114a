//! One file tree out of a chain of layers, whiteouts resolved.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::layer::LayerIndex;
use super::layout::{Dirent, Inode, Kind};
use crate::formats::Flaw;

/// Deepest directory nesting; deeper ones cannot be reached by a path anyway.
const MAX_DEPTH: u16 = 2100;

/// An inode of the merged tree: where its attributes and content come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The layer, counted from the bottom of the chain.
    pub layer: u16,
    depth: u16,
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
    name: u32,
    name_len: u16,
    /// The layer whose strings hold the name.
    layer: u16,
    /// The node it leads to.
    pub node: u32,
}

/// The merged tree; node 0 is the root directory.
#[derive(Debug)]
pub struct Tree {
    layers: Vec<Arc<LayerIndex>>,
    nodes: Vec<Node>,
    children: Vec<Child>,
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
        if layers.is_empty() || layers.len() > usize::from(u16::MAX) {
            return Err(Flaw::new(format!("a chain of {} layers", layers.len())));
        }
        let entries: usize = layers.iter().map(|layer| layer.inodes() as usize).sum();
        let tree = Self {
            nodes: Vec::with_capacity(entries),
            children: Vec::with_capacity(entries),
            layers,
        };
        let mut merge = Merge {
            tree,
            linked: HashMap::new(),
            parts: Vec::new(),
        };
        merge.run()?;
        let mut tree = merge.tree;
        tree.nodes.shrink_to_fit();
        tree.children.shrink_to_fit();
        Ok(tree)
    }

    /// The layers, the bottom one first.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never true: there is always a root directory.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Node `id`, if there is one.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// The layer that a node comes from.
    pub fn layer(&self, node: &Node) -> &LayerIndex {
        &self.layers[usize::from(node.layer)]
    }

    /// The attributes of a node.
    pub fn inode(&self, node: &Node) -> Inode {
        self.layer(node).inode(node.inode)
    }

    /// The entries of a directory, sorted by name.
    pub fn children(&self, node: &Node) -> &[Child] {
        &self.children[node.first as usize..(node.first + node.count) as usize]
    }

    /// The name of an entry.
    pub fn name(&self, child: &Child) -> &[u8] {
        self.layers[usize::from(child.layer)].string(child.name, u32::from(child.name_len))
    }

    /// Looks a name up in a directory.
    pub fn look_up(&self, directory: &Node, name: &[u8]) -> Option<u32> {
        let children = self.children(directory);
        let at = children
            .binary_search_by(|child| self.name(child).cmp(name))
            .ok()?;
        Some(children[at].node)
    }

    /// Bytes that the tree itself takes, besides the layers' images.
    pub fn heap_size(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.children.capacity() * size_of::<Child>()
    }
}

struct Merge {
    tree: Tree,
    /// Nodes of inodes with more than one name.
    linked: HashMap<Part, u32>,
    /// Which layers' directories make up each node that is a directory still to be read.
    parts: Vec<(u32, Vec<Part>)>,
}

impl Merge {
    fn run(&mut self) -> Result<(), Flaw> {
        let roots = (0..self.tree.layers.len() as u16)
            .rev()
            .map(|layer| (layer, 0));
        let roots = self.visible(roots);
        self.directory(roots, 0, 0);
        let mut next = 0;
        while next < self.parts.len() {
            let (node, parts) = std::mem::take(&mut self.parts[next]);
            self.read_directory(node, &parts)?;
            next += 1;
        }
        Ok(())
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
    fn directory(&mut self, parts: Vec<Part>, parent: u32, depth: u16) -> u32 {
        let described = parts.iter().find(|(layer, id)| {
            let inode = self.tree.layers[usize::from(*layer)].inode(*id);
            !inode.is_implied()
        });
        let (layer, inode) = *described.unwrap_or(&parts[0]);
        let id = self.tree.nodes.len() as u32;
        self.tree.nodes.push(Node {
            layer,
            depth,
            inode,
            nlink: 2,
            parent,
            first: 0,
            count: 0,
        });
        self.parts.push((id, parts));
        id
    }

    /// Adds what is no directory, or finds the node that it is another name of.
    fn leaf(&mut self, (layer, inode): Part, parent: u32) -> u32 {
        let has_links = self.tree.layers[usize::from(layer)].inode(inode).nlink > 1;
        if has_links && let Some(&node) = self.linked.get(&(layer, inode)) {
            self.tree.nodes[node as usize].nlink += 1;
            return node;
        }
        let id = self.tree.nodes.len() as u32;
        self.tree.nodes.push(Node {
            layer,
            depth: 0,
            inode,
            nlink: 1,
            parent,
            first: 0,
            count: 0,
        });
        if has_links {
            self.linked.insert((layer, inode), id);
        }
        id
    }

    fn read_directory(&mut self, node: u32, parts: &[Part]) -> Result<(), Flaw> {
        let depth = self.tree.nodes[node as usize].depth + 1;
        if depth > MAX_DEPTH {
            return Err(Flaw::new(format!(
                "directories nested more than {MAX_DEPTH} deep"
            )));
        }
        let mut cursors: Vec<(u16, Range<u32>)> = parts
            .iter()
            .map(|&(layer, id)| {
                let index = &self.tree.layers[usize::from(layer)];
                (layer, LayerIndex::dirents(&index.inode(id)))
            })
            .collect();
        let first = self.tree.children.len() as u32;
        let mut directories = 0;
        while let Some(same_name) = self.next_name(&mut cursors) {
            let Some(top) = topmost(&same_name) else {
                continue;
            };
            let (layer, dirent) = same_name[0];
            let parts = self.visible(top.iter().copied());
            let target = if parts.is_empty() {
                self.leaf(top[0], node)
            } else {
                directories += 1;
                self.directory(parts, node, depth)
            };
            self.tree.children.push(Child {
                name: dirent.name,
                name_len: dirent.name_len,
                layer,
                node: target,
            });
        }
        let count = self.tree.children.len() as u32 - first;
        let node = &mut self.tree.nodes[node as usize];
        (node.first, node.count) = (first, count);
        node.nlink += directories;
        Ok(())
    }

    /// The entries of the least name that is left, from the topmost layer down.
    fn next_name(&self, cursors: &mut [(u16, Range<u32>)]) -> Option<Vec<(u16, Dirent)>> {
        let layers = &self.tree.layers;
        let peek = |(layer, range): &(u16, Range<u32>)| {
            let index = &layers[usize::from(*layer)];
            (range.start < range.end).then(|| (*layer, index.dirent(range.start)))
        };
        let name =
            |(layer, dirent): &(u16, Dirent)| layers[usize::from(*layer)].dirent_name(dirent);
        let least = cursors.iter().filter_map(peek).min_by_key(name)?;
        let mut same = Vec::with_capacity(1);
        for cursor in cursors {
            if let Some(entry) = peek(cursor)
                && name(&entry) == name(&least)
            {
                same.push(entry);
                cursor.1.start += 1;
            }
        }
        Some(same)
    }
}

/// What is to be seen under a name: the inodes down to the first whiteout.
fn topmost(same_name: &[(u16, Dirent)]) -> Option<Vec<Part>> {
    let mut parts = Vec::with_capacity(same_name.len());
    for (layer, dirent) in same_name {
        if let Some(inode) = dirent.inode() {
            parts.push((*layer, inode));
        }
        if dirent.hides() {
            break;
        }
    }
    (!parts.is_empty()).then_some(parts)
}
