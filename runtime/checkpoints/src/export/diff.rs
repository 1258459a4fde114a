//! What the upper layer of an overlay has, as a tar file and a list of what is gone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::overlay::{Layers, inside, shown};
use crate::error::{Error, Result};

const OPAQUE: &str = "trusted.overlay.opaque";
/// What an upper layer has only parts of.
const PARTIAL: [&str; 2] = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];

/// Writes what has been changed; the paths that have been removed.
pub(super) fn write_diff(layers: &Layers, output: File) -> Result<Vec<String>> {
    let mut diff = Diff {
        layers,
        builder: Builder::new(BufWriter::new(output)),
        deleted: Vec::new(),
    };
    diff.builder.follow_symlinks(false);
    diff.directory(&layers.upper)?;
    let written = diff
        .builder
        .into_inner()
        .and_then(|mut output| output.flush());
    written.map_err(Error::io("write", "the diff"))?;
    Ok(diff.deleted)
}

struct Diff<'a> {
    layers: &'a Layers,
    builder: Builder<BufWriter<File>>,
    deleted: Vec<String>,
}

impl Diff<'_> {
    /// What is in a directory of the upper layer.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let entries = fs::read_dir(path).map_err(Error::io("list", path))?;
        let mut all = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::io("list", path))?;
        all.sort();
        all.iter().try_for_each(|path| self.entry(path))
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let facts = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
        let name = inside(path, &self.layers.upper);
        let kind = facts.file_type();
        if kind.is_char_device() && facts.rdev() == 0 {
            self.deleted.push(shown(&name));
            return Ok(());
        }
        for attribute in PARTIAL {
            if attribute_of(path, attribute)?.is_some() {
                let reason = format!("{attribute}: an overlay with this feature has no diff");
                return Err(Error::malformed(shown(path), reason));
            }
        }
        if kind.is_dir() {
            self.append(path, &name, EntryType::Directory, &facts)?;
            if attribute_of(path, OPAQUE)?.is_some_and(|value| value == b"y") {
                self.hide(&name)?;
            }
            return self.directory(path);
        }
        if kind.is_file() {
            self.append(path, &name, EntryType::Regular, &facts)
        } else if kind.is_symlink() {
            self.append(path, &name, EntryType::Symlink, &facts)
        } else if kind.is_fifo() {
            self.append(path, &name, EntryType::Fifo, &facts)
        } else if kind.is_char_device() {
            self.append(path, &name, EntryType::Char, &facts)
        } else {
            // A socket is nobody's any more; a disk is not the container's.
            Ok(())
        }
    }

    /// What an opaque directory hides is gone.
    fn hide(&mut self, name: &Path) -> Result<()> {
        for lower in &self.layers.lower {
            if lower.is_relative() {
                let reason = "the layers below an opaque directory cannot be found";
                return Err(Error::malformed(shown(name), reason));
            }
            let Ok(entries) = fs::read_dir(lower.join(name)) else {
                continue;
            };
            for entry in entries {
                let own = entry.map_err(Error::io("list", lower))?.file_name();
                let gone = name.join(own);
                let is_there = fs::symlink_metadata(self.layers.upper.join(&gone)).is_ok();
                let gone = shown(&gone);
                if !is_there && !self.deleted.contains(&gone) {
                    self.deleted.push(gone);
                }
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        path: &Path,
        name: &Path,
        kind: EntryType,
        facts: &fs::Metadata,
    ) -> Result<()> {
        let failed = || Error::io("archive", path);
        let attributes = attributes(path)?;
        let records = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder
            .append_pax_extensions(records)
            .map_err(failed())?;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(facts.mode() & 0o7777);
        header.set_uid(facts.uid().into());
        header.set_gid(facts.gid().into());
        header.set_mtime(u64::try_from(facts.mtime()).unwrap_or(0));
        header.set_size(0);
        match kind {
            EntryType::Regular => {
                header.set_size(facts.len());
                let file = File::open(path).map_err(failed())?;
                let content = io::Read::take(file, facts.len());
                self.builder.append_data(&mut header, name, content)
            }
            EntryType::Symlink => {
                let target: PathBuf = fs::read_link(path).map_err(failed())?;
                self.builder.append_link(&mut header, name, target)
            }
            _ => {
                let number = facts.rdev();
                header
                    .set_device_major(rustix::fs::major(number))
                    .and_then(|()| header.set_device_minor(rustix::fs::minor(number)))
                    .map_err(failed())?;
                self.builder.append_data(&mut header, name, io::empty())
            }
        }
        .map_err(failed())
    }
}

/// The attributes that are a file's own, as records of an extended header.
fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0; 64 << 10];
    let length = match llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(Error::io("list attributes of", path)(errno)),
    };
    let names = list[..length].split(|byte| *byte == 0);
    let names = names.filter_map(|name| std::str::from_utf8(name).ok());
    let own = names.filter(|name| name.starts_with("user.") || *name == "security.capability");
    let mut records = Vec::new();
    for name in own {
        if let Some(value) = attribute_of(path, name)? {
            records.push((format!("SCHILY.xattr.{name}"), value));
        }
    }
    Ok(records)
}

fn attribute_of(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64 << 10];
    match lgetxattr(path, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(Error::io("read attributes of", path)(errno)),
    }
}
