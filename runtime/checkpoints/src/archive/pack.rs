//! Files become an archive.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::compression::{Compression, Encoder};
use crate::error::{Error, Result};

/// Writes an archive, member by member.
pub struct Packer<W: Write> {
    builder: Builder<Encoder<W>>,
}

impl<W: Write> Packer<W> {
    /// An archive that goes to `output`.
    ///
    /// # Errors
    /// There is no memory for the compression.
    pub fn new(output: W, compression: Compression) -> Result<Self> {
        let encoder = Encoder::new(output, compression).map_err(Error::io("compress", ""))?;
        Ok(Self {
            builder: Builder::new(encoder),
        })
    }

    /// Adds a file of these bytes.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, bytes.len() as u64, 0o600, 0);
        self.append(&mut header, Path::new(name), &mut &*bytes)
    }

    /// Adds a file, or a directory with the files and directories in it, as `name`.
    ///
    /// # Errors
    /// There is something else in it; it cannot be read; the output cannot be written.
    pub fn add_path(&mut self, name: &Path, path: &Path) -> Result<()> {
        let facts = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
        if facts.is_dir() {
            let mut header = header(EntryType::Directory, 0, 0o700, facts.mtime());
            self.append(&mut header, name, &mut std::io::empty())?;
            let entries = fs::read_dir(path).map_err(Error::io("list", path))?;
            let mut names = entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(Error::io("list", path))?;
            names.sort();
            return names
                .iter()
                .try_for_each(|own| self.add_path(&name.join(own), &path.join(own)));
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(Error::io("open", path))?;
        self.add_file(name, &file, path)
    }

    fn add_file(&mut self, name: &Path, file: &File, path: &Path) -> Result<()> {
        let facts = file.metadata().map_err(Error::io("stat", path))?;
        if !facts.is_file() {
            let shown = path.display().to_string();
            return Err(Error::malformed(shown, "neither a file nor a directory"));
        }
        let mut header = header(EntryType::Regular, facts.len(), 0o600, facts.mtime());
        self.append(&mut header, name, &mut file.take(facts.len()))
    }

    fn append(&mut self, header: &mut Header, name: &Path, content: &mut dyn Read) -> Result<()> {
        self.builder
            .append_data(header, name, content)
            .map_err(Error::io("archive", name))
    }

    /// Ends the archive, and gives the output back.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> Result<W> {
        let encoder = self.builder.into_inner();
        encoder
            .and_then(Encoder::finish)
            .map_err(Error::io("write", "the end of the archive"))
    }
}

fn header(kind: EntryType, size: u64, mode: u32, mtime: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(mtime).unwrap_or(0));
    header
}
