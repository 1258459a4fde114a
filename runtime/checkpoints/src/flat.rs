//! A directory of CRIU's images as a list of files: flat, regular, by harmless names.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// One file of a checkpoint.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) file: File,
}

/// Whether a file of an image may have this name, which may come from anyone.
pub(crate) fn is_name(name: &str) -> bool {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.chars().all(harmless)
}

/// Opens all files of a directory, by name; logs are not part of a checkpoint.
pub(crate) fn open_all(directory: &Path) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let entry = entry.map_err(Error::io("read", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(Error::io("stat", entry.path()))?;
        if !kind.is_file() || !is_name(&name) {
            let reason = "only a checkpoint that needs no other one can be kept so";
            return Err(Error::malformed(
                format!("{name:?} among the images"),
                reason,
            ));
        }
        if Path::new(&name).extension().is_some_and(|end| end == "log") {
            continue;
        }
        let file = File::open(entry.path()).map_err(Error::io("open", entry.path()))?;
        let size = file
            .metadata()
            .map_err(Error::io("stat", entry.path()))?
            .len();
        images.push(Image { name, size, file });
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// Makes a file that must not be there yet.
pub(crate) fn create(directory: &Path, name: &str) -> Result<File> {
    if !is_name(name) {
        return Err(Error::malformed(
            format!("file {name:?}"),
            "no name of an image",
        ));
    }
    let path = directory.join(name);
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    options.map_err(Error::io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in [
            "pages-1.img",
            "tmpfs-dev-77.tar.gz.img",
            "descriptors.json",
            "stats-dump",
        ] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0",
            "/etc/passwd",
            ".hidden",
            "a b",
            "é",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(!is_name(&"a".repeat(201)));
    }

    #[test]
    fn a_checkpoint_that_leads_to_another_one_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join("pages-1.img"), "x").expect("written");
        fs::write(directory.path().join("dump.log"), "x").expect("written");
        assert_eq!(open_all(directory.path()).expect("flat").len(), 1);
        std::os::unix::fs::symlink("../other", directory.path().join("parent")).expect("linked");
        let error = open_all(directory.path())
            .expect_err("a symlink")
            .to_string();
        assert!(error.contains("\"parent\""), "{error}");
    }
}
