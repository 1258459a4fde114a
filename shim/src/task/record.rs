//! What the `delete` action needs to know when the daemon is gone, kept in the bundle.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::options::Options;

const FILE: &str = "xebec-shim.json";

/// The record of one container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The options it was created with.
    pub options: Options,
    /// The shim's socket.
    pub socket: PathBuf,
}

impl Record {
    /// Writes the record into `bundle`.
    pub fn write(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join(FILE);
        let json = serde_json::to_vec(self).context(|| "encode the shim's record".into())?;
        std::fs::write(&path, json).context(|| format!("write {}", path.display()))
    }

    /// Reads the record; `None` if no task was created in `bundle`.
    pub fn read(bundle: &Path) -> Result<Option<Record>> {
        let path = bundle.join(FILE);
        let json = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_slice(&json)
            .map(Some)
            .context(|| format!("read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_absence_is_no_error() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(Record::read(bundle.path()).unwrap().is_none());
        let mut options = Options::default();
        options.binary_name = "crun".into();
        Record {
            options: options.clone(),
            socket: "/s".into(),
        }
        .write(bundle.path())
        .unwrap();
        let record = Record::read(bundle.path()).unwrap().unwrap();
        assert_eq!(record.options, options);
        assert_eq!(record.socket, Path::new("/s"));
        std::fs::write(bundle.path().join(FILE), "{").unwrap();
        let error = Record::read(bundle.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
