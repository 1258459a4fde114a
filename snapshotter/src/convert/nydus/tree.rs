//! The tree that the layers of an image make together, whiteouts resolved.

use std::collections::{BTreeMap, HashSet};

use bstr::{BStr, BString, ByteSlice};

use super::blob::Stored;
use crate::convert::tar::TarEntry;
use crate::convert::tar::reader::{Raw, Time};
use crate::formats::Flaw;
use crate::formats::estargz::toc::EntryType;

/// Prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of what is no part of the tree.
const AUFS: &[u8] = b".wh..wh.";
/// Longest chain of hard links to hard links.
const MAX_LINK_HOPS: usize = 64;

/// An inode: an entry of a layer, with its chunks.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) entry: TarEntry,
    /// The layer that it is of; its blob has the chunks.
    pub(super) layer: usize,
    pub(super) chunks: Vec<Stored>,
    /// Names that lead to it; of a directory, 2 and one for each directory in it.
    pub(super) links: u32,
}

/// A name that leads to an inode; a directory has further names in it.
#[derive(Debug, Clone)]
struct Node {
    inode: usize,
    children: BTreeMap<BString, usize>,
}

/// The merged tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) inodes: Vec<Inode>,
    nodes: Vec<Node>,
}

/// An entry of a layer, its chunks.
pub(super) type Entry = (TarEntry, Vec<Stored>);

impl Tree {
    /// The root directory alone, as an unpacker makes it.
    pub(super) fn new() -> Self {
        let root = Inode {
            entry: directory(b""),
            layer: 0,
            chunks: Vec::new(),
            links: 2,
        };
        let node = Node {
            inode: 0,
            children: BTreeMap::new(),
        };
        Self {
            inodes: vec![root],
            nodes: vec![node],
        }
    }

    /// Puts a layer on top: what it hides of the layers below goes first, whatever its order.
    pub(super) fn apply(&mut self, layer: usize, entries: &[Entry]) -> Result<(), Flaw> {
        for (entry, _) in entries {
            self.hide(&entry.name);
        }
        let (links, others): (Vec<&Entry>, Vec<&Entry>) = entries
            .iter()
            .filter(|(entry, _)| !split(&entry.name).1.starts_with(WHITEOUT))
            .partition(|(entry, _)| entry.kind == EntryType::Hardlink);
        for (entry, chunks) in others {
            self.add(layer, entry, chunks)?;
        }
        let targets: BTreeMap<&BStr, &BStr> = links
            .iter()
            .map(|(entry, _)| (entry.name.as_ref(), entry.link.as_ref()))
            .collect();
        for (entry, _) in &links {
            self.link(entry, &targets)?;
        }
        Ok(())
    }

    /// Does what a whiteout says.
    fn hide(&mut self, name: &[u8]) {
        let (parent, last) = split(name);
        let Some(directory) = self.find(parent) else {
            return;
        };
        if last == OPAQUE {
            self.nodes[directory].children.clear();
        } else if let Some(hidden) = last.strip_prefix(WHITEOUT)
            && !last.starts_with(AUFS)
        {
            self.nodes[directory].children.remove(hidden.as_bstr());
        }
    }

    /// The regular files at these paths, each once, in their order; other paths are left out.
    pub(super) fn files(&self, paths: &[String]) -> Vec<usize> {
        let mut met = HashSet::new();
        let inodes = paths.iter().filter_map(|path| self.find(path.as_bytes()));
        let inodes = inodes.map(|node| self.nodes[node].inode);
        let is_file = |inode: &usize| {
            let kind = self.inodes[*inode].entry.kind;
            kind == EntryType::Reg && met.insert(*inode)
        };
        inodes.filter(is_file).collect()
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        let mut components = path
            .split_str("/")
            .filter(|component| !component.is_empty());
        components.try_fold(0, |node, component| {
            self.nodes[node].children.get(component.as_bstr()).copied()
        })
    }

    fn add(&mut self, layer: usize, entry: &TarEntry, chunks: &[Stored]) -> Result<(), Flaw> {
        let inode = Inode {
            entry: entry.clone(),
            layer,
            chunks: chunks.to_vec(),
            links: 1,
        };
        let is_directory = entry.kind == EntryType::Dir;
        if is_directory && let Some(node) = self.find(&entry.name) {
            let known = self.nodes[node].inode;
            if self.inodes[known].entry.kind == EntryType::Dir {
                self.inodes[known] = inode;
                return Ok(());
            }
        }
        self.inodes.push(inode);
        let node = Node {
            inode: self.inodes.len() - 1,
            children: BTreeMap::new(),
        };
        self.name(&entry.name, node)
    }

