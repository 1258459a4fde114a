//! Every name of one layer, whiteouts among them.

use super::layer::LayerIndex;
use super::layout::{Inode, Kind};

/// What a name of a layer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Lower layers' entries of this name are gone.
    Whiteout,
    /// An inode, by its number; others may have the same one.
    Inode(u32, Inode),
}

impl LayerIndex {
    /// Shows every path, without leading slash, and what it stands for: directories before what is
    /// in them, a whiteout before what the same layer has under its name.
    pub fn walk(&self, mut visit: impl FnMut(&str, Listed)) {
        let mut directories = vec![(String::new(), 0)];
        while let Some((path, id)) = directories.pop() {
            let directory = self.inode(id);
            visit(&path, Listed::Inode(id, directory));
            for entry in Self::dirents(&directory).map(|entry| self.dirent(entry)) {
                let name = String::from_utf8_lossy(self.dirent_name(&entry));
                let path = if path.is_empty() {
                    name.into_owned()
                } else {
                    format!("{path}/{name}")
                };
                if entry.hides() {
                    visit(&path, Listed::Whiteout);
                }
                let Some(id) = entry.inode() else { continue };
                let inode = self.inode(id);
                if inode.kind() == Kind::Directory {
                    directories.push((path, id));
                } else {
                    visit(&path, Listed::Inode(id, inode));
                }
            }
        }
    }
}
