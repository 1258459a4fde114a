//! A small tree → an archive as GNU's `tar --create --gzip --one-file-system` makes it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::LIMIT;

/// The archive; none if the tree is not small, or holds what is not plain: files with several names,
/// fifos, other file systems.
pub(super) fn pack(directory: &Path) -> io::Result<Option<Vec<u8>>> {
    let top = fs::metadata(directory)?;
    let mut packer = Packer {
        archive: Builder::new(GzEncoder::new(Vec::new(), Compression::fast())),
        device: top.dev(),
        left: LIMIT,
    };
    packer.archive.follow_symlinks(false);
    packer.archive.sparse(false);
    packer.add_top(&top)?;
    if !packer.add_below(directory, Path::new(""))? {
        return Ok(None);
    }
    packer.archive.into_inner()?.finish().map(Some)
}

struct Packer {
    archive: Builder<GzEncoder<Vec<u8>>>,
    /// The file system that is packed.
    device: u64,
    /// Bytes that may still be added.
    left: u64,
}

impl Packer {
    /// The directory itself, whose name no builder takes.
    fn add_top(&mut self, top: &Metadata) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_metadata(top);
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        header.as_old_mut().name[..2].copy_from_slice(b"./");
        header.set_cksum();
        self.archive.append(&header, io::empty())
    }

    /// Whether all below a directory could be added.
    fn add_below(&mut self, directory: &Path, name: &Path) -> io::Result<bool> {
        let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = name.join(entry.file_name());
            let found = fs::symlink_metadata(&path)?;
            if found.file_type().is_socket() {
                // As in GNU's: there is nothing of it to keep.
                continue;
            }
            if !self.is_plain(&found) {
                return Ok(false);
            }
            self.archive.append_path_with_name(&path, &name)?;
            if found.is_dir() && !self.add_below(&path, &name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_plain(&mut self, found: &Metadata) -> bool {
        // A header, and what follows it.
        let size = 512 + if found.is_file() { found.len() } else { 0 };
        let Some(left) = self.left.checked_sub(size) else {
            return false;
        };
        self.left = left;
        found.dev() == self.device
            && (found.is_dir() || found.nlink() == 1)
            && !found.file_type().is_fifo()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_that_is_not_small_and_plain_is_left_to_another() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        let is_packed = || pack(directory.path()).expect("readable").is_some();
        fs::create_dir(at("d")).expect("made");
        symlink("nowhere", at("d/link")).expect("made");
        fs::write(at("file"), "content").expect("written");
        assert!(is_packed());
        fs::hard_link(at("file"), at("again")).expect("linked");
        assert!(!is_packed());
        fs::remove_file(at("again")).expect("removed");
        let large = fs::File::create(at("large")).expect("made");
        large.set_len(LIMIT).expect("made large");
        assert!(!is_packed());
        fs::remove_file(at("large")).expect("removed");
        let fifo = at("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("made");
        assert!(!is_packed());
    }
}
