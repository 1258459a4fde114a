//! The files with output that its reader has not taken yet. The supervisor writes them.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::log;

/// The file of stream `name` of the init in `bundle`.
pub(super) fn file(bundle: &Path, name: &str) -> PathBuf {
    bundle.join(format!("{name}.spill"))
}

/// Removes the files of the named streams from `bundle`.
pub(super) fn remove(bundle: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = file(bundle, name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.context(|| format!("remove {}", path.display()))?;
                log::warn(format_args!("{}: nobody has read it", path.display()));
            }
        }
    }
    Ok(())
}
