//! Names: where an entry goes, what whiteouts hide, and what hard links end at.

use bstr::{BString, ByteSlice};

use super::super::MAX_ENTRIES;
use super::super::layout::{DIRENT_HIDES, Dirent, INODE_OPAQUE, Inode, Kind, NO_INODE, Record};
use super::super::name::{self, Role};
use super::hash::NameHash;
use super::{LayerBuilder, MAX_LINK_HOPS, NONE, Name, Place, Target, implied_directory};
use crate::formats::Flaw;

/// Where a name that is not there yet belongs.
pub(super) struct Free {
    parent: u32,
    hash: NameHash,
}

impl LayerBuilder {
    /// Finds or makes the parent, and does what a whiteout says.
    pub(super) fn place<'a>(&mut self, path: &'a [u8]) -> Result<Place<'a>, Flaw> {
        let clean = name::clean(path)?;
        if clean.is_empty() {
            return Ok(Place::Root);
        }
        let (parent, last) = name::split(clean);
        let parent = self.parent(parent, path)?;
        match name::role(last) {
            Role::Name(name) => return Ok(Place::Child(parent, name)),
            Role::Ignored => {}
            Role::Opaque => self.inodes[parent as usize].flags |= INODE_OPAQUE,
            Role::Whiteout(hidden) => {
                name::check_hidden(path, hidden)?;
                match self.find(parent, hidden) {
                    Ok(at) => self.names[at as usize].flags |= DIRENT_HIDES,
                    Err(free) => {
                        self.name(free, hidden, Target::Nothing, DIRENT_HIDES, path)?;
                    }
                }
            }
        }
        Ok(Place::Handled)
    }

    /// The directory at the cleaned path `directory`, made if no entry named it yet.
    pub(super) fn parent(&mut self, directory: &[u8], path: &[u8]) -> Result<u32, Flaw> {
        if directory == self.last_directory.0 {
            return Ok(self.last_directory.1);
        }
        let mut inode = 0;
        for component in name::components(directory).filter(|c| !c.is_empty()) {
            inode = match self.find(inode, component) {
                Err(free) => self.add(free, component, implied_directory(), path)?,
                Ok(at) => match self.names[at as usize].target {
                    Target::Nothing => self.attach(at, implied_directory(), path)?,
                    Target::Inode(id) if self.inodes[id as usize].kind() == Kind::Directory => id,
                    _ => {
                        let reason =
                            format!("{:?} on its way is not a directory", component.as_bstr());
                        return Err(Flaw::entry(path, reason));
                    }
                },
            };
        }
        self.last_directory = (directory.to_vec(), inode);
        Ok(inode)
    }

    /// The name in the directory `parent`, or where it would be.
    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Result<u32, Free> {
        let hash = NameHash::of(&self.hasher, parent, name);
        let mut at = self.by_hash.get(&hash).copied().unwrap_or(NONE);
        while at != NONE {
            let entry = &self.names[at as usize];
            if entry.parent == parent && self.name_of(entry) == name {
                return Ok(at);
            }
            at = entry.next;
        }
        Err(Free { parent, hash })
    }

    pub(super) fn name_of(&self, entry: &Name) -> &[u8] {
        &self.strings[entry.text as usize..][..usize::from(entry.len)]
    }

    /// Adds a name that is not there yet.
    pub(super) fn name(
        &mut self,
        Free { parent, hash }: Free,
        name: &[u8],
        target: Target,
        flags: u16,
        path: &[u8],
    ) -> Result<u32, Flaw> {
        if self.names.len() >= MAX_ENTRIES {
            return Err(Flaw::entry(path, "more than 10000000 entries"));
        }
        let at = self.names.len() as u32;
        let next = self.by_hash.insert(hash, at);
        let entry = Name {
            parent,
            text: self.string(name, path)?,
            len: name.len() as u16,
            flags,
            target,
            next: next.unwrap_or(NONE),
        };
        self.names.push(entry);
        Ok(at)
    }

    pub(super) fn add(
        &mut self,
        free: Free,
        name: &[u8],
        inode: Inode,
        path: &[u8],
    ) -> Result<u32, Flaw> {
        let at = self.name(free, name, Target::Nothing, 0, path)?;
        self.attach(at, inode, path)
    }

    pub(super) fn attach(&mut self, at: u32, inode: Inode, path: &[u8]) -> Result<u32, Flaw> {
        if self.inodes.len() > MAX_ENTRIES {
            return Err(Flaw::entry(path, "more than 10000000 entries"));
        }
        let id = self.inodes.len() as u32;
        self.inodes.push(inode);
        self.named_by.push(at);
        self.names[at as usize].target = Target::Inode(id);
        Ok(id)
    }

    pub(super) fn string(&mut self, bytes: &[u8], path: &[u8]) -> Result<u32, Flaw> {
        let at = self.strings.len();
        if at + bytes.len() >= u32::MAX as usize {
            return Err(Flaw::entry(path, "names and attributes exceed 4 GiB"));
        }
        self.strings.extend_from_slice(bytes);
        Ok(at as u32)
    }

    pub(super) fn resolve_links(&mut self) -> Result<(), Flaw> {
        for at in 0..self.names.len() {
            let Target::Link(..) = self.names[at].target else {
                continue;
            };
            let inode = self
                .follow(at as u32)
                .map_err(|reason| Flaw::entry(self.path_of_name(at as u32), reason))?;
            self.names[at].target = Target::Inode(inode);
            self.inodes[inode as usize].nlink += 1;
        }
        Ok(())
    }

    /// The inode that a hard link, or a chain of them, ends at.
    pub(super) fn follow(&self, mut at: u32) -> Result<u32, String> {
        for _ in 0..MAX_LINK_HOPS {
            let (start, len) = match self.names[at as usize].target {
                Target::Link(start, len) => (start as usize, len as usize),
                Target::Nothing => return Err("the hard link's target is a whiteout".into()),
                Target::Inode(id) if self.inodes[id as usize].kind() == Kind::Directory => {
                    return Err("the hard link's target is a directory".into());
                }
                Target::Inode(id) => return Ok(id),
            };
            let path = self.strings[start..start + len].as_bstr();
            at = self
                .look_up(path)
                .ok_or_else(|| format!("the hard link's target {path:?} is not in the layer"))?;
        }
        Err("the hard link is part of a cycle".into())
    }

    pub(super) fn look_up(&self, path: &[u8]) -> Option<u32> {
        let mut inode = 0;
        let mut at = None;
        for component in name::components(path) {
            if let Some(previous) = at {
                match self.names[previous as usize].target {
                    Target::Inode(id) => inode = id,
                    _ => return None,
                }
            }
            at = Some(self.find(inode, component).ok()?);
        }
        at
    }

    /// Dirents grouped by directory and sorted by name; directories learn their range.
    pub(super) fn sorted_dirents(&mut self) -> Vec<u8> {
        let order = self.sorted_names();
        let mut records = Vec::with_capacity(order.len() * Dirent::LEN);
        for (position, at) in order.into_iter().enumerate() {
            let entry = &self.names[at as usize];
            let inode = match entry.target {
                Target::Inode(id) => id,
                Target::Nothing | Target::Link(..) => NO_INODE,
            };
            let parent = &mut self.inodes[entry.parent as usize];
            if parent.data_count == 0 {
                parent.data_first = position as u32;
            }
            parent.data_count += 1;
            let dirent = Dirent {
                name: entry.text,
                name_len: entry.len,
                flags: entry.flags,
                inode,
            };
            dirent.put(&mut records);
        }
        records
    }

    /// All names, those of a directory one after the other and in their order.
    fn sorted_names(&self) -> Vec<u32> {
        // Where each directory's names begin, and then end.
        let mut ends = vec![0; self.inodes.len() + 1];
        for name in &self.names {
            ends[name.parent as usize + 1] += 1;
        }
        for directory in 1..ends.len() {
            ends[directory] += ends[directory - 1];
        }
        let mut order = vec![0; self.names.len()];
        for (at, name) in self.names.iter().enumerate() {
            let end: &mut usize = &mut ends[name.parent as usize];
            order[*end] = at as u32;
            *end += 1;
        }
        let name = |at: &u32| self.name_of(&self.names[*at as usize]);
        let mut start = 0;
        for end in ends {
            order[start..end].sort_unstable_by(|a, b| name(a).cmp(name(b)));
            start = end;
        }
        order
    }

    pub(super) fn path_of(&self, inode: u32) -> BString {
        match self.named_by[inode as usize] {
            NONE => BString::default(),
            at => self.path_of_name(at),
        }
    }

    pub(super) fn path_of_name(&self, at: u32) -> BString {
        let entry = &self.names[at as usize];
        let name = self.name_of(entry);
        match entry.parent {
            0 => name.into(),
            parent => [self.path_of(parent).as_slice(), b"/", name]
                .concat()
                .into(),
        }
    }
}