    /// Adds another name of what a hard link, or a chain of them, leads to.
    fn link(&mut self, entry: &TarEntry, targets: &BTreeMap<&BStr, &BStr>) -> Result<(), Flaw> {
        let mut target: &BStr = entry.link.as_ref();
        for _ in 0..MAX_LINK_HOPS {
            match targets.get(target) {
                Some(next) => target = next,
                None => break,
            }
        }
        let inode = self.find(target).map(|node| self.nodes[node].inode);
        let inode = inode.filter(|inode| self.inodes[*inode].entry.kind != EntryType::Dir);
        let Some(inode) = inode else {
            let reason = format!("the hard link's target {target:?} is no file of the image");
            return Err(Flaw::entry(&entry.name, reason));
        };
        let node = Node {
            inode,
            children: BTreeMap::new(),
        };
        self.name(&entry.name, node)
    }

    /// Puts a node under a path, in the place of what is there.
    fn name(&mut self, path: &[u8], node: Node) -> Result<(), Flaw> {
        let (parent, last) = split(path);
        if last.is_empty() {
            return Err(Flaw::entry(path, "the root is not a directory"));
        }
        let parent = self.parent(parent)?;
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.nodes[parent].children.insert(last.into(), node);
        Ok(())
    }

    /// The directory at `path`, made if no layer names it.
    fn parent(&mut self, path: &[u8]) -> Result<usize, Flaw> {
        let mut node = 0;
        for component in path
            .split_str("/")
            .filter(|component| !component.is_empty())
        {
            let known = self.nodes[node].children.get(component.as_bstr()).copied();
            node = known.unwrap_or_else(|| self.implied(node, component));
            if self.inodes[self.nodes[node].inode].entry.kind != EntryType::Dir {
                let reason = format!("{:?} on its way is not a directory", component.as_bstr());
                return Err(Flaw::entry(path, reason));
            }
        }
        Ok(node)
    }

    /// Makes a directory that no layer names.
    fn implied(&mut self, parent: usize, name: &[u8]) -> usize {
        self.inodes.push(Inode {
            entry: directory(name),
            layer: 0,
            chunks: Vec::new(),
            links: 2,
        });
        self.nodes.push(Node {
            inode: self.inodes.len() - 1,
            children: BTreeMap::new(),
        });
        let node = self.nodes.len() - 1;
        self.nodes[parent].children.insert(name.into(), node);
        node
    }

    /// Every directory with its entries, parents first: the directory's inode, that of the one
    /// above it, and names with inodes in their order. Counts links.
    pub(super) fn directories(&mut self) -> Vec<Directory> {
        for inode in &mut self.inodes {
            inode.links = 0;
        }
        let mut found = Vec::new();
        let mut todo = vec![(0, self.nodes[0].inode)];
        while let Some((node, parent)) = todo.pop() {
            let mut entries = Vec::new();
            self.inodes[self.nodes[node].inode].links += 2;
            for (name, &child) in &self.nodes[node].children {
                let inode = self.nodes[child].inode;
                entries.push((name.clone(), inode));
                if self.inodes[inode].entry.kind == EntryType::Dir {
                    self.inodes[self.nodes[node].inode].links += 1;
                    todo.push((child, self.nodes[node].inode));
                } else {
                    self.inodes[inode].links += 1;
                }
            }
            let inode = self.nodes[node].inode;
            found.push(Directory {
                inode,
                parent,
                entries,
            });
        }
        found
    }
}

/// A directory of the merged tree.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) inode: usize,
    pub(super) parent: usize,
    pub(super) entries: Vec<(BString, usize)>,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.rsplit_once_str("/").unwrap_or((b"", path))
}

/// A directory that no layer describes: attributes as `mkdir -p` by root gives them.
fn directory(name: &[u8]) -> TarEntry {
    TarEntry {
        name: name.into(),
        kind: EntryType::Dir,
        link: BString::default(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        user_name: String::new(),
        group_name: String::new(),
        mtime: Time::default(),
        dev_major: 0,
        dev_minor: 0,
        xattrs: BTreeMap::new(),
        header_at: 0,
        data_at: 0,
        size: 0,
        raw: Raw::default(),
    }
}
