//! A directory with whatever is in it becomes one layer of an image: files whole, devices, fifos and
//! symlinks as they are.

use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use crate::error::{Error, Result};

/// Writes the layer.
pub struct Tree<W: Write>(Builder<W>);

impl<W: Write> Tree<W> {
    /// A layer that goes to `output`.
    pub fn new(output: W) -> Self {
        let mut builder = Builder::new(output);
        builder.follow_symlinks(false);
        // Readers of layers have no use for holes.
        builder.sparse(false);
        Self(builder)
    }

    /// Adds a file of these bytes, for its owner alone.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        self.0
            .append_data(&mut header, name, bytes)
            .map_err(Error::io("archive", name))
    }

    /// Adds what is at `path`, and in it, as `name`.
    ///
    /// # Errors
    /// It cannot be read; there is a socket in it; the output cannot be written.
    pub fn add(&mut self, name: &Path, path: &Path) -> Result<()> {
        let facts = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
        if facts.is_file() {
            let mut file = File::open(path).map_err(Error::io("open", path))?;
            return self
                .0
                .append_file(name, &mut file)
                .map_err(Error::io("archive", path));
        }
        let kind = facts.file_type();
        if !kind.is_dir() && !kind.is_symlink() {
            return self.add_special(name, path, &facts);
        }
        self.0
            .append_path_with_name(path, name)
            .map_err(Error::io("archive", path))?;
        if kind.is_symlink() {
            return Ok(());
        }
        let entries = fs::read_dir(path).map_err(Error::io("list", path))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.collect::<std::io::Result<Vec<_>>>();
        let mut names = names.map_err(Error::io("list", path))?;
        names.sort();
        names
            .iter()
            .try_for_each(|own| self.add(&name.join(own), &path.join(own)))
    }

    /// The crate would call it by its path here.
    fn add_special(&mut self, name: &Path, path: &Path, facts: &Metadata) -> Result<()> {
        let kind = match facts.file_type() {
            kind if kind.is_char_device() => EntryType::Char,
            kind if kind.is_block_device() => EntryType::Block,
            kind if kind.is_fifo() => EntryType::Fifo,
            _ => {
                let shown = path.display().to_string();
                return Err(Error::malformed(shown, "a socket is nothing for an image"));
            }
        };
        let mut header = Header::new_gnu();
        header.set_metadata(facts);
        header.set_entry_type(kind);
        header.set_size(0);
        let device = facts.rdev();
        header
            .set_device_major(rustix::fs::major(device))
            .and_then(|()| header.set_device_minor(rustix::fs::minor(device)))
            .and_then(|()| self.0.append_data(&mut header, name, std::io::empty()))
            .map_err(Error::io("archive", path))
    }

    /// Ends the layer, and gives the output back.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> Result<W> {
        self.0
            .into_inner()
            .map_err(Error::io("write", "the end of the layer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_fifos_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("sub")).expect("made");
        fs::write(dir.path().join("sub/file"), "content").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("made");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .expect("made");
        let mut tree = Tree::new(Vec::new());
        tree.add_bytes("record", b"{}").expect("added");
        tree.add(Path::new("tree"), dir.path()).expect("added");
        let bytes = tree.finish().expect("written");
        let mut archive = tar::Archive::new(&*bytes);
        let kinds: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let name = entry.path().expect("a name").display().to_string();
                (name, entry.header().entry_type())
            })
            .collect();
        let expected = [
            ("record", EntryType::Regular),
            ("tree", EntryType::Directory),
            ("tree/fifo", EntryType::Fifo),
            ("tree/link", EntryType::Symlink),
            ("tree/sub", EntryType::Directory),
            ("tree/sub/file", EntryType::Regular),
        ];
        let expected: Vec<_> = expected.map(|(name, kind)| (name.to_owned(), kind)).into();
        let trimmed = kinds
            .into_iter()
            .map(|(name, kind)| (name.trim_end_matches('/').to_owned(), kind));
        assert_eq!(trimmed.collect::<Vec<_>>(), expected);
    }
}
